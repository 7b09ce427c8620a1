"""Judge a run again, or by more tasks: `python -m eval --run=DIR --tasks=bits_per_byte,inference`.

Scores go to eval/STEP/TASK.json of the run; a task that is there in its version is not run again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from errors import ConfigError
from eval import harness
from eval.subject import from_run
from training.command import guarded


def run(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("run", "", "run folder", flag_values=values)
    flags.DEFINE_list("tasks", [], "by default those of the run", flag_values=values)
    flags.DEFINE_integer("step", -1, "checkpoint; by default the newest", flag_values=values)
    flags.DEFINE_bool("debug", False, "print tracebacks", flag_values=values)
    try:
        rest = values(["eval", *argv])[1:]
    except flags.Error as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    if rest or not values.run:
        extra = f"{rest[0]!r} is no flag; " if rest else ""
        raise ConfigError(f"{extra}say python -m eval --run=DIR [--tasks=A,B] [--step=N]")
    subject, folder, step = from_run(Path(values.run), None if values.step < 0 else values.step)
    names = harness.chosen(subject.settings, tuple(values.tasks))
    for name, value in harness.judge(subject, names, folder, step).items():
        print(f"{name:40}{value if isinstance(value, str) else f'{value:.4f}'}")


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
