"""Fine-tunes the model with one added output layer on labelled texts, and scores held-out ones.

The data sets are labels of the embedded corpus (of its held-out splits) and labelled examples in
files, such as SST-2 and MRPC. Recipe and parts are those of `eval/finetuning`. The score of a data
set is the median over seeds; `_low` and `_high` are a 95 % interval of the mean over seeds
(Student's t), which covers the noise of the seeds, not that of the test examples. Baselines of
classes are the most common one and a bag of words.
"""

import dataclasses
import hashlib
import json
import statistics
import time
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from scipy import stats

from eval.baselines.bag_of_words import bag_of_words
from eval.finetuning.datasets import PARTS, FinetuneDataset, load_datasets
from eval.finetuning.measures import MAIN_MEASURES
from eval.finetuning.recipe import FinetuneResult, make_fine_tuner, run_recipe
from eval.task import EvalContext, Score
from eval.tasks.probe import BASELINE_WORDS, ProbeDataset, fit_probe, majority_accuracy
from training.settings import FinetuneConfig

LEVEL = 0.95
# Settings that say where the data come from; the hashes of the examples tell them apart.
SOURCE_SETTINGS = ("labels", "path", "text_fields", "label_field")


class FineTuning:
    """Measures what the model learns of labels with one added output layer."""

    version: ClassVar[int] = 2

    def __init__(self, splits: tuple[str, ...] = ("valid", "test")):
        self.splits = splits

    def __call__(self, ctx: EvalContext) -> Iterator[Score]:
        """Yields the scores of every data set, under the name `finetune_NAME`."""
        cfg = ctx.settings.eval.finetune
        for dataset in load_datasets(cfg, self.splits):
            start, prefix = time.perf_counter(), f"finetune_{dataset.name}"
            result = run_recipe(make_fine_tuner(ctx, cfg, dataset))
            seconds = time.perf_counter() - start
            yield from result_scores(dataset, result, prefix)
            yield Score(f"{prefix}/learning_rate", result.learning_rate)
            yield Score(f"{prefix}/train_examples", len(dataset.parts["train"]))
            yield Score(f"{prefix}/flops", result.flops)
            yield Score(f"{prefix}/seconds", seconds)
            if dataset.problem == "classes":
                yield from baseline_scores(dataset, prefix)
            yield Score(f"{prefix}/eval_set_sha256", dataset.digest("test"))
            yield Score(f"{prefix}/recipe_sha256", recipe_digest(cfg, dataset))


def result_scores(dataset: FinetuneDataset, result: FinetuneResult, prefix: str) -> Iterator[Score]:
    """Yields the median of each measure over the seeds, and the interval of the main one."""
    n, main = len(dataset.parts["test"]), MAIN_MEASURES[dataset.problem]
    for name in result.runs[0]:
        values = [run[name] for run in result.runs if name in run]
        yield Score(f"{prefix}/{name}", statistics.median(values), n)
        if name == main and len(values) > 1:
            margin = stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1) * stats.sem(values)
            yield Score(f"{prefix}/{name}_low", statistics.fmean(values) - float(margin))
            yield Score(f"{prefix}/{name}_high", statistics.fmean(values) + float(margin))


def baseline_scores(dataset: FinetuneDataset, prefix: str) -> Iterator[Score]:
    """Yields the accuracies of the most common class and of a bag of words."""
    sizes = [len(dataset.parts[part]) for part in PARTS]
    ends = np.cumsum(sizes)
    indices = {p: np.arange(e - n, e) for p, n, e in zip(PARTS, sizes, ends, strict=True)}
    y = np.array([target for part in PARTS for target in dataset.targets(part)])
    data = ProbeDataset(y, len(dataset.classes), indices)
    texts = [" ".join(e.texts) for part in PARTS for e in dataset.parts[part]]
    bag = bag_of_words(texts, indices["train"], BASELINE_WORDS)
    yield Score(f"{prefix}/majority_accuracy", majority_accuracy(data), sizes[-1])
    accuracy = fit_probe(bag[:, None], data).accuracy
    yield Score(f"{prefix}/bag_of_words_accuracy", accuracy, sizes[-1])


def recipe_digest(cfg: FinetuneConfig, dataset: FinetuneDataset) -> str:
    """Returns the sha256 of all settings of the recipe and of the examples that it learns from."""
    recipe = {k: v for k, v in dataclasses.asdict(cfg).items() if k not in SOURCE_SETTINGS}
    content = [recipe, dataset.problem, dataset.digest("train", "valid")]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
