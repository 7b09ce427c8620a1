"""Memory banks of objectives (`objectives.MemoryBank`): an entry of the state for each.

A bank holds rows of the training split that the seed selects once. It is saved with the rest of the
state, so that a resumed run has the same bank as a run that was never interrupted.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from data import Data
from data.packing import permutation
from data.text_rows import make_row_source
from objectives import (
    Batch,
    DummyTokenizer,
    MemoryBank,
    MixturePart,
    Objective,
    Trainable,
    mixture_parts,
)
from training import mesh as meshes
from training.settings import Settings

BANK_RNG = 5  # purpose of random numbers
SINGLE_OBJECTIVE = "objective"  # name of the bank of an objective outside a mixture

MemoryBanks = dict[str, PyTree]  # by name of the part of a mixture, or SINGLE_OBJECTIVE


def make_empty_banks(settings: Settings) -> MemoryBanks:
    """Returns banks of padding with the shapes of those that `make_banks` returns."""
    banks, train = MemoryBanks(), settings.train
    for name, (part, bank) in _parts_with_bank(settings.get_objective()).items():
        spec = part.objective.row_spec(settings.model, train.seq_len)
        make_row = part.objective.make_row_fn(settings.model, train.seq_len, DummyTokenizer())
        row = make_row([], spec.text_length, np.random.default_rng(0))
        rows = {n: jnp.zeros((bank.n_rows, *x.shape), x.dtype) for n, x in row.items()}
        banks[name] = bank.init(settings.model.width, rows)
    return banks


def make_banks(settings: Settings, data: Data, mesh: Mesh) -> MemoryBanks:
    """Returns banks of training rows on the mesh; padding replaces rows that are missing."""
    banks = MemoryBanks()
    for name, (part, bank) in _parts_with_bank(settings.get_objective()).items():
        rows = _bank_rows(settings, part, bank.n_rows, data)
        init = jax.jit(bank.init, static_argnums=0)
        with jax.set_mesh(mesh):
            state = init(settings.model.width, rows)
            banks[name] = jax.device_put(state, meshes.replicated(mesh))
    return banks


def update_and_lookup(
    objective: Objective,
    trainable: Trainable,
    banks: MemoryBanks,
    batch: Batch,
    step: Array,
    grad_accum_steps: int,
) -> tuple[MemoryBanks, Batch]:
    """Returns the banks after this step, and the batch with the arrays that they add to it."""
    new_banks = dict(banks)
    for name, (part, bank) in _parts_with_bank(objective).items():
        args = part.select_trainable(trainable), banks[name], part.select_batch(batch)
        new_banks[name], arrays = bank.update_and_lookup(*args, step, grad_accum_steps)
        batch = batch | {part.label(n): x for n, x in arrays.items()}
    return new_banks, batch


def extra_tokens(settings: Settings, part: MixturePart, steps: int) -> int:
    """Returns the tokens that a model processes without a gradient for a bank in `steps` steps."""
    bank, train = part.objective.memory_bank, settings.train
    return bank.extra_tokens(steps, train.batch_size, train.seq_len) if bank else 0


def _parts_with_bank(objective: Objective) -> dict[str, tuple[MixturePart, MemoryBank]]:
    return {
        part.name or SINGLE_OBJECTIVE: (part, bank)
        for part in mixture_parts(objective)
        if (bank := part.objective.memory_bank) is not None
    }


def _bank_rows(
    settings: Settings, part: MixturePart, n_rows: int, data: Data
) -> dict[str, np.ndarray]:
    """The arrays [n_rows ...] of the training rows that the seed selects, with padding behind."""
    train, seed = settings.train, settings.seed
    spec = part.objective.row_spec(settings.model, train.seq_len)
    source = make_row_source(data.select(spec.store_kind).train, spec)
    make_row = part.objective.make_row_fn(settings.model, train.seq_len, data.tokenizer)
    order = permutation(seed, 0, BANK_RNG, source.epoch_length // source.row_length)
    indices = order[:n_rows].tolist()
    rows = []
    for index in [*indices, *[None] * (n_rows - len(indices))]:
        texts = [] if index is None else [piece.tokens for piece in source.row(index)]
        rng = np.random.default_rng((seed, 0 if index is None else index))
        rows.append(make_row(texts, spec.text_length, rng))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
