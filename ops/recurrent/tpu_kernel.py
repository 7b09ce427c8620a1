"""What the Pallas kernels of recurrences for TPUs share: when one can run, and how it is called.

Each kernel has a grid of rows, of blocks of heads or channels, and of chunks. A row's chunks run
one after the other, so that its state stays in the chip's memory from chunk to chunk.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike

from ops.implementation import platform

PREFERRED = {"tpu": ("pallas",)}  # implementations by platform
LANES = 128  # lanes of a register of 8 x 128 numbers: the tokens of a chunk


def why_not_here(dtype: DTypeLike) -> str | None:
    """Returns why no kernel can run states of `dtype` here, or None."""
    if platform() != "tpu":
        return f"it needs a TPU, this is a {platform()}"
    if dtype != jnp.float32:
        return f"the state is {jnp.dtype(dtype).name}, the kernel computes in float32"
    return None


def call(  # type: ignore[no-untyped-def]
    kernel: Callable[..., None],
    grid: tuple[int, int, int],
    in_specs: Sequence,
    out_specs: Sequence,
    outputs: Sequence[tuple[tuple[int, ...], DTypeLike]],
    scratch: Sequence[tuple[int, ...]],
    interpret: bool,
) -> Callable[..., Sequence[Array]]:
    """Returns the kernel as a function of arrays.

    Args:
        kernel: writes its outputs; its arguments are references to blocks of inputs and outputs,
            and to the scratch arrays.
        grid: rows, blocks of heads or channels, and chunks.
        in_specs: a `pl.BlockSpec` for each input.
        out_specs: a `pl.BlockSpec` for each output.
        outputs: shape and dtype of each output.
        scratch: shapes of float32 arrays that stay on the chip from chunk to chunk.
        interpret: whether to interpret the kernel, which works on any platform.
    """
    import jax.experimental.pallas as pl  # a slow import
    import jax.experimental.pallas.tpu as pltpu

    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=[jax.ShapeDtypeStruct(*output) for output in outputs],
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
    )
