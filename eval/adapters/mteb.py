"""Adapts a model to mteb's encoder protocol: `mteb.evaluate(MtebEncoder(ctx), tasks)`.

It needs neither mteb nor torch, and returns numpy arrays. A contrastive objective embeds the texts,
also of a model that was imported with the pooling of its files (`hub/sentence_modules.py`); for
other objectives an embedding is the mean over the tokens of the output of the last norm. A
model that was imported reads each text as its own files say (`eval/framing.py`). Prompts and
instructions are ignored.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from eval.task import EvalContext
from eval.tasks.retrieval import embed_texts


class MtebEncoder:
    """Encodes texts with a trained run: `MtebEncoder(eval.load_run.load_run(folder)[0])`."""

    def __init__(self, ctx: EvalContext):
        self.ctx = ctx
        # An mteb.ModelMeta names the model under which mteb saves results; None saves no results.
        self.mteb_model_meta: object = None

    def encode(
        self,
        inputs: str | Iterable[str | Mapping[str, Iterable[str]]],
        *,
        task_metadata: object = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: object = None,
        **kwargs: object,
    ) -> Float[np.ndarray, "N D"] | Float[np.ndarray, " D"]:
        """Returns the embeddings of texts; of one text, which is no list, it returns one vector.

        The inputs are batches `{"text": [...]}` (mteb 2) or texts (mteb 1, sentence-transformers).
        Further arguments (batch_size, show_progress_bar) do not change the embeddings.
        """
        if isinstance(inputs, str):
            return embed_texts(self.ctx, [inputs])[0].astype(np.float32)
        texts: list[str] = []
        for item in inputs:
            texts += [item] if isinstance(item, str) else list(item["text"])
        # Without texts the width of an embedding is that of any text.
        return embed_texts(self.ctx, texts or [""])[: len(texts)].astype(np.float32)

    def similarity(
        self, embeddings1: ArrayLike, embeddings2: ArrayLike
    ) -> Float[np.ndarray, "N M"]:
        """Returns the cosines of all pairs of embeddings."""
        return _l2_normalize(embeddings1) @ _l2_normalize(embeddings2).T

    def similarity_pairwise(
        self, embeddings1: ArrayLike, embeddings2: ArrayLike
    ) -> Float[np.ndarray, " N"]:
        """Returns the cosine of each embedding with the one at the same index."""
        return np.sum(_l2_normalize(embeddings1) * _l2_normalize(embeddings2), axis=-1)


def _l2_normalize(x: ArrayLike) -> Float[np.ndarray, "N D"]:
    x = np.atleast_2d(np.asarray(x))
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norms > 0, norms, 1)
