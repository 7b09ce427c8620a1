"""The feed-forward channel: two layers, plain or gated (GLU variants, arXiv:2002.05202)."""

import functools
from typing import ClassVar

import jax
from flax import nnx
from jaxtyping import Array, Float

from arch.layers.activations import Activation, Hidden
from arch.layers.linear import linear
from arch.part_cost import CostContext, PartCost, TermFlops
from arch.sequence import ALL_VIEWS, SequenceInfo, View
from arch.sharding import P, make_matrix, make_vector
from arch.weighted_sum import AuxMetrics
from ops.recompute import recompute
from settings.types import NonNegativeFloat, NonNegativeInt, config


@config
class MlpConfig:
    """The feed-forward channel."""

    scaled_fields: ClassVar[tuple[str, ...]] = ("width",)
    knob_fields: ClassVar[tuple[str, ...]] = ("width",)

    # Width of the hidden layer (F); 0: 4 D, gated 8/3 D rounded up to a multiple of 64.
    width: NonNegativeInt = 0
    gated: bool = True  # Multiply the hidden layer by an activated gate (SwiGLU, GeGLU).
    activation: Activation = "silu"  # Activation of the hidden layer, or of the gate.
    bias: bool = False  # Add a bias to every projection.
    gate_scale: NonNegativeFloat = 1.0  # Factor of the gate, before its activation.
    out_scale: NonNegativeFloat = 1.0  # Factor of the output.

    def inner_dim(self, D: int) -> int:
        """Returns the width of the hidden layer (F) in a model of width D."""
        if self.width:
            return self.width
        return -(-8 * D // (3 * 64)) * 64 if self.gated else 4 * D


class Mlp(nnx.Module):
    """A channel that computes w_out(act(w_in x)), or w_out(act(w_gate x) * w_in x) if gated."""

    hint = "use another channel"  # The end of the message that refuses a view.

    def __init__(self, D: int, cfg: MlpConfig, *, key: Array, scale: float = 1.0):
        F, keys = cfg.inner_dim(D), jax.random.split(key, 3)
        self.cfg = cfg
        self.w_in = make_matrix(keys[0], (D, F), P("data", "model"))
        if cfg.gated:
            self.w_gate = make_matrix(keys[1], (D, F), P("data", "model"))
        self.w_out = make_matrix(keys[2], (F, D), P("model", "data"), scale)
        if cfg.bias:
            self.b_in, self.b_out = make_vector(F, 0.0), make_vector(D, 0.0)
            if cfg.gated:
                self.b_gate = make_vector(F, 0.0)

    def __call__(
        self, x: Float[Array, "B T D"], seq: SequenceInfo, *, key: Array | None = None
    ) -> tuple[Float[Array, "B T D"], AuxMetrics]:
        """Applies the feed-forward network to each token and returns no metrics."""
        return self.finish(self.project(x), x, seq, key=key)

    @staticmethod
    def inner_widths(D: int, cfg: MlpConfig) -> tuple[int, ...]:
        """Returns the widths of the hidden layer and of its gate."""
        return (cfg.inner_dim(D),) * (2 if cfg.gated else 1)

    def project(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T F"], ...]:
        """Returns the hidden layer before its activation, and its gate if there is one."""
        bias = self.cfg.bias
        hidden = linear(x, self.w_in[...], self.b_in[...] if bias else None)
        if not self.cfg.gated:
            return (hidden,)
        gate = linear(x, self.w_gate[...], self.b_gate[...] if bias else None)
        return hidden, gate if self.cfg.gate_scale == 1 else self.cfg.gate_scale * gate

    def finish(
        self,
        inner: tuple[Float[Array, "B T F"], ...],
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        *,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], AuxMetrics]:
        """Activates the hidden layer and projects it to the residual stream."""
        hidden, b_out = list(inner), self.b_out[...] if self.cfg.bias else None
        y = activate_and_project(self.cfg.activation, hidden, self.w_out[...], b_out)
        return y if self.cfg.out_scale == 1 else self.cfg.out_scale * y, {}

    @staticmethod
    def supported_views(cfg: MlpConfig) -> dict[View, str]:
        """Returns all views."""
        return ALL_VIEWS

    @staticmethod
    def aux_losses(cfg: MlpConfig) -> dict[str, float]:
        """Returns no loss terms."""
        return {}

    @staticmethod
    def tp_dims(D: int, cfg: MlpConfig) -> dict[str, int]:
        """Returns the dimensions that tensor parallelism splits."""
        return {"width": cfg.inner_dim(D)}

    @staticmethod
    def cost(D: int, cfg: MlpConfig, context: CostContext) -> PartCost:
        """Returns the cost of the two or three matrix products."""
        F, num_inputs = cfg.inner_dim(D), 2 if cfg.gated else 1
        params = (num_inputs + 1) * D * F + cfg.bias * (num_inputs * F + D)
        flops = 2.0 * (num_inputs + 1) * D * F
        return PartCost(params, params, {"mlp": TermFlops(flops, flops)})


@functools.partial(recompute, static_argnums=0)
def activate_and_project(
    activation: Activation,
    hidden: list[Float[Array, "B T F"]],
    w: Float[Array, "F D"],
    bias: Float[Array, " D"] | None,
) -> Float[Array, "B T D"]:
    """Computes act(h) w + bias, or h act(gate) w + bias if `hidden` has a gate.

    The backward pass keeps h and the gate, and computes their product again.
    """
    h, *gates = hidden
    return linear(Hidden(activation)(h, gates[0] if gates else None), w, bias)
