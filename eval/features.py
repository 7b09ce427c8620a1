"""Vectors of texts: means over the tokens, by layer, of a learner whose objective plays no part.

A model reads as its objective has it read: from the left, from both sides, or all of a text as a
prefix (denoising in one stack); of an encoder-decoder the encoder reads.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from arch import Model, Sequence
from arch.layers import by_layer
from arch.sequence import View
from eval.rows import batches
from eval.task import Subject
from objectives import Learner
from training import mesh as meshes
from training.distributed import whole


def pooled(subject: Subject, texts: list[str]) -> Float[np.ndarray, "N L D"]:
    """Layers are the embedding, every block and the last norm. A text longer than a row of training
    is read in several; one without tokens is 0."""
    length, rows, owners = subject.settings.train.length, [], list[int]()
    for number, ids in enumerate(subject.data.tokenizer.encode(texts)):
        for at in range(0, len(ids), length):
            rows.append({"tokens": ids[at : at + length]})
            owners.append(number)
    view, place, sums = subject.settings.rows.view, meshes.rows(subject.mesh), None
    lengths = [len(row["tokens"]) for row in rows]
    counts = np.bincount(np.array(owners, int), lengths, len(texts))
    with jax.set_mesh(subject.mesh):
        for numbers, arrays in batches(subject, rows):
            found = _sums(subject.learner.model, jax.device_put(arrays, place), view)
            own = [owners[i] for i in numbers]
            amounts = np.asarray(whole(found), np.float64)[: len(own)]
            sums = np.zeros((len(texts), *amounts.shape[1:])) if sums is None else sums
            np.add.at(sums, own, amounts)
    if sums is None:
        return np.zeros((len(texts), 1, subject.settings.model.width))
    return sums / np.maximum(counts, 1)[:, None, None]


def untrained(subject: Subject, seed: int = 0) -> Subject:
    """The same architecture as it begins, and what the objective adds to it."""
    config, objective = subject.learner.model.config, subject.objective

    def init() -> Learner:
        key = jax.random.key(seed)
        return Learner(Model(config, key=key), objective.head(config, jax.random.fold_in(key, 1)))

    place = meshes.layouts(subject.mesh, jax.eval_shape(init))
    with jax.set_mesh(subject.mesh):
        return subject._replace(learner=jax.jit(init, out_shardings=place)())


@functools.partial(jax.jit, static_argnames="view")
def _sums(model: Model, batch: dict[str, Array], view: View) -> Float[Array, "B L D"]:
    text = batch["segments"] != 0
    both = view == "both" or model.encoder is not None
    seq = Sequence(
        batch["positions"],
        batch["segments"],
        text if view == "prefix" and not both else None,
        causal=not both,
    )

    def read(x: Array) -> Array:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.sum(jnp.where(text[..., None], x.astype(wide), 0), axis=1)

    return jnp.moveaxis(by_layer(model, batch["tokens"], seq, read), 0, 1)
