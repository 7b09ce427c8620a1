"""The energy of training: measured where the machine has counters, else estimated from power.

The counters are those of processors (RAPL, files of Linux that often only root may read) and of
NVIDIA GPUs (NVML by `nvidia-ml-py`, extra `energy`). They count all programs on the machine. What
has no counter is estimated as power times time, and the whole is then marked as an estimate.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import jax

RAPL_FOLDER = Path("/sys/class/powercap")
# The maximal power of a device in watts, by the beginning of the device kind. GPUs: NVIDIA's data
# sheets; TPU: arXiv:2304.01433, table 4. Google states none of later TPUs.
DEVICE_WATTS = {
    "NVIDIA A100": 400,
    "NVIDIA A100-PCIE": 250,
    "NVIDIA A100 80GB PCIe": 300,
    "NVIDIA H100": 700,
    "NVIDIA H100 PCIe": 350,
    "NVIDIA H200": 700,
    "NVIDIA L4": 72,
    "NVIDIA L40": 300,
    "Tesla T4": 70,
    "Tesla V100-SXM2": 300,
    "Tesla V100-PCIE": 250,
    "TPU v4": 192,
}
# Thermal design power of the Intel Xeon Platinum 8380 by its data sheet, 270 W, over its 40 cores.
WATTS_PER_CORE = 6.75


class PowerPart(NamedTuple):
    """A part of the machine that consumes energy."""

    label: str  # How its energy is known, in words.
    joules: Callable[[], float] | None  # Reads its counter, which only grows; None: it has none.
    watts: float = 0.0  # Power that is assumed where there is no counter.


class EnergyMeter:
    """Counts the joules of the devices and of the host that a run uses."""

    def __init__(self, parts: Sequence[PowerPart]):
        self.parts = tuple(parts)
        self._start = time.perf_counter()

    @classmethod
    def of_machine(cls, devices: Sequence[jax.Device]) -> Self | None:
        """Returns the meter for a run on `devices`; None if the power of one is not known.

        The devices of several processes are estimated, because each process reads only its own.
        """
        local = [device for device in devices if device.process_index == jax.process_index()]
        is_alone = len(local) == len(devices)
        n_hosts = max(round(len(devices) / len(local)), 1)
        parts = [host_part(RAPL_FOLDER if is_alone else None, n_hosts)]
        if devices[0].platform != "cpu":
            part = (gpu_part(len(local)) if is_alone else None) or rated_part(devices)
            if part is None:
                return None
            parts.append(part)
        return cls(parts)

    @property
    def is_measured(self) -> bool:
        """Whether all parts have counters, so that nothing is estimated."""
        return all(part.joules for part in self.parts)

    @property
    def metric(self) -> str:
        """The name of the metric that rows of the log have: measured, or estimated."""
        return "step_joules" if self.is_measured else "estimated_step_joules"

    @property
    def description(self) -> str:
        """How the energy of each part is known, in words."""
        return "; ".join(part.label for part in self.parts)

    def read(self) -> float:
        """Returns the joules since an unknown start: only differences have a meaning."""
        seconds = time.perf_counter() - self._start
        return sum(p.joules() if p.joules else p.watts * seconds for p in self.parts)


def host_part(rapl: Path | None, n_hosts: int = 1) -> PowerPart:
    """Returns the processors of the host: by RAPL if its counters below `rapl` can be read."""
    counters = find_rapl_counters(rapl) if rapl else []
    if counters:
        return PowerPart(
            "processors measured by RAPL, with all other programs on them",
            lambda: sum(counter.read() for counter in counters),
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    n_cores = (cores or 1) * n_hosts
    noun = "core" if n_cores == 1 else "cores"
    return PowerPart(
        f"{n_cores} processor {noun} estimated at {WATTS_PER_CORE:g} W each",
        None,
        WATTS_PER_CORE * n_cores,
    )


def rated_part(devices: Sequence[jax.Device]) -> PowerPart | None:
    """Returns devices at their maximal power; None if it is not known."""
    kind = devices[0].device_kind
    names = [name for name in DEVICE_WATTS if kind.startswith(name)]
    if not names:
        return None
    watts = DEVICE_WATTS[max(names, key=len)]
    return PowerPart(
        f"{len(devices)} x {kind} estimated at the maximal power, {watts} W each",
        None,
        float(watts * len(devices)),
    )


def gpu_part(n_devices: int) -> PowerPart | None:
    """Returns the GPUs by NVML; None without it, or if the run does not use all GPUs."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        # NVML numbers all GPUs of the machine, JAX those that it may see: only all are the same.
        if pynvml.nvmlDeviceGetCount() != n_devices:
            return None
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(n_devices)]

        def read() -> float:
            return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(h) for h in handles) / 1e3

        read()
    except pynvml.NVMLError:
        return None
    return PowerPart("GPUs measured by NVML", read)


class RaplCounter:
    """A counter of RAPL in joules, which goes on where the counter of the kernel wraps around."""

    def __init__(self, folder: Path):
        self._file = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())
        self._last = int(self._file.read_text())
        self._total = 0

    def read(self) -> float:
        """Returns the joules since the counter was opened; those of a failed read come later."""
        try:
            reading = int(self._file.read_text())
        except (OSError, ValueError):
            return self._total / 1e6
        self._total += (
            reading - self._last if reading >= self._last else reading - self._last + self._range
        )
        self._last = reading
        return self._total / 1e6


def find_rapl_counters(root: Path) -> list[RaplCounter]:
    """Returns the counters of packages and of memory; [] if one of them cannot be read."""
    counters = []
    for folder in sorted(root.glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text().strip()
            if name.startswith("package") or name == "dram":
                counters.append(RaplCounter(folder))
        except (OSError, ValueError):
            return []
    return counters
