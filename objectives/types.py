"""The interface of an objective, and the types that all objectives share.

`Objective` and `MemoryBank` are the interfaces. `OBJECTIVES` in `objectives/__init__.py` lists the
objectives, through which mypy checks them; they need no base class.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from arch import Model, ModelConfig
from arch.part_cost import PartCost
from arch.sequence import View
from arch.vision import IMAGE_PREFIX
from arch.weighted_sum import AuxMetrics, WeightedSum
from objectives.token_sets import TokenizerLike

Batch = dict[str, Array]  # The rows of a batch, stacked, by the names of their arrays.
Metrics = dict[str, WeightedSum]
ENCODER_PREFIX = "encoder/"  # Prefix of the auxiliary metrics that an encoder's channels report.


# (slices of documents, number of text positions in a row, generator) -> arrays of the row by name.
RowFn = Callable[[list[np.ndarray], int, np.random.Generator], dict[str, np.ndarray]]


# packed: documents one after another. slices: one stretch of one document. text_pairs: the texts of
# a text pair (data/sources). preferences: a prompt, then the chosen and the rejected reply
# (data/chats/preferences.py). image_texts: an image and its text (data/images/rows.py).
RowKind = Literal["packed", "slices", "text_pairs", "preferences", "image_texts"]
StoreKind = Literal["documents", "text_pairs", "preferences"]  # As `open_data` opens them.


class RowSpec(NamedTuple):
    """A specification of the rows of a batch and of how a model reads them."""

    text_length: int  # Document positions in a row; in each text, if a row has several.
    overlap: int  # Framed tokens that a slice shares with the next one (see data/packing.py).
    view: View
    source_length: int = 0  # Tokens of the encoder's row, or of the prefix.
    target_length: int = 0  # Tokens of the row that is scored; 0: as many as of text.
    max_targets: int = 0  # Maximum number of scored tokens per row; 0: all.
    row_kind: RowKind = "packed"
    n_texts: int = 1  # Texts per row, each read by itself.
    # The number and the id of the tokens in whose place the model puts the image of a row.
    image_prefix: tuple[int, int] = (0, -1)
    extra_texts: int = 0  # Texts per row that a memory bank adds.
    # Whether each token is read or predicted at its own position, so that weights apply to it.
    allows_weights: bool = False
    needs_logits: bool = True  # Whether the objective computes logits with the model's head.
    extra_cost: PartCost | None = None  # Cost per token of the objective's own parameters.
    hint: str = ""  # A further way out, for the error of a model that cannot take the view.
    source_hint: str = ""  # A further way out, for the error of data without such a store.

    @property
    def store_kind(self) -> StoreKind:
        """The kind of token store that the rows are read from."""
        # mypy narrows a literal by equality alone.
        if self.row_kind == "text_pairs" or self.row_kind == "preferences":
            return self.row_kind
        return "documents"

    @property
    def n_images(self) -> int:
        """The number of images per row."""
        return int(self.row_kind == "image_texts")

    def with_image_prefix(self, model: ModelConfig) -> "RowSpec":
        """Returns the specification of rows with an image before the text, if the model reads any.

        The objective predicts each token from those before it, so the image is a part of them.
        """
        vision = model.vision
        if not vision.n_prefix_tokens:
            return self
        prefix = vision.n_prefix_tokens, vision.token_id
        return self._replace(row_kind="image_texts", image_prefix=prefix)

    def tokens_per_row(self, seq_len: int) -> int:
        """Returns the number of tokens of a row that the model reads."""
        return (self.target_length or seq_len) * (self.n_texts + self.extra_texts)


class Trainable(NamedTuple):
    """All trained parameters: the model and the objective's own head (None if it has none)."""

    model: Model
    head: PyTree = None  # A tree of modules.


class LossTerm(NamedTuple):
    """A term of the loss is coefficient * sum / max(weight, 1), over the global batch."""

    sum: Float[Array, ""]
    weight: Float[Array, ""]
    coefficient: float = 1.0


class Embeddings(NamedTuple):
    """Embeddings are what `forward` returns if the terms are not sums over rows.

    The first axis of the vectors is the batch. The channels' metrics add up over microbatches.
    """

    vectors: PyTree[Float[Array, "B ..."]]
    aux: AuxMetrics


Output = TypeVar("Output")  # What `forward` of an objective returns, a pytree.
BankState = TypeVar("BankState")  # The state of a memory bank, a pytree.


class MemoryBank(Protocol[BankState]):
    """A memory bank keeps rows of text, or what the model makes of them, between steps.

    It lives on the device, in the state of the run (Wu et al., arXiv:1805.01978).
    """

    @property
    def n_rows(self) -> Mapping[str, int]:
        """The number of rows that the bank reads of each split, such as {"train": 1024}."""

    def init(self, model_width: int, row: Batch) -> BankState:
        """Returns the state of a bank without rows.

        Args:
            model_width: Width of the model's hidden states.
            row: The arrays of one row, as the function of `make_row_fn` makes them.
        """

    def add_rows(
        self,
        trainable: Trainable,
        state: BankState,
        split: str,
        batch: Batch,
        first: Array,
        grad_accum_steps: int,
    ) -> BankState:
        """Returns the state with further rows, before the first step of a run.

        It needs no more memory than one of `grad_accum_steps` microbatches.

        Args:
            trainable: The initial parameters of the run.
            state: The state without these rows.
            split: The split that the rows are of.
            batch: The rows; padding follows the last of the `n_rows[split]` rows.
            first: The number of rows of the split that the bank has already.
            grad_accum_steps: The number of microbatches of a batch.
        """

    def update_and_lookup(
        self,
        trainable: Trainable,
        state: BankState,
        batch: Batch,
        step: Array,
        grad_accum_steps: int,
    ) -> tuple[BankState, Batch]:
        """Returns the bank's state after step `step`, and the batch with the texts that it adds.

        No gradient flows through this function. It needs no more memory than one of
        `grad_accum_steps` microbatches.
        """

    def extra_tokens(self, steps: int, batch_size: int, seq_len: int) -> int:
        """Returns the number of training tokens that the model reads for the bank in a run.

        They are read without a gradient, so the compute budget counts a third of their cost.
        """


class Objective(Protocol[Output]):
    """An objective defines the rows, the forward pass and the loss terms; a frozen dataclass.

    `row_spec` and the function of `make_row_fn` run on the host, `forward` and `reduce` on the
    device. If the terms are not sums over rows, `forward` returns `Embeddings`, and `reduce` gets
    those of the whole batch.
    """

    sums_over_rows: ClassVar[bool]  # Whether the loss terms are sums over rows.

    @property
    def memory_bank(self) -> MemoryBank | None:
        """The objective's memory bank, or None if it has none."""

    def row_spec(self, model: ModelConfig, seq_len: int) -> RowSpec:
        """Returns the shape and kind of rows.

        Raises:
            ConfigError: if the model cannot read such rows.
        """

    def make_row_fn(self, model: ModelConfig, seq_len: int, tokenizer: TokenizerLike) -> RowFn:
        """Returns the function that makes a row; without slices it returns a row of padding."""

    def for_eval(self) -> "Objective":
        """Returns the objective for evaluation, which does not depend on training settings."""

    def make_head(self, model: ModelConfig, key: Array) -> PyTree | None:
        """Returns the objective's own parameters, or None if it has none."""

    def term_weights(self, batch: Batch) -> dict[str, Array]:
        """Returns the weight of each loss term by name, a function of the batch alone."""

    def forward(self, trainable: Trainable, microbatch: Batch, key: Array | None) -> Output:
        """Runs the model on a microbatch and returns what `reduce` needs.

        Args:
            trainable: the model and the head from `make_head`.
            microbatch: some rows of the batch.
            key: the key of dropout and jitter; None means neither.
        """

    def reduce(
        self, trainable: Trainable, out: Output, batch: Batch
    ) -> tuple[dict[str, LossTerm], Metrics]:
        """Returns the loss terms and the metrics of the output of `forward`, by name."""


def aux_loss_terms(
    trainable: Trainable, aux: AuxMetrics, batch: Batch
) -> tuple[dict[str, LossTerm], Metrics]:
    """Returns the channels' auxiliary outputs as loss terms and metrics.

    `aux` has an array [layers] for each name. A term is the sum over layers of means over tokens.
    For the encoder's channels the mean is over the tokens of the source, for those of the vision
    stack over images.
    """
    coefficients = trainable.model.config.aux_losses()
    terms, metrics = dict[str, LossTerm](), Metrics()
    for name, amount in aux.items():
        base_name = name.removeprefix(ENCODER_PREFIX).removeprefix(IMAGE_PREFIX)
        if base_name in coefficients:
            weight = _token_weight(name, batch)
            terms[name] = LossTerm(jnp.sum(amount.sum), weight, coefficients[base_name])
        else:
            metrics[name] = WeightedSum(amount.sum, amount.weight)
    return terms, metrics


def count_tokens(batch: Batch) -> Float[Array, ""]:
    """Returns the number of tokens that are not padding, the weight of auxiliary losses."""
    return jnp.sum(batch["segment_ids"] != 0, dtype=jnp.float32)


def all_term_weights(objective: Objective, batch: Batch, names: list[str]) -> dict[str, Array]:
    """Returns the global weight of each term in `names`.

    The weight of a term that is not the objective's own is its number of tokens.
    """
    weights = objective.term_weights(batch)
    return {n: weights[n] if n in weights else _token_weight(n, batch) for n in names}


def _token_weight(name: str, batch: Batch) -> Float[Array, ""]:
    if name.startswith(ENCODER_PREFIX):
        return jnp.sum(batch["source_segment_ids"] != 0, dtype=jnp.float32)
    if name.startswith(IMAGE_PREFIX):
        return jnp.asarray(len(batch["images"]), jnp.float32)
    return count_tokens(batch)
