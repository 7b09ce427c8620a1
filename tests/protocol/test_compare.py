"""Studies: from a config to a plan, run by run; prior records are used or refused."""

import dataclasses
import json
import math
import re

import pytest

import compare
from errors import ConfigError, DataError, NonFiniteError, PreemptedError
from protocol.records.plan_file import check_plan, read_plans
from protocol.records.safe_read import CheckedFields
from protocol.records.study_record import parse_study
from protocol.statistics.isoflop import fit_minima
from protocol.statistics.power import NoiseFloor, detectable_difference_of_minima
from protocol.statistics.scaling_law import Point
from protocol.study import budget, plan_record, run_study, step_timing, study
from protocol.study import plan as plans
from protocol.study.cells import CellKey
from protocol.study.prior_results import load_prior_results
from protocol.study.study import Study
from training.settings import EvalConfig, Settings, TrainConfig

VOCAB = 300
SHARED = Settings(
    model=dataclasses.replace(Settings().model, width=64, depth=2),
    train=TrainConfig(steps=10, batch_size=2, seq_len=32),
    eval=EvalConfig(tasks=("bits_per_byte",)),
)
STUDY = Study(
    candidates={
        "dense": {},
        "wide": {"model.attention.heads": 2, "model.mlp.width": 512},
        "moe": {"model.layers": ("attention+moe",), "model.moe.width": 64},
    },
    reference="dense",
    comparisons=(("wide", "dense"), ("moe", "dense")),
    margin=0.01,
)


@pytest.fixture
def made():
    return study.make_plan(STUDY, SHARED, VOCAB)


def silent(text, **how):
    pass


def test_candidates_are_made_equal_and_the_rest_is_told(made):
    flops = [one.costs.training_flops for one in made.matched.values()]
    assert max(flops) / min(flops) < 1.01
    told = study.describe_unmatched(made)
    assert len(told) == 3 and "; relative costs: params" in told[2]
    assert " %" in told[2] and " from the reference; " in told[2]
    assert told[0].endswith("): reference")


def test_runs_are_conducted_and_one_failure_stops_no_other(made, trained, tmp_path):
    trained.failures = {"wide": ConfigError("no"), "moe": NonFiniteError("nan")}
    runs = run_study.reported_runs(made.plan, run_study.default_choices(made.plan))
    found = run_study.run_all(runs, tmp_path, silent, STUDY.metric)
    assert len(found) == 9 and len(trained.calls) == 9
    by_name = {}
    for result in found:
        by_name.setdefault(result.run.cell_key.candidate, []).append(result)
    assert [r.score for r in by_name["dense"]] == [2.0, 2.01, 2.02]
    assert all(math.isnan(r.score) and r.error_message for r in by_name["wide"])
    assert all(
        math.isnan(r.score) and not r.error_message for r in by_name["moe"]
    )  # diverged: in n
    assert {study["plan"] for _, _, study in trained.calls} == {made.plan.digest}
    assert {s.eval.splits for _, s, _ in trained.calls} == {("test",)}
    assert len({s.train.compile_cache for _, s, _ in trained.calls}) == 1


def test_a_stop_ends_the_study(made, trained, tmp_path):
    trained.failures = {"dense": PreemptedError("asked to")}
    with pytest.raises(PreemptedError):
        run_study.run_all(
            run_study.reported_runs(made.plan, run_study.default_choices(made.plan)),
            tmp_path,
            silent,
            STUDY.metric,
        )


def test_tuning_chooses_on_valid_and_is_taken_for_these_settings_alone(made, trained, tmp_path):
    def valley(settings):
        """The best rate is twice the middle of the grid."""
        return 3 + abs(math.log2(settings.optimizer.learning_rate / 6e-3))

    trained.scores = valley
    tree = run_study.run_tuning(made.plan, tmp_path / "runs", silent)
    assert {s.eval.splits for _, s, _ in trained.calls} == {("valid",)}
    assert {s.seed for _, s, _ in trained.calls} == {1000}
    assert [cell["learning_rate"] for cell in tree["cells"]] == pytest.approx([6e-3] * 3)
    run_study.write_record(tree, tmp_path / "sweep.json")
    known = load_prior_results(str(tmp_path), made.plan)
    assert {key.candidate for key in known.tuning_choices} == set(STUDY.candidates)
    assert known.sources[0].startswith(f"learning rates from {tmp_path}/sweep.json (sha256 ")
    other = study.make_plan(
        STUDY,
        dataclasses.replace(SHARED, train=TrainConfig(steps=11, batch_size=2, seq_len=32)),
        VOCAB,
    )
    assert not load_prior_results(str(tmp_path), other.plan).tuning_choices
    remat = dataclasses.replace(SHARED, model=dataclasses.replace(SHARED.model, remat="full"))
    how = study.make_plan(STUDY, remat, VOCAB)  # another way to compute the same
    assert load_prior_results(str(tmp_path), how.plan).tuning_choices == known.tuning_choices
    for cell in tree["cells"]:
        del cell["settings"]["optimizer"]["spike_sigma"]  # as if it had been added since
    run_study.write_record(tree, tmp_path / "sweep.json")
    assert load_prior_results(str(tmp_path), made.plan).tuning_choices == known.tuning_choices
    for cell in tree["cells"]:
        cell["settings"]["optimizer"]["momentun"] = 1  # as if it had been removed
    run_study.write_record(tree, tmp_path / "sweep.json")
    assert not load_prior_results(str(tmp_path), made.plan).tuning_choices


def test_an_optimum_at_the_edge_extends_all_grids(made, trained, tmp_path):
    trained.scores = lambda settings: 3 - math.log2(settings.optimizer.learning_rate)
    tree = run_study.run_tuning(made.plan, tmp_path, silent)
    assert {len(cell["curve"]["learning_rates"]) for cell in tree["cells"]} == {11}
    assert {cell["curve"]["best_at_edge"] for cell in tree["cells"]} == {
        "high"
    }  # and it is published


def test_each_candidate_has_a_noise_floor_of_its_own(made, trained, tmp_path):
    trained.scores = lambda settings: (
        2.0 + (0.01 + 0.02 * (settings.model.attention.heads == 2)) * (settings.seed)
    )
    runs = run_study.noise_runs(STUDY, made.plan, run_study.default_choices(made.plan))
    assert [run.seed for run in runs] == list(STUDY.noise_seeds) * 3
    assert {run.study["role"] for run in runs} == {"tuning"}  # never reported
    results = run_study.run_all(runs, tmp_path / "runs", silent, STUDY.metric)
    record = run_study.noise_record(results, made.plan)
    run_study.write_record(record, tmp_path / "noise.json")
    floors = load_prior_results(str(tmp_path), made.plan).noise_floors
    assert floors.keys() == STUDY.candidates.keys()
    assert floors["dense"].n_runs == 8
    assert floors["dense"].sigma == pytest.approx(0.01 * math.sqrt(6))  # of eight seeds one apart
    assert floors["wide"].sigma == pytest.approx(0.03 * math.sqrt(6))
    noisy = dataclasses.replace(made.plan, noise_floors=floors).detectable_difference
    quiet = {"dense": floors["dense"]}
    assert noisy > 1.5 * dataclasses.replace(made.plan, noise_floors=quiet).detectable_difference
    old = {"metric": record["metric"]} | record["floors"][0]  # as records had one floor
    run_study.write_record(old, tmp_path / "noise.json")
    found = load_prior_results(str(tmp_path), made.plan).noise_floors
    assert found == {"dense": floors["dense"]}


CURVES = Study(
    candidates={"mamba2": {"model.layers": ("mamba2+mlp",)}, "dense": {}},
    reference="dense",
    comparisons=(("mamba2", "dense"),),
    margin=0.01,
    match_by="isoflop",
    budgets=(1e15, 3e15, 1.25e16),  # docs/sweeps.md
)


@pytest.fixture(scope="module")
def curves():
    return study.make_plan(CURVES, Settings(), VOCAB)


def test_the_strong_comparison_is_planned_with_default_settings(curves):
    plan = curves.plan
    assert len(plan.cells) == 2 * 3 * 6
    assert plan.n_comparisons == 3  # of minima: one pair at each budget
    shapes = [(c.settings.model.width, c.settings.model.depth) for c in plan.cells]
    assert len({w for w, _ in shapes}) < len({*shapes})  # a width alone names no size
    sizes = [cell.size for cell in plan.cells if cell.candidate == "mamba2"]
    assert sizes[:2] == ["only-1e15-size1", "only-1e15-size2"] and "only-1.25e16-size6" in sizes
    runs = run_study.reported_runs(plan, run_study.default_choices(plan))
    assert len({run.name for run in runs}) == len(runs) == 108
    assert runs[0].name == "dense_causal_lm_only-1e15-size1_lr0.003_seed0"
    assert {round(run.study["value"] / 1e15, 3) for run in runs} == {1, 3, 12.5}
    assert all(abs(run.training_flops / run.study["value"] - 1) < 0.01 for run in runs)
    assert runs[0].study["isoflop_curve"] == "only-1e15"
    assert runs[0].study["n_comparisons"] == 3 and runs[0].study["role"] == "reported"
    # Runs of all lengths are scored on one part of the split, which the shortest one permits.
    settings = [cell.settings for cell in plan.cells]
    lengths = {x.train.steps * x.train.batch_size * x.train.seq_len for x in settings}
    assert len(lengths) > 1
    assert {x.eval.limit for x in settings} == {
        max(int(min(lengths) / 6), 128 * settings[0].train.seq_len)
    }
    assert (
        sum(one.cost_ratios == {n: 1 for n in one.cost_ratios} for one in curves.matched.values())
        == 18
    )
    again = run_study.noise_runs(CURVES, plan, run_study.default_choices(plan))
    middle = {CellKey(name, "causal_lm", "only-3e15-size4") for name in CURVES.candidates}
    assert {run.cell_key for run in again} == middle
    floor = dataclasses.replace(plan, noise_floors={"dense": NoiseFloor(0.01, 8)})
    bound = NoiseFloor(0.01, 8).upper_bound()
    assert floor.detectable_difference == detectable_difference_of_minima(bound, 3, 3, n_sizes=6)
    unmatched = study.describe_unmatched(curves)
    assert all(re.search(r"training FLOPs [+-]0\.\d\d % from the budget; ", x) for x in unmatched)
    assert sum(line.endswith("; reference") for line in unmatched) == 18
    told = plans.format_plan(floor, runs, {})
    assert (
        "comparisons: 3" in told[1]
        and "of minima among 6 sizes that scatter as seeds alone, n=3" in told[2]
    )


def test_an_isoflop_study_is_tuned_and_conducted(curves, trained, tmp_path):
    """From the declaration to the minima, with a loss that is known in place of training."""

    def best(flops):
        return 1.3 * math.sqrt(flops / 120)

    def loss(settings):
        own = budget.compute_run_costs(settings)
        valley = 0.05 * math.log(own.non_embedding_params / best(own.training_flops)) ** 2
        return 2 + valley + 0.001 * settings.seed

    trained.scores = lambda settings: abs(math.log2(settings.optimizer.learning_rate / 6e-3))
    run_study.write_record(
        run_study.run_tuning(curves.plan, tmp_path, silent), tmp_path / "sweep.json"
    )
    known = load_prior_results(str(tmp_path), curves.plan)
    assert len(known.tuning_choices) == 36 and {
        p.learning_rate for p in known.tuning_choices.values()
    } == {6e-3}
    trained.scores = loss
    runs = [
        r
        for r in run_study.reported_runs(curves.plan, known.tuning_choices)
        if r.cell_key.candidate == "mamba2"
    ]
    results = run_study.run_all(runs, tmp_path, silent, CURVES.metric)
    points = [
        Point(
            curves.matched[run.cell_key].costs.non_embedding_params,
            1e6,
            score,
            budget=run.study["value"],
        )
        for run, score, _ in results
    ]
    for found in fit_minima(points):
        assert not found.is_at_edge
        assert found.params == pytest.approx(best(found.budget), rel=0.02)
        assert found.loss == pytest.approx(2.001, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reference": "dens"}, "is not a candidate; did you mean 'dense'"),
        ({"axis": "params"}, "axis 'params' with match_by='isoflop'"),
        ({"match_by": "size"}, "with match_by='size', which uses the cost of the reference"),
        (
            {"match_by": "steps", "budgets": (), "knob": "model.mlp.width"},
            "does not change the size",
        ),
        ({"knob": {"dens": "model.mlp.width"}}, "knob names the candidate 'dens'; did you mean"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(CURVES, **change)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "defines no function study()"),
        ("def study():\n    return 3", "must be a protocol.study.study.Study"),
    ],
)
def test_a_config_without_a_study_is_refused(tmp_path, text, said):
    path = tmp_path / "x.py"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        study.load_study(str(path))
    assert said in str(error.value)


def test_records_of_another_metric_or_rate_are_not_taken(made, trained, tmp_path):
    """A sigma in bits per byte would be smaller than one in nats by what a token is long."""
    trained.scores = lambda settings: abs(math.log2(settings.optimizer.learning_rate / 6e-3))
    run_study.write_record(
        run_study.run_tuning(made.plan, tmp_path / "runs", silent), tmp_path / "sweep.json"
    )
    known = load_prior_results(str(tmp_path), made.plan)
    trained.scores = lambda settings: 2.0 + 0.01 * settings.seed
    runs = run_study.noise_runs(STUDY, made.plan, known.tuning_choices)
    results = run_study.run_all(runs, tmp_path / "noise", silent, STUDY.metric)
    run_study.write_record(run_study.noise_record(results, made.plan), tmp_path / "noise.json")
    assert load_prior_results(str(tmp_path), made.plan).noise_floors["dense"].n_runs == 8

    nats = dataclasses.replace(STUDY, metric="test/nats_per_token", unit="nats")
    found = load_prior_results(str(tmp_path), study.make_plan(nats, SHARED, VOCAB).plan)
    assert not found.noise_floors and found.tuning_choices == known.tuning_choices
    assert found.sources[1].endswith(
        " has the metric test/bits_per_byte, not test/nats_per_token: not used"
    )
    chosen = dataclasses.replace(STUDY, tuning_metric="valid/nats_per_token")
    found = load_prior_results(str(tmp_path), study.make_plan(chosen, SHARED, VOCAB).plan)
    assert not found.tuning_choices and "not valid/nats_per_token: not used" in found.sources[0]
    assert not found.noise_floors  # untuned, runs would have another rate than its
    assert found.sources[1].endswith(" has the learning rate 0.006, not 0.003: not used")


@pytest.mark.parametrize(
    "metric", ["test/bits_per_byte", "decode_ms_per_token@256", "valid/", "train/loss"]
)
def test_choices_are_made_on_the_validation_split_alone(metric):
    with pytest.raises(ConfigError, match="must be of the validation split"):
        study.make_plan(dataclasses.replace(STUDY, tuning_metric=metric), SHARED, VOCAB)


@pytest.mark.parametrize(
    ("change", "twice"),
    [
        ({"noise_seeds": tuple(range(8))}, r"seeds \[0, 1, 2\] are repeated among"),
        ({"noise_seeds": tuple(range(1000, 1008))}, r"seeds \[1000\] are"),
        ({"tuning_seeds": (2,)}, r"seeds \[2\] are"),
        ({"seeds": (0, 0, 1)}, r"seeds \[0\] are"),
    ],
)
def test_seeds_serve_one_purpose(change, twice):
    with pytest.raises(ConfigError, match=twice):
        dataclasses.replace(STUDY, **change)


def test_what_is_missing_is_told(made, tmp_path):
    with pytest.raises(ConfigError, match="9 is not a run of the plan; .* numbers 0 to 8"):
        run_study.select_run(
            run_study.reported_runs(made.plan, run_study.default_choices(made.plan)), 9
        )
    with pytest.raises(DataError, match="has no test/x; add the task"):
        run_study.read_score(tmp_path, 3, "test/x")
    (tmp_path / "sweep.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(DataError, match="is not a record of format 2"):
        load_prior_results(str(tmp_path), made.plan)
    with pytest.raises(ConfigError, match="give --config=FILE of a study"):
        compare.run([])


def test_keys_of_records_are_those_of_cells(made):
    assert {cell.key for cell in made.plan.cells} == {
        CellKey(name, "causal_lm", "only") for name in STUDY.candidates
    }


def test_the_plan_is_written_beside_the_runs_and_its_hashes_are_theirs(made, trained, tmp_path):
    choices = run_study.default_choices(made.plan)
    assert plan_record.write_plan(tmp_path, made.plan, choices) == []
    runs = plans.reported_runs(made.plan, choices)
    (record,) = read_plans(tmp_path).values()
    assert {(record.digest, record.choices_digest)} == {
        (run.study["plan"], run.study["choices"]) for run in runs
    }
    for run in runs:
        parsed = CheckedFields(json.loads(json.dumps(run.study)), "study")
        settings = CheckedFields(json.loads(json.dumps(run.settings)), "settings")
        found = check_plan(parse_study(parsed), settings, read_plans(tmp_path))
        assert (found.plan, found.problems) == (record, [])
    assert plan_record.write_plan(tmp_path, made.plan, choices) == []  # it is there already
    more = dataclasses.replace(made.plan, seeds=(0, 1, 2, 3))
    (line,) = plan_record.write_plan(tmp_path, more, choices)
    assert "an earlier plan with the seeds [0, 1, 2]" in line and "declare looks" in line
    assert [p.position for p in read_plans(tmp_path).values()] == [0, 1]
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(DataError, match="plan.json is damaged"):
        plan_record.write_plan(tmp_path, made.plan, choices)


def test_a_sweep_that_was_edited_is_refused(made, trained, tmp_path):
    trained.scores = lambda settings: abs(math.log2(settings.optimizer.learning_rate / 6e-3))
    tree = run_study.run_tuning(made.plan, tmp_path / "runs", silent)
    assert tree["cells"][0]["costs"]["n_runs"] == 5 and tree["cells"][0]["costs"]["training_flops"]
    tree["cells"][0]["learning_rate"] = 0.0005
    run_study.write_record(tree, tmp_path / "sweep.json")
    with pytest.raises(DataError, match=r"was edited: of dense/.* rate 0.0005 is not"):
        load_prior_results(str(tmp_path), made.plan)


def test_seconds_are_measured_once_and_matched_by_steps(trained, tmp_path, monkeypatch):
    seconds = {"dense": 0.1, "wide": 0.2, "moe": 0.05}
    rounds = []

    def measure(settings):
        name = "moe" if "moe" in settings.model.layers[0] else "dense"
        name = "wide" if settings.model.attention.heads == 2 else name
        rounds.append(name)
        return [seconds[name]] * 3

    monkeypatch.setattr(step_timing, "_measure_round", measure)
    timed = dataclasses.replace(STUDY, axis="wall_clock", match_by="steps")
    shared = dataclasses.replace(SHARED, train=TrainConfig(steps=200, batch_size=2, seq_len=32))

    def measured(candidates):
        return step_timing.measure_step_seconds(candidates, tmp_path, silent)

    first = study.make_plan(timed, shared, VOCAB, measured).plan
    steps = {cell.candidate: cell.settings.train.steps for cell in first.cells}
    assert steps == {"dense": 200, "wide": 100, "moe": 400}
    assert {run.study["value"] for run in plans.sweep_runs(first)} == {20.0}
    assert rounds == [*seconds, *reversed(seconds)]  # in alternating order
    seconds["dense"] = 9.0  # later, the machine is slow: the plan stays what it was
    assert study.make_plan(timed, shared, VOCAB, measured).plan.digest == first.digest
    with pytest.raises(ConfigError, match="set match_by to steps"):
        dataclasses.replace(timed, match_by="size")
