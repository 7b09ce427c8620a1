"""Settings as something to run: the mesh, the abstract state and its layout, init and step.

Everything here is abstract: shapes and layouts, no arrays, so that the same code serves the loop, a
dry run on a laptop, and compilation for a machine that is not here.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from errors import ConfigError
from objectives import Blank, Objective
from training import mesh as meshes
from training.banks import empty
from training.settings import Settings
from training.state import State, initial, placement, transformation
from training.step import make_step

CUT_BY = {"experts": "expert"}  # the axis that cuts along a setting, if not "model"


class Program(NamedTuple):
    settings: Settings
    mesh: Mesh
    objective: Objective
    state: State  # shapes with their layout
    batch: dict[str, jax.ShapeDtypeStruct]
    init: Any  # () -> state
    step: Any  # jitted: (state, batch) -> (state, metrics); the state is donated

    def compiled(self) -> Any:
        """The step, compiled once for these shapes: another shape is an error, not a recompile.

        Under debug.nans a step whose loss is none is computed again on one device, operation by
        operation, and the first that makes a NaN is a FloatingPointError.
        """
        with jax.set_mesh(self.mesh):
            step = self.step.lower(self.state, self.batch).compile()
        if not self.settings.debug.nans:
            return step

        def watched(state: State, batch: Any) -> Any:
            found = step(state, batch)
            if not np.isfinite(jax.device_get(found[1]["loss"].sum)):
                one = meshes.build(meshes.MeshConfig(), jax.local_devices()[:1])
                with jax.transfer_guard("allow"), jax.set_mesh(one):
                    here = jax.device_put(jax.device_get((state, batch)), meshes.everywhere(one))
                    with jax.disable_jit(), jax.debug_nans(True):
                        self.step.__wrapped__(*here)
            return found

        return watched


def program(settings: Settings, mesh: Mesh) -> Program:
    """What `settings` (resolved) mean on `mesh`; refuses what cannot be laid out."""
    train, model, objective = settings.train, settings.model, settings.chosen()
    meshes.check_batch(mesh, train.batch, train.accumulate, train.length)
    _check_cuts(settings, mesh)
    tx = transformation(settings.optimizer, train.steps, model, objective)

    def init(seed: Any) -> State:
        window = settings.optimizer.window
        return initial(model, objective, tx, window, seed, empty(settings))

    seed = np.uint32(settings.seed % 2**32)
    shapes = jax.eval_shape(init, seed)
    place = placement(mesh, shapes)
    step = make_step(
        *(objective, tx, settings.optimizer),
        steps=train.steps,
        accumulate=train.accumulate,
    )
    alone = meshes.everywhere(mesh)
    return Program(
        settings,
        mesh,
        objective,
        _laid_out(shapes, place),
        batch_shapes(settings, mesh),
        functools.partial(jax.jit(init, out_shardings=place), seed),
        # Under debug.nans the state before a step may be needed again.
        jax.jit(
            step, donate_argnums=() if settings.debug.nans else 0, out_shardings=(place, alone)
        ),
    )


def batch_shapes(settings: Settings, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch, known from what the objectives make of an empty row."""
    train, found = settings.train, dict[str, jax.ShapeDtypeStruct]()
    for member in settings.members():
        rows = member.objective.rows(settings.model, train.length)
        example = member.objective.host(settings.model, train.length, Blank())
        row = example([], rows.text, np.random.default_rng(0))
        for name, array in row.items():
            shape = (train.batch, *array.shape)
            place = meshes.rows_like(mesh, shape)
            found[member.label(name)] = jax.ShapeDtypeStruct(shape, array.dtype, sharding=place)
    return found


def _laid_out(shapes: Any, place: Any) -> Any:
    return jax.tree.map(
        lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes, place
    )


def _check_cuts(settings: Settings, mesh: Mesh) -> None:
    """What an axis of the mesh cuts along it must divide."""
    for key, size in settings.model.cuts().items():
        axis = CUT_BY.get(key.rpartition(".")[2], "model")
        ways = mesh.shape[axis]
        if size % ways:
            near = [n for n in range(1, min(size, mesh.size) + 1) if size % n == 0]
            raise ConfigError(
                f"mesh.{axis} {ways} does not divide model.{key} {size}; "
                f"choose one of {', '.join(map(str, near))}"
            )
