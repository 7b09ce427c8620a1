"""Tuning by search: trials, what they select, what they cost, and how far others could move it."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import board_runs as runs
import numpy as np
import pytest
from test_board import boarded, only
from test_board_attacks import VALUES, write_study
from test_compare import SHARED, STUDY, VOCAB, silent

import compare
import leaderboard
from benchmarks.simulations import tuning_calibration
from errors import ConfigError, DataError
from protocol.board import sentences
from protocol.records.safe_read import CheckedFields
from protocol.records.tuning_record import read_trials
from protocol.statistics.tuning_spread import expected_best, tuned_difference
from protocol.study import plan as plans
from protocol.study import run_study, study
from protocol.study.cells import CellKey
from protocol.study.declaration import TuningChoice
from protocol.study.prior_results import load_prior_results
from protocol.study.search_space import SearchSpace, TunedChoices, TunedRange
from protocol.study.time_estimate import estimate_time
from protocol.study.tuning import TuningTrial
from settings.tree import from_json
from training.settings import Settings

RATE, DECAY, BETA2 = (f"optimizer.{name}" for name in ("learning_rate", "weight_decay", "beta2"))
SPACE = SearchSpace(
    {
        RATE: TunedRange(1e-3, 16e-3),
        DECAY: TunedRange(0.0, 0.4, "linear"),
        BETA2: TunedRange(0.9, 0.999, "log_complement"),
        "train.batch_size": TunedChoices((1, 2, 4)),
    },
    n_trials=12,
)
SEARCHED = replace(STUDY, search=SPACE, tuning_seeds=(1000, 1001))


@pytest.fixture(scope="module")
def searched():
    return study.make_plan(SEARCHED, SHARED, VOCAB).plan


def valley(settings):
    """The best settings are a rate of .004 and a decay of .1; a seed moves all trials equally."""
    optimizer = settings.optimizer
    distance = math.log2(optimizer.learning_rate / 4e-3) ** 2 + (optimizer.weight_decay - 0.1) ** 2
    return 2 + 0.1 * distance + 0.01 * (settings.seed % 10)


# Trials.


def test_a_range_is_even_on_its_scale():
    assert TunedRange(1e-3, 1e-1).value(0.5) == pytest.approx(1e-2)
    assert TunedRange(0.0, 0.4, "linear").value(0.25) == pytest.approx(0.1)
    assert TunedRange(0.9, 0.999, "log_complement").value(0.5) == pytest.approx(0.99)
    assert [TunedChoices((1, 2, 4)).value(x) for x in (0.0, 0.34, 0.99, 1.0)] == [1, 2, 4, 4]


def test_all_candidates_get_the_same_even_trials_with_the_same_tokens(searched):
    runs_of = {}
    for run in plans.sweep_runs(searched):
        runs_of.setdefault(run.cell_key.candidate, []).append(from_json(Settings, run.settings))
    assert {len(of_one) for of_one in runs_of.values()} == {12 * 2}
    tuned = [
        [(s.optimizer, s.train.batch_size, s.train.steps, s.seed) for s in of_one]
        for of_one in runs_of.values()
    ]
    assert tuned[0] == tuned[1] == tuned[2]
    assert {(batch, steps) for _, batch, steps, _ in tuned[0]} == {(1, 20), (2, 10), (4, 5)}
    rates = sorted({optimizer.learning_rate for optimizer, *_ in tuned[0]})
    assert rates[0] >= 1e-3 and rates[-1] <= 16e-3 and len(rates) == 12
    # Halton points of base 2: each quarter of the range has 3 of 12 points, give or take one.
    quarters = np.floor(np.log2(np.array(rates) / 1e-3))
    assert all(2 <= np.sum(quarters == k) <= 4 for k in range(4))
    other = replace(SPACE, seed=1)
    assert other.trials(SHARED) != SPACE.trials(SHARED)
    assert replace(searched, tuning=replace(searched.tuning, search=other)).digest != (
        searched.digest
    )


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (
            {"model.mlp.width": TunedRange(128, 512)},
            r"trial\d+ of the search gives .* training_flops",
        ),
        ({"train.steps": TunedRange(10, 20)}, "a search cannot vary train.steps"),
        ({"data.max_documents": TunedRange(10, 20)}, "a search cannot vary data.max_documents"),
        ({"model.remat": TunedChoices(("none", "full"))}, "a search cannot vary model.remat"),
        ({"optimizer.beta3": TunedRange(0.1, 0.2)}, "unknown key config.optimizer.beta3"),
        ({"train.batch_size": TunedChoices((2, 3))}, "batch_size 3, of which no whole number"),
        ({}, "a search of 0 settings"),
    ],
)
def test_a_search_that_cannot_be_is_refused(space, said):
    with pytest.raises(ConfigError, match=said):
        study.make_plan(replace(SEARCHED, search=SearchSpace(space, n_trials=5)), SHARED, VOCAB)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: TunedRange(0.0, 1.0), "from above 0 on a log scale"),
        (lambda: TunedRange(0.9, 1.0, "log_complement"), "to below 1 on a log_complement scale"),
        (lambda: TunedRange(2.0, 1.0, "linear"), "must rise"),
        (lambda: TunedRange(1.0, 2.0, "lin"), "'lin' of a tuned range is unknown; .*'linear'"),
        (lambda: TunedChoices((2,)), "2 or more different values"),
        (lambda: SearchSpace(SPACE.settings, n_trials=4), "4 trials must have .* 5 to 256 trials"),
        (lambda: SearchSpace(SPACE.settings, n_trials=300), "300 trials must have"),
    ],
)
def test_a_range_that_cannot_be_is_refused(build, said):
    with pytest.raises(ConfigError, match=said):
        build()


def test_a_search_needs_two_tuning_seeds_and_no_further_trials():
    for changes, said in (
        ({"tuning_seeds": (1000,)}, r"tuning seeds \[1000\], must have 2 or more"),
        ({"tuning_trials": (TuningTrial("x", {}),)}, r"\['x'\] stand beside a search"),
    ):
        with pytest.raises(ConfigError, match=said):
            study.make_plan(replace(SEARCHED, **changes), SHARED, VOCAB)


def test_the_plan_says_what_is_tuned_and_fixed_and_what_it_costs(searched):
    tuned, fixed = plans.format_plan(searched, [], {})[3:5]
    flops = sum(run.training_flops for run in plans.sweep_runs(searched))
    for part in (
        "tuned: optimizer.learning_rate 0.001 to 0.016 (log), optimizer.weight_decay 0 to 0.4 ",
        "optimizer.beta2 0.9 to 0.999 (log of 1 - value), train.batch_size 1 or 2 or 4, ",
        "train.steps so that the tokens stay equal; 12 scrambled Halton points (seed 0)",
        "each trial with seeds 1000 and 1001, scored by the mean valid/bits_per_byte: 72 runs",
        f"{flops:.3g} training FLOPs, 8 times those of the reported runs",
    ):
        assert part in tuned
    assert "beta1 0.9, " in fixed and "warmup 0.0, " in fixed
    assert not any(name in fixed for name in ("weight_decay", "beta2", "learning_rate", "batch"))
    grid = study.make_plan(STUDY, SHARED, VOCAB).plan
    tuned, fixed = plans.format_plan(grid, [], {})[3:5]
    assert "optimizer.learning_rate at 5 rates or more, a factor 2 apart; each trial" in tuned
    assert "15 runs" in tuned and "weight_decay 0.1" in fixed and "train.batch_size 2" in fixed
    # A rate and a decay are inputs of a compiled step; another batch or beta2 compiles again.
    decays = SearchSpace({RATE: TunedRange(1e-3, 1e-2), DECAY: TunedRange(0.01, 0.1)}, 5)
    for space, n_programs in ((decays, 3), (SPACE, 3 * 12)):
        plan = replace(searched, tuning=replace(searched.tuning, search=space))
        hours = estimate_time(plans.sweep_runs(plan), {}, 1e11)
        assert hours.start == pytest.approx(n_programs * 15 / 3600)


# What a search selects.


def test_the_best_trial_over_both_seeds_is_reported(searched, trained, tmp_path):
    trained.scores = valley
    told = []
    tree = run_study.run_tuning(searched, tmp_path / "runs", lambda text, **how: told.append(text))
    assert {s.seed for _, s, _ in trained.calls} == {1000, 1001}
    by_trial = {
        name.partition("_seed")[0]: settings
        for name, settings, _ in trained.calls
        if name.startswith("dense")
    }
    best = min(by_trial.values(), key=valley)
    cell = tree["cells"][0]
    assert cell["learning_rate"] == best.optimizer.learning_rate
    assert cell["overrides"] == {
        DECAY: best.optimizer.weight_decay,
        BETA2: best.optimizer.beta2,
        "train.batch_size": best.train.batch_size,
        "train.steps": best.train.steps,
    }
    assert (cell["n_trials"], cell["costs"]["n_runs"]) == (12, 24)
    index = [x["name"] for x in cell["curve"]["trials"]].index(cell["trial_name"])
    assert cell["curve"]["seed_scores"][index] == [valley(best) - 0.01 * 1, valley(best)]
    run_study.write_record(tree, tmp_path / "sweep.json")
    known = load_prior_results(str(tmp_path), searched)
    assert known.sources[0].startswith("tuned settings from ")
    reported = plans.reported_runs(searched, known.tuning_choices, known.sweep_hash)
    settings = from_json(Settings, reported[0].settings)
    assert settings.optimizer == best.optimizer and settings.train == best.train
    assert reported[0].study["tuned_settings"] == sorted(SPACE.settings)
    assert reported[0].study["tuning_trials"] == 12
    # The record of another search is not used, and an edited one is refused.
    other = replace(searched.tuning, search=replace(SPACE, seed=1))
    (source,) = load_prior_results(str(tmp_path), replace(searched, tuning=other)).sources
    assert "its tuning trial trial01 is not trial01 of the search of its plan: not used" in source
    grid = study.make_plan(STUDY, SHARED, VOCAB).plan
    (source,) = load_prior_results(str(tmp_path), grid).sources
    assert "trials are of a search, and the study declares none: not used" in source
    tree["cells"][0]["overrides"][DECAY] = 0.3
    run_study.write_record(tree, tmp_path / "sweep.json")
    with pytest.raises(DataError, match="was edited: of dense/.* not those of the best trial"):
        load_prior_results(str(tmp_path), searched)


def test_an_optimum_at_an_end_of_a_range_is_told(searched, trained, tmp_path):
    trained.scores = lambda settings: 3 - math.log2(settings.optimizer.learning_rate)
    told = []
    run_study.run_tuning(searched, tmp_path, lambda text, **how: told.append(text))
    edges = [line for line in told if "widen the range" in line]
    assert len(edges) == 3 and edges[0].startswith("dense/causal_lm/only: the best of its 12 ")
    assert "the highest optimizer.learning_rate tried (0.0" in edges[0]
    assert len(trained.calls) == 3 * 12 * 2  # a search is not extended


def test_all_trials_that_diverge_are_one_line(searched, trained, tmp_path):
    trained.scores = lambda settings: math.nan
    with pytest.raises(DataError, match="every trial of dense/causal_lm/only diverged; lower the "):
        run_study.run_tuning(searched, tmp_path, silent)


def test_unequal_trials_of_candidates_are_refused(searched):
    trials = [
        {"name": trial.name, "overrides": {k: v for k, v in trial.overrides.items() if k != RATE}}
        for trial in SPACE.trials(SHARED)
    ]
    curve = {
        "learning_rates": [trial.overrides[RATE] for trial in SPACE.trials(SHARED)],
        "scores": [2.0] * 12,
        "trials": trials,
    }
    short = {key: values[:-1] for key, values in curve.items()}
    choices = {cell.key: TuningChoice(4e-3, 12, curve=curve) for cell in searched.cells}
    assert len(plans.reported_runs(searched, choices)) == 9
    choices[CellKey("moe", "causal_lm", "only")] = TuningChoice(4e-3, 12, curve=short)
    with pytest.raises(ConfigError, match="moe/causal_lm/only: it had 11 tuning trials, its plan"):
        plans.reported_runs(searched, choices)


# The board.

RATES = [0.001, 0.002, 0.004, 0.008, 0.016]
TRIALS = [{"name": f"trial{i}", "overrides": {RATE: rate}} for i, rate in enumerate(RATES)]


def pick(scores, trials=TRIALS):
    """What a choice records of trials of rates, of which that of .004 is the best."""
    curve = {"learning_rates": [x["overrides"][RATE] for x in trials], "scores": scores}
    curve["trials"] = [{"name": x["name"], "overrides": {}} for x in trials]
    return {"n_trials": len(trials), "curve": curve}


def test_the_board_states_how_far_other_trials_could_move_a_difference(tmp_path):
    scores = {"dense": [2.5, 2.4, 2.305, 2.35, 2.6], "moe": [2.4, 2.3, 2.1, 2.9, 3.0]}
    scores["mamba2"] = [2.9, 2.8, 2.0, 2.7, 2.8]
    picks = {name: pick(of_one) for name, of_one in scores.items()}
    values = VALUES | {"mamba2": [2.28, 2.281, 2.279]}
    declared = {"search": TRIALS, "picks_of": picks, "tuned_settings": [RATE]}
    rows, group, family = only(boarded(write_study(tmp_path / "runs", values, **declared)))
    assert all(not row.problems for row in rows.values())
    text = " ".join(sentences.summarize_group(group, family).confidence)
    # Of 2 of 5 trials: 9, 7, 5, 3 and 1 of 25 draws have the best, the second, ... as their best.
    expected = (9 * 2.305 + 7 * 2.35 + 5 * 2.4 + 3 * 2.5 + 2.6) / 25
    assert (
        "dense: the best of 5 tuning trials has 2.3050; of 2 random ones, the best is expected at "
        f"{expected:.4f}." in text
    )
    assert text.count("over tunings (5 trials resampled)") == 2
    assert text.count("other trials could undo this claim") == 1
    assert "over both (95 %): other trials" in text.partition("mamba2 - dense is ")[2]
    assert "moe - dense is " in text and "widen the range" not in text


def test_the_board_excludes_a_candidate_with_other_trials_than_declared(tmp_path, capsys):
    few = pick([2.5, 2.4, 2.3, 2.4], TRIALS[:4]) | {"n_trials": 5}
    picks = {name: pick([2.5, 2.4, 2.3, 2.4, 2.6]) for name in VALUES} | {"moe": few}
    root = write_study(tmp_path / "runs", search=TRIALS, picks_of=picks, tuned_settings=[RATE])
    rows, _, _ = only(boarded(root))
    said = "it had 4 tuning trials, its plan declares a search of 5"
    assert [said in text for text in rows["moe"].exclusions] == [True] * 3
    assert not rows["moe"].is_ranked and rows["mamba2"].is_ranked
    assert leaderboard.main([str(root), "--check"]) == 65
    assert said in capsys.readouterr().out.replace("\n", " ")


def test_trials_that_cannot_be_read_say_nothing():
    def trials(**curve):
        return read_trials(CheckedFields(curve, "curve"))

    assert [x.score for x in trials(learning_rates=[0.1, 0.2], scores=["NaN", 2.0])] == [None, 2.0]
    assert trials(learning_rates=[0.1, None], scores=[1.0, 2.0]) == []
    assert trials(learning_rates=["Infinity", 0.2], scores=[1.0, 2.0]) == []
    assert trials(learning_rates=[0.1], scores=[1.0, 2.0]) == []
    assert trials(learning_rates=[0.1, 0.2], scores=[1.0, 2.0], trials=[{"name": "a"}]) == []
    assert trials(learning_rates=[0.1] * 300, scores=[1.0] * 300) == []


def test_an_optimum_at_an_end_of_what_was_tried_is_on_the_board(tmp_path):
    """Of a grid of rates too, although it was extended as far as it may be."""
    edge = {"curve": {"learning_rates": [0.001, 0.002, 0.004], "scores": [2.5, 2.4, 2.3]}}
    root = write_study(tmp_path / "runs", picks_of={"moe": edge})
    _, group, family = only(boarded(root))
    text = " ".join(sentences.summarize_group(group, family).confidence)
    assert "moe: the best of its 3 tuning trials has the highest optimizer.learning_rate" in text
    assert text.count("widen the range") == 1 and "over tunings" not in text


def test_tuned_batch_sizes_are_ranked_together_and_others_are_not(tmp_path):
    for name, train in (("a", {"batch_size": 4}), ("b", {"batch_size": 8, "steps": 50})):
        for folder, declared in (("tuned", ["train.batch_size"]), ("other", [])):
            more = {"study": {"tuned_settings": declared}, "data": name}
            model = {"layers": [f"{name}+mlp"]}
            runs.candidate(
                tmp_path / folder, name, [2.0, 2.1, 2.05], train=train, model=model, **more
            )
    rows, group, family = only(boarded(tmp_path / "tuned"))
    assert family.keys["tuning_trials"] == "5 of train.batch_size"
    assert family.keys["batch_size"] == "tuned"
    assert all(row.is_ranked for row in rows.values()) and not group.data_problems
    assert {row.data_agreement for row in rows.values()} == {
        "reference",
        "other batch size, by tuning",
    }
    assert len(boarded(tmp_path / "other").comparable_sets) == 2


# Statistics. The reference enumerates all draws.


def test_the_expected_best_is_that_of_all_draws():
    scores, n = [2.4, 2.1, None, 2.3], 3
    costs = [math.inf if x is None else x for x in scores]
    bests = [min(draw) for draw in itertools.product(costs, repeat=n)]
    finite = [x for x in bests if math.isfinite(x)]
    assert expected_best(scores, n) == pytest.approx(np.mean(finite))
    higher = [max(draw) for draw in itertools.product([0.1, 0.5, 0.4], repeat=2)]
    assert expected_best([0.1, 0.5, 0.4], 2, "higher") == pytest.approx(np.mean(higher))
    assert expected_best([None, None], 1) is None


@pytest.mark.parametrize("better", ["lower", "higher"])
@pytest.mark.parametrize("same_trials", [True, False])
def test_the_interval_over_tunings_is_that_of_all_draws(same_trials, better):
    a, b = [2.4, 2.1, 2.2, 2.5, 2.05], [1.9, 2.3, 2.2, 2.0, 2.4]
    best, draws = (min if better == "lower" else max), [*itertools.product(range(5), repeat=5)]
    left, right = (np.array([best(x[i] for i in draw) for draw in draws]) for x in (a, b))
    shifts, counts = left - right, np.ones(len(draws))
    if not same_trials:  # each draw of one with each of the other
        (left, n_left), (right, n_right) = (np.unique(x, return_counts=True) for x in (left, right))
        shifts = np.subtract.outer(left, right).ravel()
        counts = np.multiply.outer(n_left, n_right).ravel()
    shifts -= np.average(shifts, weights=counts)
    low, high = np.quantile(shifts, (0.05, 0.95), weights=counts, method="inverted_cdf")
    low, high = min(low, 0), max(high, 0)
    found = tuned_difference(0.3, 0.1, (a, b), better=better, level=0.9, same_trials=same_trials)
    assert found.tunings == pytest.approx((0.3 - high, 0.3 - low))
    assert found.seeds == pytest.approx((0.2, 0.4))
    assert found.total == pytest.approx((0.3 - math.hypot(0.1, high), 0.3 + math.hypot(0.1, low)))
    assert tuned_difference(0.3, 0.1, (a, [*b[:4], None])) is None


def test_the_interval_over_both_covers_what_the_one_over_seeds_misses():
    """The record of benchmarks/simulations/tuning_calibration.py, and a cell of it again."""
    record = json.loads((Path(__file__).parents[2] / "results/tuning_calibration.json").read_text())
    cells = [tuning_calibration.TuningCell(*[*row.values()][:4]) for row in record]
    assert tuple(cells) == tuning_calibration.CELLS
    again = tuning_calibration.simulate_cell(cells[0], 0)["coverage_percent"]
    assert again == pytest.approx(record[0]["coverage_percent"], abs=2)
    assert again["seeds"] < 88 and 93 < again["total"] < 98


# The command.

TINY = """
from protocol.study.search_space import SearchSpace, TunedRange
from protocol.study.study import Study
from training.settings import defaults


def get_config():
    c = defaults()
    c.data.tokenizer, c.checkpoint.every = "bytes", 100_000
    c.model.width, c.model.depth, c.model.attention.heads, c.model.mlp.width = 16, 1, 2, 32
    c.train.batch_size, c.train.seq_len, c.train.steps = 8, 32, 12
    c.eval.tasks, c.eval.limit, c.log.console = ("bits_per_byte",), 4096, "off"
    return c


def study():
    ranges = {
        "optimizer.learning_rate": TunedRange(1e-3, 1e-1),
        "optimizer.weight_decay": TunedRange(0.01, 0.3),
    }
    return Study(
        candidates={"dense": {}, "plain": {"model.mlp.gated": False}},
        reference="dense",
        comparisons=(("plain", "dense"),),
        margin=0.02,
        search=SearchSpace(ranges, n_trials=5),
        tuning_seeds=(1000, 1001),
        results_dir="RESULTS",
    )
"""


@pytest.mark.slow
def test_a_tiny_study_is_searched_and_reported_by_the_command(tmp_path, capsys):
    path = tmp_path / "tiny.py"
    path.write_text(TINY.replace("RESULTS", str(tmp_path / "results")))
    command = [f"--config={path}", f"--workdir={tmp_path / 'runs'}"]
    compare.run([*command, "--stage=tune"])
    record = json.loads((tmp_path / "results/sweep.json").read_text())
    assert [len(cell["curve"]["trials"]) for cell in record["cells"]] == [5, 5]
    compare.run(command)
    assert "tuned settings from" in capsys.readouterr().out.replace("\n", " ")
    rows, group, family = only(boarded(tmp_path / "runs"))
    assert rows.keys() == {"dense", "plain"} and all(not row.exclusions for row in rows.values())
    by_name = {cell["candidate"]: cell for cell in record["cells"]}
    for name, row in rows.items():
        assert row.first_run.settings[DECAY] == str(by_name[name]["overrides"][DECAY])
    text = " ".join(sentences.summarize_group(group, family).confidence)
    assert "plain - dense is" in text and "over tunings (5 trials resampled)" in text
    costs = " ".join(sentences.summarize_group(group, family).costs)
    assert costs.count("(10 tuning and noise floor runs ") == 2
