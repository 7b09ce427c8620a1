"""Both directions for mixers that read one way: forwards, and backwards over the flipped row.

Documents stay apart in a flipped row as they do in a row, so flipping all of it reads each document
from its end. The second reading costs what the first does, and the bill says so.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from arch.dropout import split
from arch.ledger import Bill, Place, Work
from arch.linear import linear
from arch.sequence import Sequence
from arch.sharding import P, matrix
from schema import config


@config
class DirectionsConfig:
    """How recurrent mixers see both sides; under one-sided views only the forward one runs."""

    weights: Literal["none", "shared", "separate"] = "none"  # of the reading backwards
    merge: Literal["sum", "gate"] = "sum"  # gate: sigmoid(x w) forwards + the rest backwards


class BothWays(nnx.Module):
    """A one-way mixer (`Part`) read both ways where the view shows both sides."""

    def __init__(
        self, Part: Any, D: int, part: Any, cfg: DirectionsConfig, *, key: Array, scale: float = 1.0
    ):
        keys = jax.random.split(key, 3)
        self.cfg = cfg
        self.ahead = Part(D, part, key=keys[0], scale=scale)
        if cfg.weights == "separate":
            self.back = Part(D, part, key=keys[1], scale=scale)
        if cfg.merge == "gate":
            self.w_gate = matrix(keys[2], (D, D), P("data", "model"))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: Sequence,
        *,
        state: Any = None,
        memory: Any = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        keys = split(key, 2)
        y, after = self.ahead(x, seq, state=state, memory=memory, key=keys[0])
        if seq.causal:
            return y, after
        if state is not None:
            raise ValueError("a row that is read from both sides cannot be continued by a state")
        back = self.back if self.cfg.weights == "separate" else self.ahead
        z, _ = back(jnp.flip(x, 1), seq.flipped(), memory=memory, key=keys[1])
        z = jnp.flip(z, 1)
        if self.cfg.merge == "sum":
            return y + z, None
        gate = jax.nn.sigmoid(linear(x, self.w_gate[...]))
        return z + gate * (y - z), None

    def start(self, batch: int, capacity: int, dtype: jnp.dtype) -> Any:
        return self.ahead.start(batch, capacity, dtype)

    @staticmethod
    def cost(bill: Bill, D: int, cfg: DirectionsConfig, place: Place) -> Bill:
        """`bill` of one reading as that of this mixer."""
        both, gated = place.view == "both", cfg.merge == "gate"
        gate = D * D * gated
        params = bill.params * (2 if cfg.weights == "separate" else 1) + gate
        active = bill.active * (2 if both and cfg.weights == "separate" else 1) + gate * both
        if not both:
            return dataclasses.replace(bill, params=params, active=active)
        work = {name: one.times(2) for name, one in bill.work.items()}
        if gated:
            work["gate"] = Work(2.0 * gate, 2.0 * gate)
        return Bill(params, active, work, bill.state_bytes)
