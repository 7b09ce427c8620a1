"""A/A: twenty real runs that differ in nothing but the seed are told apart no more often than the
level allows (the instrument's calibration, on what it measures)."""

import dataclasses

import numpy as np
import pytest

from data.settings import DataConfig
from protocol.statistics.sample import make_sample
from protocol.statistics.verdict import MetricSpec, compare_candidates
from protocol.study import run_study, study
from protocol.study.study import Study
from training.settings import EvalConfig, Settings, TrainConfig

RUNS, SPLITS = 20, 1000
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "sees"]


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    folder = tmp_path_factory.mktemp("null")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 40)) for _ in range(60)]
    (folder / "text.txt").write_text("\n\n".join(texts))
    shared = Settings(
        model=dataclasses.replace(Settings().model, width=16, depth=1),
        data=DataConfig(
            source="text",
            path=str(folder / "text.txt"),
            document_separator="\\n\\n",
            cache=str(folder / "cache"),
        ),
        train=TrainConfig(steps=20, batch_size=8, seq_len=32),
        eval=EvalConfig(tasks=("bits_per_byte",), splits=("test",), batch_size=8),
    )
    asked = Study(
        candidates={"only": {}, "heads": {"model.attention.heads": 2}},
        reference="only",
        comparisons=(("heads", "only"),),
        margin=0.0,
        noise_seeds=tuple(range(2000, 2000 + RUNS)),
    )
    found = study.make_plan(asked, shared, 365).plan
    runs = run_study.noise_runs(asked, found, run_study.default_choices(found))
    runs = [run for run in runs if run.cell_key.candidate == "only"]
    results = run_study.run_all(runs, folder, lambda text, **how: None, asked.metric)
    assert {result.error_message for result in results} == {""}
    return [result.score for result in results]


@pytest.mark.slow
@pytest.mark.parametrize("runs", [3, 5, 10])
def test_copies_are_seldom_told_apart(losses, runs):
    assert len(set(losses)) == RUNS  # the seeds matter
    rng, claims = np.random.default_rng(runs), 0
    for _ in range(SPLITS):
        drawn = rng.permutation(losses)
        a, b = make_sample("a", drawn[:runs]), make_sample("b", drawn[runs : 2 * runs])
        (verdict,) = compare_candidates([a, b], [("a", "b")], MetricSpec())
        claims += verdict.kind in ("lower", "higher")
    # 5 %, and three standard errors: a split of exchangeable runs is a draw of the null.
    assert claims <= SPLITS * 0.05 + 3 * np.sqrt(SPLITS * 0.05 * 0.95)
