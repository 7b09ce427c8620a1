"""The terminal: a row now and then above one live line, or plain lines where nobody watches.

Messages of the project go to the logger "isoflop". While a console is open it shows them, and they
go nowhere else; opening a second one in the same process (a notebook) replaces the first.
"""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Literal, TextIO

from rich.console import Console as RichConsole
from rich.live import Live
from rich.text import Text

LOGGER = logging.getLogger("isoflop")
BAR = 16  # characters
# metric: (heading, its text)
COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "loss": ("loss", lambda x: f"{x:.4f}"),
    "bits_per_byte": ("bpb", lambda x: f"{x:.4f}"),
    "tokens_per_second": ("tok/s", lambda x: human(x)),
    "mfu": ("MFU", lambda x: f"{x:.1%}"),
    "data_wait": ("data wait", lambda x: f"{x:.1%}"),
}


class Console:
    """Shows rows and messages; `data_wait` and `mfu` are shares, times come from a clock here."""

    def __init__(
        self,
        mode: Literal["auto", "rich", "plain", "off"],
        *,
        total: int,
        file: TextIO | None = None,
    ):
        self._rich = RichConsole(file=file, highlight=False, soft_wrap=True)
        live = (
            mode == "rich" or mode == "auto" and (self._rich.is_terminal or self._rich.is_jupyter)
        )
        self._mode = "rich" if live else "off" if mode == "off" else "plain"
        self._file = file
        self._total, self._step = total, 0
        self._first: tuple[int, float] | None = None  # step and time of the first row
        self._last: Mapping[str, float] = {}
        self._left: list[str] = []
        self._live: Live | None = None
        self._handler = _Handler(self.message)

    def open(self) -> None:
        for handler in [h for h in LOGGER.handlers if isinstance(h, _Handler)]:
            LOGGER.removeHandler(handler)
        LOGGER.addHandler(self._handler)
        LOGGER.setLevel(logging.INFO)
        LOGGER.propagate = False
        if self._mode == "rich":
            self._live = Live(
                get_renderable=self._status,
                console=self._rich,
                transient=True,
                refresh_per_second=4,
            )
            self._live.start()

    def close(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None
        if self._handler in LOGGER.handlers:
            LOGGER.removeHandler(self._handler)
            LOGGER.propagate = True

    def row(self, step: int, metrics: Mapping[str, float]) -> None:
        self._step, self._last = step, {**self._last, **metrics}
        self._first = self._first or (step, time.monotonic())  # what was before, compiled
        self._left = self._eta()
        cells = [f"step {step}/{self._total}", *_cells(metrics), *self._left]
        self._print("  ".join(cells), "")

    def message(self, text: str, *, warn: bool = False) -> None:
        self._print(("warning: " if warn else "") + text, "yellow" if warn else "")

    def _print(self, text: str, style: str) -> None:
        text = printable(text)
        try:
            if self._mode == "rich":
                self._rich.print(Text(text, style=style))
            elif self._mode == "plain":
                print(text, file=self._file or sys.stdout, flush=True)
        except OSError:  # who read it is gone (`| head`); the run goes on
            self._mode = "off"
            if self._file is None:
                unheard()

    def _status(self) -> Text:
        share = self._step / self._total if self._total else 1.0
        filled = round(BAR * min(share, 1.0))
        bar = f"{'━' * filled}{'╌' * (BAR - filled)} {self._step}/{self._total}"
        cells = [bar, *self._left, *_cells(self._last)]
        return Text("  ".join(cells), style="cyan", overflow="ellipsis", no_wrap=True)

    def _eta(self) -> list[str]:
        if self._first is None or self._step <= self._first[0]:
            return []
        pace = (time.monotonic() - self._first[1]) / (self._step - self._first[0])
        return [f"ETA {clock(pace * max(self._total - self._step, 0))}"]


class _Handler(logging.Handler):
    def __init__(self, show: Callable[..., None]):
        super().__init__(logging.INFO)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._show(record.getMessage(), warn=record.levelno >= logging.WARNING)
        except Exception:
            self.handleError(record)


def human(x: float) -> str:
    """1234567 as 1.23M; at least three digits."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:.3g}{unit}"
    return f"{x:.3g}"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def printable(text: str) -> str:
    """`text` without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def unheard() -> None:
    """Let what is printed from here on go nowhere, also what Python flushes at its end."""
    with contextlib.suppress(OSError, ValueError):  # a notebook's stdout has no number
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _cells(metrics: Mapping[str, float]) -> list[str]:
    """The columns that `metrics` has; all of it if it has none (a row of scores)."""
    if not metrics.keys() & COLUMNS.keys():
        return [f"{name} {value:.4g}" for name, value in metrics.items()]
    return [
        f"{head} {show(metrics[key])}" for key, (head, show) in COLUMNS.items() if key in metrics
    ]
