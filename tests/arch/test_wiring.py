"""Tests of what blocks and stacks add around their parts: Canon layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_contracts as contracts
import tiny

from arch import compute_cost
from arch.block import BlockConfig
from errors import ConfigError

CANON = {
    "block": BlockConfig(canon="ABCD", canon_width=3),
    "attention": tiny.attention(kv_heads=2, bias_qkv=True, qk_norm="head")["attention"],
}


def convolved(x: np.ndarray, w: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Computes h[t] + sum over s of w[W - 1 - s] h[t - s] within documents, token by token."""
    y = x.copy()
    for b, t in np.ndindex(segments.shape):
        for s in range(min(len(w), t + 1)):
            if (segments[b, t - s : t + 1] == segments[b, t]).all():
                y[b, t] += w[len(w) - 1 - s] * x[b, t - s]
    return y


@pytest.mark.parametrize("wiring", ["pre", pytest.param("parallel", marks=pytest.mark.slow)])
def test_canon_layers_convolve_the_inputs_of_branches_and_the_projections_inside(wiring):
    block_config = BlockConfig(wiring=wiring, canon="ABCD", canon_width=3)
    model = tiny.model(tiny.config(**(CANON | {"block": block_config})))
    block = jax.tree.map(lambda a: a[0], model.stack.blocks[0])
    ids, seq = contracts.contract_rows("causal")
    x = np.random.default_rng(3).normal(size=(*ids.shape, tiny.WIDTH)).astype(np.float32)

    def canon(point, inputs):
        convs = block.canon[point].convs
        arrays = [np.asarray(z) for z in inputs]
        return tuple(
            jnp.asarray(convolved(z, np.asarray(conv.w[...]), seq.segment_ids))
            for z, conv in zip(arrays, convs, strict=True)
        )

    (a,) = canon("A", (block.norm_mixer(x),))
    y = x + block.mixer.finish(canon("B", block.mixer.project(a)), a, seq)[0]
    (c,) = canon("C", (block.norm_channel(y if wiring == "pre" else x),))
    y = y + block.channel.finish(canon("D", block.channel.project(c)), c, seq)[0]
    actual = jax.jit(lambda block, x: block(x, seq)[0])(block, x)
    np.testing.assert_allclose(actual[seq.segment_ids != 0], y[seq.segment_ids != 0], atol=2e-5)


def test_canon_layers_keep_the_contracts_of_mixers():
    """The other contracts, and Canon layers inside mixers side by side, are slow tests."""
    contracts.test_packed_documents_are_as_if_alone_and_padding_changes_nothing("attention", CANON)
    contracts.test_prefill_and_steps_are_the_parallel_form("attention", CANON)
    contracts.test_cost_counts_every_leaf_and_every_multiply_add("attention", CANON)


def test_canon_layers_are_billed():
    """Each weight of a convolution is one multiply-add for each token."""
    changes = {"block": CANON["block"]}
    plain, canon = (compute_cost(tiny.config(**c), 6) for c in ({}, changes))
    width = 5 * tiny.WIDTH + 2 * 64  # Inputs of two branches; q, k, v; hidden layer and its gate.
    assert canon.parts["canon"] == canon.params - plain.params == 2 * 3 * width
    assert canon.terms["canon.conv"].model == canon.model_flops - plain.model_flops
    assert canon.model_flops - plain.model_flops == 2 * 2 * 3 * width
    state = tiny.model(tiny.config(**changes)).init_state(1, 6)
    size = sum(a.nbytes for a in jax.tree.leaves(state.blocks[0].canon.inputs))
    assert canon.state_bytes - plain.state_bytes == size == 4 * 2 * 2 * width


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": {"canon": "AE"}}, "block.canon 'AE' .* nearest valid value: 'A'"),
        ({"block": {"canon": "CAA"}}, "nearest valid value: 'AC'"),
        ({"layers": ("mamba2+mlp",), "block": {"canon": "AB"}}, "'AB' has B, which no layer has"),
        ({"layers": ("attention+none",), "block": {"canon": "CD"}}, "'CD' has CD, which no layer"),
        ({"layers": ("attention+moe",), "block": {"canon": "D"}}, "D inside mlp; leave it out"),
    ],
)
def test_canon_points_that_no_layer_has_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny.config(**(changes | {"block": BlockConfig(**changes["block"])})).check()
