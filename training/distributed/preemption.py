"""Stops a run between steps: a signal sets a flag; the loop ends its step, saves and exits with 75.

The first SIGINT, SIGTERM or SIGUSR1 (Slurm's `--signal=USR1@120`) requests a stop. A second SIGINT
stops immediately. Handlers run in the main thread between bytecodes, so a signal during compilation
or during a save takes effect at the next step. While a finished run is evaluated, nothing needs to
be saved and the first signal ends the process.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Generator
from types import FrameType

from errors import PreemptedError

SignalHandler = Callable[[int, FrameType | None], object] | int | None  # of signal.signal
STOP_SIGNALS = [n for n in ("SIGINT", "SIGTERM", "SIGUSR1") if n in signal.Signals.__members__]


class GracefulStop:
    """Records a request to stop; a context manager that installs the signal handlers.

    Outside the main thread Python allows no handlers, so only `request` has an effect there.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._num_interrupts = 0
        self._saved_step: int | None = None
        self._previous_handlers: dict[signal.Signals, SignalHandler] = {}

    @property
    def is_requested(self) -> bool:
        """Whether a stop was requested."""
        return bool(self.reason)

    def request(self, reason: str) -> None:
        """Requests a stop; the reason of the first request is kept."""
        self.reason = self.reason or reason

    @contextlib.contextmanager
    def mark_saved(self, step: int) -> Generator[None, None, None]:
        """Declares that the state at `step` is saved and does not change inside the `with`.

        A signal inside it, or an earlier request, then ends the run immediately.

        Raises:
            PreemptedError: if a stop was or is requested.
        """
        if self.is_requested:
            raise self.preempted_error(step)
        self._saved_step = step
        try:
            yield
        finally:
            self._saved_step = None

    def preempted_error(self, step: int) -> PreemptedError:
        """Returns the error that ends the run after the state at `step` has been saved."""
        hint = "Run the same command to resume."
        self.request("another host")  # without a local reason: all hosts stop at the same step
        if self.reason == "SIGUSR1":
            hint += " (Slurm: scontrol requeue $SLURM_JOB_ID, or sbatch --requeue on exit 75)"
        return PreemptedError(f"stopped by {self.reason} at step {step}, which is saved. {hint}")

    def __enter__(self) -> "GracefulStop":
        if threading.current_thread() is threading.main_thread():
            for name in STOP_SIGNALS:
                number = signal.Signals[name]
                self._previous_handlers[number] = signal.signal(number, self._handle_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            # A handler of None was installed by C code; Python cannot restore it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous_handlers = {}

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT:
            self._num_interrupts += 1
            if self._num_interrupts > 1:
                raise KeyboardInterrupt
        if self._saved_step is not None:
            self.request(name)
            raise self.preempted_error(self._saved_step)
        hint = " Press Ctrl-C again to stop immediately." if number == signal.SIGINT else ""
        text = f"\n{name}: stopping after this step and saving a checkpoint.{hint}\n"
        self.request(name)
        os.write(2, text.encode())  # not print: the signal may have interrupted its buffer
