"""Functions that keep only their inputs for the backward pass, and compute the rest again.

JAX keeps every intermediate value that a derivative reads. In cheap functions, such as norms and
activations, writing and reading these values takes longer than computing them again.
"""

import functools
from collections.abc import Callable
from typing import TypeVar, cast

import jax
from jaxtyping import PyTree

from ops.implementation import platform

Function = TypeVar("Function", bound=Callable[..., PyTree])
Output = TypeVar("Output", bound=PyTree)


def recompute(function: Function, static_argnums: int | tuple[int, ...] = ()) -> Function:
    """Makes `function` keep only its inputs for the backward pass; a decorator.

    On CPUs its outputs are also written to memory in the forward pass. XLA:CPU would compute them
    again inside every operation that reads them: a convolution and an activation nine times in one
    Mamba-2 layer, which takes a sixth of a training step.

    Args:
        function: a function of positional arguments, cheap to compute.
        static_argnums: the positions of its arguments that are no arrays.
    """
    checkpointed = jax.checkpoint(function, prevent_cse=False, static_argnums=static_argnums)

    @functools.wraps(function)
    def run(*args: PyTree) -> PyTree:
        output = checkpointed(*args)
        return _materialize(output) if platform() == "cpu" else output

    return cast(Function, run)


@jax.custom_jvp
def _materialize(x: Output) -> Output:
    """Returns x; no operation that reads it computes it again. Derivatives pass as they are."""
    return jax.lax.optimization_barrier(x)


@_materialize.defjvp
def _materialize_jvp(primals: tuple[Output], tangents: tuple[Output]) -> tuple[Output, Output]:
    return _materialize(primals[0]), tangents[0]
