"""Multi-head attention with grouped keys, windows and position encodings (arXiv:1706.03762).

Options add a gate on the output (arXiv:2505.06708), sinks (gpt-oss), a forget gate (FoX,
arXiv:2503.02130) and a selection of blocks of keys (MoBA, arXiv:2502.13189).

The projections are three matrices, not one fused matrix, because each can then be sharded over
heads without a copy.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from arch.cross_layer import CrossLayerSpec, LayerContext
from arch.layers.linear import linear
from arch.layers.norms import rms_norm
from arch.layers.positions import alibi_bias, alibi_bias_bfloat16
from arch.layers.rope import apply_rope
from arch.mixers.attention_config import AttentionConfig, attention_cost, gate_width
from arch.mixers.kv_cache import CrossAttentionCache, KVCache
from arch.part import Memory
from arch.part_cost import CostContext, PartCost
from arch.sequence import ALL_VIEWS, CAUSAL_ONLY, SequenceInfo, View
from arch.sharding import P, make_matrix, make_param, make_vector
from ops.attention.attention import BiasFn, TokenIndex, attention
from ops.attention.decay import cumulative_log_decay
from ops.attention.moba import select_blocks

AttentionState = KVCache | CrossAttentionCache


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
            width = gate_width(cfg, H, K)
            self.w_gate = make_matrix(extra_keys[0], (D, width), P("data", "model"))
        if cfg.forget_gate:
            self.w_forget = make_matrix(extra_keys[1], (D, H), P("data", "model"))
            self.b_forget = make_vector(H, 0.0)
        if cfg.value_residual:
            self.mix_values = make_vector(2, 0.5)
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
        if not self.is_cross:
            y, _, state = self.call_in_stack(x, seq, None, state=state, memory=memory, key=key)
            return y, state
        assert not isinstance(state, KVCache)
        q = self._query_heads(self._project_queries(x))
        k, v, keys, state = self._encoder_keys_values(memory, state)
        index = seq.query_index()
        y = self._attend(x, q, k, v, index, keys, key, causal=False, aligned=False)
        return y, state

    def cross_layer_spec(self) -> CrossLayerSpec | None:
        """Returns the values that the first layer of this head shape shares."""
        return (
            CrossLayerSpec({self._values_name(): self.head_shape[1:]})
            if self.cfg.value_residual
            else None
        )

    def call_in_stack(
        self,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        layer_context: LayerContext | None,
        *,
        state: AttentionState | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], LayerContext | None, AttentionState | None]:
        """Attends to the visible tokens, with the values of the first layer in the context."""
        return self.finish(
            self.project(x), x, seq, layer_context, state=state, memory=memory, key=key
        )

    @staticmethod
    def inner_widths(D: int, cfg: AttentionConfig) -> tuple[int, ...]:
        """Returns the widths of queries, keys and values."""
        H, G, K = cfg.head_shape(D)
        return H * K, G * K, G * K

    def project(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T _"], ...]:
        """Returns queries, keys and values before their norms and positions."""
        return self._project_queries(x), *self._project_keys_values(x)

    def finish(
        self,
        inner: tuple[Float[Array, "B T _"], ...],
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        layer_context: LayerContext | None,
        *,
        state: AttentionState | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], LayerContext | None, AttentionState | None]:
        """Attends to the visible tokens with these queries, keys and values."""
        q, (k, v) = self._query_heads(inner[0]), self._key_value_heads(*inner[1:])
        if self.cfg.value_residual and layer_context is not None:
            v, layer_context = self._add_first_values(v, layer_context)
        if "full" not in self.supported_views(self.cfg).get("prefix", ""):
            seq = dataclasses.replace(seq, is_prefix=None)
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
        return y, layer_context, state

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
        self,
        x: Float[Array, "B T D"],
        q: Float[Array, "B T H K"],
        k: Float[Array, "B S G K"],
        v: Float[Array, "B S G K"],
        queries: TokenIndex,
        keys: TokenIndex,
        key: Array | None,
        *,
        causal: bool,
        aligned: bool,
        bias: BiasFn | None = None,
        window: tuple[int, int] | None = None,
    ) -> Float[Array, "B T D"]:
        """Computes the outputs of the heads, their gate by `x`, and the output projection."""
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
            k, v = self._key_value_heads(*self._project_keys_values(memory[0]))
            cache = CrossAttentionCache(k, v, memory[1].key_index(), is_filled=True)
            return k, v, cache.token_index, None if state is None else cache
        if state is None or not state.is_filled:
            raise ValueError(
                "cross-attention needs the encoder's output; give `memory`, or a state that has it"
            )
        return state.k, state.v, state.token_index, state

    def _log_decay(self, x: Float[Array, "B T D"], seq: SequenceInfo) -> Float[Array, "B T H 2"]:
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

    def _project_queries(self, x: Float[Array, "B T D"]) -> Float[Array, "B T width"]:
        return linear(x, self.w_q[...], self.b_q[...] if self.cfg.bias_qkv else None)

    def _project_keys_values(
        self, x: Float[Array, "B S D"]
    ) -> tuple[Float[Array, "B S width"], Float[Array, "B S width"]]:
        has_bias = self.cfg.bias_qkv
        return (
            linear(x, self.w_k[...], self.b_k[...] if has_bias else None),
            linear(x, self.w_v[...], self.b_v[...] if has_bias else None),
        )

    def _query_heads(self, q: Float[Array, "B T width"]) -> Float[Array, "B T H K"]:
        cfg, (H, _, _) = self.cfg, self.head_shape
        if cfg.qk_norm == "full":
            q = self._norm(q, self.norm_q[...])
        q = jnp.clip(q, -cfg.qkv_clip, cfg.qkv_clip) if cfg.qkv_clip else q
        q = rearrange(q, "b t (h k) -> b t h k", h=H)
        return self._norm(q, self.norm_q[...]) if cfg.qk_norm == "head" else q

    def _key_value_heads(
        self, k: Float[Array, "B S width"], v: Float[Array, "B S width"]
    ) -> tuple[Float[Array, "B S G K"], Float[Array, "B S G K"]]:
        cfg, (_, G, _) = self.cfg, self.head_shape
        if cfg.qk_norm == "full":
            k = self._norm(k, self.norm_k[...])
        if cfg.qkv_clip:
            k, v = (jnp.clip(y, -cfg.qkv_clip, cfg.qkv_clip) for y in (k, v))
        k, v = (rearrange(y, "b s (g k) -> b s g k", g=G) for y in (k, v))
        return self._norm(k, self.norm_k[...]) if cfg.qk_norm == "head" else k, v

    def _values_name(self) -> str:
        """Returns the name under which layers of the same head shape share their first values."""
        return "values {}x{}".format(*self.head_shape[1:])

    def _add_first_values(
        self, v: Float[Array, "B T G K"], layer_context: LayerContext
    ) -> tuple[Float[Array, "B T G K"], LayerContext]:
        """Mixes the values of the first layer into those of a later one (arXiv:2410.17897)."""
        name, (first, later) = self._values_name(), self.mix_values[...].astype(v.dtype)
        is_first = layer_context.is_first(name)
        layer_context = layer_context.share(
            name, jnp.where(is_first, v, layer_context.values[name])
        )
        return jnp.where(is_first, v, first * layer_context.values[name] + later * v), layer_context

    def _norm(
        self, x: Float[Array, "B T ..."], scale: Float[Array, " width"]
    ) -> Float[Array, "B T ..."]:
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
        return attention_cost(D, cfg, context)
