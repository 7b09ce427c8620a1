"""What a stack knows of its tokens besides their vectors: place, document, and who may see whom.

Token j is visible to token i iff they share a segment that is not 0, and (not `causal`, or j <= i,
or `prefix[j]`). Segment 0 is padding; positions restart with every document.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ops.attention import Tokens

View = Literal["causal", "prefix", "both"]
VIEWS: tuple[View, ...] = ("causal", "prefix", "both")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["positions", "segments", "prefix"],
    meta_fields=["causal"],
)
@dataclasses.dataclass(frozen=True)
class Sequence:
    """A batch of rows; `prefix=None` says that no token is seen from before it (the fast path)."""

    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"]
    prefix: Bool[Array, "B T"] | None = None
    causal: bool = True

    @classmethod
    def plain(cls, batch: int, length: int, *, causal: bool = True, start: int = 0) -> "Sequence":
        """One document a row, without padding, its first position at `start`."""
        positions = jnp.broadcast_to(
            jnp.arange(start, start + length, dtype=jnp.int32), (batch, length)
        )
        return cls(positions, jnp.ones((batch, length), jnp.int32), None, causal)

    @classmethod
    def of(cls, batch: dict[str, Array], view: View, source: str = "") -> "Sequence":
        """The sequence of a training batch under a view; `source="source_"` is the encoder's."""
        prefix = batch["prefix"] if view == "prefix" else None
        positions, segments = batch[f"{source}positions"], batch[f"{source}segments"]
        return cls(positions, segments, prefix, causal=view != "both")

    def tokens(self) -> Tokens:
        """As attention sees them; `order` leaves padding out, so that it changes nothing."""
        order = jnp.cumsum(self.segments != 0, axis=1, dtype=jnp.int32) - 1
        return Tokens(order, self.segments, self.positions, self.prefix)
