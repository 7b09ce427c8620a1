"""Training objectives: one file per objective, one interface for all (`objectives/types.py`).

On the host, the function of `make_row_fn` makes one row of a batch from slices of documents (numpy,
a pure function of the slices and a generator). On the device, `forward` runs the model on a
microbatch and `reduce` turns its output into loss terms. The loss is the sum over terms of
coefficient * (global sum / max(global weight, 1)). If the terms of an objective are not sums over
rows (`sums_over_rows` is False), `forward` returns `Embeddings` and `reduce` gets the whole batch.
"""

from objectives.causal_lm import CausalLM
from objectives.contrastive import Contrastive
from objectives.denoising import Denoising
from objectives.masked_lm import MaskedLM
from objectives.mixture import Mixture, MixtureConfig, MixturePart, mixture_parts
from objectives.preference import Preference
from objectives.token_sets import DummyTokenizer, TokenizerLike
from objectives.types import (
    Batch,
    Embeddings,
    LossTerm,
    MemoryBank,
    Metrics,
    Objective,
    RowFn,
    RowSpec,
    Trainable,
    all_term_weights,
    aux_loss_terms,
    count_tokens,
)

# The only list of objectives: the choice `objective`, the sections of settings and `mixture.parts`
# follow from it. To add an objective, write its file, import it and add it here.
OBJECTIVES: dict[str, type[Objective]] = {
    "causal_lm": CausalLM,
    "masked_lm": MaskedLM,
    "denoising": Denoising,
    "contrastive": Contrastive,
    "preference": Preference,
}

__all__ = [
    "OBJECTIVES",
    "Batch",
    "CausalLM",
    "Contrastive",
    "Denoising",
    "DummyTokenizer",
    "Embeddings",
    "LossTerm",
    "MaskedLM",
    "MemoryBank",
    "Metrics",
    "Mixture",
    "MixtureConfig",
    "MixturePart",
    "Objective",
    "Preference",
    "RowFn",
    "RowSpec",
    "TokenizerLike",
    "Trainable",
    "all_term_weights",
    "aux_loss_terms",
    "count_tokens",
    "mixture_parts",
]
