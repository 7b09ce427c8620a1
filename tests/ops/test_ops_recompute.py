"""Functions that keep only their inputs for the backward pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ops.recompute import recompute


def wave(x, scale, power):
    """A function whose derivative reads several intermediate values."""
    return jnp.sin(scale * jnp.exp(x)) ** power, jnp.cos(x)


def test_derivatives_of_both_modes_are_those_of_the_plain_function():
    function = functools.partial(recompute, static_argnums=2)(wave)
    x, scale = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), jnp.float32(1.5)
    tangents = jnp.cos(x), jnp.float32(0.5)
    for run in (
        lambda f: f(x, scale),
        lambda f: jax.vjp(f, x, scale)[1]((x, 2 * x)),
        lambda f: jax.jvp(f, (x, scale), tangents),
        lambda f: jax.vmap(f, (0, None))(x, scale),
    ):
        ours, plain = (
            run(lambda x, scale, f=f: f(x, scale, 3))
            for f in (jax.jit(function, static_argnums=2), wave)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, plain)


def test_the_backward_pass_keeps_inputs_alone_and_cpus_write_outputs_once():
    function = functools.partial(recompute, static_argnums=2)(wave)
    x, scale = jnp.ones((3, 4)), jnp.float32(1.5)
    _, pull = jax.vjp(lambda x, scale: function(x, scale, 3), x, scale)
    kept = sorted(leaf.shape for leaf in jax.tree.leaves(pull))
    assert kept == [(), (3, 4)]
    text = str(jax.make_jaxpr(lambda x: function(x, scale, 3))(x))
    assert text.count("optimization_barrier") == 1
