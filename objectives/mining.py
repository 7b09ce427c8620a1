"""Hard negatives that are mined: the texts of a pool that an encoder finds nearest to an anchor,
and that are no match of it (ANCE, Xiong et al., arXiv:2007.00808).

The pool is a sample of the training texts, the same for the whole run. Every so many steps the
encoder embeds it anew; at every step the batch's anchors, embedded by the encoder of that step, are
given the nearest texts of the pool, which are then read again with a gradient. ANCE searches all
texts and takes its anchors' vectors from the time of the search. Pool and vectors are part of the
state, so that a run which is resumed mines what it would have mined.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from errors import ConfigError
from objectives.infonce import HIGHEST, same
from objectives.learner import Learner, Represented
from schema import Count, Natural, config

TEXT = ("tokens", "positions", "segments")
Encode = Callable[[Learner, dict[str, Array], Array | None], Represented]


@config
class Mining:
    every: Natural = 0  # steps between two readings of the pool; 0: nothing is mined
    pool: Count = 1024  # texts of it: the matches of so many training rows
    count: Count = 1  # hard negatives of a row
    skip: Natural = 0  # nearest ones that are passed over, since they may be matches too

    def check(self) -> None:
        if self.skip + self.count > self.pool:
            raise ConfigError(
                f"contrastive.mining.skip {self.skip} + count {self.count} is above its pool "
                f"{self.pool}; raise the pool"
            )


class Held(NamedTuple):
    """The pool, and what the encoder made of it when it last looked."""

    texts: dict[str, Int[Array, "P T"]]
    ids: Int[Array, "P 2"]
    vectors: Float[Array, "P E"]


class Miner(NamedTuple):
    """The bank (`objectives.Bank`) of a contrastive objective with this `encode`."""

    mining: Mining
    width: int  # E; 0: that of the model
    encode: Encode

    @property
    def rows(self) -> int:
        return self.mining.pool

    def held(self, width: int, rows: dict[str, Array]) -> Held:
        texts = {name: jnp.asarray(rows[name])[:, 1] for name in TEXT}
        vectors = jnp.zeros((len(texts["tokens"]), self.width or width), jnp.float32)
        return Held(texts, jnp.asarray(rows["text_ids"])[:, 1], vectors)

    def consulted(
        self, learner: Learner, held: Held, batch: dict[str, Array], step: Array, parts: int
    ) -> tuple[Held, dict[str, Array]]:
        chunk = len(batch["tokens"]) // parts
        vectors = jax.lax.cond(
            step % self.mining.every == 0,
            lambda: self._embedded(learner, held.texts, chunk).astype(held.vectors.dtype),
            lambda: held.vectors,
        )
        held = held._replace(vectors=vectors)
        anchors = self._embedded(learner, {name: batch[name][:, 0] for name in TEXT}, chunk)
        found = nearest(anchors, held, batch, self.mining)
        more = {name: _taken(held.texts[name], found) for name in TEXT}
        more["text_ids"] = _taken(held.ids, found)
        return held, batch | {n: jnp.concatenate([batch[n], x], axis=1) for n, x in more.items()}

    def reads(self, steps: int, batch: int, length: int) -> int:
        looks = -(-steps // self.mining.every)
        return (steps * batch + looks * self.mining.pool) * length

    def _embedded(
        self, learner: Learner, texts: dict[str, Int[Array, "N T"]], chunk: int
    ) -> Float[Array, "N E"]:
        """`chunk` texts at a time, rows of every device in each."""
        N = len(texts["tokens"])
        parts = -(-N // chunk)

        def cut(x: Array) -> Array:
            x = jnp.pad(x, [(0, parts * chunk - N), (0, 0)])
            return x.reshape(chunk, parts, 1, -1).swapaxes(0, 1)

        micros = {name: cut(x) for name, x in texts.items()}
        out = jax.lax.map(lambda micro: self.encode(learner, micro, None).rows[:, 0], micros)
        return out.swapaxes(0, 1).reshape(parts * chunk, -1)[:N]


def nearest(
    anchors: Float[Array, "B E"], held: Held, batch: dict[str, Array], mining: Mining
) -> Int[Array, "B K"]:
    """Places in the pool, nearest first; -1 where no text is left that may be a negative."""
    anchor, match = batch["text_ids"][:, 0], batch["text_ids"][:, 1]
    may = ~same(anchor, held.ids) & ~same(match, held.ids)
    may &= jnp.any(held.texts["segments"] != 0, axis=-1) & (batch["weights"] != 0)[:, None]
    closeness = jnp.matmul(anchors, held.vectors.T, precision=HIGHEST)
    closeness = jnp.where(may, closeness, -jnp.inf)
    value, place = jax.lax.top_k(closeness, mining.skip + mining.count)
    return jnp.where(jnp.isfinite(value), place, -1)[:, mining.skip :]


def _taken(x: Int[Array, "P N"], places: Int[Array, "B K"]) -> Int[Array, "B K N"]:
    return jnp.where((places >= 0)[..., None], x[places], 0)
