"""Experts on the tokens that are routed to them, and the weighted sum of their outputs.

    y[t] = sum over j of weights[t, j] mlp_e(x[t]),   e = experts[t, j],   j = 1 .. k

On a mesh whose axis "expert" is larger than 1, each device holds some experts and tokens travel to
them. If the capacity of an expert is small, they travel by all_to_all in buffers of that capacity
(GShard, arXiv:2006.16668). Otherwise exactly the assigned tokens travel
(`ops.experts.ragged_all_to_all`), sorted by expert before and after.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ops.experts.dispatch import capacity_slots, combine, dispatch, sort_by_expert
from ops.experts.mlp import (
    ActivationFn,
    ExpertWeights,
    batched,
    blocks,
    grouped,
    ragged,
    single,
)
from ops.experts.ragged_all_to_all import ragged_all_to_all
from ops.implementation import (
    BATCH_AXES,
    PS,
    auto_axes,
    map_shards,
    platform,
    select_implementation,
)

__all__ = ["Routes", "ExpertWeights", "experts"]


class Routes(NamedTuple):
    """The k experts of each token, and the weights of their outputs."""

    experts: Int[Array, "B T k"]  # different ids for one token; an id from E on is no expert
    weights: Float[Array, "B T k"]


def experts(
    x: Float[Array, "B T D"],
    routes: Routes,
    weights: ExpertWeights,
    activation: ActivationFn,
    *,
    capacity: int | None = None,
    implementation: str | None = None,
) -> Float[Array, "B T D"]:
    """Returns the weighted sum of each token's experts, in the dtype of x.

    `capacity` promises that no expert has more tokens of one row than this; None: no promise. The
    sum is computed in the dtype of `routes.weights`.

    Raises:
        ConfigError: if the implementation is unknown.
    """
    T = x.shape[1]
    capacity = T if capacity is None else min(capacity, T)
    if not x.size:
        return jnp.zeros_like(x)
    weights = jax.tree.map(lambda w: w.astype(x.dtype), weights)
    dropless = {"tpu": "ragged", "gpu": "grouped"}.get(platform(), "blocks")
    preferred = ("gather" if capacity < T else dropless,)
    name = select_implementation(
        "experts", implementation, dict.fromkeys(IMPLEMENTATIONS), preferred
    )
    return IMPLEMENTATIONS[name](x, routes, weights, activation, capacity)


def reference(
    x: Float[Array, "B T D"],
    routes: Routes,
    w: ExpertWeights,
    activation: ActivationFn,
    capacity: int,
) -> Float[Array, "B T D"]:
    """Computes every expert on every token."""
    (B, T, D), E = x.shape, w.w_in.shape[0]
    flat = x.reshape(B * T, D)

    def add(total: Array, expert: tuple[Array, ExpertWeights]) -> tuple[Array, None]:
        e, expert_w = expert
        weight = jnp.sum(routes.weights * (routes.experts == e), axis=2).reshape(B * T, 1)
        return total + weight * single(activation, flat, expert_w), None

    zeros = jnp.zeros(flat.shape, routes.weights.dtype)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(E), w))
    return total.astype(x.dtype).reshape(B, T, D)


def apply_sorted(
    expert_fn: Callable[..., Array],
    x: Float[Array, "B T D"],
    routes: Routes,
    w: ExpertWeights,
    activation: ActivationFn,
    capacity: int,
) -> Float[Array, "B T D"]:
    """Computes `expert_fn` (`blocks`, `grouped` or `ragged`) on assignments sorted by expert."""
    run = functools.partial(
        _apply_sorted, functools.partial(expert_fn, activation), capacity, w.w_in.shape[0]
    )
    return _on_mesh(run, x, routes, w)


def _apply_sorted(
    expert_fn: Callable[..., Array],
    capacity: int,
    E: int,
    axes: tuple[str, ...],
    x: Array,
    ids: Array,
    weights: Array,
    w: ExpertWeights,
) -> Array:
    (B, T, D), k = x.shape, ids.shape[2]
    index, sizes = sort_by_expert(ids.reshape(B * T, k), E, B * _max_assignments(T, k, capacity, E))
    y = dispatch(x.reshape(B * T, D), index)
    if "expert" in axes:
        local_E = w.w_in.shape[0]
        max_rows = E // local_E * B * _max_assignments(T, k, capacity, local_E)
        y = _apply_remote(expert_fn, y, sizes.reshape(-1, local_E), max_rows, w)
    else:
        y = expert_fn(y, sizes, w)
    y = combine(y, weights.reshape(B * T, k), index).reshape(B, T, D)
    return jax.lax.psum(y, "model") if "model" in axes else y


def _apply_remote(
    expert_fn: Callable[..., Array],
    x: Array,
    sizes: Int[Array, "n E"],
    max_rows: int,
    w: ExpertWeights,
) -> Float[Array, "rows D"]:
    """Sends rows to the devices of their experts, computes `expert_fn` there, and sends them back.

    Each of the n devices has E experts. `sizes` counts this device's rows for each expert, and
    `max_rows` is the largest number of rows that a device can receive.
    """
    n, E = sizes.shape
    counts = jax.lax.all_gather(sizes, "expert")  # [from to E]
    device_counts = jnp.sum(counts, axis=2)
    received = counts[:, jax.lax.axis_index("expert")].reshape(-1)
    y = ragged_all_to_all(x, device_counts, max_rows, "expert")
    ids = jnp.repeat(jnp.tile(jnp.arange(E), n), received, total_repeat_length=max_rows)
    ids = jnp.where(jnp.arange(max_rows) < jnp.sum(received), ids, E)
    index, local_sizes = sort_by_expert(ids[:, None], E, max_rows)
    ones = jnp.ones((max_rows, 1), jnp.promote_types(x.dtype, jnp.float32))
    y = combine(expert_fn(dispatch(y, index), local_sizes, w), ones, index)
    return ragged_all_to_all(y, device_counts.T, x.shape[0], "expert")


def _max_assignments(tokens: int, choices: int, capacity: int, experts: int) -> int:
    """Returns the largest number of a row's assignments to `experts` experts."""
    return min(tokens * min(choices, experts), min(capacity, tokens) * experts)


def gather(
    x: Float[Array, "B T D"],
    routes: Routes,
    w: ExpertWeights,
    activation: ActivationFn,
    capacity: int,
) -> Float[Array, "B T D"]:
    """Computes each expert on `capacity` slots of each row, which may be empty."""
    E = w.w_in.shape[0]
    return _on_mesh(functools.partial(_apply_capacity_slots, activation, capacity, E), x, routes, w)


def _apply_capacity_slots(
    activation: ActivationFn,
    capacity: int,
    E: int,
    axes: tuple[str, ...],
    x: Array,
    ids: Array,
    weights: Array,
    w: ExpertWeights,
) -> Array:
    (B, T, D), k = x.shape, ids.shape[2]
    capacity = min(capacity, T)
    index = capacity_slots(ids, E, capacity)
    y = dispatch(x.reshape(B * T, D), index).reshape(E, B * capacity, D)
    if "expert" in axes:
        y = jax.lax.all_to_all(y, "expert", split_axis=0, concat_axis=1, tiled=True)
    y = batched(activation, y, w)
    if "expert" in axes:
        y = jax.lax.all_to_all(y, "expert", split_axis=1, concat_axis=0, tiled=True)
    y = combine(y.reshape(E * B * capacity, D), weights.reshape(B * T, k), index)
    return jax.lax.psum(y, "model").reshape(B, T, D) if "model" in axes else y.reshape(B, T, D)


def _on_mesh(run: Callable[..., Array], x: Array, routes: Routes, w: ExpertWeights) -> Array:
    """Runs `run(axes, x, ids, weights, w)` on each device's tokens, experts and part of F.

    Where the sizes do not divide over the mesh, the compiler partitions the whole computation.
    """
    sizes = {name: size for name, size in auto_axes().items() if size > 1}
    (B, T, _), (E, _, F) = x.shape, w.w_in.shape
    splits = {name: sizes.get(name, 1) for name in ("context", "expert", "model")}
    batch = tuple(name for name in BATCH_AXES if name in sizes)
    batch_splits = math.prod(sizes[name] for name in batch)
    divides = not (
        B % batch_splits or T % splits["context"] or E % splits["expert"] or F % splits["model"]
    )
    axes = tuple(sizes) if divides else ()

    def if_used(axis: str) -> str | None:
        return axis if axis in axes else None

    expert, model = if_used("expert"), if_used("model")
    token_spec = PS(batch or None, if_used("context"))
    w_in, b_in = PS(expert, None, model), PS(expert, model)
    specs = (w_in, w_in, PS(expert, model, None), b_in, b_in, PS(expert))
    w_specs = ExpertWeights._make(None if a is None else s for a, s in zip(w, specs, strict=True))

    def run_local(x: Array, ids: Array, weights: Array, w: ExpertWeights) -> Array:
        if "model" in axes and w.b_out is not None:
            # Outputs are summed over "model", so only one of its devices may add the bias.
            w = w._replace(b_out=w.b_out * (jax.lax.axis_index("model") == 0))
        return run(axes, x, ids, weights, w)

    in_specs = (token_spec, token_spec, token_spec, w_specs)
    return map_shards(run_local, axes, in_specs, token_spec)(x, *routes, w)


IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {
    "reference": reference,
    "blocks": functools.partial(apply_sorted, blocks),
    "grouped": functools.partial(apply_sorted, grouped),
    "ragged": functools.partial(apply_sorted, ragged),
    "gather": gather,
}
