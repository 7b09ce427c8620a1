"""Compares matrix memories (delta rules, gated linear attention) with goldens and each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden
from test_ops_recurrent import TOLERANCE, first_tokens, near

from ops.recurrent.delta_rule import delta_rule
from ops.recurrent.gla import gla, lightning_slopes

FILES = ("gla", "gdn2", "kda", "gated_delta_product")
CASES = {file: {case[0]: case[2] for case in golden(file)} for file in FILES}
# The hardest cases, to which all computations but that of the slow suite in float64 are limited.
HARD = ("packed_with_state", "strong_decay", "slow_decay", "n3_minus1_to_1_packed_with_state")
RUNS = [
    pytest.param(file, name, dtype, hard, marks=pytest.mark.slow if is_slow else [])
    for file in FILES
    for name, dtype, hard, is_slow in [
        ("xla", "float64", True, False),
        ("xla", "float64", False, True),
        ("xla", "float32", True, True),
        ("reference", "float64", True, True),
    ]
]
INPUTS = ("q", "k", "v", "g", "beta", "erase", "write", "s0")


def run(file: str, x: dict, reset, name: str | None = "xla", chunk_size: int = 8):
    """Runs an operation on a case's inputs."""
    options = {"reset": reset, "state": x.get("s0"), "chunk_size": chunk_size}
    if file == "gla":
        return gla(*(x[key] for key in "qkvg"), **options, implementation=name)
    beta, g = x.get("beta"), x["g"]
    gates = (x["erase"], x["write"]) if beta is None else (beta[..., None],) * 2
    g = g if g.ndim == 4 else g[..., None]
    return delta_rule(*(x[key] for key in "qkv"), g, *gates, **options, implementation=name)


@functools.cache
def golden_results(file: str, name: str, dtype: str, hard: bool) -> dict[str, tuple]:
    """Returns outputs and gradients of all cases or the hard ones, from one compiled program."""

    def run_case(tensors: dict):
        inputs = {key: jnp.asarray(tensors[key], dtype) for key in INPUTS if key in tensors}
        cots = tuple(
            jnp.asarray(tensors.get(f"cot_{key}", 0 * tensors[key]), dtype) for key in OUTPUTS
        )
        out, pull = jax.vjp(lambda x: run(file, x, first_tokens(tensors), name), inputs)
        return out, pull(cots)[0]

    with jax.enable_x64(dtype == "float64"):
        cases = {c: t for c, t in CASES[file].items() if c in HARD or not hard}
        return jax.device_get(jax.jit(lambda: {c: run_case(cases[c]) for c in cases})())


OUTPUTS = ("o", "s_last")


@pytest.mark.parametrize(("file", "name", "dtype", "hard"), RUNS)
def test_goldens(file, name, dtype, hard):
    for case, (out, grads) in golden_results(file, name, dtype, hard).items():
        tensors = CASES[file][case]
        for key, value in zip(OUTPUTS, out, strict=True):
            assert value.dtype == dtype
            near(value, tensors[key], TOLERANCE[dtype][0])
        for key, grad in grads.items():
            if f"grad_{key}" in tensors:
                near(grad, tensors[f"grad_{key}"], TOLERANCE[dtype][1])


def example(T: int = 13):
    rng, shape = np.random.default_rng(0), (2, T, 2, 4)
    q, k, v, g, beta = rng.normal(size=(5, *shape))
    k = k / np.linalg.norm(k, axis=-1, keepdims=True)
    return q, k, v, -np.abs(g), 1 / (1 + np.exp(-beta[..., :1]))


def test_a_gate_for_all_channels_is_one_for_each_with_equal_values():
    """GDN-2 with equal gates is KDA, and KDA with equal decays is Gated DeltaNet."""
    q, k, v, g, beta = example()
    each, one = np.broadcast_to(beta, q.shape), g[..., :1]
    with jax.enable_x64(True):
        for decay, same in ((g, g), (one, np.broadcast_to(one, g.shape)), (0 * one, 0 * g)):
            expected = delta_rule(q, k, v, decay, beta, beta, chunk_size=8)
            actual = delta_rule(q, k, v, same, each, each, chunk_size=8)
            for a, b in zip(actual, expected, strict=True):
                near(a, b, 1e-12)


def test_steps_of_beta_0_do_nothing_and_one_step_is_none():
    q, k, v, g, beta = example()
    with jax.enable_x64(True):
        expected = delta_rule(q, k, v, g, beta, beta, chunk_size=8)
        two = (np.stack([z, z[::-1]], axis=2) for z in (k, v))
        gates = np.stack([beta, 0 * beta], axis=2)
        for actual in (
            delta_rule(q, *(z[:, :, None] for z in (k, v)), g, *[beta[:, :, None]] * 2),
            delta_rule(q, *two, g, gates, gates, chunk_size=8),
        ):
            for a, b in zip(actual, expected, strict=True):
                near(a, b, 1e-12)


def test_an_erase_gate_of_0_is_gated_linear_attention():
    q, k, v, g, _ = example()
    with jax.enable_x64(True):
        zero, one = np.zeros_like(g[..., :1]), np.ones_like(g[..., :1])
        expected = gla(q, k, v, g, chunk_size=8)
        for a, b in zip(delta_rule(q, k, v, g, zero, one, chunk_size=8), expected, strict=True):
            near(a, b, 1e-12)


def test_slopes_of_lightning_attention_are_the_published_ones():
    for case, _, tensors in golden("gates"):
        for table, slopes in tensors.items():
            layers, heads = slopes.shape
            assert case.endswith(str(heads))
            actual = [lightning_slopes(n, layers, heads, table) for n in range(layers)]
            np.testing.assert_allclose(actual, slopes, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["gla", "delta_rule"])
def test_decays_of_e_to_minus_20_over_4096_tokens_are_exact(op):
    q, k, v, g, beta = example(4096)
    g = np.where(np.abs(g) > 1, -20.0, 1e-3 * g)  # Channels forget and keep in turn.

    def loss(q, k, v, g, beta, name):
        if op == "gla":
            o, state = gla(q, k, v, g, implementation=name)
        else:
            o, state = delta_rule(q, k, v, g, beta, beta, implementation=name)
        return jnp.sum(jnp.sin(o)) + jnp.sum(state), o

    run = jax.jit(jax.grad(loss, argnums=range(5), has_aux=True), static_argnums=5)
    with jax.enable_x64(True):
        expected = jax.device_get(run(q, k, v, g, beta, "reference"))
    narrow = [z.astype(np.float32) for z in (q, k, v, g, beta)]
    grads, o = run(*narrow, "xla")
    near(o, expected[1], 2e-5)
    for a, b in zip(grads, expected[0], strict=True):
        near(a, b, 1e-4)
