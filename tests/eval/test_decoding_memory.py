"""Decoding writes its state in place: a step copies neither a cache nor a recurrent state."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import tiny

from eval.generate import GREEDY, DecodingCarry, step_program
from ops.recurrent.delta_rule import delta_rule
from ops.recurrent.gla import gla
from ops.recurrent.selective_scan import selective_scan
from ops.recurrent.ssd import ssd

ROWS, SLOTS, DEPTH = 8, 512, 6


@pytest.mark.parametrize("mixer", ["attention", "mamba2"])
def test_a_step_needs_less_memory_than_its_state(mixer):
    """One layer at a time is read and written; the scan over layers copies no other."""
    cfg = tiny.config(mixer, depth=DEPTH)
    if mixer == "mamba2":
        cfg = dataclasses.replace(cfg, mamba2=dataclasses.replace(cfg.mamba2, state_size=128))
    model = tiny.model(cfg)
    hidden, positions = jnp.zeros((ROWS, 1, cfg.width)), jnp.zeros(ROWS, jnp.int32)
    state = jax.eval_shape(lambda: model.init_state(ROWS, SLOTS))
    # A step returns a cache that is no longer empty; such a cache is what later steps get.
    keys = jax.random.split(jax.random.key(0), ROWS)
    carry = jax.eval_shape(
        lambda s: step_program(model, DecodingCarry(hidden, positions, s), keys, 0, GREEDY)[0],
        state,
    )
    compiled = step_program.lower(model, carry, keys, jnp.int32(1), GREEDY).compile()
    state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(carry.state))
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= state_bytes
    assert memory.temp_size_in_bytes < 0.6 * state_bytes


def test_one_token_is_a_step_of_the_recurrence():
    """A chunked form would multiply matrices of one row, and copy the state for it."""
    x, v, h = jnp.ones((2, 1, 4, 8)), jnp.ones((2, 1, 4)), jnp.ones((2, 1, 1, 8))
    programs = {
        "ssd": lambda n: ssd(x, v, -jnp.ones(4), h, h, implementation=n),
        "delta_rule": lambda n: delta_rule(x, x, x, -x, x, x, implementation=n),
        "gla": lambda n: gla(x, x, x, -x, implementation=n),
        "selective_scan": lambda n: selective_scan(
            v, v, -jnp.ones((4, 8)), h[:, :, 0], h[:, :, 0], implementation=n
        ),
    }
    for name, program in programs.items():
        text = {n: str(jax.make_jaxpr(lambda n=n, f=program: f(n))()) for n in (None, "reference")}
        assert text[None] == text["reference"], name
        assert "dot_general" not in text[None]
