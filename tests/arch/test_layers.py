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
    stack = model.stack if model.encoder is None else model.encoder
    outputs, last, expected = jax.device_get(_run_layers(model, ids, seq))
    np.testing.assert_allclose(outputs[-1], last, atol=1e-5)
    if stack.relative is None:
        assert len(outputs) == len(expected) + 1 == model.config.depth + 2
        for layer, x in enumerate(expected):
            np.testing.assert_allclose(outputs[layer], x, atol=1e-5)


@jax.jit
def _run_layers(model, ids, seq):
    """Returns the outputs of all layers, the last one, and those of the blocks one by one."""
    outputs = layer_outputs(model, ids, seq, lambda x: x)
    if model.encoder is not None:
        return outputs, model.encode(ids, seq)[0], []
    stack, expected = model.stack, [model.embed.table[...][ids]]
    repeats = [
        jax.tree.map(lambda a, i=i: a[i], b) for i in range(stack.repeats) for b in stack.blocks
    ]
    for block in (*stack.first, *repeats, *stack.last):
        expected.append(block(expected[-1], seq)[0])
    return outputs, model(ids, seq)[0], expected
