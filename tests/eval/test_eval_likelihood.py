"""Compares likelihoods of texts after contexts with a loop over full rows in numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tokenizers as hf
from oracle import VOCAB, eval_context, nats, oracle, successor

from arch import SequenceInfo
from arch.config import EncoderConfig
from data.framing import Reading
from data.published.json_tokenizer import JsonTokenizer
from eval.length_buckets import bucketed_batches
from eval.likelihood import _encode_pair, compute_likelihoods

BOS, EOS, W = 257, 258, 16
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
    cfg = tiny.config(depth=1, vocab_size=VOCAB)
    model = tiny.model(cfg)
    return model, eval_context(model, length=W, config=cfg)


def by_hand(model, run, context: str, text: str) -> tuple[float, bool]:
    """Returns the nats of the text and whether it is greedy, in the windows of lm-eval."""
    ids = [BOS, *(context + text).encode()]
    first, n = 1 + len(context.rstrip().encode()), len(ids)  # a space belongs to the text
    total, greedy, n_scored = 0.0, True, first
    while n_scored < n:
        end = min(n_scored + W, n)
        row = ids[:end][-W - 1 :]
        padded = np.zeros((1, W), np.int32)
        padded[0, : len(row) - 1] = row[:-1]
        logits = np.asarray(run(model, padded), np.float64)[0, :, :VOCAB]
        for position in range(len(row) - 1 - (end - n_scored), len(row) - 1):
            target = row[position + 1]
            total += np.log(np.exp(logits[position]).sum()) - logits[position, target]
            greedy &= int(logits[position].argmax()) == target
        n_scored = end
    return total, greedy


def test_every_token_of_a_text_is_scored_once_with_a_row_of_context(reader):
    model, ctx = reader
    run = jax.jit(lambda m, t: m.logits(m(t, SequenceInfo.unpacked(1, W))[0]))
    for pair, likelihood in zip(PAIRS, compute_likelihoods(ctx, PAIRS), strict=True):
        total, greedy = by_hand(model, run, *pair)
        assert likelihood.nats == pytest.approx(total, rel=1e-5), pair
        assert likelihood.is_greedy == greedy, pair
        assert likelihood.n_tokens == len("".join(pair).encode()) - len(pair[0].rstrip().encode())


def test_scores_depend_on_neither_batch_size_nor_order(reader):
    """covers protocols.md 8: a score never depends on the composition of the batch."""
    _, ctx = reader
    larger = dataclasses.replace(
        ctx.settings, eval=dataclasses.replace(ctx.settings.eval, batch_size=16)
    )
    alone = [compute_likelihoods(ctx, [pair])[0] for pair in PAIRS]
    for changed in (ctx, ctx._replace(settings=larger)):
        batched = compute_likelihoods(changed, PAIRS[::-1])[::-1]
        np.testing.assert_allclose([x.nats for x in batched], [x.nats for x in alone], rtol=1e-5)
        assert [x[1:] for x in batched] == [x[1:] for x in alone]


def test_an_oracle_is_greedy_where_it_is_right():
    table = successor()
    right, wrong = compute_likelihoods(oracle(), [("ab", "cdefg"), ("ab", "cdxfg")])
    assert right.is_greedy and not wrong.is_greedy
    assert right.nats == pytest.approx(nats(table, "cdefg", "ab").sum(), rel=1e-5)
    assert wrong.nats == pytest.approx(nats(table, "cdxfg", "ab").sum(), rel=1e-5)


class Merging:
    """Byte ids, but "ab" is 300."""

    def encode(self, texts):
        return [
            np.array([300 if c == "#" else ord(c) for c in t.replace("ab", "#")]) for t in texts
        ]

    def going_on(self, is_behind_special):
        return self


def test_a_text_keeps_its_ids_where_a_merge_would_cross_its_beginning():
    reads = Reading(W, (BOS,), (BOS,), (), ())
    ids, first, _ = _encode_pair(Merging(), reads, "xa", "bc")
    assert ids.tolist() == [BOS, ord("x"), ord("a"), ord("b"), ord("c")] and first == 3
    ids, first, _ = _encode_pair(Merging(), reads, "x", "abc")
    assert ids.tolist() == [BOS, ord("x"), 300, ord("c")] and first == 2
    ids, first, _ = _encode_pair(Merging(), reads, "x  ", "ab")  # the spaces belong to the text
    assert ids.tolist() == [BOS, ord("x"), ord(" "), ord(" "), 300] and first == 2


def test_a_text_that_goes_on_gets_no_space_where_it_is_encoded_separately():
    """Metaspace encodes "hel" and "lo" as "▁hel" and "▁lo", but "hello" as "▁hello"."""
    vocabulary = {piece: i for i, piece in enumerate(("<unk>", "▁hello", "▁hel", "▁lo", "lo"))}
    made = hf.Tokenizer(hf.models.WordLevel(vocabulary, "<unk>"))
    made.pre_tokenizer = hf.pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer = JsonTokenizer(made.to_str().encode(), "metaspace")
    ids, first, _ = _encode_pair(tokenizer, Reading(W, (), (), (), ()), "hel", "lo")
    assert ids.tolist() == [vocabulary["▁hel"], vocabulary["lo"]] and first == 1


def test_an_encoder_reads_the_context_and_a_decoder_scores_the_text():
    cfg = tiny.config(depth=1, vocab_size=VOCAB, encoder=EncoderConfig(depth=1))
    model = tiny.model(cfg)
    ctx = eval_context(model, length=W, config=cfg, objective="denoising")
    long = "a context that is longer than a row"
    pairs = [("the cat", " sat"), ("the cat ", "sat"), ("", "abcd"), (long, " and")]

    @jax.jit
    def logits(source, lengths, ids):
        segment_ids = jnp.int32(jnp.arange(W) < lengths[:, None])
        positions = jnp.broadcast_to(jnp.arange(W), source.shape)
        encoder = SequenceInfo(positions, segment_ids, None, causal=False)
        seq = SequenceInfo.unpacked(len(ids), 4)
        return model.logits(model(ids, seq, source=(source, encoder))[0])[..., :VOCAB]

    cat = [BOS, *b"the cat", EOS]
    sources, texts = [cat, [BOS], [*long.encode(), EOS][-W:]], [b" sat", b"abcd", b" and"]
    padded = np.stack([np.pad(source, (0, W - len(source))) for source in sources])
    ids = np.array([[BOS, *text] for text in texts])
    scores = np.asarray(
        logits(padded, np.array([len(source) for source in sources]), ids[:, :-1]), np.float64
    )
    log_sums = np.log(np.exp(scores).sum(-1))
    targets = np.take_along_axis(scores, ids[:, 1:, None], -1)[..., 0]
    sat, empty, cut = (log_sums - targets).sum(-1)
    found = [likelihood.nats for likelihood in compute_likelihoods(ctx, pairs)]
    assert found == pytest.approx([sat, sat, empty, cut], rel=1e-4)


def test_a_width_is_that_of_the_row_alone():
    rows = [{"tokens": np.arange(n, dtype=np.int32)} for n in (1, 16, 17, 40)]
    shapes = {
        i: batch["tokens"].shape
        for indices, batch in bucketed_batches(oracle(batch=3), rows)
        for i in indices
    }
    assert shapes == {0: (8, 16), 1: (8, 16), 2: (8, 32), 3: (8, 64)}
