"""Properties of the hardware: peak matrix FLOP/s of known chips, and device memory.

The peaks are dense bfloat16 figures from the makers' data sheets (NVIDIA A100, H100 SXM, H200;
cloud.google.com/tpu for v4 to v6e). A CPU has no known peak, so that its utilization is omitted
rather than guessed.
"""

import importlib.util
import resource
import sys

import jax

GPU_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory")
PEAK_FLOPS = {  # FLOP/s by the beginning of the device kind
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def ignore_absent_tpu() -> None:
    """Lets JAX use the CPU alone on a machine without accelerators that has the extra `tpu`.

    Otherwise libtpu looks for a TPU and prints a trace in each command. JAX has chosen the TPU
    when it was imported if there is one; JAX_PLATFORMS and plugins for GPUs are left alone.
    """
    is_chosen = bool(jax.config.values["jax_platforms"])
    has_plugin = any(importlib.util.find_spec(name) for name in GPU_PLUGINS)
    if importlib.util.find_spec("libtpu") and not (is_chosen or has_plugin):
        jax.config.update("jax_platforms", "cpu")


def peak_flops(device: jax.Device) -> float | None:
    """Returns the peak FLOP/s of a device in bfloat16, or None if it is not known."""
    kind = device.device_kind
    names = [name for name in PEAK_FLOPS if kind.startswith(name)]
    return PEAK_FLOPS[max(names, key=len)] if names else None


def is_out_of_memory(error: Exception) -> bool:
    """Whether XLA reports that memory does not suffice; CPUs name it otherwise than GPUs, TPUs."""
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return False
    return any(phrase in str(error) for phrase in OUT_OF_MEMORY)


def memory_bytes(device: jax.Device) -> int | None:
    """Returns the bytes of a device's memory, or None if the platform does not report them."""
    stats = device.memory_stats()
    return stats.get("bytes_limit") if stats else None


def peak_memory_bytes(device: jax.Device) -> int:
    """Returns the peak of the bytes in use on a device; on a CPU, of this process."""
    stats = device.memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    max_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max_rss if sys.platform == "darwin" else 1024 * max_rss  # bytes on macOS, else KiB
