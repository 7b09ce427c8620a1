"""LSTM mixer: the recurrent network that was there before (Hochreiter & Schmidhuber 1997)."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from arch.ledger import Bill, Place, Work
from arch.linear import linear
from arch.sequence import ONE_WAY, Sequence
from arch.sharding import P, matrix, weight
from ops.lstm import lstm
from schema import Natural, config


@config
class LstmConfig:
    width: Natural = 0  # C; 0: D
    implementation: Literal["auto", "reference", "xla"] = "auto"

    def size(self, D: int) -> int:
        return self.width or D


class LstmState(NamedTuple):
    h: Float[Array, "B C"]
    c: Float[Array, "B C"]
    last: Int[Array, " B"]  # segment of the last token


class Lstm(nnx.Module):
    """A mixer (see `arch/model.py`); the forget gate starts open, with a bias of 1."""

    views = staticmethod(lambda cfg: ONE_WAY)

    def __init__(self, D: int, cfg: LstmConfig, *, key: Array, scale: float = 1.0):
        C, keys = cfg.size(D), jax.random.split(key, 4)
        self.cfg = cfg
        # Every token needs all of h: the recurrent matrix is whole on every device.
        self.w_in = matrix(keys[0], (D, 4 * C), P("data", None))
        self.w_h = matrix(keys[1], (C, 4 * C), P("data", None))
        self.b = weight(keys[2], (4 * C,), P(None), _open, role="vector", decay=False)
        self.w_out = matrix(keys[3], (C, D), P("model", "data"), scale)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: Sequence,
        *,
        state: LstmState | None = None,
        memory: Any = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], LstmState | None]:
        h, (last, cell) = lstm(
            *(linear(x, self.w_in[...], self.b[...]), self.w_h[...]),
            reset=seq.begins(None if state is None else state.last),
            state=None if state is None else (state.h, state.c),
            implementation=self.cfg.implementation,
        )
        y = linear(h, self.w_out[...])
        return y, None if state is None else LstmState(last, cell, seq.ends(state.last))

    def start(self, batch: int, capacity: int, dtype: jnp.dtype) -> LstmState:
        zeros = jnp.zeros((batch, self.w_h[...].shape[-2]), jnp.promote_types(dtype, jnp.float32))
        return LstmState(zeros, zeros, jnp.zeros((batch,), jnp.int32))

    @staticmethod
    def cuts(D: int, cfg: LstmConfig) -> dict[str, int]:
        return {}

    @staticmethod
    def cost(D: int, cfg: LstmConfig, place: Place) -> Bill:
        C = cfg.size(D)
        params = 4 * C * (D + C + 1) + C * D
        work = {
            "projections": Work(10.0 * D * C, 10.0 * D * C),
            "recurrence": Work(8.0 * C * C, 8.0 * C * C),
            "gates": Work(5.0 * C, 5.0 * C, elementwise=True),
        }
        return Bill(params, params, work, 8 * C)


def _open(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    C = shape[-1] // 4
    return jnp.zeros(shape, dtype).at[C : 2 * C].set(1)
