"""What each layer makes of its rows: the vectors between blocks, for probes; no loss reads them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch.model import Model
from arch.sequence import Sequence


def by_layer(
    model: Model,
    tokens: Int[Array, "B T"],
    seq: Sequence,
    read: Callable[[Float[Array, "B T D"]], Array],
) -> Array:
    """`read` of the embedding, of what every block leaves and of the last norm: [layers + 2, ...].

    Of an encoder-decoder, of its encoder. Only what `read` gives is kept.
    """
    stack = model.stack if model.encoder is None else model.encoder
    x = model.embed(tokens, seq, jnp.dtype(model.config.dtype), None)
    if stack.relative is not None:
        seq = dataclasses.replace(seq, bias=stack.relative.bias(seq.causal))

    def through(x: Array, blocks: Any) -> tuple[Array, Array]:
        seen = []
        for block in blocks:
            x, _, _ = block(x, seq)
            seen.append(read(x))
        return x, jnp.stack(seen)

    parts = [read(x)[None]]
    if len(stack.first):
        x, seen = through(x, stack.first)
        parts.append(seen)
    if len(stack.blocks):
        x, seen = jax.lax.scan(through, x, list(stack.blocks))
        parts.append(seen.reshape(-1, *seen.shape[2:]))
    if len(stack.last):
        x, seen = through(x, stack.last)
        parts.append(seen)
    parts.append(read(x if stack.norm is None else stack.norm(x))[None])
    return jnp.concatenate(parts)
