"""Multi-head attention with grouped keys, windows, rotary or linear positions (arXiv:1706.03762).

Left out on purpose: fused q/k/v weights (three matrices shard over heads without a copy).
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from arch.cache import Cache
from arch.ledger import Bill, Place, Work
from arch.linear import linear
from arch.norms import rms_norm
from arch.positions import RopeConfig, alibi, rope
from arch.sequence import Sequence
from arch.sharding import P, matrix, vector
from errors import ConfigError
from ops.attention import attention
from schema import Count, Natural, NonNegative, Rate, config


@config
class AttentionConfig:
    heads: Count = 4  # H
    kv_heads: Natural = 0  # G; 0: as many as heads, 1: multi-query
    head_width: Natural = 0  # K; 0: D / H
    window: Natural = 0  # tokens seen, self included (both sides: |i - j| <= window / 2); 0: all
    position: Literal["rope", "alibi", "none"] = "rope"
    rope: RopeConfig = RopeConfig()
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
    """A mixer (see `arch/model.py`); with `memory` it attends to an encoder's output instead."""

    views = {"causal": "full", "prefix": "full", "both": "full"}

    def __init__(self, D: int, cfg: AttentionConfig, *, key: Array, scale: float = 1.0):
        self.cfg = cfg
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
        state: Cache | None = None,
        memory: tuple[Float[Array, "B S D"], Sequence] | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        cfg, (H, _, K) = self.cfg, self.heads
        source, there = (x, seq) if memory is None else memory
        q, k, v = self._project(x, source)
        if cfg.position == "rope" and memory is None:
            q, k = rope(q, seq.positions, cfg.rope), rope(k, seq.positions, cfg.rope)
        queries, keys, aligned = seq.tokens(), there.tokens(), memory is None
        if state is not None and memory is None:
            aligned, queries = state.empty, state.continued(queries)
            k, v, keys, state = state.extend(k, v, queries)
        bias = functools.partial(alibi, heads=H, dtype=x.dtype)
        y = attention(
            *(q, k, v, queries, keys),
            causal=seq.causal and memory is None,
            window=self._window(seq.causal) if memory is None else None,
            scale=cfg.scale or K**-0.5,
            softcap=cfg.softcap,
            bias=bias if cfg.position == "alibi" and memory is None else None,
            aligned=aligned,
            dropout=cfg.dropout,
            key=key,
            implementation=None if cfg.implementation == "auto" else cfg.implementation,
        )
        y = rearrange(y, "b t h k -> b t (h k)")
        return linear(y, self.w_o[...], self.b_o[...] if cfg.bias_out else None), state

    def start(self, batch: int, capacity: int, dtype: jnp.dtype) -> Cache:
        _, G, K = self.heads
        window = self.cfg.window
        slots = min(window, capacity) if window else capacity
        return Cache.start(batch, slots, G, K, dtype, ring=slots < capacity)

    def _window(self, causal: bool) -> tuple[int, int] | None:
        W = self.cfg.window
        if not W:
            return None
        return (W - 1, W - 1) if causal else (W // 2, W // 2)

    def _project(self, x: Array, source: Array) -> tuple[Array, Array, Array]:
        cfg, (H, G, _) = self.cfg, self.heads
        bias = cfg.bias_qkv
        q = linear(x, self.w_q[...], self.b_q[...] if bias else None)
        k = linear(source, self.w_k[...], self.b_k[...] if bias else None)
        v = linear(source, self.w_v[...], self.b_v[...] if bias else None)
        if cfg.qk_norm == "full":
            q = rms_norm(q, self.norm_q[...], cfg.qk_norm_eps)
            k = rms_norm(k, self.norm_k[...], cfg.qk_norm_eps)
        if cfg.clip:
            q, k, v = (jnp.clip(y, -cfg.clip, cfg.clip) for y in (q, k, v))
        q = rearrange(q, "b t (h k) -> b t h k", h=H)
        k, v = (rearrange(y, "b s (g k) -> b s g k", g=G) for y in (k, v))
        if cfg.qk_norm == "head":
            q = rms_norm(q, self.norm_q[...], cfg.qk_norm_eps)
            k = rms_norm(k, self.norm_k[...], cfg.qk_norm_eps)
        return q, k, v

    @staticmethod
    def cuts(D: int, cfg: AttentionConfig) -> dict[str, int]:
        H, G, _ = cfg.shape(D)
        return {"attention.heads": H} | ({"attention.kv_heads": G} if G < H else {})

    @staticmethod
    def cost(D: int, cfg: AttentionConfig, place: Place) -> Bill:
        """Projections and core; `reference` executes the whole T x T."""
        H, G, K = cfg.shape(D)
        matrices = 2 * D * (H + G) * K
        biases = cfg.bias_qkv * (H + 2 * G) * K + cfg.bias_out * D
        norms = {"none": 0, "head": 2 * K, "full": (H + G) * K}[cfg.qk_norm]
        core = 4.0 * H * K * place.keys(cfg.window)
        executed = 4.0 * H * K * place.length if cfg.implementation == "reference" else core
        slots = min(place.length, cfg.window or place.length)
        return Bill(
            params=matrices + biases + norms,
            active=matrices + biases + norms,
            work={
                "projections": Work(2.0 * matrices, 2.0 * matrices),
                "core": Work(core, executed),
            },
            state_bytes=2 * G * K * slots * place.itemsize,
        )
