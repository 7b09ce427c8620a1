"""The added output layer, and its loss as an objective of the project's training step.

One matrix and one bias map a vector to scores: the pooled vector of a row for classes and numbers,
the vector of each labelled token for token labels. BERT's matrix has the standard deviation .02.
"""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from arch import Model, ModelConfig
from arch.layers.dropout import dropout, maybe_split_key
from arch.part_cost import PartCost, TermFlops
from arch.sequence import View
from arch.sharding import P, make_param, make_vector
from arch.weighted_sum import AuxMetrics
from errors import ConfigError
from eval.features import text_structure
from objectives import Batch, LossTerm, Metrics, RowSpec, TokenizerLike, Trainable, aux_loss_terms
from objectives.pooling import pool
from objectives.types import RowFn

INIT_STDDEV = 0.02
LayerPooling = Literal["pooler", "first", "mean", "last"]


class OutputLayer(nnx.Module):
    """A linear map from vectors to K scores."""

    def __init__(self, D: int, K: int, *, key: Array):
        init = nnx.initializers.normal(INIT_STDDEV)
        self.w = make_param(key, (D, K), P("data", None), init, role="matrix")
        self.b = make_vector(K, 0.0)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... K"]:
        """Returns scores in at least float32."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return x @ self.w[...] + self.b[...]

    @staticmethod
    def cost(D: int, K: int) -> PartCost:
        """Returns the cost of one vector."""
        return PartCost((D + 1) * K, (D + 1) * K, {"scores": TermFlops(2.0 * D * K, 2.0 * D * K)})


class LayerOutput(NamedTuple):
    """The scores of a microbatch, and the auxiliary metrics of the model's channels."""

    scores: Float[Array, "..."]  # [B K], or [B T K] for token labels
    aux: AuxMetrics


@dataclasses.dataclass(frozen=True)
class OutputLayerObjective:
    """Trains the output layer, and the model below it unless it is frozen."""

    problem: str  # classes, regression or tokens
    n_outputs: int  # Number of classes; 1 for a number.
    pooling: LayerPooling
    view: View  # View with which the model reads a text.
    dropout: float = 0.0  # Dropout rate of the vectors that the layer reads.
    trains_model: bool = True

    sums_over_rows: ClassVar[bool] = True
    memory_bank: ClassVar[None] = None

    def row_spec(self, model: ModelConfig, seq_len: int) -> RowSpec:
        """Returns the specification of rows of one text."""
        return RowSpec(text_length=seq_len, overlap=0, view=self.view, needs_logits=False)

    def for_eval(self) -> "OutputLayerObjective":
        """Returns the objective itself."""
        return self

    def make_row_fn(self, model: ModelConfig, seq_len: int, tokenizer: TokenizerLike) -> RowFn:
        """Refuses to make rows from documents, which have no labels.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("documents have no labels; use the evaluation task finetune")

    def make_head(self, model: ModelConfig, key: Array) -> OutputLayer:
        """Returns a new output layer."""
        return OutputLayer(model.width, self.n_outputs, key=key)

    def term_weights(self, batch: Batch) -> dict[str, Array]:
        """Returns the number of labels."""
        return {"loss": jnp.sum(batch["weights"], dtype=jnp.float32)}

    def forward(self, trainable: Trainable, microbatch: Batch, key: Array | None) -> LayerOutput:
        """Computes the scores of a microbatch."""
        keys = maybe_split_key(key, 2)
        hidden, aux = read_texts(trainable.model, microbatch, self.view, keys[0])
        x = hidden
        if self.problem != "tokens":
            x = pool_texts(trainable.model, hidden, microbatch, self.pooling)
        if not self.trains_model:
            x, aux = jax.lax.stop_gradient(x), {}
        return LayerOutput(trainable.head(dropout(x, self.dropout, keys[1])), aux)

    def reduce(
        self, trainable: Trainable, out: LayerOutput, batch: Batch
    ) -> tuple[dict[str, LossTerm], Metrics]:
        """Returns the mean of the losses of all labels, and the terms of the channels."""
        losses = label_losses(out.scores, batch["targets"], self.problem)
        total = jnp.sum(jnp.where(batch["weights"] > 0, losses * batch["weights"], 0))
        aux_terms, metrics = aux_loss_terms(trainable, out.aux, batch)
        return {"loss": LossTerm(total, self.term_weights(batch)["loss"])} | aux_terms, metrics


def label_losses(
    scores: Float[Array, "... K"], targets: Array, problem: str
) -> Float[Array, "..."]:
    """Returns the cross-entropy of each class in nats, or the squared error of each number."""
    if problem == "regression":
        return jnp.square(scores[..., 0] - targets)
    log_probs = jax.nn.log_softmax(scores)
    return -jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]


def read_texts(
    model: Model, batch: Batch, view: View, key: Array | None
) -> tuple[Float[Array, "B T D"], AuxMetrics]:
    """Returns the vectors after the final norm; those of the encoder, if there is one."""
    seq = text_structure(model, batch, view)
    if model.encoder is not None:
        return model.encode(batch["tokens"], seq, key=key)
    hidden, aux, _ = model(batch["tokens"], seq, key=key)
    return hidden, aux


def pool_texts(
    model: Model, hidden: Float[Array, "B T D"], batch: Batch, pooling: LayerPooling
) -> Float[Array, "B D"]:
    """Returns one vector per row."""
    if pooling == "pooler":
        vectors, _ = model.pooler(hidden)
        return vectors
    return pool(hidden, batch["segment_ids"] != 0, pooling, None)
