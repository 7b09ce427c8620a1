"""Train a model and judge it: `train.py --config=configs/quickstart.py --workdir=runs/first`.

The same command goes on where it stopped. Every setting is a flag: --config.train.steps=100.
"""

import sys
from collections.abc import Sequence

from absl import flags

from eval import harness
from hub.run import parameters
from training import distributed, launch
from training.command import guarded, workdir
from training.flags import parse
from training.settings import Settings

FLAGS = ("config", "workdir", "init_from", "resume")  # that run.json records


def declare(values: flags.FlagValues) -> None:
    text, switch = flags.DEFINE_string, flags.DEFINE_bool
    text("workdir", "", "run folder; by default runs/<config>-<digest>", flag_values=values)
    text(
        "init_from",
        "",
        "run folder or Hugging Face folder whose parameters to begin with",
        flag_values=values,
    )
    switch("dry_run", False, "print what the run would be, and stop", flag_values=values)
    switch("debug", False, "print tracebacks", flag_values=values)
    ways = ["auto", "strict", "extend"]
    what = (
        "auto: go on from the newest valid checkpoint; strict: refuse a damaged one; "
        "extend: train a finished run further"
    )
    flags.DEFINE_enum("resume", "auto", ways, what, flag_values=values)
    what = (
        "several hosts, one process each: auto asks the cluster (Slurm, Open MPI, Kubernetes, TPU)"
    )
    flags.DEFINE_enum("distributed", "auto", ["auto", "on", "off"], what, flag_values=values)
    text("coordinator", "", "HOST:PORT of process 0, where no cluster tells", flag_values=values)
    number = flags.DEFINE_integer
    number("process_id", -1, "number of this process, with --coordinator", flag_values=values)
    number("processes", 0, "how many there are, with --coordinator", flag_values=values)
    what = "seconds to wait for the other hosts"
    number("join_timeout", 300, what, lower_bound=1, flag_values=values)


def run(argv: Sequence[str]) -> None:
    command = parse(argv, Settings, declare, about=__doc__ or "")
    harness.chosen(command.settings)
    given = command.flags
    place = distributed.Place(given.coordinator, given.process_id, given.processes)
    distributed.join(given.distributed, place, given.join_timeout)
    if command.flags.dry_run:
        launch.dry_run(command.settings, command.provenance)
        return
    folder = workdir(command.flags, command.settings)
    launch.train(
        command.settings,
        folder,
        harness.judges,
        resume=command.flags.resume,
        parameters=parameters,
        flags={name: command.flags[name].value for name in FLAGS},
    )


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
