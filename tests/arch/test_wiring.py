"""Tests of what blocks and stacks add around their parts: Canon layers and value residuals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_contracts as contracts
import tiny

from arch import Model, compute_cost
from arch.block import BlockConfig
from arch.config import EncoderConfig
from arch.layer_outputs import layer_outputs
from arch.mixers.attention import Attention, AttentionConfig
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
    y = x + block.mixer.finish(canon("B", block.mixer.project(a)), a, seq, None)[0]
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
        tiny.config(**(changes | {"block": BlockConfig(**changes["block"])}))


# A convolution, two repeats of attention and a convolution, and one more attention.
VALUE_RESIDUAL = {
    "depth": 6,
    "first_layers": ("gated_conv+none",),
    "layers": ("attention+none", "gated_conv+none"),
    "attention": tiny.attention(kv_heads=2, value_residual=True)["attention"],
}


def layers_in_order(stack):
    """Returns the blocks of a stack, one for each layer."""
    repeats = [
        jax.tree.map(lambda a, r=r: a[r], block)
        for r in range(stack.repeats)
        for block in stack.blocks
    ]
    return [*stack.first, *repeats, *stack.last]


def test_later_layers_mix_in_the_values_of_the_first_attention():
    model = tiny.model(tiny.config(**VALUE_RESIDUAL))
    ids, seq = contracts.contract_rows("causal")
    x, first_values, count = model.embed(ids, seq, jnp.float32, None), None, 0
    for block in layers_in_order(model.stack):
        normed = block.norm_mixer(x)
        if not isinstance(block.mixer, Attention):
            x = x + block.mixer(normed, seq)[0]
            continue
        q, k, v = block.mixer.project(normed)
        if first_values is None:
            first_values = v
        else:
            weights = block.mixer.mix_values[...]
            v = weights[0] * first_values + weights[1] * v
        count += 1
        x = x + block.mixer.finish((q, k, v), normed, seq, None)[0]
    assert count == 3
    expected = model.stack.norm(x)
    np.testing.assert_allclose(contracts.run_rows(model, "causal").hidden, expected, atol=2e-5)
    outputs = jax.jit(lambda m: layer_outputs(m, ids, seq, lambda x: x))(model)
    np.testing.assert_allclose(outputs[-1], expected, atol=2e-5)


def test_value_residuals_keep_the_contracts_of_mixers():
    contracts.test_packed_documents_are_as_if_alone_and_padding_changes_nothing(
        "attention", VALUE_RESIDUAL
    )
    contracts.test_prefill_and_steps_are_the_parallel_form("attention", VALUE_RESIDUAL)
    cfg = tiny.config(**VALUE_RESIDUAL)
    shapes = jax.eval_shape(lambda: Model(cfg, key=jax.random.key(0)))
    assert compute_cost(cfg, 6).params == sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "none"])
def test_value_residuals_on_a_mesh_are_those_of_one_device(remat):
    """Layers run one after another on one device; the mesh scans over the repeats."""
    cfg = tiny.config(**VALUE_RESIDUAL)
    contracts.check_mesh(cfg, {"context": 2, "data": 2, "model": 2}, remat=remat)


def test_a_value_residual_of_cross_attention_is_refused():
    attention = AttentionConfig(position_encoding="none", value_residual=True)
    with pytest.raises(ConfigError, match="cross_attention must have .* value_residual False"):
        tiny.config(encoder=EncoderConfig(depth=1), cross_attention=attention)
