"""Injects failures for tests: `debug.inject_fault="kill@save:5"`; commas separate several.

    kill@5, sigterm@4            send a signal to this process when the step begins
    kill@save:5, sigterm@save:4  the same during the save of that step, before its manifest
    nan@7                        make the loss of that step non-finite
    hang@9                       let the step never end
    enospc@6                     let the disk be full from the save of that step on

Faults are injected in the first attempt only, so that running the same command again resumes the
run.
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
from settings.types import did_you_mean

POINTS_BY_KIND = {
    "kill": ("", "save:"),
    "sigterm": ("", "save:"),
    "nan": ("",),
    "hang": ("",),
    "enospc": ("",),
}
SIGNAL_NAMES = {"kill": "SIGKILL", "sigterm": "SIGTERM"}


class InjectedFault(NamedTuple):
    """One fault: its kind, and the point and step at which it occurs."""

    kind: str
    point: str  # "": when the step begins; "save:": during its save
    step: int


class FaultInjector:
    """Causes the configured faults at the points where the loop and the checkpoints call it."""

    def __init__(self, spec: str = "", *, attempt: int = 1):
        faults = parse_faults(spec)
        self._faults = faults if attempt == 1 else ()

    def at_step(self, step: int) -> None:
        """Causes the faults of a step that begins."""
        for fault in self._faults:
            if (fault.point, fault.step) == ("", step):
                _send_signal(fault.kind)
                while fault.kind == "hang":
                    time.sleep(1)

    def at_save(self, step: int) -> None:
        """Causes the faults of a save whose arrays are written and whose manifest is not.

        Raises:
            OSError: if the disk is to be full.
        """
        for fault in self._faults:
            if fault.kind == "enospc" and step >= fault.step:
                raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (debug.inject_fault)")
            if (fault.point, fault.step) == ("save:", step):
                _send_signal(fault.kind)

    def is_nan_step(self, step: int) -> bool:
        """Returns whether the loss of this step is to be NaN."""
        return InjectedFault("nan", "", step) in self._faults

    def inject_nan(self, step: int, batch: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Returns `batch`; at a NaN step its floating-point arrays, the loss weights, are NaN."""
        if not self.is_nan_step(step):
            return batch
        return {
            name: np.full_like(x, np.nan) if np.issubdtype(x.dtype, np.floating) else x
            for name, x in batch.items()
        }


def parse_faults(spec: str) -> tuple[InjectedFault, ...]:
    """Parses the faults in `spec`, () for ""; an unknown kind or form is a ConfigError."""
    return tuple(_parse_fault(part.strip()) for part in spec.split(",")) if spec else ()


def _parse_fault(text: str) -> InjectedFault:
    match = re.fullmatch(r"([^@]*)@(save:)?([0-9]{1,9})", text)
    if not match:
        raise ConfigError(f"debug.inject_fault is {text!r}, must be KIND@STEP or KIND@save:STEP")
    kind, point, step = match[1], match[2] or "", int(match[3])
    if kind not in POINTS_BY_KIND:
        raise ConfigError(
            f"debug.inject_fault {text!r}: unknown kind {kind!r}; "
            f"{did_you_mean(kind, POINTS_BY_KIND)}"
        )
    if point not in POINTS_BY_KIND[kind]:
        raise ConfigError(f"debug.inject_fault {text!r}: {kind} has no save:, use {kind}@{step}")
    return InjectedFault(kind, point, step)


def _send_signal(kind: str) -> None:
    if kind in SIGNAL_NAMES:
        os.kill(os.getpid(), signal.Signals[SIGNAL_NAMES[kind]])
