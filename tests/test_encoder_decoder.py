"""Encoder and decoder: what one sees of the other, decoding from cached keys, T5's positions."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from golden import golden
from test_contracts import multiply_adds

from arch import Model, Sequence, cost
from arch.attention import AttentionConfig
from arch.block import BlockConfig
from arch.config import EncoderConfig
from arch.directions import DirectionsConfig
from arch.positions import PositionsConfig, bucket
from errors import ConfigError

RELATIVE = {
    "attention": AttentionConfig(position="relative"),
    "positions": PositionsConfig(buckets=8, distance=8),
}
ENCODERS = {
    "relative": RELATIVE | {"encoder": EncoderConfig(depth=2)},
    "mamba": {
        "encoder": EncoderConfig(depth=3, layers=("mamba2+mlp",), first=("attention+none",)),
        "directions": DirectionsConfig(weights="shared"),
        "block": BlockConfig(wiring="sandwich"),
    },
}
EVERY = pytest.mark.parametrize("name", ["relative", pytest.param("mamba", marks=pytest.mark.slow)])
S, T = 7, 6


def rows(batch=2):
    """Sources of 5 and 7 tokens, targets of 6."""
    source = tiny.tokens(batch, S, seed=5)
    segments = (jnp.arange(S) < jnp.array([5, 7])[:batch, None]).astype(jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(S), (batch, S))
    return tiny.tokens(batch, T), (source, Sequence(positions, segments, None, causal=False))


@EVERY
def test_decoder_sees_all_of_its_source_and_none_of_its_future(name):
    made = tiny.model(tiny.config(**ENCODERS[name]))
    tokens, (source, there) = rows()
    here = Sequence.plain(2, T)

    def hidden(embedded, to):
        """Of token `to`, as a function of what is added to both tables' vectors."""
        model = jax.tree.map(lambda a: a, made)
        model.embed.table[...] = made.embed.table[...] + embedded
        return jnp.sum(jnp.sin(model(tokens, here, source=(source, there))[0][0, to]))

    flow = jax.jit(jax.vmap(jax.grad(hidden), (None, 0)))(
        jnp.zeros_like(made.embed.table[...]), jnp.arange(T)
    )
    felt = np.abs(np.asarray(flow)).sum(-1) > 0  # [to, vocabulary]
    for to in range(T):
        seen = {*np.asarray(source[0, :5]).tolist(), *np.asarray(tokens[0, : to + 1]).tolist()}
        assert set(np.flatnonzero(felt[to])) == seen


@EVERY
def test_padding_of_the_source_changes_nothing_and_steps_are_the_parallel_form(name):
    made = tiny.model(tiny.config(**ENCODERS[name]))
    tokens, (source, there) = rows()
    run = jax.jit(lambda m, t, s, state, source: m(t, s, state=state, source=source))
    whole, _, none = run(made, tokens, Sequence.plain(2, T), None, (source, there))
    assert none is None
    other = run(made, tokens, Sequence.plain(2, T), None, (source.at[0, 5:].set(3), there))[0]
    np.testing.assert_array_equal(whole, other)
    state, parts, at = made.start(2, T, source=S), [], 0
    for size in (3, 1, 2):
        seq = Sequence.plain(2, size, start=at)
        given = None if at else (source, there)
        hidden, _, state = run(made, tokens[:, at : at + size], seq, state, given)
        parts.append(hidden)
        at += size
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=2e-5)


@EVERY
def test_cost_is_that_of_what_runs(name):
    cfg = tiny.slow(tiny.config(**ENCODERS[name], scan=False))
    cfg = dataclasses.replace(cfg, cross=dataclasses.replace(cfg.cross, implementation="reference"))
    made = jax.eval_shape(lambda: Model(cfg, key=jax.random.key(0)))
    bill = cost(cfg, T, source=S)
    assert bill.params == sum(leaf.size for leaf in jax.tree.leaves(made))
    tokens, source = rows()
    one = jax.tree.map(lambda a: a[:1], (tokens, source))
    jaxpr = jax.make_jaxpr(lambda m: m.logits(m(one[0], Sequence.plain(1, T), source=one[1])[0]))
    matrix = sum(work.executed for work in bill.terms.values() if not work.elementwise)
    assert multiply_adds(jaxpr(made).jaxpr) == pytest.approx(T * matrix)


@EVERY
def test_scanned_is_unrolled_and_every_parameter_gets_a_gradient(name):
    made = tiny.model(tiny.config(**ENCODERS[name]))
    tokens, source = rows()

    def loss(made):
        hidden = made(tokens, Sequence.plain(2, T), source=source)[0]
        return jnp.sum(jnp.sin(made.logits(hidden)[..., : tiny.VOCAB]))

    both = jax.jit(jax.value_and_grad(loss))
    value, grads = both(made)
    other, others = both(tiny.replaced(made, scan=False, remat="full"))
    np.testing.assert_allclose(value, other, rtol=1e-5)
    pairs = zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(others), strict=True)
    for (path, a), b in pairs:
        np.testing.assert_allclose(a, b, atol=1e-4)
        assert (a != 0).any(), path


def test_t5_buckets_are_the_published_ones():
    found = 0
    for case, options, t in golden("position_bias"):
        if "bucket" in t:
            found += 1
            got = bucket(
                jnp.asarray(t["relative"]),
                options["num_buckets"],
                options["max_distance"],
                causal=not options["bidirectional"],
            )
            np.testing.assert_array_equal(got, t["bucket"], err_msg=case)
    assert found > 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"block": BlockConfig(wiring="parallel")}, ["parallel", "cross-attention", "'pre'"]),
        ({"cross": AttentionConfig()}, ["model.cross", "'none'"]),
        (
            {"encoder": EncoderConfig(depth=2, layers=("mamba1+mlp",))},
            ["both sides", "mamba1", "model.directions.weights=shared"],
        ),
        (
            {"encoder": EncoderConfig(depth=1, layers=("attention+mlp",) * 2)},
            ["model.encoder.depth 1", "nearest: 2"],
        ),
        (
            RELATIVE
            | {
                "layers": ("attention+mlp", "attention@few+mlp"),
                "variants": {"few": {"heads": 2}},
            },
            ["'relative'", "[2, 4]", "nearest: 4"],
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes, said):
    with pytest.raises(ConfigError) as error:
        tiny.config(**({"encoder": EncoderConfig(depth=2)} | changes))
    assert "\n" not in str(error.value)
    for words in said:
        assert words in str(error.value)


def test_a_source_goes_where_it_belongs_and_a_state_fits():
    decoder, both = (tiny.model(tiny.config(**c)) for c in ({}, ENCODERS["relative"]))
    tokens, source = rows()
    here = Sequence.plain(2, T)
    with pytest.raises(ValueError, match="encoder.depth > 0"):
        decoder(tokens, here, source=source)
    with pytest.raises(ValueError, match="give `source`"):
        both(tokens, here)
    with pytest.raises(ValueError, match="state that has it"):
        both(tokens, here, state=both.start(2, T, source=S))
    with pytest.raises(ValueError, match=r"of 3 rows, there are 2; make it by start\(2"):
        decoder(tokens, here, state=decoder.start(3, T))
    recurrent = tiny.model(tiny.config("mamba1"))
    with pytest.raises(ValueError, match="another architecture"):
        decoder(tokens, here, state=recurrent.start(2, T))
    with pytest.raises(ValueError, match="another architecture"):
        decoder(tokens, here, state=both.start(2, T, source=S))
    assert math.isfinite(float(decoder(tokens, here, state=decoder.start(2, T))[0].sum()))
