"""Plans and tuning: what is expanded, hashed, refused, and what a sweep says."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from errors import ConfigError, DataError
from protocol import pace
from protocol import plan as plans
from protocol.cells import Cell, Key
from protocol.plan import Declaration, Pick, Plan, Tuning, crossed, hours, lines
from protocol.power import NoiseFloor, smallest_claim
from protocol.tuning import Trial, curve, extension, grid, pick
from training.flags import load
from training.settings import Settings, resolved
from training.tree import from_json, frozen

CONFIGS = Path(__file__).parents[1] / "configs"
DECLARED = Declaration("training_flops", "test/bits_per_byte", 0.01, (("dense", "moe"),))
TRIALS = (Trial("decay", {"optimizer.weight_decay": 0.2}), Trial("warm", {"optimizer.warmup": 50}))
TUNING = Tuning("valid/bits_per_byte", seeds=(1000, 1001), trials=TRIALS)


def read(name):
    return resolved(frozen(Settings, load(f"{CONFIGS}/{name}.py:tiny", Settings)), 365)


@pytest.fixture(scope="module")
def cells():
    return tuple(crossed({"tiny": {"dense": read("dense"), "moe": read("moe")}}, ["causal_lm"]))


@pytest.fixture(scope="module")
def plan(cells):
    floor = NoiseFloor(0.01, 20, "results/floor.json", 3.1e13)
    return Plan(cells, DECLARED, (0, 1, 2), TUNING, floor)


# Tuning.


def swept(scores, centre=1e-3, better="lower"):
    """One seed a rate, around `centre`."""
    rates = grid(centre, 5)
    return curve({rate: [score] for rate, score in zip(rates, scores, strict=True)}, better)


def test_rates_are_a_factor_two_apart():
    assert grid(4e-3) == (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
    assert len(grid(1.0, 7)) == 7
    for count in (3, 6):
        with pytest.raises(ConfigError, match="odd count of 5 or more"):
            grid(1e-3, count)


def test_a_curve_tells_the_best_rate_and_its_neighbours():
    found = swept([3.0, 2.5, 2.4, 2.6, math.nan])
    assert found.best == 1e-3 and found.edge is None
    assert found.neighbours == {5e-4: 2.5, 2e-3: 2.6}
    assert found.scores == (3.0, 2.5, 2.4, 2.6, None) and found.diverged == 1
    assert swept([0.1, 0.2, 0.4, 0.3, 0.2], better="higher").best == 1e-3


def test_a_rate_at_which_any_seed_diverged_is_not_chosen():
    rates = grid(1e-3)
    results = {rate: [2.5, 2.6] for rate in rates} | {rates[1]: [2.0, math.inf]}
    found = curve(results | {rates[2]: [2.3, 2.3]})
    assert found.best == rates[2] and found.scores[1] is None and found.diverged == 1


def test_an_optimum_at_the_edge_extends_all_grids_equally():
    inner, high = swept([3.0, 2.5, 2.4, 2.45, 2.6]), swept([3.0, 2.9, 2.8, 2.7, 2.6], 4e-3)
    assert high.edge == "high"
    assert extension({"a": inner}) == {}
    assert extension({"a": inner, "b": high}) == {"a": 1.25e-4, "b": 32e-3}
    dead = swept([math.nan] * 5)
    assert dead.best is None and dead.neighbours == {}
    assert extension({"b": dead}) == {"b": 1.25e-4}
    assert extension({"b": high}, most=5) == {}
    longer = curve({r: [1.0] for r in grid(1.0, 7)})
    with pytest.raises(DataError, match=r"have \[5, 7\] rates"):
        extension({"a": inner, "b": longer})


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
        curve(results)


def test_a_further_trial_is_picked_where_it_is_better():
    assert pick(2.5, {"decay": [2.6, 2.6], "warm": [2.4, 2.5]}) == "warm"
    assert pick(2.5, {"decay": [2.6], "warm": [math.nan]}) == ""
    assert pick(0.5, {"decay": [0.6]}, "higher") == "decay"


# Plans.


def test_a_sweep_is_cells_times_rates_times_seeds(plan):
    runs = plans.sweep(plan)
    assert len(runs) == 2 * 5 * 2 == len({run.name for run in runs})
    assert {run.rate for run in runs} == set(grid(4e-3))
    for run in runs:
        settings = from_json(Settings, json.loads(json.dumps(run.settings)))
        assert settings.optimizer.learning_rate == run.rate and settings.seed == run.seed
        assert run.seed in (1000, 1001) and run.role == "tuning" == run.study["role"]
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", run.name)
    assert runs[0].name == "dense_causal_lm_tiny_lr0.001_seed1000_tuning"
    key = Key("moe", "causal_lm", "tiny")
    assert [r.rate for r in plans.sweep(plan, {key: (32e-3,)})] == [32e-3] * 2


def test_further_trials_change_what_they_declare(plan):
    best = {cell.key: 2e-3 for cell in plan.cells}
    runs = plans.further(plan, best)
    assert len(runs) == 2 * 2 * 2
    by_trial = {run.trial: from_json(Settings, run.settings).optimizer for run in runs}
    assert (by_trial["decay"].weight_decay, by_trial["decay"].warmup) == (0.2, 20)
    assert (by_trial["warm"].weight_decay, by_trial["warm"].warmup) == (0.1, 50)
    assert {run.rate for run in runs} == {2e-3}


def test_reported_runs_say_what_was_declared(plan):
    picks = {cell.key: Pick(2e-3, 14, TRIALS[0]) for cell in plan.cells}
    runs = plans.reported(plan, picks)
    assert [run.seed for run in runs] == [0, 1, 2] * 2
    run = runs[0]
    assert from_json(Settings, run.settings).optimizer.weight_decay == 0.2
    assert runs[3].study["value"] == run.flops < runs[3].flops  # one value for both
    assert run.flops == 3 * 4_096_000 * 2_552_320  # counted by hand in test_protocol_budget.py
    assert run.study == {
        "declared": 1,
        "plan": plan.digest,
        "candidate": "dense",
        "axis": "training_flops",
        "value": run.flops,
        "metric": "test/bits_per_byte",
        "better": "lower",
        "margin": 0.01,
        "comparisons": [["dense", "moe"]],
        "seeds": [0, 1, 2],
        "role": "",
        "trials": 14,
    }


def test_the_wrong_end_of_a_known_metric_is_refused(plan):
    """Else the board would bar what ran for days."""
    wrong = replace(plan, declaration=replace(DECLARED, metric="test/recall@1"))
    with pytest.raises(ConfigError, match=r"of test/recall@1 higher is; set better='higher'"):
        plans.sweep(wrong)
    own = replace(plan, declaration=replace(DECLARED, metric="test/own", better="higher"))
    assert plans.sweep(own)[0].study["better"] == "higher"


def test_unequal_tuning_is_refused(plan):
    picks = {cell.key: Pick(2e-3, 14 + i) for i, cell in enumerate(plan.cells)}
    with pytest.raises(ConfigError, match=r"had \[14, 15\] trials"):
        plans.reported(plan, picks)
    with pytest.raises(ConfigError, match="nothing was chosen for moe/causal_lm/tiny"):
        plans.reported(plan, {plan.cells[0].key: Pick(2e-3, 14)})


def test_the_hash_is_of_what_was_declared(plan, cells):
    again = Plan(cells, DECLARED, (0, 1, 2), TUNING)  # the floor is an outcome
    assert again.digest == plan.digest and len(plan.digest) == 64
    other = replace(cells[1].settings, train=replace(cells[1].settings.train, steps=999))
    changed = [
        Plan(cells, replace(DECLARED, margin=0.02), (0, 1, 2), TUNING),
        Plan(cells, replace(DECLARED, metric="test/nats"), (0, 1, 2), TUNING),
        Plan(cells, replace(DECLARED, axis="tokens"), (0, 1, 2), TUNING),
        Plan(cells, replace(DECLARED, comparisons=(("moe", "dense"),)), (0, 1, 2), TUNING),
        Plan(cells, DECLARED, (0, 1, 2, 3), TUNING),
        Plan(cells, DECLARED, (0, 1, 2), replace(TUNING, rates=7)),
        Plan(cells, DECLARED, (0, 1, 2), replace(TUNING, trials=TRIALS[:1])),
        Plan((cells[0], cells[1]._replace(settings=other)), DECLARED, (0, 1, 2), TUNING),
        Plan((cells[0], cells[1]._replace(budget=3.14e13)), DECLARED, (0, 1, 2), TUNING),
        Plan(cells, DECLARED, (0, 1, 2)),
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
    assert plans.sweep(replace(plan, cells=measured, declaration=timed))[0].study["value"] == 60


def test_copies_are_found_whatever_their_seed_and_name(cells):
    dense = cells[0].settings
    twin = Cell("twin", "causal_lm", "tiny", replace(dense, seed=7))
    found = Plan((*cells, twin), DECLARED, (0, 1, 2))
    assert found.copies() == [("dense", "twin")]
    assert cells[0].digest == twin.digest != cells[1].digest
    assert "dense and twin have the same settings: never ranked" in lines(found, [], {})


def test_the_plan_says_what_it_can_show_before_anything_runs(plan, cells):
    runs = plans.sweep(plan)
    seconds = {cell.key: 0.1 for cell in cells}
    assert hours(runs, seconds) == pytest.approx(20 * 1000 * 0.1 / 3600)
    text = lines(plan, runs, seconds)
    flops = sum(run.flops for run in runs)
    assert text[0] == (
        f"plan {plan.digest[:12]}: 2 cells, 20 runs (20 of tuning), {flops:.3g} training FLOPs, "
        "about 0.56 hours"
    )
    assert plan.claimable == smallest_claim(0.01, 3)
    assert text[2] == (
        "smallest claimable difference: 0.023 bits per byte (n=3, 1 comparison, sigma 0.01 of 20 "
        "runs in results/floor.json)"
    )
    far = replace(plan, floor=NoiseFloor(0.01, 20, "", 1e12))
    assert "sigma is borrowed: its runs have 1e+12 FLOPs, these 31" in lines(far, [], {})[2]
    assert "no noise floor is recorded" in lines(replace(plan, floor=None), [], {})[2]
    assert "unknown hours" in lines(plan, runs, {})[0]
    assert hours(runs, {}, 1e11) == pytest.approx(flops / 0.25e11 / 3600)
    assert "hours of training, if it reaches 25% of 100 GFLOP/s" in lines(plan, runs, {}, 1e11)[0]
    assert lines(plan, runs, seconds, 1e11)[0] == text[0]


def test_hours_are_those_of_steps_that_were_logged(plan, tmp_path):
    runs = plans.sweep(plan)
    for run, times in zip(runs, ([0.5, 0.1, 0.2], [0.3]), strict=False):
        (tmp_path / run.name).mkdir()
        rows = [{"step": i, "step_seconds": t} for i, t in enumerate(times)]
        text = "\n".join(json.dumps(row) for row in [*rows, {"step": 9, "loss": 1.0}])
        (tmp_path / run.name / "metrics.jsonl").write_text(text + '\n{"step": 10, "torn')
    assert runs[0].key == runs[1].key
    assert pace.steps(runs, tmp_path) == {runs[0].key: pytest.approx(0.25)}
    assert hours(runs, pace.steps(runs, tmp_path)) is None  # of the other cell nothing is known
    assert pace.products("float32") > 1e6


def test_every_objective_and_size_counts_as_a_comparison(cells):
    sizes = {"a": {"dense": cells[0].settings}, "b": {"dense": cells[0].settings}}
    many = crossed(sizes, ["causal_lm", "masked_lm"])
    assert [c.key for c in many][:2] == [("dense", "causal_lm", "a"), ("dense", "masked_lm", "a")]
    assert many[1].settings.objective == "masked_lm"
    again = [cell._replace(candidate="moe") for cell in many]
    floor = NoiseFloor(0.01, 20)
    plan = Plan((*many, *again), DECLARED, (0, 1, 2), floor=floor)
    assert plan.comparisons == 4
    assert plan.claimable == smallest_claim(0.01, 3, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": ()}, "0 cells"),
        ({"declaration": replace(DECLARED, comparisons=(("dense", "mo"),))}, "did you mean 'moe'"),
        ({"declaration": replace(DECLARED, comparisons=())}, "declares no comparison"),
        ({"declaration": replace(DECLARED, margin=-1.0)}, "margin is -1.0"),
        ({"seeds": ()}, "one or more"),
        ({"seeds": (0, 0, 1)}, "must be distinct"),
        ({"seeds": (0, 1000)}, "what was tuned on is never reported"),
        ({"tuning": replace(TUNING, trials=(Trial("../x", {}),))}, "the name '../x'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(plan, change, message):
    with pytest.raises(ConfigError, match=message):
        replace(plan, **change)
    with pytest.raises(ConfigError, match="2 cells, 1 of them distinct"):
        replace(plan, cells=(plan.cells[0],) * 2)
    with pytest.raises(ConfigError, match="declares no tuning"):
        plans.sweep(replace(plan, tuning=None))
    long = plan.cells[0]._replace(size="s" * 120)
    with pytest.raises(ConfigError, match="over 128 characters"):
        plans.sweep(replace(plan, cells=(long, plan.cells[1])))
