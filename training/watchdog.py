"""A run that hangs, in data, in a collective, in a callback, ends with stacks instead of waiting.

Python cannot interrupt what waits in C: the process writes what every thread is at, and exits.
"""

import contextlib
import faulthandler
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType

from errors import HangError, IsoflopError
from training import distributed
from training.run import RunFolder

SLOWER = 10  # times the median of the last steps


class Watchdog:
    """`beat` at every step, in a `with`; without one for `patience` seconds, or ten times as long
    as a step takes if that is more, the process exits with HangError's code. 0: never."""

    def __init__(self, run: RunFolder, patience: float):
        self._run, self._patience = run, patience
        self._last, self._times = time.monotonic(), deque[float](maxlen=50)
        self._paused = 0
        self._over = threading.Event()

    def beat(self) -> None:
        now = time.monotonic()
        self._times.append(now - self._last)
        self._last = now

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While something runs that may take as long as it likes."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1
            self._last = time.monotonic()

    def __enter__(self) -> "Watchdog":
        self._last = time.monotonic()
        if self._patience:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(self._patience / 4, 5.0)):
            times = list(self._times)
            most = max(self._patience, SLOWER * statistics.median(times) if times else 0)
            silent = time.monotonic() - self._last
            if silent > most and not self._paused:
                self._end(silent)

    def _end(self, silent: float) -> None:
        error = HangError(
            f"no step for {silent:.0f} s after step {self._run.step}; the stacks of all threads "
            "are in error.log; run the same command again, or raise train.patience"
        )
        with contextlib.suppress(Exception):
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        end(self._run, error)


def end(run: RunFolder, error: IsoflopError) -> None:
    """End the process from outside its main thread, recorded in `run` as far as that can be."""
    with contextlib.suppress(Exception):  # whatever fails, the process must end
        run.cut_off(error)
    print(f"{distributed.speaker()}{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    distributed.leave(error.code)
