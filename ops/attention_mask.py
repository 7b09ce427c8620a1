"""Who sees whom: tokens of a row, and the rule that all implementations of attention follow."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Tokens(NamedTuple):
    """What attention needs to know of a row of tokens."""

    order: Int[Array, "B T"]  # place in the row, padding not counted
    segments: Int[Array, "B T"]  # document; 0 is padding
    positions: Int[Array, "B T"]  # for biases; the operation itself does not use them
    prefix: Bool[Array, "B T"] | None = None  # keys seen from before them too; None: nowhere


@dataclasses.dataclass(frozen=True)
class Rule:
    """The arguments of `attention` besides its arrays."""

    causal: bool
    window: tuple[int, int] | None
    scale: float
    softcap: float
    bias: Callable[[Tokens, Tokens], Float[Array, "..."]] | None
    aligned: bool
    dropout: float = 0.0
    key: Array | None = None  # without it there is no dropout

    def visible(self, queries: Tokens, keys: Tokens) -> Bool[Array, "B T S"]:
        """Key j is visible to query i."""
        i, j = queries.order[:, :, None], keys.order[:, None, :]
        seen = queries.segments[:, :, None] == keys.segments[:, None, :]
        seen &= keys.segments[:, None, :] != 0
        if self.causal:
            past = j <= i
            seen &= past if keys.prefix is None else past | keys.prefix[:, None, :]
        if self.window is not None:
            left, right = self.window
            seen &= (i - left <= j) & (j <= i + right)
        return seen

    def reach(self, keys: Tokens) -> tuple[int | None, int | None]:
        """How far before and after itself in the arrays a query may see; None: without a limit."""
        if not self.aligned:
            return None, None
        left, right = self.window or (None, None)
        if self.causal and keys.prefix is None:
            right = 0 if right is None else min(right, 0)
        return left, right

    def adjusted(
        self, products: Float[Array, "B *H T S"], queries: Tokens, keys: Tokens
    ) -> Float[Array, "B *H T S"]:
        """Scores of products q.k: scaled, capped, biased; -inf where nothing is seen."""
        (B, *H, T, S), scores = products.shape, products * self.scale
        if self.softcap:
            scores = self.softcap * jnp.tanh(scores / self.softcap)
        if self.bias is not None:
            bias = self.bias(queries, keys).astype(scores.dtype)
            bias = jnp.broadcast_to(bias, (bias.shape[0], math.prod(H), T, S))
            scores = scores + bias.reshape(-1, *H, T, S)
        visible = self.visible(queries, keys).reshape(B, *[1] * len(H), T, S)
        return jnp.where(visible, scores, -jnp.inf)

    def dropped(self, weights: Float[Array, "..."], chunk: Array | int) -> Float[Array, "..."]:
        """Dropout of attention weights, drawn per chunk of queries."""
        if self.key is None or not self.dropout:
            return weights
        key = jax.random.fold_in(self.key, chunk)
        kept = jax.random.bernoulli(key, 1 - self.dropout, weights.shape)
        return jnp.where(kept, weights / (1 - self.dropout), 0)
