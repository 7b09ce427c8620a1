"""Tests of encoder-decoders: visibility, decoding from cached keys, T5's relative positions."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from golden import golden
from test_contracts import multiply_adds

from arch import Model, SequenceInfo, compute_cost
from arch.block import BlockConfig
from arch.config import EncoderConfig
from arch.layers.positions import PositionsConfig, relative_position_bucket
from arch.mixers.attention import AttentionConfig
from arch.mixers.combined.bidirectional import BidirectionalConfig
from errors import ConfigError

RELATIVE = {
    "attention": AttentionConfig(position_encoding="relative"),
    "positions": PositionsConfig(num_buckets=8, max_distance=8),
}
ENCODERS = {
    "relative": RELATIVE | {"encoder": EncoderConfig(depth=2)},
    "mamba": {
        "encoder": EncoderConfig(depth=3, layers=("mamba2+mlp",), first_layers=("attention+none",)),
        "bidirectional": BidirectionalConfig(weights="shared"),
        "block": BlockConfig(wiring="sandwich"),
    },
}
ALL_ENCODERS = pytest.mark.parametrize(
    "name", ["relative", pytest.param("mamba", marks=pytest.mark.slow)]
)
S, T = 7, 6


def rows():
    """Returns targets of 6 tokens and sources of 5 and 7 tokens.

    The third row is the first one with other padding in its source.
    """
    source, tokens = (np.array(tiny.tokens(3, n, seed)) for n, seed in ((S, 5), (T, 1)))
    source[2], tokens[2] = source[0], tokens[0]
    source[2, 5:] = 3
    segments = (np.arange(S) < np.array([5, 7, 5])[:, None]).astype(np.int32)
    positions = np.broadcast_to(np.arange(S, dtype=np.int32), (3, S))
    return tokens, (source, SequenceInfo(positions, segments, None, causal=False))


class Results(NamedTuple):
    """What one compiled program computes of the rows."""

    hidden: np.ndarray  # [rows T D]
    influence: np.ndarray  # Gradients of the outputs of the first row, [to, vocabulary].
    grads: Model  # Gradients of the outputs of the second row times `noise()`.


def noise() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(T, tiny.WIDTH)).astype(np.float32)


@functools.cache
def run_rows(name) -> Results:
    """Runs the rows; the asserts of several tests share the result."""
    cotangents = np.zeros((T + 1, 3, T, tiny.WIDTH), np.float32)
    cotangents[np.arange(T), 0, np.arange(T)] = noise()
    cotangents[T, 1] = noise()
    model = tiny.model(tiny.config(**ENCODERS[name]))
    return Results(*jax.device_get(_run_rows(model, *rows(), cotangents)))


@jax.jit
def _run_rows(model, tokens, source, cotangents):
    seq = SequenceInfo.unpacked(3, T)
    hidden, pull = jax.vjp(lambda m: m(tokens, seq, source=source)[0], model)
    grads = jax.vmap(lambda cotangent: pull(cotangent)[0])(cotangents)
    influence = jnp.abs(grads.embed.table[:T]).sum(-1)
    return hidden, influence, jax.tree.map(lambda a: a[T], grads)


@ALL_ENCODERS
def test_decoder_sees_all_of_its_source_and_none_of_its_future(name):
    tokens, (source, _) = rows()
    influence = run_rows(name).influence
    for to in range(T):
        visible = {*source[0, :5].tolist(), *tokens[0, : to + 1].tolist()}
        assert set(np.flatnonzero(influence[to])) == visible


@ALL_ENCODERS
def test_padding_of_the_source_changes_nothing_and_steps_are_the_parallel_form(name):
    model, full = tiny.model(tiny.config(**ENCODERS[name])), run_rows(name).hidden
    np.testing.assert_array_equal(full[0], full[2])
    tokens, source = rows()
    run = jax.jit(lambda m, t, s, state, source: m(t, s, state=state, source=source))
    state = jax.jit(lambda m: m.init_state(3, T, source_length=S))(model)
    parts, start = [], 0
    for size in (3, 1, 1, 1):
        seq = jax.device_get(SequenceInfo.unpacked(3, size, start_position=start))
        new_source = None if start else source
        hidden, _, state = run(model, tokens[:, start : start + size], seq, state, new_source)
        parts.append(hidden)
        start += size
    np.testing.assert_allclose(np.concatenate(parts, axis=1), full, atol=2e-5)


@ALL_ENCODERS
def test_cost_is_that_of_what_runs(name):
    cfg = tiny.slow(tiny.config(**ENCODERS[name], scan=False))
    cfg = dataclasses.replace(
        cfg, cross_attention=dataclasses.replace(cfg.cross_attention, implementation="reference")
    )
    model = jax.eval_shape(lambda: Model(cfg, key=jax.random.key(0)))
    cost = compute_cost(cfg, T, source_length=S)
    assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(model))
    tokens, source = rows()
    row, row_source = jax.tree.map(lambda a: a[:1], (tokens, source))
    jaxpr = jax.make_jaxpr(
        lambda m: m.logits(m(row, SequenceInfo.unpacked(1, T), source=row_source)[0])
    )
    matrix = sum(flops.executed for flops in cost.terms.values() if not flops.elementwise)
    assert multiply_adds(jaxpr(model).jaxpr) == pytest.approx(T * matrix)


@ALL_ENCODERS
def test_scanned_is_unrolled_and_every_parameter_gets_a_gradient(name):
    model = tiny.replaced(tiny.model(tiny.config(**ENCODERS[name])), scan=False, remat="full")
    tokens, source = rows()

    def value(model):
        hidden = model(tokens, SequenceInfo.unpacked(3, T), source=source)[0]
        return jnp.sum(hidden[1] * noise())

    other, others = jax.device_get(jax.jit(jax.value_and_grad(value))(model))
    hidden, _, grads = run_rows(name)
    np.testing.assert_allclose(np.sum(hidden[1] * noise()), other, rtol=1e-4)
    pairs = zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(others), strict=True)
    for (path, a), b in pairs:
        np.testing.assert_allclose(a, b, atol=1e-4)
        assert (a != 0).any(), path


def test_t5_buckets_are_the_published_ones():
    num_cases = 0
    for case, options, t in golden("position_bias"):
        if "bucket" in t:
            num_cases += 1
            got = jax.jit(
                relative_position_bucket, static_argnums=(1, 2), static_argnames="causal"
            )(
                t["relative"],
                options["num_buckets"],
                options["max_distance"],
                causal=not options["bidirectional"],
            )
            np.testing.assert_array_equal(got, t["bucket"], err_msg=case)
    assert num_cases > 3


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"block": BlockConfig(wiring="parallel")}, ["parallel", "cross-attention", "'pre'"]),
        ({"cross_attention": AttentionConfig()}, ["model.cross_attention", "'none'"]),
        (
            {"encoder": EncoderConfig(depth=2, layers=("mamba1+mlp",))},
            ["bidirectional", "mamba1", "model.bidirectional.weights=shared"],
        ),
        (
            {"encoder": EncoderConfig(depth=1, layers=("attention+mlp",) * 2)},
            ["model.encoder.depth 1", "nearest valid value: 2"],
        ),
        (
            RELATIVE
            | {
                "layers": ("attention+mlp", "attention@few+mlp"),
                "variants": {"few": {"heads": 2}},
            },
            ["'relative'", "[2, 4]", "nearest valid value: 4"],
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes, fragments):
    with pytest.raises(ConfigError) as error:
        tiny.config(**({"encoder": EncoderConfig(depth=2)} | changes))
    assert "\n" not in str(error.value)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_a_source_goes_where_it_belongs_and_a_state_fits():
    decoder, with_encoder = (tiny.model(tiny.config(**c)) for c in ({}, ENCODERS["relative"]))
    tokens, source = jax.tree.map(lambda a: a[:2], rows())
    seq = SequenceInfo.unpacked(2, T)
    with pytest.raises(ValueError, match="encoder.depth > 0"):
        decoder(tokens, seq, source=source)
    with pytest.raises(ValueError, match="give `source`"):
        with_encoder(tokens, seq)
    with pytest.raises(ValueError, match="state that has it"):
        with_encoder(tokens, seq, state=with_encoder.init_state(2, T, source_length=S))
    with pytest.raises(ValueError, match=r"of 3 rows, there are 2; make it by init_state\(2"):
        decoder(tokens, seq, state=decoder.init_state(3, T))
    recurrent = tiny.model(tiny.config("mamba1"))
    with pytest.raises(ValueError, match="another architecture"):
        decoder(tokens, seq, state=recurrent.init_state(2, T))
    with pytest.raises(ValueError, match="another architecture"):
        decoder(tokens, seq, state=with_encoder.init_state(2, T, source_length=S))
    run = jax.jit(lambda m, state: m(tokens, seq, state=state)[0])
    assert np.isfinite(run(decoder, decoder.init_state(2, T))).all()
