"""Plans and tuning: what is expanded, hashed, refused, and what a sweep says."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from errors import ConfigError, DataError
from protocol.statistics.power import NoiseFloor, detectable_difference
from protocol.study import plan as plans
from protocol.study import time_estimate
from protocol.study.cells import Cell, CellKey, make_cells
from protocol.study.declaration import Declaration, Tuning, TuningChoice
from protocol.study.plan import format_plan
from protocol.study.study import Study
from protocol.study.study_plan import StudyPlan
from protocol.study.time_estimate import CellSeconds, estimate_time
from protocol.study.tuning import (
    SweepPoint,
    TuningTrial,
    extend_grids,
    learning_rate_grid,
    make_sweep_curve,
    select_trial,
)
from settings.cli import load_config
from settings.tree import freeze, from_json
from training.settings import Settings, resolve

CONFIGS = Path(__file__).parents[2] / "configs"
DECLARED = Declaration("training_flops", "test/bits_per_byte", 0.01, (("dense", "moe"),))
TRIALS = (
    TuningTrial("decay", {"optimizer.weight_decay": 0.2}),
    TuningTrial("warm", {"optimizer.warmup": 50}),
)
TUNING = Tuning("valid/bits_per_byte", seeds=(1000, 1001), trials=TRIALS)


def read(name):
    return resolve(freeze(Settings, load_config(f"{CONFIGS}/{name}.py:tiny", Settings)), 365)


@pytest.fixture(scope="module")
def cells():
    return tuple(make_cells({"tiny": {"dense": read("dense"), "moe": read("moe")}}, ["causal_lm"]))


@pytest.fixture(scope="module")
def plan(cells):
    floor = NoiseFloor(0.01, 20, "results/floor.json", 3.1e13)
    return StudyPlan(cells, DECLARED, (0, 1, 2), TUNING, {"dense": floor})


# Tuning.


def swept(scores, centre=1e-3, better="lower"):
    """One seed a rate, around `centre`."""
    rates = learning_rate_grid(centre, 5)
    return make_sweep_curve(
        {rate: [score] for rate, score in zip(rates, scores, strict=True)}, better
    )


def test_rates_are_a_factor_two_apart():
    assert learning_rate_grid(4e-3) == (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
    assert len(learning_rate_grid(1.0, 7)) == 7
    for count in (3, 6):
        with pytest.raises(ConfigError, match="odd count of 5 or more"):
            learning_rate_grid(1e-3, count)


def test_a_curve_tells_the_best_rate_and_its_neighbours():
    found = swept([3.0, 2.5, 2.4, 2.6, math.nan])
    assert found.best_rate == 1e-3 and found.best_at_edge is None
    assert found.neighbor_scores == {5e-4: 2.5, 2e-3: 2.6}
    assert found.scores == (3.0, 2.5, 2.4, 2.6, None) and found.n_diverged == 1
    assert swept([0.1, 0.2, 0.4, 0.3, 0.2], better="higher").best_rate == 1e-3


def test_a_rate_at_which_any_seed_diverged_is_not_chosen():
    rates = learning_rate_grid(1e-3)
    results = {rate: [2.5, 2.6] for rate in rates} | {rates[1]: [2.0, math.inf]}
    found = make_sweep_curve(results | {rates[2]: [2.3, 2.3]})
    assert found.best_rate == rates[2] and found.scores[1] is None and found.n_diverged == 1


def test_an_optimum_at_the_edge_extends_all_grids_equally():
    inner, high = swept([3.0, 2.5, 2.4, 2.45, 2.6]), swept([3.0, 2.9, 2.8, 2.7, 2.6], 4e-3)
    assert high.best_at_edge == "high"
    assert extend_grids({"a": inner}) == {}
    assert extend_grids({"a": inner, "b": high}) == {"a": 1.25e-4, "b": 32e-3}
    dead = swept([math.nan] * 5)
    assert dead.best_rate is None and dead.neighbor_scores == {}
    assert extend_grids({"b": dead}) == {"b": 1.25e-4}
    assert extend_grids({"b": high}, max_rates=5) == {}
    longer = make_sweep_curve({r: [1.0] for r in learning_rate_grid(1.0, 7)})
    with pytest.raises(DataError, match=r"have \[5, 7\] rates"):
        extend_grids({"a": inner, "b": longer})


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({1.0: [1], 2.0: [1], 4.0: [1], 8.0: [1]}, "must be 5 or more"),
        ({1.0: [1], 2.0: [1], 4.0: [1], 8.0: [1], 24.0: [1]}, "a factor 2 apart"),
        ({1.0: [1], 2.0: [1], 4.0: [1, 2], 8.0: [1], 16.0: [1]}, "same seeds"),
    ],
)
def test_half_a_sweep_is_refused(results, message):
    with pytest.raises(DataError, match=message):
        make_sweep_curve(results)


def test_a_further_trial_is_picked_where_it_is_better():
    assert select_trial(2.5, {"decay": [2.6, 2.6], "warm": [2.4, 2.5]}) == "warm"
    assert select_trial(2.5, {"decay": [2.6], "warm": [math.nan]}) == ""
    assert select_trial(0.5, {"decay": [0.6]}, "higher") == "decay"


# Plans.


def test_a_sweep_is_cells_times_rates_times_seeds(plan):
    runs = plans.sweep_runs(plan)
    assert len(runs) == 2 * 5 * 2 == len({run.name for run in runs})
    assert {run.learning_rate for run in runs} == set(learning_rate_grid(4e-3))
    for run in runs:
        settings = from_json(Settings, json.loads(json.dumps(run.settings)))
        assert settings.optimizer.learning_rate == run.learning_rate and settings.seed == run.seed
        assert run.seed in (1000, 1001) and run.role == "tuning" == run.study["role"]
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", run.name)
    assert runs[0].name == "dense_causal_lm_tiny_lr0.001_seed1000_tuning"
    key = CellKey("moe", "causal_lm", "tiny")
    assert [r.learning_rate for r in plans.sweep_runs(plan, {key: (SweepPoint(32e-3),)})] == [
        32e-3
    ] * 2


def test_further_trials_change_what_they_declare(plan):
    best = {cell.key: 2e-3 for cell in plan.cells}
    runs = plans.trial_runs(plan, best)
    assert len(runs) == 2 * 2 * 2
    by_trial = {run.trial_name: from_json(Settings, run.settings).optimizer for run in runs}
    assert (by_trial["decay"].weight_decay, by_trial["decay"].warmup) == (0.2, 0.02)
    assert (by_trial["warm"].weight_decay, by_trial["warm"].warmup) == (0.1, 50)
    assert {run.learning_rate for run in runs} == {2e-3}


def test_reported_runs_say_what_was_declared(plan):
    picks = {cell.key: TuningChoice(2e-3, 14, TRIALS[0]) for cell in plan.cells}
    runs = plans.reported_runs(plan, picks)
    assert [run.seed for run in runs] == [0, 1, 2] * 2
    run = runs[0]
    assert from_json(Settings, run.settings).optimizer.weight_decay == 0.2
    assert (
        runs[3].study["value"] == run.training_flops < runs[3].training_flops
    )  # one value for both
    assert (
        run.training_flops == 3 * 4_096_000 * 2_552_320
    )  # counted by hand in test_protocol_budget.py
    assert run.study == {
        "n_comparisons": 1,
        "plan": plan.digest,
        "candidate": "dense",
        "axis": "training_flops",
        "value": run.training_flops,
        "metric": "test/bits_per_byte",
        "better": "lower",
        "margin": 0.01,
        "comparisons": [["dense", "moe"]],
        "seeds": [0, 1, 2],
        "role": "reported",
        "reference": "",
        "is_paired": False,
        "looks": [],
        "tuning_seeds": [1000, 1001],
        "tuning_trials": 14,
        "choices": run.study["choices"],
    }


def test_the_wrong_end_of_a_known_metric_is_refused(plan):
    """Otherwise the board would exclude runs that took days."""
    wrong = replace(plan, declaration=replace(DECLARED, metric="test/recall@1"))
    with pytest.raises(
        ConfigError, match=r"but higher test/recall@1 is better; set better='higher'"
    ):
        plans.sweep_runs(wrong)
    own = replace(plan, declaration=replace(DECLARED, metric="test/own", better="higher"))
    assert plans.sweep_runs(own)[0].study["better"] == "higher"


def test_unequal_tuning_is_refused(plan):
    picks = {cell.key: TuningChoice(2e-3, 14 + i) for i, cell in enumerate(plan.cells)}
    with pytest.raises(ConfigError, match=r"had \[14, 15\] tuning trials"):
        plans.reported_runs(plan, picks)
    with pytest.raises(ConfigError, match="moe/causal_lm/tiny has no tuning choice"):
        plans.reported_runs(plan, {plan.cells[0].key: TuningChoice(2e-3, 14)})


def test_the_hash_is_of_what_was_declared(plan, cells):
    again = StudyPlan(cells, DECLARED, (0, 1, 2), TUNING)  # the floor is an outcome
    assert again.digest == plan.digest and len(plan.digest) == 64
    other = replace(cells[1].settings, train=replace(cells[1].settings.train, steps=999))
    changed = [
        StudyPlan(cells, replace(DECLARED, margin=0.02), (0, 1, 2), TUNING),
        StudyPlan(cells, replace(DECLARED, metric="test/nats"), (0, 1, 2), TUNING),
        StudyPlan(cells, replace(DECLARED, axis="tokens"), (0, 1, 2), TUNING),
        StudyPlan(cells, replace(DECLARED, comparisons=(("moe", "dense"),)), (0, 1, 2), TUNING),
        StudyPlan(cells, DECLARED, (0, 1, 2, 3), TUNING),
        StudyPlan(cells, DECLARED, (0, 1, 2), replace(TUNING, n_rates=7)),
        StudyPlan(cells, DECLARED, (0, 1, 2), replace(TUNING, trials=TRIALS[:1])),
        StudyPlan((cells[0], cells[1]._replace(settings=other)), DECLARED, (0, 1, 2), TUNING),
        StudyPlan((cells[0], cells[1]._replace(budget=3.14e13)), DECLARED, (0, 1, 2), TUNING),
        StudyPlan(cells, DECLARED, (0, 1, 2)),
    ]
    assert len({plan.digest, *(p.digest for p in changed)}) == len(changed) + 1


def test_cells_of_a_group_cost_the_same(plan, cells):
    # covers C17
    short = replace(cells[1].settings, train=replace(cells[1].settings.train, steps=900))
    unequal = (cells[0], cells[1]._replace(settings=short))
    with pytest.raises(ConfigError, match=r"moe/causal_lm/tiny has training_flops .* -9.64% from"):
        replace(plan, cells=unequal)
    with pytest.raises(ConfigError, match=r"has tokens .* -10.00% from"):
        replace(plan, cells=unequal, declaration=replace(DECLARED, axis="tokens"))
    replace(plan, cells=(cells[0], unequal[1]._replace(size="other")))
    timed = replace(DECLARED, axis="wall_clock")
    with pytest.raises(ConfigError, match="no seconds as its budget"):
        replace(plan, declaration=timed)
    measured = tuple(cell._replace(budget=60.0) for cell in cells)
    assert (
        plans.sweep_runs(replace(plan, cells=measured, declaration=timed))[0].study["value"] == 60
    )


def test_copies_are_found_whatever_their_seed_and_name(cells):
    dense = cells[0].settings
    twin = Cell("twin", "causal_lm", "tiny", replace(dense, seed=7))
    found = StudyPlan((*cells, twin), DECLARED, (0, 1, 2))
    assert found.duplicates() == [("dense", "twin")]
    assert cells[0].digest == twin.digest != cells[1].digest
    assert "dense and twin have the same settings: never ranked" in format_plan(found, [], {})


def test_the_plan_says_what_it_can_show_before_anything_runs(plan, cells):
    runs = plans.sweep_runs(plan)
    seconds = {cell.key: CellSeconds(0.1, start=12.0, evaluation=30.0) for cell in cells}
    hours = estimate_time(runs, seconds)
    assert hours[:3] == pytest.approx((20 * 1000 * 0.1 / 3600, 20 * 30 / 3600, 20 * 12 / 3600))
    text = format_plan(plan, runs, seconds)
    flops = sum(run.training_flops for run in runs)
    assert text[0] == (
        f"plan {plan.digest[:12]}: 2 cells (candidate x objective x size), 20 runs "
        f"(20 for tuning), {flops:.3g} training FLOPs, about 47 minutes (training 33 minutes, "
        "evaluation 10 minutes, start and compilation 4 minutes)"
    )
    bound = NoiseFloor(0.01, 20).upper_bound()
    assert plan.detectable_difference == detectable_difference(bound, bound, 3)
    assert text[2] == (
        "smallest claimable difference: 0.03 bits per byte, found in half of such studies (n=3, 1 "
        "comparison); noise floor: sigma of dense 0.01 (at most 0.012) from 20 runs each "
        "(results/floor.json); moe assumed no noisier than these"
    )
    far = replace(plan, noise_floors={"dense": NoiseFloor(0.01, 20, "", 1e12)})
    assert "its runs have 1e+12 FLOPs; the runs of this plan have 31" in format_plan(far, [], {})[2]
    assert "no noise floor is recorded" in format_plan(replace(plan, noise_floors={}), [], {})[2]
    assert "unknown time" in format_plan(plan, runs, {})[0]
    shares = {cell.key: 0.1 for cell in cells}
    hours = estimate_time(runs, {}, 1e11, shares)
    assert hours.training == pytest.approx(flops / 0.25e11 / 3600)
    assert hours.evaluation == pytest.approx(hours.training / 10)
    assert hours.start == pytest.approx(2 * 15 / 3600)  # each cell compiles once
    assert hours.total == pytest.approx(sum(hours[:3]))
    assert (
        "assumed: 25 % of this machine's 100 GFLOP/s for large matrix products, 15 s to compile "
        "each cell)" in format_plan(plan, runs, {}, 1e11, shares)[0]
    )
    assert format_plan(plan, runs, seconds, 1e11)[0] == text[0]


def test_hours_are_those_of_runs_that_were_logged(plan, tmp_path):
    runs = plans.sweep_runs(plan)
    for run, times in zip(runs, ([0.5, 0.1, 0.2], [0.3]), strict=False):
        rows = [
            {"step": 10 * i, "step_seconds": t, "seconds": 4.0 + 10 * i * t}
            for i, t in enumerate(times, 1)
        ]
        text = "\n".join(json.dumps(row) for row in [*rows, {"step": 9, "loss": 1.0}])
        (tmp_path / run.name / f"eval/{run.steps}").mkdir(parents=True)
        (tmp_path / run.name / "metrics.jsonl").write_text(text + '\n{"step": 10, "torn')
        for task in ("a", "b"):
            path = tmp_path / run.name / f"eval/{run.steps}/{task}.json"
            path.write_text(json.dumps({"task": task, "seconds": 3 * times[0]}))
    assert runs[0].cell_key == runs[1].cell_key
    seconds = time_estimate.read_cell_seconds(runs, tmp_path)
    assert seconds == {runs[0].cell_key: pytest.approx((0.25, 4.0, 2.4))}
    assert estimate_time(runs, seconds) is None  # of the other cell nothing is known
    assert time_estimate.measure_matmul_flops("float32") > 1e6


def test_every_objective_and_size_counts_as_a_comparison(cells):
    sizes = {"a": {"dense": cells[0].settings}, "b": {"dense": cells[0].settings}}
    many = make_cells(sizes, ["causal_lm", "masked_lm"])
    assert [c.key for c in many][:2] == [("dense", "causal_lm", "a"), ("dense", "masked_lm", "a")]
    assert many[1].settings.objective == "masked_lm"
    again = [cell._replace(candidate="moe") for cell in many]
    floor = NoiseFloor(0.01, 20)
    plan = StudyPlan((*many, *again), DECLARED, (0, 1, 2), noise_floors=dict(dense=floor))
    assert plan.n_comparisons == 4
    assert plan.detectable_difference == detectable_difference(*[floor.upper_bound()] * 2, 3, 4)


def test_a_plan_of_one_candidate_compares_nothing(plan):
    """It is the plan of a scaling law; noise floors say nothing about it."""
    alone = replace(plan, cells=plan.cells[:1], declaration=replace(DECLARED, comparisons=()))
    assert alone.n_comparisons == 0 and alone.detectable_difference is None
    lines = plans.format_plan(alone, plans.sweep_runs(alone), {})
    assert "one candidate: nothing is compared, and its scaling law can be fitted" in lines


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": ()}, "0 cells"),
        ({"declaration": replace(DECLARED, comparisons=(("dense", "mo"),))}, "did you mean 'moe'"),
        ({"declaration": replace(DECLARED, comparisons=())}, "declares no comparison"),
        ({"declaration": replace(DECLARED, margin=-1.0)}, "margin is -1.0"),
        ({"seeds": ()}, "one or more"),
        ({"seeds": (0, 0, 1)}, "must be distinct"),
        ({"seeds": (0, 1000)}, "tuning runs are never reported"),
        ({"tuning": replace(TUNING, trials=(TuningTrial("../x", {}),))}, "the name '../x'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(plan, change, message):
    with pytest.raises(ConfigError, match=message):
        replace(plan, **change)
    with pytest.raises(ConfigError, match="2 cells, 1 of them distinct"):
        replace(plan, cells=(plan.cells[0],) * 2)
    with pytest.raises(ConfigError, match="declares no tuning"):
        plans.sweep_runs(replace(plan, tuning=None))
    long = plan.cells[0]._replace(size="s" * 120)
    with pytest.raises(ConfigError, match="must be at most 128 letters"):
        plans.sweep_runs(replace(plan, cells=(long, plan.cells[1])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": (-3e11,)}, r"study.budgets\[0\] is -300000000000.0, must be > 0"),
        ({"budgets": (math.nan,)}, r"study.budgets\[0\] is nan, must be a finite number"),
        ({"budgets": ("3e11",)}, r"study.budgets\[0\] is '3e11' \(str\), must be a number"),
        ({"tokens_per_param": 0}, "study.tokens_per_param is 0.0, must be > 0"),
        ({"tokens_per_param": {"a": -1}}, r"study.tokens_per_param\['a'\] is -1.0, must be > 0"),
        ({"margin": "0.1"}, "study.margin is '0.1'"),
        ({"seeds": (0, -1)}, r"study.seeds\[1\] is -1, must be >= 0"),
        ({"seeds": 3}, r"study.seeds is 3 \(int\), must be a tuple"),
        ({"better": "up"}, "study.better is 'up'; known: lower, higher"),
        ({"objectives": "causal_lm"}, "study.objectives is 'causal_lm'"),
        ({"objectives": ()}, "objectives are empty; declare one or more, or leave the default"),
        ({"tuning_seeds": ()}, "tuning_seeds are empty; declare one or more"),
        ({"candidates": {"a": 3, "b": {}}}, r"study.candidates\['a'\] is 3, must be a section"),
        ({"comparisons": (("a", "b"), ("b", "a"))}, "must be of two candidates, each pair once"),
        ({"comparisons": (("a", "a"),)}, "must be of two candidates, each pair once"),
        ({"search": "x"}, r"study.search is 'x' \(str\), must be SearchSpace"),
    ],
)
def test_a_study_of_wrong_values_is_refused_where_it_is_declared(changes, message):
    fields = {"candidates": {"a": {}, "b": {}}, "reference": "a", "comparisons": (("a", "b"),)}
    with pytest.raises(ConfigError, match=message):
        Study(**{**fields, "margin": 0.01, **changes})
    assert Study(**fields, margin=0, knob={"a": "x"}, search=None, tokens_per_param=20).margin == 0
