"""Visibility of keys to queries, by one rule that all implementations of attention share."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class TokenIndex(NamedTuple):
    """Position and document of each token of the rows, which attention masks and biases read."""

    order: Int[Array, "B T"]  # index in the row, padding not counted
    segment_ids: Int[Array, "B T"]  # document; 0 is padding
    positions: Int[Array, "B T"]  # for biases; the operation itself does not read them
    is_prefix: Bool[Array, "B T"] | None = None  # keys that earlier tokens also see; None: no key


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
        """Scales, caps and biases the products q.k; scores of invisible keys become -inf."""
        (B, *H, T, S), scores = products.shape, products * self.scale
        if self.softcap:
            scores = self.softcap * jnp.tanh(scores / self.softcap)
        if self.bias is not None:
            bias = self.bias(queries, keys).astype(scores.dtype)
            bias = jnp.broadcast_to(bias, (bias.shape[0], math.prod(H), T, S))
            scores = scores + bias.reshape(-1, *H, T, S)
        visible = self.visible(queries, keys).reshape(B, *[1] * len(H), T, S)
        return jnp.where(visible, scores, -jnp.inf)

    def apply_dropout(
        self, weights: Float[Array, "..."], chunk: Array | int
    ) -> Float[Array, "..."]:
        """Applies dropout to the attention weights of the chunk of queries with this index."""
        if self.key is None or not self.dropout:
            return weights
        key = jax.random.fold_in(self.key, chunk)
        keep = jax.random.bernoulli(key, 1 - self.dropout, weights.shape)
        return jnp.where(keep, weights / (1 - self.dropout), 0)
