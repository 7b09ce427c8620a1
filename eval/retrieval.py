"""Retrieval: of a fixed set of held-out pairs, is each anchor nearest to its own match?

Candidates are the matches of up to 1,000 pairs, drawn once for a split whatever the run, without
two equal texts; `set` is the hash of their tokens. `recall@1` comes with its exact 95 %
interval over pairs, `mrr` is the mean of 1 / rank, ties count against the model. Alignment and
uniformity are those of Wang & Isola (arXiv:2005.10242).

Beside them, on the same texts as the model reads them: BM25, a bag of words, the mean of the
untrained embedding table (`bag_of_embeddings`), and the architecture as it begins (`untrained`).
"""

import functools
import hashlib
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import stats

from data.packing import permutation
from data.store import Store
from data.texts import rows_of
from eval.bag_of_words import bag_of_words, bm25
from eval.features import pooled, untrained
from eval.task import Score, Subject
from objectives import Learner, Objective
from training import mesh as meshes
from training.distributed import whole

MOST = 1000  # candidates
WORDS = 100_000  # all
DRAW = 4  # purpose of random numbers


class Candidates(NamedTuple):
    rows: list[dict[str, np.ndarray]]
    anchors: list[str]
    matches: list[str]
    digest: str  # of their tokens


class Retrieval:
    version: ClassVar[int] = 1
    objective: ClassVar[str] = "contrastive"

    def __init__(self, splits: tuple[str, ...] = ("valid", "test")):
        self.splits = splits

    def __call__(self, subject: Subject) -> Iterator[Score]:
        begun = untrained(subject)
        for split in self.splits:
            known = candidates(subject, getattr(subject.data, split))
            n = len(known.rows)
            if n < 2:
                continue
            x = vectors(subject, known.rows)
            found = ranks(x[:, 0] @ x[:, 1].T)
            yield from _scored(f"{split}/", found)
            interval = stats.binomtest(int(np.sum(found == 1)), n).proportion_ci()
            yield Score(f"{split}/recall@1_low", float(interval.low))
            yield Score(f"{split}/recall@1_high", float(interval.high))
            yield Score(f"{split}/recall@1_back", _recall(ranks(x[:, 1] @ x[:, 0].T)), n)
            yield Score(
                f"{split}/alignment", float(np.mean(np.sum((x[:, 0] - x[:, 1]) ** 2, -1))), n
            )
            yield Score(
                f"{split}/uniformity", 0.5 * (_uniformity(x[:, 0]) + _uniformity(x[:, 1])), n
            )
            for name, closeness in _baselines(begun, known):
                yield from _scored(f"{split}/{name}_", ranks(closeness))
            yield Score(f"{split}/set", known.digest)


def candidates(subject: Subject, store: Store) -> Candidates:
    """The same for every model with this data, tokenizer and length."""
    settings, objective = subject.settings, subject.objective.judged()
    wanted = objective.rows(settings.model, settings.train.length)
    reader = rows_of(store, wanted)
    example = objective.host(settings.model, settings.train.length, subject.data.tokenizer)
    rows, texts, seen = [], list[tuple[str, str]](), set[bytes]()
    digest = hashlib.sha256()
    for number in permutation(0, 0, DRAW, reader.positions // reader.length):
        pieces = [piece.tokens for piece in reader.row(int(number))]
        row = example(pieces, wanted.text, np.random.default_rng(0))
        own = {row["text_ids"][0].tobytes(), row["text_ids"][1].tobytes()}
        if own & seen or not row["weights"]:  # or a text that is too short for two halves
            continue
        seen |= own
        rows.append(row)
        shown = [row["tokens"][i][row["segments"][i] != 0] for i in (0, 1)]
        texts.append(tuple(subject.data.tokenizer.decode(ids) for ids in shown))  # type: ignore[arg-type]
        for ids in shown:
            digest.update(ids.astype("<i4").tobytes())
        if len(rows) == MOST:
            break
    anchors, matches = zip(*texts, strict=True) if texts else ((), ())
    return Candidates(rows, list(anchors), list(matches), digest.hexdigest())


def vectors(subject: Subject, rows: list[dict[str, np.ndarray]]) -> Float[np.ndarray, "N V E"]:
    """What the learner makes of rows; of length 1."""
    objective, mesh = subject.objective.judged(), subject.mesh
    count = -(-subject.settings.eval.batch // mesh.size) * mesh.size
    found = []
    with jax.set_mesh(mesh):
        for at in range(0, len(rows), count):
            some = rows[at : at + count]
            some = some + [rows[0]] * (count - len(some))
            batch = {name: np.stack([row[name] for row in some]) for name in rows[0]}
            placed = {
                n: jax.device_put(a, meshes.rows_like(mesh, a.shape)) for n, a in batch.items()
            }
            out = whole(_encoded(objective, subject.learner, placed))
            found.append(np.asarray(out, np.float64))
    return np.concatenate(found)[: len(rows)]


def embedded(subject: Subject, texts: list[str]) -> Float[np.ndarray, "N E"]:
    """A vector a text: what the objective itself makes of it (of its first train.length tokens), or
    the mean of the last norm over its tokens where the objective makes none."""
    tokenizer, T = subject.data.tokenizer, subject.settings.train.length
    if subject.objective.rows(subject.settings.model, T).texts == 1:
        return pooled(subject, texts)[:, -1]
    rows, special = [], tokenizer.specials
    for ids in tokenizer.encode(texts):
        text = [special.bos, *ids[: T - 2].tolist(), special.eos]
        row = {name: np.zeros((1, T), np.int32) for name in ("tokens", "positions", "segments")}
        n = len(text)
        row["tokens"][0, :n], row["positions"][0, :n] = text, np.arange(n)
        row["segments"][0, :n] = 1
        rows.append(row)
    return vectors(subject, rows)[:, 0]


def ranks(closeness: Float[np.ndarray, "N N"]) -> np.ndarray:
    """The rank of each row's own candidate, the diagonal; ties count against it."""
    own = np.diagonal(closeness)[:, None]
    return np.sum(closeness >= own, axis=1)


def _baselines(begun: Subject, known: Candidates) -> Iterator[tuple[str, np.ndarray]]:
    yield "bm25", bm25(known.anchors, known.matches)
    bag = bag_of_words(known.anchors + known.matches, range(2 * len(known.rows)), WORDS)
    yield "bag_of_words", _cosines(*np.split(bag, 2))
    table = np.asarray(whole(begun.learner.model.embed.table[...]), np.float64)
    yield "bag_of_embeddings", _cosines(*(_means(table, known.rows, i) for i in (0, 1)))
    x = vectors(begun, known.rows)
    yield "untrained", x[:, 0] @ x[:, 1].T


def _means(table: np.ndarray, rows: list[dict[str, np.ndarray]], side: int) -> np.ndarray:
    return np.stack([table[r["tokens"][side][r["segments"][side] != 0]].mean(0) for r in rows])


def _cosines(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"]) -> np.ndarray:
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
    return a @ b.T


def _uniformity(x: Float[np.ndarray, "N E"]) -> float:
    potential = np.exp(-4 * (1 - x @ x.T))
    n = len(x)
    return float(np.log((potential.sum() - np.trace(potential)) / (n * (n - 1))))


def _scored(prefix: str, found: np.ndarray) -> Iterator[Score]:
    yield Score(f"{prefix}recall@1", _recall(found), len(found))
    yield Score(f"{prefix}mrr", float(np.mean(1 / found)), len(found))


def _recall(found: np.ndarray) -> float:
    return float(np.mean(found == 1))


@functools.partial(jax.jit, static_argnums=0)
def _encoded(objective: Objective, learner: Learner, batch: dict[str, Any]) -> Array:
    return jnp.asarray(objective.encode(learner, batch, None).rows)
