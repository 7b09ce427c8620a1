"""Tests of the vectors between blocks, which equal those of the blocks run one by one."""

import jax
import numpy as np
import pytest
import tiny

from arch import SequenceInfo
from arch.config import EncoderConfig
from arch.layer_outputs import layer_outputs
from arch.layers.positions import PositionsConfig
from arch.mixers.attention import AttentionConfig

T = 5
STACKS = {
    "one": {"layers": ("attention+mlp",), "depth": 1},
    "all parts": {
        "layers": ("attention+mlp", "gated_conv+none"),
        "first_layers": ("lstm+mlp",),
        "depth": 6,
        "final_norm": False,
    },
    "encoder": {
        "attention": AttentionConfig(position_encoding="relative"),
        "positions": PositionsConfig(num_buckets=8, max_distance=8),
        "encoder": EncoderConfig(depth=2),
    },
}


@pytest.mark.parametrize("name", STACKS)
def test_layers_are_those_of_the_stack(name):
    model = tiny.model(tiny.config(**STACKS[name]))
    ids = tiny.tokens(2, T)
    seq = SequenceInfo.unpacked(2, T, causal=model.encoder is None)
    outputs = np.asarray(
        jax.jit(lambda m, t, s: layer_outputs(m, t, s, lambda x: x))(model, ids, seq)
    )
    stack = model.stack if model.encoder is None else model.encoder
    last = model(ids, seq)[0] if model.encoder is None else model.encode(ids, seq)[0]
    np.testing.assert_allclose(outputs[-1], last, atol=1e-5)
    if stack.relative is None:
        x = model.embed.table[...][ids]
        np.testing.assert_allclose(outputs[0], x, atol=1e-6)
        repeats = [
            jax.tree.map(lambda a, i=i: a[i], b) for i in range(stack.repeats) for b in stack.blocks
        ]
        blocks = [*stack.first, *repeats, *stack.last]
        assert len(outputs) == len(blocks) + 2 == model.config.depth + 2
        for layer, block in enumerate(blocks, start=1):
            x = block(x, seq)[0]
            np.testing.assert_allclose(outputs[layer], x, atol=1e-5)
