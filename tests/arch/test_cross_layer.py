"""Tests of mixers that depend on their place in the stack, by the recurrences of their papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_contracts as contracts
import tiny
from test_wiring import layers_in_order

from arch import MIXERS
from arch.mixers.gated_deltanet import GatedDeltaNet, GatedDeltaNetConfig
from arch.mixers.hgrn2 import Hgrn2
from arch.part_cost import CostContext

# Layers 0, 2, 4 and 1, 3, of which one is before the repeats and none after.
MIXED = {
    "depth": 5,
    "first_layers": ("lightning+none",),
    "layers": ("hgrn2+none", "lightning+none"),
}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def memory_outputs(q, k, v, f, segments) -> np.ndarray:
    """Runs S = f S + k v^T and o = S^T q token by token; arrays are [T H .]."""
    o = np.zeros_like(v)
    for h in range(q.shape[1]):
        S = np.zeros((k.shape[2], v.shape[2]))
        for t in range(len(q)):
            S = S * (t == 0 or segments[t] == segments[t - 1])
            S = f[t, h][:, None] * S + np.outer(k[t, h], v[t, h])
            o[t, h] = S.T @ q[t, h]
    return o


def mixed(mixer, x, forget, segments) -> np.ndarray:
    """Computes the branch of a layer from its weights; `forget(raw or None)` gives keys' decays."""

    def heads(w):
        return (x @ np.asarray(w[...])).reshape(len(x), 2, -1)

    def silu(z):
        return z * sigmoid(z)

    gate = 1.0
    if isinstance(mixer, Hgrn2):
        f = forget(heads(mixer.w_forget))
        q, k, v = silu(heads(mixer.w_q)), 1 - f, heads(mixer.w_v)
    else:
        q, k, v = (silu(heads(w)) for w in (mixer.w_q, mixer.w_k, mixer.w_v))
        f, gate = forget(k), sigmoid(x @ np.asarray(mixer.w_gate[...]))
    y = memory_outputs(q, k, v, f, segments).reshape(len(x), -1)
    y = y / np.sqrt(np.mean(y**2, -1, keepdims=True) + 1e-6) * np.asarray(mixer.norm[...]) * gate
    return y @ np.asarray(mixer.w_out[...])


def test_bounds_and_slopes_are_those_of_the_layer():
    """HGRN-2's bounds rise over its layers; lightning's slopes follow MiniMax-01's table."""
    model = tiny.model(tiny.config(**MIXED))
    ids, seq = contracts.contract_rows("causal")
    segments = np.asarray(seq.segment_ids[contracts.PACKED])
    blocks = layers_in_order(model.stack)
    logits = np.stack([b.mixer.bound[...] for b in blocks if isinstance(b.mixer, Hgrn2)])
    shares = np.exp(logits) / np.exp(logits).sum(0)
    bounds = iter([0 * shares[0], shares[1]])  # Of two layers.
    x = np.asarray(model.embed(ids, seq, jnp.float32, None)[contracts.PACKED], float)
    for number, block in enumerate(blocks):
        if isinstance(block.mixer, Hgrn2):
            low = next(bounds).reshape(2, -1)
            forget = lambda raw, low=low: low + (1 - low) * sigmoid(raw)  # noqa: E731
        else:
            factor = 1 - number / (len(blocks) - 1 + 1e-5) + 1e-5
            decay = np.exp(-(2.0 ** np.array([-4.0, -8.0])) * factor)  # 2^(-8 (j + 1) / H)
            forget = lambda k, decay=decay: np.broadcast_to(decay[:, None], k.shape)  # noqa: E731
        normed = np.asarray(block.norm_mixer(jnp.asarray(x, jnp.float32)))
        x = x + mixed(block.mixer, normed, forget, segments)
    expected = np.asarray(model.stack.norm(jnp.asarray(x, jnp.float32)))
    actual = contracts.run_rows(model, "causal").hidden[contracts.PACKED]
    np.testing.assert_allclose(actual[segments != 0], expected[segments != 0], atol=5e-5)
    contracts.test_prefill_and_steps_are_the_parallel_form("hgrn2", MIXED)


def test_deltanet_is_gated_deltanet_without_decay_and_gate():
    """A decay of exp(-0) keeps the state, and a gate of which silu is 1 keeps the output."""
    cfg = {"heads": 2, "implementation": "reference"}
    gated = GatedDeltaNet(16, GatedDeltaNetConfig(**cfg), key=jax.random.key(0))
    settings = GatedDeltaNetConfig(decay=False, output_gate=False, **cfg)
    plain = GatedDeltaNet(16, settings, key=jax.random.key(0))
    assert {"w_dt", "b_dt", "log_a", "w_gate"}.isdisjoint(vars(plain))
    gated.log_a = type(gated.log_a)(jnp.full_like(gated.log_a[...], -200.0))
    # silu(1.2784645) = 1; the last channel of x is 1 and alone reaches the gate.
    gate = jnp.zeros_like(gated.w_gate[...]).at[-1].set(1.2784645427610738)
    gated.w_gate = type(gated.w_gate)(gate)
    x = (
        jnp.asarray(np.random.default_rng(0).normal(size=(1, 12, 16)), jnp.float32)
        .at[..., -1]
        .set(1)
    )
    seq = tiny.packed([5, 7], 12)
    np.testing.assert_allclose(plain(x, seq)[0], gated(x, seq)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "changes", "flops"),
    [
        *((name, {}, 7) for name in ("gated_deltanet", "kda", "gdn2")),
        ("gated_deltanet", {"decay": False}, 6),
        *(("delta_product", {"householder_steps": n}, 4 * n + 3) for n in (1, 2)),
        *((name, {}, 5) for name in ("gla", "hgrn2", "lightning")),
    ],
)
def test_matrix_memories_are_billed_by_one_rule(name, changes, flops):
    """Per number of the state: 1 to decay, 4 to correct or 2 to write, and 2 to read."""
    config = tiny.config().part_config(name)
    part = type(config)(**(vars(config) | changes))
    H, K, Kv = part.head_shape(tiny.WIDTH)
    terms = MIXERS[name].cost(tiny.WIDTH, part, CostContext(100)).terms
    assert terms["core"].model == flops * H * K * Kv
