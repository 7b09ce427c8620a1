"""What attention keeps while decoding: keys, values and who they belong to.

A full cache holds `capacity` tokens. A windowed one is a ring of as many slots as the window: which
token a slot holds is data, so the mask finds its way by `order` alone.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ops.attention import Tokens

DATA = ["k", "v", "tokens", "slot", "count"]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=DATA, meta_fields=["ring", "empty"]
)
@dataclasses.dataclass(frozen=True)
class Cache:
    """`slot` is where the next token goes, `count` how many tokens a row has seen (padding not)."""

    k: Float[Array, "B S G K"]
    v: Float[Array, "B S G E"]
    tokens: Tokens  # of the slots; segment 0: nothing there
    slot: Int[Array, ""]
    count: Int[Array, " B"]
    ring: bool  # the slots are a window's, written round and round
    empty: bool  # known to hold nothing yet: the first tokens only see each other

    @classmethod
    def start(
        cls, batch: int, slots: int, heads: int, width: int, dtype: jnp.dtype, *, ring: bool
    ) -> "Cache":
        zeros = jnp.zeros((batch, slots), jnp.int32)
        kv = jnp.zeros((batch, slots, heads, width), dtype)
        tokens = Tokens(zeros, zeros, zeros, jnp.zeros((batch, slots), bool))
        start = jnp.zeros((), jnp.int32), jnp.zeros((batch,), jnp.int32)
        return cls(kv, kv, tokens, *start, ring=ring, empty=True)

    def continued(self, tokens: Tokens) -> Tokens:
        """New tokens, numbered after those the row has seen."""
        return tokens._replace(order=tokens.order + self.count[:, None])

    def extend(
        self, k: Float[Array, "B T G K"], v: Float[Array, "B T G E"], tokens: Tokens
    ) -> tuple[Array, Array, Tokens, "Cache"]:
        """Write new keys; returns the keys, values and tokens to look at, and the cache after."""
        if tokens.prefix is None:
            tokens = tokens._replace(prefix=jnp.zeros_like(tokens.segments, bool))
        new = (k.astype(self.k.dtype), v.astype(self.v.dtype), tokens)
        old = (self.k, self.v, self.tokens)
        after = self._written(new)
        if self.empty:
            return *new, after
        if self.ring and k.shape[1] > 1:  # a new token may take the slot of one that another sees
            joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), old, new)
            return *joined, after
        return after.k, after.v, after.tokens, after

    def _written(self, new: tuple[Array, Array, Tokens]) -> "Cache":
        T, S = new[0].shape[1], self.k.shape[1]
        if T > S and not self.ring:
            raise ValueError(f"{T} tokens do not fit a cache of {S}; start it with more capacity")
        last = min(T, S)

        def put(old: Array, fresh: Array) -> Array:
            if not self.ring:
                return jax.lax.dynamic_update_slice_in_dim(old, fresh, self.slot, axis=1)
            slots = (self.slot + T - last + jnp.arange(last)) % S
            return old.at[:, slots].set(fresh[:, T - last :])

        k, v, tokens = jax.tree.map(put, (self.k, self.v, self.tokens), new)
        count = self.count + jnp.sum(new[2].segments != 0, axis=1, dtype=jnp.int32)
        return Cache(k, v, tokens, self.slot + T, count, ring=self.ring, empty=False)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["k", "v", "tokens"], meta_fields=["filled"]
)
@dataclasses.dataclass(frozen=True)
class Source:
    """Keys and values of an encoder's output, which stay the same while decoding."""

    k: Float[Array, "B S G K"]
    v: Float[Array, "B S G K"]
    tokens: Tokens
    filled: bool  # the source has been seen

    @classmethod
    def start(cls, batch: int, slots: int, heads: int, width: int, dtype: jnp.dtype) -> "Source":
        zeros = jnp.zeros((batch, slots), jnp.int32)
        kv = jnp.zeros((batch, slots, heads, width), dtype)
        return cls(kv, kv, Tokens(zeros, zeros, zeros, None), filled=False)
