"""Evaluates a finished run: `python -m eval --run=DIR --tasks=bits_per_byte,inference`.

The scores of a task are printed, and written to eval/STEP/TASK.json in the run folder, as soon as
the task ends. A task is not run again if its result exists in the current version of the task, of
the same part of each split and with the same settings of the task.
`--again` evaluates in any case, and compares with the recorded scores instead of writing them.
Progress goes to stderr.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval import again, harness
from eval.load_run import load_run
from eval.task import TaskEntry
from settings.changes import with_changes
from settings.flag_parser import (
    add_change_flags,
    changes_from_flags,
    count_parser,
    make_parser,
    name_list,
)
from settings.json_types import JsonObject
from training.run.cli_errors import run_command
from training.run.console import Console
from training.settings import FinetuneConfig

FINETUNE = "config.eval.finetune"  # The section whose settings are flags, as those of train.py.


def run(argv: Sequence[str]) -> None:
    """Evaluates the run that the flags in `argv` name, and prints one line per score."""
    args = parse_args(argv)
    console = Console("plain", total_steps=0, file=sys.stderr)
    console.open()
    try:
        ctx, folder, step = load_run(args.run, args.step, reads_splits=True)
        changes = changes_from_flags(args, FINETUNE)
        if args.limit is not None:
            changes["config.eval.limit"] = args.limit
        by_key = {key.removeprefix("config."): value for key, value in changes.items()}
        ctx = ctx._replace(settings=with_changes(ctx.settings, by_key))
        names = harness.resolve_tasks(ctx.settings, args.tasks)
        if not args.again:
            harness.evaluate(ctx, names, folder, step, on_task_end=print_scores)
            return
        pairs = again.evaluate_again(ctx, names, folder, step)
        for pair in pairs:
            print(pair, flush=True)
        again.check_same(pairs, folder)
    finally:
        console.close()


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed arguments."""
    description = "\n".join([__doc__ or "", *_task_lines(harness.TASKS)])
    parser = make_parser("python -m eval", description)
    parser.add_argument(
        "--run", required=True, type=Path, metavar="DIR", help="run folder that train.py wrote"
    )
    parser.add_argument(
        "--tasks",
        default=(),
        type=name_list,
        metavar="A,B",
        help="names of tasks, separated by commas; by default those of the run",
    )
    parser.add_argument(
        "--step",
        type=count_parser("--step"),
        metavar="N",
        help="step of the checkpoint; by default the newest that is not damaged",
    )
    parser.add_argument(
        "--limit",
        type=count_parser("--limit"),
        metavar="N",
        help="tokens of each split that are scored at most; 0: whole splits; by default as the run",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="evaluate although results exist, print both values, and exit with 65 if they differ",
    )
    add_change_flags(parser, FinetuneConfig, FINETUNE)
    parser.add_argument("--debug", action="store_true", help="print tracebacks of errors")
    return parser.parse_args(argv)


def print_scores(record: JsonObject) -> None:
    """Prints the scores of a task, one line each."""
    for score in record["scores"]:
        value = score["value"]
        text = value if isinstance(value, str) else f"{value:.4f}"
        print(f"{score['name']:40}{text}", flush=True)


def _task_lines(tasks: Mapping[str, TaskEntry]) -> list[str]:
    """Returns the names of all tasks, by the objective that they evaluate."""
    names: dict[str, list[str]] = {}
    for name, task in tasks.items():
        names.setdefault(task.objective or "any objective", []).append(name)
    return ["tasks:", *(f"  {kind:<26} {', '.join(group)}" for kind, group in names.items())]


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
