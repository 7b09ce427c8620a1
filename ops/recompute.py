"""Functions that keep only their inputs for the backward pass, and compute the rest again.

JAX keeps every intermediate value that a derivative reads. In cheap functions, such as norms and
activations, writing and reading these values takes longer than computing them again.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
from jaxtyping import PyTree

from ops.implementation import platform

Inputs = ParamSpec("Inputs")
Output = TypeVar("Output", bound=PyTree)


def recompute(
    function: Callable[Inputs, Output], static_argnums: int | tuple[int, ...] = ()
) -> Callable[Inputs, Output]:
    """Makes `function` keep only its inputs for the backward pass; a decorator.

    On CPUs its outputs are also written to memory in the forward pass. XLA:CPU would compute them
    again inside every operation that reads them: a convolution and an activation nine times in one
    Mamba-2 layer, which takes a sixth of a training step.

    Args:
        function: a function of arrays, cheap to compute.
        static_argnums: the positions of its arguments that are no arrays.
    """
    checkpointed = jax.checkpoint(function, prevent_cse=False, static_argnums=static_argnums)

    @functools.wraps(function)
    def run(*args: Inputs.args, **kwargs: Inputs.kwargs) -> Output:
        output: Output = checkpointed(*args, **kwargs)
        return _materialize(output) if platform() == "cpu" else output

    return run


@jax.custom_jvp
def _materialize(x: Output) -> Output:
    """Returns x; no operation that reads it computes it again. Derivatives pass as they are."""
    return jax.lax.optimization_barrier(x)


@_materialize.defjvp
def _materialize_jvp(primals: tuple[Output], tangents: tuple[Output]) -> tuple[Output, Output]:
    return _materialize(primals[0]), tangents[0]
