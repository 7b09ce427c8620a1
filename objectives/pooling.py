"""From the vectors of a text's tokens to one of length 1, and the weights that this may take."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from arch.ledger import Bill, Work
from arch.sharding import P, matrix, vector, weight

Pooling = Literal["mean", "last", "first", "attention"]
Projection = Literal["none", "linear", "mlp"]


class ContrastiveHead(nnx.Module):
    """Temperature, attention's query and projection; what is not asked for is None."""

    def __init__(
        self,
        D: int,
        E: int,
        *,
        pooling: Pooling,
        projection: Projection,
        log_temperature: float | None,
        key: Array,
    ):
        keys = jax.random.split(key, 3)
        init = nnx.initializers.constant(log_temperature or 0.0)
        scalar = weight(keys[0], (), P(), init, role="vector", decay=False)
        self.log_temperature = None if log_temperature is None else scalar
        self.query = vector(D, 0.0) if pooling == "attention" else None
        inner = D if projection == "mlp" else E
        self.w_in = (
            matrix(keys[1], (D, inner), P("data", "model")) if projection != "none" else None
        )
        self.w_out = matrix(keys[2], (D, E), P("model", "data")) if projection == "mlp" else None

    @staticmethod
    def cost(
        D: int, E: int, length: int, *, pooling: Pooling, projection: Projection, learned: bool
    ) -> Bill:
        """Of a token; a text of `length` of them is projected once."""
        weights = {"none": 0, "linear": D * E, "mlp": D * D + D * E}[projection]
        scores = D if pooling == "attention" else 0
        work = {
            "scores": Work(2.0 * scores, 2.0 * scores),
            "projection": Work(2.0 * weights / length, 2.0 * weights / length),
        }
        params = weights + scores + learned
        return Bill(params, params, {name: one for name, one in work.items() if one.model})


def pool(
    hidden: Float[Array, "B T D"], text: Bool[Array, "B T"], how: Pooling, query: Array | None
) -> Float[Array, "B D"]:
    """One vector a text, in at least float32; a text without tokens is 0."""
    x = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
    if how == "attention":
        scores = jnp.einsum("btd,d->bt", x, query) * x.shape[-1] ** -0.5
        shares = jax.nn.softmax(scores, axis=1, where=text)
    else:
        order = jnp.cumsum(text, axis=1)
        chosen = {
            "mean": text,
            "first": text & (order == 1),
            "last": text & (order == order[:, -1:]),
        }
        kept = (chosen[how] & text).astype(x.dtype)
        shares = kept / jnp.maximum(jnp.sum(kept, axis=1, keepdims=True), 1)
    return jnp.einsum("btd,bt->bd", jnp.where(text[..., None], x, 0), shares)


def projected(x: Float[Array, "B D"], head: Any) -> Float[Array, "B E"]:
    """x w, or gelu(x w) w' (SimCLR's head, arXiv:2002.05709, with another activation)."""
    if head is None or head.w_in is None:
        return x
    y = x @ head.w_in[...]
    return y if head.w_out is None else jax.nn.gelu(y) @ head.w_out[...]


def normalised(x: Float[Array, "B E"]) -> Float[Array, "B E"]:
    """Of length 1; a vector of 0 stays, without a gradient that is no number."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


@jax.custom_vjp
def held(x: Array, low: float, high: float) -> Array:
    """`x` within bounds. At a bound a gradient that pushes outwards is dropped, one that leads back
    is kept, so that a parameter that reached it is not stuck there."""
    return jnp.clip(x, low, high)


def _held(x: Array, low: float, high: float) -> tuple[Array, Any]:
    return held(x, low, high), (x, low, high)


def _pushed(saved: Any, slope: Array) -> tuple[Array, None, None]:
    x, low, high = saved
    outwards = ((x <= low) & (slope > 0)) | ((x >= high) & (slope < 0))
    return jnp.where(outwards, 0, slope), None, None


held.defvjp(_held, _pushed)
