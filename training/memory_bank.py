"""Memory banks of objectives (`objectives.MemoryBank`): an entry of the state for each.

A bank holds rows that the seed selects once, or what the initial parameters make of them. It is
saved with the rest of the state, so that a resumed run has the same bank as a run that was never
interrupted.
"""

from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from data.loader import Batches
from data.open_stores import Data
from data.random_streams import RandomStream, permutation
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
from training.run.console import LOGGER
from training.settings import Settings

SINGLE_OBJECTIVE = "objective"  # name of the bank of an objective outside a mixture

MemoryBanks = Mapping[str, PyTree]  # by name of the part of a mixture, or SINGLE_OBJECTIVE


def make_empty_banks(settings: Settings) -> MemoryBanks:
    """Returns banks without rows, which `fill_banks` adds."""
    banks, train = dict[str, PyTree](), settings.train
    for name, (part, bank) in _parts_with_bank(settings.get_objective()).items():
        spec = part.objective.row_spec(settings.model, train.seq_len)
        make_row = part.objective.make_row_fn(settings.model, train.seq_len, DummyTokenizer())
        row = make_row([], spec.text_length, np.random.default_rng(0))
        arrays = {n: jnp.asarray(x) for n, x in row.items()}
        banks[name] = bank.init(settings.model.width, arrays)
    return banks


def fill_banks(
    banks: MemoryBanks, trainable: Trainable, settings: Settings, data: Data, mesh: Mesh
) -> MemoryBanks:
    """Returns empty banks with their rows; padding replaces rows that are missing.

    `trainable` has the initial parameters of the run.
    """
    banks = dict(banks)
    for name, (part, bank) in _parts_with_bank(settings.get_objective()).items():
        add_rows = jax.jit(
            bank.add_rows, static_argnums=(2, 5), out_shardings=meshes.replicated(mesh)
        )
        args = part.select_trainable(trainable), settings.train.grad_accum_steps
        for split, n_rows in bank.n_rows.items():
            LOGGER.info("reading %d rows of the %s split, once for the whole run", n_rows, split)
            for first, batch in _batches_of_rows(settings, part, split, n_rows, data, mesh):
                with jax.set_mesh(mesh):
                    banks[name] = add_rows(args[0], banks[name], split, batch, first, args[1])
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


def _batches_of_rows(
    settings: Settings, part: MixturePart, split: str, n_rows: int, data: Data, mesh: Mesh
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields the rows of a split that the seed selects, in batches with the number of rows before.

    Each process makes its own share of a batch.
    """
    train, seed = settings.train, settings.seed
    spec = part.objective.row_spec(settings.model, train.seq_len)
    source = make_row_source(getattr(data.select(spec.store_kind), split), spec)
    make_row = part.objective.make_row_fn(settings.model, train.seq_len, data.tokenizer)
    n_all = source.epoch_length // source.row_length
    order = permutation(seed, 0, RandomStream.MEMORY_BANK, n_all)[:n_rows]
    rank, world = meshes.process_shard(mesh, train.batch_size)
    batches = Batches(
        *(source, train.batch_size, make_row, seed),
        rank=rank,
        world_size=world,
        row_numbers=order,
    )
    for number in range(len(batches)):
        first = np.asarray(number * train.batch_size, np.int32)
        yield first, meshes.shard_batch(mesh, batches[number], train.batch_size)
