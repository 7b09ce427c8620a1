"""The mesh axes and the two places that name them: beside each weight and at block boundaries.

The batch is split over replica, data and expert; the sequence over context; parameters over data
(FSDP) and model (tensor parallelism); experts over expert. The shape of the mesh alone determines
the parallelism.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

P = jax.P
MESH_AXES = ("replica", "data", "context", "expert", "model")
BATCH_AXES = ("replica", "data", "expert")
TOKEN_SPEC = P(BATCH_AXES, "context")  # Layout of arrays [B T ...].

Initializer = Callable[..., Array]
Module = TypeVar("Module", bound=nnx.Module)
# What a parameter does, for optimizers and muP: a matrix [.. in out] maps vectors, a query [in] is
# multiplied with them to one number, the rows of a table are looked up or move along the tokens, a
# vector scales or shifts, and a balance_bias selects experts.
ParamRole = Literal["matrix", "query", "table", "vector", "balance_bias"]


def make_param(
    key: Array,
    shape: tuple[int, ...],
    spec: P,
    init: Initializer,
    *,
    role: ParamRole = "table",
    decay: bool = True,
    rate: float = 0.0,
    is_readout: bool = False,
) -> nnx.Param:
    """Makes a float32 parameter whose metadata holds its layout and the optimizer's hints.

    The value is not placed on devices, so construction can stay abstract. Optimizers read `role`
    (only a "matrix" [.. in out] may be orthogonalized, and `training/mup.py` scales rates by it),
    `decay` (whether weight decay applies) and, for a "balance_bias", the step size `rate`. A
    readout starts smaller in a wide model under muP (`scale_readouts`).
    """
    return nnx.Param(
        init(key, shape, jnp.float32),
        out_sharding=spec,
        eager_sharding=False,
        role=role,
        decay=decay,
        rate=rate,
        is_readout=is_readout,
    )


def make_matrix(
    key: Array, shape: tuple[int, ...], spec: P, scale: float = 1.0, *, is_readout: bool = False
) -> nnx.Param:
    """Makes a matrix [.. in out] of variance scale^2 / in, truncated at two standard deviations.

    The variance is that of LeCun et al. (1998). A readout maps vectors that grow with the width to
    a few numbers that the rest of the model does not average over, such as the logits of a router.
    """
    # Truncation at two deviations lowers the standard deviation to 0.8796 of its value.
    stddev = scale * shape[-2] ** -0.5 / 0.87962566
    init = nnx.initializers.truncated_normal(stddev)
    return make_param(key, shape, spec, init, role="matrix", is_readout=is_readout)


def scale_readouts(module: nnx.Module, scale: float) -> None:
    """Scales the initial values of all readouts of a module, in place."""
    for param in jax.tree.leaves(module, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)):
        if param.get_metadata("is_readout"):
            param.set_value(scale * param[...])


def make_vector(
    width: int, value: float, *, role: ParamRole = "vector", decay: bool = False
) -> nnx.Param:
    """Makes a scale or bias [width] that is replicated and, by default, not decayed."""
    init = nnx.initializers.constant(value)
    return make_param(jax.random.key(0), (width,), P(None), init, role=role, decay=decay)


def divisible_spec(spec: P, shape: tuple[int, ...], axis_sizes: Mapping[str, int]) -> P:
    """Returns `spec` without the mesh axes that do not divide their dimension of `shape`."""

    def keep_axes(size: int, axes: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        names = (axes,) if isinstance(axes, str) else axes or ()
        return axes if size % math.prod(axis_sizes[name] for name in names) == 0 else None

    return P(*(keep_axes(size, axes) for size, axes in zip(shape, spec, strict=False)))


def constrain(x: Array, spec: P = TOKEN_SPEC) -> Array:
    """Lays `x` out by `spec` on the mesh in context; without a mesh, returns `x` unchanged."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, divisible_spec(spec, x.shape, mesh.shape))


def stack_modules(make: Callable[[Array], Module], keys: Array) -> Module:
    """Makes one module per key and stacks their parameters along a new leading axis.

    The layouts in the metadata get a leading None for that axis. Each parameter of the result is
    [rep ...], so code that runs on the stacked module must index shapes from the end.
    """
    module = jax.vmap(make)(keys)
    for param in jax.tree.leaves(module, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)):
        param.set_metadata(out_sharding=P(None, *param.get_metadata()["out_sharding"]))
    return module
