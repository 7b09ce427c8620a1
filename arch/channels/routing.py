"""The routing of tokens to experts and its metrics, as pure functions of the router's scores.

Token choice: each token takes its k best experts (Shazeer et al., arXiv:1701.06538), in DeepSeek-V3
from its best groups only (arXiv:2412.19437, section 2.1.2). Expert choice: each expert takes its
best tokens (Zhou et al., arXiv:2202.09368). Of equal scores, the lower expert and the earlier token
come first.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from arch.weighted_sum import ProductOfMeans, WeightedSum
from ops.experts.dispatch import position_in_expert, take_experts
from ops.experts.experts import Routes


class ExpertGroups(NamedTuple):
    """The division of experts into groups, of which a token may use only the best.

    A token uses the `top_groups` groups whose sum of the `group_top_k` best scores is highest.
    """

    n_groups: int = 1
    top_groups: int = 1
    group_top_k: int = 2  # DeepSeek-V3 uses 2, DeepSeek-V2 uses 1.


ALL_GROUPS = ExpertGroups()


def router_scores(logits: Float[Array, "B T E"], kind: str) -> Float[Array, "B T E"]:
    """Computes the softmax over all experts, or the sigmoid of each logit."""
    return jax.nn.softmax(logits, axis=-1) if kind == "softmax" else jax.nn.sigmoid(logits)


def top_k_experts(
    score: Float[Array, "B T E"],
    top_k: int,
    *,
    bias: Float[Array, " E"] | None = None,
    groups: ExpertGroups = ALL_GROUPS,
) -> Int[Array, "B T k"]:
    """Returns the k best experts of each token, best first.

    `bias` changes this selection only; it does not enter the weights.
    """
    priority = jax.lax.stop_gradient(score if bias is None else score + bias)
    if groups.top_groups < groups.n_groups:
        B, T, E = priority.shape
        members = priority.reshape(B, T, groups.n_groups, E // groups.n_groups)
        group_score = jnp.sum(jax.lax.top_k(members, groups.group_top_k)[0], axis=-1)
        best = jax.lax.top_k(group_score, groups.top_groups)[1]
        group_mask = jnp.any(best[..., None] == jnp.arange(groups.n_groups), axis=2)
        priority = jnp.where(group_mask[..., None], members, -jnp.inf).reshape(B, T, E)
    return jax.lax.top_k(priority, top_k)[1]


def token_choice(
    score: Float[Array, "B T E"],
    experts: Int[Array, "B T k"],
    token_mask: Bool[Array, "B T"],
    *,
    normalize: bool,
    scale: float = 1.0,
) -> Routes:
    """Returns the routes of tokens to `experts`, weighted by score.

    The weights of a token are divided by their sum if `normalize`, then multiplied by `scale`.
    Tokens outside `token_mask` get no expert.
    """
    weights = take_experts(score, experts)
    if normalize:
        weights = weights / (jnp.sum(weights, axis=2, keepdims=True) + 1e-20)
    return _mask_routes(Routes(experts, weights * scale), token_mask[..., None], score.shape[2])


def expert_capacity(
    capacity_factor: float, top_k: int, length: int, num_experts: int, min_capacity: int
) -> int:
    """Returns the maximum tokens per row and expert: an even share times the factor."""
    # Rounding removes floating-point error first: 1.1 * 10 is slightly above 11.
    share = min(round(capacity_factor * top_k * length / num_experts, 6), length)
    return max(1, min(length, max(min_capacity, math.ceil(share))))


def drop_over_capacity(routes: Routes, capacity: int, num_experts: int) -> Routes:
    """Drops the routes of each row and expert after the first `capacity`, in the order of tokens.

    A token chooses an expert at most once, so the order of its choices has no effect.
    """
    return _mask_routes(
        routes, position_in_expert(routes.experts, num_experts) < capacity, num_experts
    )


def expert_choice(
    score: Float[Array, "B T E"], segment_ids: Int[Array, "B T"], top_k: int, *, scale: float = 1.0
) -> Routes:
    """Routes to each expert its floor(n k / E) best tokens of every document of n tokens.

    The choice is made within each document, so packing documents into one row does not change it.
    """
    B, T, E = score.shape
    shape = B, E, T
    document = jnp.broadcast_to(segment_ids[:, None], shape)
    position = jax.lax.broadcasted_iota(jnp.int32, shape, 2)
    descending = -jax.lax.stop_gradient(jnp.moveaxis(score, 2, 1))
    document, _, token = jax.lax.sort((document, descending, position), num_keys=2, is_stable=True)
    is_first = jnp.diff(document, axis=2, prepend=-1) != 0
    start = jax.lax.cummax(jnp.where(is_first, position, 0), axis=2)
    is_last = jnp.diff(document, axis=2, append=-1) != 0
    end = jax.lax.cummin(jnp.where(is_last, position + 1, T), axis=2, reverse=True)
    is_chosen = (position - start < (end - start) * top_k // E) & (document != 0)
    chosen = jax.lax.sort((token, is_chosen.astype(jnp.int32)), num_keys=1)[1]
    experts = jnp.broadcast_to(jnp.arange(E, dtype=jnp.int32), (B, T, E))
    return _mask_routes(Routes(experts, score * scale), jnp.moveaxis(chosen, 1, 2) == 1, E)


def router_metrics(
    logits: Float[Array, "B T E"],
    score: Float[Array, "B T E"],
    all_routes: Routes,
    routes: Routes,
    token_mask: Bool[Array, "B T"],
    top_k: int,
) -> dict[str, WeightedSum]:
    """Computes auxiliary losses and metrics, each a mean over the tokens in `token_mask`.

    balance_loss   as `balance_loss` states it
    z_loss         the squared logsumexp of the logits (ST-MoE, arXiv:2202.08906, eq. 5)
    load_entropy   the entropy of the load, relative to that of an even load
    max_load       the largest load, relative to an even load
    dropped        the share of routes in `all_routes` that are not in `routes`
    dead           the share of experts without a token
    confidence     the highest score of a token
    """
    E, wide = score.shape[2], score.dtype
    tokens = jnp.sum(token_mask, dtype=wide)
    load = expert_load(all_routes, E, wide)
    even = jnp.sum(load) / E
    share = load / jnp.maximum(jnp.sum(load), 1)
    squares = jnp.square(jax.nn.logsumexp(logits, axis=2))
    entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-30)), 0))
    num_routes = jnp.sum(expert_load(routes, E, wide))
    values = {
        "balance_loss": balance_loss(score, all_routes, token_mask).sum,
        "z_loss": jnp.sum(squares, where=token_mask),
        "load_entropy": (entropy / math.log(E) if E > 1 else 1.0) * tokens,
        "max_load": jnp.max(load) / jnp.maximum(even, 1 / E) * tokens,
        "dropped": tokens - num_routes / top_k,
        "dead": jnp.mean(load == 0) * tokens,
        "confidence": jnp.sum(jnp.max(score, axis=2), where=token_mask),
    }
    return {f"moe.{name}": WeightedSum(value, tokens) for name, value in values.items()}


def balance_loss(
    score: Float[Array, "B T E"], all_routes: Routes, token_mask: Bool[Array, "B T"]
) -> ProductOfMeans:
    """Returns the load-balancing loss over the tokens in `token_mask`.

    It is E sum_e f_e p_e, where f_e is the share of tokens that choose e and p_e the mean score of
    e (Switch, arXiv:2101.03961, eq. 4). It is k if the load is even.
    """
    tokens = jnp.sum(token_mask, dtype=score.dtype)
    load = expert_load(all_routes, score.shape[2], score.dtype)
    probability = score / jnp.sum(score, axis=2, keepdims=True)
    total = jnp.sum(probability, axis=(0, 1), where=token_mask[..., None])
    return ProductOfMeans(load, tokens, total, tokens)


def load_excess_loss(
    all_routes: Routes, bias: Float[Array, " E"], token_mask: Bool[Array, "B T"]
) -> WeightedSum:
    """Returns 0 with a gradient for `bias`: the excess of each expert's load over the mean.

    An update by the sign of this gradient evens the load without a loss term (Wang et al.,
    arXiv:2408.15664).
    """
    load = expert_load(all_routes, bias.shape[0], bias.dtype)
    excess = jax.lax.stop_gradient(load - jnp.mean(load))
    zero = bias - jax.lax.stop_gradient(bias)
    return WeightedSum(jnp.sum(excess * zero), jnp.sum(token_mask, dtype=bias.dtype))


def expert_load(routes: Routes, num_experts: int, dtype: jnp.dtype) -> Float[Array, " E"]:
    """Counts the tokens of each expert."""
    return jnp.sum(
        routes.experts[..., None] == jnp.arange(num_experts), axis=(0, 1, 2), dtype=dtype
    )


def _mask_routes(routes: Routes, mask: Bool[Array, "B T #k"], num_experts: int) -> Routes:
    """Returns routes that lead to no expert, with weight 0, outside `mask`."""
    weights = jnp.where(mask, routes.weights, 0)
    return Routes(jnp.where(mask, routes.experts, num_experts), weights)
