"""Where an operation runs: the platform that it is compiled for, and which part on which device."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from errors import ConfigError
from schema import nearest

P = jax.P
BATCH = ("replica", "data", "expert")  # mesh axes that split a batch; "model" splits heads, V


def platform() -> str:
    """ "cpu", "gpu" or "tpu": that of the mesh in context, whose devices may be absent, or here."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)


def choose(
    operation: str,
    asked: str | None,
    reasons: Mapping[str, str | None],
    preferred: Sequence[str] = (),
) -> str:
    """The implementation asked for; by None or "auto" the first of `preferred` that can run, else
    "xla".

    `reasons` says of each implementation why it cannot run here, None if it can.
    """
    if asked in (None, "auto"):
        return next((name for name in preferred if reasons[name] is None), "xla")
    if asked not in reasons:
        raise ConfigError(
            f"{operation} implementation {asked!r} is unknown; {nearest(asked, reasons)}"
        )
    if reasons[asked] is not None:
        raise ConfigError(
            f"{operation} implementation {asked!r} cannot run here: {reasons[asked]}; "
            "take 'xla', or none to choose by platform"
        )
    return asked


def free_axes() -> dict[str, int]:
    """Axes of the mesh in context that are left to the compiler, with their sizes."""
    mesh = jax.sharding.get_abstract_mesh()
    return {name: size for name, size in mesh.shape.items() if name not in mesh.manual_axes}


def batch_axes(batch: int) -> tuple[str, ...]:
    """Free axes that split `batch` rows: all of them or, if the rows do not divide, none."""
    sizes = {name: size for name, size in free_axes().items() if name in BATCH and size > 1}
    return tuple(sizes) if sizes and batch % math.prod(sizes.values()) == 0 else ()


def by_device(
    function: Callable[..., Any], axes: Sequence[str], specs: tuple[Any, ...], out: Any
) -> Callable[..., Any]:
    """`function` run on each device's part over `axes`; gradients of what is copied are summed."""
    if not axes:
        return function
    split = jax.shard_map(
        function, in_specs=specs, out_specs=out, axis_names=set(axes), check_vma=False
    )
    return jax.jit(split)  # outside of one, jax 0.10 refuses to leave axes to the compiler
