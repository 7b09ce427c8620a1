"""The mesh axes, and the two places where they are named: beside a weight and at block boundaries.

Batch is split over replica, data and expert; the sequence over context; parameters over data (FSDP)
and model (TP), experts over expert. The shape of the mesh is the whole strategy.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

P = jax.P
AXES = ("replica", "data", "context", "expert", "model")
BATCH = ("replica", "data", "expert")
ROWS = P(BATCH, "context")  # of arrays [B T ...]

Initializer = Callable[..., Array]
Role = Literal["matrix", "table", "vector", "balance"]


def weight(
    key: Array,
    shape: tuple[int, ...],
    spec: P,
    init: Initializer,
    *,
    role: Role = "table",
    decay: bool = True,
    rate: float = 0.0,
) -> nnx.Param:
    """A float32 parameter with its layout beside it; nothing is placed, so building stays abstract.

    Optimizers read `role` (only a "matrix" [.. in out] may be orthogonalised), `decay` (whether
    weight decay may act on it) and, of a "balance", its step `rate` here.
    """
    value = init(key, shape, jnp.float32)
    return nnx.Param(
        value, out_sharding=spec, eager_sharding=False, role=role, decay=decay, rate=rate
    )


def matrix(key: Array, shape: tuple[int, ...], spec: P, scale: float = 1.0) -> nnx.Param:
    """A matrix [.. in out] of variance scale^2 / in (LeCun et al. 1998), cut at two deviations."""
    spread = scale * shape[-2] ** -0.5 / 0.87962566  # the deviation that the cut takes away
    return weight(key, shape, spec, nnx.initializers.truncated_normal(spread), role="matrix")


def vector(width: int, value: float, *, decay: bool = False) -> nnx.Param:
    """A scale or bias [width], on every device, by default outside weight decay."""
    init = nnx.initializers.constant(value)
    return weight(jax.random.key(0), (width,), P(None), init, role="vector", decay=decay)


def fitting(spec: P, shape: tuple[int, ...], sizes: Mapping[str, int]) -> P:
    """`spec` without the axes that do not divide their dimension of `shape`."""

    def kept(size: int, axes: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        names = (axes,) if isinstance(axes, str) else axes or ()
        return axes if size % math.prod(sizes[name] for name in names) == 0 else None

    return P(*(kept(size, axes) for size, axes in zip(shape, spec, strict=False)))


def constrain(x: Array, spec: P = ROWS) -> Array:
    """`x` laid out by `spec` on the mesh in context, if there is one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, fitting(spec, x.shape, mesh.shape))


def stacked(make: Callable[[Array], nnx.Module], keys: Array) -> nnx.Module:
    """Modules made from `keys`, as one whose parameters have a leading axis; layouts follow."""
    module = jax.vmap(make)(keys)
    for param in jax.tree.leaves(module, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)):
        param.set_metadata(out_sharding=P(None, *param.get_metadata()["out_sharding"]))
    return module
