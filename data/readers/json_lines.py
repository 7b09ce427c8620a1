"""Files of JSON lines: their objects, and the texts in a field of them."""

import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.readers.long_text import LONG_TEXT_BYTES, LongText
from data.readers.read_policy import ErrorPolicy, describe_field, format_location
from data.readers.text_files import BOM, split_file
from settings.json_types import JsonObject

# A string of JSON as bytes, and the whole characters and escapes at the beginning of one.
JSON_STRING = re.compile(rb'"((?:[^"\\]++|\\.)*+)"', re.DOTALL)
JSON_CHARACTERS = re.compile(
    rb"(?:[^\\\x80-\xff]++|[\xc0-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xff][\x80-\xbf]{3}"
    rb"|\\[^u]|\\u(?![dD][89abAB]).{4}|\\u[dD][89abAB]..\\u.{4})*+",  # surrogates in pairs
    re.DOTALL,
)


class JsonLine(NamedTuple):
    """A line of JSON: its offset, the raw line, the parsed object, and the object's text."""

    offset: int
    raw: str
    record: JsonObject
    text: str


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
    policy.reject_document(
        f"{location}: {describe_field(record, text_field, 'text')}; set "
        f"{policy.setting_prefix}text_field, or {policy.setting_prefix}on_error to skip"
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
    for offset, raw in split_file(path, b"\n", policy, any_line_break=False):
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
