"""Machines to compile for that are not here: chips by name, and the devices they have.

TPUs are described by libtpu (`v5e:2x2` is a shape of the torus), H100s by NVIDIA's plugin from the
figures below (`h100:8` is a number of devices), `cpu:8` by this machine. Nothing is executed.
"""

import importlib.util
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from errors import ConfigError
from schema import nearest

GIB = 2**30


class Chip(NamedTuple):
    """A device as JAX counts them: a v5p chip is one, a tpu7x chip two."""

    platform: str
    memory: int | None  # bytes that a program may use; None: no limit is known
    host: int  # devices of a host
    example: str


# Memory: cloud.google.com/tpu (v5e 16, v5p 95, v6e 32, tpu7x 2 x 96 GB), less what the compiler
# keeps for itself by its own messages; an H100 SXM has 80 GB, of which JAX takes three quarters
# unless XLA_CLIENT_MEM_FRACTION says otherwise.
CHIPS = {
    "v5e": Chip("tpu", int(15.75 * GIB), 4, "v5e:2x2"),
    "v5p": Chip("tpu", int(95.74 * GIB), 4, "v5p:8x8x4"),
    "v6e": Chip("tpu", int(31.25 * GIB), 4, "v6e:16x16"),
    "tpu7x": Chip("tpu", int(94.75 * GIB), 8, "tpu7x:2x2x1"),
    "h100": Chip("cuda", int(0.75 * 84.9e9), 8, "h100:8"),
    "cpu": Chip("cpu", None, 1, "cpu:8"),
}
# What a compiler asks of an H100 SXM (NVIDIA H100 data sheet; CUDA programming guide, table of
# compute capability 9.0), as fields of XLA's GpuTargetConfigProto.
H100 = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 48 * 1024,
    "shared_memory_per_block_optin": 227 * 1024,
    "shared_memory_per_core": 228 * 1024,
    "threads_per_core_limit": 2048,
    "core_count": 132,
    "fpus_per_core": 128,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "memory_bandwidth": 3_352_320_000_000,
    "l2_cache_size": 50 * 2**20,
    "clock_rate_ghz": 1.98,
    "device_memory_size": 84_900_000_000,
    "registers_per_core_limit": 2**16,
    "registers_per_block_limit": 2**16,
}


class Target(NamedTuple):
    name: str
    chip: Chip
    devices: list[Any]

    @property
    def hosts(self) -> int:
        return -(-len(self.devices) // self.chip.host)


def target(name: str) -> Target:
    """The devices of `name`, "CHIP:SHAPE"; ConfigError if it is unknown or its compiler absent."""
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise ConfigError(f"topology {name!r}: chip {kind!r} is not known; {_known(kind)}")
    chip = CHIPS[kind]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise ConfigError(f"topology {name!r} has no shape such as {chip.example}")
    describe = {"tpu": _tpu, "cuda": _cuda, "cpu": _cpu}[chip.platform]
    return Target(name, chip, describe(name, shape, chip))


def here() -> Target:
    """This machine's own devices."""
    device = jax.devices()[0]
    stats = device.memory_stats()
    memory = stats.get("bytes_limit") if stats else None
    chip = Chip(device.platform, memory, jax.local_device_count(), "")
    return Target(f"this {device.platform}", chip, jax.devices())


def _tpu(name: str, shape: str, chip: Chip) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"topology {name!r} needs libtpu, which compiles for TPUs; install it by "
            "`uv sync --extra tpu`, or pip install 'jax[tpu]'"
        )
    return _described(name, lambda: topologies.get_topology_desc(name, "tpu"))


def _cuda(name: str, shape: str, chip: Chip) -> list[Any]:
    if importlib.util.find_spec("jax_plugins") is None or not _has_cuda():
        version = jax.__version__
        raise ConfigError(
            f"topology {name!r} needs NVIDIA's plugin, which compiles for GPUs; install it by pip "
            f"install jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version}"
        )
    count = math.prod(map(int, shape.split("x")))
    hosts, rest = divmod(count, chip.host)
    if rest and hosts:
        raise ConfigError(
            f"topology {name!r}: hosts have {chip.host} devices, {count} is not a multiple; "
            f"nearest: h100:{hosts * chip.host}"
        )
    fields = "\n".join(f"  {key}: {value}" for key, value in H100.items())
    config = (
        f"gpu_device_info {{\n{fields}\n  cuda_compute_capability {{ major: 9 }}\n}}\n"
        'platform_name: "CUDA"\ndnn_version_info { major: 9 minor: 7 }\n'
        'device_description_str: "NVIDIA H100 80GB HBM3"\n'
    )
    layout = f"1x{max(hosts, 1)}x{chip.host if hosts else count}"  # partitions, hosts, devices
    return _described(
        name,
        lambda: topologies.get_topology_desc("", "cuda", target_config=config, topology=layout),
    )


def _cpu(name: str, shape: str, chip: Chip) -> list[Any]:
    count = math.prod(map(int, shape.split("x")))
    if count > len(jax.devices("cpu")):
        raise ConfigError(
            f"topology {name!r} wants {count} CPU devices, this process has "
            f"{len(jax.devices('cpu'))}; run preflight.py as a command, which makes them"
        )
    return jax.devices("cpu")[:count]


def _described(name: str, describe: Callable[[], Any]) -> list[Any]:
    try:
        return list(describe().devices)
    except Exception as error:  # of several types, by platform and version
        why = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"topology {name!r} is not one of its compiler's ({why}); {_known(name)}"
        ) from error


def _has_cuda() -> bool:
    import jax_plugins

    names = [f"jax_plugins.xla_cuda{version}" for version in (12, 13)]
    return bool(jax_plugins.__path__) and any(map(importlib.util.find_spec, names))


def _known(name: str) -> str:
    kinds = [chip.example for chip in CHIPS.values()]
    return f"{nearest(name.partition(':')[0], CHIPS)}; known, for example: {', '.join(kinds)}"
