"""Optimizers from optax over parameters by name; the parts of a model declare decay and roles.

Parameters come as `{name: array}`. Stacked ones keep their layer axis, which no optimizer here
treats as an axis of a matrix, so that scanned and unrolled stacks get equal updates.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree
from optax.contrib import MuonDimensionNumbers, muon

from errors import ConfigError
from settings.types import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    OneOf,
    PositiveFloat,
    Probability,
    config,
)
from training.checkpoint.param_names import leaf_names

Params = dict[str, jax.Array]
# The transformation by role of parameters; "rest" is for all roles that have none.
Transforms = dict[str, optax.GradientTransformation]
# (parameters by name) -> whether each decays
DecayMaskFn = Callable[[Params], dict[str, bool | optax.MaskedNode]]


@config
class OptimizerConfig:
    """The optimizer, its learning rate schedule, and the treatment of bad updates."""

    name: "Annotated[str, OneOf(tuple(OPTIMIZERS))]" = "adamw"  # Optimizer.
    learning_rate: PositiveFloat = 3e-3  # Peak learning rate.
    # Learning rate schedule after the warmup.
    schedule: Literal["constant", "cosine", "wsd"] = "cosine"
    # Steps of linear warmup to the peak learning rate; a number below 1 is a share of train.steps.
    warmup: NonNegativeFloat = 0.0
    # Fraction of all steps that "wsd" cools down in (arXiv:2404.06395).
    cooldown_fraction: Fraction = 0.2
    # Final learning rate of "cosine" and "wsd" as a fraction of the peak.
    final_lr_ratio: Fraction = 0.1
    beta1: Probability = 0.9  # Decay rate of the first moment (momentum).
    beta2: Probability = 0.95  # Decay rate of the second moment (Lion: of the momentum).
    eps: PositiveFloat = 1e-8  # Constant added to the denominator of Adam.
    # Weight decay, multiplied by the learning rate, on parameters that their part lets decay.
    weight_decay: NonNegativeFloat = 0.1
    # Learning rate of the parameters that Muon leaves to AdamW, as a multiple of learning_rate.
    adam_lr_ratio: PositiveFloat = 1.0
    newton_schulz_steps: NonNegativeInt = 5  # Newton-Schulz iterations of Muon.
    clip_norm: NonNegativeFloat = 1.0  # Maximum global norm of the gradient; 0: no clipping.
    # Reaction to an update that is not finite: abort, skip it, or roll back to a checkpoint.
    on_nonfinite: Literal["abort", "skip", "rollback"] = "abort"
    max_skips: NonNegativeInt = 5  # Skipped updates in a row before the run stops.
    max_rollbacks: NonNegativeInt = 2  # Rollbacks of a run before the run stops.
    # A loss so many standard deviations above the mean of the window is a spike; 0: no check.
    spike_sigma: NonNegativeFloat = 0.0
    spike_window: NonNegativeInt = 128  # Number of accepted losses in the window for spikes.

    def check(self) -> None:
        """Checks that the warmup is a share or a whole number of steps.

        Raises:
            ConfigError: if it is neither.
        """
        if self.warmup >= 1 and not self.warmup.is_integer():
            raise ConfigError(
                f"optimizer.warmup is {self.warmup:g}, must be a whole number of steps, or a share "
                f"of them below 1; nearest: {round(self.warmup)}"
            )

    def warmup_steps(self, steps: int) -> int:
        """Returns the steps of warmup in a run of `steps` steps; a share leaves at least one step.

        Raises:
            ConfigError: if the number of steps that was set is not smaller than that of the run.
        """
        if self.warmup < 1:
            return max(min(round(self.warmup * steps), steps - 1), 0)
        if steps and self.warmup >= steps:
            raise ConfigError(
                f"optimizer.warmup {self.warmup:g} must be smaller than train.steps {steps}; "
                f"largest: {steps - 1}; a number below 1 is a share of the steps"
            )
        return int(self.warmup)


# The settings that a compiled step takes as inputs, through `Hyperparameters`.
INPUT_SETTINGS = (
    "learning_rate",
    "schedule",
    "warmup",
    "cooldown_fraction",
    "final_lr_ratio",
    "weight_decay",
)


class Hyperparameters(NamedTuple):
    """The numbers of an optimizer that are inputs of the compiled step and not constants in it.

    Runs of equal length that differ only in the settings of `INPUT_SETTINGS` share one compilation.
    """

    # By the number of steps done; after the last step the last rate stays.
    learning_rates: Float[Array | np.ndarray, " steps+1"]
    weight_decay: Float[Array | np.ndarray, ""]

    def learning_rate(self, step: ArrayLike) -> Array:
        """Returns the learning rate after `step` steps, as a schedule of optax."""
        return jnp.asarray(self.learning_rates)[jnp.minimum(step, len(self.learning_rates) - 1)]


class WeightDecay(NamedTuple):
    """The weight decay of an optimizer: its rate, and the parameters that decay."""

    rate: ArrayLike  # multiplied by the learning rate
    mask: DecayMaskFn


def make_hyperparameters(cfg: OptimizerConfig, steps: int) -> Hyperparameters:
    """Returns the schedule of a run as a table, and its weight decay.

    Raises:
        ConfigError: if the warmup is not shorter than the run.
    """
    rates = jnp.asarray(lr_schedule(cfg, steps)(jnp.arange(steps + 1)), float)
    return Hyperparameters(
        np.broadcast_to(np.asarray(rates), steps + 1), np.asarray(cfg.weight_decay, rates.dtype)
    )


def lr_schedule(cfg: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the schedule of the learning rate, which is constant after the last step.

    Raises:
        ConfigError: if the warmup is not shorter than the run.
    """
    warmup_steps = cfg.warmup_steps(steps)
    peak, end = cfg.learning_rate, cfg.learning_rate * cfg.final_lr_ratio
    main_steps = max(steps - warmup_steps, 1)
    if cfg.schedule == "constant":
        main = optax.constant_schedule(peak)
    elif cfg.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, main_steps, alpha=cfg.final_lr_ratio)
    else:
        cooldown_steps = min(max(round(cfg.cooldown_fraction * steps), 1), main_steps)
        cooldown = optax.linear_schedule(peak, end, cooldown_steps)
        stable_steps = main_steps - cooldown_steps
        main = optax.join_schedules([optax.constant_schedule(peak), cooldown], [stable_steps])
    if not warmup_steps:
        return main
    warmup = optax.linear_schedule(peak / warmup_steps, peak, warmup_steps)
    return optax.join_schedules([warmup, main], [warmup_steps])


def make_optimizer(
    cfg: OptimizerConfig,
    steps: int,
    decay_mask: dict[str, bool],
    roles: dict[str, str],
    router_bias_rates: Mapping[str, float] | None = None,
    hyperparameters: Hyperparameters | None = None,
) -> optax.GradientTransformation:
    """Returns the transformation from clipped gradients to updates.

    `decay_mask` and `roles` have an entry for each parameter. A parameter with the role
    "balance_bias" moves by its rate in `router_bias_rates` against the sign of its gradient,
    independent of the optimizer and the schedule (arXiv:2408.15664). `hyperparameters` replace
    those of `cfg`; in a jitted function they may be traced.

    Raises:
        ConfigError: if the warmup is not shorter than the run.
    """
    hyper = hyperparameters or make_hyperparameters(cfg, steps)
    decay = WeightDecay(hyper.weight_decay, _decay_mask_fn(decay_mask))
    transforms = OPTIMIZERS[cfg.name](cfg, hyper.learning_rate, decay)
    transforms["balance_bias"] = _sign_update(router_bias_rates or {})
    labels = {name: role if role in transforms else "rest" for name, role in roles.items()}
    used = sorted(set(labels.values()))
    if used == ["rest"]:
        return transforms["rest"]
    return optax.partition({label: transforms[label] for label in used}, labels)


def _adamw(cfg: OptimizerConfig, schedule: optax.Schedule, decay: WeightDecay) -> Transforms:
    """AdamW (arXiv:1711.05101)."""
    adam = optax.scale_by_adam(cfg.beta1, cfg.beta2, cfg.eps, mu_dtype=None)
    return {"rest": _with_decay(adam, schedule, decay)}


def _muon(cfg: OptimizerConfig, schedule: optax.Schedule, decay: WeightDecay) -> Transforms:
    """Muon (arXiv:2502.16982) for matrices, AdamW for all other parameters.

    A matrix is [.. in out]; each entry of the axes before, layers or experts, is one matrix.
    """
    dimensions = MuonDimensionNumbers(reduction_axis=(-2,), output_axis=(-1,))
    orthogonal = muon(
        schedule,
        ns_steps=cfg.newton_schulz_steps,
        weight_decay=decay.rate,
        weight_decay_mask=decay.mask,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(lambda _: dimensions, params),
        consistent_rms=0.2,  # gives updates the RMS of AdamW's (arXiv:2502.16982, section 2.2)
    )
    adam = optax.scale_by_adam(cfg.beta1, cfg.beta2, cfg.eps)
    return {
        "matrix": orthogonal,
        "rest": _with_decay(adam, lambda step: cfg.adam_lr_ratio * schedule(step), decay),
    }


def _lion(cfg: OptimizerConfig, schedule: optax.Schedule, decay: WeightDecay) -> Transforms:
    """Lion (arXiv:2302.06675)."""
    lion = optax.scale_by_lion(cfg.beta1, cfg.beta2)
    return {"rest": _with_decay(lion, schedule, decay)}


def _sgd(cfg: OptimizerConfig, schedule: optax.Schedule, decay: WeightDecay) -> Transforms:
    """Stochastic gradient descent with momentum."""
    return {"rest": _with_decay(optax.trace(cfg.beta1), schedule, decay)}


# The only list of optimizers. The annotation of `OptimizerConfig.name` reads it, and is a string
# because it stands above.
OPTIMIZERS: dict[str, Callable[[OptimizerConfig, optax.Schedule, WeightDecay], Transforms]] = {
    "adamw": _adamw,
    "muon": _muon,
    "lion": _lion,
    "sgd": _sgd,
}


def _with_decay(
    direction: optax.GradientTransformation, schedule: optax.Schedule, decay: WeightDecay
) -> optax.GradientTransformation:
    """A direction with weight decay added, times the learning rate."""
    weight_decay = optax.add_decayed_weights(decay.rate, mask=decay.mask)
    return optax.chain(direction, weight_decay, optax.scale_by_learning_rate(schedule))


def _sign_update(rates: Mapping[str, float]) -> optax.GradientTransformation:
    """A stateless update of a fixed size against the sign of the gradient, by parameter name."""

    def update(path: tuple[jax.tree_util.DictKey], gradient: jax.Array) -> jax.Array:
        return -rates[path[-1].key] * jnp.sign(gradient)

    return optax.stateless(lambda grads, _: jax.tree_util.tree_map_with_path(update, grads))


def _decay_mask_fn(decay_mask: dict[str, bool]) -> DecayMaskFn:
    """A function that returns the mask of a subset of the parameters, as a partition needs it."""
    return lambda params: {
        name: x if isinstance(x, optax.MaskedNode) else decay_mask[name]
        for name, x in params.items()
    }


def param_metadata(tree: PyTree, key: Literal["decay", "role", "rate"]) -> dict[str, Any]:
    """Returns one entry of the metadata that parts declare for each parameter, by name."""
    variables = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    return dict(zip(leaf_names(tree), (v.get_metadata()[key] for v in variables), strict=True))


def clip_by_global_norm(grads: Params, norm: jax.Array, max_norm: float) -> Params:
    """Returns gradients scaled to a norm of at most `max_norm`; 0 returns them unchanged.

    `norm` is the global norm of `grads`. The caller checks that it is finite.
    """
    if not max_norm:
        return grads
    scale = jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-30))
    return {name: g * scale.astype(g.dtype) for name, g in grads.items()}
