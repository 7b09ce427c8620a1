"""Text files: cutting into documents, decoding, and the policy for what cannot be read.

No character is translated: line ends, NULs and unusual code points stay as they are. Only a UTF-8
byte order mark at the start of a file is dropped, since it is a signature and not text. A separator
with line breaks matches the line breaks of every system, since a user writes it for what he sees.
"""

import codecs
import functools
import json
import logging
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data.input_files import ReadStats, check_not_archive, find_damage, read_blocks
from errors import ConfigError, DataError
from settings.json_types import JsonObject

BOM = b"\xef\xbb\xbf"
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
# A document is in memory as a whole.
MAX_DOCUMENT_BYTES = 4 << 30
LONG_TEXT_BYTES = 1 << 20  # Longer documents are decoded and encoded in pieces of this size.
# A string of JSON as bytes, and the whole characters and escapes at the beginning of one.
JSON_STRING = re.compile(rb'"((?:[^"\\]++|\\.)*+)"', re.DOTALL)
JSON_CHARACTERS = re.compile(
    rb"(?:[^\\\x80-\xff]++|[\xc0-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xff][\x80-\xbf]{3}"
    rb"|\\[^u]|\\u(?![dD][89abAB]).{4}|\\u[dD][89abAB]..\\u.{4})*+",  # surrogates in pairs
    re.DOTALL,
)
LINE_BREAK = rb"(?>\r\n|\n|\r)"
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LongText:
    """A long document as UTF-8, decoded in pieces; a `str` takes up to four bytes a character."""

    raw: bytes | bytearray | memoryview

    def pieces(self) -> Iterator[str]:
        """Yields the text in pieces.

        Raises:
            UnicodeDecodeError: if the bytes are not UTF-8.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        view = memoryview(self.raw)
        for start in range(0, len(view), LONG_TEXT_BYTES):
            end = start + LONG_TEXT_BYTES
            yield decoder.decode(view[start:end], final=end >= len(view))


@dataclass(frozen=True)
class ErrorPolicy:
    """A policy for documents that cannot be read; `split` is where they are counted."""

    on_error: str  # strict, replace or skip
    split: str
    stats: ReadStats
    setting_prefix: str = "data."  # Prefix of the names of settings in messages.

    def reject_document(self, message: str) -> None:
        """Counts the document as skipped if the policy is skip.

        Raises:
            DataError: under every other policy.
        """
        if self.on_error != "skip":
            raise DataError(message)
        self.stats.skipped[self.split] += 1

    def decode(self, raw: bytes | bytearray, path: Path, offset: int) -> str | None:
        """Returns the text of `raw`, which is at `offset` in the file, or None if skipped."""
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            if self.on_error == "replace":
                self.stats.replaced[self.split] += 1
                return raw.decode(errors="replace")
            self.reject_document(
                f"{path}: byte {offset + error.start} is not UTF-8 (0x{raw[error.start]:02x}: "
                f"{error.reason}); convert it, or set {self.setting_prefix}on_error to replace or "
                "skip"
            )
            return None

    def decode_document(
        self, raw: bytes | bytearray, path: Path, offset: int
    ) -> str | LongText | None:
        """Returns the document `raw` of a file, or None if it is skipped; see `decode`."""
        if len(raw) > LONG_TEXT_BYTES:
            document = LongText(raw)
            try:
                for _ in document.pieces():
                    pass
                return document
            except UnicodeDecodeError:
                pass
        return self.decode(raw, path, offset)

    def accepts_file(self, path: Path) -> bool:
        """Returns whether a file is to be read; a damaged one is named and counted under skip."""
        if self.on_error != "skip":
            return True
        damage = find_damage(path)
        if damage:
            self.reject_file(damage)
        return not damage

    def reject_file(self, message: str) -> None:
        """Counts a damaged file as one document, and names it; see `reject_document`."""
        self.reject_document(message)
        if self.stats.warns:
            LOG.warning("the whole file is skipped: %s", message)

    def check_unicode(self, text: str, location: str) -> str | None:
        """Returns `text` without lone surrogates, which JSON allows, or None if it is skipped."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            if self.on_error == "replace":
                self.stats.replaced[self.split] += 1
                return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            self.reject_document(
                f"{location}: character {error.start} is the lone surrogate "
                f"{ascii(text[error.start])}; set {self.setting_prefix}on_error to replace or skip"
            )
            return None
        return text


class JsonLine(NamedTuple):
    """A line of JSON: its offset, the raw line, the parsed object, and the object's text."""

    offset: int
    raw: str
    record: JsonObject
    text: str


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
    for offset, raw in _split_file(path, separator, policy, any_line_break=True):
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


def iter_json_texts(path: Path, text_field: str, policy: ErrorPolicy) -> Iterator[JsonLine]:
    """Yields the lines of a file of JSON lines that have a text in `text_field`."""
    for offset, line, record in iter_json(path, policy):
        text = _text_of(record, text_field, format_location(path, offset), policy)
        if text is not None:
            yield JsonLine(offset, line, record, text)


def _text_of(record: JsonObject, text_field: str, location: str, policy: ErrorPolicy) -> str | None:
    """Returns the text of a line, or None if the policy skips it."""
    text: object = record.get(text_field)
    if isinstance(text, str):
        return policy.check_unicode(text, location)
    fields = ", ".join(list(record)[:8])
    policy.reject_document(
        f"{location}: no text under {text_field!r}; set {policy.setting_prefix}text_field; "
        f"the line holds: {fields}"
    )
    return None


def iter_json_documents(
    path: Path, text_field: str, policy: ErrorPolicy
) -> Iterator[str | LongText]:
    """Yields the texts in `text_field` of a file of JSON lines, long ones without a `str`."""
    for offset, _, record in iter_json(path, policy, long_texts=True):
        value = record.get(text_field)
        if isinstance(value, LongText):
            yield value
        elif (
            text := _text_of(record, text_field, format_location(path, offset), policy)
        ) is not None:
            yield text


def iter_json(
    path: Path, policy: ErrorPolicy, *, long_texts: bool = False
) -> Iterator[tuple[int, str, JsonObject]]:
    """Yields the objects of a file of JSON lines: offset, raw line, parsed object.

    With `long_texts`, a long line is "" and its long strings are `LongText`, as far as possible.
    """
    for offset, raw in _split_file(path, b"\n", policy, any_line_break=False):
        if long_texts and len(raw) > LONG_TEXT_BYTES and (parsed := parse_long_json(raw)):
            raw = b""
            yield offset, "", parsed
            continue
        line = policy.decode(raw, path, offset) if raw.strip() else None
        raw = b""  # A long line must not be in memory twice.
        if line is None:
            continue
        location = format_location(path, offset)
        hint = f"correct it or set {policy.setting_prefix}on_error to skip"
        try:
            record = json.loads(line.removeprefix("\ufeff"))
        except (ValueError, RecursionError) as error:
            policy.reject_document(f"{location} is not JSON ({error}); {hint}")
            continue
        if isinstance(record, dict):
            yield offset, line, record
        else:
            policy.reject_document(
                f"{location} holds {type(record).__name__}, must hold an object; {hint}"
            )


def parse_long_json(raw: bytes | bytearray) -> JsonObject | None:
    """Returns the object of a line of JSON, in which the long strings of its fields are `LongText`.

    They are decoded in pieces. As a `str`, a text with one emoji takes four bytes a character, and
    its line takes as many. None stands for a line that this function cannot parse.
    """
    mark = secrets.token_hex(16)  # No text has it.
    skeleton, spans, start = bytearray(), list[tuple[int, int]](), 0
    for match in JSON_STRING.finditer(raw):
        low, high = match.span(1)
        if high - low > LONG_TEXT_BYTES:
            skeleton += raw[start:low] + f"{mark}{len(spans)}".encode()
            spans.append((low, high))
            start = high
    skeleton += raw[start:]
    try:
        record = json.loads(skeleton.removeprefix(BOM))
        texts = {f"{mark}{i}": _decode_json_string(raw, *span) for i, span in enumerate(spans)}
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    names = [name for name, value in record.items() if isinstance(value, str) and value in texts]
    # A long string may also be a key, or stand in a list.
    if len(names) < len(texts):
        return None
    return record | {name: texts[record[name]] for name in names}


def _decode_json_string(raw: bytes | bytearray, start: int, end: int) -> LongText:
    """Returns the string whose escaped bytes are `raw[start:end]`.

    Raises:
        ValueError: if the bytes are not those of a JSON string, or are no text.
    """
    text = bytearray()
    while start < end:
        piece = JSON_CHARACTERS.match(raw, start, min(start + LONG_TEXT_BYTES, end))
        if not piece or not piece.group():
            raise ValueError(f"byte {start} begins no character")
        text += json.loads(b'"%b"' % piece.group()).encode()
        start = piece.end()
    return LongText(text)


def format_location(path: Path, offset: int) -> str:
    """Returns the description of a line for messages."""
    return f"{path}: the line at byte {offset}"


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


def _split_file(
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
