"""What a stack knows of its tokens besides their vectors: place, document, and who may see whom.

Token j is visible to token i iff they share a segment that is not 0, and (not `causal`, or j <= i,
or `prefix[j]`). Segment 0 is padding; positions restart with every document. Rows that a state goes
on from are padded on the left: what a recurrence or a window keeps is of the last columns.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ops.attention import Tokens

View = Literal["causal", "prefix", "both"]
VIEWS: tuple[View, ...] = ("causal", "prefix", "both")
# What a part can do under each view: "full", or "causal" (it reads a prefix one way).
EVERYWHERE: dict[View, str] = {"causal": "full", "prefix": "full", "both": "full"}
ONE_WAY: dict[View, str] = {"causal": "full", "prefix": "causal"}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["positions", "segments", "prefix", "bias", "types", "shown"],
    meta_fields=["causal"],
)
@dataclasses.dataclass(frozen=True)
class Sequence:
    """A batch of rows; `prefix=None` says that no token is seen from before it (the fast path).

    `bias` is what a stack shares among its attentions, `bias(queries, keys)` (T5's table). `types`
    are of tokens, for a table of them; None: all are 0. `shown` says which tokens attention may see
    at all, None: all; what is not shown may yet see, as padding does in published encoders.
    """

    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"]
    prefix: Bool[Array, "B T"] | None = None
    causal: bool = True
    bias: Any = None
    types: Int[Array, "B T"] | None = None
    shown: Bool[Array, "B T"] | None = None

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

    def keys(self) -> Tokens:
        """As attention sees those that it looks at."""
        tokens = self.tokens()
        if self.shown is None:
            return tokens
        return tokens._replace(segments=jnp.where(self.shown, self.segments, 0))

    def begins(self, last: Int[Array, " B"] | None = None) -> Bool[Array, "B T"]:
        """Where a document begins, after a token of segment `last`: what is kept starts anew."""
        B, T = self.segments.shape
        last = jnp.zeros((B,), jnp.int32) if last is None else last
        before = jnp.concatenate([last[:, None], self.segments], axis=1)[:, :T]
        return self.segments != before

    def ends(self, last: Int[Array, " B"]) -> Int[Array, " B"]:
        """The segment of each row's last token; `last` is that of the one before the first."""
        return jnp.concatenate([last[:, None], self.segments], axis=1)[:, -1]

    def flipped(self) -> "Sequence":
        """The rows from their ends; positions and prefixes, which one-way mixers read not, stay."""
        return dataclasses.replace(self, segments=jnp.flip(self.segments, 1))
