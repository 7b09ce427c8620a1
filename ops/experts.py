"""Experts on the tokens that were routed to them, and the weighted sum of what they say.

    y[t] = sum over k of weights[t, k] mlp_e(x[t]),   e = experts[t, k]

On a mesh whose axis "expert" is larger than 1, each device holds some experts and tokens travel:
with few slots a row by all_to_all, in as much room as there are slots (GShard, arXiv:2006.16668);
otherwise as many as there are (`ops.exchange`), sorted by expert before and after.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ops.exchange import exchange
from ops.expert_layout import by_expert, by_slot, gathered, spread
from ops.expert_mlp import Activation, Weights, batched, blocks, ragged, single
from ops.placement import BATCH, P, by_device, choose, free_axes, platform

__all__ = ["Routes", "Weights", "experts"]


class Routes(NamedTuple):
    """To which experts a token goes; an id from E on is none."""

    experts: Int[Array, "B T K"]
    weights: Float[Array, "B T K"]


def experts(
    x: Float[Array, "B T D"],
    routes: Routes,
    weights: Weights,
    activation: Activation,
    *,
    slots: int | None = None,
    implementation: str | None = None,
) -> Float[Array, "B T D"]:
    """A token names each expert once at most. `slots` promises that no expert has more tokens of
    one row than that; None promises nothing. The sum runs in the dtype of `routes.weights`."""
    T = x.shape[1]
    slots = T if slots is None else min(slots, T)
    if not x.size:
        return jnp.zeros_like(x)
    weights = jax.tree.map(lambda w: w.astype(x.dtype), weights)
    dropless = {"tpu": "ragged", "gpu": "ragged"}.get(platform(), "blocks")
    preferred = ("gather" if slots < T else dropless,)
    name = choose("experts", implementation, dict.fromkeys(IMPLEMENTATIONS), preferred)
    return IMPLEMENTATIONS[name](x, routes, weights, activation, slots)


def reference(
    x: Float[Array, "B T D"], routes: Routes, w: Weights, activation: Activation, slots: int
) -> Float[Array, "B T D"]:
    """Every expert on every token."""
    (B, T, D), E = x.shape, w.w_in.shape[0]
    flat = x.reshape(B * T, D)

    def add(total: Array, turn: tuple[Array, Weights]) -> tuple[Array, None]:
        e, own = turn
        share = jnp.sum(routes.weights * (routes.experts == e), axis=2).reshape(B * T, 1)
        return total + share * single(activation, flat, own), None

    zeros = jnp.zeros(flat.shape, routes.weights.dtype)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(E), w))
    return total.astype(x.dtype).reshape(B, T, D)


def sorted_by_expert(
    grouped: Callable[..., Array],
    x: Float[Array, "B T D"],
    routes: Routes,
    w: Weights,
    activation: Activation,
    slots: int,
) -> Float[Array, "B T D"]:
    """`grouped` (`blocks`, `ragged`) on assignments sorted by expert."""
    run = functools.partial(_sorted, functools.partial(grouped, activation), slots, w.w_in.shape[0])
    return _on_mesh(run, x, routes, w)


def _sorted(grouped: Callable[..., Array], slots: int, E: int, axes: Any, *args: Any) -> Array:
    x, ids, shares, w = args
    (B, T, D), K = x.shape, ids.shape[2]
    layout, sizes = by_expert(ids.reshape(B * T, K), E, B * _most(T, K, slots, E))
    y = spread(x.reshape(B * T, D), layout)
    if "expert" in axes:
        own = w.w_in.shape[0]
        y = _sent(grouped, y, sizes.reshape(-1, own), E // own * B * _most(T, K, slots, own), w)
    else:
        y = grouped(y, sizes, w)
    y = gathered(y, shares.reshape(B * T, K), layout).reshape(B, T, D)
    return jax.lax.psum(y, "model") if "model" in axes else y


def _sent(
    grouped: Callable[..., Array], x: Array, sizes: Int[Array, "N E"], places: int, w: Weights
) -> Float[Array, "R D"]:
    """`grouped` where the experts are, and back: here are E of each of N devices."""
    N, E = sizes.shape
    counts = jax.lax.all_gather(sizes, "expert")  # [from to E]
    between = jnp.sum(counts, axis=2)
    mine = counts[:, jax.lax.axis_index("expert")].reshape(-1)
    y = exchange(x, between, places, "expert")
    ids = jnp.repeat(jnp.tile(jnp.arange(E), N), mine, total_repeat_length=places)
    ids = jnp.where(jnp.arange(places) < jnp.sum(mine), ids, E)
    layout, here = by_expert(ids[:, None], E, places)
    ones = jnp.ones((places, 1), jnp.promote_types(x.dtype, jnp.float32))
    y = gathered(grouped(spread(y, layout), here, w), ones, layout)
    return exchange(y, between.T, x.shape[0], "expert")


def _most(tokens: int, choices: int, slots: int, experts: int) -> int:
    """Assignments of a row to `experts` experts."""
    return min(tokens * min(choices, experts), min(slots, tokens) * experts)


def gather(
    x: Float[Array, "B T D"], routes: Routes, w: Weights, activation: Activation, slots: int
) -> Float[Array, "B T D"]:
    """`slots` places for each expert and row, empty or not."""
    E = w.w_in.shape[0]
    return _on_mesh(functools.partial(_exchange, activation, slots, E), x, routes, w)


def _exchange(activation: Activation, slots: int, E: int, axes: Any, *args: Any) -> Array:
    x, ids, shares, w = args
    (B, T, D), K = x.shape, ids.shape[2]
    slots = min(slots, T)
    layout = by_slot(ids, E, slots)
    y = spread(x.reshape(B * T, D), layout).reshape(E, B * slots, D)
    if "expert" in axes:
        y = jax.lax.all_to_all(y, "expert", split_axis=0, concat_axis=1, tiled=True)
    y = batched(activation, y, w)
    if "expert" in axes:
        y = jax.lax.all_to_all(y, "expert", split_axis=1, concat_axis=0, tiled=True)
    y = gathered(y.reshape(E * B * slots, D), shares.reshape(B * T, K), layout)
    return jax.lax.psum(y, "model").reshape(B, T, D) if "model" in axes else y.reshape(B, T, D)


def _on_mesh(run: Callable[..., Array], x: Array, routes: Routes, w: Weights) -> Array:
    """`run(axes, x, ids, shares, w)` on each device's tokens, experts and slice of F.

    Rows that do not divide over the devices are left to the compiler whole.
    """
    sizes = {name: size for name, size in free_axes().items() if size > 1}
    (B, T, _), (E, _, F) = x.shape, w.w_in.shape
    ways = {name: sizes.get(name, 1) for name in ("context", "expert", "model")}
    batch = tuple(name for name in BATCH if name in sizes)
    whole = math.prod(sizes[name] for name in batch)
    fits = not (B % whole or T % ways["context"] or E % ways["expert"] or F % ways["model"])
    axes = tuple(sizes) if fits else ()

    def named(axis: str) -> str | None:
        return axis if axis in axes else None

    expert, model = named("expert"), named("model")
    rows = P(batch or None, named("context"))
    inner, bias = P(expert, None, model), P(expert, model)
    specs = (inner, inner, P(expert, model, None), bias, bias, P(expert))
    layout = Weights._make(None if a is None else s for a, s in zip(w, specs, strict=True))

    def local(x: Array, ids: Array, shares: Array, w: Weights) -> Array:
        if "model" in axes and w.b_out is not None:  # the sum over "model" counts it once
            w = w._replace(b_out=w.b_out * (jax.lax.axis_index("model") == 0))
        return run(axes, x, ids, shares, w)

    return by_device(local, axes, (rows, rows, rows, layout), rows)(x, *routes, w)


IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {
    "reference": reference,
    "blocks": functools.partial(sorted_by_expert, blocks),
    "ragged": functools.partial(sorted_by_expert, ragged),
    "gather": gather,
}
