"""The published recipe of fine-tuning (arXiv:1810.04805, A.3), by the project's training step.

Each learning rate is tried once, with a seed of its own. The best one on the valid part is used for
the seeds that are reported. A run is some epochs of AdamW: the rate rises over a share of the
updates and then falls linearly to 0, gradients are clipped to the norm 1, and the moments are
corrected for their bias (arXiv:2006.04884). Numbers are learned with mean 0 and variance 1.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from arch import Model, compute_cost
from errors import ConfigError
from eval.finetuning.datasets import PARTS, FinetuneDataset
from eval.finetuning.measures import MAIN_MEASURES, Measures, measure
from eval.finetuning.output_layer import LayerPooling, OutputLayer, OutputLayerObjective
from eval.finetuning.rows import ExampleRow, encode_examples, padded_length
from eval.framing import reading
from eval.progress import log_progress
from eval.task import EvalContext
from objectives import Batch, Metrics, Trainable
from training import mesh as meshes
from training.checkpoint.param_names import named_leaves
from training.distributed.multihost import to_host
from training.optimizer import (
    Hyperparameters,
    OptimizerConfig,
    make_hyperparameters,
    make_optimizer,
    param_metadata,
)
from training.run.console import LOGGER
from training.settings import FinetuneConfig
from training.state import PARAMS_RNG, TrainState, key_for, start_state
from training.step import make_step

ORDER_STREAM = 6  # Random stream of the order of examples.
TUNING_SEED = 1_000_003  # Seed of the runs that select the learning rate; it is never reported.
BACKWARD_FACTOR = 3  # FLOPs of training a model over those of its forward pass.


class FinetuneResult(NamedTuple):
    """The runs of a data set."""

    learning_rate: float
    runs: tuple[Measures, ...]  # Measures of the test part by seed.
    flops: float  # Model FLOPs of all runs, padding and evaluation included.


@dataclasses.dataclass(frozen=True)
class FineTuner:
    """What all runs on a data set share: rows, targets, objective, and the pretrained model."""

    ctx: EvalContext
    cfg: FinetuneConfig
    dataset: FinetuneDataset
    objective: OutputLayerObjective
    rows: dict[str, list[ExampleRow]]
    targets: dict[str, list[np.ndarray]]  # Standardized numbers, or classes.
    scale: tuple[float, float]  # Mean and standard deviation of the numbers in training.

    @property
    def batch_size(self) -> int:
        """Rows of a batch, a multiple of the devices; rows beyond `cfg.batch_size` are padding."""
        return -(-self.cfg.batch_size // self.ctx.mesh.size) * self.ctx.mesh.size

    @property
    def steps(self) -> int:
        """Updates of a run."""
        return self.cfg.epochs * -(-len(self.rows["train"]) // self.cfg.batch_size)

    @functools.cached_property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.tokens) for rows in self.rows.values() for row in rows)

    def optimizer_config(self, learning_rate: float) -> OptimizerConfig:
        """Returns the optimizer of the recipe."""
        return OptimizerConfig(
            learning_rate=learning_rate,
            schedule="wsd",  # With this cooldown, it falls linearly from its peak to 0.
            cooldown_fraction=1.0,
            final_lr_ratio=0.0,
            warmup=float(round(self.cfg.warmup * (self.steps - 1))),
            beta2=0.999,
            eps=1e-6,
            weight_decay=self.cfg.weight_decay,
            on_nonfinite="skip",
        )


def make_fine_tuner(ctx: EvalContext, cfg: FinetuneConfig, dataset: FinetuneDataset) -> FineTuner:
    """Returns the rows and the objective of a data set.

    Raises:
        ConfigError: if the model has no pooler, but `cfg.pooling` names it.
    """
    reads, view = reading(ctx), ctx.settings.row_spec.view
    is_causal = view == "causal" and ctx.trainable.model.encoder is None
    limit = min(filter(None, (reads.window, cfg.max_tokens)), default=0)
    rows = {
        part: encode_examples(
            *(ctx.data.tokenizer, reads, dataset.parts[part], limit),
            has_words=dataset.problem == "tokens",
            labels_last_token=is_causal,
        )
        for part in PARTS
    }
    n_cut = sum(row.is_cut for part in PARTS for row in rows[part])
    if n_cut:
        LOGGER.warning(
            "%d of %d examples of %s do not fit a row of %d tokens and lose their end",
            *(n_cut, sum(map(len, rows.values())), dataset.name, limit),
        )
    targets = {part: dataset.targets(part) for part in PARTS}
    scale = 0.0, 1.0
    if dataset.problem == "regression":
        train = np.array(targets["train"], float)
        scale = float(train.mean()), float(train.std()) or 1.0
        targets = {p: [(t - scale[0]) / scale[1] for t in ts] for p, ts in targets.items()}
    objective = OutputLayerObjective(
        problem=dataset.problem,
        n_outputs=len(dataset.classes) or 1,
        pooling=_choose_pooling(ctx.trainable.model, cfg, is_causal),
        view=view,
        dropout=cfg.dropout,
        trains_model=cfg.trained == "all",
    )
    return FineTuner(ctx, cfg, dataset, objective, rows, targets, scale)


def run_recipe(tuner: FineTuner) -> FinetuneResult:
    """Selects a learning rate, then trains and scores every seed."""
    cfg, main = tuner.cfg, MAIN_MEASURES[tuner.dataset.problem]
    runner = _Runner(tuner)
    by_rate: dict[float, float] = {}
    for rate in cfg.learning_rates if len(cfg.learning_rates) > 1 else ():
        value = runner.score(runner.train(rate, TUNING_SEED), "valid")[main]
        by_rate[rate] = value if math.isfinite(value) else -math.inf
        LOGGER.info("  %s: rate %g has %s %.4f (valid)", tuner.dataset.name, rate, main, value)
    best = max(cfg.learning_rates, key=lambda rate: by_rate.get(rate, 0.0))
    runs = []
    for seed in range(cfg.seeds):
        runs.append(runner.score(runner.train(best, seed), "test"))
        LOGGER.info("  %s: seed %d has %s %.4f", tuner.dataset.name, seed, main, runs[-1][main])
    return FinetuneResult(best, tuple(runs), runner.flops)


def batches(
    tuner: FineTuner, part: str, seed: int | None = None
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yields batches of one pass over a part, or of all epochs in the order of a seed.

    Each is the indices of its examples and its arrays.
    """
    n, size = len(tuner.rows[part]), tuner.cfg.batch_size
    if seed is None:
        orders = [np.argsort([len(row.tokens) for row in tuner.rows[part]], kind="stable")]
    else:
        epochs = range(tuner.cfg.epochs)
        orders = [np.random.default_rng([ORDER_STREAM, seed, e]).permutation(n) for e in epochs]
    for order in orders:
        for start in range(0, n, size):
            indices = order[start : start + size]
            yield indices, _make_batch(tuner, part, indices)


def _make_batch(tuner: FineTuner, part: str, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Returns tokens, token types, positions, segments, targets and weights of some examples."""
    rows = [tuner.rows[part][i] for i in indices]
    targets = [tuner.targets[part][i] for i in indices]
    T = padded_length(max(len(row.tokens) for row in rows), tuner.longest)
    B, per_token = tuner.batch_size, tuner.dataset.problem == "tokens"
    names = ("tokens", "token_type_ids", "positions", "segment_ids")
    out = {name: np.zeros((B, T), np.int32) for name in names}
    shape = (B, T) if per_token else (B,)
    dtype = np.float32 if tuner.dataset.problem == "regression" else np.int32
    out |= {"targets": np.zeros(shape, dtype), "weights": np.zeros(shape, np.float32)}
    has_types = tuner.ctx.trainable.model.config.embed.token_types > 1
    for i, (row, target) in enumerate(zip(rows, targets, strict=True)):
        n = len(row.tokens)
        out["tokens"][i, :n], out["segment_ids"][i, :n] = row.tokens, 1
        out["positions"][i, :n] = np.arange(n)
        out["token_type_ids"][i, :n] = row.types * has_types
        if per_token:
            is_read = row.word_positions >= 0
            out["targets"][i, row.word_positions[is_read]] = target[is_read]
            out["weights"][i, row.word_positions[is_read]] = 1
        else:
            out["targets"][i], out["weights"][i] = target, 1
    return out


class _Runner:
    """Trains and scores runs with one compiled step, and counts their FLOPs."""

    def __init__(self, tuner: FineTuner):
        self.tuner, self.flops = tuner, 0.0
        self._init = jax.jit(functools.partial(_start, tuner))
        self._step = jax.jit(functools.partial(_train_step, tuner), donate_argnums=0)
        self._forward_flops = functools.cache(functools.partial(_forward_flops, tuner))

    def start(self, rate: float, seed: int) -> TrainState:
        """Returns the state of a run before its first update."""
        with jax.set_mesh(self.tuner.ctx.mesh):
            model = self.tuner.ctx.trainable.model
            return self._init(model, np.uint32(seed), self._hyperparameters(rate))

    def train(self, rate: float, seed: int) -> Trainable:
        """Returns the parameters after a run."""
        tuner, state, hyper = self.tuner, self.start(rate, seed), self._hyperparameters(rate)
        with jax.set_mesh(tuner.ctx.mesh):
            for _, arrays in log_progress(
                batches(tuner, "train", seed), tuner.steps, f"updates at rate {rate:g}"
            ):
                self._count(arrays, BACKWARD_FACTOR if tuner.objective.trains_model else 1)
                # The next batch is ready before the update ends; more than one update at a time
                # can block devices that wait for each other.
                batch = self._on_mesh(arrays)
                state, _ = self._step(jax.block_until_ready(state), batch, hyper)
        return state.trainable

    def score(self, trainable: Trainable, part: str) -> Measures:
        """Returns the measures of a part."""
        tuner, outputs = self.tuner, dict[int, np.ndarray]()
        mean, deviation = tuner.scale
        with jax.set_mesh(tuner.ctx.mesh):
            for indices, arrays in batches(tuner, part):
                self._count(arrays, 1)
                scores = _predict(tuner.objective, trainable, self._on_mesh(arrays))
                values = np.asarray(to_host(scores), np.float64)
                for i, row_scores in zip(indices, values, strict=False):
                    outputs[int(i)] = _word_scores(tuner.rows[part][i], row_scores)
        ordered = [outputs[i] for i in range(len(outputs))]
        if tuner.dataset.problem == "regression":
            ordered = [mean + deviation * x for x in ordered]
        return measure(tuner.dataset, ordered, tuner.dataset.targets(part))

    def _hyperparameters(self, rate: float) -> Hyperparameters:
        return make_hyperparameters(self.tuner.optimizer_config(rate), self.tuner.steps)

    def _on_mesh(self, arrays: dict[str, np.ndarray]) -> Batch:
        mesh = self.tuner.ctx.mesh
        return {
            name: jax.device_put(x, meshes.batch_array_sharding(mesh, x.shape))
            for name, x in arrays.items()
        }

    def _count(self, arrays: dict[str, np.ndarray], factor: int) -> None:
        B, T = arrays["tokens"].shape
        self.flops += factor * B * T * self._forward_flops(T)


def _word_scores(row: ExampleRow, scores: np.ndarray) -> np.ndarray:
    """Returns the scores of an example: of its words, NaN where a word is not read, if it has any.

    `scores` are [K], or [T K] for token labels.
    """
    if scores.ndim == 1:
        return scores
    is_read = row.word_positions >= 0
    return np.where(is_read[:, None], scores[row.word_positions], np.nan)


def _choose_pooling(model: Model, cfg: FinetuneConfig, is_causal: bool) -> LayerPooling:
    """Returns how a text becomes a vector.

    Raises:
        ConfigError: if there is no pooler, or the first token is all that a causal model has read.
    """
    if cfg.pooling == "auto":
        return "pooler" if model.pooler is not None else "last" if is_causal else "mean"
    if cfg.pooling == "pooler" and model.pooler is None:
        raise ConfigError(
            "eval.finetune.pooling is pooler, but the model has none; use mean, first or last"
        )
    if cfg.pooling == "first" and is_causal:
        raise ConfigError(
            "eval.finetune.pooling first sees one token of a causal model; use last or mean"
        )
    return cfg.pooling


def _start(
    tuner: FineTuner, model: Model, seed: jax.Array, hyperparameters: Hyperparameters
) -> TrainState:
    """Returns the state of a run: a copy of the model, with dropout, below a new layer."""
    config = model.config
    rate = tuner.cfg.dropout if tuner.objective.trains_model else 0.0
    block = dataclasses.replace(config.block, dropout=rate)
    embed = dataclasses.replace(config.embed, dropout=rate)
    config = dataclasses.replace(config, block=block, embed=embed)
    shapes = jax.eval_shape(lambda: Model(config, key=jax.random.key(0)))
    model = jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(model))
    layer = tuner.objective.make_head(config, key_for(seed, 0, PARAMS_RNG))
    trainable = jax.tree.map(jnp.copy, Trainable(model, layer))
    tx, cfg = _optimizer(tuner, trainable, hyperparameters), tuner.optimizer_config(1.0)
    return start_state(trainable, tx, cfg.spike_window, seed)


def _train_step(
    tuner: FineTuner, state: TrainState, batch: Batch, hyperparameters: Hyperparameters
) -> tuple[TrainState, Metrics]:
    step = make_step(
        *(tuner.objective, _optimizer(tuner, state.trainable, hyperparameters)),
        tuner.optimizer_config(1.0),
        steps=tuner.steps,
        grad_accum_steps=1,
        hyperparameters=hyperparameters,
    )
    return step(state, batch)


def _optimizer(
    tuner: FineTuner, trainable: Trainable, hyperparameters: Hyperparameters
) -> optax.GradientTransformation:
    """Returns the optimizer of all parameters, or of those of the layer, which alone move."""
    cfg, names = tuner.optimizer_config(1.0), [*named_leaves(trainable)]
    decay, roles, rates = (param_metadata(trainable, key) for key in ("decay", "role", "rate"))
    if tuner.objective.trains_model:
        return make_optimizer(cfg, tuner.steps, decay, roles, rates, hyperparameters)
    layer = {*named_leaves(trainable.head, "head")}
    trained = make_optimizer(
        *(cfg, tuner.steps, decay, {name: roles[name] for name in layer}),
        hyperparameters=hyperparameters,
    )
    labels = {name: "trained" if name in layer else "frozen" for name in names}
    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


@functools.partial(jax.jit, static_argnums=0)
def _predict(objective: OutputLayerObjective, trainable: Trainable, batch: Batch) -> jax.Array:
    return objective.forward(trainable, batch, None).scores


def _forward_flops(tuner: FineTuner, length: int) -> float:
    """Returns the model FLOPs per token of reading rows of `length` tokens, the layer included."""
    config, view = tuner.ctx.trainable.model.config, tuner.objective.view
    if config.encoder.depth:
        cost = compute_cost(config, length, source_length=length, logit_fraction=0.0)
        reading_flops = sum(x.model for n, x in cost.terms.items() if n.startswith("encoder."))
    else:
        source = length if view == "prefix" else 0
        cost = compute_cost(config, length, view=view, source_length=source, logit_fraction=0.0)
        reading_flops = cost.model_flops
    layer = OutputLayer.cost(config.width, tuner.objective.n_outputs).terms["scores"].model
    return reading_flops + layer / (1 if tuner.dataset.problem == "tokens" else length)
