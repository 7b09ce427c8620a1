"""Pooling of token states to one unit vector per text, and the parameters of that head."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from arch.part_cost import PartCost, TermFlops
from arch.sharding import P, make_matrix, make_param, make_vector

Pooling = Literal["mean", "last", "first", "attention"]
Projection = Literal["none", "linear", "mlp"]
ClipResiduals = tuple[Array, float, float]


class ContrastiveHead(nnx.Module):
    """A head holds temperature, attention query and projection; unused ones are None."""

    def __init__(
        self,
        D: int,
        Z: int,
        *,
        pooling: Pooling,
        projection: Projection,
        log_temperature: float | None,
        key: Array,
    ):
        keys = jax.random.split(key, 3)
        init = nnx.initializers.constant(log_temperature or 0.0)
        scalar = make_param(keys[0], (), P(), init, role="vector", decay=False)
        self.log_temperature = None if log_temperature is None else scalar
        self.query = make_vector(D, 0.0, role="query") if pooling == "attention" else None
        inner = D if projection == "mlp" else Z
        self.w_in = (
            make_matrix(keys[1], (D, inner), P("data", "model")) if projection != "none" else None
        )
        self.w_out = (
            make_matrix(keys[2], (D, Z), P("model", "data")) if projection == "mlp" else None
        )

    @staticmethod
    def cost(
        D: int,
        Z: int,
        length: int,
        *,
        pooling: Pooling,
        projection: Projection,
        learn_temperature: bool,
    ) -> PartCost:
        """Returns the cost per token; a text of `length` tokens is projected once."""
        weights = {"none": 0, "linear": D * Z, "mlp": D * D + D * Z}[projection]
        scores = D if pooling == "attention" else 0
        flops = {
            "scores": TermFlops(2.0 * scores, 2.0 * scores),
            "projection": TermFlops(2.0 * weights / length, 2.0 * weights / length),
        }
        params = weights + scores + learn_temperature
        return PartCost(params, params, {name: term for name, term in flops.items() if term.model})


def pool(
    hidden: Float[Array, "B T D"], mask: Bool[Array, "B T"], pooling: Pooling, query: Array | None
) -> Float[Array, "B D"]:
    """Returns one vector per text, in at least float32; a text without tokens gives 0."""
    x = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
    if pooling == "attention":
        scores = jnp.einsum("btd,d->bt", x, query) * x.shape[-1] ** -0.5
        shares = jax.nn.softmax(scores, axis=1, where=mask)
    else:
        order = jnp.cumsum(mask, axis=1)
        choices = {
            "mean": mask,
            "first": mask & (order == 1),
            "last": mask & (order == order[:, -1:]),
        }
        selected = (choices[pooling] & mask).astype(x.dtype)
        shares = selected / jnp.maximum(jnp.sum(selected, axis=1, keepdims=True), 1)
    return jnp.einsum("btd,bt->bd", jnp.where(mask[..., None], x, 0), shares)


def project(x: Float[Array, "B D"], head: ContrastiveHead | None) -> Float[Array, "B Z"]:
    """Returns x w, or gelu(x w) w' (SimCLR's head, arXiv:2002.05709, with another activation)."""
    if head is None or head.w_in is None:
        return x
    y = x @ head.w_in[...]
    return y if head.w_out is None else jax.nn.gelu(y) @ head.w_out[...]


def l2_normalize(x: Float[Array, "B Z"]) -> Float[Array, "B Z"]:
    """Scales each vector to length 1; a zero vector stays zero and its gradient stays finite."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


@jax.custom_vjp
def clip_keep_inward_gradient(x: Array, low: float, high: float) -> Array:
    """Clips `x` to bounds, with a gradient that lets a parameter leave a bound again.

    At a bound, a gradient that pushes outwards is dropped and a gradient that leads back inside
    passes, so that a parameter that reached the bound can still change.
    """
    return jnp.clip(x, low, high)


def _clip_fwd(x: Array, low: float, high: float) -> tuple[Array, ClipResiduals]:
    return clip_keep_inward_gradient(x, low, high), (x, low, high)


def _clip_bwd(residuals: ClipResiduals, grad: Array) -> tuple[Array, None, None]:
    x, low, high = residuals
    outwards = ((x <= low) & (grad > 0)) | ((x >= high) & (grad < 0))
    return jnp.where(outwards, 0, grad), None, None


clip_keep_inward_gradient.defvjp(_clip_fwd, _clip_bwd)
