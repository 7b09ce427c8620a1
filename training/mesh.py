"""The mesh of a run and the sharding of its arrays.

The mesh always has all its axes; an unused one has size 1. Its shape is the strategy: data > 1 is
FSDP, model > 1 tensor parallelism, replica > 1 plain data parallelism. Axes are Auto: shardings are
declared where the parameters are (`arch/sharding.py`), and the compiler inserts the communication.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jaxtyping import PyTree

from arch.sharding import BATCH_AXES, MESH_AXES, P, divisible_spec
from errors import ConfigError
from settings.types import Range, config

AxisSize = Annotated[int, Range(low=-1)]


@config
class MeshConfig:
    """The number of devices along each axis; one axis may be -1 and takes the remaining devices."""

    # Number of devices that divide the batch and copy the parameters; -1: the remaining devices.
    replica: AxisSize = 1
    # Number of devices that divide the batch and the parameters (FSDP); -1: the remaining devices.
    data: AxisSize = -1
    # Number of devices that divide the tokens of a row; -1: the remaining devices.
    context: AxisSize = 1
    # Number of devices that divide the batch and the experts; -1: the remaining devices.
    expert: AxisSize = 1
    # Number of devices that divide heads, MLP width and vocabulary; -1: the remaining devices.
    model: AxisSize = 1

    def check(self) -> None:
        """Checks that each size is positive or -1, and that at most one is -1.

        Raises:
            ConfigError: if a size is 0, or two are -1.
        """
        sizes = [getattr(self, axis) for axis in MESH_AXES]
        if 0 in sizes:
            raise ConfigError(
                f"mesh.{MESH_AXES[sizes.index(0)]} is 0, must be at least 1, or -1 for the "
                "remaining devices"
            )
        if sizes.count(-1) > 1:
            raise ConfigError(
                f"mesh {self.describe()} has -1 more than once; give all axes but one"
            )

    def describe(self) -> str:
        """Returns the sizes as text, `axis=size, ...`."""
        return ", ".join(f"{axis}={getattr(self, axis)}" for axis in MESH_AXES)

    def shape(self, num_devices: int) -> tuple[int, ...]:
        """Returns the sizes in the order of MESH_AXES for a number of devices.

        Raises:
            ConfigError: if the sizes do not fill the devices.
        """
        sizes = [getattr(self, axis) for axis in MESH_AXES]
        fixed = math.prod(size for size in sizes if size > 0)
        if num_devices % fixed or (-1 not in sizes and fixed != num_devices):
            hint = (
                "shrink an axis"
                if -1 in sizes
                else "use --config.mesh.data=-1 for the remaining devices"
            )
            devices = f"{num_devices} device" + "s" * (num_devices != 1)
            raise ConfigError(f"mesh {self.describe()} does not fill {devices}; {hint}")
        return tuple(num_devices // fixed if size == -1 else size for size in sizes)


def make_mesh(cfg: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns the mesh over `devices`, by default over all devices.

    Raises:
        ConfigError: if the sizes do not fill the devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = cfg.shape(len(devices))
    # Neighbors on an axis are neighbors on the torus where that is possible. A physical axis may be
    # split where the sizes require it.
    device_array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(device_array, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def check_batch(mesh: Mesh, batch_size: int, grad_accum_steps: int, seq_len: int) -> None:
    """Checks that devices divide the rows of a microbatch, and the context axis its tokens.

    Raises:
        ConfigError: if the batch size or the sequence length is not divisible.
    """
    divisor = math.prod(mesh.shape[axis] for axis in BATCH_AXES) * grad_accum_steps
    if batch_size % divisor:
        nearest = max(batch_size // divisor, 1) * divisor
        raise ConfigError(
            f"train.batch_size {batch_size} is not a multiple of mesh replica * data * expert * "
            f"train.grad_accum_steps = {divisor}; nearest valid value: {nearest}"
        )
    if seq_len % mesh.shape["context"]:
        size = mesh.shape["context"]
        nearest = max(seq_len // size, 1) * size
        raise ConfigError(
            f"train.seq_len {seq_len} is not a multiple of mesh.context {size}; "
            f"nearest valid value: {nearest}"
        )


def param_shardings(mesh: Mesh, tree: PyTree) -> PyTree:
    """Returns a tree like `tree` (modules) with the NamedSharding of each parameter."""
    variables = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    specs = [v.get_metadata()["out_sharding"] for v in variables]
    shapes = [leaf.shape for leaf in jax.tree.leaves(tree)]
    shardings = [
        NamedSharding(mesh, divisible_spec(spec, shape, mesh.shape))
        for spec, shape in zip(specs, shapes, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), shardings)


def process_shard(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """Returns (rank, world): this process has the rank-th of `world` equal slices of the rows.

    Returns (0, 1), all rows, if the rows of its devices do not form such a slice.
    """
    indices = NamedSharding(mesh, P(BATCH_AXES)).addressable_devices_indices_map((batch_size,))
    slices = [rows.indices(batch_size) for (rows,) in indices.values()]
    rows = sorted({row for limits in slices for row in range(*limits)})
    count, first = len(rows), rows[0]
    if batch_size % count or rows != list(range(first, first + count)) or first % count:
        return 0, 1
    return first // count, batch_size // count


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches [B T]."""
    return NamedSharding(mesh, P(BATCH_AXES, "context"))


def batch_array_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Returns the sharding of an array [B], [B T] or [B .. T] of a batch."""
    inner = (*(None,) * (len(shape) - 2), "context") if len(shape) > 1 else ()
    return NamedSharding(mesh, divisible_spec(P(BATCH_AXES, *inner), shape, mesh.shape))


def shard_batch(
    mesh: Mesh, arrays: Mapping[str, np.ndarray], batch_size: int
) -> dict[str, jax.Array]:
    """Returns a batch of `batch_size` rows on the mesh, from the rows that this process has."""
    shapes = {name: (batch_size, *array.shape[1:]) for name, array in arrays.items()}
    shardings = {name: batch_array_sharding(mesh, shape) for name, shape in shapes.items()}
    if jax.process_count() == 1:
        return jax.device_put(dict(arrays), shardings)
    rank, world = process_shard(mesh, batch_size)
    first_row = rank * (batch_size // world)  # of the rows that this process has

    def device_shard(array: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
        start, stop = index[0].start or 0, index[0].stop or batch_size
        return array[(slice(start - first_row, stop - first_row), *index[1:])]

    with jax.transfer_guard("allow"):  # this transfer is as explicit as a device_put
        return {
            name: jax.make_array_from_callback(
                shapes[name], shardings[name], partial(device_shard, array)
            )
            for name, array in arrays.items()
        }


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that copies an array to all devices."""
    return NamedSharding(mesh, P())


def bytes_per_device(tree: PyTree) -> int:
    """Returns the bytes that one device holds of a tree of arrays or shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
