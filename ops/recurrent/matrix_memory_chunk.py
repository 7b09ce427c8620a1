"""One chunk of a matrix memory, of which a head has one decay: the body of kernels for TPUs.

The names are those of `ops/recurrent/delta_rule.py`; without an erase gate there is no delta rule.

    v_new = write v;   with a delta rule v_new = u - w S,  A = (erase k) k^T, decayed, below i = j,
                       u = (I + A)^-1 (write v),  w = (I + A)^-1 (into erase k)
    o = (q k^T, decayed) v_new + into q S
    S <- across S + sum over j of out_of[j] k[j] v_new[j]^T

Only what Pallas lowers for TPUs is used: no cumulative sums, and masks from iotas. Q tokens of a
head with keys of width K and values of width Kv, R gates.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from ops.recurrent.delta_chunks import matmul_highest, unit_lower_inverse

Layout = Literal["NN", "NT", "TN"]  # which of two matrices is transposed before the product
CONTRACTED = {"NN": ((1,), (0,)), "NT": ((1,), (1,)), "TN": ((0,), (0,))}


def memory_chunk(
    q: Float[Array, "Q K"],
    k: Float[Array, "Q K"],
    v: Float[Array, "Q Kv"],
    gates: Float[Array, "R Q"],
    S: Float[Array, "K Kv"],
) -> tuple[Float[Array, "Q Kv"], Float[Array, "K Kv"]]:
    """Returns o in float32 and the next state of one head.

    `gates` has the logarithms g of the decays, then write, then erase; the last ones may be left
    out.
    """
    Q = k.shape[0]
    i, j = (jax.lax.broadcasted_iota(jnp.int32, (Q, Q), axis) for axis in (0, 1))

    def column(row: Float[Array, "1 Q"]) -> Float[Array, "Q 1"]:
        return jnp.sum(jnp.where(i == j, row, 0), axis=1, keepdims=True)

    g, *others = (column(gates[r : r + 1]) for r in range(gates.shape[0]))
    lower = (i >= j).astype(jnp.float32)
    # Sums of terms of one sign, as in `chunk_decays`; column 0 lacks the g of the first token.
    segsum = matmul_highest(lower, jnp.where(i > j, g, 0))
    L = jnp.exp(segsum) * lower
    into, out_of = jnp.exp(segsum[:, :1] + g[:1]), column(L[Q - 1 :])
    v_new = others[0] * v if others else v
    if len(others) == 2:
        erased = others[1] * k
        inverse = unit_lower_inverse(jnp.where(i > j, _dot("NT", v.dtype, erased, k) * L, 0))
        u, w = matmul_highest(inverse, v_new), matmul_highest(inverse, into * erased)
        v_new = u - _dot("NN", v.dtype, w, S)
    o = _dot("NN", v.dtype, _dot("NT", v.dtype, q, k) * L, v_new)
    o = o + _dot("NN", v.dtype, into * q, S)
    return o, into[Q - 1 :] * S + _dot("TN", v.dtype, out_of * k, v_new)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _dot(layout: Layout, dtype: DTypeLike, x: Array, y: Array) -> Array:
    """Multiplies matrices with operands in `dtype`, in both passes, and sums in float32."""
    # Products of 16 bits are exact in float32; Mosaic refuses them in any other precision.
    is_exact = jnp.dtype(dtype).itemsize == 2
    return jax.lax.dot_general(
        x.astype(dtype),
        y.astype(dtype),
        (CONTRACTED[layout], ((), ())),
        precision=jax.lax.Precision.DEFAULT if is_exact else None,
        preferred_element_type=jnp.float32,
    )


def _dot_backward(
    layout: Layout, dtype: DTypeLike, operands: tuple[Array, Array], d: Array
) -> tuple[Array, Array]:
    x, y = operands
    if layout == "NN":
        d_x, d_y = _dot("NT", dtype, d, y), _dot("TN", dtype, x, d)
    elif layout == "NT":
        d_x, d_y = _dot("NN", dtype, d, y), _dot("TN", dtype, d, x)
    else:
        d_x, d_y = _dot("NT", dtype, y, d), _dot("NN", dtype, x, d)
    return d_x.astype(x.dtype), d_y.astype(y.dtype)


_dot.defvjp(lambda layout, dtype, x, y: (_dot(layout, dtype, x, y), (x, y)), _dot_backward)
