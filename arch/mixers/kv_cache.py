"""Attention's decoding state: keys, values and the tokens that they belong to.

A full cache has one slot per token. The cache of a window is a ring of as many slots as the window
is wide. With a forget gate, a slot also keeps how much its token was forgotten. Each slot records
its token's `order`, from which the mask is computed, so the order of the slots does not matter.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ops.attention.attention import TokenIndex

DATA_FIELDS = ["k", "v", "token_index", "next_slot", "num_tokens", "forgotten"]


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
    # Sum of the log forget gates of the tokens after each slot's token, per head.
    forgotten: Float[Array, "B S H"] | None
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
        value_dim: int | None = None,
        decay_heads: int = 0,
    ) -> "KVCache":
        """Returns an empty cache; values are as wide as keys, except with a `value_dim`.

        `decay_heads` is the number of heads of the forget gate; 0: there is none.
        """
        zeros = jnp.zeros((batch_size, num_slots), jnp.int32)
        k, v = (
            jnp.zeros((batch_size, num_slots, num_heads, width), dtype)
            for width in (head_dim, head_dim if value_dim is None else value_dim)
        )
        tokens = TokenIndex(zeros, zeros, zeros, jnp.zeros((batch_size, num_slots), bool))
        start = jnp.zeros((), jnp.int32), jnp.zeros((batch_size,), jnp.int32)
        wide = jnp.promote_types(dtype, jnp.float32)
        shape = (batch_size, num_slots, decay_heads)
        forgotten = jnp.zeros(shape, wide) if decay_heads else None
        return cls(k, v, tokens, *start, forgotten, is_ring=is_ring, is_empty=True)

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
        """Writes new tokens; returns keys, values and tokens to attend to, and the new cache.

        The log decay of new tokens, if any, is cumulative from the first of them.
        """
        if token_index.is_prefix is None:
            token_index = token_index._replace(
                is_prefix=jnp.zeros_like(token_index.segment_ids, bool)
            )
        new = (k.astype(self.k.dtype), v.astype(self.v.dtype), token_index)
        old = (self.k, self.v, self._decayed_index())
        cache, tokens = self._write(old, new)
        if self.is_empty:
            return *new, cache
        # In a ring, a new token may overwrite one that another new token still sees.
        if self.is_ring and k.shape[1] > 1:
            joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), old, new)
            return *joined, cache
        return cache.k, cache.v, tokens, cache

    def _decayed_index(self) -> TokenIndex:
        """Returns the cached tokens, with a log decay that is 0 after the last of them."""
        if self.forgotten is None:
            return self.token_index
        zeros = jnp.zeros_like(self.forgotten)
        decay = jnp.stack([-self.forgotten, zeros], axis=-1)
        return self.token_index._replace(log_decay=decay)

    def _write(
        self, old: tuple[Array, Array, TokenIndex], new: tuple[Array, Array, TokenIndex]
    ) -> tuple["KVCache", TokenIndex]:
        """Returns the new cache, and its tokens with their log decay before it is moved to now.

        Raises:
            ValueError: if the tokens do not fit.
        """
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

        k, v, tokens = jax.tree.map(write, old, new)
        forgotten = None
        if tokens.log_decay is not None and new[2].log_decay is not None:
            last = new[2].log_decay[:, -1:] if T else 0.0
            forgotten = jnp.sum(last - tokens.log_decay, axis=-1)
        bare = tokens._replace(log_decay=None)
        num_tokens = self.num_tokens + jnp.sum(new[2].segment_ids != 0, axis=1, dtype=jnp.int32)
        start = self.next_slot + T, num_tokens
        cache = KVCache(k, v, bare, *start, forgotten, is_ring=self.is_ring, is_empty=False)
        return cache, tokens


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
