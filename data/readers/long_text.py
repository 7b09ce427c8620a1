"""Long documents as bytes, which are decoded in pieces."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

LONG_TEXT_BYTES = 1 << 20  # Longer documents are decoded and encoded in pieces of this size.


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
