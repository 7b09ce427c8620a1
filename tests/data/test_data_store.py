"""Token stores: counts, widths, damage, ids out of range."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from data_stores import distinct, made_store

from data.framing import default_framing
from data.packing import PackedRows
from data.store import TokenStore
from data.store_writer import TokenStoreWriter
from data.tokenizers import ByteTokenizer
from errors import DataError


class Wide(ByteTokenizer):
    """A tokenizer that has, or claims, another number of ids."""

    def __init__(self, vocab: int):
        super().__init__()
        self.vocab_size = vocab


def test_a_store_holds_documents_and_counts(tmp_path):
    # covers N17: empty documents are dropped and counted
    documents = distinct([3, 0, 1, 500, 0])
    store = made_store(tmp_path / "s", documents)
    kept = [d.tolist() for d in documents if len(d)]
    assert [store.document(i).tolist() for i in range(store.n_documents)] == kept
    assert store.lengths.tolist() == [3, 1, 500]
    assert (store.n_tokens, store.text_bytes, store.index["dropped"]) == (504, 504, 2)
    assert store.slice(2, 10, 20).tolist() == documents[3][10:20].tolist()
    raw = (tmp_path / "s" / "tokens.bin").read_bytes()
    assert raw == np.concatenate(documents).astype("<u2").tobytes()
    assert (tmp_path / "s" / "offsets.bin").read_bytes() == np.array(
        [0, 3, 4, 504], "<i8"
    ).tobytes()


@pytest.mark.parametrize("vocab, width", [(1 << 16, 2), ((1 << 16) + 1, 4)])
def test_ids_are_never_narrowed(tmp_path, vocab, width):
    # covers D8
    writer = TokenStoreWriter(tmp_path / "s", Wide(vocab))
    writer.add([np.array([0, vocab - 1])], [2])
    writer.finish({})
    assert (tmp_path / "s" / "tokens.bin").stat().st_size == 2 * width
    assert TokenStore(tmp_path / "s").document(0).tolist() == [0, vocab - 1]


@pytest.mark.parametrize("bad", [365, 65_536 + 5, -1])
def test_ids_outside_the_vocabulary_are_not_written(tmp_path, bad):
    # covers D8, N21
    writer = TokenStoreWriter(tmp_path / "s", ByteTokenizer())
    writer.add([np.arange(4)], [4])
    with pytest.raises(
        DataError, match=rf"tokens.bin: token 6 \(document 2\) has id {bad}, .* 365"
    ):
        writer.add([np.arange(1), np.array([9, bad])], [1, 2])


def test_ids_outside_the_vocabulary_are_not_read(tmp_path):
    # covers N21: a store that is whole but does not belong to its vocabulary
    store = made_store(tmp_path / "s", distinct([10, 20]))
    raw = np.fromfile(tmp_path / "s" / "tokens.bin", "<u2")
    raw[17] = 365
    raw.tofile(tmp_path / "s" / "tokens.bin")
    store = TokenStore(tmp_path / "s", verify=False)
    assert len(store.document(0)) == 10
    with pytest.raises(
        DataError, match=r"tokens.bin: token 17 \(document 1\) has id 365, .* 365 ids"
    ):
        store.document(1)
    packed = PackedRows(store, 8, 1, seed=0)
    with pytest.raises(DataError, match="token 17"):
        for row in range(10):
            packed.row(row)


def edit(folder: Path, **changes) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | changes))


DAMAGE = {
    # covers D4, D5: how a store is spoilt, what the error says
    "truncated": (lambda f: os.truncate(f / "tokens.bin", 59), "tokens.bin has 59 bytes, .* 60"),
    "grown": (lambda f: os.truncate(f / "offsets.bin", 32), "offsets.bin has 32 bytes, .* 24"),
    "tokens gone": (lambda f: (f / "tokens.bin").unlink(), "tokens.bin is missing"),
    "offsets gone": (lambda f: (f / "offsets.bin").unlink(), "offsets.bin is missing"),
    "index gone": (lambda f: (f / "index.json").unlink(), "index.json is missing"),
    "no JSON": (lambda f: (f / "index.json").write_text("{"), "index.json cannot be read"),
    "nested": (lambda f: (f / "index.json").write_text("[" * 99_999), "index.json cannot be read"),
    "no counts": (lambda f: (f / "index.json").write_text('{"format": 1}'), "cannot be read"),
    "newer": (lambda f: edit(f, format=2), "has format 2, this version reads up to 1; update"),
    "narrow": (lambda f: edit(f, vocab=70_000), "entries that contradict"),
    "wrong count": (lambda f: edit(f, tokens=29), "entries that contradict"),
    "wrong type": (lambda f: edit(f, documents="2"), "index.json"),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("verify", [True, False])
def test_damage_is_refused(tmp_path, name, verify):
    spoil, message = DAMAGE[name]
    made_store(tmp_path / "s", distinct([10, 20]))
    spoil(tmp_path / "s")
    with pytest.raises(DataError, match=message):
        TokenStore(tmp_path / "s", verify=verify)


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin"])
def test_a_flipped_bit_is_found(tmp_path, name):
    # covers D5
    made_store(tmp_path / "s", distinct([10, 20]))
    raw = bytearray((tmp_path / "s" / name).read_bytes())
    raw[9] ^= 4
    (tmp_path / "s" / name).write_bytes(raw)
    with pytest.raises(DataError, match=f"{name} is damaged: sha256"):
        TokenStore(tmp_path / "s")
    if name == "tokens.bin":
        TokenStore(tmp_path / "s", verify=False)
    else:
        with pytest.raises(DataError, match="does not divide tokens 0 to 30"):
            TokenStore(tmp_path / "s", verify=False)


@pytest.mark.parametrize(("name", "value"), [("text_bytes", 501), ("bos", 256), ("dropped", 7)])
def test_a_digit_of_the_index_is_covered_too(tmp_path, name, value):
    # covers D5: bits per byte are divided by text_bytes
    made_store(tmp_path / "s", distinct([10, 20]))
    edit(tmp_path / "s", **{name: value})
    with pytest.raises(DataError, match=r"index.json is damaged: its sha256"):
        TokenStore(tmp_path / "s", verify=False)


def test_specials_travel_with_the_store(tmp_path):
    tokenizer = ByteTokenizer()
    tokenizer.fingerprint = "0" * 64  # covers D7: equal ids of another tokenizer
    tokenizer.framing = default_framing(-1, 3, 1)
    writer = TokenStoreWriter(tmp_path / "s", tokenizer)
    writer.add(distinct([4]), [4])
    writer.finish({})
    store = TokenStore(tmp_path / "s")
    other = made_store(tmp_path / "other", distinct([4]))
    assert (store.bos, store.eos, store.vocab_size) == (-1, 3, 365)
    assert store.fingerprint != other.fingerprint
    assert store.n_targets == 5
    assert PackedRows(store, 5, 1).row(0)[0].tokens[0] == 3  # A document follows the eos before.
