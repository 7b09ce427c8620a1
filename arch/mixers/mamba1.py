"""The Mamba-1 mixer: a selective state space model (Gu & Dao, arXiv:2312.00752, Algorithm 2).

Each of C channels has a state of N numbers. How they decay, and how they are written and read,
depends on the token. Names in the code and in the paper: dt = Delta, a = A, b = B, c = C, skip = D.
"""

from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from arch.layers.activations import Activation, activate, gate
from arch.layers.dt import DtConfig, make_dt_bias, softplus_dt
from arch.layers.linear import linear
from arch.layers.norms import rms_norm
from arch.layers.short_conv import ShortConv
from arch.part import Memory
from arch.part_cost import CostContext, PartCost, TermFlops
from arch.sequence import CAUSAL_ONLY, SequenceInfo, View
from arch.sharding import P, make_matrix, make_param, make_vector
from ops.recurrent.selective_scan import selective_scan
from settings.types import NonNegativeInt, PositiveFloat, PositiveInt, config


@config
class Mamba1Config:
    """The Mamba-1 mixer."""

    scaled_fields: ClassVar[tuple[str, ...]] = ()
    knob_fields: ClassVar[tuple[str, ...]] = ("state_size",)

    expand: PositiveInt = 2  # Inner width (C) as a multiple of the model's width.
    state_size: PositiveInt = 16  # Size of the state of each channel (N).
    # Rank of the projection to the step size (R); 0: D / 16, rounded up.
    dt_rank: NonNegativeInt = 0
    conv_width: PositiveInt = 4  # Width of the convolution (W), in tokens.
    conv_bias: bool = True  # Add a bias to the convolution.
    activation: Activation = "silu"  # Activation after the convolution.
    bias: bool = False  # Add a bias to the input and output projections.
    dt_bc_norm: bool = False  # Apply RMSNorm to dt, b and c (Jamba, arXiv:2403.19887).
    norm_eps: PositiveFloat = 1e-6  # Number added to the mean square in these norms.
    dt: DtConfig = DtConfig()
    # Implementation of the operation; auto: chosen by platform.
    implementation: Literal["auto", "reference", "xla"] = "auto"

    def sizes(self, D: int) -> tuple[int, int, int]:
        """Returns C, N and R in a model of width D."""
        return self.expand * D, self.state_size, self.dt_rank or -(-D // 16)


class Mamba1State(NamedTuple):
    """The decoding state of a Mamba-1 mixer."""

    conv: Float[Array, "B W-1 C"]
    ssm: Float[Array, "B C N"]
    last_segment: Int[Array, " B"]  # Segment of the last token.


class Mamba1(nnx.Module):
    """A mixer (see `arch/part.py`) with a state of N numbers per channel."""

    def __init__(self, D: int, cfg: Mamba1Config, *, key: Array, scale: float = 1.0):
        C, N, R = self.sizes = cfg.sizes(D)
        self.cfg, keys = cfg, jax.random.split(key, 7)
        self.w_in = make_matrix(keys[0], (D, C), P("data", "model"))
        self.w_gate = make_matrix(keys[1], (D, C), P("data", "model"))
        self.conv = ShortConv(cfg.conv_width, C, bias=cfg.conv_bias, key=keys[2])
        self.w_select = make_matrix(keys[3], (C, R + 2 * N), P("model", "data"))
        spread = nnx.initializers.uniform(2 * R**-0.5)
        self.w_dt = make_param(
            keys[4], (R, C), P("data", "model"), lambda *a: spread(*a) - R**-0.5, role="matrix"
        )
        self.b_dt = make_dt_bias(keys[5], C, cfg.dt)
        # Every channel starts with A = -1 .. -N (S4D-real, section 3.6).
        rates = jnp.log(jnp.arange(1, N + 1, dtype=jnp.float32))
        self.log_a = make_param(
            *(key, (C, N), P("model", None), lambda k, shape, t: jnp.broadcast_to(rates, shape)),
            role="vector",
            decay=False,
        )
        self.skip = make_vector(C, 1.0)
        self.w_out = make_matrix(keys[6], (C, D), P("model", "data"), scale)
        if cfg.bias:
            self.b_in, self.b_gate, self.b_out = (make_vector(n, 0.0) for n in (C, C, D))
        if cfg.dt_bc_norm:
            self.norm_dt, self.norm_b, self.norm_c = (make_vector(n, 1.0) for n in (R, N, N))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        *,
        state: Mamba1State | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Mamba1State | None]:
        """Runs the selective scan over each document, from `state` if there is one."""
        cfg = self.cfg
        reset = seq.resets(None if state is None else state.last_segment)
        u = linear(x, self.w_in[...], self.b_in[...] if cfg.bias else None)
        z = linear(x, self.w_gate[...], self.b_gate[...] if cfg.bias else None)
        u, conv = self.conv(u, reset, None if state is None else state.conv, cfg.implementation)
        u = activate(u, cfg.activation)
        dt, b, c = self._selective_params(u)
        y, ssm = selective_scan(
            *(u, dt, -jnp.exp(self.log_a[...]), b, c),
            reset=reset,
            state=None if state is None else state.ssm,
            implementation=cfg.implementation,
        )
        y = gate(y + self.skip[...].astype(y.dtype) * u, z, "silu")
        y = linear(y, self.w_out[...], self.b_out[...] if cfg.bias else None)
        return y, None if state is None else Mamba1State(
            conv, ssm, seq.last_segment(state.last_segment)
        )

    def init_state(self, batch_size: int, max_length: int, dtype: jnp.dtype) -> Mamba1State:
        """Returns an empty state for `batch_size` rows."""
        C, N, _ = self.sizes
        wide = jnp.promote_types(dtype, jnp.float32)
        ssm = jnp.zeros((batch_size, C, N), wide)
        return Mamba1State(
            self.conv.init_state(batch_size, dtype), ssm, jnp.zeros((batch_size,), jnp.int32)
        )

    def _selective_params(self, u: Float[Array, "B T C"]) -> tuple[Array, Array, Array]:
        """Returns dt [B T C], and b and c [B T N]."""
        _, N, R = self.sizes
        dt, b, c = jnp.split(linear(u, self.w_select[...]), (R, R + N), axis=-1)
        if self.cfg.dt_bc_norm:
            eps = self.cfg.norm_eps
            dt = rms_norm(dt, self.norm_dt[...], eps)
            b, c = rms_norm(b, self.norm_b[...], eps), rms_norm(c, self.norm_c[...], eps)
        return softplus_dt(linear(dt, self.w_dt[...]), self.b_dt[...]), b, c

    @staticmethod
    def supported_views(cfg: Mamba1Config) -> dict[View, str]:
        """Returns the causal views, since it reads rows in one direction."""
        return CAUSAL_ONLY

    @staticmethod
    def tp_dims(D: int, cfg: Mamba1Config) -> dict[str, int]:
        """Returns the dimensions that tensor parallelism splits."""
        return {"expand * width": cfg.sizes(D)[0]}

    @staticmethod
    def cost(D: int, cfg: Mamba1Config, context: CostContext) -> PartCost:
        """Returns the cost, with 7 FLOPs per number of the state: those of the sequential scan."""
        (C, N, R), W = cfg.sizes(D), cfg.conv_width
        matrices = {"in": 2 * D * C, "select": C * (R + 2 * N), "dt": R * C, "out": C * D}
        params = sum(matrices.values()) + W * C + cfg.conv_bias * C + C + C * N + C
        params += cfg.bias * (2 * C + D) + cfg.dt_bc_norm * (R + 2 * N)
        terms = {name: TermFlops(2.0 * size, 2.0 * size) for name, size in matrices.items()}
        terms["conv"] = TermFlops(2.0 * W * C, 2.0 * W * C, elementwise=True)
        terms["scan"] = TermFlops(7.0 * C * N, 7.0 * C * N, elementwise=True)
        return PartCost(params, params, terms, 4 * C * N + context.itemsize * (W - 1) * C)
