"""Multi-head attention with grouped keys, windows and position encodings (arXiv:1706.03762).

Options add a gate on the output (arXiv:2505.06708), sinks (gpt-oss), a forget gate (FoX,
arXiv:2503.02130) and a selection of blocks of keys (MoBA, arXiv:2502.13189).

The projections are three matrices, not one fused matrix, because each can then be sharded over
heads without a copy.
"""

import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from arch.layers.linear import linear
from arch.layers.norms import rms_norm
from arch.layers.positions import alibi_bias, alibi_bias_bfloat16
from arch.mixers.kv_cache import CrossAttentionCache, KVCache
from arch.mixers.rope import RopeConfig, apply_rope
from arch.part import Memory
from arch.part_cost import CostContext, PartCost, TermFlops
from arch.sequence import ALL_VIEWS, CAUSAL_ONLY, SequenceInfo, View
from arch.sharding import P, make_matrix, make_param, make_vector
from errors import ConfigError
from ops.attention.attention import BiasFn, TokenIndex, attention
from ops.attention.decay import cumulative_log_decay
from ops.attention.moba import num_whole_blocks, select_blocks
from settings.types import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Probability,
    check_divides,
    config,
)

AttentionState = KVCache | CrossAttentionCache


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


class Attention(nnx.Module):
    """A mixer (see `arch/part.py`) that computes multi-head attention.

    With `is_cross` it attends to `memory`, the output of an encoder, instead of its own input.
    """

    def __init__(
        self,
        D: int,
        cfg: AttentionConfig,
        *,
        key: Array,
        scale: float = 1.0,
        is_cross: bool = False,
    ):
        self.cfg, self.is_cross = cfg, is_cross
        self.head_shape = H, G, K = cfg.head_shape(D)
        keys = jax.random.split(key, 4)
        self.w_q = make_matrix(keys[0], (D, H * K), P("data", "model"))
        self.w_k = make_matrix(keys[1], (D, G * K), P("data", "model"))
        self.w_v = make_matrix(keys[2], (D, G * K), P("data", "model"))
        self.w_o = make_matrix(keys[3], (H * K, D), P("model", "data"), scale)
        if cfg.bias_qkv:
            self.b_q, self.b_k, self.b_v = (make_vector(n * K, 0.0) for n in (H, G, G))
        if cfg.bias_out:
            self.b_o = make_vector(D, 0.0)
        if cfg.qk_norm != "none":
            per_head = cfg.qk_norm == "head"
            start = 0.0 if cfg.qk_norm_unit_offset else 1.0
            widths = (K, K) if per_head else (H * K, G * K)
            self.norm_q, self.norm_k = (make_vector(width, start) for width in widths)
        extra_keys = jax.random.split(jax.random.fold_in(key, 1), 3)
        if cfg.output_gate != "none":
            width = _gate_width(cfg, H, K)
            self.w_gate = make_matrix(extra_keys[0], (D, width), P("data", "model"))
        if cfg.forget_gate:
            self.w_forget = make_matrix(extra_keys[1], (D, H), P("data", "model"))
            self.b_forget = make_vector(H, 0.0)
        if cfg.sinks:
            init = nnx.initializers.normal(0.02)
            self.sinks = make_param(
                extra_keys[2], (H,), P("model"), init, role="vector", decay=False
            )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        *,
        state: AttentionState | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], AttentionState | None]:
        """Attends to the visible tokens, or to the encoder's output if `is_cross`."""
        q = self._queries(x)
        if self.is_cross:
            assert not isinstance(state, KVCache)
            k, v, keys, state = self._encoder_keys_values(memory, state)
            index = seq.query_index()
            y = self._attend(x, q, k, v, index, keys, key, causal=False, aligned=False)
            return y, state
        if "full" not in self.supported_views(self.cfg).get("prefix", ""):
            seq = dataclasses.replace(seq, is_prefix=None)
        k, v = self._keys_values(x)
        if self.cfg.position_encoding == "rope":
            q, k = (apply_rope(y, seq.positions, self.cfg.rope) for y in (q, k))
        queries, keys, aligned = seq.query_index(), seq.key_index(), True
        if self.cfg.forget_gate:
            decay = self._log_decay(x, seq)
            queries, keys = (index._replace(log_decay=decay) for index in (queries, keys))
        if state is not None:
            assert isinstance(state, KVCache)
            aligned, queries = state.is_empty, state.with_cached_offset(queries)
            k, v, keys, state = state.append(k, v, state.with_cached_offset(keys))
        if self.cfg.block_size:
            sizes = {"block_size": self.cfg.block_size, "top_blocks": self.cfg.top_blocks}
            queries, keys = select_blocks(q, k, queries, keys, **sizes, aligned=aligned)
        bias, window = self._position_bias(seq, x.dtype), self._window_bounds(seq.causal)
        y = self._attend(
            *(x, q, k, v, queries, keys, key),
            causal=seq.causal,
            aligned=aligned,
            bias=bias,
            window=window,
        )
        return y, state

    def init_state(self, batch_size: int, max_length: int, dtype: jnp.dtype) -> AttentionState:
        """Returns an empty cache for `batch_size` rows of at most `max_length` tokens.

        For cross-attention, `max_length` is the number of encoded tokens.
        """
        _, G, K = self.head_shape
        if self.is_cross:
            return CrossAttentionCache.create(batch_size, max_length, G, K, dtype)
        window = self.cfg.window
        slots = min(window, max_length) if window else max_length
        decay_heads = self.head_shape[0] if self.cfg.forget_gate else 0
        is_ring = slots < max_length
        return KVCache.create(
            batch_size, slots, G, K, dtype, is_ring=is_ring, decay_heads=decay_heads
        )

    def _attend(
        self, x, q, k, v, queries, keys, key, *, causal, aligned, bias=None, window=None
    ) -> Float[Array, "B T D"]:
        cfg = self.cfg
        y = attention(
            *(q, k, v, queries, keys),
            causal=causal,
            window=window,
            scale=cfg.score_scale(q.shape[-1]),
            softcap=cfg.softcap,
            bias=bias,
            aligned=aligned,
            dropout=cfg.dropout,
            key=key,
            sinks=self.sinks[...] if cfg.sinks else None,
            implementation=cfg.implementation,
        )
        if cfg.output_gate != "none":
            gate = rearrange(linear(x, self.w_gate[...]), "b t (h k) -> b t h k", h=y.shape[2])
            y = y * jax.nn.sigmoid(gate)
        y = rearrange(y, "b t h k -> b t (h k)")
        return linear(y, self.w_o[...], self.b_o[...] if cfg.bias_out else None)

    def _encoder_keys_values(
        self, memory: Memory | None, state: CrossAttentionCache | None
    ) -> tuple[Array, Array, TokenIndex, CrossAttentionCache | None]:
        """Returns the keys and values of the encoder's output, computed once while decoding.

        Raises:
            ValueError: if there is neither `memory` nor a state that has it.
        """
        if memory is not None:
            k, v = self._keys_values(memory[0])
            cache = CrossAttentionCache(k, v, memory[1].key_index(), is_filled=True)
            return k, v, cache.token_index, None if state is None else cache
        if state is None or not state.is_filled:
            raise ValueError(
                "cross-attention needs the encoder's output; give `memory`, or a state that has it"
            )
        return state.k, state.v, state.token_index, state

    def _log_decay(self, x: Array, seq: SequenceInfo) -> Float[Array, "B T H 2"]:
        """Returns the cumulative log of the forget gates."""
        gate = linear(x, self.w_forget[...], self.b_forget[...])
        log_f = jax.nn.log_sigmoid(gate.astype(jnp.promote_types(x.dtype, jnp.float32)))
        return cumulative_log_decay(log_f, seq.segment_ids)

    def _position_bias(self, seq: SequenceInfo, dtype: jnp.dtype) -> BiasFn | None:
        if self.cfg.position_encoding == "alibi":
            if self.cfg.alibi_rounded:
                scale = self.cfg.score_scale(self.head_shape[2])
                return functools.partial(
                    alibi_bias_bfloat16, heads=self.head_shape[0], scale=scale, dtype=dtype
                )
            return functools.partial(alibi_bias, heads=self.head_shape[0], dtype=dtype)
        return seq.attn_bias if self.cfg.position_encoding == "relative" else None

    def _window_bounds(self, causal: bool) -> tuple[int, int] | None:
        window = self.cfg.window
        if not window:
            return None
        return (window - 1, window - 1) if causal else (window // 2, window // 2)

    def _queries(self, x: Array) -> Float[Array, "B T H K"]:
        cfg, (H, _, _) = self.cfg, self.head_shape
        q = linear(x, self.w_q[...], self.b_q[...] if cfg.bias_qkv else None)
        if cfg.qk_norm == "full":
            q = self._norm(q, self.norm_q[...])
        q = jnp.clip(q, -cfg.qkv_clip, cfg.qkv_clip) if cfg.qkv_clip else q
        q = rearrange(q, "b t (h k) -> b t h k", h=H)
        return self._norm(q, self.norm_q[...]) if cfg.qk_norm == "head" else q

    def _keys_values(self, x: Array) -> tuple[Float[Array, "B S G K"], Float[Array, "B S G K"]]:
        cfg, (_, G, _) = self.cfg, self.head_shape
        k = linear(x, self.w_k[...], self.b_k[...] if cfg.bias_qkv else None)
        v = linear(x, self.w_v[...], self.b_v[...] if cfg.bias_qkv else None)
        if cfg.qk_norm == "full":
            k = self._norm(k, self.norm_k[...])
        if cfg.qkv_clip:
            k, v = (jnp.clip(y, -cfg.qkv_clip, cfg.qkv_clip) for y in (k, v))
        k, v = (rearrange(y, "b s (g k) -> b s g k", g=G) for y in (k, v))
        return self._norm(k, self.norm_k[...]) if cfg.qk_norm == "head" else k, v

    def _norm(self, x: Array, scale: Array) -> Array:
        """Applies RMSNorm to queries or keys."""
        scale = 1 + scale if self.cfg.qk_norm_unit_offset else scale
        return rms_norm(x, scale, self.cfg.qk_norm_eps)

    @staticmethod
    def supported_views(cfg: AttentionConfig) -> dict[View, str]:
        """Returns all views; forgetting and the selection of blocks need a causal one."""
        return CAUSAL_ONLY if cfg.forget_gate or cfg.block_size else ALL_VIEWS

    @staticmethod
    def tp_dims(D: int, cfg: AttentionConfig) -> dict[str, int]:
        """Returns the dimensions that tensor parallelism splits."""
        H, G, _ = cfg.head_shape(D)
        return {"heads": H} | ({"kv_heads": G} if G < H else {})

    @staticmethod
    def cost(D: int, cfg: AttentionConfig, context: CostContext) -> PartCost:
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
            earlier = sum(i // cfg.block_size for i in range(context.length))
            blocks = num_whole_blocks(context.length, cfg.block_size) if context.length else 0
            model = 2.0 * H * K * earlier / max(1, context.length)
            terms["selection"] = TermFlops(model, 2.0 * H * K * blocks, batched=True)
        decay_bytes = H * max(4, context.itemsize) * cfg.forget_gate
        return PartCost(params, params, terms, slots * (2 * G * K * context.itemsize + decay_bytes))

    @staticmethod
    def cross_cost(D: int, cfg: AttentionConfig, context: CostContext) -> PartCost:
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
    norms = {"none": 0, "head": 2 * K, "full": (H + G) * K}[cfg.qk_norm]
    return D * (2 * (H + G) * K + _gates_width(cfg, H, K)) + vectors + norms


def _gate_width(cfg: AttentionConfig, H: int, K: int) -> int:
    """Returns the width of the output gate."""
    return {"none": 0, "head": H, "channel": H * K}[cfg.output_gate]


def _gates_width(cfg: AttentionConfig, H: int, K: int) -> int:
    """Returns the width of all gates."""
    return _gate_width(cfg, H, K) + H * cfg.forget_gate


def _mean_selected_keys(cfg: AttentionConfig, length: int) -> float:
    """Returns the mean number of keys in the blocks that a causal query sees."""
    size, others = cfg.block_size, cfg.top_blocks - 1
    return sum(min(i // size, others) * size + i % size + 1 for i in range(length)) / max(1, length)
