"""Train a model and evaluate it: `train.py --config=configs/quickstart.py --workdir=runs/first`.

Run the same command again to resume a run that stopped. Every setting is a flag, for example
--config.train.steps=100.
"""

import sys
from collections.abc import Sequence

from absl import flags

from settings.cli import parse_args
from training.distributed import multihost
from training.run.cli_errors import resolve_workdir, run_command
from training.settings import Settings

RECORDED_FLAGS = ("config", "workdir", "init_from", "resume")  # that run.json records


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this command beside the settings."""
    text = "The run folder or its URL; by default runs/<config>-<digest>."
    flags.DEFINE_string("workdir", "", text, flag_values=values)
    flags.DEFINE_string(
        "init_from",
        "",
        "A run folder or a Hugging Face folder, a path or a URL, to take the parameters from.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "dry_run", False, "Print settings, cost and memory of the run and exit.", flag_values=values
    )
    flags.DEFINE_bool("debug", False, "Print tracebacks of errors.", flag_values=values)
    flags.DEFINE_enum(
        "resume",
        "auto",
        ["auto", "strict", "extend"],
        "auto: resume from the newest valid checkpoint; strict: refuse a damaged checkpoint; "
        "extend: train a finished run for more steps.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "distributed",
        "auto",
        ["auto", "on", "off"],
        "How several processes start: auto reads the variables of the cluster (Slurm, Open MPI, "
        "Kubernetes, TPU).",
        flag_values=values,
    )
    flags.DEFINE_string(
        "coordinator_address",
        "",
        "HOST:PORT of process 0, where no cluster provides it.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "process_id",
        -1,
        "The number of this process, with --coordinator_address.",
        lower_bound=-1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_processes",
        0,
        "The number of processes, with --coordinator_address.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "initialization_timeout",
        300,
        "Seconds to wait for the other processes at the start.",
        lower_bound=1,
        flag_values=values,
    )


def run(argv: Sequence[str]) -> None:
    """Train, resume or dry-run what `argv` describes.

    Raises: every error of `errors.py`; `run_command` prints it as one line.
    """
    command = parse_args(argv, Settings, define_flags, description=__doc__ or "")
    settings, args = command.settings, command.flags
    # These load most of the project, which --help does not need.
    from eval import harness
    from hub.download import check_source
    from hub.run import check_params, load_params
    from training import runner

    harness.resolve_tasks(settings)  # an unknown task is an error before any work starts
    folder = resolve_workdir(args, settings)
    if args.init_from and not (folder / "run.json").exists():  # a run that resumes reads it no more
        check_source(args.init_from)
    process = multihost.ProcessInfo(args.coordinator_address, args.process_id, args.num_processes)
    multihost.initialize(args.distributed, process, args.initialization_timeout)
    recorded = {name: args[name].value for name in RECORDED_FLAGS}
    if args.dry_run:
        runner.dry_run(
            *(settings, command.provenance, folder),
            resume=args.resume,
            flags=recorded,
            check_params=check_params,
        )
        return
    runner.train(
        settings,
        folder,
        harness.make_evaluators,
        resume=args.resume,
        read_params=load_params,
        flags=recorded,
    )


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
