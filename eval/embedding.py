"""A learner as an encoder of texts with mteb's protocol: `mteb.evaluate(Encoder(subject), tasks)`.

Needs neither mteb nor torch: numpy arrays come out. A text is what a contrastive objective makes of
it, else the mean over its tokens of what the last norm gives. Prompts and instructions are unused.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from eval.retrieval import embedded
from eval.task import Subject


class Encoder:
    """Of a run: `Encoder(eval.subject.from_run(folder)[0])`."""

    def __init__(self, subject: Subject):
        self.subject = subject
        # An mteb.ModelMeta says under which name results are kept; None: under none.
        self.mteb_model_meta: Any = None

    def encode(
        self,
        inputs: Iterable[str | Mapping[str, Any]],
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **asked: Any,
    ) -> Float[np.ndarray, "N D"]:
        """Of batches `{"text": [...]}` (mteb 2) or of texts (mteb 1, sentence-transformers).

        What is asked besides (batch_size, show_progress_bar) changes no vector.
        """
        texts: list[str] = []
        for one in inputs:
            texts += [one] if isinstance(one, str) else list(one["text"])
        return embedded(self.subject, texts).astype(np.float32)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Float[np.ndarray, "N M"]:
        """Cosines of all with all."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Float[np.ndarray, " N"]:
        """Cosines of each with its own."""
        return np.sum(_unit(embeddings1) * _unit(embeddings2), axis=-1)


def _unit(x: Any) -> Float[np.ndarray, "N D"]:
    x = np.atleast_2d(np.asarray(x))
    size = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(size > 0, size, 1)
