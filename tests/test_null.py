"""A/A: twenty real runs that differ in nothing but the seed are told apart no more often than the
level allows (the instrument's calibration, on what it measures)."""

import dataclasses

import numpy as np
import pytest

from data import DataConfig
from protocol import conduct, study
from protocol.study import Study
from protocol.verdict import Metric, judged, sample
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
            separator="\\n\\n",
            cache=str(folder / "cache"),
        ),
        train=TrainConfig(steps=20, batch=8, length=32),
        eval=EvalConfig(tasks=("bits_per_byte",), splits=("test",), batch=8),
    )
    asked = Study(
        candidates={"only": {}, "heads": {"model.attention.heads": 2}},
        reference="only",
        comparisons=(("heads", "only"),),
        margin=0.0,
        noise_seeds=tuple(range(2000, 2000 + RUNS)),
    )
    found = study.planned(asked, shared, 365).plan
    runs = conduct.repeats(asked, found, conduct.untuned(found))
    results = conduct.conduct(runs, folder, lambda text, **how: None, asked.metric)
    assert {result.failed for result in results} == {""}
    return [result.score for result in results]


@pytest.mark.slow
@pytest.mark.parametrize("runs", [3, 5, 10])
def test_copies_are_seldom_told_apart(losses, runs):
    assert len(set(losses)) == RUNS  # the seeds matter
    rng, claims = np.random.default_rng(runs), 0
    for _ in range(SPLITS):
        drawn = rng.permutation(losses)
        a, b = sample("a", drawn[:runs]), sample("b", drawn[runs : 2 * runs])
        (verdict,) = judged([a, b], [("a", "b")], Metric())
        claims += verdict.kind in ("lower", "higher")
    # 5 %, and three standard errors: a split of exchangeable runs is a draw of the null.
    assert claims <= SPLITS * 0.05 + 3 * np.sqrt(SPLITS * 0.05 * 0.95)
