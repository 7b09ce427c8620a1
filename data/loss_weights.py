"""Loss weights: a loss mask over the parts of a document, or one weight per document.

A preference is a record of three documents in parts (`data/chats/preferences.py`).
"""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data.readers.read_policy import ErrorPolicy
from settings.json_types import JsonObject

MAX_WEIGHT = 1e30  # Maximum weight of a document; sums of weights stay finite in float32.


class WeightedPart(NamedTuple):
    """A part of a document, which is encoded separately, and the weight of its tokens."""

    text: str
    weight: float = 1.0
    # Ranges of the text in which a special token is spelled as text; None: everywhere.
    plain: tuple[tuple[int, int], ...] | None = None
    before: str = ""  # The part that this one goes on behind; "": it begins a text.


def in_order(parts: Iterable[WeightedPart], before: str = "") -> tuple[WeightedPart, ...]:
    """Returns the parts of one text, each of which goes on behind the one before it.

    Args:
        parts: The parts.
        before: What the first part goes on behind.
    """
    joined = list[WeightedPart]()
    for part in parts:
        joined.append(part._replace(before=before))
        before = part.text or before
    return tuple(joined)


@dataclass(frozen=True)
class WeightedDocument:
    """A document as parts in order, each with the weight of its tokens in the loss."""

    parts: tuple[WeightedPart, ...]
    group: str = ""  # Group that the document is counted in, such as its language.

    @property
    def text(self) -> str:
        """The text of all parts."""
        return "".join(part.text for part in self.parts)


@dataclass(frozen=True)
class PreferenceRecord:
    """A prompt with the reply that is chosen and the one that is rejected."""

    prompt: WeightedDocument
    chosen: WeightedDocument
    rejected: WeightedDocument

    @property
    def texts(self) -> tuple[WeightedDocument, WeightedDocument, WeightedDocument]:
        """The three texts, in the order in which a store holds them."""
        return self.prompt, self.chosen, self.rejected

    @property
    def parts(self) -> tuple[WeightedPart, ...]:
        """The parts of the three texts; each reply goes on behind the prompt."""
        prompt = in_order(self.prompt.parts)
        before = next((part.text for part in reversed(prompt) if part.text), "")
        chosen, rejected = self.chosen.parts, self.rejected.parts
        return (*prompt, *in_order(chosen, before), *in_order(rejected, before))


def parse_weighted_document(
    record: JsonObject, text: str, weight_field: str, location: str, policy: ErrorPolicy
) -> WeightedDocument | None:
    """Returns the document with the weight in `weight_field`, or None if the policy skips it."""
    weight = record.get(weight_field)
    is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if weight is None or not is_number or not 0 <= weight <= MAX_WEIGHT:
        shown = textwrap.shorten(repr(weight), 40)
        policy.reject_document(
            f"{location} has {shown} under {weight_field!r}, must be a number >= 0, at most "
            f"{MAX_WEIGHT:g}"
        )
        return None
    return WeightedDocument((WeightedPart(text, float(weight)),))


def row_weights(slice_weights: list[np.ndarray], length: int, *, binarize: bool) -> np.ndarray:
    """Returns the weights of a row [length], from the weights of its slices one after another.

    With `binarize` each weight is 0 or 1.
    """
    weights = np.zeros(length, np.float32)
    values = np.concatenate(slice_weights)
    weights[: len(values)] = values
    return (weights != 0).astype(np.float32) if binarize else weights
