"""Progress of an evaluation: messages to the logger at intervals, with the remaining time."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from formatting import format_duration
from training.run.console import LOGGER

MESSAGE_INTERVAL_SECONDS = 10.0

T = TypeVar("T")


def log_progress(items: Iterable[T], total: int, unit: str = "batches") -> Iterator[T]:
    """Yields the items, and logs their number, that of all, and the remaining time at intervals."""
    start, last_seconds = time.monotonic(), 0.0
    for number, item in enumerate(items):
        seconds = time.monotonic() - start
        if number and seconds - last_seconds >= MESSAGE_INTERVAL_SECONDS:
            last_seconds, eta = seconds, seconds / number * (total - number)
            LOGGER.info("  %d of %d %s, ETA %s", number, total, unit, format_duration(eta))
        yield item
