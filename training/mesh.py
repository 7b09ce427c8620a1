"""The mesh of a run, and where every array of it lives.

The mesh always has all its axes; an unused one has size 1. Its shape is the strategy: data > 1 is
FSDP, model > 1 tensor parallelism, replica > 1 plain data parallelism. Axes are Auto: layouts stand
beside the weights (`arch/sharding.py`), the compiler does the rest.
"""

import math
from typing import Annotated, Any

import jax
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from arch.sharding import AXES, BATCH, P, fitting
from errors import ConfigError
from schema import Range, config

Size = Annotated[int, Range(low=-1)]


@config
class MeshConfig:
    """Devices along each axis; -1 takes what the others leave, once."""

    replica: Size = 1  # copies of the parameters
    data: Size = -1  # batch, and parameters in shards (FSDP)
    context: Size = 1  # the sequence
    expert: Size = 1  # batch, and experts
    model: Size = 1  # heads, feed-forward width, vocabulary (tensor parallelism)

    def check(self) -> None:
        sizes = [getattr(self, axis) for axis in AXES]
        if 0 in sizes:
            raise ConfigError(f"mesh.{AXES[sizes.index(0)]} is 0, must be at least 1, or -1 (rest)")
        if sizes.count(-1) > 1:
            raise ConfigError(f"mesh {self.text()} has -1 more than once; give all axes but one")

    def text(self) -> str:
        return ", ".join(f"{axis}={getattr(self, axis)}" for axis in AXES)

    def shape(self, devices: int) -> tuple[int, ...]:
        """Sizes in the order of AXES for so many devices."""
        sizes = [getattr(self, axis) for axis in AXES]
        fixed = math.prod(size for size in sizes if size > 0)
        if devices % fixed or (-1 not in sizes and fixed != devices):
            way = "use --config.mesh.data=-1 for the rest" if -1 not in sizes else "shrink an axis"
            raise ConfigError(f"mesh {self.text()} does not fill {devices} devices; {way}")
        return tuple(devices // fixed if size == -1 else size for size in sizes)


def build(cfg: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (all of them by default)."""
    devices = jax.devices() if devices is None else devices
    shape = cfg.shape(len(devices))
    # Neighbours along an axis are near each other on a torus, even where that has to be cut.
    near = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(near, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(mesh: Mesh, batch: int, accumulate: int, length: int) -> None:
    """Rows must divide over the devices in every microbatch, tokens over the context axis."""
    ways = math.prod(mesh.shape[axis] for axis in BATCH) * accumulate
    if batch % ways:
        near = max(batch // ways, 1) * ways
        raise ConfigError(
            f"train.batch {batch} is not a multiple of mesh replica * data * expert * "
            f"train.accumulate = {ways}; nearest: {near}"
        )
    if length % mesh.shape["context"]:
        size = mesh.shape["context"]
        near = max(length // size, 1) * size
        raise ConfigError(
            f"train.length {length} is not a multiple of mesh.context {size}; nearest: {near}"
        )


def layouts(mesh: Mesh, tree: Any) -> Any:
    """The NamedSharding of every parameter in `tree` (modules), in a tree like it."""
    variables = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    specs = [v.get_metadata()["out_sharding"] for v in variables]
    shapes = [leaf.shape for leaf in jax.tree.leaves(tree)]
    placed = [
        NamedSharding(mesh, fitting(spec, shape, mesh.shape))
        for spec, shape in zip(specs, shapes, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), placed)


def share(mesh: Mesh, batch: int) -> tuple[int, int]:
    """(rank, world): this process holds the rank-th of `world` equal runs of a batch's rows.

    (0, 1), all rows, where what its devices hold is not such a run.
    """
    held = NamedSharding(mesh, P(BATCH)).addressable_devices_indices_map((batch,))
    mine = sorted({row for (rows,) in held.values() for row in range(*rows.indices(batch))})
    count = len(mine)
    if batch % count or mine != list(range(mine[0], mine[0] + count)) or mine[0] % count:
        return 0, 1
    return mine[0] // count, batch // count


def rows(mesh: Mesh) -> NamedSharding:
    """Where batches [B T] live."""
    return NamedSharding(mesh, P(BATCH, "context"))


def rows_like(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Where an array [B], [B T] or [B .. T] of a batch lives."""
    inner = (*(None,) * (len(shape) - 2), "context") if len(shape) > 1 else ()
    return NamedSharding(mesh, fitting(P(BATCH, *inner), shape, mesh.shape))


def everywhere(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())
