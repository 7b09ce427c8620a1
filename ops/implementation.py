"""Choice of an operation's implementation by platform, and its division over the mesh's devices."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax
from jaxtyping import PyTree

from errors import ConfigError
from settings.types import did_you_mean

PS = jax.P  # PartitionSpec; P is the head width of state space models
BATCH_AXES = ("replica", "data", "expert")  # mesh axes that split a batch; "model" splits heads, V

Output = TypeVar("Output")


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu": the platform of the current mesh, else of the local devices.

    The devices of an abstract mesh need not exist.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)


def select_implementation(
    operation: str,
    requested: str | None,
    reasons: Mapping[str, str | None],
    preferred: Sequence[str] = (),
) -> str:
    """Returns the name of the implementation to run.

    Args:
        operation: Name of the operation, for error messages.
        requested: Name of an implementation; None or "auto" takes the first of `preferred` that can
            run, else "xla".
        reasons: For each implementation the reason why it cannot run here, or None if it can.
        preferred: The fastest implementations of this platform, best first.

    Raises:
        ConfigError: if the requested implementation is unknown or cannot run here.
    """
    if requested in (None, "auto"):
        return next((name for name in preferred if reasons[name] is None), "xla")
    if requested not in reasons:
        hint = did_you_mean(requested, reasons)
        raise ConfigError(f"{operation} implementation {requested!r} is unknown; {hint}")
    if reasons[requested] is not None:
        raise ConfigError(
            f"{operation} implementation {requested!r} cannot run here: {reasons[requested]}; "
            "take 'xla', or none to choose by platform"
        )
    return requested


def prefer_step(
    num_tokens: int, by_platform: Mapping[str, Sequence[str]] | None = None
) -> Sequence[str]:
    """Returns the preferred implementations of a recurrence over rows of `num_tokens` tokens.

    One token, as in decoding, is a step of the recurrence itself, which reads and writes the state
    once. Chunked forms would copy it to other layouts and multiply matrices of one row. For more
    tokens `by_platform` names the fastest implementations, best first.
    """
    return ("reference",) if num_tokens == 1 else (by_platform or {}).get(platform(), ())


def auto_axes() -> dict[str, int]:
    """Returns the axes of the current mesh that the compiler partitions, with their sizes."""
    mesh = jax.sharding.get_abstract_mesh()
    return {name: size for name, size in mesh.shape.items() if name not in mesh.manual_axes}


def batch_axes(batch_size: int) -> tuple[str, ...]:
    """Returns the mesh axes that split `batch_size` rows, or none if they do not divide evenly."""
    sizes = {name: size for name, size in auto_axes().items() if name in BATCH_AXES and size > 1}
    return tuple(sizes) if sizes and batch_size % math.prod(sizes.values()) == 0 else ()


def map_shards(
    function: Callable[..., Output],
    axes: Sequence[str],
    in_specs: tuple[PyTree[jax.P], ...],
    out_specs: PyTree[jax.P],
) -> Callable[..., Output]:
    """Returns `function` mapped over each device's part of its arguments along the mesh `axes`.

    Gradients of replicated arguments are summed over devices. Without axes it returns `function`.
    """
    if not axes:
        return function
    mapped = jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, axis_names=set(axes), check_vma=False
    )
    return jax.jit(mapped)  # outside of a jit, jax 0.10 rejects a map over only some mesh axes
