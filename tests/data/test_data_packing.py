"""Packing: every position of every document once per epoch, in rows found without state."""

import math
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_stores import BOS, EOS, distinct, made_store
from hypothesis import given, settings
from hypothesis import strategies as st

from data.packing import DocumentSlice, PackedRows
from data.random_streams import RandomStream, permutation
from data.store import TokenStore
from data.store_writer import TokenStoreWriter
from data.tokenizers import ByteTokenizer

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)


def framed(store: TokenStore) -> list[list[int]]:
    return [[BOS, *store.document(d).tolist(), EOS] for d in range(store.n_documents)]


def positions(piece: DocumentSlice, overlap: int) -> int:
    return len(piece.tokens) - overlap


@settings(deadline=None, max_examples=150)
@given(LENGTHS, st.integers(1, 50), st.sampled_from([0, 1]), st.integers(0, 2**63 - 1))
def test_each_epoch_shows_every_position_once(lengths, length, overlap, seed):
    # covers D14, N17: lengths 0 and 1 among them
    with tempfile.TemporaryDirectory() as folder:
        store = made_store(Path(folder) / "s", distinct(lengths))
    kept = [n for n in lengths if n]
    assert store.n_documents == len(kept)
    packed = PackedRows(store, length, overlap, seed)
    epoch = sum(n + 2 - overlap for n in kept)
    assert packed.epoch_length == epoch
    truth = framed(store)
    epochs = length // math.gcd(length, epoch)  # after these, rows and epochs end together
    seen: Counter = Counter()
    for row in range(epochs * epoch // length):
        pieces = packed.row(row)
        assert sum(positions(p, overlap) for p in pieces) == length
        for piece in pieces:
            count = positions(piece, overlap)
            assert count > 0
            stop = piece.start + count
            assert piece.tokens.dtype == np.int32
            assert piece.tokens.tolist() == truth[piece.document][piece.start : stop + overlap]
            seen.update((piece.document, i) for i in range(piece.start, stop))
    want = {(d, i) for d, n in enumerate(kept) for i in range(n + 2 - overlap)}
    assert seen == dict.fromkeys(want, epochs)


@settings(deadline=None, max_examples=100)
@given(LENGTHS, st.integers(1, 50), st.sampled_from([0, 1]))
def test_one_pass_is_in_order_and_ends_short(lengths, length, overlap):
    # covers D14: evaluation pads, it does not drop or repeat
    with tempfile.TemporaryDirectory() as folder:
        store = made_store(Path(folder) / "s", distinct(lengths))
    packed = PackedRows(store, length, overlap)
    rows = -(-packed.epoch_length // length)
    pieces = [p for r in range(rows) for p in packed.row(r)]
    assert packed.row(rows) == [] == packed.row(rows + 5)
    sizes = [sum(positions(p, overlap) for p in packed.row(r)) for r in range(rows)]
    assert sizes[:-1] == [length] * (rows - 1)
    joined: list[list[int]] = [[] for _ in range(store.n_documents)]
    for piece in pieces:
        assert piece.start == len(joined[piece.document])
        joined[piece.document] += piece.tokens[: positions(piece, overlap)].tolist()
    cut = [f[:-1] if overlap else f for f in framed(store)]
    assert joined == cut
    assert [p.document for p in pieces] == sorted(p.document for p in pieces)


def test_pieces_of_a_cut_document_share_the_overlap(tmp_path):
    store = made_store(tmp_path / "s", [np.arange(10, dtype=np.int32)])
    causal = [p.tokens.tolist() for r in range(3) for p in PackedRows(store, 4, 1).row(r)]
    assert causal == [[BOS, 0, 1, 2, 3], [3, 4, 5, 6, 7], [7, 8, 9, EOS]]
    masked = [p.tokens.tolist() for r in range(3) for p in PackedRows(store, 4, 0).row(r)]
    assert masked == [[BOS, 0, 1, 2], [3, 4, 5, 6], [7, 8, 9, EOS]]


@pytest.mark.parametrize("overlap", [0, 1])
def test_a_row_reads_the_weights_of_its_tokens_alone(tmp_path, monkeypatch, overlap):
    """A position has the weight of the token it predicts: bos 0, eos that of the last token."""
    documents = distinct([50, 1, 7])
    given = [np.arange(1, len(d) + 1, dtype=np.float32) for d in documents]
    writer = TokenStoreWriter(tmp_path / "store", ByteTokenizer(), has_weights=True)
    writer.add_weighted(documents, [len(d) for d in documents], given)
    writer.finish({})
    store = TokenStore(tmp_path / "store")
    read, sizes = store.weights, []

    def counted(document, start, stop):
        sizes.append(stop - start)
        return read(document, start, stop)

    monkeypatch.setattr(store, "weights", counted)
    for length in (1, 3, 8, 70):
        rows = PackedRows(store, length, overlap)
        found = {i: [] for i in range(3)}
        for index in range(-(-rows.epoch_length // length)):
            for piece in rows.row(index):
                assert piece.weights is not None and piece.weights.dtype == np.float32
                assert len(piece.weights) == len(piece.tokens) - overlap
                found[piece.document] += piece.weights.tolist()
        for document, weights in enumerate(given):
            assert found[document] == [0, *weights.tolist(), weights[-1]][overlap:]
        assert max(sizes) <= length
        sizes.clear()


def test_epochs_and_seeds_differ_and_repeat_themselves(tmp_path):
    store = made_store(tmp_path / "s", distinct([14] * 30))  # rows and documents coincide

    def order(seed: int, epoch: int) -> list[int]:
        packed = PackedRows(store, 15, 1, seed)
        return [packed.row(epoch * 30 + r)[0].document for r in range(30)]

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(o) == list(range(30)) for o in orders)
    assert len({tuple(o) for o in orders}) == 4
    assert order(0, 1) == orders[1]


def test_every_epoch_has_other_neighbours(tmp_path):
    store = made_store(tmp_path / "s", distinct([3] * 40))  # two documents in a row
    packed = PackedRows(store, 8, 1, 0)

    def pairs(epoch: int) -> set[frozenset[int]]:
        rows = range(epoch * 20, epoch * 20 + 20)
        return {frozenset(p.document for p in packed.row(r)) for r in rows}

    assert len(pairs(0)) == len(pairs(1)) == 20
    assert len(pairs(0) & pairs(1)) < 5
    assert len(pairs(0) & {frozenset((d, d + 1)) for d in range(0, 40, 2)}) < 5


def test_rows_next_to_each_other_come_from_different_places(tmp_path):
    # one long document: in stream order a batch would be a single passage of it
    store = made_store(tmp_path / "s", distinct([10_000]))
    packed = PackedRows(store, 50, 1, 3)
    starts = [packed.row(r)[0].start for r in range(100)]
    assert np.ptp(starts) > 5000
    assert sum(abs(a - b) == 50 for a, b in zip(starts, starts[1:], strict=False)) < 10


def test_rows_far_away_need_no_history(tmp_path):
    # covers N20: row numbers beyond 32 bits
    store = made_store(tmp_path / "s", distinct([5, 9, 2]))
    far = 2**40 + 3
    first = [p.tokens.tolist() for p in PackedRows(store, 7, 1, 11).row(far)]
    packed = PackedRows(store, 7, 1, 11)
    for r in range(50):
        packed.row(r)
    assert [p.tokens.tolist() for p in packed.row(far)] == first


def test_the_order_is_pinned():
    # the order of six words of Philox4x64-10, which a new numpy must not change under a run
    words = np.random.Philox(counter=[0, 0, 0, 1], key=[5, 2]).random_raw(6).tolist()
    order = permutation(5, 2, RandomStream.DOCUMENTS, 6).tolist()
    assert order == sorted(range(6), key=words.__getitem__) == [2, 3, 5, 1, 4, 0]
