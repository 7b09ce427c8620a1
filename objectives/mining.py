"""Mining of hard negatives: texts that the encoder places nearest to an anchor.

The method is ANCE (Xiong et al., arXiv:2007.00808) on a pool. The pool is a sample of the training
texts, the same for the whole run. Every `refresh_every` steps the encoder embeds the pool anew. At
every step the current encoder embeds the batch's anchors and adds to each anchor the nearest texts
of the pool that are not matches of it. These texts are then read again with a gradient. ANCE itself
searches all texts and uses anchor vectors from the time of the search. The pool and its vectors are
part of the run's state, so that a resumed run mines the same negatives.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from errors import ConfigError
from objectives.infonce import HIGHEST, equal_ids
from objectives.types import Embeddings, Trainable
from settings.types import NonNegativeInt, PositiveInt, config

TEXT_ARRAYS = ("tokens", "positions", "segment_ids")
ForwardFn = Callable[[Trainable, dict[str, Array], Array | None], Embeddings]


@config
class MiningConfig:
    """Mining of hard negatives from a pool of training texts (ANCE)."""

    # Number of steps between two embeddings of the pool; 0: hard negatives are not mined.
    refresh_every: NonNegativeInt = 0
    pool_size: PositiveInt = 1024  # Number of texts in the pool, the matches of training rows.
    hard_negatives: PositiveInt = 1  # Number of mined hard negatives per row.
    # Number of nearest texts to skip, since they may be matches too.
    skip_nearest: NonNegativeInt = 0

    def check(self) -> None:
        """Checks that the pool has enough texts.

        Raises:
            ConfigError: if a row needs more texts than the pool has.
        """
        if self.skip_nearest + self.hard_negatives > self.pool_size:
            raise ConfigError(
                f"contrastive.mining.skip_nearest {self.skip_nearest} + hard_negatives "
                f"{self.hard_negatives} is above the pool_size {self.pool_size}; raise pool_size"
            )


class BankState(NamedTuple):
    """The state of the bank: the pool's texts and their vectors from the last refresh."""

    texts: dict[str, Int[Array, "pool T"]]
    ids: Int[Array, "pool 2"]
    vectors: Float[Array, "pool Z"]


class HardNegativeMiner(NamedTuple):
    """The memory bank (`objectives.MemoryBank`) of a contrastive objective."""

    mining: MiningConfig
    projection_dim: int  # Width of the vectors (Z); 0: the model's width.
    forward: ForwardFn

    @property
    def n_rows(self) -> dict[str, int]:
        """The number of training rows whose matches form the pool."""
        return {"train": self.mining.pool_size}

    def init(self, model_width: int, row: dict[str, Array]) -> BankState:
        """Returns the state with a pool of padding, and zero vectors."""
        n_texts = self.mining.pool_size

        def empty(x: Array) -> Array:
            return jnp.zeros((n_texts, x.shape[1]), x.dtype)

        vectors = jnp.zeros((n_texts, self.projection_dim or model_width), jnp.float32)
        return BankState({n: empty(row[n]) for n in TEXT_ARRAYS}, empty(row["text_ids"]), vectors)

    def add_rows(
        self,
        trainable: Trainable,
        state: BankState,
        split: str,
        batch: dict[str, Array],
        first: Array,
        grad_accum_steps: int,
    ) -> BankState:
        """Returns the state with the matches of the rows in the pool."""
        indices = first + jnp.arange(len(batch["tokens"]))

        def insert(pool: Array, rows: Array) -> Array:
            return pool.at[indices].set(rows[:, 1], mode="drop")

        texts = {name: insert(state.texts[name], batch[name]) for name in TEXT_ARRAYS}
        return state._replace(texts=texts, ids=insert(state.ids, batch["text_ids"]))

    def update_and_lookup(
        self,
        trainable: Trainable,
        state: BankState,
        batch: dict[str, Array],
        step: Array,
        grad_accum_steps: int,
    ) -> tuple[BankState, dict[str, Array]]:
        """Refreshes the pool's vectors if due, and adds mined texts to each row of the batch."""
        chunk_size = len(batch["tokens"]) // grad_accum_steps
        vectors = jax.lax.cond(
            step % self.mining.refresh_every == 0,
            lambda: self._embed(trainable, state.texts, chunk_size).astype(state.vectors.dtype),
            lambda: state.vectors,
        )
        state = state._replace(vectors=vectors)
        anchor_texts = {name: batch[name][:, 0] for name in TEXT_ARRAYS}
        anchors = self._embed(trainable, anchor_texts, chunk_size)
        indices = nearest_neighbors(anchors, state, batch, self.mining)
        mined = {name: _gather_texts(state.texts[name], indices) for name in TEXT_ARRAYS}
        mined["text_ids"] = _gather_texts(state.ids, indices)
        return state, batch | {n: jnp.concatenate([batch[n], x], axis=1) for n, x in mined.items()}

    def extra_tokens(self, steps: int, batch_size: int, seq_len: int) -> int:
        """Returns the tokens of all anchors and of the pool at each refresh."""
        refreshes = -(-steps // self.mining.refresh_every)
        return (steps * batch_size + refreshes * self.mining.pool_size) * seq_len

    def _embed(
        self, trainable: Trainable, texts: dict[str, Int[Array, "texts T"]], chunk_size: int
    ) -> Float[Array, "texts Z"]:
        """Embeds `chunk_size` texts at a time; every chunk has rows of every device."""
        n_texts = len(texts["tokens"])
        n_chunks = -(-n_texts // chunk_size)

        def split_chunks(x: Array) -> Array:
            x = jnp.pad(x, [(0, n_chunks * chunk_size - n_texts), (0, 0)])
            return x.reshape(chunk_size, n_chunks, 1, -1).swapaxes(0, 1)

        chunks = {name: split_chunks(x) for name, x in texts.items()}
        out = jax.lax.map(lambda chunk: self.forward(trainable, chunk, None).vectors[:, 0], chunks)
        return out.swapaxes(0, 1).reshape(n_chunks * chunk_size, -1)[:n_texts]


def nearest_neighbors(
    anchors: Float[Array, "B Z"], state: BankState, batch: dict[str, Array], mining: MiningConfig
) -> Int[Array, "B mined"]:
    """Returns indices into the pool, nearest first; -1 if no further text may be a negative."""
    anchor, match = batch["text_ids"][:, 0], batch["text_ids"][:, 1]
    eligible = ~equal_ids(anchor, state.ids) & ~equal_ids(match, state.ids)
    eligible &= jnp.any(state.texts["segment_ids"] != 0, axis=-1) & (batch["weights"] != 0)[:, None]
    cosines = jnp.matmul(anchors, state.vectors.T, precision=HIGHEST)
    cosines = jnp.where(eligible, cosines, -jnp.inf)
    values, indices = jax.lax.top_k(cosines, mining.skip_nearest + mining.hard_negatives)
    return jnp.where(jnp.isfinite(values), indices, -1)[:, mining.skip_nearest :]


def _gather_texts(
    x: Int[Array, "pool n"], indices: Int[Array, "B mined"]
) -> Int[Array, "B mined n"]:
    return jnp.where((indices >= 0)[..., None], x[indices], 0)
