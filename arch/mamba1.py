"""Mamba-1 mixer: a selective state space (Gu & Dao, arXiv:2312.00752, Algorithm 2).

Each of C channels carries N numbers; what is written to them, kept and read depends on the token.
Code names and the paper's: step size dt = Delta, a = A, b = B, c = C, skip = D.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from arch.ledger import Bill, Place, Work
from arch.linear import linear
from arch.mlp import ACTIVATIONS, Activation
from arch.norms import rms_norm
from arch.sequence import ONE_WAY, Sequence
from arch.sharding import P, matrix, vector, weight
from arch.step_size import StepConfig, step_bias, step_size
from arch.taps import Taps
from ops.selective_scan import selective_scan
from schema import Count, Natural, Positive, config


@config
class Mamba1Config:
    expand: Count = 2  # C = expand * D
    state: Count = 16  # N
    rank: Natural = 0  # R, of the step size; 0: D / 16, rounded up
    conv: Count = 4  # K, taps of the convolution
    conv_bias: bool = True
    activation: Activation = "silu"  # after the convolution
    bias: bool = False  # of the projections in and out
    norms: bool = False  # RMSNorm on what makes dt, b and c (Jamba, arXiv:2403.19887)
    norm_eps: Positive = 1e-6
    step: StepConfig = StepConfig()
    implementation: Literal["auto", "reference", "xla"] = "auto"

    def sizes(self, D: int) -> tuple[int, int, int]:
        """C, N, R at width D."""
        return self.expand * D, self.state, self.rank or -(-D // 16)


class Mamba1State(NamedTuple):
    conv: Float[Array, "B K-1 C"]
    ssm: Float[Array, "B C N"]
    last: Int[Array, " B"]  # segment of the last token


class Mamba1(nnx.Module):
    """A mixer (see `arch/model.py`)."""

    views = staticmethod(lambda cfg: ONE_WAY)

    def __init__(self, D: int, cfg: Mamba1Config, *, key: Array, scale: float = 1.0):
        C, N, R = self.sizes = cfg.sizes(D)
        self.cfg, keys = cfg, jax.random.split(key, 7)
        self.w_in = matrix(keys[0], (D, C), P("data", "model"))
        self.w_gate = matrix(keys[1], (D, C), P("data", "model"))
        self.conv = Taps(cfg.conv, C, bias=cfg.conv_bias, key=keys[2])
        self.w_select = matrix(keys[3], (C, R + 2 * N), P("model", "data"))
        spread = nnx.initializers.uniform(2 * R**-0.5)
        self.w_dt = weight(
            keys[4], (R, C), P("data", "model"), lambda *a: spread(*a) - R**-0.5, role="matrix"
        )
        self.b_dt = step_bias(keys[5], C, cfg.step)
        # A = -1 .. -N in every channel (S4D-real, section 3.6).
        rates = jnp.log(jnp.arange(1, N + 1, dtype=jnp.float32))
        self.log_a = weight(
            *(key, (C, N), P("model", None), lambda k, shape, t: jnp.broadcast_to(rates, shape)),
            role="vector",
            decay=False,
        )
        self.skip = vector(C, 1.0)
        self.w_out = matrix(keys[6], (C, D), P("model", "data"), scale)
        if cfg.bias:
            self.b_in, self.b_gate, self.b_out = (vector(n, 0.0) for n in (C, C, D))
        if cfg.norms:
            self.norm_dt, self.norm_b, self.norm_c = (vector(n, 1.0) for n in (R, N, N))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: Sequence,
        *,
        state: Mamba1State | None = None,
        memory: Any = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Mamba1State | None]:
        cfg = self.cfg
        reset = seq.begins(None if state is None else state.last)
        u = linear(x, self.w_in[...], self.b_in[...] if cfg.bias else None)
        z = linear(x, self.w_gate[...], self.b_gate[...] if cfg.bias else None)
        u, conv = self.conv(u, reset, None if state is None else state.conv, cfg.implementation)
        u = ACTIVATIONS[cfg.activation](u)
        dt, b, c = self._selection(u)
        y, ssm = selective_scan(
            *(u, dt, -jnp.exp(self.log_a[...]), b, c),
            reset=reset,
            state=None if state is None else state.ssm,
            implementation=cfg.implementation,
        )
        y = (y + self.skip[...].astype(y.dtype) * u) * jax.nn.silu(z)
        y = linear(y, self.w_out[...], self.b_out[...] if cfg.bias else None)
        return y, None if state is None else Mamba1State(conv, ssm, seq.ends(state.last))

    def start(self, batch: int, capacity: int, dtype: jnp.dtype) -> Mamba1State:
        C, N, _ = self.sizes
        wide = jnp.promote_types(dtype, jnp.float32)
        ssm = jnp.zeros((batch, C, N), wide)
        return Mamba1State(self.conv.start(batch, dtype), ssm, jnp.zeros((batch,), jnp.int32))

    def _selection(self, u: Float[Array, "B T C"]) -> tuple[Array, Array, Array]:
        """dt [B T C], b and c [B T N]."""
        _, N, R = self.sizes
        dt, b, c = jnp.split(linear(u, self.w_select[...]), (R, R + N), axis=-1)
        if self.cfg.norms:
            eps = self.cfg.norm_eps
            dt = rms_norm(dt, self.norm_dt[...], eps)
            b, c = rms_norm(b, self.norm_b[...], eps), rms_norm(c, self.norm_c[...], eps)
        return step_size(linear(dt, self.w_dt[...]), self.b_dt[...]), b, c

    @staticmethod
    def cuts(D: int, cfg: Mamba1Config) -> dict[str, int]:
        return {"expand * width": cfg.sizes(D)[0]}

    @staticmethod
    def cost(D: int, cfg: Mamba1Config, place: Place) -> Bill:
        """The scan is the sequential one: 7 FLOPs a number of state."""
        (C, N, R), K = cfg.sizes(D), cfg.conv
        matrices = {"in": 2 * D * C, "select": C * (R + 2 * N), "dt": R * C, "out": C * D}
        params = sum(matrices.values()) + K * C + cfg.conv_bias * C + C + C * N + C
        params += cfg.bias * (2 * C + D) + cfg.norms * (R + 2 * N)
        work = {name: Work(2.0 * size, 2.0 * size) for name, size in matrices.items()}
        work["conv"] = Work(2.0 * K * C, 2.0 * K * C, elementwise=True)
        work["scan"] = Work(7.0 * C * N, 7.0 * C * N, elementwise=True)
        return Bill(params, params, work, 4 * C * N + place.itemsize * (K - 1) * C)
