"""Prints to the terminal: rows above one live line, or plain lines if there is no terminal.

Messages of the project go to the logger "isoflop". While a console is open, it prints them and no
other handler receives them. Opening a second console in the same process (a notebook) replaces the
first.
"""

import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import Literal, TextIO

from rich.console import Console as RichConsole
from rich.live import Live
from rich.text import Text

from formatting import format_duration, format_si, replace_control_chars
from settings.command import silence_stdout

LOGGER = logging.getLogger("isoflop")
BAR_WIDTH = 16  # characters
# metric -> (heading, function that formats the value)
COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "loss": ("loss", lambda x: f"{x:.4f}"),
    "bits_per_byte": ("bpb", lambda x: f"{x:.4f}"),
    "tokens_per_second": ("tok/s", format_si),
    "mfu": ("MFU", lambda x: f"{x:.1%}"),
    "data_wait": ("data wait", lambda x: f"{x:.1%}"),
}


class Console:
    """Prints rows and messages, with an estimate of the remaining time.

    The metrics `data_wait` and `mfu` are fractions, printed as percentages.
    """

    def __init__(
        self,
        mode: Literal["auto", "rich", "plain", "off"],
        *,
        total_steps: int,
        file: TextIO | None = None,
    ):
        self._rich = RichConsole(file=file, highlight=False, soft_wrap=True)
        live = (
            mode == "rich" or mode == "auto" and (self._rich.is_terminal or self._rich.is_jupyter)
        )
        self._mode = "rich" if live else "off" if mode == "off" else "plain"
        self._file = file
        self._total_steps, self._step = total_steps, 0
        self._eval_steps = 0.0  # What the evaluation at the end takes, in steps of training.
        self._first_row: tuple[int, float] | None = None  # step and time of the first row
        self._last_metrics: Mapping[str, float] = {}
        self._eta_cells: list[str] = []
        self._live: Live | None = None
        self._handler = _ConsoleHandler(self.print_message)

    def open(self) -> None:
        """Starts to print the messages of the logger, and the live line on a terminal."""
        for handler in [h for h in LOGGER.handlers if isinstance(h, _ConsoleHandler)]:
            LOGGER.removeHandler(handler)
        LOGGER.addHandler(self._handler)
        LOGGER.setLevel(logging.INFO)
        LOGGER.propagate = False
        if self._mode == "rich":
            self._live = Live(
                get_renderable=self._status_line,
                console=self._rich,
                transient=True,
                refresh_per_second=4,
            )
            self._live.start()

    def close(self) -> None:
        """Stops the live line and gives the logger back to its other handlers."""
        if self._live:
            self._live.stop()
            self._live = None
        if self._handler in LOGGER.handlers:
            LOGGER.removeHandler(self._handler)
            LOGGER.propagate = True

    def expect_evaluation(self, steps: float) -> None:
        """Adds the evaluation at the end, which takes as long as this many steps, to the ETA."""
        self._eval_steps = steps

    def print_row(self, step: int, metrics: Mapping[str, float]) -> None:
        """Prints the metrics of a step that have a column, or all of them if none has one."""
        if step == self._total_steps and not metrics.keys() & COLUMNS.keys():
            self._eval_steps = 0.0  # These are the scores of the evaluation.
        self._step, self._last_metrics = step, {**self._last_metrics, **metrics}
        self._first_row = self._first_row or (step, time.monotonic())  # after compilation
        self._eta_cells = self._eta()
        cells = [f"step {step}/{self._total_steps}", *_format_cells(metrics), *self._eta_cells]
        self._print("  ".join(cells), "")

    def print_message(self, text: str, *, warn: bool = False) -> None:
        """Prints a message; `warn` marks it as a warning."""
        self._print(("warning: " if warn else "") + text, "yellow" if warn else "")

    def _print(self, text: str, style: str) -> None:
        text = replace_control_chars(text)
        try:
            if self._mode == "rich":
                self._rich.print(Text(text, style=style))
            elif self._mode == "plain":
                print(text, file=self._file or sys.stdout, flush=True)
        except OSError:  # the reader of a pipe has ended (`| head`); the run continues
            self._mode = "off"
            if self._file is None:
                silence_stdout()

    def _status_line(self) -> Text:
        share = self._step / self._total_steps if self._total_steps else 1.0
        filled = round(BAR_WIDTH * min(share, 1.0))
        bar = f"{'━' * filled}{'╌' * (BAR_WIDTH - filled)} {self._step}/{self._total_steps}"
        cells = [bar, *self._eta_cells, *_format_cells(self._last_metrics)]
        return Text("  ".join(cells), style="cyan", overflow="ellipsis", no_wrap=True)

    def _eta(self) -> list[str]:
        if self._first_row is None or self._step <= self._first_row[0]:
            return []
        step, start = self._first_row
        step_seconds = (time.monotonic() - start) / (self._step - step)
        remaining_steps = max(self._total_steps - self._step, 0) + self._eval_steps
        return [f"ETA {format_duration(step_seconds * remaining_steps)}"]


class _ConsoleHandler(logging.Handler):
    def __init__(self, show: Callable[..., None]):
        super().__init__(logging.INFO)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._show(record.getMessage(), warn=record.levelno >= logging.WARNING)
        except Exception:
            self.handleError(record)


def _format_cells(metrics: Mapping[str, float]) -> list[str]:
    """Formats the metrics that have a column; all of them if none has one (a row of scores)."""
    if not metrics.keys() & COLUMNS.keys():
        return [f"{name} {value:.4g}" for name, value in metrics.items()]
    return [
        f"{head} {show(metrics[key])}" for key, (head, show) in COLUMNS.items() if key in metrics
    ]
