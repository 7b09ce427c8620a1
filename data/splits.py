"""Splits: what is held out of the training documents for validation and test.

By hash: a document is held out if the hash of its bytes falls into the share of a split. It stays
in its split if files are renamed, added or reordered, and equal documents are in the same split. If
no hash falls into a split, the split takes the document of the lowest hash.

By place: a corpus of few documents has no document to spare. If whole documents would give a split
far more or far less of the text than its share, the end of every document is held out instead, cut
between paragraphs, lines, sentences or words.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from data.images.settings import ImageText
from data.loss_weights import PreferenceRecord, WeightedDocument
from data.readers.long_text import LONG_TEXT_BYTES, LongText
from data.readers.text_files import LINE_BREAK
from formatting import format_percent

SPLITS = ("train", "valid", "test")
# A text, an image with its text, or the texts of a record.
Document = str | LongText | WeightedDocument | ImageText | tuple[str, ...] | PreferenceRecord
DocumentStream = Iterator[tuple[str, Document]]  # (split, document)
HasTokens = Callable[[Document], bool]

SAMPLE_DOCUMENTS = 1000  # A corpus with more documents is split by hash.
# By hash, a split of a smaller corpus must have between these shares of the text.
MIN_SHARE = 0.1  # of the split's share
MAX_EXCESS = 0.1  # above the split's share
WINDOW_BYTES = 1 << 16  # Distance at which a boundary is searched.
# Boundaries at which a document is cut, the best first; a part begins where a match ends.
BOUNDARIES = tuple(
    re.compile(pattern)
    for pattern in (
        LINE_BREAK + rb"(?:[ \t]*" + LINE_BREAK + rb")+",  # paragraphs
        LINE_BREAK,  # lines
        rb"[.!?][\"')\]]*\s+|\xe3\x80\x82",  # sentences
        rb"\s+",  # words
    )
)


@dataclass(frozen=True)
class HoldOutPlan:
    """A plan of what is held out of the training documents."""

    shares: dict[str, float]  # Share of the text by split.
    by_place: bool = False
    lowest: dict[int, str] | None = None  # Splits of the hashes that are outside of the shares.
    n_documents: int = 0
    longest: int = 0  # Bytes of the longest document.

    def describe(self) -> str:
        """Returns a sentence on a split by place, "" for a split by hash."""
        if not self.by_place:
            return ""
        owner = (
            "one document, whose end is"
            if self.n_documents == 1
            else f"{self.n_documents} documents, too few to hold out whole ones; the end of each is"
        )
        parts = ", then ".join(
            f"{format_percent(share)} for {split}" for split, share in self.shares.items()
        )
        return (
            f"{owner} held out: {parts} (to choose, set data.valid_path and data.test_path, or "
            "data.document_separator)"
        )


def as_long_text(document: Document) -> Document:
    """Returns a document, as a `LongText` if it is a long text."""
    if isinstance(document, str) and len(document) > LONG_TEXT_BYTES:
        return LongText(document.encode())
    return document


def contains_text(document: Document) -> bool:
    """Returns whether a document has any text."""
    return bool(document.raw if isinstance(document, LongText) else split_key(document))


def plan_hold_out(
    documents: Iterable[Document],
    shares: dict[str, float],
    has_tokens: HasTokens = contains_text,
) -> HoldOutPlan:
    """Plans what is held out, from the first documents or, if there are few, from all of them.

    Args:
        documents: The documents; the pass ends early if they are many.
        shares: Share of the text of each split that is held out.
        has_tokens: Whether a document has tokens; others fill no split.
    """
    held_bytes = dict.fromkeys(shares, 0)
    lowest: dict[int, int] = {}  # Bytes of the documents of lowest hash outside of the shares.
    total = longest = n_documents = 0
    is_divisible = True
    for document in documents:
        if _is_blank(document):
            continue
        code, size = _hash(document)
        split = _split_for(code, shares)
        n_documents, total, longest = n_documents + 1, total + size, max(longest, size)
        is_divisible = is_divisible and _is_divisible(document)
        if split != "train":
            held_bytes[split] += size if held_bytes[split] or has_tokens(document) else 0
        elif code in lowest:
            lowest[code] += size
        elif (len(lowest) < len(shares) or code < max(lowest)) and has_tokens(document):
            lowest[code] = size
            if len(lowest) > len(shares):
                del lowest[max(lowest)]
        if n_documents >= SAMPLE_DOCUMENTS and all(held_bytes.values()):
            return HoldOutPlan(shares)
    chosen = dict(
        zip(sorted(lowest), (split for split in shares if not held_bytes[split]), strict=False)
    )
    for code, split in chosen.items():
        held_bytes[split] = lowest[code]
    is_fair = sum(held_bytes.values()) < total and all(
        share * MIN_SHARE <= held_bytes[split] / total <= share + MAX_EXCESS
        for split, share in shares.items()
    )
    by_place = is_divisible and not is_fair
    return HoldOutPlan(shares, by_place, chosen, n_documents, longest)


def assign_splits(documents: Iterable[Document], plan: HoldOutPlan) -> DocumentStream:
    """Yields all text of the documents with its split."""
    for document in documents:
        if _is_blank(document):
            yield "train", document
        elif plan.by_place:
            yield from _cut_by_place(document, plan)
        else:
            code, _ = _hash(document)
            yield (plan.lowest or {}).get(code) or _split_for(code, plan.shares), document


def split_key(
    document: str | WeightedDocument | ImageText | tuple[str, ...] | PreferenceRecord,
) -> str:
    """Returns the text that selects the split: that of a document, or a record's first."""
    if isinstance(document, str):
        return document
    if isinstance(document, PreferenceRecord):
        return document.prompt.text
    return document[0] if isinstance(document, tuple) else document.text


def _is_blank(document: Document) -> bool:
    # A long document of white space alone has no practical relevance.
    return not isinstance(document, LongText) and not split_key(document).strip()


def _is_divisible(document: Document) -> bool:
    """Returns whether a document may be cut: records, chats and captions are wholes."""
    if isinstance(document, WeightedDocument):
        return len(document.parts) == 1
    return not isinstance(document, tuple | PreferenceRecord | ImageText)


def _hash(document: Document) -> tuple[int, int]:
    """Returns the first 64 bits of the hash of a document, and its size in bytes.

    An image selects the split of its texts, so that none of them is in another.
    """
    if isinstance(document, ImageText):
        return int(document.image_hash[:16], 16), len(document.text.encode())
    raw = document.raw if isinstance(document, LongText) else split_key(document).encode()
    return int.from_bytes(hashlib.sha256(raw).digest()[:8]), len(raw)


def _split_for(code: int, shares: dict[str, float]) -> str:
    fraction = code / 2**64
    for split, share in shares.items():
        if fraction < share:
            return split
        fraction -= share
    return "train"


def _cut_by_place(document: Document, plan: HoldOutPlan) -> DocumentStream:
    """Yields the beginning of a document for training, and its end for the held-out splits."""
    raw = document.raw if isinstance(document, LongText) else split_key(document).encode()
    view = memoryview(raw)
    cuts = [0, *find_cuts(view, plan.shares, at_least_one=len(view) == plan.longest), len(view)]
    for split, start, end in zip(("train", *plan.shares), cuts[:-1], cuts[1:], strict=True):
        part = view[start:end]
        if not part:
            continue
        text = LongText(part) if len(part) > LONG_TEXT_BYTES else str(part, "utf-8")
        if isinstance(document, WeightedDocument):
            cut_part = document.parts[0]._replace(text=str(part, "utf-8"))
            yield split, dataclasses.replace(document, parts=(cut_part,))
        else:
            yield split, text


def find_cuts(raw: memoryview, shares: dict[str, float], *, at_least_one: bool) -> list[int]:
    """Returns where the held-out parts at the end of a document begin.

    Args:
        raw: The document as UTF-8.
        shares: Share of the document by split, in the order of the parts.
        at_least_one: Whether each part has a character at least.
    """
    tail = bytes(raw[-WINDOW_BYTES:])
    size = len(raw) - (len(tail) - len(tail.rstrip()))  # White space at the end is no text.
    cuts, end = list[int](), size
    for share in reversed(shares.values()):
        n_bytes = max(round(share * size), int(at_least_one))
        end = _nearest_boundary(raw, max(end - n_bytes, 0), n_bytes // 2) if n_bytes else end
        cuts.insert(0, end)
    return cuts


def _nearest_boundary(raw: memoryview, target: int, radius: int) -> int:
    """Returns the boundary nearest to `target` of the best kind that is within `radius`."""
    radius = min(radius, WINDOW_BYTES)
    start = max(target - radius, 0)
    window = bytes(raw[start : target + radius])
    for boundary in BOUNDARIES:
        positions = [start + match.end() for match in boundary.finditer(window)]
        if positions:
            return min(positions, key=lambda position: abs(position - target))
    while target > 0 and raw[target] & 0xC0 == 0x80:  # A continuation byte of UTF-8.
        target -= 1
    return target
