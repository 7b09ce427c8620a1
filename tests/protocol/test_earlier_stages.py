"""Tests of studies whose runs have earlier stages: their order, their plan and their cost."""

import dataclasses
import json

import board_runs as runs
import pytest
from test_board import boarded, edit, only

from errors import ConfigError, NonFiniteError
from protocol.records.plan_file import check_plan, read_plans
from protocol.records.safe_read import CheckedFields
from protocol.records.study_record import parse_study
from protocol.study import plan, plan_record, run_study, study
from protocol.study.prior_results import load_prior_results
from protocol.study.search_space import SearchSpace, TunedChoices, TunedRange
from protocol.study.study import Study
from training.run.atomic_io import write_json
from training.settings import EvalConfig, Settings, TrainConfig

SHARED = Settings(
    model=dataclasses.replace(Settings().model, width=64, depth=2),
    train=TrainConfig(steps=10, batch_size=2, seq_len=32),
    eval=EvalConfig(tasks=("bits_per_byte",)),
)
STUDY = Study(
    candidates={"dense": {}, "moe": {"model.layers": ("attention+moe",)}},
    reference="dense",
    comparisons=(("moe", "dense"),),
    margin=0.01,
    earlier_stages={
        "base": {"train.steps": 30, "data.source": "text", "data.path": "a.txt"},
        "chat": {"optimizer.learning_rate": 1e-4},
    },
)


@pytest.fixture(scope="module")
def made():
    return study.make_plan(STUDY, SHARED, 300).plan


@pytest.fixture
def trained(monkeypatch):
    """Stands in for training: records what would be trained, and from what."""
    calls = []

    def train(settings, folder, make_evaluators, *, flags, study, **rest):
        calls.append((folder.name, settings, flags, study))
        if folder.name.startswith("moe") and study.get("stage") == "base":
            raise NonFiniteError("nan")
        split = settings.eval.splits[0]
        path = folder / "eval" / str(settings.train.steps) / "bits_per_byte.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        rate = settings.optimizer.learning_rate
        score = {"name": f"{split}/bits_per_byte", "value": abs(rate - 6e-3), "weight": None}
        write_json(path, {"version": 1, "scores": [score]})

    monkeypatch.setattr(run_study.runner, "train", train)
    return calls


def reported(made):
    return plan.reported_runs(made, run_study.default_choices(made))


def test_each_stage_starts_from_the_one_before_with_the_seed_of_its_run(made, trained, tmp_path):
    results = run_study.run_all(reported(made), tmp_path, lambda text: None, STUDY.metric)
    dense = trained[:9]
    names = [
        f"dense_causal_lm_only{end}" for end in ("-base_lr0.003", "-chat_lr0.0001", "_lr0.003")
    ]
    assert [name for name, *_ in dense] == [f"{n}_seed{s}" for s in range(3) for n in names]
    assert [flags.get("init_from", "") for _, _, flags, _ in dense] == [
        "" if index % 3 == 0 else str(tmp_path / dense[index - 1][0]) for index in range(9)
    ]
    assert [s.train.steps for _, s, _, _ in dense[:3]] == [30, 10, 10]
    assert [s.data.path for _, s, _, _ in dense[:3]] == ["a.txt", "", ""]
    assert [s.seed for _, s, _, _ in dense] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    roles = [(study["role"], study.get("stage")) for *_, study in dense[:3]]
    assert roles == [("stage", "base"), ("stage", "chat"), ("reported", None)]
    # A stage that diverges ends its run alone; the run has no score.
    assert [name for name, *_ in trained[9:]] == [
        f"moe_causal_lm_only-base_lr0.003_seed{seed}" for seed in range(3)
    ]
    assert [r.error_message for r in results] == [""] * 6
    assert [r.score == r.score for r in results] == [True] * 3 + [False] * 3


def test_the_plan_declares_the_stages_and_its_runs_agree(made, tmp_path):
    plan_record.write_plan(tmp_path, made, run_study.default_choices(made))
    plans = read_plans(tmp_path)
    for run in plan.with_stages(reported(made)):
        record, settings = (
            CheckedFields(json.loads(json.dumps(x)), "run") for x in (run.study, run.settings)
        )
        assert not check_plan(parse_study(record), settings, plans).problems
    other = dataclasses.replace(STUDY, earlier_stages={"base": {"train.steps": 30}})
    assert study.make_plan(other, SHARED, 300).plan.digest != made.digest
    text = plan.format_plan(made, plan.with_stages(reported(made)), {})[0]
    assert "18 runs (0 for tuning, 12 of earlier stages)" in text
    with pytest.raises(ConfigError, match="earlier_stages.train.stepz"):
        bad = dataclasses.replace(STUDY, earlier_stages={"base": {"train.stepz": 3}})
        reported(study.make_plan(bad, SHARED, 300).plan)


def test_rates_that_were_tuned_after_other_stages_are_not_used(made, trained, tmp_path):
    one = dataclasses.replace(STUDY, candidates={"dense": {}, "copy": {}})
    one = dataclasses.replace(one, comparisons=(("copy", "dense"),))
    tuned = study.make_plan(one, SHARED, 300).plan
    record = run_study.run_tuning(tuned, tmp_path / "runs", lambda text: None)
    # Five rates after two stages that they share.
    assert record["cells"][0]["costs"]["n_runs"] == 7
    run_study.write_record(record, tmp_path / "sweep.json")
    assert load_prior_results(str(tmp_path), tuned).tuning_choices
    other = dataclasses.replace(one, earlier_stages={"base": {"train.steps": 30}})
    prior = load_prior_results(str(tmp_path), study.make_plan(other, SHARED, 300).plan)
    assert not prior.tuning_choices
    assert prior.sources[0].endswith(" was recorded after other earlier stages: not used")


def test_a_search_tunes_the_last_stage_alone(trained, tmp_path):
    """Trials of one seed start from the same stages, which have the settings of the candidate."""
    space = {
        "optimizer.learning_rate": TunedRange(1e-3, 3e-2),
        "optimizer.weight_decay": TunedRange(0.01, 0.2),
        "train.batch_size": TunedChoices((1, 2)),
    }
    searched = dataclasses.replace(
        STUDY,
        candidates={"dense": {}, "copy": {}},
        comparisons=(("copy", "dense"),),
        search=SearchSpace(space, n_trials=5),
        tuning_seeds=(1000, 1001),
    )
    made = study.make_plan(searched, SHARED, 300).plan
    record = run_study.run_tuning(made, tmp_path / "runs", lambda text: None)
    dense = [call for call in trained if call[0].startswith("dense")]
    assert record["cells"][0]["costs"]["n_runs"] == 14  # Five trials and two stages, by two seeds.
    for name, settings, flags, declared in dense:
        if declared["role"] == "tuning":
            start = f"dense_causal_lm_only-chat_lr0.0001_seed{settings.seed}"
            assert flags["init_from"] == str(tmp_path / "runs" / start), name
            assert settings.train.batch_size * settings.train.steps == 20
        else:
            assert (settings.train.batch_size, settings.optimizer.weight_decay) == (2, 0.1)
    assert len({(s.train.batch_size, s.optimizer.weight_decay) for _, s, _, _ in dense}) == 6
    run_study.write_record(record, tmp_path / "sweep.json")
    choices = load_prior_results(str(tmp_path), made).tuning_choices
    last = plan.reported_runs(made, choices)[0]
    assert last.trial_name == choices[last.cell_key].trial.name != ""
    assert [run.settings["optimizer"]["weight_decay"] for run in last.earlier_stages] == [0.1] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"earlier_stages": {"base": {"model.depth": 3}}},
            "after the stage base: .* in the run or its trial, and .* in the stage, must be equal",
        ),
        (
            {
                "tuning_seeds": (1000, 1001),
                "search": SearchSpace(
                    {"model.attention.qk_norm": TunedChoices(("none", "full"))}, 5
                ),
            },
            "neither earlier_stages nor tuning may change the parameters of the model",
        ),
    ],
)
def test_a_model_that_cannot_start_from_its_stages_is_refused_in_the_plan(changes, message):
    """Otherwise each run would fail, after its stages were trained."""
    made = study.make_plan(dataclasses.replace(STUDY, **changes), SHARED, 300).plan
    with pytest.raises(ConfigError, match=message):
        plan.sweep_runs(made)


def write_stages(root):
    """Writes three seeds of two candidates, each after the stages base and chat."""
    stages = {"earlier_stages": ["base", "chat"]}
    for name in ("dense", "moe"):
        model = {"layers": [f"{name}+mlp"]}
        for seed in range(3):
            start = ""
            for stage in ("base", "chat", ""):
                folder = root / f"{name}-{stage or 'last'}-{seed}"
                role = {"role": "stage", "stage": stage} if stage else {}
                more = {"study": stages | role, "model": model, "data": f"{stage} {seed}"}
                train = {"train": {"steps": 200, "batch_size": 4, "seq_len": 64}}
                value = 2.0 + 0.01 * seed + (name == "moe")
                runs.run(folder, name, seed, value, **more, **(train if stage == "base" else {}))
                edit(folder / "run.json", run_id=folder.name, flags={"init_from": start})
                edit(
                    folder / f"checkpoints/{200 if stage == 'base' else 100}/MANIFEST.json",
                    run_id=folder.name,
                )
                start = f"runs/{folder.name}"
    return root


def test_the_board_states_the_cost_of_every_stage_and_ranks_the_last(tmp_path):
    found = boarded(write_stages(tmp_path))
    rows, _, comparable_set = only(found)
    assert (found.stage_runs, found.tuning_runs) == (12, 0)
    assert comparable_set.keys["init_from"] == "the stages base, chat of its study"
    assert [rows[name].sample.n_runs for name in ("dense", "moe")] == [3, 3]
    one = runs.STUDY["value"]  # FLOPs of a run of 100 steps; the first stage has 200.
    assert rows["dense"].costs["training_flops"] == pytest.approx(one)
    assert rows["dense"].costs["study_flops"] == pytest.approx(3 * 4 * one)
    assert "(3 base runs 9.22e11, 3 chat runs 4.61e11, 3 reported runs 4.61e11)" in (
        rows["dense"].study_cost
    )


def test_a_run_that_did_not_start_from_its_stage_is_excluded(tmp_path):
    root = write_stages(tmp_path)
    edit(root / "moe-last-1/run.json", flags={"init_from": "runs/moe-chat-0"})
    edit(root / "dense-last-0/run.json", flags={"init_from": ""})
    rows, _, _ = only(boarded(root))
    assert any("moe-chat-0, which is no stage" in x for x in rows["moe"].problems)
    assert any("declares earlier stages, but starts from none" in x for x in rows["dense"].problems)


def test_stages_that_are_elsewhere_are_named(tmp_path):
    root = write_stages(tmp_path / "all")
    lasts = sorted(root.glob("*-last-*"))
    rows, _, _ = only(boarded(*lasts))
    assert rows["moe"].study_cost.endswith("; without the stages base, chat, which are not here)")
