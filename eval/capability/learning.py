"""Trains an architecture from scratch on a probe, by the project's own step, at a declared budget.

If the budget has several learning rates, each is tried once with a separate seed. The one with the
lowest loss on validation rows of the training length is used for the reported seeds. Training,
validation and test rows come from different random streams. All architectures see the same rows.

The causal stack is trained: in an encoder-decoder, the decoder alone.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy import stats

from arch import ModelConfig, SequenceInfo, compute_cost
from errors import ConfigError
from eval.capability.examples import PAD, CapabilityProbe, ProbeBatch
from objectives import LossTerm, Metrics, RowSpec, TokenizerLike, Trainable
from objectives.token_loss import MaskedTokenScores, loss_terms, score_masked
from objectives.types import RowFn
from settings.types import Fraction, PositiveFloat, PositiveInt, config
from training.optimizer import OptimizerConfig, make_hyperparameters
from training.state import TrainState, init_state, make_model_optimizer
from training.step import make_shared_step

TRAIN_STREAM, VALID_STREAM, TEST_STREAM = 0, 1, 2  # Random streams.
BACKWARD_FACTOR = 3  # FLOPs of training a model over those of its forward pass.
EVAL_BATCH_TOKENS = 16_384  # Tokens of a batch in evaluation.
TUNING_SEED = 1_000_003  # Seed of the runs that select the learning rate; it is never reported.


@config
class Budget:
    """Defines the training and evaluation of a probe, the same for all architectures."""

    steps: PositiveInt = 500  # Number of training steps.
    batch_size: PositiveInt = 64  # Rows per training step.
    train_length: PositiveInt = 64  # Tokens of a training row.
    test_lengths: tuple[PositiveInt, ...] = (64, 128, 256)  # Tokens of a test row, one per test.
    # Learning rates to select from, by the loss on validation rows.
    learning_rates: tuple[PositiveFloat, ...] = (1e-3, 4e-3)
    seeds: PositiveInt = 1  # Number of reported training runs.
    test_rows: PositiveInt = 512  # Number of test rows per length.
    warmup: Fraction = 0.1  # Share of the steps with learning rate warmup.

    def make_optimizer_config(self, learning_rate: float) -> OptimizerConfig:
        """Returns the optimizer settings for a learning rate."""
        warmup = round(self.warmup * (self.steps - 1))
        return OptimizerConfig(learning_rate=learning_rate, warmup=warmup, on_nonfinite="skip")


class ProbeAccuracy(NamedTuple):
    """Holds the counts of correct answers of one run, in rows of one length."""

    seq_len: int
    n_correct: int
    n_questions: int
    nats: float  # Mean of -log p of the correct answer.

    @property
    def accuracy(self) -> float:
        """The accuracy is the share of correct answers."""
        return self.n_correct / self.n_questions

    def confidence_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Returns the exact interval of this run's accuracy (Clopper & Pearson 1934).

        It covers the noise of the test rows, not that of the seed. The questions of a row count as
        independent.
        """
        test = stats.binomtest(self.n_correct, self.n_questions)
        interval = test.proportion_ci(level, method="exact")
        return float(interval.low), float(interval.high)


class CapabilityResult(NamedTuple):
    """Holds the results of an architecture: the accuracies of its runs at all test lengths."""

    learning_rate: float
    tuning_losses: dict[float, float]  # Validation nats by learning rate; empty for a single rate.
    runs: tuple[tuple[ProbeAccuracy, ...], ...]  # By seed, then by length.
    flops: float  # Model FLOPs of all runs, evaluation included.


@config
class QuestionObjective:
    """Trains the prediction of answers; logits are computed only where there is a question."""

    max_questions: PositiveInt  # Largest number of questions in a row.

    sums_over_rows: ClassVar[bool] = True
    memory_bank: ClassVar[None] = None

    def row_spec(self, model: ModelConfig, seq_len: int) -> RowSpec:
        """Returns the specification of causal rows of `seq_len` tokens."""
        return RowSpec(
            text_length=seq_len, overlap=0, view="causal", max_targets=self.max_questions
        )

    def for_eval(self) -> "QuestionObjective":
        """Returns the objective itself."""
        return self

    def make_row_fn(self, model: ModelConfig, seq_len: int, tokenizer: TokenizerLike) -> RowFn:
        """Refuses to make rows from documents, since a probe generates its rows.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a probe makes its rows without documents; train it by eval.capability")

    def make_head(self, model: ModelConfig, key: Array) -> None:
        """Returns None, since the objective has no parameters."""
        return None

    def term_weights(self, batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the weight of each loss term over the global batch."""
        return {"nats": jnp.sum(batch["weights"], dtype=jnp.float32)}

    def forward(
        self, trainable: Trainable, microbatch: dict[str, Array], key: Array | None
    ) -> MaskedTokenScores:
        """Computes the scores of the answers of a microbatch."""
        hidden, aux, _ = trainable.model(
            microbatch["tokens"], SequenceInfo.from_batch(microbatch, "causal"), key=key
        )
        return score_masked(trainable, hidden, microbatch, self.max_questions, aux)

    def reduce(
        self, trainable: Trainable, out: MaskedTokenScores, batch: dict[str, Array]
    ) -> tuple[dict[str, LossTerm], Metrics]:
        """Returns the loss terms and metrics of a batch."""
        return loss_terms("nats", trainable, out, self.term_weights(batch)["nats"], batch)


def run_probe(model: ModelConfig, probe: CapabilityProbe, budget: Budget) -> CapabilityResult:
    """Selects a learning rate, then trains and evaluates every seed."""
    max_length, tuning_losses = max(budget.train_length, *budget.test_lengths), {}
    model = adapt_model(model, probe, max_length)
    for rate in budget.learning_rates if len(budget.learning_rates) > 1 else ():
        trainable = train_probe(model, probe, budget, rate, TUNING_SEED)
        nats = evaluate_probe(
            trainable, probe, budget.train_length, budget.test_rows, VALID_STREAM, max_length
        ).nats
        tuning_losses[rate] = nats if math.isfinite(nats) else math.inf
    best_rate = min(budget.learning_rates, key=lambda rate: tuning_losses.get(rate, 0.0))
    runs = []
    for seed in range(budget.seeds):
        trainable = train_probe(model, probe, budget, best_rate, seed)
        lengths = sorted({*budget.test_lengths})
        runs.append(
            tuple(
                evaluate_probe(trainable, probe, T, budget.test_rows, TEST_STREAM, max_length)
                for T in lengths
            )
        )
    flops = probe_flops(model, probe, budget)
    return CapabilityResult(best_rate, tuning_losses, tuple(runs), flops)


def probe_flops(model: ModelConfig, probe: CapabilityProbe, budget: Budget) -> float:
    """Returns the model FLOPs of `run_probe` with an adapted model, its evaluation included."""

    def row_flops(length: int) -> float:
        share = probe.max_questions(length) / length
        return length * compute_cost(model, length, logit_fraction=share).model_flops

    pad_to = max(budget.train_length, *budget.test_lengths)
    n_trained = budget.steps * budget.batch_size
    training = BACKWARD_FACTOR * n_trained * row_flops(budget.train_length)
    scoring = budget.test_rows * row_flops(pad_to)
    n_rates, n_lengths = len(budget.learning_rates), len({*budget.test_lengths})
    tuning = (training + scoring) * n_rates if n_rates > 1 else 0.0
    return tuning + budget.seeds * (training + n_lengths * scoring)


def adapt_model(model: ModelConfig, probe: CapabilityProbe, max_length: int) -> ModelConfig:
    """Returns a run's model with the vocabulary of the probe and positions for `max_length` tokens.

    Raises:
        ConfigError: if the model cannot be causal.
    """
    positions = model.positions
    if positions.learned:
        positions = dataclasses.replace(positions, max_length=max(max_length, positions.max_length))
    encoder = dataclasses.replace(model.encoder, depth=0)
    model = dataclasses.replace(
        model, vocab_size=probe.vocab_size, positions=positions, encoder=encoder
    )
    if "causal" not in model.supported_views():
        raise ConfigError(
            f"model.layers {model.layers} cannot be causal, as probes require; leave the "
            "probes out of eval.tasks"
        )
    return model


def train_probe(
    model: ModelConfig, probe: CapabilityProbe, budget: Budget, learning_rate: float, seed: int
) -> Trainable:
    """Returns the parameters after all training steps of the budget."""
    objective = QuestionObjective(probe.max_questions(budget.train_length))
    state = _make_init(model, objective, budget)(np.uint32(seed))
    step = _make_train_step(model, objective, budget)
    hyper = make_hyperparameters(budget.make_optimizer_config(learning_rate), budget.steps)
    rng = np.random.default_rng([TRAIN_STREAM, seed])
    for _ in range(budget.steps):
        batch = probe.make_train_batch(rng, budget.batch_size, budget.train_length)
        state, _ = step(state, batch_arrays(batch), hyper)
    return state.trainable


def evaluate_probe(
    trainable: Trainable,
    probe: CapabilityProbe,
    seq_len: int,
    n_rows: int,
    stream: int,
    pad_to: int = 0,
) -> ProbeAccuracy:
    """Returns the accuracy in `n_rows` rows of a random stream.

    With rows padded to `pad_to` tokens, all lengths share a compiled program. Padding after the
    last token changes no answer, since the model is causal.
    """
    rng, pad_to = np.random.default_rng([stream, seq_len]), max(pad_to, seq_len)
    objective = QuestionObjective(probe.max_questions(pad_to))
    batch_size = max(EVAL_BATCH_TOKENS // pad_to, 1)
    n_correct, n_questions, nats = 0, 0, 0.0
    for start in range(0, n_rows, batch_size):
        batch = probe.make_test_batch(rng, batch_size, seq_len)
        batch.weights[n_rows - start :] = 0
        padded = ProbeBatch(*(np.pad(x, ((0, 0), (0, pad_to - seq_len))) for x in batch))
        sums = _score_batch(objective, trainable, batch_arrays(padded))
        batch_correct, batch_questions, batch_nats = (np.asarray(x, np.float64) for x in sums)
        n_correct += int(batch_correct)
        n_questions += int(batch_questions)
        nats += float(batch_nats)
    return ProbeAccuracy(seq_len, n_correct, n_questions, nats / n_questions)


def batch_arrays(batch: ProbeBatch) -> dict[str, np.ndarray]:
    """Returns a batch in the format of objectives: each row is one document with its padding."""
    segments = (batch.tokens != PAD).astype(np.int32)
    positions = np.broadcast_to(np.arange(segments.shape[1], dtype=np.int32), segments.shape)
    return batch._asdict() | {"segment_ids": segments, "positions": positions}


@functools.lru_cache(maxsize=1)
def _make_init(
    model: ModelConfig, objective: QuestionObjective, budget: Budget
) -> Callable[..., TrainState]:
    """Returns the function that makes the initial state; the learning rate does not affect it."""
    cfg = budget.make_optimizer_config(budget.learning_rates[0])
    tx = make_model_optimizer(cfg, budget.steps, model, objective)

    def init(seed: Array) -> TrainState:
        return init_state(model, objective, tx, cfg.spike_window, seed)

    return jax.jit(init)


@functools.lru_cache(maxsize=1)
def _make_train_step(model: ModelConfig, objective: QuestionObjective, budget: Budget) -> Any:
    """Returns the training step, compiled once for all seeds and learning rates."""
    cfg = budget.make_optimizer_config(budget.learning_rates[0])
    step = make_shared_step(objective, model, cfg, steps=budget.steps, grad_accum_steps=1)
    return jax.jit(step, donate_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _score_batch(
    objective: QuestionObjective, trainable: Trainable, batch: dict[str, Array]
) -> tuple[Array, Array, Array]:
    """Returns the sums of correct answers, questions and nats."""
    out = objective.forward(trainable, batch, None)
    is_question = out.weights != 0
    n_correct = jnp.sum(out.scores.correct & is_question)
    nats = jnp.sum(jnp.where(is_question, out.scores.loss, 0.0))
    return n_correct, jnp.sum(is_question), nats
