"""What objectives keep between steps (`objectives.Bank`), an entry of the state for each that does.

A bank is made of rows of the training split that the seed draws once. It is saved with the rest of
the state, so that a run that goes on has the bank of one that was never interrupted.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from data import Data
from data.packing import permutation
from data.texts import rows_of
from objectives import Batch, Blank, Learner, Member, Objective, members
from training import mesh as meshes
from training.settings import Settings

DRAW = 5  # purpose of random numbers

Banks = dict[str, Any]  # by name of the part of a mixture; alone an objective is "own"


def empty(settings: Settings) -> Banks:
    """Banks of padding, which have the shapes of those to come."""
    found, train = Banks(), settings.train
    for name, member in _banking(settings.chosen()).items():
        bank, wanted = member.objective.bank, member.objective.rows(settings.model, train.length)
        example = member.objective.host(settings.model, train.length, Blank())
        row = example([], wanted.text, np.random.default_rng(0))
        rows = {n: jnp.zeros((bank.rows, *a.shape), a.dtype) for n, a in row.items()}
        found[name] = bank.held(settings.model.width, rows)
    return found


def filled(settings: Settings, data: Data, mesh: Mesh) -> Banks:
    """Banks of training rows, on the mesh; where there are too few, the rest is padding."""
    found = Banks()
    for name, member in _banking(settings.chosen()).items():
        rows = _rows(settings, member, data)
        make = jax.jit(member.objective.bank.held, static_argnums=0)
        with jax.set_mesh(mesh):
            held = make(settings.model.width, rows)
            found[name] = jax.device_put(held, meshes.everywhere(mesh))
    return found


def consulted(
    objective: Objective, learner: Learner, banks: Banks, batch: Batch, step: Array, parts: int
) -> tuple[Banks, Batch]:
    """The banks after a step has looked, and the batch with what they add to it."""
    new = dict(banks)
    for name, member in _banking(objective).items():
        own = member.learner(learner), banks[name], member.batch(batch)
        new[name], more = member.objective.bank.consulted(*own, step, parts)
        batch = batch | {member.label(n): x for n, x in more.items()}
    return new, batch


def reads(settings: Settings, member: Member, steps: int) -> int:
    """Tokens that a model reads for a bank, without a gradient, in so many steps."""
    bank, train = member.objective.bank, settings.train
    return bank.reads(steps, train.batch, train.length) if bank else 0


def _banking(objective: Objective) -> dict[str, Member]:
    return {m.name or "own": m for m in members(objective) if m.objective.bank}


def _rows(settings: Settings, member: Member, data: Data) -> dict[str, np.ndarray]:
    train, seed, count = settings.train, settings.seed, member.objective.bank.rows
    wanted = member.objective.rows(settings.model, train.length)
    reader = rows_of(data.holding(wanted.reads == "records").train, wanted)
    example = member.objective.host(settings.model, train.length, data.tokenizer)
    drawn = permutation(seed, 0, DRAW, reader.positions // reader.length)[:count].tolist()
    made = []
    for number in [*drawn, *[None] * (count - len(drawn))]:
        pieces = [] if number is None else [piece.tokens for piece in reader.row(number)]
        rng = np.random.default_rng((seed, 0 if number is None else number))
        made.append(example(pieces, wanted.text, rng))
    return {name: np.stack([row[name] for row in made]) for name in made[0]}
