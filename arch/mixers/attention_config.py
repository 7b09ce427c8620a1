"""The settings of attention and its cost (see `arch/mixers/attention.py`)."""

from collections.abc import Iterable
from typing import ClassVar, Literal

from arch.layers.rope import RopeConfig
from arch.part_cost import CostContext, PartCost, TermFlops, sum_of_minima
from errors import ConfigError
from ops.attention.moba import num_whole_blocks
from settings.types import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Probability,
    check_divides,
    config,
)


@config
class AttentionConfig:
    """Multi-head attention."""

    knob_fields: ClassVar[tuple[str, ...]] = ()

    heads: PositiveInt = 4  # Number of attention heads (H).
    # Number of key/value heads (G), which divides the heads; 0: as many as heads.
    kv_heads: NonNegativeInt = 0
    head_dim: NonNegativeInt = 0  # Width of a head (K); 0: D / H.
    # Tokens that a token sees, itself included (bidirectional: those within window / 2); 0: all.
    window: NonNegativeInt = 0
    # Position encoding; relative: T5's bias, which all attentions of a stack share.
    position_encoding: Literal["rope", "alibi", "relative", "none"] = "rope"
    rope: RopeConfig = RopeConfig()
    # Compute ALiBi in bfloat16 and multiply it by the scale of the scores (Falcon-RW).
    alibi_rounded: bool = False
    scale: NonNegativeFloat = 0.0  # Factor of the scores; 0: K^-1/2.
    # Head width k at which that factor is K^-1/2; elsewhere it is k^1/2 / K (muP); 0: K itself.
    base_head_dim: NonNegativeInt = 0
    softcap: NonNegativeFloat = 0.0  # Bound c of the scores, c tanh(score / c); 0: off.
    # RMSNorm of queries and keys: none, within each head, or over all heads.
    qk_norm: Literal["none", "head", "full"] = "none"
    # Number added to the mean square in the norm of queries and keys.
    qk_norm_eps: NonNegativeFloat = 1e-6
    # Multiply normed queries and keys by 1 + weight instead of the weight (Gemma 3).
    qk_norm_unit_offset: bool = False
    # Gate sigmoid(x w) of the output: none, one number per head, or one per channel.
    output_gate: Literal["none", "head", "channel"] = "none"
    sinks: bool = False  # Give each head's softmax one learned score that has no value.
    # Lower scores by the log of a learned gate of each token between key and query (FoX).
    forget_gate: bool = False
    # Mix the values of the first such layer into those of later ones, by two learned weights.
    value_residual: bool = False
    block_size: NonNegativeInt = 0  # Tokens of a block that queries select (MoBA); 0: no blocks.
    top_blocks: PositiveInt = 3  # Number of blocks that a query sees, its own included.
    qkv_clip: NonNegativeFloat = 0.0  # Clip queries, keys and values to +- this value; 0: off.
    bias_qkv: bool = False  # Add a bias to the projections to queries, keys and values.
    bias_out: bool = False  # Add a bias to the output projection.
    dropout: Probability = 0.0  # Dropout rate of the attention probabilities.
    # Implementation of attention; auto: chosen by platform.
    implementation: Literal["auto", "reference", "xla", "cudnn", "splash", "ring"] = "auto"

    def check(self) -> None:
        """Checks the number of key/value heads, and the options that exclude each other.

        Raises:
            ConfigError: if `kv_heads` does not divide `heads`, or blocks are selected in a window.
        """
        if self.block_size and self.window:
            raise ConfigError(
                f"attention.block_size {self.block_size} selects among all earlier blocks, it "
                f"excludes attention.window {self.window}; set one of them to 0"
            )
        if self.kv_heads:
            check_divides("attention.kv_heads", self.kv_heads, "attention.heads", self.heads)

    @property
    def scaled_fields(self) -> tuple[str, ...]:
        """The fields that are proportional to the model's width; a single kv_head is not."""
        return ("heads", "kv_heads") if self.kv_heads > 1 else ("heads",)

    def score_scale(self, K: int) -> float:
        """Returns the factor of the scores; with a `base_head_dim` it is a constant over K."""
        return self.scale or (self.base_head_dim**0.5 / K if self.base_head_dim else K**-0.5)

    def head_shape(self, D: int) -> tuple[int, int, int]:
        """Returns H, G and K in a model of width D.

        Raises:
            ConfigError: if the heads do not divide the width, or `rotary_dim` does not fit a head.
        """
        if not self.head_dim and D % self.heads:
            below = D // self.heads * self.heads
            raise ConfigError(
                f"model.width {D} is not a multiple of attention.heads {self.heads}; "
                f"nearest valid values: {below or self.heads} or {below + self.heads}; or set "
                "attention.head_dim"
            )
        K = self.head_dim or D // self.heads
        rotary_dim = self.rope.rotary_dim or K
        if self.position_encoding == "rope" and (rotary_dim % 2 or rotary_dim > K):
            raise ConfigError(
                f"attention.rope.rotary_dim {rotary_dim} must be even and at most the head width "
                f"{K}; nearest valid value: {max(2, min(rotary_dim, K) // 2 * 2)}"
            )
        return self.heads, self.kv_heads or self.heads, K


def relative_heads(parts: Iterable[object]) -> int:
    """Returns the number of heads of the table of relative positions; 0: no part uses it.

    Raises:
        ConfigError: if attentions that share the table differ in their number of heads.
    """
    attentions = (part for part in parts if isinstance(part, AttentionConfig))
    heads = sorted({part.heads for part in attentions if part.position_encoding == "relative"})
    if len(heads) > 1:
        raise ConfigError(
            f"attentions with position_encoding 'relative' share a table, their heads are "
            f"{heads}, must be equal; nearest valid value: {heads[-1]}"
        )
    return heads[0] if heads else 0


def attention_cost(D: int, cfg: AttentionConfig, context: CostContext) -> PartCost:
    """Returns the cost; `reference` executes all T x T scores, visible or not."""
    H, G, K = cfg.head_shape(D)
    params, executed = _num_params(D, cfg), context.mean_keys_per_query(cfg.window)
    num_keys = _mean_selected_keys(cfg, context.length) if cfg.block_size else executed
    executed = context.length if cfg.implementation == "reference" else executed
    projections = 4.0 * D * (H + G) * K + 2.0 * D * _gates_width(cfg, H, K)
    slots = min(context.length, cfg.window or context.length)
    terms = {
        "projections": TermFlops(projections, projections),
        "core": TermFlops(4.0 * H * K * num_keys, 4.0 * H * K * executed, batched=True),
    }
    if cfg.block_size:
        n_blocks, remainder = divmod(context.length, cfg.block_size)
        earlier = cfg.block_size * sum_of_minima(n_blocks, n_blocks) + remainder * n_blocks
        blocks = num_whole_blocks(context.length, cfg.block_size) if context.length else 0
        model = 2.0 * H * K * earlier / max(1, context.length)
        terms["selection"] = TermFlops(model, 2.0 * H * K * blocks, batched=True)
    decay_bytes = H * max(4, context.itemsize) * cfg.forget_gate
    return PartCost(params, params, terms, slots * (2 * G * K * context.itemsize + decay_bytes))


def cross_attention_cost(D: int, cfg: AttentionConfig, context: CostContext) -> PartCost:
    """Returns the cost of cross-attention per token of the decoder.

    The keys and values of the `source_length` encoded tokens are shared by `length` tokens.
    """
    H, G, K = cfg.head_shape(D)
    params = _num_params(D, cfg)
    share = context.source_length / context.length if context.length else 0.0
    queries, keys = 4.0 * D * H * K + 2.0 * D * _gates_width(cfg, H, K), 4.0 * D * G * K * share
    core = 4.0 * H * K * context.source_length
    return PartCost(
        params=params,
        active_params=params,
        terms={
            "projections": TermFlops(queries + keys, queries + keys),
            "core": TermFlops(core, core, batched=True),
        },
        state_bytes=2 * G * K * context.source_length * context.itemsize,
    )


def _num_params(D: int, cfg: AttentionConfig) -> int:
    H, G, K = cfg.head_shape(D)
    vectors = cfg.bias_qkv * (H + 2 * G) * K + cfg.bias_out * D + H * (cfg.forget_gate + cfg.sinks)
    vectors += 2 * cfg.value_residual
    norms = {"none": 0, "head": 2 * K, "full": (H + G) * K}[cfg.qk_norm]
    return D * (2 * (H + G) * K + _gates_width(cfg, H, K)) + vectors + norms


def gate_width(cfg: AttentionConfig, H: int, K: int) -> int:
    """Returns the width of the output gate."""
    return {"none": 0, "head": H, "channel": H * K}[cfg.output_gate]


def _gates_width(cfg: AttentionConfig, H: int, K: int) -> int:
    """Returns the width of all gates."""
    return gate_width(cfg, H, K) + H * cfg.forget_gate


def _mean_selected_keys(cfg: AttentionConfig, length: int) -> float:
    """Returns the mean number of keys in the blocks that a causal query sees."""
    size, others = cfg.block_size, cfg.top_blocks - 1
    n_blocks, remainder = divmod(length, size)
    earlier = size * sum_of_minima(n_blocks, others) + remainder * min(n_blocks, others)
    in_block = n_blocks * sum_of_minima(size + 1, size) + sum_of_minima(remainder + 1, remainder)
    return (size * earlier + in_block) / max(1, length)
