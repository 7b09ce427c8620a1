"""Documents whose parts count unequally: a loss mask, or one weight for all of a document."""

import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.files import Policy

MOST = 1e30  # weight of a document: sums of them are still float32


@dataclass(frozen=True)
class Weighed:
    """Parts of a document in order, each with the weight of its tokens in the loss."""

    parts: tuple[tuple[str, float], ...]

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.parts)


def weighted(
    record: dict[str, Any], text: str, name: str, where: str, policy: Policy
) -> Weighed | None:
    """A document with the weight that its line holds under `name`; None: left out."""
    weight = record.get(name)
    if not isinstance(weight, (int, float)) or not 0 <= weight <= MOST:
        shown = textwrap.shorten(repr(weight), 40)
        policy.refuse(
            f"{where} has {shown} under {name!r}, must be a number >= 0, at most {MOST:g}"
        )
        return None
    return Weighed(((text, float(weight)),))


def laid(pieces: list[np.ndarray], length: int, *, once: bool) -> np.ndarray:
    """Weights of a row [length] whose positions are those of its pieces, one after another; with
    `once` a weight is 0 or 1."""
    found = np.zeros(length, np.float32)
    own = np.concatenate(pieces)
    found[: len(own)] = own
    return (found != 0).astype(np.float32) if once else found
