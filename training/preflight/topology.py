"""Machines to compile for that need not be present: chips by name, and their devices.

libtpu describes TPUs (`v5e:2x2` is a shape of the torus, `v5e:1` is one chip), NVIDIA's plugin
describes H100s from the figures below (`h100:8` is a number of devices), and this machine stands
for `cpu:8`. Nothing is executed.
"""

import importlib.util
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.experimental import topologies

from errors import ConfigError
from settings.types import did_you_mean

GIB = 2**30


class Chip(NamedTuple):
    """A device as JAX counts them: a v5p chip is one device, a tpu7x chip is two."""

    platform: str
    memory_bytes: int | None  # bytes that a program may use; None if no limit is known
    devices_per_host: int
    example: str  # a topology of this chip, for messages


# Memory: cloud.google.com/tpu (v5e 16, v5p 95, v6e 32, tpu7x 2 x 96 GB), less the part that the
# compiler reserves according to its own messages. An H100 SXM has 80 GB, of which JAX takes three
# quarters unless XLA_CLIENT_MEM_FRACTION is set.
CHIPS = {
    "v5e": Chip("tpu", int(15.75 * GIB), 4, "v5e:2x2"),
    "v5p": Chip("tpu", int(95.74 * GIB), 4, "v5p:8x8x4"),
    "v6e": Chip("tpu", int(31.25 * GIB), 4, "v6e:16x16"),
    "tpu7x": Chip("tpu", int(94.75 * GIB), 8, "tpu7x:2x2x1"),
    "h100": Chip("cuda", int(0.75 * 84.9e9), 8, "h100:8"),
    "h200": Chip("cuda", int(0.75 * 150.7e9), 8, "h200:8"),
    "cpu": Chip("cpu", None, 1, "cpu:8"),
}
# Properties of an H100 SXM that the compiler needs (NVIDIA H100 data sheet; CUDA programming guide,
# table of compute capability 9.0), as fields of XLA's GpuTargetConfigProto. An H200 differs in its
# memory.
H100_TARGET_CONFIG = {
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
GPU_TARGET_CONFIGS = {
    "h100": H100_TARGET_CONFIG,
    "h200": H100_TARGET_CONFIG
    | {"memory_bandwidth": 4_800_000_000_000, "device_memory_size": 150_700_000_000},
}


class CompileTarget(NamedTuple):
    """A machine to compile for: its name, its chip and its devices."""

    name: str
    chip: Chip
    devices: list[jax.Device]


def parse_topology(name: str) -> CompileTarget:
    """Returns the target that `name` describes as "CHIP:SHAPE".

    Raises:
        ConfigError: if the chip or the shape is unknown, or the chip's compiler is not installed.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise ConfigError(f"topology {name!r}: unknown chip {kind!r}; {_valid_choices(kind)}")
    chip = CHIPS[kind]
    if not re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*)*", shape):
        raise ConfigError(f"topology {name!r} has no shape such as {chip.example}")
    describe = {"tpu": _tpu_devices, "cuda": _cuda_devices, "cpu": _cpu_devices}[chip.platform]
    return CompileTarget(name, chip, describe(name, shape, chip))


def local_target() -> CompileTarget:
    """Returns the target that consists of the devices of this machine."""
    device = jax.devices()[0]
    stats = device.memory_stats()
    memory_bytes = stats.get("bytes_limit") if stats else None
    chip = Chip(device.platform, memory_bytes, jax.local_device_count(), "")
    return CompileTarget(f"this {device.platform}", chip, jax.devices())


def _tpu_devices(name: str, shape: str, chip: Chip) -> list[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"topology {name!r} needs libtpu, which compiles for TPUs; install it with "
            "`uv sync --extra tpu`, or pip install 'jax[tpu]'"
        )
    if math.prod(map(int, shape.split("x"))) > 1:
        return _topology_devices(name, lambda: topologies.get_topology_desc(name, "tpu"))
    # A host has four chips or more by default; one chip is a host of its own.
    axes = "x".join("1" * (chip.example.count("x") + 1))
    one_chip = f"{name.partition(':')[0]}:{axes}"
    return _topology_devices(
        name,
        lambda: topologies.get_topology_desc(one_chip, "tpu", chips_per_host_bounds=(1, 1, 1)),
    )


def _cuda_devices(name: str, shape: str, chip: Chip) -> list[jax.Device]:
    if importlib.util.find_spec("jax_plugins") is None or not _has_cuda_plugin():
        version = jax.__version__
        raise ConfigError(
            f"topology {name!r} needs NVIDIA's plugin, which compiles for GPUs; install it with "
            f"pip install jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version}"
        )
    kind, count = name.partition(":")[0], math.prod(map(int, shape.split("x")))
    num_hosts, remainder = divmod(count, chip.devices_per_host)
    if remainder and num_hosts:
        raise ConfigError(
            f"topology {name!r}: hosts have {chip.devices_per_host} devices, {count} is not a "
            f"multiple; nearest valid value: {kind}:{num_hosts * chip.devices_per_host}"
        )
    fields = "\n".join(f"  {key}: {value}" for key, value in GPU_TARGET_CONFIGS[kind].items())
    config = (
        f"gpu_device_info {{\n{fields}\n  cuda_compute_capability {{ major: 9 }}\n}}\n"
        'platform_name: "CUDA"\ndnn_version_info { major: 9 minor: 7 }\n'
        'device_description_str: "NVIDIA H100 80GB HBM3"\n'
    )
    per_host = chip.devices_per_host if num_hosts else count
    layout = f"1x{max(num_hosts, 1)}x{per_host}"  # partitions x hosts x devices per host
    return _topology_devices(
        name,
        lambda: topologies.get_topology_desc("", "cuda", target_config=config, topology=layout),
    )


def _cpu_devices(name: str, shape: str, chip: Chip) -> list[jax.Device]:
    count = math.prod(map(int, shape.split("x")))
    available = jax.devices("cpu")
    if count > len(available):
        raise ConfigError(
            f"topology {name!r} needs {count} CPU devices, this process has {len(available)}; run "
            "preflight.py as a command, which creates them"
        )
    return available[:count]


def _topology_devices(
    name: str, describe: Callable[[], topologies.TopologyDescription]
) -> list[jax.Device]:
    try:
        return list(describe().devices)
    except Exception as error:  # its type depends on the platform and the version
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"topology {name!r} is unknown to its compiler ({reason}); {_valid_choices(name)}"
        ) from error


def _has_cuda_plugin() -> bool:
    import jax_plugins

    names = [f"jax_plugins.xla_cuda{version}" for version in (12, 13)]
    return bool(jax_plugins.__path__) and any(map(importlib.util.find_spec, names))


def _valid_choices(name: str) -> str:
    examples = ", ".join(chip.example for chip in CHIPS.values())
    return f"{did_you_mean(name.partition(':')[0], CHIPS)}; examples: {examples}"
