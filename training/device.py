"""What the hardware can do: peak matrix FLOP/s of known chips, and its memory.

Dense bfloat16 peaks from the makers' data sheets (NVIDIA A100, H100 SXM, H200; cloud.google.com/tpu
for v4 to v6e). A CPU has no known peak: utilisation is left out rather than guessed.
"""

import resource
import sys

import jax

PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak(device: jax.Device) -> float | None:
    """FLOP/s in bfloat16, or None where it is not known."""
    kind = device.device_kind
    found = [name for name in PEAKS if kind.startswith(name)]
    return PEAKS[max(found, key=len)] if found else None


def memory(device: jax.Device) -> int | None:
    """Bytes of device memory, or None where the platform does not say."""
    stats = device.memory_stats()
    return stats.get("bytes_limit") if stats else None


def peak_memory(device: jax.Device) -> int:
    """The most bytes that were in use at a time: of the device, or of this process on a CPU."""
    stats = device.memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
