"""Likelihoods of texts after contexts, against a loop over whole rows in numpy."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from oracle import VOCAB, nats, oracle, subject, successor

from arch import Sequence
from eval.likelihood import _framed, likelihoods
from eval.rows import batches

BOS, W = 257, 16
PAIRS = [
    ("", "abc"),
    ("the cat", " sat"),
    ("the cat ", "sat"),
    ("a context that is longer than a row", " and"),
    ("so", " is this text, which goes over two rows and more"),
    ("", "a text without a context of several rows"),
    ("cafés", " é"),
    ("x", "y"),
    ("nothing", ""),
]


@pytest.fixture(scope="module")
def reader():
    cfg = tiny.config(depth=1, vocab=VOCAB)
    made = tiny.model(cfg)
    return made, subject(made, length=W, config=cfg)


def by_hand(made, run, context: str, text: str) -> tuple[float, bool]:
    """Every token of the text in a row of its own choosing, as lm-evaluation-harness cuts them."""
    ids = [BOS, *(context + text).encode()]
    first, n = 1 + len(context.rstrip().encode()), len(ids)  # a space belongs to the text
    total, greedy, done = 0.0, True, first
    while done < n:
        end = min(done + W, n)
        row = ids[:end][-W - 1 :]
        padded = np.zeros((1, W), np.int32)
        padded[0, : len(row) - 1] = row[:-1]
        logits = np.asarray(run(made, padded), np.float64)[0, :, :VOCAB]
        for place in range(len(row) - 1 - (end - done), len(row) - 1):
            right = row[place + 1]
            total += np.log(np.exp(logits[place]).sum()) - logits[place, right]
            greedy &= int(logits[place].argmax()) == right
        done = end
    return total, greedy


def test_every_token_of_a_text_is_scored_once_with_a_row_of_context(reader):
    made, judged = reader
    run = jax.jit(lambda m, t: m.logits(m(t, Sequence.plain(1, W))[0]))
    for pair, found in zip(PAIRS, likelihoods(judged, PAIRS), strict=True):
        total, greedy = by_hand(made, run, *pair)
        assert found.nats == pytest.approx(total, rel=1e-5), pair
        assert found.greedy == greedy, pair
        assert found.tokens == len("".join(pair).encode()) - len(pair[0].rstrip().encode())


def test_scores_depend_on_neither_batch_size_nor_order(reader):
    """covers protocols.md 8: a score never depends on the composition of the batch."""
    _, judged = reader
    larger = dataclasses.replace(
        judged.settings, eval=dataclasses.replace(judged.settings.eval, batch=16)
    )
    alone = [likelihoods(judged, [pair])[0] for pair in PAIRS]
    for other in (judged, judged._replace(settings=larger)):
        found = likelihoods(other, PAIRS[::-1])[::-1]
        np.testing.assert_allclose([x.nats for x in found], [x.nats for x in alone], rtol=1e-5)
        assert [x[1:] for x in found] == [x[1:] for x in alone]


def test_an_oracle_is_greedy_where_it_is_right():
    table = successor()
    right, wrong = likelihoods(oracle(), [("ab", "cdefg"), ("ab", "cdxfg")])
    assert right.greedy and not wrong.greedy
    assert right.nats == pytest.approx(nats(table, "cdefg", "ab").sum(), rel=1e-5)
    assert wrong.nats == pytest.approx(nats(table, "cdxfg", "ab").sum(), rel=1e-5)


class Merging:
    """Byte ids, but "ab" is 300."""

    class specials:
        bos = BOS

    def encode(self, texts):
        return [
            np.array([300 if c == "#" else ord(c) for c in t.replace("ab", "#")]) for t in texts
        ]


def test_a_text_keeps_its_ids_where_a_merge_would_cross_its_beginning():
    ids, first = _framed(Merging(), "xa", "bc")
    assert ids.tolist() == [BOS, ord("x"), ord("a"), ord("b"), ord("c")] and first == 3
    ids, first = _framed(Merging(), "x", "abc")
    assert ids.tolist() == [BOS, ord("x"), 300, ord("c")] and first == 2
    ids, first = _framed(Merging(), "x  ", "ab")  # the spaces belong to the text
    assert ids.tolist() == [BOS, ord("x"), ord(" "), ord(" "), 300] and first == 2


def test_a_width_is_that_of_the_row_alone():
    rows = [{"tokens": np.arange(n, dtype=np.int32)} for n in (1, 16, 17, 40)]
    found = {i: a["tokens"].shape for some, a in batches(oracle(batch=3), rows) for i in some}
    assert found == {0: (8, 16), 1: (8, 16), 2: (8, 32), 3: (8, 64)}
