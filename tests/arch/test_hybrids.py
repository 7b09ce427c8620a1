"""Tests what published hybrids of recurrent mixers and attention need of the parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from arch import SequenceInfo
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
