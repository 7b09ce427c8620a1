"""Cross-entropy with the head is compared with float64 numpy, and must not build all logits."""

import functools

import jax
import numpy as np
import pytest

from errors import ConfigError
from ops import cross_entropy as module
from ops.cross_entropy import IMPLEMENTATIONS, cross_entropy

B, T, D, V, VOCAB = 2, 6, 5, 16, 11


def case(dtype=np.float64):
    rng = np.random.default_rng(0)
    hidden, table = rng.normal(size=(B, T, D)), rng.normal(size=(V, D))
    bias, targets = rng.normal(size=V), rng.integers(0, VOCAB, (B, T))
    return hidden.astype(dtype), table.astype(dtype), bias.astype(dtype), targets.astype(np.int32)


def by_hand(hidden, table, bias, targets, scale, softcap):
    """Computes loss and logsumexp token by token."""
    loss, lse = np.zeros((B, T)), np.zeros((B, T))
    for b in range(B):
        for t in range(T):
            logits = scale * table[:VOCAB] @ hidden[b, t] + bias[:VOCAB]
            logits = softcap * np.tanh(logits / softcap) if softcap else logits
            lse[b, t] = np.log(np.exp(logits).sum())
            loss[b, t] = lse[b, t] - logits[targets[b, t]]
    return loss, lse


def objective(function, targets, weights):
    """Returns a loss with a z-loss, which needs the gradients of both outputs."""

    def total(hidden, table, bias):
        loss, lse = function(hidden, table, bias, targets)
        return (loss * weights).sum() + 0.1 * (lse**2 * weights).sum()

    return total


@pytest.mark.parametrize(("scale", "softcap"), [(1.0, 0.0), (0.5, 3.0)])
@pytest.mark.parametrize(("name", "chunk"), [("reference", 2**24), ("xla", 1), ("xla", 2**24)])
def test_values_and_gradients_in_float64(name, scale, softcap, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_LOGITS", chunk)
    hidden, table, bias, targets = case()
    weights = np.random.default_rng(1).random((B, T))
    expected = by_hand(hidden, table, bias, targets, scale, softcap)

    def ours(hidden, table, bias, targets):
        out = cross_entropy(
            *(hidden, table, targets),
            bias=bias,
            vocab_size=VOCAB,
            scale=scale,
            softcap=softcap,
            implementation=name,
        )
        return out.loss, out.logsumexp

    with jax.enable_x64(True):
        gradients = jax.grad(objective(ours, targets, weights), (0, 1, 2))
        actual, grads = jax.device_get(
            jax.jit(lambda *a: (ours(*a, targets), gradients(*a)))(hidden, table, bias)
        )
    assert actual[0].dtype == np.float64
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    plain = objective(lambda h, w, b, t: by_hand(h, w, b, t, scale, softcap), targets, weights)
    for index, grad in enumerate(grads):
        np.testing.assert_allclose(grad, slopes(plain, (hidden, table, bias), index), atol=1e-6)
    assert (grads[1][VOCAB:] == 0).all() and (grads[2][VOCAB:] == 0).all()


def slopes(function, arguments, index: int, step: float = 1e-6) -> np.ndarray:
    """Returns central differences."""
    out = np.zeros_like(arguments[index])
    for position in np.ndindex(out.shape):
        ends = []
        for sign in (1, -1):
            moved = [a.copy() for a in arguments]
            moved[index][position] += sign * step
            ends.append(function(*moved))
        out[position] = (ends[0] - ends[1]) / (2 * step)
    return out


def test_correct_is_the_first_of_the_highest():
    hidden, table, bias, _ = case(np.float32)
    logits = hidden @ table.T + bias
    best = logits[..., :VOCAB].argmax(-1).astype(np.int32)
    for name in IMPLEMENTATIONS:
        run = jax.jit(functools.partial(cross_entropy, vocab_size=VOCAB, implementation=name))
        assert run(hidden, table, best, bias=bias).correct.all()
        assert not run(hidden, table, (best + 1) % VOCAB, bias=bias).correct.any()


def test_long_rows_never_hold_all_logits():
    """The reference has all logits in memory, the chunked implementation less than half of them."""

    def temporary(length, name):
        shapes = [
            jax.ShapeDtypeStruct(shape, dtype)
            for shape, dtype in [((4, length, 64), "float32"), ((16384, 64), "float32")]
        ]
        ids = jax.ShapeDtypeStruct((4, length), "int32")

        def loss(hidden, table, targets):
            out = cross_entropy(hidden, table, targets, vocab_size=16384, implementation=name)
            return out.loss.sum()

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes, ids).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    all_logits = 4 * 2048 * 16384 * 4  # bytes
    assert temporary(2048, "reference") >= all_logits
    assert temporary(2048, "xla") < all_logits / 2


def test_an_unknown_implementation_is_refused():
    hidden, table, _, targets = case(np.float32)
    with pytest.raises(ConfigError, match="'xal'.*did you mean 'xla'"):
        cross_entropy(hidden, table, targets, vocab_size=VOCAB, implementation="xal")
