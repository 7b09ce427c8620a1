"""One vector a row, from its first token: tanh(W h[0] + b), and what may be told from it (BERT).

Trained with the next-sentence task (arXiv:1810.04805); no objective here reads it.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from arch.sharding import P, matrix, vector
from schema import Natural, config


@config
class PoolerConfig:
    kind: Literal["none", "first"] = "none"  # of the first token, or no pooler
    classes: Natural = 0  # scores of the pooled vector; 0: none


class Pooler(nnx.Module):
    """`pooler(hidden) -> (vector [B D], scores [B classes] or None)`."""

    def __init__(self, D: int, cfg: PoolerConfig, *, key: Array):
        keys, self.cfg = jax.random.split(key), cfg
        self.w_pool = matrix(keys[0], (D, D), P("data", "model"))
        self.b_pool = vector(D, 0.0)
        if cfg.classes:
            self.w_class = matrix(keys[1], (D, cfg.classes), P("data", None))
            self.b_class = vector(cfg.classes, 0.0)

    def __call__(
        self, hidden: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B C"] | None]:
        first, t = hidden[:, 0], hidden.dtype
        y = jnp.tanh(first @ self.w_pool[...].astype(t) + self.b_pool[...].astype(t))
        if not self.cfg.classes:
            return y, None
        return y, y @ self.w_class[...].astype(t) + self.b_class[...].astype(t)

    @staticmethod
    def params(D: int, cfg: PoolerConfig) -> int:
        return (D + 1) * (D + cfg.classes) if cfg.kind != "none" else 0
