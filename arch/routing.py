"""Which experts a token goes to, and how even that is. Pure functions of the router's scores.

Token choice: each token takes its k best experts (Shazeer et al., arXiv:1701.06538), in DeepSeek-V3
out of the best groups only (arXiv:2412.19437, section 2.1.2). Expert choice: each expert takes its
best tokens (Zhou et al., arXiv:2202.09368). Ties go to the lower expert, the earlier token.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from arch.terms import Amount
from ops.expert_layout import picked, ranks
from ops.experts import Routes


class Groups(NamedTuple):
    """Of `number` groups of experts a token may use `kept`, whose `best` scores sum highest."""

    number: int = 1
    kept: int = 1
    best: int = 2  # 2: DeepSeek-V3, 1: DeepSeek-V2


ALL = Groups()


def scores(logits: Float[Array, "B T E"], kind: str) -> Float[Array, "B T E"]:
    """softmax over all experts, or a sigmoid of each."""
    return jax.nn.softmax(logits, axis=-1) if kind == "softmax" else jax.nn.sigmoid(logits)


def chosen_by_token(
    score: Float[Array, "B T E"],
    k: int,
    *,
    bias: Float[Array, " E"] | None = None,
    groups: Groups = ALL,
) -> Int[Array, "B T K"]:
    """The k best experts of each token, best first; `bias` counts here and nowhere else."""
    by = jax.lax.stop_gradient(score if bias is None else score + bias)
    if groups.kept < groups.number:
        B, T, E = by.shape
        members = by.reshape(B, T, groups.number, E // groups.number)
        value = jnp.sum(jax.lax.top_k(members, groups.best)[0], axis=-1)
        best = jax.lax.top_k(value, groups.kept)[1]
        kept = jnp.any(best[..., None] == jnp.arange(groups.number), axis=2)
        by = jnp.where(kept[..., None], members, -jnp.inf).reshape(B, T, E)
    return jax.lax.top_k(by, k)[1]


def by_token(
    score: Float[Array, "B T E"],
    experts: Int[Array, "B T K"],
    real: Bool[Array, "B T"],
    *,
    normalize: bool,
    scale: float = 1.0,
) -> Routes:
    """Weights of the chosen: their scores, summing to 1 if `normalize`d, times `scale`."""
    weights = picked(score, experts)
    if normalize:
        weights = weights / (jnp.sum(weights, axis=2, keepdims=True) + 1e-20)
    return _only(Routes(experts, weights * scale), real[..., None], score.shape[2])


def slots(capacity: float, k: int, length: int, experts: int, least: int) -> int:
    """How many tokens of a row one expert takes: `capacity` times an even share, rounded up."""
    share = math.ceil(round(capacity * k * length / experts, 6))  # 1.1 * 10 is a little above 11
    return max(1, min(length, max(least, share)))


def within(routes: Routes, slots: int, experts: int) -> Routes:
    """The first `slots` tokens of each row and expert, in the order of tokens; others are dropped.

    A token names an expert once, so the order of its own choices plays no part.
    """
    return _only(routes, ranks(routes.experts, experts) < slots, experts)


def by_expert(
    score: Float[Array, "B T E"], segments: Int[Array, "B T"], k: int, *, scale: float = 1.0
) -> Routes:
    """Each expert takes its floor(n k / E) best tokens of every document of n tokens.

    A document's choice is its own, so that packed documents are as if alone.
    """
    B, T, E = score.shape
    shape = B, E, T
    document = jnp.broadcast_to(segments[:, None], shape)
    place = jax.lax.broadcasted_iota(jnp.int32, shape, 2)
    descending = -jax.lax.stop_gradient(jnp.moveaxis(score, 2, 1))
    document, _, token = jax.lax.sort((document, descending, place), num_keys=2, is_stable=True)
    new = jnp.diff(document, axis=2, prepend=-1) != 0
    first = jax.lax.cummax(jnp.where(new, place, 0), axis=2)
    last = jnp.diff(document, axis=2, append=-1) != 0
    end = jax.lax.cummin(jnp.where(last, place + 1, T), axis=2, reverse=True)
    taken = (place - first < (end - first) * k // E) & (document != 0)
    taken = jax.lax.sort((token, taken.astype(jnp.int32)), num_keys=1)[1]
    experts = jnp.broadcast_to(jnp.arange(E, dtype=jnp.int32), (B, T, E))
    return _only(Routes(experts, score * scale), jnp.moveaxis(taken, 1, 2) == 1, E)


def statistics(
    logits: Float[Array, "B T E"],
    score: Float[Array, "B T E"],
    asked: Routes,
    routes: Routes,
    real: Bool[Array, "B T"],
    k: int,
) -> dict[str, Amount]:
    """Auxiliary losses and metrics, each a mean over tokens that are not padding.

    balance   E sum_e f_e p_e: share of tokens that ask for e, mean score of e (Switch,
              arXiv:2101.03961, eq. 4); k if all are even
    z         squared logsumexp of the logits (ST-MoE, arXiv:2202.08906, eq. 5)
    """
    E, wide = score.shape[2], score.dtype
    tokens = jnp.sum(real, dtype=wide)
    at_least_one = jnp.maximum(tokens, 1)
    load = loads(asked, E, wide)
    even = jnp.sum(load) / E
    share = load / jnp.maximum(jnp.sum(load), 1)
    probability = score / jnp.sum(score, axis=2, keepdims=True)
    mean = jnp.sum(probability, axis=(0, 1), where=real[..., None]) / at_least_one
    squares = jnp.square(jax.nn.logsumexp(logits, axis=2))
    entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-30)), 0))
    kept = jnp.sum(loads(routes, E, wide))
    values = {
        "balance": E * jnp.sum(load / at_least_one * mean) * tokens,
        "z": jnp.sum(squares, where=real),
        "load_entropy": (entropy / math.log(E) if E > 1 else 1.0) * tokens,
        "max_load": jnp.max(load) / jnp.maximum(even, 1 / E) * tokens,
        "dropped": tokens - kept / k,
        "dead": jnp.mean(load == 0) * tokens,
        "confidence": jnp.sum(jnp.max(score, axis=2), where=real),
    }
    return {f"moe.{name}": Amount(value, tokens) for name, value in values.items()}


def excess(asked: Routes, bias: Float[Array, " E"], real: Bool[Array, "B T"]) -> Amount:
    """0, with the excess of each expert's load over the mean as its gradient for `bias`.

    An update by its sign evens the load without a loss (Wang et al., arXiv:2408.15664).
    """
    load = loads(asked, bias.shape[0], bias.dtype)
    over = jax.lax.stop_gradient(load - jnp.mean(load))
    zero = bias - jax.lax.stop_gradient(bias)
    return Amount(jnp.sum(over * zero), jnp.sum(real, dtype=bias.dtype))


def loads(routes: Routes, experts: int, dtype: jnp.dtype) -> Float[Array, " E"]:
    """How many tokens each expert has."""
    return jnp.sum(routes.experts[..., None] == jnp.arange(experts), axis=(0, 1, 2), dtype=dtype)


def _only(routes: Routes, kept: Bool[Array, "B T #K"], experts: int) -> Routes:
    """Routes where `kept`; the rest lead to no expert, with weight 0."""
    weights = jnp.where(kept, routes.weights, 0)
    return Routes(jnp.where(kept, routes.experts, experts), weights)
