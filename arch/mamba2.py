"""Mamba-2 mixer: state space duality, one decay a head (Dao & Gu, arXiv:2405.21060, section 7).

Each of H heads carries a [P N] matrix. Left out on purpose: one fused projection (its parts shard
over heads without a copy).
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from arch.ledger import Bill, Place, Work
from arch.linear import linear
from arch.mlp import ACTIVATIONS, Activation
from arch.norms import gated_rms_norm
from arch.sequence import ONE_WAY, Sequence
from arch.sharding import P, matrix, vector, weight
from arch.step_size import StepConfig, log_rates, step_bias, step_size
from arch.taps import Taps
from errors import ConfigError
from ops.ssd import ssd
from schema import Count, NonNegative, Positive, config

FROZEN = 64  # chunk at which model FLOPs are charged, whatever runs


@config
class Mamba2Config:
    expand: Count = 2  # C = expand * D
    state: Count = 128  # N
    head_width: Count = 64  # P
    groups: Count = 1  # G, of heads that share what is written and read
    conv: Count = 4  # K, taps of the convolution
    conv_bias: bool = True
    activation: Activation = "silu"  # after the convolution
    bias: bool = False  # of the projections in and out
    chunk: Count = 64  # Q, tokens that are one matrix product
    dt_low: NonNegative = 0.0  # bounds of the step size
    dt_high: NonNegative = 0.0  # 0: none
    norm_eps: Positive = 1e-6
    step: StepConfig = StepConfig()
    implementation: Literal["auto", "reference", "xla"] = "auto"

    def sizes(self, D: int) -> tuple[int, int, int, int]:
        """C, H, G, N at width D."""
        C, W = self.expand * D, self.head_width
        if C % W:
            near = [n for n in range(1, C + 1) if C % n == 0]
            best = min(near, key=lambda n: abs(n - W))
            raise ConfigError(
                f"mamba2.head_width {W} does not divide expand * width {C}; nearest: {best}"
            )
        H, G = C // W, self.groups
        if H % G:
            near = [n for n in range(1, H + 1) if H % n == 0]
            best = min(near, key=lambda n: abs(n - G))
            raise ConfigError(f"mamba2.groups {G} does not divide the {H} heads; nearest: {best}")
        return C, H, G, self.state


class Mamba2State(NamedTuple):
    conv: Float[Array, "B K-1 C"]
    conv_bc: Float[Array, "B K-1 2GN"]
    ssm: Float[Array, "B H P N"]
    last: Int[Array, " B"]  # segment of the last token


class Mamba2(nnx.Module):
    """A mixer (see `arch/model.py`)."""

    views = staticmethod(lambda cfg: ONE_WAY)

    def __init__(self, D: int, cfg: Mamba2Config, *, key: Array, scale: float = 1.0):
        C, H, G, N = self.sizes = cfg.sizes(D)
        self.cfg, keys = cfg, jax.random.split(key, 9)
        self.w_in = matrix(keys[0], (D, C), P("data", "model"))
        self.w_gate = matrix(keys[1], (D, C), P("data", "model"))
        self.w_bc = matrix(keys[2], (D, 2 * G * N), P("data", None))
        self.w_dt = matrix(keys[3], (D, H), P("data", "model"))
        self.conv = Taps(cfg.conv, C, bias=cfg.conv_bias, key=keys[4])
        self.conv_bc = Taps(cfg.conv, 2 * G * N, bias=cfg.conv_bias, key=keys[5])
        self.b_dt = step_bias(keys[6], H, cfg.step)
        self.log_a = weight(
            keys[7], (H,), P("model"), log_rates(1.0, 16.0), role="vector", decay=False
        )
        self.skip = vector(H, 1.0)
        self.norm = vector(C, 1.0)
        self.w_out = matrix(keys[8], (C, D), P("model", "data"), scale)
        if cfg.bias:
            sizes = (C, C, 2 * G * N, H, D)
            biases = [vector(size, 0.0) for size in sizes]
            self.b_in, self.b_gate, self.b_bc, self.b_head, self.b_out = biases

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: Sequence,
        *,
        state: Mamba2State | None = None,
        memory: Any = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Mamba2State | None]:
        cfg, (_, H, G, N) = self.cfg, self.sizes
        old = Mamba2State(None, None, None, None) if state is None else state  # type: ignore
        reset, bias = seq.begins(old.last), cfg.bias
        u = linear(x, self.w_in[...], self.b_in[...] if bias else None)
        bc = linear(x, self.w_bc[...], self.b_bc[...] if bias else None)
        z = linear(x, self.w_gate[...], self.b_gate[...] if bias else None)
        dt = linear(x, self.w_dt[...], self.b_head[...] if bias else None)
        u, conv = self.conv(u, reset, old.conv, cfg.implementation)
        bc, conv_bc = self.conv_bc(bc, reset, old.conv_bc, cfg.implementation)
        act = ACTIVATIONS[cfg.activation]
        u = rearrange(act(u), "b t (h p) -> b t h p", h=H)
        b, c = (part.reshape(*bc.shape[:2], G, N) for part in jnp.split(act(bc), 2, axis=-1))
        y, ssm = ssd(
            *(u, step_size(dt, self.b_dt[...], cfg.dt_low, cfg.dt_high)),
            *(-jnp.exp(self.log_a[...]), b, c),
            reset=reset,
            state=old.ssm,
            chunk=cfg.chunk,
            implementation=cfg.implementation,
        )
        y = rearrange(y + self.skip[...].astype(y.dtype)[:, None] * u, "b t h p -> b t (h p)")
        y = gated_rms_norm(y, z, self.norm[...], cfg.norm_eps, G)
        y = linear(y, self.w_out[...], self.b_out[...] if bias else None)
        if state is None:
            return y, None
        return y, Mamba2State(conv, conv_bc, ssm, seq.ends(state.last))

    def start(self, batch: int, capacity: int, dtype: jnp.dtype) -> Mamba2State:
        (_, H, _, N), wide = self.sizes, jnp.promote_types(dtype, jnp.float32)
        ssm = jnp.zeros((batch, H, self.cfg.head_width, N), wide)
        convs = self.conv.start(batch, dtype), self.conv_bc.start(batch, dtype)
        return Mamba2State(*convs, ssm, jnp.zeros((batch,), jnp.int32))

    @staticmethod
    def cuts(D: int, cfg: Mamba2Config) -> dict[str, int]:
        return {"expand * width / head_width": cfg.sizes(D)[1]}

    @staticmethod
    def cost(D: int, cfg: Mamba2Config, place: Place) -> Bill:
        """Model FLOPs are charged at chunks of 64 with causal halves; `reference` recurs."""
        (C, H, G, N), K = cfg.sizes(D), cfg.conv
        into = D * (2 * C + 2 * G * N + H)
        taps = C + 2 * G * N
        params = into + C * D + taps * (K + cfg.conv_bias) + 3 * H + C
        params += cfg.bias * (2 * C + 2 * G * N + H + D)
        Q, runs = min(cfg.chunk, max(place.length, 1)), cfg.implementation != "reference"
        work = {
            "in": Work(2.0 * into, 2.0 * into),
            "conv": Work(2.0 * K * taps, 2.0 * K * taps, elementwise=True),
            "cb": Work(FROZEN * N * G, runs * 2.0 * Q * N * G, batched=True),
            "yx": Work(FROZEN * C, runs * 2.0 * Q * C, batched=True),
            "states": Work(2.0 * N * C, runs * 2.0 * N * C, batched=True),
            "inter_chunk": Work(2.0 * N * C / FROZEN, runs * 2.0 * N * C / Q, elementwise=True),
            "off_diagonal": Work(2.0 * N * C, runs * 2.0 * N * C, batched=True),
            "out": Work(2.0 * C * D, 2.0 * C * D),
        }
        if not runs:
            work["recurrence"] = Work(0.0, 7.0 * N * C, elementwise=True)
        state = 4 * C * N + place.itemsize * (K - 1) * taps
        return Bill(params, params, work, state)
