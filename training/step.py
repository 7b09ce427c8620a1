"""One training step: the gradients of a batch, a check of the update, and the update.

An update that is not finite, or whose loss is a spike, is never applied.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from arch import ModelConfig
from arch.weighted_sum import WeightedSum
from objectives import Batch, Metrics, Objective, Trainable
from training.checkpoint.param_names import named_leaves
from training.gradients import compute_gradients
from training.memory_bank import update_and_lookup
from training.optimizer import (
    Hyperparameters,
    OptimizerConfig,
    Params,
    clip_by_global_norm,
    make_hyperparameters,
    param_metadata,
)
from training.state import (
    DROPOUT_RNG,
    TrainState,
    UpdateGuard,
    key_for,
    make_model_optimizer,
)

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class HaltedError(Exception):
    """The guard halted the run: a loss or gradient is not finite, or the loss is a spike."""

    def __init__(self, step: int, loss: float, grad_norm: float):
        super().__init__(step, loss, grad_norm)
        self.step, self.loss, self.grad_norm = step, loss, grad_norm


def make_step(
    objective: Objective,
    tx: optax.GradientTransformation,
    cfg: OptimizerConfig,
    *,
    steps: int,
    grad_accum_steps: int,
    hyperparameters: Hyperparameters | None = None,
) -> TrainStep:
    """Returns the pure function `(state, batch) -> (state, metrics)`, which is to be jitted.

    `steps` is the length of the learning rate schedule. `hyperparameters` are those of `tx`; None
    means those of `cfg`.
    """
    schedule = (hyperparameters or make_hyperparameters(cfg, steps)).learning_rate

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = key_for(state.seed, state.step, DROPOUT_RNG)
        with jax.named_scope("memory_bank"):
            args = state.trainable, state.banks, batch, state.step, grad_accum_steps
            banks, batch = update_and_lookup(objective, *args)
        with jax.named_scope("gradients"):
            grad_tree, loss, metrics = compute_gradients(
                objective, state.trainable, batch, key, grad_accum_steps
            )
        with jax.named_scope("update"):
            params, grads = named_leaves(state.trainable), named_leaves(grad_tree)
            norm_grads = _without_sign_updates(state.trainable, grads)
            grad_norm = optax.tree.norm(norm_grads)
            accepted, guard = check_update(state.guard, loss, grad_norm, cfg)
            grads |= clip_by_global_norm(norm_grads, grad_norm, cfg.clip_norm)
            updates, new_opt_state = tx.update(grads, state.opt_state, params)
            new_params = optax.apply_updates(params, updates)
            new_params, new_opt_state = jax.tree.map(
                lambda new, old: jnp.where(accepted, new, old),
                *((new_params, new_opt_state), (params, state.opt_state)),
            )
        # A dict that has passed through jax is sorted by name: restore the order of the leaves.
        leaves = [new_params[name] for name in grads]
        trainable = jax.tree.unflatten(jax.tree.structure(state.trainable), leaves)
        scalars = {"loss": loss, "grad_norm": grad_norm, "learning_rate": schedule(state.step)}
        scalars |= {"skipped": ~accepted, "halted": guard.halted}
        weight = jnp.ones(())
        metrics |= {n: WeightedSum(jnp.asarray(x, jnp.float32), weight) for n, x in scalars.items()}
        new_state = TrainState(state.seed, state.step + 1, trainable, new_opt_state, guard, banks)
        return new_state, metrics

    return step


def make_shared_step(
    objective: Objective,
    model: ModelConfig,
    cfg: OptimizerConfig,
    *,
    steps: int,
    grad_accum_steps: int,
) -> Callable[[TrainState, Batch, Hyperparameters], tuple[TrainState, Metrics]]:
    """Returns the function of `make_step` with the hyperparameters as a third argument.

    Once jitted, it serves every run of `steps` steps that differs only in them.
    """

    def step(
        state: TrainState, batch: Batch, hyperparameters: Hyperparameters
    ) -> tuple[TrainState, Metrics]:
        tx = make_model_optimizer(cfg, steps, model, objective, hyperparameters)
        step = make_step(
            *(objective, tx, cfg),
            steps=steps,
            grad_accum_steps=grad_accum_steps,
            hyperparameters=hyperparameters,
        )
        return step(state, batch)

    return step


def _without_sign_updates(trainable: Trainable, grads: Params) -> Params:
    """The gradients whose magnitude matters, for the gradient norm and for clipping.

    Parameters with the role "balance_bias" are updated by the sign of their gradient alone.
    """
    roles = param_metadata(trainable, "role")
    return {name: g for name, g in grads.items() if roles[name] != "balance_bias"}


def check_update(
    guard: UpdateGuard, loss: Array, grad_norm: Array, cfg: OptimizerConfig
) -> tuple[Array, UpdateGuard]:
    """Returns whether a step's update may be applied, and the guard after the step.

    An update is skipped if its loss or gradient norm is not finite, or if its loss is a spike. A
    skipped update halts the run under "rollback"; under "abort" one that is not finite does. Under
    every policy more than `max_skips` skipped updates in a row halt it. A halted run applies no
    update until the loop ends it or rolls it back.
    """
    is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    accepted = is_finite & ~_is_spike(guard, loss, cfg) & ~guard.halted
    consecutive_skips = jnp.where(accepted, 0, guard.consecutive_skips + 1)
    halts_at_once = {"abort": ~is_finite, "rollback": ~accepted, "skip": jnp.zeros((), bool)}
    too_many = consecutive_skips > cfg.max_skips
    index = guard.num_accepted % guard.loss_window.shape[0]
    return accepted, UpdateGuard(
        halted=guard.halted | halts_at_once[cfg.on_nonfinite] | too_many,
        consecutive_skips=consecutive_skips,
        num_skipped=guard.num_skipped + ~accepted,
        loss_window=jnp.where(accepted, guard.loss_window.at[index].set(loss), guard.loss_window),
        num_accepted=guard.num_accepted + accepted,
    )


def _is_spike(guard: UpdateGuard, loss: Array, cfg: OptimizerConfig) -> Array:
    """Whether a loss is `spike_sigma` standard deviations above the mean of the window.

    No loss is a spike before half of the window is filled.
    """
    if not cfg.spike_sigma:
        return jnp.zeros((), bool)
    W = guard.loss_window.shape[0]
    count = jnp.minimum(guard.num_accepted, W)
    is_filled = jnp.arange(W) < count
    mean = jnp.sum(guard.loss_window, where=is_filled) / jnp.maximum(count, 1)
    squares = (guard.loss_window - mean) ** 2
    deviation = jnp.sqrt(jnp.sum(squares, where=is_filled) / jnp.maximum(count, 1))
    return (count >= (W + 1) // 2) & (loss > mean + cfg.spike_sigma * deviation)


def raise_if_halted(metrics: Metrics | None, step: int) -> None:
    """Raises an error if the guard had halted the run when it reported `metrics`.

    Raises:
        HaltedError: with the loss and the gradient norm of `step`.
    """
    if metrics is not None and float(jax.device_get(metrics["halted"].sum)):
        values = jax.device_get([metrics[name].sum for name in ("loss", "grad_norm")])
        raise HaltedError(step, *map(float, values))
