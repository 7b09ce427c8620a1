"""Gated DeltaNet mixer: a fast weight matrix, decayed and corrected (arXiv:2412.06464, section 3).

Each of H heads carries a [K V] matrix; a token decays it, takes out what it holds at its key and
writes its value there. With `signed`, eigenvalues of the transition reach down to -1
(arXiv:2411.12537), which tracking a state needs.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from arch.ledger import Bill, Place, Work
from arch.linear import linear
from arch.norms import rms_norm
from arch.sequence import ONE_WAY, Sequence
from arch.sharding import P, matrix, vector, weight
from arch.step_size import StepConfig, log_rates, step_bias, step_size
from arch.taps import Taps
from errors import ConfigError
from ops.gated_delta import gated_delta
from schema import Count, Natural, Positive, config


@config
class GatedDeltaNetConfig:
    heads: Count = 4  # H
    key_width: Natural = 0  # K of a head; 0: 3/4 D / H
    value_width: Natural = 0  # V of a head; 0: 2 K
    conv: Count = 4  # taps of the convolutions
    signed: bool = False  # eigenvalues in [-1, 1] instead of [0, 1]
    chunk: Count = 64  # Q, tokens that are solved together
    norm_eps: Positive = 1e-6
    step: StepConfig = StepConfig()
    implementation: Literal["auto", "reference", "xla"] = "auto"

    def sizes(self, D: int) -> tuple[int, int, int]:
        """H, K, V at width D."""
        H = self.heads
        if not self.key_width and 3 * D % (4 * H):
            near = max(3 * D // (4 * H), 1)
            raise ConfigError(
                f"3/4 of model.width {D} is not a multiple of gated_deltanet.heads {H}; "
                f"set gated_deltanet.key_width, nearest: {near}"
            )
        K = self.key_width or 3 * D // (4 * H)
        return H, K, self.value_width or 2 * K


class GatedDeltaNetState(NamedTuple):
    convs: tuple[Array, Array, Array]  # of q, k, v, [B taps-1 ..]
    memory: Float[Array, "B H K V"]
    last: Int[Array, " B"]  # segment of the last token


class GatedDeltaNet(nnx.Module):
    """A mixer (see `arch/model.py`)."""

    views = staticmethod(lambda cfg: ONE_WAY)

    def __init__(self, D: int, cfg: GatedDeltaNetConfig, *, key: Array, scale: float = 1.0):
        H, K, V = self.sizes = cfg.sizes(D)
        self.cfg, keys = cfg, jax.random.split(key, 12)
        self.w_q = matrix(keys[0], (D, H * K), P("data", "model"))
        self.w_k = matrix(keys[1], (D, H * K), P("data", "model"))
        self.w_v = matrix(keys[2], (D, H * V), P("data", "model"))
        self.w_gate = matrix(keys[3], (D, H * V), P("data", "model"))
        self.w_beta = matrix(keys[4], (D, H), P("data", "model"))
        self.w_dt = matrix(keys[5], (D, H), P("data", "model"))
        self.convs = nnx.List(
            Taps(cfg.conv, H * width, bias=False, key=k)
            for width, k in zip((K, K, V), keys[6:9], strict=True)
        )
        self.b_dt = step_bias(keys[9], H, cfg.step)
        self.log_a = weight(
            keys[10], (H,), P("model"), log_rates(1e-3, 16.0), role="vector", decay=False
        )
        self.norm = vector(V, 1.0)
        self.w_out = matrix(keys[11], (H * V, D), P("model", "data"), scale)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: Sequence,
        *,
        state: GatedDeltaNetState | None = None,
        memory: Any = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], GatedDeltaNetState | None]:
        cfg, (H, K, _) = self.cfg, self.sizes
        reset = seq.begins(None if state is None else state.last)
        before = (None,) * 3 if state is None else state.convs
        heads, convs = [], []
        for w, taps, old in zip((self.w_q, self.w_k, self.w_v), self.convs, before, strict=True):
            y, kept = taps(linear(x, w[...]), reset, old, cfg.implementation)
            heads.append(rearrange(jax.nn.silu(y), "b t (h k) -> b t h k", h=H))
            convs.append(kept)
        q, k, v = heads
        decay = -jnp.exp(self.log_a[...]) * step_size(linear(x, self.w_dt[...]), self.b_dt[...])
        beta = jax.nn.sigmoid(linear(x, self.w_beta[...]).astype(decay.dtype))
        y, kept = gated_delta(
            *(_unit(q) * K**-0.5, _unit(k), v),
            *(decay, (2 * beta) if cfg.signed else beta),
            reset=reset,
            state=None if state is None else state.memory,
            chunk=cfg.chunk,
            implementation=cfg.implementation,
        )
        y = rearrange(rms_norm(y, self.norm[...], cfg.norm_eps), "b t h v -> b t (h v)")
        y = linear(y * jax.nn.silu(linear(x, self.w_gate[...])), self.w_out[...])
        if state is None:
            return y, None
        return y, GatedDeltaNetState((convs[0], convs[1], convs[2]), kept, seq.ends(state.last))

    def start(self, batch: int, capacity: int, dtype: jnp.dtype) -> GatedDeltaNetState:
        q, k, v = (taps.start(batch, dtype) for taps in self.convs)
        memory = jnp.zeros((batch, *self.sizes), jnp.promote_types(dtype, jnp.float32))
        return GatedDeltaNetState((q, k, v), memory, jnp.zeros((batch,), jnp.int32))

    @staticmethod
    def cuts(D: int, cfg: GatedDeltaNetConfig) -> dict[str, int]:
        return {"heads": cfg.sizes(D)[0]}

    @staticmethod
    def cost(D: int, cfg: GatedDeltaNetConfig, place: Place) -> Bill:
        """Model FLOPs are those of the recurrence: decay, look up, correct, read."""
        (H, K, V), taps = cfg.sizes(D), cfg.conv
        into, wide = D * (2 * H * K + 2 * H * V + 2 * H), H * (2 * K + V)
        params = into + taps * wide + 2 * H + V + H * V * D
        core = 8.0 * H * K * V
        work = {
            "in": Work(2.0 * into, 2.0 * into),
            "conv": Work(2.0 * taps * wide, 2.0 * taps * wide, elementwise=True),
            "out": Work(2.0 * H * V * D, 2.0 * H * V * D),
        }
        if cfg.implementation == "reference":
            work["core"] = Work(core, core, elementwise=True)
        else:
            Q = min(cfg.chunk, max(place.length, 1))
            chunked = H * (6.0 * K * V + 4.0 * Q * K + 2.0 * Q * V)
            work["core"] = Work(core, chunked, batched=True)
            doublings = max(math.ceil(math.log2(Q)) - 1, 0)  # of the inverse's blocks
            solve = H * (2.0 * Q * (K + V) + 4.0 * Q**2 * doublings)
            work["solve"] = Work(0.0, solve, batched=True)
        state = 4 * H * K * V + place.itemsize * (taps - 1) * wide
        return Bill(params, params, work, state)


def _unit(x: Float[Array, "B T H K"]) -> Float[Array, "B T H K"]:
    """x / |x|, with |x|^2 at least 1e-6."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(square + 1e-6)).astype(x.dtype)
