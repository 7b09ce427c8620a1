"""Compares architectures at the same cost: `compare.py --config=configs/compare/quickstart.py`.

It prints the plan, trains every run of it, and writes the board. The same command resumes a study
that was interrupted. Shared settings are flags, for example --config.train.steps=50.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from absl import flags
from rich.console import Console

import leaderboard
from data.open_stores import open_data
from errors import ConfigError
from protocol.study import (
    plan,
    plan_record,
    prior_results,
    run_study,
    step_timing,
    study,
    time_estimate,
)
from protocol.study.cells import CellKey
from protocol.study.declaration import PlannedRun, TuningChoice
from protocol.study.study_plan import StudyPlan
from settings.cli import parse_args
from storage import scratch
from training.run.cli_errors import run_command
from training.run.open_folder import check_creatable
from training.run.run_paths import validate_run_path
from training.settings import Settings


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command beside the settings."""
    flags.DEFINE_string(
        "workdir",
        "",
        "The folder of the runs, or its URL (s3://, gs://); by default runs/compare/<config>.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "stage",
        "run",
        ["run", "tune", "noise_floor"],
        "run: train the reported runs, then write the board; tune: select learning rates; "
        "noise_floor: repeat all candidates with other seeds. tune and noise_floor write to the "
        "study's results_dir.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "run_index",
        -1,
        "Train only this run of the plan, counted from 0; -1: all.",
        lower_bound=-1,
        flag_values=values,
    )
    flags.DEFINE_bool("dry_run", False, "Print the plan and exit.", flag_values=values)
    flags.DEFINE_bool("debug", False, "Print tracebacks of errors.", flag_values=values)


def run(argv: Sequence[str]) -> None:
    """Plans, tunes or runs the study that `argv` names.

    Raises:
        ConfigError: if no study is given; other errors of `errors.py` come from below.
    """
    command = parse_args(argv, Settings, define_flags, description=__doc__ or "")
    settings, args = command.settings, command.flags
    if not args.config:
        raise ConfigError("give --config=FILE of a study, as configs/compare/quickstart.py")
    console = Console(highlight=False, soft_wrap=True)
    spec = study.load_study(args.config)
    workdir = args.workdir or f"runs/compare/{Path(args.config).stem}"
    folder = validate_run_path(scratch.local_path(workdir))
    results_dir = Path(spec.results_dir)

    data = open_data(settings.data, settings.store_kinds)

    def measure_seconds(candidates: Mapping[str, Settings]) -> Mapping[str, float]:
        return step_timing.measure_step_seconds(candidates, folder, console.print)

    pairs = data.select("preferences").record_counts
    matched = study.make_plan(spec, settings, data.tokenizer.vocab_size, measure_seconds, pairs)
    prior = prior_results.load_prior_results(spec.results_dir, matched.plan)
    matched = matched._replace(plan=replace(matched.plan, noise_floors=prior.noise_floors))
    stage = _select_stage(args.stage, spec, matched.plan, prior)
    recorded, runs = stage.plan, stage.runs

    all_runs = plan.with_stages(runs)
    seconds = time_estimate.read_cell_seconds(all_runs, folder)
    matmul_flops = time_estimate.measure_matmul_flops(settings.model.dtype)
    eval_shares = run_study.eval_shares(recorded, data, spec.metric)
    plan_lines = plan.format_plan(matched.plan, all_runs, seconds, matmul_flops, eval_shares)
    for line in (*plan_lines, *study.describe_unmatched(matched), *prior.sources):
        console.print(line, markup=False)
    if not prior.tuning_choices:
        console.print(
            "No tuning sweep is recorded for these settings; each candidate has the learning rate "
            "of its settings."
        )
    if args.dry_run:
        check_creatable(folder)
        return
    for line in plan_record.write_plan(folder, recorded, stage.choices, prior.sweep_hash):
        console.print(line, markup=False)

    if args.stage == "tune":
        record = run_study.run_tuning(matched.plan, folder, console.print)
        run_study.write_record(record, results_dir / "sweep.json")
        return
    if args.run_index >= 0:
        runs = run_study.select_run(runs, args.run_index)
    results = run_study.run_all(runs, folder, console.print, spec.metric)
    if args.stage == "noise_floor":
        record = run_study.noise_record(results, matched.plan)
        run_study.write_record(record, results_dir / "noise.json")
    elif args.run_index < 0:
        leaderboard.show([folder], folder / "board")
        scratch.upload_tree(folder / "board")


class StagePlan(NamedTuple):
    """What one stage trains, and what plan.json records of it."""

    plan: StudyPlan
    choices: Mapping[CellKey, TuningChoice]
    runs: list[PlannedRun]


def _select_stage(
    stage: str, spec: study.Study, full_plan: StudyPlan, prior: prior_results.PriorResults
) -> StagePlan:
    """Returns the part of a plan that --stage names."""
    choices = prior.tuning_choices or run_study.default_choices(full_plan)
    if stage == "tune":
        return StagePlan(full_plan, {}, plan.sweep_runs(full_plan))
    if stage == "noise_floor":
        noise_plan = run_study.make_noise_plan(spec, full_plan)
        return StagePlan(noise_plan, choices, run_study.noise_runs(spec, full_plan, choices))
    runs = plan.reported_runs(full_plan, choices, prior.sweep_hash)
    return StagePlan(full_plan, choices, runs)


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
