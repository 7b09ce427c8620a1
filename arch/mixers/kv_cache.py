"""Attention's decoding state: keys, values and the tokens that they belong to.

A full cache has one slot per token. The cache of a window is a ring of as many slots as the window
is wide. Each slot records its token's `order`, from which the mask is computed, so the order of the
slots does not matter.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ops.attention.attention import TokenIndex

DATA_FIELDS = ["k", "v", "token_index", "next_slot", "num_tokens"]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=DATA_FIELDS, meta_fields=["is_ring", "is_empty"]
)
@dataclasses.dataclass(frozen=True)
class KVCache:
    """A cache of keys and values for self-attention, as a pytree."""

    k: Float[Array, "B S G K"]
    v: Float[Array, "B S G Kv"]
    token_index: TokenIndex  # The token in each slot; segment 0 marks an empty slot.
    next_slot: Int[Array, ""]  # Slot of the next token, which a ring takes modulo its size.
    num_tokens: Int[Array, " B"]  # Tokens written per row, without padding.
    is_ring: bool  # Whether new tokens overwrite the oldest ones.
    is_empty: bool  # Whether nothing was written yet, so new tokens see only each other.

    @classmethod
    def create(
        cls,
        batch_size: int,
        num_slots: int,
        num_heads: int,
        head_dim: int,
        dtype: jnp.dtype,
        *,
        is_ring: bool,
    ) -> "KVCache":
        """Returns an empty cache."""
        zeros = jnp.zeros((batch_size, num_slots), jnp.int32)
        kv = jnp.zeros((batch_size, num_slots, num_heads, head_dim), dtype)
        tokens = TokenIndex(zeros, zeros, zeros, jnp.zeros((batch_size, num_slots), bool))
        start = jnp.zeros((), jnp.int32), jnp.zeros((batch_size,), jnp.int32)
        return cls(kv, kv, tokens, *start, is_ring=is_ring, is_empty=True)

    def check_room(self, num_tokens: int) -> None:
        """Refuses more tokens than the cache has slots left, where their number is known.

        Inside a program it is not; there `append` makes every later output NaN.

        Raises:
            ValueError: if the tokens do not fit.
        """
        S = self.k.shape[-3]
        if self.is_ring or isinstance(self.next_slot, jax.core.Tracer):
            return
        num_used = int(jnp.max(self.next_slot))
        if num_used + num_tokens > S:
            raise ValueError(
                f"{num_tokens} tokens after {num_used} do not fit a state for {S}; give init_state "
                "a larger max_length"
            )

    def with_cached_offset(self, token_index: TokenIndex) -> TokenIndex:
        """Returns new tokens whose `order` continues after the cached ones."""
        return token_index._replace(order=token_index.order + self.num_tokens[:, None])

    def append(
        self, k: Float[Array, "B T G K"], v: Float[Array, "B T G Kv"], token_index: TokenIndex
    ) -> tuple[Array, Array, TokenIndex, "KVCache"]:
        """Writes new tokens; returns keys, values and tokens to attend to, and the new cache."""
        if token_index.is_prefix is None:
            token_index = token_index._replace(
                is_prefix=jnp.zeros_like(token_index.segment_ids, bool)
            )
        new = (k.astype(self.k.dtype), v.astype(self.v.dtype), token_index)
        old = (self.k, self.v, self.token_index)
        cache = self._write(new)
        if self.is_empty:
            return *new, cache
        # In a ring, a new token may overwrite one that another new token still sees.
        if self.is_ring and k.shape[1] > 1:
            joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), old, new)
            return *joined, cache
        return cache.k, cache.v, cache.token_index, cache

    def _write(self, new: tuple[Array, Array, TokenIndex]) -> "KVCache":
        T, S = new[0].shape[1], self.k.shape[1]
        if T > S and not self.is_ring:
            raise ValueError(
                f"{T} tokens do not fit a cache of {S}; give init_state a larger max_length"
            )
        num_written = min(T, S)
        if not self.is_ring:
            # A program cannot raise; tokens beyond the last slot make every later output NaN.
            fits = self.next_slot + T <= S
            k, v = (jnp.where(fits, x, jnp.nan) for x in new[:2])
            new = (k, v, new[2])

        def write(old: Array, new: Array) -> Array:
            if not self.is_ring:
                return jax.lax.dynamic_update_slice_in_dim(old, new, self.next_slot, axis=1)
            slots = (self.next_slot + T - num_written + jnp.arange(num_written)) % S
            return old.at[:, slots].set(new[:, T - num_written :])

        k, v, tokens = jax.tree.map(write, (self.k, self.v, self.token_index), new)
        num_tokens = self.num_tokens + jnp.sum(new[2].segment_ids != 0, axis=1, dtype=jnp.int32)
        return KVCache(
            k, v, tokens, self.next_slot + T, num_tokens, is_ring=self.is_ring, is_empty=False
        )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["k", "v", "token_index"],
    meta_fields=["is_filled"],
)
@dataclasses.dataclass(frozen=True)
class CrossAttentionCache:
    """The keys and values of an encoder's output, which stay the same during decoding."""

    k: Float[Array, "B S G K"]
    v: Float[Array, "B S G K"]
    token_index: TokenIndex
    is_filled: bool  # Whether the source was encoded.

    @classmethod
    def create(
        cls, batch_size: int, num_slots: int, num_heads: int, head_dim: int, dtype: jnp.dtype
    ) -> "CrossAttentionCache":
        """Returns a cache that is not filled."""
        zeros = jnp.zeros((batch_size, num_slots), jnp.int32)
        kv = jnp.zeros((batch_size, num_slots, num_heads, head_dim), dtype)
        return cls(kv, kv, TokenIndex(zeros, zeros, zeros, None), is_filled=False)
