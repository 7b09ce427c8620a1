"""The loss of whole splits, by the objective that is trained, on text it has not seen.

All models see the same windows: documents in their order, cut at the row's length, nothing carried
over an edge, every byte once. What is random in a window (which tokens are hidden) is a function of
its number, the same for all models and whatever the training used; `set` is the hash of all windows
as models see them, which proves it. No score depends on how windows are batched.
"""

import functools
import hashlib
import math
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import jax
import numpy as np

from data.loader import windows
from eval.task import Score, Subject
from objectives import Example, Learner, Objective
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


def means(
    found: dict[str, tuple[float, float]], split: str, what: str, names: tuple[str, ...]
) -> Iterator[Score]:
    for name in names:
        amount, weight = found[name]
        if weight:
            label = name if name.startswith(what) else f"{what}_{name}"
            yield Score(f"{split}/{label}", amount / weight, weight)


def bits_per_byte(nats: float, store: Any) -> float:
    return nats / math.log(2) / max(store.text_bytes, 1)


def sums(subject: Subject, store: Any) -> dict[str, tuple[float, float]]:
    """Sum and weight of every term and metric of the objective over a store."""
    return swept(subject, store)[0]


def swept(
    subject: Subject, store: Any, rows: Iterable[dict[str, np.ndarray]] | None = None
) -> tuple[dict[str, tuple[float, float]], str]:
    """`sums`, and the hash of the windows that they are of: those of `rows`, else of `read`."""
    digest, total = hashlib.sha256(), dict[str, np.ndarray]()
    objective, place = subject.objective.judged(), meshes.rows(subject.mesh)
    with jax.set_mesh(subject.mesh):
        for arrays in read(subject, store) if rows is None else rows:
            digest.update(seen(arrays))
            out = _batch(objective, subject.learner, jax.device_put(arrays, place))
            for name, pair in jax.device_get(out).items():
                total[name] = total.get(name, np.zeros(2)) + [np.sum(x, dtype=float) for x in pair]
    found = {name: (float(pair[0]), float(pair[1])) for name, pair in total.items()}
    return found, digest.hexdigest()


def read(
    subject: Subject, store: Any, example: Example | None = None, *, every: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """All windows of a store, in batches, as the objective or an `example` makes them; or of these
    batches the first of `every` so many."""
    settings, objective = subject.settings, subject.objective.judged()
    rows = objective.rows(settings.model, settings.train.length)
    ways = subject.mesh.size
    count = -(-settings.eval.batch // ways) * ways
    own = objective.host(settings.model, settings.train.length, subject.data.tokenizer)
    batches = windows(store, count, rows.text, rows.overlap, example or own)
    yield from map(batches.__getitem__, range(0, len(batches), every))


def seen(arrays: dict[str, np.ndarray]) -> bytes:
    """What a model is shown and asked in these windows, padding left out."""
    kept = arrays["segments"].any(axis=1)
    shown = [arrays[name][kept] for name in ("tokens", "targets", "weights", "segments")]
    return b"".join(
        row.astype("<f4").tobytes() for rows in zip(*shown, strict=True) for row in rows
    )


@functools.partial(jax.jit, static_argnums=0)
def _batch(objective: Objective, learner: Learner, batch: dict[str, Any]) -> dict[str, Any]:
    terms, metrics = objective.reduce(learner, objective.encode(learner, batch, None), batch)
    return {name: (x.sum, x.weight) for name, x in (metrics | terms).items()}
