"""An architecture trained from scratch on a probe, by the project's own step, at a declared budget.

Where there is a choice of learning rates, each is tried once with a seed of its own; the one with
the least loss on validation rows, of the length of lessons, is what reported seeds train with.
Validation, test and lessons come from different streams of random numbers; all architectures see
the same rows.

The causal stack is what is trained: of an encoder-decoder, the decoder alone.
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy import special

from arch import ModelConfig, Sequence
from errors import ConfigError
from eval.capability.examples import PAD, Capability, Examples
from objectives import Learner, Metrics, Rows, Term, Tokenizer
from objectives.learner import Example
from objectives.scoring import Scored, score_some, terms_of
from schema import Count, Positive, Share, config
from training.optimizer import OptimizerConfig
from training.state import State, initial, transformation
from training.step import make_step

LESSONS, VALID, TEST = 0, 1, 2  # streams of random numbers
TOKENS = 16_384  # judged at a time
TUNING = 1_000_003  # the seed that rates are tried with, and none that is reported


@config
class Budget:
    """What every architecture gets."""

    steps: Count = 500
    batch: Count = 64  # rows of a step
    length: Count = 64  # of lessons
    tests: tuple[Count, ...] = (64, 128, 256)  # lengths
    rates: tuple[Positive, ...] = (1e-3, 4e-3)  # of learning, to choose from
    seeds: Count = 1  # runs that are reported
    rows: Count = 512  # judged at each length
    warmup: Share = 0.1  # of the steps

    def optimizer(self, rate: float) -> OptimizerConfig:
        warmup = round(self.warmup * (self.steps - 1))
        return OptimizerConfig(learning_rate=rate, warmup=warmup, on_nonfinite="skip")


class Judged(NamedTuple):
    """Answers of one run to rows of one length."""

    length: int
    right: int
    questions: int
    nats: float  # mean of -log p of the right answer

    @property
    def accuracy(self) -> float:
        return self.right / self.questions

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Of the accuracy of this very run, exact (Clopper & Pearson 1934): the noise of the rows
        judged, not of the seed; questions of one row count as independent."""
        k, n, tail = self.right, self.questions, (1 - level) / 2
        low = special.betaincinv(k, n - k + 1, tail) if k else 0.0
        high = special.betaincinv(k + 1, n - k, 1 - tail) if k < n else 1.0
        return float(low), float(high)


class Learned(NamedTuple):
    """What became of an architecture: its runs, each judged at all lengths."""

    rate: float
    tried: dict[float, float]  # nats on validation rows by learning rate, if there was a choice
    runs: tuple[tuple[Judged, ...], ...]  # by seed


@config
class Answers:
    """The objective: predict what is asked, and build logits there only."""

    most: Count  # questions of a row

    additive: ClassVar[bool] = True
    bank: ClassVar[None] = None

    def rows(self, model: ModelConfig, length: int) -> Rows:
        return Rows(text=length, overlap=0, view="causal", targets=self.most)

    def judged(self) -> "Answers":
        return self

    def host(self, model: ModelConfig, length: int, tokenizer: Tokenizer) -> Example:
        raise ConfigError("a probe makes its rows without documents; train it by eval.capability")

    def head(self, model: ModelConfig, key: Array) -> None:
        return None

    def weights(self, batch: dict[str, Array]) -> dict[str, Array]:
        return {"nats": jnp.sum(batch["weights"], dtype=jnp.float32)}

    def encode(self, learner: Learner, micro: dict[str, Array], key: Array | None) -> Scored:
        hidden, aux, _ = learner.model(micro["tokens"], Sequence.of(micro, "causal"), key=key)
        return score_some(learner, hidden, micro, self.most, aux)

    def reduce(
        self, learner: Learner, out: Scored, batch: dict[str, Array]
    ) -> tuple[dict[str, Term], Metrics]:
        return terms_of("nats", learner, out, self.weights(batch)["nats"], batch)


def learn(model: ModelConfig, probe: Capability, budget: Budget) -> Learned:
    """Choose a rate, then train and judge every seed."""
    longest, tried = max(budget.length, *budget.tests), {}
    model = fitted(model, probe, longest)
    for rate in budget.rates if len(budget.rates) > 1 else ():
        learner = trained(model, probe, budget, rate, TUNING)
        nats = judged(learner, probe, budget.length, budget.rows, VALID, longest).nats
        tried[rate] = nats if math.isfinite(nats) else math.inf
    rate = min(budget.rates, key=lambda rate: tried.get(rate, 0.0))
    runs = []
    for seed in range(budget.seeds):
        learner = trained(model, probe, budget, rate, seed)
        lengths = sorted({*budget.tests})
        runs.append(tuple(judged(learner, probe, T, budget.rows, TEST, longest) for T in lengths))
    return Learned(rate, tried, tuple(runs))


def fitted(model: ModelConfig, probe: Capability, longest: int) -> ModelConfig:
    """The architecture of a run as a probe needs it: its vocabulary, a place for every token."""
    positions = model.positions
    if positions.learned:
        positions = dataclasses.replace(positions, length=max(longest, positions.length))
    encoder = dataclasses.replace(model.encoder, depth=0)
    model = dataclasses.replace(model, vocab=probe.vocab, positions=positions, encoder=encoder)
    if "causal" not in model.views():
        raise ConfigError(
            f"model.layers {model.layers} cannot read from the left, as probes do; leave the "
            "probes out of eval.tasks"
        )
    return model


def trained(
    model: ModelConfig, probe: Capability, budget: Budget, rate: float, seed: int
) -> Learner:
    """A learner after all lessons of `seed`."""
    answers = Answers(probe.questions(budget.length))
    state = _beginning(model, answers, budget)(np.uint32(seed))
    step, rng = _lesson(model, answers, budget, rate), np.random.default_rng([LESSONS, seed])
    for _ in range(budget.steps):
        state, _ = step(state, arrays(probe.lessons(rng, budget.batch, budget.length)))
    return state.learner


def judged(
    learner: Learner, probe: Capability, length: int, rows: int, stream: int, width: int = 0
) -> Judged:
    """Answers to the rows of a stream; padded to a `width`, all lengths share a compiled program.

    What stands behind the last token changes no answer that is read from the left.
    """
    rng, width = np.random.default_rng([stream, length]), max(width, length)
    answers, count = Answers(probe.questions(width)), max(TOKENS // width, 1)
    right, questions, nats = 0, 0, 0.0
    for start in range(0, rows, count):
        made = probe.examples(rng, count, length)
        made.weights[rows - start :] = 0
        padded = Examples(*(np.pad(x, ((0, 0), (0, width - length))) for x in made))
        out = [np.asarray(x, np.float64) for x in _answered(answers, learner, arrays(padded))]
        right, questions = right + int(out[0]), questions + int(out[1])
        nats += float(out[2])
    return Judged(length, right, questions, nats / questions)


def arrays(rows: Examples) -> dict[str, np.ndarray]:
    """As a batch of an objective: every row is a document, what pads it is none."""
    segments = (rows.tokens != PAD).astype(np.int32)
    positions = np.broadcast_to(np.arange(segments.shape[1], dtype=np.int32), segments.shape)
    return rows._asdict() | {"segments": segments, "positions": positions}


@functools.lru_cache(maxsize=1)
def _beginning(model: ModelConfig, answers: Answers, budget: Budget) -> Any:
    """The state before the first lesson, which no learning rate has a part in."""
    cfg = budget.optimizer(budget.rates[0])
    tx = transformation(cfg, budget.steps, model, answers)

    def init(seed: Array) -> State:
        return initial(model, answers, tx, cfg.window, seed)

    return jax.jit(init)


@functools.lru_cache(maxsize=8)
def _lesson(model: ModelConfig, answers: Answers, budget: Budget, rate: float) -> Any:
    """The step, compiled once for all seeds of a rate."""
    cfg = budget.optimizer(rate)
    tx = transformation(cfg, budget.steps, model, answers)
    step = make_step(answers, tx, cfg, steps=budget.steps, accumulate=1)
    return jax.jit(step, donate_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _answered(
    answers: Answers, learner: Learner, batch: dict[str, Array]
) -> tuple[Array, Array, Array]:
    """Right answers, questions, nats."""
    out = answers.encode(learner, batch, None)
    there = out.weights != 0
    right = jnp.sum(out.scores.correct & there)
    return right, jnp.sum(there), jnp.sum(jnp.where(there, out.scores.nats, 0.0))
