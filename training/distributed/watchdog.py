"""Ends a run that hangs in data, in a collective or in a callback, and writes all stacks.

Python cannot interrupt a call that waits in C. The process therefore writes the stack of every
thread and exits.
"""

import contextlib
import faulthandler
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Generator
from types import TracebackType

from errors import HangError, IsoflopError
from training.distributed import multihost
from training.run.folder import RunFolder

SLOW_STEP_FACTOR = 10  # a step may take this many times the median of the last steps


class Watchdog:
    """Ends the process with HangError's code if no step ends for too long; a context manager.

    The limit is `timeout` seconds, or ten times the median step if that is longer. A timeout of 0
    disables the watchdog.
    """

    def __init__(self, run: RunFolder, timeout: float):
        self._run, self._timeout = run, timeout
        self._last_beat, self._step_seconds = time.monotonic(), deque[float](maxlen=50)
        self._paused = 0
        self._closed = threading.Event()

    def beat(self) -> None:
        """Reports the end of a step."""
        time_now = time.monotonic()
        self._step_seconds.append(time_now - self._last_beat)
        self._last_beat = time_now

    @contextlib.contextmanager
    def paused(self) -> Generator[None, None, None]:
        """Suspends the limit while an operation without a time limit runs."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1
            self._last_beat = time.monotonic()

    def __enter__(self) -> "Watchdog":
        self._last_beat = time.monotonic()
        if self._timeout:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(self._timeout / 4, 5.0)):
            times = list(self._step_seconds)
            slow_step = SLOW_STEP_FACTOR * statistics.median(times) if times else 0
            seconds = time.monotonic() - self._last_beat
            if seconds > max(self._timeout, slow_step) and not self._paused:
                self._abort(seconds)

    def _abort(self, seconds: float) -> None:
        error = HangError(
            f"no step for {seconds:.0f} s after step {self._run.step}; the stacks of all threads "
            "are in error.log; run the same command again, or raise train.hang_timeout"
        )
        with contextlib.suppress(Exception):
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        abort_process(self._run, error)


def abort_process(run: RunFolder, error: IsoflopError) -> None:
    """Ends the process from another thread than its main thread, and records that in `run`."""
    with contextlib.suppress(Exception):  # the process must end even if recording fails
        run.record_abort(error)
    print(f"{multihost.host_prefix()}{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    multihost.hard_exit(error.code)
