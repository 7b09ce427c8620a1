"""Settings as a program: the mesh, the abstract state and its sharding, and the jitted functions.

Everything here is abstract, shapes and shardings without arrays, so that the same code serves the
loop, a dry run on a laptop, and the compilation for a machine that is not present.

A process compiles a step once for all runs whose settings differ only in `NOT_COMPILED`: the seed,
the data, and the inputs of the step (learning rate, its schedule, weight decay).
"""

import inspect
from collections.abc import Callable, Hashable
from fnmatch import fnmatchcase
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import PyTree

from errors import ConfigError
from objectives import Batch, DummyTokenizer, Metrics, Objective
from settings.tree import flatten
from training import mesh as meshes
from training.memory_bank import make_empty_banks
from training.optimizer import INPUT_SETTINGS, Hyperparameters, make_hyperparameters
from training.settings import Settings
from training.state import TrainState, init_state, make_model_optimizer, state_shardings
from training.step import TrainStep, make_shared_step

SHARDING_AXIS = {"num_experts": "expert"}  # mesh axis that divides a setting, if not "model"
# Settings on which the compiled step does not depend.
NOT_COMPILED = (
    *("seed", "data.*", "eval.*", "checkpoint.*", "log.*", "debug.inject_fault"),
    *("train.hang_timeout", "train.compile_cache"),
    *(f"optimizer.{name}" for name in INPUT_SETTINGS),
)
MAX_COMPILED_STEPS = 8  # number of compiled steps that a process keeps


class StepFunctions:
    """The functions of a step, shared by all runs of a process that may share them."""

    def __init__(self, init: jax.stages.Wrapped, step: jax.stages.Wrapped):
        self.init = init  # jitted: seed -> state
        self.step = step  # jitted: (state, batch, hyperparameters) -> (state, metrics)
        self.compiled: jax.stages.Compiled | None = None  # the step for the shapes of the run


_STEP_FUNCTIONS: dict[Hashable, StepFunctions] = {}  # the newest ones last


class TrainProgram(NamedTuple):
    """The functions and shapes of a run on one mesh."""

    settings: Settings
    mesh: Mesh
    objective: Objective
    abstract_state: TrainState  # shapes with their shardings
    abstract_batch: dict[str, jax.ShapeDtypeStruct]
    hyperparameters: Hyperparameters  # inputs of the step that do not change from step to step
    functions: StepFunctions  # shared with other runs of this process

    def init(self) -> TrainState:
        """Returns the state before the first step, sharded over the mesh."""
        state: TrainState = self.functions.init(np.uint32(self.settings.seed))
        return state

    def compile_step(self) -> jax.stages.Compiled:
        """Returns the step, compiled once for these shapes; it refuses any other shape.

        Its arguments are the state, which is donated, the batch and the hyperparameters.
        """
        if self.functions.compiled is None:
            replicated = meshes.replicated(self.mesh)
            abstract_hyper = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
                self.hyperparameters,
            )
            args = self.abstract_state, self.abstract_batch, abstract_hyper
            with jax.set_mesh(self.mesh):
                self.functions.compiled = self.functions.step.lower(*args).compile()
        return self.functions.compiled

    def compile_train_step(self) -> TrainStep:
        """Returns the compiled step as the loop calls it, a function of state and batch.

        Under debug.debug_nans a step whose loss is not finite is computed again on one device,
        operation by operation, and the first operation that makes a NaN raises FloatingPointError.
        """
        compiled = self.compile_step()
        hyper = jax.device_put(self.hyperparameters, meshes.replicated(self.mesh))

        def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            result: tuple[TrainState, Metrics] = compiled(state, batch, hyper)
            return result

        if not self.settings.debug.debug_nans:
            return step

        def step_with_nan_check(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            result = step(state, batch)
            if not np.isfinite(jax.device_get(result[1]["loss"].sum)):
                mesh = meshes.make_mesh(meshes.MeshConfig(), jax.local_devices()[:1])
                with jax.transfer_guard("allow"), jax.set_mesh(mesh):
                    args = jax.device_get((state, batch, hyper))
                    args = jax.device_put(args, meshes.replicated(mesh))
                    with jax.disable_jit(), jax.debug_nans(True):
                        inspect.unwrap(self.functions.step)(*args)
            return result

        return step_with_nan_check


def make_program(settings: Settings, mesh: Mesh) -> TrainProgram:
    """Returns the program of resolved settings on a mesh.

    Raises:
        ConfigError: if the mesh does not divide the batch or the model, or the schedule is invalid.
    """
    train = settings.train
    meshes.check_batch(mesh, train.batch_size, train.grad_accum_steps, train.seq_len)
    _check_tp_dims(settings, mesh)
    hyper = make_hyperparameters(settings.optimizer, train.steps)
    init = _init_function(settings)
    shapes = jax.eval_shape(init, np.uint32(0))
    shardings = state_shardings(mesh, shapes)
    return TrainProgram(
        settings,
        mesh,
        settings.get_objective(),
        _with_shardings(shapes, shardings),
        batch_shapes(settings, mesh),
        hyper,
        _step_functions(settings, mesh, init, shardings),
    )


def _init_function(settings: Settings) -> Callable[[ArrayLike], TrainState]:
    """The function from a seed to the state before the first step."""
    model, objective = settings.model, settings.get_objective()
    tx = make_model_optimizer(settings.optimizer, settings.train.steps, model, objective)

    def init(seed: ArrayLike) -> TrainState:
        window = settings.optimizer.spike_window
        return init_state(model, objective, tx, window, seed, make_empty_banks(settings))

    return init


def _step_functions(
    settings: Settings,
    mesh: Mesh,
    init: Callable[[ArrayLike], TrainState],
    shardings: TrainState,
) -> StepFunctions:
    """The functions that an earlier run of this process shares with this one, or new ones."""
    compiled_settings = tuple(
        (key, value)
        for key, value in flatten(settings).items()
        if not any(fnmatchcase(key, pattern) for pattern in NOT_COMPILED)
    )
    key = (mesh, compiled_settings)
    functions = _STEP_FUNCTIONS.pop(key, None) or StepFunctions(
        jax.jit(init, out_shardings=shardings),
        jax.jit(
            make_shared_step(
                *(settings.get_objective(), settings.model, settings.optimizer),
                steps=settings.train.steps,
                grad_accum_steps=settings.train.grad_accum_steps,
            ),
            # Under debug.debug_nans the state before a step may be needed again.
            donate_argnums=() if settings.debug.debug_nans else 0,
            out_shardings=(shardings, meshes.replicated(mesh)),
        ),
    )
    _STEP_FUNCTIONS[key] = functions
    if len(_STEP_FUNCTIONS) > MAX_COMPILED_STEPS:
        del _STEP_FUNCTIONS[next(iter(_STEP_FUNCTIONS))]
    return functions


def forget_compiled_steps() -> None:
    """Makes this process compile the steps of further runs anew, for measurements of that."""
    _STEP_FUNCTIONS.clear()


def batch_shapes(settings: Settings, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the arrays of a batch by name, with shapes taken from an empty row."""
    train, shapes = settings.train, dict[str, jax.ShapeDtypeStruct]()
    for part in settings.mixture_parts():
        spec = part.objective.row_spec(settings.model, train.seq_len)
        make_row = part.objective.make_row_fn(settings.model, train.seq_len, DummyTokenizer())
        row = make_row([], spec.text_length, np.random.default_rng(0))
        if spec.n_images:
            row["images"] = np.zeros(settings.data.images.shape, np.uint8)
        for name, array in row.items():
            shape = (train.batch_size, *array.shape)
            sharding = meshes.batch_array_sharding(mesh, shape)
            shapes[part.label(name)] = jax.ShapeDtypeStruct(shape, array.dtype, sharding=sharding)
    return shapes


def _with_shardings(shapes: PyTree, shardings: PyTree) -> PyTree:
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        *(shapes, shardings),
    )


def _check_tp_dims(settings: Settings, mesh: Mesh) -> None:
    """Checks that each mesh axis divides the dimensions of the model which it shards.

    Raises:
        ConfigError: if one does not.
    """
    for key, size in settings.model.tp_dims().items():
        axis = SHARDING_AXIS.get(key.rpartition(".")[2], "model")
        axis_size = mesh.shape[axis]
        if size % axis_size:
            divisors = [n for n in range(1, min(size, mesh.size) + 1) if size % n == 0]
            raise ConfigError(
                f"mesh.{axis} {axis_size} does not divide model.{key} {size}; "
                f"choose one of {', '.join(map(str, divisors))}"
            )
