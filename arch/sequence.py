"""The structure of the rows of a batch: positions, documents, and which token may see which.

Token j is visible to token i if and only if both are in the same segment, that segment is not 0,
and one of these holds: the view is not causal, j <= i, or `is_prefix[j]`. Segment 0 is padding.
Positions restart with every document. Rows that continue from a decoding state are padded on the
left, because recurrences and windows keep their last columns.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Num

from ops.attention.attention import BiasFn, TokenIndex

View = Literal["causal", "prefix", "bidirectional"]
VIEWS: tuple[View, ...] = ("causal", "prefix", "bidirectional")
# What a part supports under each view: "full", or "causal" if it reads a prefix in one direction.
ALL_VIEWS: dict[View, str] = {"causal": "full", "prefix": "full", "bidirectional": "full"}
CAUSAL_ONLY: dict[View, str] = {"causal": "full", "prefix": "causal"}


def intersect_views(a: Mapping[View, str], b: Mapping[View, str]) -> dict[View, str]:
    """Returns the views in both, "full" where both support them fully."""
    return {view: "full" if a[view] == b[view] == "full" else "causal" for view in a if view in b}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "positions",
        "segment_ids",
        "is_prefix",
        "attn_bias",
        "token_type_ids",
        "key_mask",
        "images",
    ],
    meta_fields=["causal"],
)
@dataclasses.dataclass(frozen=True)
class SequenceInfo:
    """The positions, documents and visibility of a batch of rows; it is a pytree.

    `is_prefix` marks tokens that all tokens of their document see; None marks none, which is the
    fast path. `attn_bias` is a function `(queries, keys) -> bias` that all attentions of a stack
    share (T5's table). `token_type_ids` index a table of token types; None means that all are 0.
    `key_mask` marks the tokens that attention may see; None marks all. A token outside `key_mask`
    still sees others, as padding does in published encoders. `images` has one image for each row,
    whose patches the model puts in the place of the tokens `vision.token_id`; None: no images.
    """

    positions: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]
    is_prefix: Bool[Array, "B T"] | None = None
    causal: bool = True
    attn_bias: BiasFn | None = None
    token_type_ids: Int[Array, "B T"] | None = None
    key_mask: Bool[Array, "B T"] | None = None
    images: Num[Array, "B height width channels"] | None = None

    @classmethod
    def unpacked(
        cls, batch_size: int, length: int, *, causal: bool = True, start_position: int = 0
    ) -> "SequenceInfo":
        """Returns rows of one document each, without padding, from `start_position` on."""
        positions = jnp.broadcast_to(
            jnp.arange(start_position, start_position + length, dtype=jnp.int32),
            (batch_size, length),
        )
        return cls(positions, jnp.ones((batch_size, length), jnp.int32), None, causal)

    @classmethod
    def from_batch(
        cls, batch: dict[str, Array], view: View, key_prefix: str = ""
    ) -> "SequenceInfo":
        """Returns the structure of a training batch; `key_prefix="source_"` is the encoder's."""
        prefix = batch["is_prefix"] if view == "prefix" else None
        positions, segments = batch[f"{key_prefix}positions"], batch[f"{key_prefix}segment_ids"]
        return cls(
            positions,
            segments,
            prefix,
            causal=view != "bidirectional",
            images=batch.get("images"),
        )

    def query_index(self) -> TokenIndex:
        """Returns the tokens as attention's queries; `order` counts tokens without padding."""
        order = jnp.cumsum(self.segment_ids != 0, axis=1, dtype=jnp.int32) - 1
        return TokenIndex(order, self.segment_ids, self.positions, self.is_prefix)

    def key_index(self) -> TokenIndex:
        """Returns the tokens as attention's keys: those outside `key_mask` count as padding."""
        tokens = self.query_index()
        if self.key_mask is None:
            return tokens
        return tokens._replace(segment_ids=jnp.where(self.key_mask, self.segment_ids, 0))

    def resets(self, previous_segment: Int[Array, " B"] | None = None) -> Bool[Array, "B T"]:
        """Marks the first token of each document, at which a recurrence resets its state.

        `previous_segment` is the segment of the token before the row; None means padding.
        """
        B, T = self.segment_ids.shape
        previous_segment = (
            jnp.zeros((B,), jnp.int32) if previous_segment is None else previous_segment
        )
        before = jnp.concatenate([previous_segment[:, None], self.segment_ids], axis=1)[:, :T]
        return self.segment_ids != before

    def last_segment(self, previous_segment: Int[Array, " B"]) -> Int[Array, " B"]:
        """Returns the segment of each row's last token, `previous_segment` for rows of length 0."""
        return jnp.concatenate([previous_segment[:, None], self.segment_ids], axis=1)[:, -1]

    def flip(self) -> "SequenceInfo":
        """Returns the rows in reverse order, for a one-directional mixer.

        Only the segments are reversed: such a mixer reads neither positions nor prefixes.
        """
        return dataclasses.replace(self, segment_ids=jnp.flip(self.segment_ids, 1))
