"""Evaluates a finished run: `python -m eval --run=DIR --tasks=bits_per_byte,inference`.

The scores are written to eval/STEP/TASK.json in the run folder. A task is not run again if its
result exists in the current version of the task.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from errors import ConfigError
from eval import harness
from eval.load_run import load_run
from settings.cli import asks_for_help, format_flags
from training.run.cli_errors import run_command

USAGE = "usage: python -m eval --run=DIR [--tasks=A,B] [--step=N]"


def run(argv: Sequence[str]) -> None:
    """Evaluates the run that the flags in `argv` name, and prints one line per score.

    Raises:
        ConfigError: if a flag is unknown or --run is missing.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("run", "", "Run folder that train.py wrote.", flag_values=values)
    flags.DEFINE_list(
        "tasks",
        [],
        "Names of tasks, separated by commas; by default those of the run.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "step", -1, "Step of the checkpoint; -1 is the newest valid one.", flag_values=values
    )
    flags.DEFINE_bool("debug", False, "Print tracebacks of errors.", flag_values=values)
    if asks_for_help(argv):
        print("\n".join([__doc__ or "", USAGE, "", *format_flags(values), "", *_task_lines()]))
        return
    try:
        extra_args = values(["eval", *argv])[1:]
    except flags.Error as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    if extra_args or not values.run:
        problem = f"{extra_args[0]!r} is no flag; " if extra_args else ""
        raise ConfigError(f"{problem}{USAGE}")
    ctx, folder, step = load_run(Path(values.run), None if values.step < 0 else values.step)
    names = harness.resolve_tasks(ctx.settings, tuple(values.tasks))
    for name, value in harness.evaluate(ctx, names, folder, step).items():
        print(f"{name:40}{value if isinstance(value, str) else f'{value:.4f}'}")


def _task_lines() -> list[str]:
    """Returns the names of all tasks, by the objective that they evaluate."""
    names: dict[str, list[str]] = {}
    for name, task in harness.TASKS.items():
        names.setdefault(task.objective or "any objective", []).append(name)
    return ["Tasks:", *(f"  {kind:<26} {', '.join(group)}" for kind, group in names.items())]


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
