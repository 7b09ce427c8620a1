"""The Mamba-2 mixer: state space duality (Dao & Gu, arXiv:2405.21060, section 7).

Each of H heads has a state [P N] and one decay per token. The projections are separate matrices,
not one fused matrix, because each can then be sharded over heads without a copy.
"""

from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from arch.layers.activations import Activation, activate
from arch.layers.dt import DtConfig, log_a_init, make_dt_bias, softplus_dt
from arch.layers.linear import linear
from arch.layers.norms import gated_rms_norm
from arch.layers.short_conv import ShortConv
from arch.part import Memory
from arch.part_cost import CostContext, PartCost, TermFlops
from arch.sequence import CAUSAL_ONLY, SequenceInfo, View
from arch.sharding import P, make_matrix, make_param, make_vector
from errors import ConfigError
from ops.recurrent.ssd import ssd
from settings.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, config

COST_CHUNK_SIZE = 64  # Model FLOPs are those at this chunk size, whatever runs.


@config
class Mamba2Config:
    """The Mamba-2 mixer."""

    scaled_fields: ClassVar[tuple[str, ...]] = ()
    knob_fields: ClassVar[tuple[str, ...]] = ("state_size",)

    expand: PositiveInt = 2  # Inner width (C) as a multiple of the model's width.
    inner_width: NonNegativeInt = 0  # Inner width (C) itself; 0: expand * D.
    state_size: PositiveInt = 128  # Size of the state of each channel (N).
    head_dim: PositiveInt = 64  # Width of a head (P).
    n_groups: PositiveInt = 1  # Number of groups of heads (G) that share b and c.
    conv_width: PositiveInt = 4  # Width of the convolution (W), in tokens.
    conv_bias: bool = True  # Add a bias to the convolution.
    activation: Activation = "silu"  # Activation after the convolution.
    bias: bool = False  # Add a bias to the input and output projections.
    chunk_size: PositiveInt = 64  # Tokens per chunk of the chunked algorithm (Q).
    dt_limit_min: NonNegativeFloat = 0.0  # Lower bound of the step size.
    dt_limit_max: NonNegativeFloat = 0.0  # Upper bound of the step size; 0: none.
    # Norm of the output: after the multiplication by the gate, before it, or none.
    norm: Literal["after_gate", "before_gate", "none"] = "after_gate"
    norm_eps: PositiveFloat = 1e-6  # Number added to the mean square in the gated norm.
    # Factors of the input projections to gate, u, b, c and dt (Falcon-H1); empty: 1.
    in_scales: tuple[float, ...] = ()
    dt: DtConfig = DtConfig()
    # Implementation of the operation; auto: chosen by platform.
    implementation: Literal["auto", "reference", "xla"] = "auto"

    def check(self) -> None:
        """Checks the number of factors.

        Raises:
            ConfigError: if it is not five.
        """
        if self.in_scales and len(self.in_scales) != 5:
            raise ConfigError(
                f"mamba2.in_scales has {len(self.in_scales)} factors, must have 5, of gate, u, b, "
                "c and dt; give (1.0,) * 5"
            )

    def sizes(self, D: int) -> tuple[int, int, int, int]:
        """Returns C, H, G and N in a model of width D.

        Raises:
            ConfigError: if the head width or the number of groups does not divide.
        """
        C, width = self.inner_width or self.expand * D, self.head_dim
        if C % width:
            divisors = [n for n in range(1, C + 1) if C % n == 0]
            nearest = min(divisors, key=lambda n: abs(n - width))
            raise ConfigError(
                f"mamba2.head_dim {width} does not divide the inner width {C}; "
                f"nearest valid value: {nearest}"
            )
        H, G = C // width, self.n_groups
        if H % G:
            divisors = [n for n in range(1, H + 1) if H % n == 0]
            nearest = min(divisors, key=lambda n: abs(n - G))
            raise ConfigError(
                f"mamba2.n_groups {G} does not divide the {H} heads; nearest valid value: {nearest}"
            )
        return C, H, G, self.state_size


class Mamba2State(NamedTuple):
    """The decoding state of a Mamba-2 mixer."""

    conv: Float[Array, "B W-1 C"]
    conv_bc: Float[Array, "B W-1 2GN"]
    ssm: Float[Array, "B H P N"]
    last_segment: Int[Array, " B"]  # Segment of the last token.


class Mamba2(nnx.Module):
    """A mixer (see `arch/part.py`) with a state [P N] per head."""

    def __init__(self, D: int, cfg: Mamba2Config, *, key: Array, scale: float = 1.0):
        C, H, G, N = self.sizes = cfg.sizes(D)
        self.cfg, keys = cfg, jax.random.split(key, 9)
        self.w_in = make_matrix(keys[0], (D, C), P("data", "model"))
        self.w_gate = make_matrix(keys[1], (D, C), P("data", "model"))
        self.w_bc = make_matrix(keys[2], (D, 2 * G * N), P("data", None))
        self.w_dt = make_matrix(keys[3], (D, H), P("data", "model"))
        self.conv = ShortConv(cfg.conv_width, C, bias=cfg.conv_bias, key=keys[4])
        self.conv_bc = ShortConv(cfg.conv_width, 2 * G * N, bias=cfg.conv_bias, key=keys[5])
        self.b_dt = make_dt_bias(keys[6], H, cfg.dt)
        self.log_a = make_param(
            keys[7], (H,), P("model"), log_a_init(1.0, 16.0), role="vector", decay=False
        )
        self.skip = make_vector(H, 1.0)
        self.norm = make_vector(C, 1.0) if cfg.norm != "none" else None
        self.w_out = make_matrix(keys[8], (C, D), P("model", "data"), scale)
        if cfg.bias:
            sizes = (C, C, 2 * G * N, H, D)
            biases = [make_vector(size, 0.0) for size in sizes]
            self.b_in, self.b_gate, self.b_bc, self.b_dt_proj, self.b_out = biases

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        *,
        state: Mamba2State | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Mamba2State | None]:
        """Runs the state space recurrence over each document, from `state` if there is one."""
        cfg, (_, H, G, N) = self.cfg, self.sizes
        prev = Mamba2State(None, None, None, None) if state is None else state  # type: ignore
        reset, bias = seq.resets(prev.last_segment), cfg.bias
        u = linear(x, self.w_in[...], self.b_in[...] if bias else None)
        bc = linear(x, self.w_bc[...], self.b_bc[...] if bias else None)
        z = linear(x, self.w_gate[...], self.b_gate[...] if bias else None)
        dt = linear(x, self.w_dt[...], self.b_dt_proj[...] if bias else None)
        if cfg.in_scales:
            scale_z, scale_u, scale_b, scale_c, scale_dt = cfg.in_scales
            scales = jnp.repeat(jnp.array([scale_b, scale_c], bc.dtype), G * N)
            z, u, bc, dt = scale_z * z, scale_u * u, scales * bc, scale_dt * dt
        u, conv = self.conv(u, reset, prev.conv, cfg.implementation)
        bc, conv_bc = self.conv_bc(bc, reset, prev.conv_bc, cfg.implementation)
        u = rearrange(activate(u, cfg.activation), "b t (h p) -> b t h p", h=H)
        bc = activate(bc, cfg.activation)
        b, c = (part.reshape(*bc.shape[:2], G, N) for part in jnp.split(bc, 2, axis=-1))
        y, ssm = ssd(
            *(u, softplus_dt(dt, self.b_dt[...], cfg.dt_limit_min, cfg.dt_limit_max)),
            *(-jnp.exp(self.log_a[...]), b, c),
            reset=reset,
            state=prev.ssm,
            chunk_size=cfg.chunk_size,
            implementation=cfg.implementation,
        )
        y = rearrange(y + self.skip[...].astype(y.dtype)[:, None] * u, "b t h p -> b t (h p)")
        if self.norm is None:
            y = y * activate(z, "silu")
        else:
            is_first = cfg.norm == "before_gate"
            y = gated_rms_norm(y, z, self.norm[...], cfg.norm_eps, G, is_first)
        y = linear(y, self.w_out[...], self.b_out[...] if bias else None)
        if state is None:
            return y, None
        return y, Mamba2State(conv, conv_bc, ssm, seq.last_segment(state.last_segment))

    def init_state(self, batch_size: int, max_length: int, dtype: jnp.dtype) -> Mamba2State:
        """Returns an empty state for `batch_size` rows."""
        (_, H, _, N), wide = self.sizes, jnp.promote_types(dtype, jnp.float32)
        ssm = jnp.zeros((batch_size, H, self.cfg.head_dim, N), wide)
        convs = self.conv.init_state(batch_size, dtype), self.conv_bc.init_state(batch_size, dtype)
        return Mamba2State(*convs, ssm, jnp.zeros((batch_size,), jnp.int32))

    @staticmethod
    def supported_views(cfg: Mamba2Config) -> dict[View, str]:
        """Returns the causal views, since it reads rows in one direction."""
        return CAUSAL_ONLY

    @staticmethod
    def tp_dims(D: int, cfg: Mamba2Config) -> dict[str, int]:
        """Returns the dimensions that tensor parallelism splits."""
        return {"expand * width / head_dim": cfg.sizes(D)[1]}

    @staticmethod
    def cost(D: int, cfg: Mamba2Config, context: CostContext) -> PartCost:
        """Returns the cost: model FLOPs are those of chunks of 64, of which half is causal.

        Executed FLOPs are those of `chunk_size`, or of the recurrence for `reference`.
        """
        (C, H, G, N), W = cfg.sizes(D), cfg.conv_width
        in_proj = D * (2 * C + 2 * G * N + H)
        conv_channels = C + 2 * G * N
        params = in_proj + C * D + conv_channels * (W + cfg.conv_bias) + 3 * H
        params += C * (cfg.norm != "none")
        params += cfg.bias * (2 * C + 2 * G * N + H + D)
        Q = min(cfg.chunk_size, max(context.length, 1))
        is_chunked = cfg.implementation != "reference"
        conv = 2.0 * W * conv_channels
        terms = {
            "in": TermFlops(2.0 * in_proj, 2.0 * in_proj),
            "conv": TermFlops(conv, conv, elementwise=True),
            "cb": TermFlops(COST_CHUNK_SIZE * N * G, is_chunked * 2.0 * Q * N * G, batched=True),
            "yx": TermFlops(COST_CHUNK_SIZE * C, is_chunked * 2.0 * Q * C, batched=True),
            "states": TermFlops(2.0 * N * C, is_chunked * 2.0 * N * C, batched=True),
            "inter_chunk": TermFlops(
                2.0 * N * C / COST_CHUNK_SIZE, is_chunked * 2.0 * N * C / Q, elementwise=True
            ),
            "off_diagonal": TermFlops(2.0 * N * C, is_chunked * 2.0 * N * C, batched=True),
            "out": TermFlops(2.0 * C * D, 2.0 * C * D),
        }
        if not is_chunked:
            terms["recurrence"] = TermFlops(0.0, 7.0 * N * C, elementwise=True)
        state = 4 * C * N + context.itemsize * (W - 1) * conv_channels
        return PartCost(params, params, terms, state)
