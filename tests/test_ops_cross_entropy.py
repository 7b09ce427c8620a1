"""Cross-entropy with the head: against float64 numpy, and what it must not build."""

import jax
import jax.numpy as jnp
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


def by_hand(hidden, table, bias, targets, scale, cap):
    """nats and logsumexp, token by token."""
    nats, lse = np.zeros((B, T)), np.zeros((B, T))
    for b in range(B):
        for t in range(T):
            logits = scale * table[:VOCAB] @ hidden[b, t] + bias[:VOCAB]
            logits = cap * np.tanh(logits / cap) if cap else logits
            lse[b, t] = np.log(np.exp(logits).sum())
            nats[b, t] = lse[b, t] - logits[targets[b, t]]
    return nats, lse


def objective(function, targets, weights):
    """A loss with a z-loss, which needs the gradients of both outputs."""

    def loss(hidden, table, bias):
        nats, lse = function(hidden, table, bias, targets)
        return (nats * weights).sum() + 0.1 * (lse**2 * weights).sum()

    return loss


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize(("scale", "cap"), [(1.0, 0.0), (0.5, 3.0)])
@pytest.mark.parametrize("chunk", [1, 2**24])
def test_values_and_gradients_in_float64(name, scale, cap, chunk, monkeypatch):
    monkeypatch.setattr(module, "LOGITS", chunk)
    hidden, table, bias, targets = case()
    weights = np.random.default_rng(1).random((B, T))
    expected = by_hand(hidden, table, bias, targets, scale, cap)

    def ours(hidden, table, bias, targets):
        out = cross_entropy(
            *(hidden, table, targets),
            bias=bias,
            vocab=VOCAB,
            scale=scale,
            cap=cap,
            implementation=name,
        )
        return out.nats, out.lse

    with jax.enable_x64(True):
        found = jax.jit(ours)(hidden, table, bias, targets)
        assert found[0].dtype == jnp.float64
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)
        grads = jax.jit(jax.grad(objective(ours, targets, weights), (0, 1, 2)))(hidden, table, bias)
    plain = objective(lambda h, w, b, t: by_hand(h, w, b, t, scale, cap), targets, weights)
    for index, grad in enumerate(grads):
        np.testing.assert_allclose(grad, slopes(plain, (hidden, table, bias), index), atol=1e-6)
    assert (np.asarray(grads[1])[VOCAB:] == 0).all() and (np.asarray(grads[2])[VOCAB:] == 0).all()


def slopes(function, arguments, index: int, step: float = 1e-6) -> np.ndarray:
    """Central differences."""
    out = np.zeros_like(arguments[index])
    for place in np.ndindex(out.shape):
        ends = []
        for sign in (1, -1):
            moved = [a.copy() for a in arguments]
            moved[index][place] += sign * step
            ends.append(function(*moved))
        out[place] = (ends[0] - ends[1]) / (2 * step)
    return out


def test_correct_is_the_first_of_the_highest():
    hidden, table, bias, _ = case(np.float32)
    logits = hidden @ table.T + bias
    best = logits[..., :VOCAB].argmax(-1).astype(np.int32)
    for name in IMPLEMENTATIONS:
        out = cross_entropy(hidden, table, best, bias=bias, vocab=VOCAB, implementation=name)
        assert out.correct.all()
        other = cross_entropy(
            *(hidden, table, (best + 1) % VOCAB), bias=bias, vocab=VOCAB, implementation=name
        )
        assert not other.correct.any()


def test_long_rows_never_hold_all_logits():
    """Temporary memory at twice the length is not twice that of the logits."""

    def temporary(length, name):
        shapes = [
            jax.ShapeDtypeStruct(shape, dtype)
            for shape, dtype in [((4, length, 64), "float32"), ((16384, 64), "float32")]
        ]
        ids = jax.ShapeDtypeStruct((4, length), "int32")

        def loss(hidden, table, targets):
            out = cross_entropy(hidden, table, targets, vocab=16384, implementation=name)
            return out.nats.sum()

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes, ids).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = 4 * 2048 * 16384 * 4
    assert temporary(2048, "reference") >= whole
    assert temporary(2048, "xla") < whole / 2


def test_an_unknown_implementation_is_refused():
    hidden, table, _, targets = case(np.float32)
    with pytest.raises(ConfigError, match="'xal'.*did you mean 'xla'"):
        cross_entropy(hidden, table, targets, vocab=VOCAB, implementation="xal")
