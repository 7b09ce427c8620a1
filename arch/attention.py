"""Multi-head attention with grouped keys, windows, rotary or linear positions (arXiv:1706.03762).

Left out on purpose: fused q/k/v weights (three matrices shard over heads without a copy).
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from arch.cache import Cache, Source
from arch.ledger import Bill, Place, Work
from arch.linear import linear
from arch.norms import rms_norm
from arch.positions import alibi, alibi_rounded
from arch.rope import RopeConfig, rope
from arch.sequence import EVERYWHERE, Sequence
from arch.sharding import P, matrix, vector
from errors import ConfigError
from ops.attention import Tokens, attention
from schema import Count, Natural, NonNegative, Rate, config


@config
class AttentionConfig:
    heads: Count = 4  # H
    kv_heads: Natural = 0  # G; 0: as many as heads, 1: multi-query
    head_width: Natural = 0  # K; 0: D / H
    window: Natural = 0  # tokens seen, self included (both sides: |i - j| <= window / 2); 0: all
    position: Literal["rope", "alibi", "relative", "none"] = "rope"  # relative: T5's, by the stack
    rope: RopeConfig = RopeConfig()
    alibi_rounded: bool = False  # in bfloat16, scaled as the scores are (Falcon-RW)
    scale: NonNegative = 0.0  # of scores; 0: K^-1/2
    softcap: NonNegative = 0.0  # c: scores become c tanh(score / c); 0: off
    qk_norm: Literal["none", "head", "full"] = "none"  # RMSNorm of q and k, per head or all heads
    qk_norm_eps: NonNegative = 1e-6
    clip: NonNegative = 0.0  # q, k, v are cut at +-clip; 0: off
    bias_qkv: bool = False
    bias_out: bool = False
    dropout: Rate = 0.0  # of attention probabilities
    implementation: Literal["auto", "reference", "xla", "cudnn", "splash"] = "auto"

    def check(self) -> None:
        if self.kv_heads and self.heads % self.kv_heads:
            known = [str(g) for g in range(1, self.heads + 1) if self.heads % g == 0]
            raise ConfigError(
                f"attention.kv_heads {self.kv_heads} does not divide attention.heads "
                f"{self.heads}; choose one of {', '.join(known)}"
            )

    def shape(self, D: int) -> tuple[int, int, int]:
        """H, G, K at width D."""
        if not self.head_width and D % self.heads:
            near = D // self.heads * self.heads
            raise ConfigError(
                f"model.width {D} is not a multiple of attention.heads {self.heads}; "
                f"nearest: {near or self.heads} or {near + self.heads}, or set head_width"
            )
        K = self.head_width or D // self.heads
        turned = self.rope.width or K
        if self.position == "rope" and (turned % 2 or turned > K):
            raise ConfigError(
                f"attention.rope.width {turned} must be even and at most the head width {K}; "
                f"nearest: {max(2, min(turned, K) // 2 * 2)}"
            )
        return self.heads, self.kv_heads or self.heads, K


class Attention(nnx.Module):
    """A mixer (see `arch/model.py`); with `cross` it attends to `memory`, an encoder's output."""

    views = staticmethod(lambda cfg: EVERYWHERE)

    def __init__(
        self, D: int, cfg: AttentionConfig, *, key: Array, scale: float = 1.0, cross: bool = False
    ):
        self.cfg, self.cross = cfg, cross
        self.heads = H, G, K = cfg.shape(D)
        keys = jax.random.split(key, 4)
        self.w_q = matrix(keys[0], (D, H * K), P("data", "model"))
        self.w_k = matrix(keys[1], (D, G * K), P("data", "model"))
        self.w_v = matrix(keys[2], (D, G * K), P("data", "model"))
        self.w_o = matrix(keys[3], (H * K, D), P("model", "data"), scale)
        if cfg.bias_qkv:
            self.b_q, self.b_k, self.b_v = (vector(n * K, 0.0) for n in (H, G, G))
        if cfg.bias_out:
            self.b_o = vector(D, 0.0)
        if cfg.qk_norm != "none":
            per_head = cfg.qk_norm == "head"
            self.norm_q, self.norm_k = (vector(K if per_head else n * K, 1.0) for n in (H, G))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: Sequence,
        *,
        state: Any = None,
        memory: tuple[Float[Array, "B S D"], Sequence] | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        q = self._queries(x)
        if self.cross:
            k, v, keys, state = self._source(memory, state)
            y = self._attend(q, k, v, seq.tokens(), keys, key, causal=False, aligned=False)
            return y, state
        k, v = self._keys(x)
        if self.cfg.position == "rope":
            q, k = rope(q, seq.positions, self.cfg.rope), rope(k, seq.positions, self.cfg.rope)
        queries, keys, aligned = seq.tokens(), seq.keys(), True
        if state is not None:
            aligned, queries = state.empty, state.continued(queries)
            k, v, keys, state = state.extend(k, v, state.continued(keys))
        bias, window = self._bias(seq, x.dtype), self._window(seq.causal)
        y = self._attend(
            *(q, k, v, queries, keys, key),
            causal=seq.causal,
            aligned=aligned,
            bias=bias,
            window=window,
        )
        return y, state

    def start(self, batch: int, capacity: int, dtype: jnp.dtype) -> Any:
        _, G, K = self.heads
        if self.cross:
            return Source.start(batch, capacity, G, K, dtype)
        window = self.cfg.window
        slots = min(window, capacity) if window else capacity
        return Cache.start(batch, slots, G, K, dtype, ring=slots < capacity)

    def _attend(
        self, q, k, v, queries, keys, key, *, causal, aligned, bias=None, window=None
    ) -> Float[Array, "B T D"]:
        cfg = self.cfg
        y = attention(
            *(q, k, v, queries, keys),
            causal=causal,
            window=window,
            scale=cfg.scale or q.shape[-1] ** -0.5,
            softcap=cfg.softcap,
            bias=bias,
            aligned=aligned,
            dropout=cfg.dropout,
            key=key,
            implementation=cfg.implementation,
        )
        y = rearrange(y, "b t h k -> b t (h k)")
        return linear(y, self.w_o[...], self.b_o[...] if cfg.bias_out else None)

    def _source(self, memory: Any, state: Any) -> tuple[Array, Array, Tokens, Any]:
        """Keys and values of what was encoded, made once."""
        if memory is not None:
            k, v = self._keys(memory[0])
            kept = Source(k, v, memory[1].keys(), filled=True)
            return k, v, kept.tokens, None if state is None else kept
        if state is None or not state.filled:
            raise ValueError("cross-attention needs the encoder's output, or a state that has it")
        return state.k, state.v, state.tokens, state

    def _bias(self, seq: Sequence, dtype: jnp.dtype) -> Any:
        if self.cfg.position == "alibi":
            if self.cfg.alibi_rounded:
                scale = self.cfg.scale or self.heads[2] ** -0.5
                return functools.partial(
                    alibi_rounded, heads=self.heads[0], scale=scale, dtype=dtype
                )
            return functools.partial(alibi, heads=self.heads[0], dtype=dtype)
        return seq.bias if self.cfg.position == "relative" else None

    def _window(self, causal: bool) -> tuple[int, int] | None:
        W = self.cfg.window
        if not W:
            return None
        return (W - 1, W - 1) if causal else (W // 2, W // 2)

    def _queries(self, x: Array) -> Float[Array, "B T H K"]:
        cfg, (H, _, _) = self.cfg, self.heads
        q = linear(x, self.w_q[...], self.b_q[...] if cfg.bias_qkv else None)
        if cfg.qk_norm == "full":
            q = rms_norm(q, self.norm_q[...], cfg.qk_norm_eps)
        q = jnp.clip(q, -cfg.clip, cfg.clip) if cfg.clip else q
        q = rearrange(q, "b t (h k) -> b t h k", h=H)
        return rms_norm(q, self.norm_q[...], cfg.qk_norm_eps) if cfg.qk_norm == "head" else q

    def _keys(self, x: Array) -> tuple[Float[Array, "B S G K"], Float[Array, "B S G K"]]:
        cfg, (_, G, _) = self.cfg, self.heads
        k = linear(x, self.w_k[...], self.b_k[...] if cfg.bias_qkv else None)
        v = linear(x, self.w_v[...], self.b_v[...] if cfg.bias_qkv else None)
        if cfg.qk_norm == "full":
            k = rms_norm(k, self.norm_k[...], cfg.qk_norm_eps)
        if cfg.clip:
            k, v = (jnp.clip(y, -cfg.clip, cfg.clip) for y in (k, v))
        k, v = (rearrange(y, "b s (g k) -> b s g k", g=G) for y in (k, v))
        return rms_norm(k, self.norm_k[...], cfg.qk_norm_eps) if cfg.qk_norm == "head" else k, v

    @staticmethod
    def cuts(D: int, cfg: AttentionConfig) -> dict[str, int]:
        H, G, _ = cfg.shape(D)
        return {"heads": H} | ({"kv_heads": G} if G < H else {})

    @staticmethod
    def cost(D: int, cfg: AttentionConfig, place: Place) -> Bill:
        """Projections and core; `reference` executes the whole T x T."""
        H, G, K = cfg.shape(D)
        params, core = _params(D, cfg), 4.0 * H * K * place.keys(cfg.window)
        executed = 4.0 * H * K * place.length if cfg.implementation == "reference" else core
        projections = 4.0 * D * (H + G) * K
        slots = min(place.length, cfg.window or place.length)
        return Bill(
            params=params,
            active=params,
            work={
                "projections": Work(projections, projections),
                "core": Work(core, executed, batched=True),
            },
            state_bytes=2 * G * K * slots * place.itemsize,
        )

    @staticmethod
    def cross_cost(D: int, cfg: AttentionConfig, place: Place) -> Bill:
        """Per token of the decoder, of which there are `length` to `source` encoded ones."""
        H, G, K = cfg.shape(D)
        params, share = _params(D, cfg), place.source / place.length if place.length else 0.0
        queries, keys = 4.0 * D * H * K, 4.0 * D * G * K * share
        core = 4.0 * H * K * place.source
        return Bill(
            params=params,
            active=params,
            work={
                "projections": Work(queries + keys, queries + keys),
                "core": Work(core, core, batched=True),
            },
            state_bytes=2 * G * K * place.source * place.itemsize,
        )


def _params(D: int, cfg: AttentionConfig) -> int:
    H, G, K = cfg.shape(D)
    biases = cfg.bias_qkv * (H + 2 * G) * K + cfg.bias_out * D
    return (
        2 * D * (H + G) * K + biases + {"none": 0, "head": 2 * K, "full": (H + G) * K}[cfg.qk_norm]
    )
