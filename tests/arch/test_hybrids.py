"""Tests what published hybrids of recurrent mixers and attention need of the parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from arch import Model, SequenceInfo, compute_cost
from arch.block import BlockConfig
from arch.mixers.gated_deltanet import GatedDeltaNet, GatedDeltaNetConfig
from errors import ConfigError


def test_heads_that_share_a_key_are_heads_with_equal_keys():
    """Repeats the weights of each key in a mixer without `key_heads`, whose outputs are equal."""
    G, H, K, D = 2, 4, 3, tiny.WIDTH
    sizes = {"heads": H, "key_dim": K, "value_dim": 5, "implementation": "reference"}
    x, seq = np.random.default_rng(0).normal(size=(2, 5, D)), SequenceInfo.unpacked(2, 5)

    def repeat(w):
        return jnp.repeat(w[...].reshape(-1, G, K), H // G, axis=1).reshape(-1, H * K)

    @jax.jit
    def run(x):
        shared = GatedDeltaNet(D, GatedDeltaNetConfig(key_heads=G, **sizes), key=jax.random.key(0))
        plain = GatedDeltaNet(D, GatedDeltaNetConfig(**sizes), key=jax.random.key(1))
        for name in ("w_v", "w_gate", "w_beta", "w_dt", "b_dt", "log_a", "norm", "w_out"):
            setattr(plain, name, getattr(shared, name))
        plain.w_q[...], plain.w_k[...] = repeat(shared.w_q), repeat(shared.w_k)
        for conv, conv_shared, repeats in zip(plain.convs, shared.convs, (1, 1, 0), strict=True):
            conv.w[...] = repeat(conv_shared.w) if repeats else conv_shared.w[...]
        return shared(x, seq)[0], plain(x, seq)[0]

    actual, expected = run(x.astype(np.float32))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_key_heads_must_divide_the_heads():
    with pytest.raises(
        ConfigError, match="key_heads 3 does not divide gated_deltanet.heads 8; .*4"
    ):
        GatedDeltaNetConfig(heads=8, key_heads=3)


BEHIND = {"behind": {"block": {"wiring": "branch_norm"}}, "wide": {"width": 24}}
PATTERN = ("gated_deltanet+mlp", "attention@behind+mlp@wide")


def test_a_variant_chooses_the_wiring_of_its_layers():
    """Layers of one kind have norms before their branches, the others behind them."""
    cfg = tiny.config(layers=PATTERN, variants=BEHIND, depth=4)
    model = jax.eval_shape(lambda: Model(cfg, key=jax.random.key(0)))
    before, behind = model.stack.blocks
    assert before.norm_post_mixer is before.norm_post_channel is None
    assert behind.norm_mixer is behind.norm_channel is None
    assert before.norm_mixer.scale.shape == behind.norm_post_channel.scale.shape
    assert before.channel.w_in.shape[-1] != behind.channel.w_in.shape[-1] == 24
    assert compute_cost(cfg, 8).params == sum(leaf.size for leaf in jax.tree.leaves(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"variants": BEHIND | {"wide": {"block": {"wiring": "post"}}}},
            "behind and wide .* differ",
        ),
        ({"variants": BEHIND | {"wide": {"block": {"dropout": 0.1}}}}, "wide.block .*only wiring"),
        ({"variants": BEHIND | {"wide": {"block": 3}}}, "wide.block is 3"),
        ({"variants": BEHIND | {"wide": {"block": {"wiring": "front"}}}}, "wide.block.wiring"),
        (
            {"first_layers": ("attention@behind+mlp",), "block": BlockConfig(skip_first_norm=True)},
            "needs block.wiring 'pre'",
        ),
    ],
)
def test_a_wiring_of_a_layer_that_cannot_be_is_refused(changes, message):
    settings = {"layers": PATTERN, "variants": BEHIND, "depth": 4} | changes
    with pytest.raises(ConfigError, match=message) as error:
        tiny.config(**settings)
    assert "\n" not in str(error.value)
