"""Logs a run while it trains: rows go to metrics.jsonl, to the console and to trackers.

On purpose nothing in this module reads a device. `MetricsLogger.write` takes floats, so its caller
decides when to wait for the step.
"""

from collections.abc import Mapping

from training.run.console import Console
from training.run.folder import RunFolder
from training.run.settings import LogConfig
from training.run.strict_json import to_json_value
from training.run.tracker_worker import Trackers, is_number
from training.run.trackers import RunInfo


class MetricsLogger:
    """Writes the metrics of one attempt to the file, console and trackers; a context manager."""

    def __init__(self, cfg: LogConfig, run: RunFolder, *, total_steps: int):
        self._run = run
        self._trackers = Trackers(cfg.trackers, run.log_event)
        self.console = Console(cfg.console, total_steps=total_steps)

    def write(self, step: int, metrics: Mapping[str, object]) -> None:
        """Writes one row: all of it to metrics.jsonl, its numbers to the console and trackers.

        The file is the authoritative record, so it is written first. Trackers start with the first
        row, since the run then knows the step at which it resumed.
        """
        row = to_json_value(metrics)
        self._run.write_metrics(step, row)
        numbers = {name: value for name, value in metrics.items() if is_number(value)}
        self.console.print_row(step, numbers)
        run_info = RunInfo(self._run.path, self._run.record["run_id"], self._run.record["settings"])
        self._trackers.start(run_info, self._run.start_step)
        self._trackers.write(step, numbers)

    def rewind(self, step: int) -> None:
        """Tells the trackers that the run goes back to `step` (a rollback)."""
        self._trackers.rewind(step)

    def __enter__(self) -> "MetricsLogger":
        self.console.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._trackers.close()
        self.console.close()
