"""Text files: cutting into documents.

No character is translated: line ends, NULs and unusual code points stay as they are. Only a UTF-8
byte order mark at the start of a file is dropped, since it is a signature and not text. A separator
with line breaks matches the line breaks of every system, since a user writes it for what he sees.
"""

import codecs
import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.readers.decompression import check_not_archive, read_blocks
from data.readers.long_text import LONG_TEXT_BYTES
from data.readers.read_policy import ErrorPolicy
from errors import ConfigError, DataError

BOM = b"\xef\xbb\xbf"
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
# A document is in memory as a whole.
MAX_DOCUMENT_BYTES = 4 << 30
LINE_BREAK = rb"(?>\r\n|\n|\r)"


def parse_separator(setting: str, name: str = "data.document_separator") -> bytes:
    r"""Returns the separator of a setting, in which \n, \r and \t may be written out.

    Raises:
        ConfigError: if the setting, `name`, is no text.
    """
    for written, character in (("\\r", "\r"), ("\\n", "\n"), ("\\t", "\t")):
        setting = setting.replace(written, character)
    try:
        # Every line break matches that of every system.
        return re.sub(LINE_BREAK, b"\n", setting.encode())
    except UnicodeEncodeError as error:
        raise ConfigError(f"{name} is {ascii(setting)}, must be UTF-8; write it as text") from error


def iter_raw_texts(
    path: Path, separator: bytes, policy: ErrorPolicy
) -> Iterator[tuple[int, bytes | bytearray]]:
    """Yields the documents of a text file as bytes, with offsets; without separator, one."""
    for offset, raw in split_file(path, separator, policy, any_line_break=True):
        if offset == 0 and raw.startswith(BOM):
            if isinstance(raw, bytearray):
                del raw[: len(BOM)]
            else:
                raw = raw.removeprefix(BOM)
            offset = len(BOM)
        yield offset, raw


def iter_texts(path: Path, separator: bytes, policy: ErrorPolicy) -> Iterator[tuple[int, str]]:
    """Yields the documents of a text file with offsets; without separator, the file is one."""
    for offset, raw in iter_raw_texts(path, separator, policy):
        text = policy.decode(raw, path, offset)
        if text is not None:
            yield offset, text


def split_by_separator(
    blocks: Iterable[bytes],
    separator: bytes,
    *,
    any_line_break: bool = False,
    path: Path | None = None,
) -> Iterator[tuple[int, bytes | bytearray]]:
    """Yields the parts between separators with their offsets; without separator, one part.

    A separator at the end of the file starts no further part. One part is in memory at a time.

    Args:
        blocks: The content of the file.
        separator: The separator, whose line breaks are LF.
        any_line_break: Whether CR LF and CR in the file match LF in the separator.
        path: The file, for messages.

    Raises:
        DataError: if a part is longer than MAX_DOCUMENT_BYTES.
    """
    offset, scanned, buffer = 0, 0, bytearray()
    longest = len(separator) * 2 if any_line_break else len(separator)
    for block in blocks:
        buffer += block
        if len(buffer) > MAX_DOCUMENT_BYTES:
            raise DataError(
                f"{path}: a document is longer than {MAX_DOCUMENT_BYTES >> 30} GiB; set "
                "document_separator, or divide the file"
            )
        start = 0
        has_cr = any_line_break and b"\r" in buffer
        while separator and (span := _find(buffer, separator, max(start, scanned), has_cr)):
            end, following = span
            if end - start > LONG_TEXT_BYTES:
                offset += start  # A long part must not be in memory twice.
                yield offset, _take(buffer, start, end, following)
                offset, start, scanned = offset + following - start, 0, 0
            else:
                yield offset + start, _take(buffer, start, end, 0)
                start = following
        del buffer[:start]
        offset += start
        scanned = max(0, len(buffer) - longest + 1)
    # A CR at the end of the file is a whole line break.
    is_open = any_line_break and separator and buffer.endswith(b"\r")
    if is_open and (match := _separator_pattern(separator).search(buffer)):
        del buffer[match.start() :]
        yield offset, buffer
    elif buffer or not separator:
        yield offset, buffer


def _take(buffer: bytearray, start: int, end: int, consumed: int) -> bytes:
    """Returns a part of the buffer, and removes the first `consumed` bytes of the buffer."""
    with memoryview(buffer) as view:
        part = bytes(view[start:end])
    del buffer[:consumed]
    return part


def split_file(
    path: Path, separator: bytes, policy: ErrorPolicy, *, any_line_break: bool
) -> Iterator[tuple[int, bytes | bytearray]]:
    """Yields the parts of a file; none if the policy skips it."""
    check_not_archive(path)
    if not policy.accepts_file(path):
        return
    blocks = read_blocks(path, policy.stats)
    first = next(blocks, b"")
    if first.startswith(UTF16_MARKS):
        policy.reject_document(
            f"{path}: byte 0 is not UTF-8 (0x{first[0]:02x}), the file looks like UTF-16: convert "
            f"it, or set {policy.setting_prefix}on_error to skip"
        )
        return

    def all_blocks() -> Iterator[bytes]:
        yield first
        yield from blocks

    yield from split_by_separator(all_blocks(), separator, any_line_break=any_line_break, path=path)


def _find(buffer: bytearray, separator: bytes, start: int, has_cr: bool) -> tuple[int, int] | None:
    """Returns start and end of the first separator at or after `start`."""
    if has_cr:
        match = _separator_pattern(separator).search(buffer, start)
        # LF may follow a CR at the end of the buffer.
        if match and not (match.end() == len(buffer) and buffer.endswith(b"\r")):
            return match.span()
        return None
    index = buffer.find(separator, start)
    return (index, index + len(separator)) if index >= 0 else None


@functools.cache
def _separator_pattern(separator: bytes) -> re.Pattern[bytes]:
    return re.compile(LINE_BREAK.join(map(re.escape, separator.split(b"\n"))))
