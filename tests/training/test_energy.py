"""The energy of training: counters, and estimates that are marked as such."""

import sys
import types
from pathlib import Path

import pytest

from training import energy
from training.energy import EnergyMeter, find_rapl_counters, gpu_part, host_part, rated_part


class Device:
    """A device as the meter sees it."""

    def __init__(self, kind: str, platform: str = "gpu", process_index: int = 0):
        self.device_kind, self.platform, self.process_index = kind, platform, process_index


def write_zone(root: Path, zone: str, name: str, microjoules: int) -> Path:
    folder = root / zone
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text("1000000\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_rapl_counts_packages_and_memory_across_a_wrap(tmp_path):
    package = write_zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    memory = write_zone(tmp_path, "intel-rapl:0:1", "dram", 0)
    write_zone(tmp_path, "intel-rapl:0:0", "core", 0)  # A part of the package.
    write_zone(tmp_path, "intel-rapl:1", "psys", 0)  # The package and more.
    meter = EnergyMeter([host_part(tmp_path)])
    assert meter.is_measured and meter.metric == "step_joules" and meter.read() == 0
    package.write_text("100000\n")  # 0.1 J to the end of the range, and 0.1 J after it
    memory.write_text("50000\n")
    assert meter.read() == pytest.approx(0.25)
    package.write_text("damaged")
    assert meter.read() == pytest.approx(0.25)


def test_counters_that_cannot_be_read_give_an_estimate(tmp_path, monkeypatch):
    counter = write_zone(tmp_path, "intel-rapl:0", "package-0", 0)
    counter.unlink()
    assert find_rapl_counters(tmp_path) == []
    monkeypatch.setattr(energy.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    seconds = iter([10.0, 12.0])
    monkeypatch.setattr(energy.time, "perf_counter", lambda: next(seconds))
    meter = EnergyMeter([host_part(tmp_path)])
    assert meter.read() == pytest.approx(2 * 4 * 6.75)
    assert meter.metric == "estimated_step_joules" and "4 processor cores" in meter.description


def test_the_longest_name_of_a_device_gives_its_power():
    assert rated_part([Device("NVIDIA H100 PCIe")] * 2).watts == 700  # 350 each
    assert rated_part([Device("NVIDIA H100 80GB HBM3")]).watts == 700
    assert rated_part([Device("TPU v5p")]) is None
    assert EnergyMeter.of_machine([Device("TPU v5p", "tpu")]) is None


def test_several_processes_are_estimated_on_all_hosts(monkeypatch):
    monkeypatch.setattr(energy.os, "sched_getaffinity", lambda pid: {0})
    devices = [Device("TPU v4", "tpu", process_index=i // 2) for i in range(4)]
    meter = EnergyMeter.of_machine(devices)
    assert [part.watts for part in meter.parts] == [2 * 6.75, 4 * 192]
    assert not meter.is_measured


def test_nvml_counts_only_if_the_run_has_all_gpus(monkeypatch):
    millijoules = [5000, 7000]
    nvml = types.SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda index: millijoules[index],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert gpu_part(2).joules() == 12.0 and gpu_part(1) is None

    def refuse(index):
        raise RuntimeError("not supported")

    nvml.nvmlDeviceGetTotalEnergyConsumption = refuse
    assert gpu_part(2) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_part(2) is None
