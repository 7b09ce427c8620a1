"""Every architecture learns under every objective: the loss falls below what frequencies give."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from arch import MIXERS
from objectives import OBJECTIVES
from training.optimizer import OptimizerConfig
from training.state import initial, transformation
from training.step import make_step

LENGTH, BATCH, STEPS = 16, 8, 60


def rows(objective, step: int) -> dict[str, np.ndarray]:
    """Rows in which each token decides the next one; all tokens are as frequent."""
    rng = np.random.default_rng(step)
    after = np.roll(np.random.default_rng(99).permutation(tiny.VOCAB), 1)
    made = []
    for _ in range(BATCH):
        piece = [rng.integers(tiny.VOCAB)]
        while len(piece) < LENGTH + objective.overlap:
            piece.append(after[piece[-1]])
        made.append(objective.example([np.array(piece, np.int32)], LENGTH, rng))
    return {name: np.stack([row[name] for row in made]) for name in made[0]}


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_falls_below_the_unigram(mixer, name):
    objective = OBJECTIVES[name]()
    model = dataclasses.replace(tiny.config(mixer, **tiny.BOTH), width=32)
    cfg = OptimizerConfig(learning_rate=2e-2, warmup=5, weight_decay=0.0)
    tx = transformation(cfg, STEPS, model, objective)
    state = jax.jit(lambda: initial(model, objective, tx, 4, 0))()
    step = jax.jit(make_step(objective, tx, cfg, steps=STEPS, accumulate=1, seed=0))
    losses = []
    for i in range(STEPS):
        state, metrics = step(state, rows(objective, i))
        losses.append(float(metrics["loss"].mean))
    assert abs(losses[0] - np.log(tiny.VOCAB)) < 0.5
    assert np.mean(losses[-5:]) < 0.75 * np.log(tiny.VOCAB)


def test_what_a_channel_reports_has_a_number_for_each_layer(monkeypatch):
    """Scanned, unrolled and left-over layers; sums and weights, not means of means."""
    from arch.mlp import Mlp
    from arch.terms import Amount

    def noisy(self, x, seq, *, key=None):
        y, _ = plain(self, x, seq, key=key)
        return y, {"balance": Amount((seq.segments * 2.0).sum(), (seq.segments != 0).sum() * 1.0)}

    plain = Mlp.__call__
    monkeypatch.setattr(Mlp, "__call__", noisy)
    ids, seq = tiny.tokens(1, 6), tiny.packed([3, 1], 6)
    for scan in (True, False):
        made = tiny.model(tiny.config(depth=5, layers=("attention+mlp",) * 2, scan=scan))
        aux = made(ids, seq)[1]
        assert aux["balance"].sum.tolist() == [2 * (3 + 2)] * 5
        assert aux["balance"].weight.tolist() == [4] * 5
