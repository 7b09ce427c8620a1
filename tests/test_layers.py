"""Vectors between blocks, against the blocks run one by one."""

import jax
import numpy as np
import pytest
import tiny

from arch import Sequence
from arch.attention import AttentionConfig
from arch.config import EncoderConfig
from arch.layers import by_layer
from arch.positions import PositionsConfig

T = 5
STACKS = {
    "one": {"layers": ("attention+mlp",), "depth": 1},
    "all parts": {
        "layers": ("attention+mlp", "gated_conv+none"),
        "first": ("lstm+mlp",),
        "depth": 6,
        "final_norm": False,
    },
    "encoder": {
        "attention": AttentionConfig(position="relative"),
        "positions": PositionsConfig(buckets=8, distance=8),
        "encoder": EncoderConfig(depth=2),
    },
}


@pytest.mark.parametrize("name", STACKS)
def test_layers_are_those_of_the_stack(name):
    made = tiny.model(tiny.config(**STACKS[name]))
    ids = tiny.tokens(2, T)
    seq = Sequence.plain(2, T, causal=made.encoder is None)
    found = np.asarray(jax.jit(lambda m, t, s: by_layer(m, t, s, lambda x: x))(made, ids, seq))
    stack = made.stack if made.encoder is None else made.encoder
    last = made(ids, seq)[0] if made.encoder is None else made.encode(ids, seq)[0]
    np.testing.assert_allclose(found[-1], last, atol=1e-5)
    if stack.relative is None:
        x = made.embed.table[...][ids]
        np.testing.assert_allclose(found[0], x, atol=1e-6)
        repeats = [
            jax.tree.map(lambda a, i=i: a[i], b) for i in range(stack.repeats) for b in stack.blocks
        ]
        blocks = [*stack.first, *repeats, *stack.last]
        assert len(found) == len(blocks) + 2 == made.config.depth + 2
        for layer, block in enumerate(blocks, start=1):
            x = block(x, seq)[0]
            np.testing.assert_allclose(found[layer], x, atol=1e-5)
