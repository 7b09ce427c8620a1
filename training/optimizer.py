"""Optimizers from optax, over parameters by name, with decay and roles as the parts declare them.

Parameters come as `{name: array}`. Stacked ones keep their layer axis, which no optimizer here
treats as part of a matrix, so that scanned and unrolled stacks get equal updates.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers, muon

from errors import ConfigError
from schema import Momentum, Natural, NonNegative, Positive, Share, config
from training.leaves import leaf_names

Params = dict[str, jax.Array]


@config
class OptimizerConfig:
    name: Literal["adamw", "muon", "lion", "sgd"] = "adamw"
    learning_rate: Positive = 3e-3  # at its peak
    schedule: Literal["constant", "cosine", "wsd"] = "cosine"
    warmup: Natural = 0  # steps to the peak, linear
    decay: Share = 0.2  # of the steps: the cool-down of "wsd" (arXiv:2404.06395)
    final: Share = 0.1  # of the peak: where "cosine" and "wsd" end
    beta1: Momentum = 0.9
    beta2: Momentum = 0.95
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.1  # times the learning rate, on what parts let decay
    muon_rate: Positive = 1.0  # of the learning rate, for what Muon leaves to AdamW
    muon_steps: Natural = 5  # of Newton-Schulz
    clip: NonNegative = 1.0  # the gradient's norm; 0: off
    on_nonfinite: Literal["abort", "skip", "rollback"] = "abort"
    max_skips: Natural = 5  # in a row, then abort
    max_rollbacks: Natural = 2  # to the newest checkpoint, past the data in between; then abort
    spike: NonNegative = 0.0  # refuse a loss so many deviations above the window's mean; 0: off
    window: Natural = 128  # losses that `spike` looks back on


def rate(cfg: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate by step; after the last step it stays where it ended."""
    if steps and cfg.warmup >= steps:
        raise ConfigError(
            f"optimizer.warmup {cfg.warmup} is not below train.steps {steps}; "
            f"nearest: {max(steps - 1, 0)}"
        )
    peak, end = cfg.learning_rate, cfg.learning_rate * cfg.final
    main = max(steps - cfg.warmup, 1)
    if cfg.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif cfg.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, main, alpha=cfg.final)
    else:
        down = min(max(round(cfg.decay * steps), 1), main)
        cool = optax.linear_schedule(peak, end, down)
        after = optax.join_schedules([optax.constant_schedule(peak), cool], [main - down])
    if not cfg.warmup:
        return after
    rise = optax.linear_schedule(peak / cfg.warmup, peak, cfg.warmup)
    return optax.join_schedules([rise, after], [cfg.warmup])


def build(
    cfg: OptimizerConfig,
    steps: int,
    decays: dict[str, bool],
    roles: dict[str, str],
    rates: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """The transformation from clipped gradients to updates.

    A "balance" moves by its own of `rates` against the sign of its gradient, whatever the optimizer
    and the schedule (arXiv:2408.15664).
    """
    parts = _by_kind(cfg, rate(cfg, steps), decays)
    parts["balance"] = _signed(rates or {})
    labels = {name: role if role in parts else "rest" for name, role in roles.items()}
    kinds = sorted(set(labels.values()))
    if kinds == ["rest"]:
        return parts["rest"]
    return optax.partition({kind: parts[kind] for kind in kinds}, labels)


def _by_kind(
    cfg: OptimizerConfig, schedule: optax.Schedule, decays: dict[str, bool]
) -> dict[str, optax.GradientTransformation]:
    """What acts on the "rest" and, if it is another, on a "matrix"."""
    decayed = optax.add_decayed_weights(cfg.weight_decay, mask=_selected(decays))
    scale = optax.scale_by_learning_rate(schedule)
    if cfg.name == "adamw":
        adam = optax.scale_by_adam(cfg.beta1, cfg.beta2, cfg.eps, mu_dtype=None)
        return {"rest": optax.chain(adam, decayed, scale)}
    if cfg.name == "lion":
        return {"rest": optax.chain(optax.scale_by_lion(cfg.beta1, cfg.beta2), decayed, scale)}
    if cfg.name == "sgd":
        return {"rest": optax.chain(optax.trace(cfg.beta1), decayed, scale)}
    # A matrix is [.. in out]; axes before these are layers or experts, each a matrix of its own.
    shape = MuonDimensionNumbers(reduction_axis=(-2,), output_axis=(-1,))
    orthogonal = muon(
        schedule,
        ns_steps=cfg.muon_steps,
        weight_decay=cfg.weight_decay,
        weight_decay_mask=_selected(decays),
        muon_weight_dimension_numbers=lambda params: jax.tree.map(lambda _: shape, params),
        consistent_rms=0.2,  # updates as large as AdamW's (arXiv:2502.16982, section 2.2)
    )
    slower = optax.scale_by_learning_rate(lambda step: cfg.muon_rate * schedule(step))
    adam = optax.scale_by_adam(cfg.beta1, cfg.beta2, cfg.eps)
    return {"matrix": orthogonal, "rest": optax.chain(adam, decayed, slower)}


def _signed(rates: Mapping[str, float]) -> optax.GradientTransformation:
    """A step of a fixed size against the sign of the gradient, without a state."""

    def step(path: Any, gradient: jax.Array) -> jax.Array:
        return -rates[path[-1].key] * jnp.sign(gradient)

    return optax.stateless(lambda grads, _: jax.tree_util.tree_map_with_path(step, grads))


def _selected(decays: dict[str, bool]) -> Any:
    """A mask that also fits a part of the parameters."""
    return lambda params: {
        name: x if isinstance(x, optax.MaskedNode) else decays[name] for name, x in params.items()
    }


def declared(tree: Any, what: Literal["decay", "role", "rate"]) -> dict[str, Any]:
    """What the parts declare of each parameter, by name."""
    variables = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    return dict(zip(leaf_names(tree), (v.get_metadata()[what] for v in variables), strict=True))


def clipped(grads: Params, norm: jax.Array, limit: float) -> Params:
    """Gradients scaled to a norm of at most `limit`; look at `norm` for finiteness first."""
    if not limit:
        return grads
    scale = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-30))
    return {name: g * scale.astype(g.dtype) for name, g in grads.items()}
