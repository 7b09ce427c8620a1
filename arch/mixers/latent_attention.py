"""Multi-head latent attention (MLA): one low-rank latent replaces keys and values.

DeepSeek-V2, arXiv:2405.04434, section 2.1. A token keeps a latent c of `kv_rank` numbers (r) and
one key of `rope_dim` numbers (dr) that all heads share and that alone is rotated:

    k = [w_k_up c, k_rope];   v = w_v_up c;   o = softmax(scale * q.k) v

The plain form makes keys and values, and is used on whole rows. The absorbed form attends with
the latent itself: w_k_up moves into the query and w_v_up behind the sum. Both are equal. While
decoding, the absorbed form runs on a cache of r + dr numbers per token.
"""

from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from arch.layers.linear import linear
from arch.layers.norms import rms_norm
from arch.layers.rope import RopeConfig, apply_rope
from arch.mixers.kv_cache import KVCache
from arch.part import Memory
from arch.part_cost import CostContext, PartCost, TermFlops
from arch.sequence import ALL_VIEWS, SequenceInfo, View
from arch.sharding import P, make_matrix, make_vector
from errors import ConfigError
from ops.attention.attention import TokenIndex, attention
from settings.types import NonNegativeFloat, NonNegativeInt, PositiveInt, config


class LatentSizes(NamedTuple):
    """The widths of latents and heads."""

    r: int  # Latent of keys and values.
    dn: int  # Keys of a head, without a position.
    dr: int  # Key that all heads share, with a position.
    dv: int  # Values of a head.


@config
class LatentAttentionConfig:
    """Multi-head latent attention."""

    scaled_fields: ClassVar[tuple[str, ...]] = ("heads", "kv_rank", "query_rank")
    knob_fields: ClassVar[tuple[str, ...]] = ("kv_rank",)

    heads: PositiveInt = 4  # Number of attention heads (H).
    # Width of the latent of keys and values (r), at most D; 0: 4 dn, or D if that is less.
    kv_rank: NonNegativeInt = 0
    query_rank: NonNegativeInt = 0  # Width of the latent of queries, at most D; 0: no latent.
    nope_dim: NonNegativeInt = 0  # Width of a head's keys without a position (dn); 0: D / H.
    rope_dim: NonNegativeInt = 0  # Width of the key that all heads share (dr); 0: dn / 2, even.
    value_dim: NonNegativeInt = 0  # Width of a head's values (dv); 0: as nope_dim.
    # Position encoding of the shared key and of the query's part for it.
    position_encoding: Literal["rope", "none"] = "rope"
    rope: RopeConfig = RopeConfig(style="interleaved")
    scale: NonNegativeFloat = 0.0  # Factor of the scores; 0: (dn + dr)^-1/2.
    norm_eps: NonNegativeFloat = 1e-6  # Number added to the mean square in the norms of latents.
    bias: bool = False  # Add a bias to the products with D: down and output projections.
    # Implementation of attention; auto: chosen by platform.
    implementation: Literal["auto", "reference", "xla", "cudnn", "splash", "ring"] = "auto"

    def check(self) -> None:
        """Checks that the shared key can be rotated.

        Raises:
            ConfigError: if its width is odd.
        """
        if self.position_encoding == "rope" and self.rope_dim % 2:
            raise ConfigError(
                f"latent_attention.rope_dim {self.rope_dim} must be even to be rotated; nearest "
                f"valid value: {self.rope_dim + 1}"
            )

    def sizes(self, D: int) -> LatentSizes:
        """Returns the widths in a model of width D.

        Raises:
            ConfigError: if a latent is wider than the model, or the heads do not divide the width.
        """
        for name in ("kv_rank", "query_rank"):
            if (rank := getattr(self, name)) > D:
                raise ConfigError(
                    f"latent_attention.{name} {rank} is above model.width {D}; nearest valid "
                    f"value: {D}"
                )
        if not self.nope_dim and D % self.heads:
            below = D // self.heads * self.heads
            raise ConfigError(
                f"model.width {D} is not a multiple of latent_attention.heads {self.heads}; "
                f"nearest valid values: {below or self.heads} or {below + self.heads}; or set "
                "latent_attention.nope_dim"
            )
        dn = self.nope_dim or D // self.heads
        dr = self.rope_dim or max(2, dn // 4 * 2)
        return LatentSizes(self.kv_rank or min(4 * dn, D), dn, dr, self.value_dim or dn)


class LatentAttention(nnx.Module):
    """A mixer (see `arch/part.py`) that computes multi-head latent attention."""

    def __init__(self, D: int, cfg: LatentAttentionConfig, *, key: Array, scale: float = 1.0):
        self.cfg, H = cfg, cfg.heads
        self.sizes = r, dn, dr, dv = cfg.sizes(D)
        keys, query_width = jax.random.split(key, 6), H * (dn + dr)
        if cfg.query_rank:
            self.w_q_down = make_matrix(keys[0], (D, cfg.query_rank), P("data", None))
            self.norm_q = make_vector(cfg.query_rank, 1.0)
        self.w_q = make_matrix(keys[1], (cfg.query_rank or D, query_width), P("data", "model"))
        self.w_kv_down = make_matrix(keys[2], (D, r + dr), P("data", None))
        self.norm_kv = make_vector(r, 1.0)
        self.w_k_up = make_matrix(keys[3], (r, H * dn), P("data", "model"))
        self.w_v_up = make_matrix(keys[4], (r, H * dv), P("data", "model"))
        self.w_o = make_matrix(keys[5], (H * dv, D), P("model", "data"), scale)
        if cfg.bias:
            self.b_kv_down, self.b_o = make_vector(r + dr, 0.0), make_vector(D, 0.0)
            if cfg.query_rank:
                self.b_q_down = make_vector(cfg.query_rank, 0.0)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        *,
        state: KVCache | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Attends in the plain form, or in the absorbed form to the tokens in a state."""
        q_nope, q_rope = self._queries(x, seq)
        latent, k_rope = self._latents(x, seq)
        queries, keys, is_plain = seq.query_index(), seq.key_index(), True
        if state is not None:
            is_plain, queries = state.is_empty, state.with_cached_offset(queries)
            latent, k_rope, keys, state = self._cached_latents(latent, k_rope, keys, state)
        latent, k_rope = latent.astype(x.dtype), k_rope.astype(x.dtype)
        w_k_up, w_v_up = self.w_k_up[...], self.w_v_up[...].astype(x.dtype)
        if is_plain:
            q, k, v = plain_form(q_nope, q_rope, latent, k_rope, w_k_up, w_v_up)
        else:
            q, k, v = absorbed_form(q_nope, q_rope, latent, k_rope, w_k_up)
        y = attention(
            *(q, k, v, queries, keys),
            causal=seq.causal,
            scale=self.cfg.scale or (self.sizes.dn + self.sizes.dr) ** -0.5,
            aligned=is_plain,
            implementation=self.cfg.implementation,
        )
        if not is_plain:
            w_v_up = w_v_up.reshape(self.sizes.r, self.cfg.heads, self.sizes.dv)
            y = jnp.einsum("bthr,rhv->bthv", y, w_v_up)
        y = rearrange(y, "b t h v -> b t (h v)")
        return linear(y, self.w_o[...], self.b_o[...] if self.cfg.bias else None), state

    def init_state(self, batch_size: int, max_length: int, dtype: jnp.dtype) -> KVCache:
        """Returns an empty cache of latents and shared keys, without values of its own."""
        width = self.sizes.r + self.sizes.dr
        return KVCache.create(
            *(batch_size, max_length, 1, width, dtype), is_ring=False, value_dim=0
        )

    def _queries(
        self, x: Float[Array, "B T D"], seq: SequenceInfo
    ) -> tuple[Float[Array, "B T H dn"], Float[Array, "B T H dr"]]:
        """Returns the parts of the queries without and with a position."""
        cfg, q = self.cfg, x
        if cfg.query_rank:
            q = linear(x, self.w_q_down[...], self.b_q_down[...] if cfg.bias else None)
            q = rms_norm(q, self.norm_q[...], cfg.norm_eps)
        q = rearrange(linear(q, self.w_q[...]), "b t (h k) -> b t h k", h=cfg.heads)
        q_nope, q_rope = jnp.split(q, [self.sizes.dn], axis=-1)
        return q_nope, self._rotate(q_rope, seq)

    def _latents(
        self, x: Float[Array, "B T D"], seq: SequenceInfo
    ) -> tuple[Float[Array, "B T r"], Float[Array, "B T dr"]]:
        """Returns the latents after their norm, and the shared keys."""
        cfg = self.cfg
        y = linear(x, self.w_kv_down[...], self.b_kv_down[...] if cfg.bias else None)
        latent, k_rope = jnp.split(y, [self.sizes.r], axis=-1)
        k_rope = self._rotate(k_rope[:, :, None], seq)[:, :, 0]
        return rms_norm(latent, self.norm_kv[...], cfg.norm_eps), k_rope

    def _cached_latents(
        self,
        latent: Float[Array, "B T r"],
        k_rope: Float[Array, "B T dr"],
        keys: TokenIndex,
        cache: KVCache,
    ) -> tuple[Float[Array, "B S r"], Float[Array, "B S dr"], TokenIndex, KVCache]:
        """Appends latents and shared keys to a cache, as one key without a value for each token."""
        k = jnp.concatenate([latent, k_rope], axis=-1)[:, :, None]
        k, _, keys, cache = cache.append(k, k[..., :0], cache.with_cached_offset(keys))
        latent, k_rope = jnp.split(k[:, :, 0], [self.sizes.r], axis=-1)
        return latent, k_rope, keys, cache

    def _rotate(self, x: Float[Array, "B T H dr"], seq: SequenceInfo) -> Float[Array, "B T H dr"]:
        is_rotated = self.cfg.position_encoding == "rope"
        return apply_rope(x, seq.positions, self.cfg.rope) if is_rotated else x

    @staticmethod
    def supported_views(cfg: LatentAttentionConfig) -> dict[View, str]:
        """Returns all views."""
        return ALL_VIEWS

    @staticmethod
    def tp_dims(D: int, cfg: LatentAttentionConfig) -> dict[str, int]:
        """Returns the dimensions that tensor parallelism splits."""
        cfg.sizes(D)
        return {"heads": cfg.heads}

    @staticmethod
    def cost(D: int, cfg: LatentAttentionConfig, context: CostContext) -> PartCost:
        """Returns the cost of the plain form, and the bytes of the cache of latents."""
        (r, dn, dr, dv), H = cfg.sizes(D), cfg.heads
        queries = H * (dn + dr) * (cfg.query_rank or D) + D * cfg.query_rank
        down, up, out = D * (r + dr), r * H * (dn + dv), H * dv * D
        biases = cfg.bias * (r + dr + D + cfg.query_rank)
        params = queries + down + up + out + r + cfg.query_rank + biases
        num_keys = context.mean_keys_per_query()
        executed = context.length if cfg.implementation == "reference" else num_keys
        per_key, projections = 2.0 * H * (dn + dr + dv), 2.0 * (queries + down + up + out)
        terms = {
            "projections": TermFlops(projections, projections),
            "core": TermFlops(per_key * num_keys, per_key * executed, batched=True),
        }
        return PartCost(params, params, terms, (r + dr) * context.length * context.itemsize)


def plain_form(
    q_nope: Float[Array, "B T H dn"],
    q_rope: Float[Array, "B T H dr"],
    latent: Float[Array, "B S r"],
    k_rope: Float[Array, "B S dr"],
    w_k_up: Float[Array, "r H*dn"],
    w_v_up: Float[Array, "r H*dv"],
) -> tuple[Float[Array, "B T H K"], Float[Array, "B S H K"], Float[Array, "B S H dv"]]:
    """Returns the queries, keys and values of each head, with K = dn + dr."""
    H = q_nope.shape[2]
    k, v = (rearrange(linear(latent, w), "b s (h k) -> b s h k", h=H) for w in (w_k_up, w_v_up))
    shared = jnp.broadcast_to(k_rope[:, :, None], (*k.shape[:3], k_rope.shape[-1]))
    return jnp.concatenate([q_nope, q_rope], -1), jnp.concatenate([k, shared], -1), v


def absorbed_form(
    q_nope: Float[Array, "B T H dn"],
    q_rope: Float[Array, "B T H dr"],
    latent: Float[Array, "B S r"],
    k_rope: Float[Array, "B S dr"],
    w_k_up: Float[Array, "r H*dn"],
) -> tuple[Float[Array, "B T H R"], Float[Array, "B S 1 R"], Float[Array, "B S 1 r"]]:
    """Returns queries for the latents, and these as the one key and value of all heads.

    R is r + dr. The output of attention is a sum of latents, which w_v_up makes a value.
    """
    (_, _, H, dn), r = q_nope.shape, latent.shape[-1]
    w = w_k_up.astype(q_nope.dtype).reshape(r, H, dn)
    q = jnp.concatenate([jnp.einsum("bthn,rhn->bthr", q_nope, w), q_rope], axis=-1)
    k = jnp.concatenate([latent, k_rope], axis=-1)
    return q, k[:, :, None], latent[:, :, None]
