"""Message catalogs of GNU gettext (.mo): the texts of programs and their translations.

The format is that of the manual of gettext, section "The Format of GNU MO Files". The rule of
plurals in the header is a program in C, which is not read.
"""

import struct
from typing import NamedTuple

from errors import DataError

LITTLE_ENDIAN, BIG_ENDIAN = b"\xde\x12\x04\x95", b"\x95\x04\x12\xde"
CONTEXT_END = "\x04"  # Ends the context before an original text.
PLURALS = "\0"  # Separates the forms of a text.


class Message(NamedTuple):
    """A text of a program, and its translation; plural forms are lines."""

    original: str
    translation: str


def read_catalog(raw: bytes, name: str) -> list[Message]:
    """Returns the messages of a catalog in UTF-8, without its header and what is not translated.

    Raises:
        DataError: if the file is damaged.
    """
    order = {LITTLE_ENDIAN: "<", BIG_ENDIAN: ">"}.get(raw[:4])
    if order is None:
        raise DataError(f"{name} is no message catalog; download its package again")
    try:
        _, count, originals, translations = struct.unpack_from(f"{order}4I", raw, 4)
        messages = []
        for i in range(count):
            texts = []
            for table in (originals, translations):
                size, start = struct.unpack_from(f"{order}2I", raw, table + 8 * i)
                texts.append(raw[start : start + size].decode())
            original = texts[0].rpartition(CONTEXT_END)[2]
            if original and texts[1]:
                messages.append(Message(*(t.replace(PLURALS, "\n") for t in (original, texts[1]))))
    except (struct.error, UnicodeDecodeError) as error:
        raise DataError(
            f"{name} is a damaged message catalog ({error}); download its package again"
        ) from error
    return messages
