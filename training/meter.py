"""What a run measures of itself: means over the steps since the last reading, and speed."""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from arch import Cost
from data.loader import Batches, Joined
from data.store import Store
from objectives import Metrics
from training import device
from training.program import Program
from training.report import positions

SWITCHES = ("halted",)  # for the loop, not for people


class Meter:
    """Collects metrics on the device; `read` fetches them, with rates over the time since."""

    def __init__(self, program: Program, bill: Cost, batches: Batches | Joined, store: Store):
        train = program.settings.train
        self._batches = batches
        self._flops = 3 * bill.executed_flops  # what is computed twice is no use of the device
        self._tokens = positions(program.settings) // max(train.steps, 1)  # of a step
        self._device = program.mesh.local_devices[0]
        peak = device.peak(self._device)
        self._peak = peak * program.mesh.size if peak else None
        # Of the training split: targets, ends of documents included, over the bytes of its text.
        self._per_byte = store.scored / max(store.text_bytes, 1) / math.log(2)
        self._pending: list[Metrics] = []
        self._began, self._paused, self._waited = time.perf_counter(), 0.0, 0.0

    def add(self, metrics: Metrics) -> None:
        self._pending.append(metrics)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens inside, judging or saving, out of the speed."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began

    def read(self, done: int, waited: float) -> dict[str, Any]:
        """Means since the last reading after `done` steps; `waited`: seconds for data so far."""
        steps, values = len(self._pending), means(jax.device_get(self._pending))
        now = time.perf_counter()
        seconds = max(now - self._began - self._paused, 1e-9)
        speed = steps * self._tokens / seconds
        values |= {
            "tokens_per_second": speed,
            "step_seconds": seconds / max(steps, 1),
            "data_wait": (waited - self._waited) / seconds,
            "tokens": self._batches.tokens(done),
            "unique_tokens": self._batches.unique_tokens(done),
            "epochs": self._batches.epoch_of(done),
            "peak_memory": device.peak_memory(self._device),
        }
        if "nats" in values:
            values["bits_per_byte"] = values["nats"] * self._per_byte
        if self._peak:
            values["mfu"] = speed * self._flops / self._peak
        self._pending, self._began, self._paused, self._waited = [], now, 0.0, waited
        return values


def means(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum of sums over sum of weights, by name; what has one a layer, also as a list of these."""
    sums: dict[str, tuple[Any, Any]] = {}
    for row in rows:
        for name, (amount, weight) in row.items():
            a, w = sums.get(name, (0.0, 0.0))
            sums[name] = a + np.float64(amount), w + np.float64(weight)
    found: dict[str, Any] = {}
    for name, (a, w) in sums.items():
        if name in SWITCHES:
            continue
        found[name] = float(np.sum(a) / max(np.sum(w), 1.0))
        if np.ndim(a):
            found[f"{name}/layers"] = (a / np.maximum(w, 1.0)).tolist()
    return found
