"""Settings as a program: the mesh, the abstract state and its sharding, and the jitted functions.

Everything here is abstract, shapes and shardings without arrays, so that the same code serves the
loop, a dry run on a laptop, and the compilation for a machine that is not present.
"""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import PyTree

from errors import ConfigError
from objectives import Batch, DummyTokenizer, Metrics, Objective
from training import mesh as meshes
from training.memory_bank import make_empty_banks
from training.settings import Settings
from training.state import TrainState, init_state, make_model_optimizer, state_shardings
from training.step import TrainStep, make_step

SHARDING_AXIS = {"num_experts": "expert"}  # mesh axis that divides a setting, if not "model"


class TrainProgram(NamedTuple):
    """The functions and shapes of a run on one mesh."""

    settings: Settings
    mesh: Mesh
    objective: Objective
    abstract_state: TrainState  # shapes with their shardings
    abstract_batch: dict[str, jax.ShapeDtypeStruct]
    init: Callable[[], TrainState]
    step: jax.stages.Wrapped  # jitted: (state, batch) -> (state, metrics); the state is donated

    def compile_step(self) -> jax.stages.Compiled:
        """Returns the step, compiled once for these shapes; it refuses any other shape."""
        with jax.set_mesh(self.mesh):
            return self.step.lower(self.abstract_state, self.abstract_batch).compile()

    def compile_train_step(self) -> TrainStep:
        """Returns the compiled step as the loop calls it.

        Under debug.debug_nans a step whose loss is not finite is computed again on one device,
        operation by operation, and the first operation that makes a NaN raises FloatingPointError.
        """
        step = self.compile_step()
        if not self.settings.debug.debug_nans:
            return step

        def step_with_nan_check(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            result: tuple[TrainState, Metrics] = step(state, batch)
            if not np.isfinite(jax.device_get(result[1]["loss"].sum)):
                mesh = meshes.make_mesh(meshes.MeshConfig(), jax.local_devices()[:1])
                with jax.transfer_guard("allow"), jax.set_mesh(mesh):
                    args = jax.device_put(jax.device_get((state, batch)), meshes.replicated(mesh))
                    with jax.disable_jit(), jax.debug_nans(True):
                        inspect.unwrap(self.step)(*args)
            return result

        return step_with_nan_check


def make_program(settings: Settings, mesh: Mesh) -> TrainProgram:
    """Returns the program of resolved settings on a mesh.

    Raises:
        ConfigError: if the mesh does not divide the batch or the model, or the schedule is invalid.
    """
    train, model, objective = settings.train, settings.model, settings.get_objective()
    meshes.check_batch(mesh, train.batch_size, train.grad_accum_steps, train.seq_len)
    _check_tp_dims(settings, mesh)
    tx = make_model_optimizer(settings.optimizer, train.steps, model, objective)

    def init(seed: ArrayLike) -> TrainState:
        window = settings.optimizer.spike_window
        return init_state(model, objective, tx, window, seed, make_empty_banks(settings))

    seed = np.uint32(settings.seed % 2**32)
    shapes = jax.eval_shape(init, seed)
    shardings = state_shardings(mesh, shapes)
    step = make_step(
        *(objective, tx, settings.optimizer),
        steps=train.steps,
        grad_accum_steps=train.grad_accum_steps,
    )
    return TrainProgram(
        settings,
        mesh,
        objective,
        _with_shardings(shapes, shardings),
        batch_shapes(settings, mesh),
        functools.partial(jax.jit(init, out_shardings=shardings), seed),
        jax.jit(
            step,
            # Under debug.debug_nans the state before a step may be needed again.
            donate_argnums=() if settings.debug.debug_nans else 0,
            out_shardings=(shardings, meshes.replicated(mesh)),
        ),
    )


def batch_shapes(settings: Settings, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the arrays of a batch by name, with shapes taken from an empty row."""
    train, shapes = settings.train, dict[str, jax.ShapeDtypeStruct]()
    for part in settings.mixture_parts():
        spec = part.objective.row_spec(settings.model, train.seq_len)
        make_row = part.objective.make_row_fn(settings.model, train.seq_len, DummyTokenizer())
        row = make_row([], spec.text_length, np.random.default_rng(0))
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
