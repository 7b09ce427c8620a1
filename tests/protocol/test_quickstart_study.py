"""The quickstart's study: all pairs are declared, and its recorded results are of its settings."""

import itertools
import json
from pathlib import Path

import pytest

from data.tokenizers import SPECIAL_TOKENS
from protocol.study.plan import reported_runs
from protocol.study.prior_results import load_prior_results
from protocol.study.run_study import default_choices
from protocol.study.study import load_study, make_plan
from settings.cli import load_config
from settings.tree import freeze
from training.settings import Settings

ROOT = Path(__file__).parents[2]
VOCAB_SIZE = 512 + len(SPECIAL_TOKENS)


def planned(name):
    path = str(ROOT / f"configs/compare/{name}.py")
    study, settings = load_study(path), freeze(Settings, load_config(path, Settings))
    return study, make_plan(study, settings, VOCAB_SIZE).plan


@pytest.fixture(scope="module")
def quickstart():
    return planned("quickstart")


def test_all_pairs_of_the_quickstart_are_declared(quickstart):
    study, plan = quickstart
    pairs = {frozenset(pair) for pair in study.comparisons}
    assert pairs == {frozenset(pair) for pair in itertools.combinations(study.candidates, 2)}
    assert plan.n_comparisons == 6 and len(study.tuning_seeds) == 2
    assert {cell.settings.train.steps for cell in plan.cells} == {1200}


def test_the_recorded_rates_are_of_these_settings_and_inside_their_grids(quickstart):
    study, plan = quickstart
    prior = load_prior_results(str(ROOT / study.results_dir), plan)
    assert set(prior.tuning_choices) == {cell.key for cell in plan.cells}
    assert {name: floor.n_runs for name, floor in prior.noise_floors.items()} == dict.fromkeys(
        study.candidates, 8
    )
    record = json.loads((ROOT / study.results_dir / "sweep.json").read_text())
    for cell in record["cells"]:
        assert cell["curve"]["best_at_edge"] is None
        scores = dict(zip(cell["curve"]["learning_rates"], cell["curve"]["scores"], strict=True))
        assert scores[cell["learning_rate"]] == min(scores.values())
    known = planned("known_answers")[1]
    dense = next(c for c in record["cells"] if c["candidate"] == "dense")
    rates = {cell.settings.optimizer.learning_rate for cell in known.cells}
    assert rates == {dense["learning_rate"]}


def test_the_known_positive_is_larger_and_the_known_null_is_the_same_model(quickstart):
    _, plan = planned("known_answers")
    cells = {cell.candidate: cell for cell in plan.cells}
    (dense,) = (cell for cell in quickstart[1].cells if cell.candidate == "dense")
    assert cells["dense"].settings.model == dense.settings.model
    wider, model = cells["wider"].settings.model, dense.settings.model
    assert (wider.width, wider.mlp.width) == (1.25 * model.width, 1.25 * model.mlp.width)
    assert plan.duplicates() == [("dense", "copy")] or plan.duplicates() == [("copy", "dense")]


SHIPPED = sorted(p.stem for p in (ROOT / "configs/compare").glob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_study_can_be_planned(name):
    """Costs match, names are permitted, and the metric has the direction that is declared."""
    path = str(ROOT / f"configs/compare/{name}.py")
    study, settings = load_study(path), freeze(Settings, load_config(path, Settings))
    plan = make_plan(study, settings, VOCAB_SIZE, pairs=(1000, 60, 60)).plan
    runs = reported_runs(plan, default_choices(plan))
    assert {run.seed for run in runs} == {*study.seeds}
    for run in runs:
        assert [part.study["stage"] for part in run.earlier_stages] == [*study.earlier_stages]
