"""One step: gradients of a batch, and an update that is never poisoned."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from arch.terms import Amount
from objectives import Batch, Learner, Metrics, Objective
from training.banks import consulted
from training.gradients import gradients
from training.leaves import named_leaves
from training.optimizer import OptimizerConfig, Params, clipped, declared, rate
from training.state import DROPOUT, Guard, State, purpose

Step = Callable[[State, Batch], tuple[State, Metrics]]


def make_step(
    objective: Objective,
    tx: optax.GradientTransformation,
    cfg: OptimizerConfig,
    *,
    steps: int,
    accumulate: int,
) -> Step:
    """`step(state, batch) -> (state, metrics)`, a pure function to be jitted."""
    schedule = rate(cfg, steps)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key = purpose(state.seed, state.step, DROPOUT)
        with jax.named_scope("consult"):
            asked = state.learner, state.banks, batch, state.step, accumulate
            banks, batch = consulted(objective, *asked)
        with jax.named_scope("gradients"):
            slopes, loss, metrics = gradients(objective, state.learner, batch, key, accumulate)
        with jax.named_scope("update"):
            params, grads = named_leaves(state.learner), named_leaves(slopes)
            felt = _felt(state.learner, grads)
            norm = optax.tree.norm(felt)
            taken, guard = admit(state.guard, loss, norm, cfg)
            grads |= clipped(felt, norm, cfg.clip)
            updates, optimizer = tx.update(grads, state.optimizer, params)
            params = optax.apply_updates(params, updates)
            kept = (params, optimizer), (named_leaves(state.learner), state.optimizer)
            params, optimizer = jax.tree.map(lambda new, old: jnp.where(taken, new, old), *kept)
        leaves = [params[name] for name in grads]  # a dict that went through jax is sorted
        learner = jax.tree.unflatten(jax.tree.structure(state.learner), leaves)
        said = {"loss": loss, "grad_norm": norm, "learning_rate": schedule(state.step)}
        said |= {"skipped": ~taken, "halted": guard.halted}
        one = jnp.ones(())
        metrics |= {name: Amount(jnp.asarray(x, jnp.float32), one) for name, x in said.items()}
        return State(state.seed, state.step + 1, learner, optimizer, guard, banks), metrics

    return step


def _felt(learner: Learner, grads: Params) -> Params:
    """The gradients that have a size: those of a "balance" have only signs."""
    roles = declared(learner, "role")
    return {name: g for name, g in grads.items() if roles[name] != "balance"}


def admit(guard: Guard, loss: Array, norm: Array, cfg: OptimizerConfig) -> tuple[Array, Guard]:
    """Whether a step's update may be applied, and the guard after it.

    A loss or gradient that is not finite never is, nor is a spike. Under "abort" the first one that
    is not finite halts the run, under "rollback" any of both; so do, however they are met, more
    than `max_skips` in a row. A halted run changes nothing until the loop ends it or goes back.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    spike = _is_spike(guard, loss, cfg)
    taken = finite & ~spike & ~guard.halted
    streak = jnp.where(taken, 0, guard.streak + 1)
    strict = {"abort": ~finite, "rollback": ~taken, "skip": jnp.zeros((), bool)}
    halted = guard.halted | strict[cfg.on_nonfinite] | (streak > cfg.max_skips)
    place = guard.seen % guard.losses.shape[0]
    losses = jnp.where(taken, guard.losses.at[place].set(loss), guard.losses)
    seen, skipped = guard.seen + taken, guard.skipped + ~taken
    return taken, Guard(halted, streak, skipped, losses, seen)


def _is_spike(guard: Guard, loss: Array, cfg: OptimizerConfig) -> Array:
    """A loss `spike` deviations above the last ones, once half a window of them is known."""
    if not cfg.spike:
        return jnp.zeros((), bool)
    W = guard.losses.shape[0]
    known = jnp.minimum(guard.seen, W)
    valid = jnp.arange(W) < known
    mean = jnp.sum(guard.losses, where=valid) / jnp.maximum(known, 1)
    spread = jnp.sqrt(jnp.sum((guard.losses - mean) ** 2, where=valid) / jnp.maximum(known, 1))
    return (known >= (W + 1) // 2) & (loss > mean + cfg.spike * spread)
