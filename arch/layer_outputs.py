"""The vectors between the blocks of a stack, for probes; no loss reads them."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch.block import Block
from arch.cross_layer import LayerContext, next_layer
from arch.model import Model
from arch.sequence import SequenceInfo


def layer_outputs(
    model: Model,
    tokens: Int[Array, "B T"],
    seq: SequenceInfo,
    output_fn: Callable[[Float[Array, "B T D"]], Array],
) -> Array:
    """Applies `output_fn` to the vectors after each layer and returns the stack [layers + 2, ...].

    The first entry is that of the embedding, the last that of the final norm. For an
    encoder-decoder, the layers are those of the encoder. The vectors themselves are not kept.
    """
    stack = model.stack if model.encoder is None else model.encoder
    x = model.embed(tokens, seq, jnp.dtype(model.config.dtype), None)
    if stack.relative is not None:
        seq = dataclasses.replace(seq, attn_bias=stack.relative.make_bias(seq.causal))

    def run_blocks(
        carry: tuple[Array, LayerContext | None], blocks: Sequence[Block]
    ) -> tuple[tuple[Array, LayerContext | None], Array]:
        (x, layer_context), outputs = carry, []
        for block in blocks:
            x, _, _, layer_context = block(x, seq, layer_context=layer_context)
            layer_context = next_layer(layer_context)
            outputs.append(output_fn(x))
        return (x, layer_context), jnp.stack(outputs)

    parts, carry = [output_fn(x)[None]], (x, stack.make_layer_context(x))
    if len(stack.first):
        carry, outputs = run_blocks(carry, stack.first)
        parts.append(outputs)
    if len(stack.blocks):
        carry, outputs = jax.lax.scan(run_blocks, carry, list(stack.blocks))
        parts.append(outputs.reshape(-1, *outputs.shape[2:]))
    if len(stack.last):
        carry, outputs = run_blocks(carry, stack.last)
        parts.append(outputs)
    x, _ = carry
    parts.append(output_fn(x if stack.norm is None else stack.norm(x))[None])
    return jnp.concatenate(parts)
