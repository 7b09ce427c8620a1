"""Rehearsing failures: `debug.fault="kill@save:5"` and the like, several separated by commas.

    kill@5, sigterm@4       a signal to this process when the step begins
    kill@save:5, sigterm@save:4  the same while that step is saved: arrays written, manifest not
    nan@7                   the loss of that step is not finite
    hang@9                  the step never ends
    enospc@6                the disk is full from that step's save on

They strike in the first attempt only, so that the same command, run again, goes on.
"""

import errno
import os
import re
import signal
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from errors import ConfigError
from schema import nearest

KINDS = {
    "kill": ("", "save:"),
    "sigterm": ("", "save:"),
    "nan": ("",),
    "hang": ("",),
    "enospc": ("",),
}
SIGNALS = {"kill": "SIGKILL", "sigterm": "SIGTERM"}


class Fault(NamedTuple):
    kind: str
    point: str  # "" at the step, "save:" in its save
    step: int


class Faults:
    """What the loop and the checkpoints ask at the points where something may be made to fail."""

    def __init__(self, spec: str = "", *, attempt: int = 1):
        self._faults = parse(spec) if attempt == 1 else parse(spec) and ()

    def at_step(self, step: int) -> None:
        """Call when a step begins."""
        for fault in self._faults:
            if (fault.point, fault.step) == ("", step):
                _signal(fault.kind)
                while fault.kind == "hang":
                    time.sleep(1)

    def at_save(self, step: int) -> None:
        """Call when the arrays of a checkpoint are written and its manifest is not."""
        for fault in self._faults:
            if fault.kind == "enospc" and step >= fault.step:
                raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (debug.fault)")
            if (fault.point, fault.step) == ("save:", step):
                _signal(fault.kind)

    def poison(self, step: int) -> bool:
        """Whether the loss of this step is to be made NaN."""
        return Fault("nan", "", step) in self._faults

    def poisoned(self, step: int, batch: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """`batch`, or at a poisoned step one whose floating entries, the weights, are NaN."""
        if not self.poison(step):
            return batch
        return {
            name: np.full_like(x, np.nan) if np.issubdtype(x.dtype, np.floating) else x
            for name, x in batch.items()
        }


def parse(spec: str) -> tuple[Fault, ...]:
    """The faults in `spec`, () of ""; ConfigError on anything unknown."""
    return tuple(_parsed(part.strip()) for part in spec.split(",")) if spec else ()


def _parsed(text: str) -> Fault:
    match = re.fullmatch(r"([^@]*)@(save:)?(\d{1,9})", text)
    if not match:
        raise ConfigError(f"debug.fault is {text!r}, must be KIND@STEP or KIND@save:STEP")
    kind, point, step = match[1], match[2] or "", int(match[3])
    if kind not in KINDS:
        raise ConfigError(f"debug.fault {text!r}: unknown kind {kind!r}; {nearest(kind, KINDS)}")
    if point not in KINDS[kind]:
        raise ConfigError(f"debug.fault {text!r}: {kind} has no save:, use {kind}@{step}")
    return Fault(kind, point, step)


def _signal(kind: str) -> None:
    if kind in SIGNALS:
        os.kill(os.getpid(), signal.Signals[SIGNALS[kind]])
