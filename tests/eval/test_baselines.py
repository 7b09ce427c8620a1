"""Baselines: n-grams against sums by hand, the text that a run saw, and scores of a small store."""

import dataclasses
import gzip
import itertools
import math
import types
from collections import Counter

import numpy as np
import pytest

from data.open_stores import open_data
from data.packing import PackedRows
from data.tokenizers import ByteTokenizer, train_bpe
from eval.baselines import ngrams, seen_text
from eval.baselines.ngrams import Passage, bits_by_order
from eval.baselines.seen_text import (
    byte_passages,
    merge_stretches,
    seen_stretches,
    token_passages,
)
from eval.tasks import baselines
from objectives.causal_lm import CausalLM
from training.settings import Settings


def passages(*texts):
    return [Passage(np.array(list(text), np.int64)) for text in texts]


def bits_by_hand(train, test, n_symbols, order):
    """The same model from dictionaries, symbol by symbol; a text begins after endless ends."""
    end = n_symbols
    pad = [end] * order
    train = [[*pad, *text, end] for text in train]
    counts = [
        Counter(tuple(text[i - k : i + 1]) for text in train for i in range(order, len(text)))
        for k in range(order + 1)
    ]

    def probability(history, symbol):
        p = 1 / (n_symbols + 1)
        for k in range(order + 1):
            context = tuple(history[len(history) - k :])
            after = {g[-1]: c for g, c in counts[k].items() if g[:-1] == context}
            n, t = sum(after.values()), len(after)
            if n:
                p = n / (n + t) * after.get(symbol, 0) / n + t / (n + t) * p
        return p

    return -sum(
        math.log2(probability(text[:i], text[i]))
        for text in ([*pad, *text, end] for text in test)
        for i in range(order, len(text))
    )


def test_bits_are_those_of_a_count_by_hand(monkeypatch):
    rng = np.random.default_rng(0)
    train = [rng.integers(0, 4, n).tolist() for n in (30, 1, 17, 40)]
    test = [rng.integers(0, 4, n).tolist() for n in (12, 3)]
    expected = [bits_by_hand(train, test, 4, k) for k in range(4)]
    for chunk in (1 << 20, 8):  # in one piece, and in many
        monkeypatch.setattr(ngrams, "CHUNK_SYMBOLS", chunk)
        got = bits_by_order(passages(*train), passages(*test), 4, 3)
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_no_text_costs_what_equally_likely_symbols_cost():
    (bits,) = bits_by_order([], passages([0, 1, 1]), 7, 0)
    assert bits == pytest.approx(4 * math.log2(8))  # three symbols and the end


def test_stretches_are_merged_within_a_document():
    assert merge_stretches([(1, 4, 9), (0, 0, 3), (1, 0, 4), (1, 6, 12), (0, 5, 6)]) == [
        *((0, 0, 3), (0, 5, 6), (1, 0, 12))
    ]


class _Store:
    """A store of three documents whose tokens count up."""

    lengths = np.array([5, 40, 9])
    n_tokens, n_documents, text_bytes, bos, eos = 54, 3, 54, 60, 61
    vocab_size, groups = 62, None

    def slice(self, document, start, stop):
        first = int(self.lengths[:document].sum())
        return np.arange(first + start, first + stop, dtype=np.int32)

    def weights(self, document, start, stop):
        return None


@pytest.mark.parametrize("n_rows", [1, 3, 50])
def test_the_text_seen_is_that_of_the_rows(n_rows):
    store, length = _Store(), 8
    rows = PackedRows(store, length, overlap=1, seed=3)
    seen = token_passages(store, seen_stretches(rows, n_rows, 1 << 20))
    targets = sorted(int(t) for p in seen for t in p.symbols)
    in_rows = {int(t) for i in range(n_rows) for s in rows.row(i) for t in s.tokens}
    assert targets == sorted(in_rows - {store.bos, store.eos})
    ends = sum(store.eos in s.tokens for i in range(min(n_rows, 7)) for s in rows.row(i))
    assert sum(p.is_end for p in seen) == min(ends, 3)


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """A context over three tiny files, with a tokenizer of bytes."""
    root = tmp_path_factory.mktemp("baselines")
    for split, words in (("train", "the cat sat on the mat. "), ("test", "the rat sat on a hat. ")):
        text = "\n".join(f"{number}: {words * 8}" for number in range(9))
        (root / f"{split}.txt").write_text(text)
    (root / "valid.txt").write_text("a dog. " * 40)
    data = dataclasses.replace(
        Settings().data,
        source="text",
        path=str(root / "train.txt"),
        valid_path=str(root / "valid.txt"),
        test_path=str(root / "test.txt"),
        cache=str(root / "cache"),
        tokenizer="bytes",
    )
    settings = dataclasses.replace(
        Settings(),
        data=data,
        train=dataclasses.replace(Settings().train, steps=2, batch_size=2, seq_len=64),
    )
    return types.SimpleNamespace(settings=settings, data=open_data(data), objective=CausalLM())


def test_scores_of_a_run(context):
    scores = {s.name: s for s in baselines.Baselines()(context)}
    names = [f"byte_{k}" for k in range(5)] + [f"token_{n}" for n in (1, 2, 3)]
    expected = {f"test/baseline/{text}/{n}" for text in ("seen", "train") for n in names}
    assert scores.keys() == expected | {
        f"test/baseline/split/{name}" for name in ("gzip", "bzip2", "xz")
    }
    # A tokenizer of bytes has more symbols, but else its n-grams are those of bytes.
    for order, n in itertools.pairwise((0, 1, 2)):
        bits = [scores[f"test/baseline/train/{x}"].value for x in (f"byte_{order}", f"token_{n}")]
        assert bits[0] == pytest.approx(bits[1], abs=0.05)
    seen = scores["test/baseline/seen/byte_1"].weight
    assert seen < scores["test/baseline/train/byte_1"].weight == context.data.train.text_bytes
    assert seen == pytest.approx(2 * 2 * 64, rel=0.1)
    text = (context.data.folder.parents[1] / "test.txt").read_bytes()
    gzip_bits = 8 * len(gzip.compress(text, 9, mtime=0)) / len(text)
    assert scores["test/baseline/split/gzip"].value == pytest.approx(gzip_bits, rel=0.02)


def test_scores_are_computed_once_for_a_text(context, monkeypatch):
    first = list(baselines.Baselines()(context))
    monkeypatch.setattr(baselines, "bits_by_order", lambda *args: pytest.fail("computed again"))
    assert list(baselines.Baselines()(context)) == first


def test_a_damaged_file_of_scores_is_computed_again(context):
    first = list(baselines.Baselines()(context))
    for path in (context.data.folder / baselines.CACHE_FOLDER).iterdir():
        path.write_text(path.read_text().replace("1", "7"))
    assert list(baselines.Baselines()(context)) == first


def test_repeated_rows_are_seen_once(context):
    """More steps over two repeated rows see no more text than the steps of one pass."""

    def weight(**changes):
        train = dataclasses.replace(context.settings.train, **changes)
        changed = types.SimpleNamespace(**vars(context))
        changed.settings = dataclasses.replace(context.settings, train=train)
        scores = {s.name: s.weight for s in baselines.Baselines()(changed)}
        return scores["test/baseline/seen/byte_1"]

    assert weight(steps=6, unique_tokens=128) == weight(steps=1) < weight(steps=6)


def test_a_run_that_trained_nothing_has_no_text_seen(context):
    """An imported checkpoint is such a run."""
    train = dataclasses.replace(context.settings.train, steps=0)
    untrained = types.SimpleNamespace(**vars(context))
    untrained.settings = dataclasses.replace(context.settings, train=train)
    names = [s.name for s in baselines.Baselines()(untrained)]
    assert names and not any("/seen/" in name for name in names)


@pytest.mark.parametrize("tokens", [8, 9, 11, 1000])
def test_text_is_decoded_in_pieces_that_end_with_a_character(tokens, monkeypatch):
    text = "naïve \U0001f9ff\U0001f9ff 日本語, \ufffd\ufffd and so on " * 3
    monkeypatch.setattr(seen_text, "DECODED_TOKENS", tokens)
    for tokenizer in (ByteTokenizer(), train_bpe(["plain text"], 270)):
        ids = tokenizer.encode([text])[0].astype(np.uint16)
        (passage,) = byte_passages(tokenizer, [Passage(ids)])
        assert passage.symbols.tobytes() == text.encode()
