"""Bits per byte of whole splits: nats of every predicted token, end of document included, over
the bytes of the text, in bits.

All models see the same windows: documents in their order, cut at the row's length, nothing carried
over an edge, every byte predicted once. The measure does not depend on the tokenizer.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax

from data.loader import windows
from eval.task import Score, Subject
from objectives import Learner, Objective
from training import mesh as meshes

VERSION = 1


class BitsPerByte:
    version = VERSION

    def __init__(self, splits: tuple[str, ...] = ("valid", "test")):
        self.splits = splits

    def __call__(self, subject: Subject) -> Iterator[Score]:
        for split in self.splits:
            store = getattr(subject.data, split)
            nats, predicted = total_nats(subject, store)
            yield Score(f"{split}/bits_per_byte", bits_per_byte(nats, store), store.text_bytes)
            yield Score(f"{split}/nats_per_token", nats / predicted, predicted)


def bits_per_byte(nats: float, store: Any) -> float:
    return nats / math.log(2) / store.text_bytes


def total_nats(subject: Subject, store: Any) -> tuple[float, float]:
    """Nats over all predicted tokens of a store, and how many these are."""
    train, batch = subject.settings.train, subject.settings.eval.batch
    place, objective = meshes.rows(subject.mesh), subject.objective
    ways = subject.mesh.size
    rows = -(-batch // ways) * ways
    nats = weight = 0.0
    with jax.set_mesh(subject.mesh):
        batches = windows(store, rows, train.length, objective.overlap, objective.example)
        for arrays in map(batches.__getitem__, range(len(batches))):
            out = _batch_nats(objective, subject.learner, jax.device_put(arrays, place))
            found = jax.device_get(out)
            nats, weight = nats + float(found[0]), weight + float(found[1])
    return nats, weight


@functools.partial(jax.jit, static_argnums=0)
def _batch_nats(objective: Objective, learner: Learner, batch: dict[str, Any]) -> tuple[Any, Any]:
    terms, _ = objective.reduce(learner, objective.encode(learner, batch, None), batch)
    return terms["nats"].sum, terms["nats"].weight
