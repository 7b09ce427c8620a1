"""What happens to a document that cannot be read: an error, a replacement, or it is skipped."""

import logging
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data.readers.decompression import find_damage
from data.readers.long_text import LONG_TEXT_BYTES, LongText
from data.readers.read_stats import ReadStats
from errors import DataError

LOG = logging.getLogger(__name__)


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


def format_location(path: Path, offset: int) -> str:
    """Returns the description of a line for messages."""
    return f"{path}: the line at byte {offset}"


def describe_field(record: Mapping[str, object], name: str, kind: str) -> str:
    """Returns what stands where a record should have a `kind` of value: another one, or nothing."""
    if name in record:
        return f"{textwrap.shorten(repr(record[name]), 40)} under {name!r} is no {kind}"
    return f"no {kind} under {name!r}; it holds: {', '.join(list(record)[:8])}"
