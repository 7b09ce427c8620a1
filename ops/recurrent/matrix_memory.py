"""Matrix memories on TPUs: when the kernels can run, and each device's rows and heads.

`ssd`, `gla` and `delta_rule` are one recurrence where a head has one decay and one gate of each
kind. `MemoryInputs` is what they have in common.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from ops.context_parallel import context_axis
from ops.implementation import PS, auto_axes, batch_axes, map_shards
from ops.recurrent import tpu_kernel
from ops.recurrent.matrix_memory_kernel import MemoryInputs, heads_of_program, scan_rows


def why_not(
    q: Float[Array, "B T G K"],
    v: Float[Array, "B T H Kv"],
    gates: tuple[Array, ...],
    dtype: DTypeLike,
    chunk_size: int | None,
) -> str | None:
    """Returns why the kernels cannot run here with states of `dtype`, or None."""
    (_, T, G, K), (H, Kv) = q.shape, v.shape[2:]
    heads, groups = (n // max(_model_size(G, H), 1) or 1 for n in (H, G))
    if any(gate.ndim == 4 and gate.shape[3] > 1 for gate in gates):
        return "its gates are for heads, these are for channels"
    if chunk_size is not None and chunk_size < tpu_kernel.LANES:
        return f"its chunks have {tpu_kernel.LANES} tokens, more than chunk_size {chunk_size}"
    if context_axis(T):
        return "devices share the tokens of a row"
    if not heads_of_program(groups, heads, K, Kv):
        return f"{heads} heads of {K} x {Kv} do not fill registers of {tpu_kernel.LANES} lanes"
    return tpu_kernel.why_not_here(dtype)


def on_mesh(
    inputs: MemoryInputs, state: Float[Array, "B H K Kv"]
) -> tuple[Float[Array, "B T H Kv"], Float[Array, "B H K Kv"]]:
    """Runs the kernels on each device's rows and heads; the compiler cannot divide a kernel."""
    (B, T, H, _), G = inputs.v.shape, inputs.q.shape[2]
    if not T:
        return inputs.v, state
    axes = tuple(auto_axes()) if math.prod(auto_axes().values()) > 1 else ()
    rows = batch_axes(B) or None
    heads = "model" if _model_size(G, H) > 1 else None
    groups = None if G == 1 else heads
    keys, values, states = PS(rows, None, groups), PS(rows, None, heads), PS(rows, heads)

    def per_device(*arrays: Array) -> tuple[Array, Array]:
        return scan_rows(MemoryInputs(*arrays[:4]), arrays[4])

    run = map_shards(per_device, axes, (keys, keys, values, values, states), (values, states))
    q, k, v, gates = inputs
    return run(q, k, v, gates.astype(jnp.float32), state)


def _model_size(G: int, H: int) -> int:
    """Returns the number of devices that divide the heads, and the groups if there are several."""
    size = auto_axes().get("model", 1)
    return size if H % size == 0 and (G == 1 or G % size == 0) else 1
