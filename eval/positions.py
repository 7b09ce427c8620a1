"""Loss by place in a document, in rows up to eight times as long as those of training.

A model that uses its context gets better with it; one that cannot go beyond what it was trained on
gets worse. All lengths read the same text; only where it is cut differs.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from data.loader import windows
from eval.task import Score, Subject
from objectives import Learner, Objective
from training import mesh as meshes
from training.distributed import whole

TIMES = (1, 2, 4, 8)  # the length of training


class Positions:
    """`test/bits_per_byte@2x` for rows of twice the length, `test/nats@64` for tokens from place
    64 on (up to the next power of two) in the longest rows."""

    version: ClassVar[int] = 1
    objective: ClassVar[str] = "causal_lm"

    def __init__(self, splits: tuple[str, ...] = ("test",)):
        self.splits = splits

    def __call__(self, subject: Subject) -> Iterator[Score]:
        for split in self.splits:
            store = getattr(subject.data, split)
            for times in self.times(subject):
                nats, tokens = by_place(subject, store, times)
                bits = nats.sum() / math.log(2) / store.text_bytes
                yield Score(f"{split}/bits_per_byte@{times}x", bits, store.text_bytes)
            for place in np.flatnonzero(tokens):
                name = f"{split}/nats@{2**place if place else 0}"
                yield Score(name, nats[place] / tokens[place], tokens[place])

    def times(self, subject: Subject) -> list[int]:
        """A learned table has no place for longer rows."""
        model, T = subject.settings.model, subject.settings.train.length
        room = model.positions.length // T if model.positions.learned else max(TIMES)
        return [times for times in TIMES if times <= room]


def by_place(subject: Subject, store: Any, times: int) -> tuple[np.ndarray, np.ndarray]:
    """Nats and tokens by power of two of the position, in rows of `times` the training length."""
    settings, objective = subject.settings, subject.objective.judged()
    length = times * settings.train.length
    ways = subject.mesh.size
    count = max(settings.eval.batch // times, 1)
    count = -(-count // ways) * ways
    rows = objective.rows(settings.model, length)
    example = objective.host(settings.model, length, subject.data.tokenizer)
    buckets, place = math.ceil(math.log2(length)) + 1, meshes.rows(subject.mesh)
    total = np.zeros((2, buckets))
    with jax.set_mesh(subject.mesh):
        batches = windows(store, count, rows.text, rows.overlap, example)
        for arrays in map(batches.__getitem__, range(len(batches))):
            out = _places(objective, buckets, subject.learner, jax.device_put(arrays, place))
            total += np.asarray(whole(out), np.float64)
    return total[0], total[1]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _places(
    objective: Objective, buckets: int, learner: Learner, batch: dict[str, Any]
) -> jax.Array:
    nats = objective.encode(learner, batch, None).scores.nats
    weights = batch["weights"]
    place = jnp.log2(jnp.maximum(batch["positions"], 1).astype(jnp.float32) + 0.5).astype(jnp.int32)
    into = jax.nn.one_hot(place, buckets)
    return jnp.stack(
        [jnp.einsum("bt,btk->k", jnp.where(weights > 0, nats, 0), into)]
        + [jnp.einsum("bt,btk->k", weights, into)]
    )
