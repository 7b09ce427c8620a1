"""How likely a causal model finds a text after a context, in windows of the training length.

Every token of the text is scored once, with as much before it as a row holds. A text that a row
cannot hold is cut as lm-evaluation-harness cuts it: the last window is a full one, of which only
the new tokens count.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from eval.rows import Row, batches
from eval.task import Subject
from objectives import Learner, Objective
from training import mesh as meshes
from training.distributed import whole


class Likelihood(NamedTuple):
    nats: float  # -log p(text | context)
    greedy: bool  # each token is the likeliest
    tokens: int


def likelihoods(subject: Subject, pairs: list[tuple[str, str]]) -> list[Likelihood]:
    """Of each text after its context, in their order; without a context after bos."""
    tokenizer = subject.data.tokenizer
    tokenizer.specials.require("bos", what="the likelihood of a text")
    window, rows, owners = subject.settings.train.length, list[Row](), list[int]()
    framed = [_framed(tokenizer, *pair) for pair in pairs]
    for number, (ids, first) in enumerate(framed):
        for row in _windows(ids, first, window):
            rows.append(row)
            owners.append(number)
    nats, greedy = np.zeros(len(pairs)), np.ones(len(pairs), bool)
    objective, place = subject.objective.judged(), meshes.rows(subject.mesh)
    with jax.set_mesh(subject.mesh):
        for numbers, arrays in batches(subject, rows):
            found = _scored(objective, subject.learner, jax.device_put(arrays, place))
            own = [owners[i] for i in numbers]
            amounts, right = (np.asarray(x)[: len(own)] for x in whole(found))
            np.add.at(nats, own, amounts)
            np.logical_and.at(greedy, own, right)
    counts = [len(ids) - first for ids, first in framed]
    return [Likelihood(*one) for one in zip(nats.tolist(), greedy.tolist(), counts, strict=True)]


def _framed(tokenizer: Any, context: str, text: str) -> tuple[np.ndarray, int]:
    """bos, the context and the text as ids, and where the text begins.

    They are encoded as one where that keeps the ids of the context, else each by itself. A space
    between them belongs to the text.
    """
    kept = context.rstrip()
    text = context[len(kept) :] + text
    before, whole, after = tokenizer.encode([kept, kept + text, text])
    n = len(before)
    joined = np.array_equal(whole[:n], before)
    ids = [[tokenizer.specials.bos], before, whole[n:] if joined else after]
    return np.concatenate(ids).astype(np.int32), n + 1


def _windows(ids: np.ndarray, first: int, window: int) -> Iterator[Row]:
    """Rows that predict ids[first:], each once."""
    scored, n = first, len(ids)
    while scored < n:
        end = min(scored + window, n)
        tokens = ids[max(0, end - 1 - window) : end - 1]
        weights = np.zeros(len(tokens), np.float32)
        weights[len(tokens) - (end - scored) :] = 1
        yield {"tokens": tokens, "targets": ids[end - len(tokens) : end], "weights": weights}
        scored = end


@functools.partial(jax.jit, static_argnums=0)
def _scored(
    objective: Objective, learner: Learner, batch: dict[str, Array]
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    found, counted = objective.encode(learner, batch, None).scores, batch["weights"] > 0
    nats = jnp.sum(jnp.where(counted, found.nats, 0), axis=-1)
    return nats, jnp.all(found.correct | ~counted, axis=-1)
