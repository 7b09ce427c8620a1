"""What a run carries from step to step, and where it lives: no keys, no iterators, only a step."""

import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int, UInt32

from arch import Model, ModelConfig
from arch.sharding import fitting
from objectives import Learner, Objective
from training import mesh as meshes
from training.leaves import named_leaves
from training.optimizer import OptimizerConfig, build, declared

PARAMETERS, DROPOUT = 0, 1  # purposes of keys: fold_in(fold_in(seed, step), purpose)


class Guard(NamedTuple):
    """Steps refused: because something was not finite, or the loss a spike."""

    halted: Array  # bool: no update is applied any more
    streak: Int[Array, ""]  # steps skipped in a row
    skipped: Int[Array, ""]  # in all
    losses: Float[Array, " W"]  # the last ones taken, a ring
    seen: Int[Array, ""]  # losses taken in all


class State(NamedTuple):
    seed: UInt32[Array, ""]  # data, so that runs that differ in it share a compiled step
    step: Int[Array, ""]
    learner: Learner
    optimizer: Any
    guard: Guard
    banks: Any  # what objectives keep between steps; {}: nothing


def initial(
    model: ModelConfig,
    objective: Objective,
    tx: optax.GradientTransformation,
    window: int,
    seed: Any,
    banks: Any = types.MappingProxyType({}),
) -> State:
    """The state before the first step."""
    learner = new_learner(model, objective, seed)
    zero = jnp.zeros((), jnp.int32)
    losses = jnp.zeros((max(window, 1),), jnp.float32)
    guard = Guard(jnp.zeros((), bool), zero, zero, losses, zero)
    seed = jnp.asarray(seed, jnp.uint32)
    return State(seed, zero, learner, tx.init(named_leaves(learner)), guard, dict(banks))


def new_learner(model: ModelConfig, objective: Objective, seed: Any) -> Learner:
    keys = jax.random.split(purpose(seed, 0, PARAMETERS))
    return Learner(Model(model, key=keys[0]), objective.head(model, keys[1]))


def purpose(seed: Any, step: Any, what: int) -> Array:
    """The key for one purpose at one step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), what)


def transformation(
    cfg: OptimizerConfig, steps: int, model: ModelConfig, objective: Objective
) -> optax.GradientTransformation:
    """The optimizer for a model, built from shapes alone."""
    learner = jax.eval_shape(lambda: new_learner(model, objective, 0))
    decays, roles, rates = (declared(learner, what) for what in ("decay", "role", "rate"))
    return build(cfg, steps, decays, roles, rates)


def placement(mesh: Mesh, state: State) -> Any:
    """The NamedSharding of every leaf: optimizer moments lie where their parameters do."""
    learner = meshes.layouts(mesh, state.learner)
    alone = meshes.everywhere(mesh)
    where = {name: (leaf.shape, at) for (name, leaf), at in _pairs(state.learner, learner)}

    def moment(path: Any, leaf: Any) -> NamedSharding:
        name = path[-1].key if path and isinstance(path[-1], jax.tree_util.DictKey) else None
        shape, at = where.get(name, (None, alone))
        return (
            NamedSharding(mesh, fitting(at.spec, leaf.shape, mesh.shape))
            if (shape == leaf.shape)
            else alone
        )

    optimizer = jax.tree_util.tree_map_with_path(moment, state.optimizer)
    rest = jax.tree.map(lambda _: alone, (state.guard, state.banks))
    return State(alone, alone, learner, optimizer, *rest)  # type: ignore[arg-type]


def _pairs(learner: Learner, places: Learner) -> list:
    return list(zip(named_leaves(learner).items(), jax.tree.leaves(places), strict=True))
