"""Preferences: make the chosen of two replies likelier than the rejected one (DPO).

Direct preference optimization (Rafailov et al., arXiv:2305.18290, equation 7): the reward of a
reply y to a prompt x is beta (log p(y|x) - log r(y|x)), where r is the reference, the model as the
run begins. The loss is -log sigmoid of the reward of the chosen reply minus that of the rejected
one. Only the tokens of replies count, the end of a reply among them.

The reference never changes, so its log-likelihoods are computed once, before the first step, and
are a memory bank: part of the state of the run, without a second model in memory.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from arch import ModelConfig, SequenceInfo
from arch.weighted_sum import AuxMetrics, WeightedSum
from errors import ConfigError
from objectives.token_loss import masked_sum, score_tokens
from objectives.token_sets import TokenizerLike, require_single_stack
from objectives.types import (
    Batch,
    LossTerm,
    Metrics,
    RowFn,
    RowSpec,
    Trainable,
    aux_loss_terms,
)
from settings.types import NonNegativeInt, PositiveFloat, config

REPLIES = 2  # Of a row: the chosen reply, then the rejected one.
SPLITS = ("train", "valid", "test")  # The splits whose pairs the reference reads.
ROW_ARRAYS = ("tokens", "targets", "weights", "positions", "segment_ids", "is_prefix")
ForwardFn = Callable[[Trainable, Batch, Array | None], "ReplyScores"]


class ReplyScores(NamedTuple):
    """Reply scores are the log-likelihoods of the replies of a microbatch, in nats."""

    log_likelihoods: Float[Array, "B 2"]
    aux: AuxMetrics


@config
class Preference:
    """The preference objective separates chosen replies from rejected ones (DPO)."""

    # Factor of rewards: a small one allows a large distance from the reference. With
    # length_normalized it is usually larger, 2 to 10.
    beta: PositiveFloat = 0.1
    # Whether log-likelihoods are means over the tokens of a reply (Tulu 3, arXiv:2411.15124,
    # section 5.1.1); otherwise they are sums.
    length_normalized: bool = False
    # Number of pairs of the splits train, valid and test; (): those of the data.
    pairs: tuple[NonNegativeInt, ...] = ()

    sums_over_rows: ClassVar[bool] = True

    def check(self) -> None:
        """Checks that the number of pairs is that of all splits.

        Raises:
            ConfigError: if it is not.
        """
        if self.pairs and len(self.pairs) != len(SPLITS):
            raise ConfigError(
                f"preference.pairs {self.pairs} must be the numbers of pairs of {', '.join(SPLITS)}"
                "; set it to () to read them from the data"
            )

    def row_spec(self, model: ModelConfig, seq_len: int) -> RowSpec:
        """Returns the spec of rows of two texts, a prompt with each of its replies."""
        require_single_stack("preference", model.encoder.depth)
        return RowSpec(seq_len, 1, "causal", row_kind="preferences", n_texts=REPLIES)

    def for_eval(self) -> "Preference":
        """Returns the objective itself."""
        return self

    @property
    def memory_bank(self) -> "ReferenceBank | None":
        """The log-likelihoods of all pairs under the reference; None if `pairs` are not known."""
        return ReferenceBank(self.pairs, self.forward) if self.pairs else None

    def make_row_fn(self, model: ModelConfig, seq_len: int, tokenizer: TokenizerLike) -> RowFn:
        """Returns the function that makes a row of the slices prompt, chosen and rejected.

        The arrays of `causal_lm` are [2 T]. `record` is the number of the pair in its split, and
        `reference` [2] has the log-likelihoods of the reference; both are filled in later.
        """

        def make_row(
            slices: list[np.ndarray], length: int, rng: np.random.Generator
        ) -> dict[str, np.ndarray]:
            row = {name: np.zeros((REPLIES, seq_len), np.int32) for name in ROW_ARRAYS}
            row["weights"] = np.zeros((REPLIES, seq_len), np.float32)
            row["is_prefix"] = np.zeros((REPLIES, seq_len), bool)
            for i, reply in enumerate(slices[1:]):
                ids = np.concatenate([slices[0], reply])
                n = len(ids) - 1
                row["tokens"][i, :n], row["targets"][i, :n] = ids[:-1], ids[1:]
                row["positions"][i, :n], row["segment_ids"][i, :n] = np.arange(n), 1
                row["weights"][i, n - len(reply) : n] = 1
            reference = np.zeros(REPLIES, np.float32)
            return row | {"record": np.asarray(-1, np.int32), "reference": reference}

        return make_row

    def make_head(self, model: ModelConfig, key: Array) -> None:
        """Returns None, since the objective has no parameters of its own."""
        return None

    def term_weights(self, batch: Batch) -> dict[str, Array]:
        """Returns the number of rows with replies."""
        return {"preference_nats": jnp.sum(_has_replies(batch), dtype=jnp.float32)}

    def forward(self, trainable: Trainable, microbatch: Batch, key: Array | None) -> ReplyScores:
        """Runs the model on both texts of each row and adds up the log-likelihoods of replies."""
        B, Y, T = microbatch["tokens"].shape
        flat = {name: microbatch[name].reshape(B * Y, T) for name in ROW_ARRAYS}
        seq = SequenceInfo.from_batch(flat, "causal")
        hidden, aux, _ = trainable.model(flat["tokens"], seq, key=key)
        losses = score_tokens(trainable, hidden, flat["targets"]).loss
        dtype = jnp.promote_types(losses.dtype, jnp.float32)
        log_p = -jnp.where(flat["weights"] == 0, 0, losses.astype(dtype)).sum(axis=-1)
        return ReplyScores(log_p.reshape(B, Y), aux)

    def reduce(
        self, trainable: Trainable, out: ReplyScores, batch: Batch
    ) -> tuple[dict[str, LossTerm], Metrics]:
        """Returns the loss and the channels' terms, and metrics of rewards and likelihoods.

        `accuracy` is the share of pairs whose chosen reply has the higher reward, and
        `likelihood_accuracy` that of pairs whose chosen reply is likelier; of the reference it is
        `reference_accuracy`. Equality is no success.
        """
        total = self.term_weights(batch)["preference_nats"]
        lengths = jnp.maximum(jnp.sum(batch["weights"], axis=-1), 1)
        unit = lengths if self.length_normalized else jnp.ones_like(lengths)
        likelihoods, references = out.log_likelihoods / unit, batch["reference"] / unit
        rewards = self.beta * (likelihoods - references)
        margins = rewards[:, 0] - rewards[:, 1]
        values = {
            "accuracy": margins > 0,
            "margin": margins,
            "chosen_reward": rewards[:, 0],
            "rejected_reward": rewards[:, 1],
            "likelihood_accuracy": likelihoods[:, 0] > likelihoods[:, 1],
            "reference_accuracy": references[:, 0] > references[:, 1],
        }
        has_replies = _has_replies(batch)
        aux_terms, metrics = aux_loss_terms(trainable, out.aux, batch)
        metrics |= {
            name: WeightedSum(masked_sum(value, has_replies), total)
            for name, value in values.items()
        }
        loss = LossTerm(masked_sum(-jax.nn.log_sigmoid(margins), has_replies), total)
        return {"preference_nats": loss} | aux_terms, metrics


class ReferenceBank(NamedTuple):
    """The memory bank (`objectives.MemoryBank`) of preferences: log-likelihoods by split."""

    pairs: tuple[int, ...]  # Number of pairs of each split.
    forward: ForwardFn

    @property
    def n_rows(self) -> dict[str, int]:
        """The number of pairs of each split, all of which the reference reads."""
        return dict(zip(SPLITS, self.pairs, strict=True))

    def init(self, model_width: int, row: Batch) -> dict[str, Float[Array, "pairs 2"]]:
        """Returns zeros."""
        return {
            split: jnp.zeros((max(n, 1), REPLIES), jnp.float32) for split, n in self.n_rows.items()
        }

    def add_rows(
        self,
        trainable: Trainable,
        state: dict[str, Float[Array, "pairs 2"]],
        split: str,
        batch: Batch,
        first: Array,
        grad_accum_steps: int,
    ) -> dict[str, Float[Array, "pairs 2"]]:
        """Returns the state with the log-likelihoods of the pairs of a batch."""

        def split_chunks(x: Array) -> Array:  # Every chunk has rows of every device.
            return x.reshape(-1, grad_accum_steps, *x.shape[1:]).swapaxes(0, 1)

        chunks = {name: split_chunks(batch[name]) for name in ROW_ARRAYS}
        scores = jax.lax.map(lambda x: self.forward(trainable, x, None).log_likelihoods, chunks)
        values = scores.swapaxes(0, 1).reshape(-1, REPLIES).astype(jnp.float32)
        table, record = state[split], batch["record"]
        indices = jnp.where(record < 0, len(table), record)  # Padding is dropped.
        return state | {split: table.at[indices].set(values, mode="drop")}

    def update_and_lookup(
        self,
        trainable: Trainable,
        state: dict[str, Float[Array, "pairs 2"]],
        batch: Batch,
        step: Array,
        grad_accum_steps: int,
    ) -> tuple[dict[str, Float[Array, "pairs 2"]], Batch]:
        """Returns the same state, and the batch with the reference of its pairs."""
        return state, batch | {"reference": state["train"][batch["record"]]}

    def extra_tokens(self, steps: int, batch_size: int, seq_len: int) -> int:
        """Returns the tokens of all training pairs, which the reference reads once."""
        return self.n_rows["train"] * REPLIES * seq_len


def _has_replies(batch: Batch) -> Float[Array, " B"]:
    """Returns 1 for each row that has replies, and 0 for padding."""
    return jnp.any(batch["weights"] != 0, axis=(-1, -2)).astype(jnp.float32)
