"""The loss of whole splits, one task for each objective: what it trains, on text it has not seen.

All models see the same windows: documents in their order, cut at the row's length, nothing carried
over an edge, every byte once. What is random in a window (which tokens are hidden) is a function of
its number, the same for all models and whatever the training used. No score depends on how windows
are batched.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import numpy as np

from data.loader import windows
from eval.task import Score, Subject
from objectives import Learner, Objective
from training import mesh as meshes

SPLITS = ("valid", "test")


class BitsPerByte:
    """Nats of every predicted token, end of document included, over the bytes of the text, in bits:
    the measure that does not depend on the tokenizer."""

    version: ClassVar[int] = 1
    objective: ClassVar[str] = "causal_lm"

    def __init__(self, splits: tuple[str, ...] = SPLITS):
        self.splits = splits

    def __call__(self, subject: Subject) -> Iterator[Score]:
        for split in self.splits:
            store = getattr(subject.data, split)
            nats, predicted = sums(subject, store)["nats"]
            yield Score(f"{split}/bits_per_byte", bits_per_byte(nats, store), store.text_bytes)
            yield Score(f"{split}/nats_per_token", nats / predicted, predicted)


class Masked:
    """Hidden tokens, 15 % of the text behind masks only, whatever the training rate."""

    version: ClassVar[int] = 1
    objective: ClassVar[str] = "masked_lm"

    def __init__(self, splits: tuple[str, ...] = SPLITS):
        self.splits = splits

    def __call__(self, subject: Subject) -> Iterator[Score]:
        yield from _means(subject, self.splits, ("masked_nats", "accuracy"), "masked")


class Denoised:
    """Targets of fixed spans."""

    version: ClassVar[int] = 1
    objective: ClassVar[str] = "denoising"

    def __init__(self, splits: tuple[str, ...] = SPLITS):
        self.splits = splits

    def __call__(self, subject: Subject) -> Iterator[Score]:
        yield from _means(subject, self.splits, ("denoised_nats", "accuracy"), "denoised")


def _means(
    subject: Subject, splits: tuple[str, ...], names: tuple[str, ...], what: str
) -> Iterator[Score]:
    for split in splits:
        found = sums(subject, getattr(subject.data, split))
        for name in names:
            amount, weight = found[name]
            if weight:
                label = name if name.startswith(what) else f"{what}_{name}"
                yield Score(f"{split}/{label}", amount / weight, weight)


def bits_per_byte(nats: float, store: Any) -> float:
    return nats / math.log(2) / store.text_bytes


def sums(subject: Subject, store: Any) -> dict[str, tuple[float, float]]:
    """Sum and weight of every term and metric of the objective over a store."""
    settings, objective = subject.settings, subject.objective.judged()
    rows = objective.rows(settings.model, settings.train.length)
    ways = subject.mesh.size
    count = -(-settings.eval.batch // ways) * ways
    example = objective.host(settings.model, settings.train.length, subject.data.tokenizer)
    place, total = meshes.rows(subject.mesh), dict[str, np.ndarray]()
    with jax.set_mesh(subject.mesh):
        batches = windows(store, count, rows.text, rows.overlap, example)
        for arrays in map(batches.__getitem__, range(len(batches))):
            out = _batch(objective, subject.learner, jax.device_put(arrays, place))
            for name, pair in jax.device_get(out).items():
                total[name] = total.get(name, np.zeros(2)) + [np.sum(x, dtype=float) for x in pair]
    return {name: (float(pair[0]), float(pair[1])) for name, pair in total.items()}


@functools.partial(jax.jit, static_argnums=0)
def _batch(objective: Objective, learner: Learner, batch: dict[str, Any]) -> dict[str, Any]:
    terms, metrics = objective.reduce(learner, objective.encode(learner, batch, None), batch)
    return {name: (x.sum, x.weight) for name, x in (metrics | terms).items()}
