"""Evaluates retrieval: whether anchors of held-out text pairs are nearest to their matches.

The candidates are the matches of up to 1,000 pairs, sampled once per split for all runs, without
duplicate texts. The score `eval_set_sha256` is the hash of their tokens. `recall@1` comes with its
exact 95 % interval over pairs, `mrr` is the mean of 1 / rank, and ties count against the model.
Alignment and uniformity are those of Wang & Isola (arXiv:2005.10242).

Baselines on the same texts, as the model reads them, are BM25, a bag of words, the mean of the
untrained embedding table (`bag_of_embeddings`), and the untrained architecture (`untrained`). Where
the anchors are images, the matches are their texts, the only baseline is the untrained
architecture, and `recall@1_of_100` is the mean over groups of 100 pairs instead of 1,000.
"""

import functools
import hashlib
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import stats

from data.random_streams import RandomStream, permutation
from data.store import TokenStore
from data.text_rows import make_row_source
from eval.baselines.bag_of_words import bag_of_words, bm25
from eval.features import pooled_features, with_random_init
from eval.framing import reading
from eval.task import EvalContext, Score
from objectives import Batch, Objective, Trainable
from training import mesh as meshes
from training.distributed.multihost import to_host
from training.run.console import LOGGER

MAX_CANDIDATES = 1000
GROUP = 100  # Pairs of a group of `recall@1_of_100`.
BASELINE_WORDS = 100_000  # More than the texts contain, so that all words count.


class RetrievalSet(NamedTuple):
    """Holds pairs as rows for the model and as decoded texts for the baselines.

    Of an image and its text, the anchor has no text.
    """

    rows: list[dict[str, np.ndarray]]
    anchors: list[str]
    matches: list[str]
    digest: str  # SHA-256 of the tokens of all texts.


class Retrieval:
    """Measures how often the match of a text is its nearest candidate, beside baselines."""

    version: ClassVar[int] = 1

    def __init__(self, splits: tuple[str, ...] = ("valid", "test")):
        self.splits = splits

    def __call__(self, ctx: EvalContext) -> Iterator[Score]:
        """Yields the scores of every split that has at least two pairs."""
        untrained_ctx = with_random_init(ctx)
        for split in self.splits:
            pairs = make_retrieval_set(ctx, getattr(ctx.data, split))
            n = len(pairs.rows)
            if n < 2:
                continue
            x = embed_rows(ctx, pairs.rows)
            anchors, matches = x[:, 0], x[:, 1]
            ranks = match_ranks(anchors @ matches.T)
            yield from _rank_scores(f"{split}/", ranks)
            interval = stats.binomtest(int(np.sum(ranks == 1)), n).proportion_ci()
            yield Score(f"{split}/recall@1_low", float(interval.low))
            yield Score(f"{split}/recall@1_high", float(interval.high))
            reverse = _recall_at_1(match_ranks(matches @ anchors.T))
            yield Score(f"{split}/recall@1_reverse", reverse, n)
            if "images" in pairs.rows[0]:
                yield from _group_scores(f"{split}/", anchors, matches)
            alignment = float(np.mean(np.sum((anchors - matches) ** 2, -1)))
            yield Score(f"{split}/alignment", alignment, n)
            uniformity = 0.5 * (_uniformity(anchors) + _uniformity(matches))
            yield Score(f"{split}/uniformity", uniformity, n)
            for name, similarities in _baselines(untrained_ctx, pairs):
                yield from _rank_scores(f"{split}/{name}_", match_ranks(similarities))
            yield Score(f"{split}/eval_set_sha256", pairs.digest)


def make_retrieval_set(ctx: EvalContext, store: TokenStore) -> RetrievalSet:
    """Returns the text pairs of a split, equal for all models with this data, tokenizer and length.

    A pair is left out if one of its texts occurs in an earlier pair, or if the text is too short to
    be split into two halves. An image has the id of its text.
    """
    settings, objective = ctx.settings, ctx.objective.for_eval()
    row_spec = objective.row_spec(settings.model, settings.train.seq_len)
    reader = make_row_source(store, row_spec)
    make_row = objective.make_row_fn(settings.model, settings.train.seq_len, ctx.data.tokenizer)
    rows, texts, used_ids = [], list[tuple[str, str]](), set[bytes]()
    digest = hashlib.sha256()
    n_rows = reader.epoch_length // reader.row_length
    for index in permutation(0, 0, RandomStream.RETRIEVAL, n_rows):
        slices = reader.row(int(index))
        pieces = [piece.tokens for piece in slices]
        row = make_row(pieces, row_spec.text_length, np.random.default_rng(0))
        if slices[0].image is not None:
            row["images"] = slices[0].image
            digest.update(row["images"].tobytes())
        text_ids = {row["text_ids"][0].tobytes(), row["text_ids"][1].tobytes()}
        # The weight is 0 if the text is too short for two halves.
        if text_ids & used_ids or not row["weights"]:
            continue
        used_ids |= text_ids
        rows.append(row)
        tokens = [
            ids[is_text != 0]
            for ids, is_text in zip(row["tokens"][:2], row["segment_ids"][:2], strict=True)
        ]
        anchor, match = ("", *(ctx.data.tokenizer.decode(ids) for ids in tokens))[-2:]
        texts.append((anchor, match))
        for ids in tokens:
            digest.update(ids.astype("<i4").tobytes())
        if len(rows) == MAX_CANDIDATES:
            LOGGER.info("  the text pairs are a sample of %d, the limit of retrieval", len(rows))
            break
    anchors, matches = zip(*texts, strict=True) if texts else ((), ())
    return RetrievalSet(rows, list(anchors), list(matches), digest.hexdigest())


def embed_rows(ctx: EvalContext, rows: list[dict[str, np.ndarray]]) -> Float[np.ndarray, "N V E"]:
    """Returns the model's embeddings of the V texts of each row, normalized to length 1.

    The first one is that of the image, if rows have images.
    """
    objective, mesh = ctx.objective.for_eval(), ctx.mesh
    batch_size = -(-ctx.settings.eval.batch_size // mesh.size) * mesh.size
    embeddings = []
    with jax.set_mesh(mesh):
        for start in range(0, len(rows), batch_size):
            batch_rows = rows[start : start + batch_size]
            batch_rows = batch_rows + [rows[0]] * (batch_size - len(batch_rows))
            batch = {name: np.stack([row[name] for row in batch_rows]) for name in rows[0]}
            batch_on_device = {
                name: jax.device_put(x, meshes.batch_array_sharding(mesh, x.shape))
                for name, x in batch.items()
            }
            out = to_host(_encode_batch(objective, ctx.trainable, batch_on_device))
            embeddings.append(np.asarray(out, np.float64))
    return np.concatenate(embeddings)[: len(rows)]


def embed_texts(ctx: EvalContext, texts: list[str]) -> Float[np.ndarray, "N E"]:
    """Returns one embedding per text.

    A contrastive objective embeds the first train.seq_len tokens of a text, and the log says how
    many texts are longer. For other objectives the embedding is the mean over all tokens of the
    output of the last norm; a model that was imported reads them in the frame of its own files.
    """
    tokenizer, T, reads = ctx.data.tokenizer, ctx.settings.train.seq_len, reading(ctx)
    if ctx.objective.row_spec(ctx.settings.model, T).n_texts == 1:
        is_imported = not ctx.settings.train.steps
        return pooled_features(ctx, texts, reads if is_imported else None)[:, -1]
    rows, encoded = [], tokenizer.encode(texts)
    room = T - len(reads.prefix) - len(reads.suffix)
    if n_cut := sum(len(ids) > room for ids in encoded):
        LOGGER.warning(
            "%d of %d texts do not fit a row of %d tokens and lose their end",
            *(n_cut, len(texts), T),
        )
    for ids in encoded:
        tokens = [*reads.prefix, *ids[:room].tolist(), *reads.suffix]
        row = {name: np.zeros((1, T), np.int32) for name in ("tokens", "positions", "segment_ids")}
        n = len(tokens)
        row["tokens"][0, :n], row["positions"][0, :n] = tokens, np.arange(n)
        row["segment_ids"][0, :n] = 1
        rows.append(row)
    return embed_rows(ctx, rows)[:, 0]


def match_ranks(similarities: Float[np.ndarray, "N N"]) -> np.ndarray:
    """Returns the rank of each row's match, which is on the diagonal; ties count against it."""
    match_similarities = np.diagonal(similarities)[:, None]
    return np.sum(similarities >= match_similarities, axis=1)


def _baselines(
    untrained_ctx: EvalContext, retrieval_set: RetrievalSet
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name and the similarities of each baseline."""
    x = embed_rows(untrained_ctx, retrieval_set.rows)
    yield "untrained", x[:, 0] @ x[:, 1].T
    if "images" in retrieval_set.rows[0]:
        return
    yield "bm25", bm25(retrieval_set.anchors, retrieval_set.matches)
    bag = bag_of_words(
        retrieval_set.anchors + retrieval_set.matches,
        range(2 * len(retrieval_set.rows)),
        BASELINE_WORDS,
    )
    yield "bag_of_words", _cosine_similarities(*np.split(bag, 2))
    table = np.asarray(to_host(untrained_ctx.trainable.model.embed.table[...]), np.float64)
    yield (
        "bag_of_embeddings",
        _cosine_similarities(*(_mean_embeddings(table, retrieval_set.rows, i) for i in (0, 1))),
    )


def _mean_embeddings(table: np.ndarray, rows: list[dict[str, np.ndarray]], side: int) -> np.ndarray:
    return np.stack([table[r["tokens"][side][r["segment_ids"][side] != 0]].mean(0) for r in rows])


def _cosine_similarities(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"]) -> np.ndarray:
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
    return a @ b.T


def _uniformity(x: Float[np.ndarray, "N E"]) -> float:
    potentials = np.exp(-4 * (1 - x @ x.T))
    n = len(x)
    return float(np.log((potentials.sum() - np.trace(potentials)) / (n * (n - 1))))


def _rank_scores(prefix: str, ranks: np.ndarray) -> Iterator[Score]:
    yield Score(f"{prefix}recall@1", _recall_at_1(ranks), len(ranks))
    yield Score(f"{prefix}mrr", float(np.mean(1 / ranks)), len(ranks))


def _group_scores(
    prefix: str, anchors: Float[np.ndarray, "N E"], matches: Float[np.ndarray, "N E"]
) -> Iterator[Score]:
    """Yields the recall among the pairs of disjoint groups, in both directions."""
    starts = range(0, len(anchors) - GROUP + 1, GROUP)
    groups = [(anchors[i : i + GROUP], matches[i : i + GROUP]) for i in starts]
    if groups:
        n = GROUP * len(groups)
        forward = [_recall_at_1(match_ranks(a @ m.T)) for a, m in groups]
        backward = [_recall_at_1(match_ranks(m @ a.T)) for a, m in groups]
        yield Score(f"{prefix}recall@1_of_{GROUP}", float(np.mean(forward)), n)
        yield Score(f"{prefix}recall@1_of_{GROUP}_reverse", float(np.mean(backward)), n)


def _recall_at_1(ranks: np.ndarray) -> float:
    return float(np.mean(ranks == 1))


@functools.partial(jax.jit, static_argnums=0)
def _encode_batch(objective: Objective, trainable: Trainable, batch: Batch) -> Array:
    return jnp.asarray(objective.forward(trainable, batch, None).vectors)
