"""Stopping between steps: signals set a flag, the loop finishes its step, saves and exits with 75.

The first SIGINT, SIGTERM or SIGUSR1 (Slurm's `--signal=USR1@120`) asks; a second SIGINT stops at
once. Handlers run in the main thread between bytecodes, so one that comes during compilation or a
save is honoured at the next step. Where nothing is left to save, while a finished run is judged,
the first one ends it.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from errors import Preempted

SIGNALS = [n for n in ("SIGINT", "SIGTERM", "SIGUSR1") if n in signal.Signals.__members__]


class GracefulStop:
    """`requested` once a stop is asked for. Outside the main thread only `ask` does that."""

    def __init__(self) -> None:
        self.reason = ""
        self._interrupts = 0
        self._saved: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        return bool(self.reason)

    def ask(self, reason: str) -> None:
        self.reason = self.reason or reason

    @contextlib.contextmanager
    def saved(self, step: int) -> Iterator[None]:
        """Inside, the state at `step` is safe and nothing changes it: a signal raises Preempted, as
        does one that came before."""
        if self.requested:
            raise self.preempted(step)
        self._saved = step
        try:
            yield
        finally:
            self._saved = None

    def preempted(self, step: int) -> Preempted:
        """The error to end the run with, once the state at `step` is saved."""
        hint = "the same command goes on from there"
        self.ask("another host")  # all stop at one step
        if self.reason == "SIGUSR1":
            hint += " (Slurm: scontrol requeue $SLURM_JOB_ID, or sbatch --requeue on exit 75)"
        return Preempted(f"stopped by {self.reason} at step {step}, which is saved; {hint}")

    def __enter__(self) -> "GracefulStop":
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                number = signal.Signals[name]
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():  # None: set by C, out of Python's reach
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
        if self._saved is not None:
            self.ask(name)
            raise self.preempted(self._saved)
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        text = f"\n{name}: stopping after this step, saving{again}\n"
        self.ask(name)
        os.write(2, text.encode())  # not print: its buffer may be what was interrupted
