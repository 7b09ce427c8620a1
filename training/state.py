"""The state that a run carries from step to step, and its sharding over the mesh.

The state has no random keys and no iterators: both follow from the seed and the step.
"""

import types
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree, UInt32

from arch import Model, ModelConfig
from arch.scaling import with_width
from arch.sharding import divisible_spec
from objectives import Objective, Trainable
from settings.json_types import JsonObject
from training import mesh as meshes
from training import mup
from training.checkpoint.param_names import named_leaves
from training.optimizer import (
    Hyperparameters,
    OptimizerConfig,
    make_optimizer,
    param_metadata,
)

PARAMS_RNG, DROPOUT_RNG = 0, 1  # purposes of keys: fold_in(fold_in(seed, step), purpose)


class UpdateGuard(NamedTuple):
    """The record of accepted and skipped updates, which decides about the next one."""

    halted: Array  # bool: no update is applied any more
    consecutive_skips: Int[Array, ""]  # skipped updates since the last accepted one
    num_skipped: Int[Array, ""]  # skipped updates in total
    loss_window: Float[Array, " W"]  # losses of the last accepted updates, a ring buffer
    num_accepted: Int[Array, ""]  # accepted updates in total


class TrainState(NamedTuple):
    """All arrays of a run between two steps; field names begin the leaf names of checkpoints."""

    seed: UInt32[Array, ""]  # an array, so that runs with different seeds share a compiled step
    step: Int[Array, ""]  # steps done
    trainable: Trainable
    opt_state: optax.OptState
    guard: UpdateGuard
    banks: Mapping[str, PyTree]  # memory banks by objective, {} if there are none


class ResumePoint(NamedTuple):
    """The position that training continues from, with the record of earlier rollbacks."""

    state: TrainState
    step: int  # steps done
    data_hash: str | None  # hash of all batches before this step; "" at step 0
    skipped_batches: int = 0  # batches that rollbacks have skipped
    rollbacks: int = 0  # number of rollbacks so far
    window: Mapping[str, list] = types.MappingProxyType({})  # sums and weights since the last row
    metrics_seal: Mapping[str, object] | None = None  # size and hash of metrics.jsonl so far

    def metadata(self) -> JsonObject:
        """Returns what the manifest of a checkpoint stores: all fields but the first two."""
        meta = self._asdict()
        del meta["state"], meta["step"]
        return meta


def init_state(
    model: ModelConfig,
    objective: Objective,
    tx: optax.GradientTransformation,
    spike_window: int,
    seed: ArrayLike,
    banks: Mapping[str, PyTree] = types.MappingProxyType({}),
) -> TrainState:
    """Returns the state before the first step, with random parameters."""
    return start_state(init_trainable(model, objective, seed), tx, spike_window, seed, banks)


def start_state(
    trainable: Trainable,
    tx: optax.GradientTransformation,
    spike_window: int,
    seed: ArrayLike,
    banks: Mapping[str, PyTree] = types.MappingProxyType({}),
) -> TrainState:
    """Returns the state before the first step from these parameters."""
    zero = jnp.zeros((), jnp.int32)
    loss_window = jnp.zeros((max(spike_window, 1),), jnp.float32)
    guard = UpdateGuard(jnp.zeros((), bool), zero, zero, loss_window, zero)
    seed = jnp.asarray(seed, jnp.uint32)
    opt_state = tx.init(named_leaves(trainable))
    return TrainState(seed, zero, trainable, opt_state, guard, dict(banks))


def init_trainable(model: ModelConfig, objective: Objective, seed: ArrayLike) -> Trainable:
    """Returns a model and its objective's head with random parameters."""
    keys = jax.random.split(key_for(seed, 0, PARAMS_RNG))
    return Trainable(Model(model, key=keys[0]), objective.make_head(model, keys[1]))


def key_for(seed: ArrayLike, step: ArrayLike, rng_id: int) -> Array:
    """Returns the random key for one purpose at one step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), rng_id)


def make_model_optimizer(
    cfg: OptimizerConfig,
    steps: int,
    model: ModelConfig,
    objective: Objective,
    hyperparameters: Hyperparameters | None = None,
) -> optax.GradientTransformation:
    """Returns the optimizer for a model, built from shapes alone; see `make_optimizer`.

    Raises:
        ConfigError: if a part or the optimizer has no rule under muP.
    """
    trainable = jax.eval_shape(lambda: init_trainable(model, objective, 0))
    decay_mask, roles, rates = (param_metadata(trainable, k) for k in ("decay", "role", "rate"))
    tx = make_optimizer(cfg, steps, decay_mask, roles, rates, hyperparameters)
    if model.parametrization == "standard":
        return tx
    wide_model = with_width(model, model.width * mup.WIDTH_RATIO)
    wide = named_leaves(jax.eval_shape(lambda: init_trainable(wide_model, objective, 0)))
    growths = {
        name: mup.axis_growth(leaf.shape, wide[name].shape, roles[name])
        for name, leaf in named_leaves(trainable).items()
    }
    factors = mup.rate_factors(cfg.name, model.width / model.base_width, growths, roles)
    return mup.scale_directions(tx, factors)


def state_shardings(mesh: Mesh, state: TrainState) -> PyTree:
    """Returns the NamedSharding of each leaf; optimizer moments follow their parameters."""
    param_shardings = meshes.param_shardings(mesh, state.trainable)
    replicated = meshes.replicated(mesh)
    params = zip(
        named_leaves(state.trainable).items(), jax.tree.leaves(param_shardings), strict=True
    )
    by_name: dict[str | None, tuple[tuple[int, ...] | None, NamedSharding]] = {
        name: (leaf.shape, sharding) for (name, leaf), sharding in params
    }

    def moment_sharding(path: jax.tree_util.KeyPath, leaf: Array) -> NamedSharding:
        name = path[-1].key if path and isinstance(path[-1], jax.tree_util.DictKey) else None
        shape, sharding = by_name.get(name, (None, replicated))
        if shape != leaf.shape:
            return replicated
        return NamedSharding(mesh, divisible_spec(sharding.spec, leaf.shape, mesh.shape))

    opt_state = jax.tree_util.tree_map_with_path(moment_sharding, state.opt_state)
    guard, banks = jax.tree.map(lambda _: replicated, (state.guard, state.banks))
    return TrainState(replicated, replicated, param_shardings, opt_state, guard, banks)  # type: ignore[arg-type]
