"""Fixed spans of held-out text, written again: what a denoising model knows.

`denoised_nats` are of a target token, sentinels and ends included; `denoised_bits_per_byte` are all
of these nats over the bytes that the spans hide (a character that a span cuts counts as one), so
that tokenizers compare. `denoised_span_match` is the share of spans of which every token is the
likeliest, the true ones before it given (teacher-forced, not decoded); under "infill" of rows.
"""

import functools
import hashlib
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from eval.held_out import SPLITS, read, seen
from eval.task import Score, Subject
from objectives import Learner, Objective
from training import mesh as meshes

SPANS = 128  # of a row, at most


class Denoised:
    version: ClassVar[int] = 2
    objective: ClassVar[str] = "denoising"

    def __init__(self, splits: tuple[str, ...] = SPLITS):
        self.splits = splits

    def __call__(self, subject: Subject) -> Iterator[Score]:
        for split in self.splits:
            yield from _judged(subject, split)


def _judged(subject: Subject, split: str) -> Iterator[Score]:
    tokenizer, objective = subject.data.tokenizer, subject.objective.judged()
    place, digest, total, size = meshes.rows(subject.mesh), hashlib.sha256(), np.zeros(5), 0
    with jax.set_mesh(subject.mesh):
        for arrays in read(subject, getattr(subject.data, split)):
            digest.update(seen(arrays))
            scored = arrays["weights"] != 0
            size += sum(
                len(_plain(tokenizer.decode(ids[own])))
                for ids, own in zip(arrays["targets"], scored, strict=True)
            )
            spans = numbered(arrays["targets"], scored, tokenizer.specials)
            batch = jax.device_put(arrays | {"spans": spans}, place)
            out = jax.device_get(_batch(objective, subject.learner, batch))
            total += [float(x) for x in out]
    nats, correct, tokens, whole, count = total
    if not tokens:
        return
    yield Score(f"{split}/denoised_nats", nats / tokens, tokens)
    if size:
        yield Score(f"{split}/denoised_bits_per_byte", nats / math.log(2) / size, size)
    yield Score(f"{split}/denoised_accuracy", correct / tokens, tokens)
    yield Score(f"{split}/denoised_span_match", whole / count, count)
    yield Score(f"{split}/set", digest.hexdigest())


def numbered(targets: np.ndarray, scored: np.ndarray, specials: Any) -> np.ndarray:
    """The span of each scored token, from 1 on; a sentinel begins one and eos is of none."""
    begins = np.isin(targets, np.asarray(specials.sentinels, np.int32)) & scored
    spans = np.cumsum(begins, axis=1)
    spans = np.where(begins.any(axis=1, keepdims=True), spans, 1)  # infill: the row is one span
    inside = scored & ~begins & (targets != specials.eos)
    return np.where(inside, spans, 0).astype(np.int32)


def _plain(text: str) -> bytes:
    """As many bytes as it has, those that are no character counted once a gap."""
    return text.replace("\ufffd", "?").encode()


@functools.partial(jax.jit, static_argnums=0)
def _batch(objective: Objective, learner: Learner, batch: dict[str, Array]) -> tuple[Array, ...]:
    """Nats, right tokens, tokens, spans that are right throughout, spans."""
    out = objective.encode(learner, batch, None)
    terms, metrics = objective.reduce(learner, out, batch)
    most = out.weights.shape[1]
    _, places = jax.lax.top_k(batch["weights"], most)  # as `score_some` picks them
    spans = jnp.take_along_axis(batch["spans"], places, axis=1)
    row = jnp.arange(len(spans))[:, None]
    there = jnp.zeros((len(spans), SPANS), bool).at[row, spans].set(True)
    wrong = jnp.zeros((len(spans), SPANS), bool).at[row, spans].max(~out.scores.correct)
    there = there.at[:, 0].set(False)
    nats, right = terms["denoised_nats"], metrics["accuracy"]
    return nats.sum, right.sum, nats.weight, jnp.sum(there & ~wrong), jnp.sum(there)
