"""Compare architectures at the same cost: `compare.py --config=configs/compare/quickstart.py`.

Prints the plan, trains every run of it, and writes the board. The same command goes on where it
stopped; shared settings are flags, --config.train.steps=50.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from absl import flags
from rich.console import Console

import leaderboard
from data import open_data
from errors import ConfigError
from protocol import conduct, pace, plan, study
from training.command import guarded
from training.flags import parse
from training.settings import Settings


def declare(values: flags.FlagValues) -> None:
    text, switch = flags.DEFINE_string, flags.DEFINE_bool
    text("workdir", "", "folder of the runs; by default runs/compare/<config>", flag_values=values)
    stages = ["report", "tune", "noise"]
    what = (
        "report: train what is reported, then the board; tune: choose learning rates; noise: "
        "repeat the reference (both write to `recorded` of the study)"
    )
    flags.DEFINE_enum("stage", "report", stages, what, flag_values=values)
    flags.DEFINE_integer("index", -1, "only this run of the plan, from 0", flag_values=values)
    switch("dry_run", False, "print the plan, and stop", flag_values=values)
    switch("debug", False, "print tracebacks", flag_values=values)


def run(argv: Sequence[str]) -> None:
    command = parse(argv, Settings, declare, about=__doc__ or "")
    if not command.flags.config:
        raise ConfigError("give --config=FILE of a study, as configs/compare/quickstart.py")
    say = Console(highlight=False, soft_wrap=True).print
    asked = study.load(command.flags.config)
    vocab = open_data(command.settings.data, command.settings.reads).tokenizer.vocab
    made = study.planned(asked, command.settings, vocab)
    known = study.recorded(asked.recorded, made.plan)
    made = made._replace(plan=replace(made.plan, floor=known.floor))
    folder = Path(command.flags.workdir or f"runs/compare/{Path(command.flags.config).stem}")
    picks = known.picks or conduct.untuned(made.plan)
    if command.flags.stage == "tune":
        runs = plan.sweep(made.plan)
    elif command.flags.stage == "noise":
        runs = conduct.repeats(asked, made.plan, picks)
    else:
        runs = plan.reported(made.plan, picks)
    seconds, speed = pace.steps(runs, folder), pace.products(command.settings.model.dtype)
    told = plan.lines(made.plan, runs, seconds, speed)
    for line in (*told, *study.unmatched(made), *known.sources):
        say(line, markup=False)
    if not known.picks:
        say("no sweep of these settings is recorded: all candidates have the same learning rate")
    if command.flags.dry_run:
        return
    if command.flags.stage == "tune":
        conduct.write(conduct.tuned(made.plan, folder, say), Path(asked.recorded) / "sweep.json")
        return
    if command.flags.index >= 0:
        runs = conduct.only(runs, command.flags.index)
    results = conduct.conduct(runs, folder, say, asked.metric)
    if command.flags.stage == "noise":
        conduct.write(conduct.noise(results, made.plan), Path(asked.recorded) / "noise.json")
    elif command.flags.index < 0:
        leaderboard.run([str(folder / run.name) for run in runs] + [f"--out={folder / 'board'}"])


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
