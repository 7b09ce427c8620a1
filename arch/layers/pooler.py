"""BERT's pooler: one vector per row from its first token, tanh(W h[0] + b), and class scores.

BERT trains it with the next-sentence task (arXiv:1810.04805); no objective here uses it.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from arch.sharding import P, make_matrix, make_vector
from settings.types import NonNegativeInt, config


@config
class PoolerConfig:
    """The pooler of a published encoder; no objective trains it."""

    kind: Literal["none", "first"] = "none"  # Pool the first token's vector, or have no pooler.
    num_classes: NonNegativeInt = 0  # Number of class scores from the pooled vector; 0: none.


class Pooler(nnx.Module):
    """A module `pooler(hidden) -> (vector [B D], scores [B classes] or None)`."""

    def __init__(self, D: int, cfg: PoolerConfig, *, key: Array):
        keys, self.cfg = jax.random.split(key), cfg
        self.w_pool = make_matrix(keys[0], (D, D), P("data", "model"))
        self.b_pool = make_vector(D, 0.0)
        if cfg.num_classes:
            self.w_class = make_matrix(keys[1], (D, cfg.num_classes), P("data", None))
            self.b_class = make_vector(cfg.num_classes, 0.0)

    def __call__(
        self, hidden: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B classes"] | None]:
        """Pools the first token of each row and returns its class scores, if there are classes."""
        first, t = hidden[:, 0], hidden.dtype
        y = jnp.tanh(first @ self.w_pool[...].astype(t) + self.b_pool[...].astype(t))
        if not self.cfg.num_classes:
            return y, None
        return y, y @ self.w_class[...].astype(t) + self.b_class[...].astype(t)

    @staticmethod
    def params(D: int, cfg: PoolerConfig) -> int:
        """Returns the number of parameters."""
        return (D + 1) * (D + cfg.num_classes) if cfg.kind != "none" else 0
