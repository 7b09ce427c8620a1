"""Batches as a function of (seed, step), the rolling hash, reading ahead, evaluation windows."""

import hashlib
import threading
import time
import traceback

import numpy as np
import pytest
from data_stores import BOS, EOS, distinct, made_store, next_token
from hypothesis import given, settings
from hypothesis import strategies as st

from data.loader import Batches, eval_batches, read_ahead
from data.packing import DocumentSlice, PackedRows
from errors import ConfigError, DataError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return made_store(tmp_path_factory.mktemp("loader") / "s", distinct([30, 1, 7, 120, 55, 2]))


def batches(store, seed=3, batch=4, length=8, **world) -> Batches:
    return Batches(PackedRows(store, length, 1, seed), batch, next_token, seed, **world)


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


def test_a_batch_is_the_rows_of_its_step(store):
    packed = PackedRows(store, 8, 1, 3)
    got = batches(store)[5]
    assert {n: a.shape for n, a in got.items()} == dict.fromkeys(got, (4, 8))
    for place in range(4):
        pieces = [p.tokens for p in packed.row(5 * 4 + place)]
        assert got["tokens"][place].tolist() == np.concatenate([p[:-1] for p in pieces]).tolist()
        assert got["targets"][place].tolist() == np.concatenate([p[1:] for p in pieces]).tolist()


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    history=st.lists(st.integers(0, 300), max_size=6),
    step=st.integers(0, 300),
    world=st.sampled_from([1, 2, 4]),
)
def test_a_batch_depends_on_seed_and_step_alone(store, seed, history, step, world):
    # covers D9, D10: any history, any number of hosts, masks and noise included
    whole = batches(store, seed)
    hosts = [batches(store, seed, rank=rank, world_size=world) for rank in range(world)]
    for other in history:
        hosts[-1][other]
    parts = [host[step] for host in hosts]
    joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    assert equal(joined, whole[step])
    assert {host.digest(step) for host in hosts} == {whole.digest(step)}


def test_random_numbers_differ_by_row_step_and_seed(store):
    # covers N22: no generator is carried from batch to batch
    drawn = [batches(store, seed)[step]["noise"][:, 0] for seed in (3, 4) for step in range(20)]
    assert len(np.unique(np.concatenate(drawn))) == 2 * 20 * 4


def test_hosts_log_the_hash_of_the_global_batch(store):
    one, other = (batches(store, rank=rank, world_size=2) for rank in range(2))
    hashes = [[h for _, _, h in read_ahead(b, 0, 5, data_hash="")] for b in (one, other)]
    assert (
        hashes[0] == hashes[1] == [h for _, _, h in read_ahead(batches(store), 0, 5, data_hash="")]
    )


def test_every_position_can_be_resumed(store):
    # covers D10
    ahead = read_ahead(batches(store), 0, 40, data_hash="")
    straight = [(step, batch, rolling) for step, batch, rolling in ahead]
    assert [step for step, _, _ in straight] == list(range(40))
    for start in range(1, 40):
        resumed = read_ahead(batches(store), start, start + 1, data_hash=straight[start - 1][2])
        [(step, batch, rolling)] = list(resumed)
        assert (step, rolling) == (start, straight[start][2])
        assert equal(batch, straight[start][1])


def test_seed_length_and_batch_change_the_data(store):
    # covers D11: a run resumed with another of these has another hash
    variants = [batches(store), batches(store, seed=4), batches(store, length=9)]
    variants += [batches(store, batch=5)]
    assert len({v.update_hash("", 0) for v in variants}) == len(variants)


def test_the_rolling_hash_is_that_of_the_tokens(store):
    packed, ours = PackedRows(store, 8, 1, 3), batches(store)
    rolling = ""
    for step in range(3):
        tokens = [p.tokens for r in range(step * 4, step * 4 + 4) for p in packed.row(r)]
        raw = np.concatenate(tokens).astype("<i4").tobytes()
        expected = hashlib.sha256(f"{rolling}{hashlib.sha256(raw).hexdigest()}".encode())
        rolling = ours.update_hash(rolling, step)
        assert rolling == expected.hexdigest()
    silent = Batches(packed, 4, lambda pieces, length, rng: {"x": np.zeros(length)}, 3)
    assert silent.digest(2) == ours.digest(2)  # whatever the objective makes of the row


def test_epochs_and_unique_tokens_are_counted(store):
    ours = batches(store)
    total = 30 + 1 + 7 + 120 + 55 + 2 + 6  # an end for each of the six documents
    assert ours.row_source.epoch_length == total
    assert ours.count_tokens(3) == ours.count_unique_tokens(3) == 96
    assert ours.count_unique_tokens(100) == total
    assert ours.count_epochs(100) == pytest.approx(100 * 32 / total)


def test_too_little_text_for_one_batch_is_refused(store):
    # covers D3
    with pytest.raises(DataError, match="8 x 32 = 256 tokens, all the training text is 221;"):
        batches(store, batch=8, length=32)


def test_a_batch_that_hosts_cannot_share_is_refused(store):
    # covers D9
    with pytest.raises(
        ConfigError, match="4 sequences does not divide .* 3 hosts; nearest valid value: 3"
    ):
        batches(store, world_size=3)


@pytest.mark.parametrize("batch, length", [(1, 5), (3, 8), (4, 64), (7, 300)])
def test_windows_score_every_byte_once(store, batch, length):
    # covers D14: the last batch is padded, never dropped, and no shape changes
    found = list(eval_batches(store, batch, length, 1, next_token))
    assert len(found) == len(eval_batches(store, batch, length, 1, next_token))
    assert {b["tokens"].shape for b in found} == {(batch, length)}
    targets = np.concatenate([b["targets"][b["weights"] > 0] for b in found])
    documents = [store.document(d).tolist() for d in range(store.n_documents)]
    assert targets.tolist() == [t for d in documents for t in (*d, EOS)]
    assert sum(b["weights"].sum() for b in found) == store.text_bytes + store.n_documents
    for b in found:
        padding = b["weights"] == 0
        assert not b["segment_ids"][padding].any()
        assert (b["segment_ids"][~padding] > 0).all()


def test_windows_are_shared_by_hosts(store):
    whole = list(eval_batches(store, 4, 16, 1, next_token))
    parts = [
        list(eval_batches(store, 4, 16, 1, next_token, rank=r, world_size=2)) for r in range(2)
    ]
    for step, batch in enumerate(whole):
        joined = {n: np.concatenate([p[step][n] for p in parts]) for n in batch}
        assert equal(joined, batch)


class Squares:
    """Rows over an array of one's own."""

    row_length, epoch_length, unique_length, is_endless = 3, 30, 30, False

    def row(self, index: int) -> list[DocumentSlice]:
        values = np.arange(3 * index, 3 * index + 3, dtype=np.int32)
        return [DocumentSlice(values**2, index, 0)] if index < 10 else []


def test_rows_of_ones_own_make_batches():
    def example(pieces, length, rng):
        return {"x": pieces[0] if pieces else np.full(length, -1)}

    ours = Batches(Squares(), 4, example, 0)
    got = np.concatenate([b["x"] for b in ours]).ravel()
    assert got.tolist() == [i**2 for i in range(30)] + [-1] * 6


class Raising(Squares):
    is_endless = True

    def row(self, index: int) -> list[DocumentSlice]:
        if index == 3:
            raise_here()
        return super().row(index % 10)


def raise_here() -> None:
    raise ZeroDivisionError("a worker's own error")


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_an_error_in_a_thread_comes_out_as_it_was(threads):
    # covers D12
    ours = Batches(Raising(), 1, lambda pieces, length, rng: {"x": pieces[0]}, 0)
    ahead = read_ahead(ours, 0, num_threads=threads, buffer_size=4)
    seen = []
    with pytest.raises(ZeroDivisionError, match="a worker's own error") as caught:
        for step, _, _ in ahead:
            seen.append(step)  # noqa: PERF402
    frames = [f.name for f in traceback.extract_tb(caught.value.__traceback__)]
    assert seen == [0, 1, 2]
    assert "raise_here" in frames
    assert list(ahead) == []  # no later step is served, and nothing hangs


class Slow(Squares):
    is_endless = True

    def row(self, index: int) -> list[DocumentSlice]:
        time.sleep(0.05)
        return super().row(index % 10)


def test_a_slow_source_shows_as_waiting():
    # covers D13
    ours = Batches(Slow(), 1, lambda pieces, length, rng: {"x": pieces[0]}, 0)
    with read_ahead(ours, 0, 6, buffer_size=1) as ahead:
        steps = [step for step, _, _ in ahead]
    assert steps == list(range(6))
    assert 0.2 < ahead.wait_seconds < 5


def test_building_goes_on_while_the_caller_works():
    ours = Batches(Slow(), 1, lambda pieces, length, rng: {"x": pieces[0]}, 0)
    with read_ahead(ours, 0, 20, buffer_size=20) as ahead:
        next(ahead)
        before = ahead.wait_seconds
        time.sleep(0.6)
        for _ in range(5):
            next(ahead)
        assert ahead.wait_seconds - before < 0.2


def test_closing_stops_the_threads():
    ours = Batches(Slow(), 1, lambda pieces, length, rng: {"x": pieces[0]}, 0)
    with read_ahead(ours, 0) as ahead:
        next(ahead)
    deadline = time.monotonic() + 5
    while any("grain" in t.name for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_reading_ahead_gives_what_indexing_gives(store):
    ours = batches(store)
    for step, batch, rolling in read_ahead(ours, 7, 12, num_threads=2, buffer_size=3):
        assert equal(batch, ours[step])
        assert rolling is None
    assert list(read_ahead(ours, 5, 5)) == []


def test_documents_begin_and_end_where_they_should(store):
    whole = list(eval_batches(store, 2, 50, 1, next_token))
    tokens = np.concatenate([b["tokens"].ravel() for b in whole])
    targets = np.concatenate([b["targets"].ravel() for b in whole])
    positions = np.concatenate([b["positions"].ravel() for b in whole])
    assert (tokens == BOS).sum() == (targets == EOS).sum() == store.n_documents
    assert not (tokens == EOS).any()
    assert (positions[tokens == BOS] == 0).all()
