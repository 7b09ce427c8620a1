"""Visibility of keys to queries, by one rule that all implementations of attention share.

Besides the rule, a row may carry numbers of its own tokens: the decay of forgetting attention
(`ops/attention/decay.py`) and the blocks that each query selects (`ops/attention/moba.py`).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class BlockSelection(NamedTuple):
    """The blocks of keys that each query sees besides its own block (arXiv:2502.13189)."""

    block_start: Int[Array, "B T"]  # first token of the token's block, as an order
    # Number of the token's block among the whole blocks of its row, or -1.
    block_number: Int[Array, "B T"]
    selected: Bool[Array, "B T H N"]  # whether the query sees the whole block with this number

    def visible(self, keys: "BlockSelection") -> Bool[Array, "B H T S"]:
        """Returns whether a query sees a key's block; the selections have their heads first."""
        same_block = self.block_start[:, :, None] == keys.block_start[:, None, :]
        index = jnp.maximum(keys.block_number, 0)[:, None, None, :]
        chosen = (
            jnp.take_along_axis(self.selected, index, axis=3)
            & (keys.block_number >= 0)[:, None, None]
        )
        return same_block[:, None] | chosen


class TokenIndex(NamedTuple):
    """Position and document of each token of the rows, which attention masks and biases read."""

    order: Int[Array, "B T"]  # index in the row, padding not counted
    segment_ids: Int[Array, "B T"]  # document; 0 is padding
    positions: Int[Array, "B T"]  # for biases; the operation itself does not read them
    is_prefix: Bool[Array, "B T"] | None = None  # keys that earlier tokens also see; None: no key
    # Cumulative log decay of each head in two summands; a score is raised by query's minus key's.
    log_decay: Float[Array, "B T H 2"] | None = None
    blocks: BlockSelection | None = None  # None: all blocks are visible

    def heads_first(self) -> "TokenIndex":
        """Returns the index with the axes of heads and tokens swapped, as scores have them."""
        decay, blocks = self.log_decay, self.blocks
        return self._replace(
            log_decay=None if decay is None else decay.swapaxes(1, 2),
            blocks=blocks and blocks._replace(selected=blocks.selected.swapaxes(1, 2)),
        )


def first_tokens(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """Marks the first token of each document of a row; padding may stand inside a document."""
    is_real, length = segment_ids != 0, segment_ids.shape[1]
    last_real = jax.lax.cummax(jnp.where(is_real, jnp.arange(length), -1), axis=1)
    before = jnp.pad(last_real, [(0, 0), (1, 0)], constant_values=-1)[:, :length]
    previous = jnp.take_along_axis(segment_ids, jnp.maximum(before, 0), axis=1)
    return is_real & ((before < 0) | (previous != segment_ids))


# (queries, keys) -> number [B or 1, H, T, S] that is added to the scores, for any part of the rows.
BiasFn = Callable[[TokenIndex, TokenIndex], Float[Array, "..."]]


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """The arguments of `ops.attention.attention.attention` that are not token arrays."""

    causal: bool
    window: tuple[int, int] | None
    scale: float
    softcap: float
    bias: BiasFn | None
    aligned: bool
    dropout: float = 0.0
    key: Array | None = None  # random key of the dropout; None: no dropout
    sinks: Float[Array, " H"] | None = None  # score of each head's sink, which has no value

    def reason_not_plain(self, keys: TokenIndex) -> str | None:
        """Returns what the scores have besides scale, cap and visibility by place; None: nothing.

        Kernels and the ring of devices compute plain attention alone.
        """
        cases = {
            "it takes no bias": self.bias is not None,
            "it has no dropout": self.dropout > 0,
            "it has no sinks": self.sinks is not None,
            "it has no decay": keys.log_decay is not None,
            "it selects no blocks": keys.blocks is not None,
        }
        return next((reason for reason, holds in cases.items() if holds), None)

    def visible(self, queries: TokenIndex, keys: TokenIndex) -> Bool[Array, "B T S"]:
        """Returns whether key j (last axis) is visible to query i."""
        i, j = queries.order[:, :, None], keys.order[:, None, :]
        visible = queries.segment_ids[:, :, None] == keys.segment_ids[:, None, :]
        visible &= keys.segment_ids[:, None, :] != 0
        if self.causal:
            past = j <= i
            visible &= past if keys.is_prefix is None else past | keys.is_prefix[:, None, :]
        if self.window is not None:
            left, right = self.window
            visible &= (i - left <= j) & (j <= i + right)
        return visible

    def mask_bounds(self, keys: TokenIndex) -> tuple[int | None, int | None]:
        """Returns how many array positions before and after itself a query can see; None: all."""
        if not self.aligned:
            return None, None
        left, right = self.window or (None, None)
        if self.causal and keys.is_prefix is None:
            right = 0 if right is None else min(right, 0)
        return left, right

    def adjust_scores(
        self, products: Float[Array, "B *H T S"], queries: TokenIndex, keys: TokenIndex
    ) -> Float[Array, "B *H T S"]:
        """Scales, caps, biases and decays the products q.k; those of invisible keys become -inf.

        Both indices have their heads first.
        """
        (B, *H, T, S), scores = products.shape, products * self.scale
        if self.softcap:
            scores = self.softcap * jnp.tanh(scores / self.softcap)
        if self.bias is not None:
            bias = self.bias(queries, keys).astype(scores.dtype)
            bias = jnp.broadcast_to(bias, (bias.shape[0], math.prod(H), T, S))
            scores = scores + bias.reshape(-1, *H, T, S)
        if queries.log_decay is not None and keys.log_decay is not None:
            a, b = (x.astype(scores.dtype) for x in (queries.log_decay, keys.log_decay))
            decay = a[:, :, :, None] - b[:, :, None]
            scores = scores + jnp.sum(decay, axis=-1).reshape(B, *H, T, S)
        visible = self.visible(queries, keys).reshape(B, *[1] * len(H), T, S)
        if queries.blocks is not None and keys.blocks is not None:
            visible = visible & queries.blocks.visible(keys.blocks).reshape(B, *H, T, S)
        return jnp.where(visible, scores, -jnp.inf)

    def head_sinks(self, dtype: jnp.dtype, *H: int) -> Float[Array, "*H 1 1"] | None:
        """Returns the sinks as scores of heads that have the axes H, or None."""
        return None if self.sinks is None else self.sinks.astype(dtype).reshape(*H, 1, 1)

    def apply_dropout(
        self, weights: Float[Array, "..."], chunk: Array | int
    ) -> Float[Array, "..."]:
        """Applies dropout to the attention weights of the chunk of queries with this index."""
        if self.key is None or not self.dropout:
            return weights
        key = jax.random.fold_in(self.key, chunk)
        keep = jax.random.bernoulli(key, 1 - self.dropout, weights.shape)
        return jnp.where(keep, weights / (1 - self.dropout), 0)
