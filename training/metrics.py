"""Metrics of training: means over the steps since the last reading, and the speed."""

import contextlib
import math
import time
from collections.abc import Generator, Mapping

import jax
import numpy as np
from numpy.typing import NDArray

from arch import Cost
from data.loader import Batches, MixtureBatches
from data.store import TokenStore
from objectives import Metrics
from settings.json_types import JsonObject
from training import hardware
from training.accounting import run_tokens
from training.energy import EnergyMeter
from training.program import TrainProgram

INTERNAL_METRICS = ("halted",)  # metrics that only the loop reads

FloatArray = np.float64 | NDArray[np.float64]  # of a metric: a number, or one for each layer
Total = tuple[FloatArray, FloatArray]  # sum and weight
ZERO = np.float64(0)


class StepMetrics:
    """Collects metrics on the device; `read` fetches them and adds rates over the elapsed time."""

    def __init__(
        self,
        program: TrainProgram,
        cost: Cost,
        batches: Batches | MixtureBatches,
        store: TokenStore,
    ):
        train = program.settings.train
        self._batches = batches
        # Utilization counts no FLOPs that are computed twice.
        self._flops_per_token = 3 * cost.executed_flops
        self._tokens_per_step = run_tokens(program.settings) // max(train.steps, 1)
        self._device = program.mesh.local_devices[0]
        device_peak = hardware.peak_flops(self._device)
        self._peak_flops = device_peak * program.mesh.size if device_peak else None
        # Targets per byte of the training split, ends of documents included; nats become bits.
        self._bits_per_byte = store.n_targets / max(store.text_bytes, 1) / math.log(2)
        self._pending: list[Metrics] = []  # on the device
        self._totals = dict[str, Total]()  # of the steps that have been read since the last row
        self._num_steps = 0
        self._start, self._paused, self._waited = time.perf_counter(), 0.0, 0.0  # seconds
        self._energy = EnergyMeter.of_machine(program.mesh.devices.flatten().tolist())
        self._start_joules, self._paused_joules = self._read_joules(), 0.0

    def add(self, metrics: Metrics) -> None:
        """Adds the metrics of one step, which stay on the device."""
        self._pending.append(metrics)
        self._num_steps += 1

    def window(self) -> JsonObject:
        """Returns sums and weights since the last row by name, which a checkpoint stores."""
        self._read_pending()
        return {name: [t.tolist(), w.tolist()] for name, (t, w) in self._totals.items()}

    def resume_window(self, window: Mapping[str, list]) -> None:
        """Continues the means of the next row with the sums that a checkpoint stored."""
        for name, (total, weight) in window.items():
            self._totals[name] = np.float64(total), np.float64(weight)

    @contextlib.contextmanager
    def paused(self) -> Generator[None, None, None]:
        """Excludes the time and the energy of an evaluation or a save from those of steps."""
        start, joules = time.perf_counter(), self._read_joules()
        yield
        self._paused += time.perf_counter() - start
        self._paused_joules += self._read_joules() - joules

    def read(self, step: int, wait_seconds: float) -> JsonObject:
        """Returns the means since the last reading, and the speed.

        `step` is the number of steps done, `wait_seconds` the time spent waiting for data so far.
        The means include the steps before a stop, the speed does not.
        """
        self._read_pending()
        num_steps, values = self._num_steps, means(self._totals)
        end = time.perf_counter()
        seconds = max(end - self._start - self._paused, 1e-9)
        tokens_per_second = num_steps * self._tokens_per_step / seconds
        values |= {
            "tokens_per_second": tokens_per_second,
            "step_seconds": seconds / max(num_steps, 1),
            "data_wait": (wait_seconds - self._waited) / seconds,
            "tokens": self._batches.count_tokens(step),
            "unique_tokens": self._batches.count_unique_tokens(step),
            "epochs": self._batches.count_epochs(step),
            "peak_memory": hardware.peak_memory_bytes(self._device),
        }
        if "nats" in values:
            values["bits_per_byte"] = values["nats"] * self._bits_per_byte
        if self._energy and num_steps:
            values[self._energy.metric] = self._take_joules() / num_steps
        if self._peak_flops:
            values["mfu"] = tokens_per_second * self._flops_per_token / self._peak_flops
        self._totals, self._num_steps = {}, 0
        self._start, self._paused, self._waited = end, 0.0, wait_seconds
        return values

    def _read_joules(self) -> float:
        return self._energy.read() if self._energy else 0.0

    def _take_joules(self) -> float:
        """Returns the joules since the last reading without those of pauses, and starts anew."""
        end = self._read_joules()
        joules = max(end - self._start_joules - self._paused_joules, 0.0)
        self._start_joules, self._paused_joules = end, 0.0
        return joules

    def _read_pending(self) -> None:
        """Adds the pending metrics to the totals, in the order of the steps."""
        add_metrics(self._totals, jax.device_get(self._pending))
        self._pending = []


def add_metrics(totals: dict[str, Total], step_metrics: list[Metrics]) -> None:
    """Adds the sums and weights of steps to `totals`, by name."""
    for metrics in step_metrics:
        for name, (amount, weight) in metrics.items():
            if name in INTERNAL_METRICS:
                continue
            total, total_weight = totals.get(name, (ZERO, ZERO))
            totals[name] = total + np.float64(amount), total_weight + np.float64(weight)


def means(totals: dict[str, Total]) -> JsonObject:
    """Returns the total of sums over the total of weights, by name.

    A metric that has a value for each layer is also returned as the list `name/layers`.
    """
    values: JsonObject = {}
    for name, (total, total_weight) in totals.items():
        values[name] = float(np.sum(total) / (np.sum(total_weight) or 1.0))
        if np.ndim(total):
            divisors = np.where(total_weight > 0, total_weight, 1.0)
            values[f"{name}/layers"] = (total / divisors).tolist()
    return values
