"""Records: what a line may say, what is refused, and rows of texts that are read alone."""

import json

import numpy as np
import pytest
from data_stores import BOS, EOS, distinct, made_store

from data import corpus
from data.open_stores import open_data
from data.settings import DataConfig
from data.store import TokenStore
from data.store_writer import TokenStoreWriter
from data.text_rows import index_slices, index_text_pairs, make_row_source
from data.tokenizers import ByteTokenizer
from errors import ConfigError, DataError
from objectives import RowSpec


@pytest.fixture
def lines(tmp_path):
    """A function from records to the settings that read them as JSON lines."""

    def made(found, **changes):
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, found)))
        return DataConfig(
            source="jsonl",
            path=str(tmp_path / "pairs.jsonl"),
            cache=str(tmp_path / "cache"),
            valid_share=0.2,
            test_share=0.2,
            **changes,
        )

    return made


def texts_of(store: TokenStore) -> list[tuple[str, ...]]:
    ends = store.record_offsets.tolist()
    words = [bytes(store.document(d).tolist()).decode() for d in range(store.n_documents)]
    return [tuple(words[a:b]) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def test_every_way_to_spell_a_record(lines):
    found = [{"a": f"a{i}", "b": f"b{i}"} for i in range(30)]
    found += [
        {"anchor": "q", "positive": "p"},
        {"anchor": "x", "positive": "y", "negative": "z"},
        {"anchor": "k", "positive": "l", "negatives": ["m", "n"]},
        {"anchor": "o", "positive": "r", "negatives": []},
    ]
    data = open_data(lines(found), ("text_pairs",))
    read = [r for split in (data.train, data.valid, data.test) for r in texts_of(split)]
    expected = [(f"a{i}", f"b{i}") for i in range(30)]
    expected += [("q", "p"), ("x", "y", "z"), ("k", "l", "m", "n"), ("o", "r")]
    assert sorted(read) == sorted(expected)
    assert data.fingerprint == open_data(lines(found), ("text_pairs",)).fingerprint


def test_records_with_one_anchor_stay_in_one_split(lines):
    # covers D15
    found = [{"a": f"anchor {i % 20}", "b": f"b{i}"} for i in range(100)]
    data = open_data(lines(found), ("text_pairs",))
    anchors = [{r[0] for r in texts_of(s)} for s in (data.train, data.valid, data.test)]
    assert all(anchors) and sum(map(len, anchors)) == 20


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"a": "x", "b": " "}, "line at byte 26 has no text under 'b'"),
        ({"anchor": "", "positive": "y"}, "no text under 'anchor'"),
        ({"anchor": "x", "positive": "y", "negatives": ["z", ""]}, "no text under 'negatives'"),
        ({"anchor": "x", "positive": "y", "negatives": 5}, "no text under 'negatives'"),
        ({"anchor": "x", "positive": "y", "negative": {"z": 1}}, "no text under 'negatives'"),
        ({"a": "x", "b": 3}, "no text under 'b'"),
        ({"text": "alone"}, "must hold anchor, positive.*it holds: text"),
        (["a", "b"], "holds list"),
    ],
)
def test_a_record_with_an_empty_side_is_refused_by_its_place(lines, record, said):
    # covers N17 D16
    found = [{"a": "xx", "b": "yyyyy"}, record] + [{"a": f"a{i}", "b": "b"} for i in range(20)]
    with pytest.raises(DataError, match=f"pairs.jsonl: the .*{said}") as error:
        open_data(lines(found), ("text_pairs",))
    assert "\n" not in str(error.value)
    data = open_data(lines(found, on_error="skip"), ("text_pairs",))
    skipped = sum(s.index["skipped"] for s in (data.train, data.valid, data.test))
    assert skipped == 1
    assert sum(len(s.record_offsets) - 1 for s in (data.train, data.valid, data.test)) == 21


def test_the_embedded_corpus_has_its_verses_as_pairs(tmp_path):
    """As many as its description says: 28,691, 1,222 and 1,186."""
    data = open_data(DataConfig(cache=str(tmp_path)), ("text_pairs",))
    counts = [len(s.record_offsets) - 1 for s in (data.train, data.valid, data.test)]
    assert counts == [28_691, 1_222, 1_186]
    assert texts_of(data.valid)[0][0].startswith("Now it happened in the days of Ahasuerus")


def test_a_verse_has_those_around_it_as_hard_negatives():
    """As far as its chapter goes: Esther 1 has 22 verses, of which the first has none before it."""
    plain, around = list(corpus.iter_text_pairs("valid")), list(corpus.iter_text_pairs("valid", 2))
    assert [record[:2] for record in around] == plain
    literal = [match for _, match in plain]
    assert around[0][2:] == tuple(literal[1:3])
    assert around[5][2:] == (*literal[3:5], *literal[6:8])
    assert around[21][2:] == tuple(literal[19:21])
    assert around[22][2:] == tuple(literal[23:25])
    with pytest.raises(
        ConfigError, match="data.adjacent_negatives 1 are verses.*'text'; set it to 0"
    ):
        DataConfig(source="text", path="x", adjacent_negatives=1)


def test_hard_negatives_that_no_record_has_are_refused(tmp_path):
    store = store_of(tmp_path / "s", [(3, 2), (4, 3, 5)])
    make_row_source(store, RowSpec(8, 0, "bidirectional", row_kind="text_pairs", n_texts=3))
    with pytest.raises(
        DataError, match="no text pair has more than 1.*hard_negatives is 2; set it to 1"
    ):
        make_row_source(store, RowSpec(8, 0, "bidirectional", row_kind="text_pairs", n_texts=4))


def store_of(folder, sizes) -> TokenStore:
    rng = np.random.default_rng(1)
    writer = TokenStoreWriter(folder, ByteTokenizer(), has_records=True)
    made = [([rng.integers(256, size=n).astype(np.int32) for n in some], 7) for some in sizes]
    writer.add_records(made)
    writer.finish({})
    return TokenStore(folder)


def test_a_record_with_an_empty_text_is_dropped_whole(tmp_path):
    # covers N17
    store = store_of(tmp_path / "s", [(3, 2), (4, 0), (1, 1, 9)])
    assert store.record_offsets.tolist() == [0, 2, 5] and store.index["dropped"] == 1
    assert store.text_bytes == 14


def test_rows_are_all_records_in_a_new_order_each_epoch(tmp_path):
    store = store_of(tmp_path / "s", [(3, 2), (4, 30), (1, 1, 9), (8, 8)])
    wanted = RowSpec(8, 0, "bidirectional", row_kind="text_pairs", n_texts=2)
    rows = make_row_source(store, wanted, 5)
    epochs = [[rows.row(e * 4 + i) for i in range(4)] for e in range(3)]
    orders = [[row[0].document for row in epoch] for epoch in epochs]
    assert all(sorted(order) == [0, 2, 4, 7] for order in orders) and orders[0] != orders[1]
    assert (
        len(make_row_source(store, wanted).row(2)) == 3
        and make_row_source(store, wanted).row(4) == []
    )
    assert rows.epoch_length == 4 * rows.row_length == 4 * 16
    long = make_row_source(store, wanted).row(1)[1].tokens
    assert len(long) == 8 and (long[0], long[-1]) == (BOS, EOS)
    assert long[1:-1].tolist() == store.document(3)[:6].tolist()
    again = make_row_source(store, wanted, 5)
    assert all((again.row(9)[k].tokens == rows.row(9)[k].tokens).all() for k in range(2))


def test_pieces_cover_every_document_once(tmp_path):
    store = made_store(tmp_path / "s", distinct([5, 1, 6, 7]))
    rows = make_row_source(store, RowSpec(5, 0, "bidirectional", row_kind="slices", n_texts=2))
    found = [rows.row(i) for i in range(len(index_slices(store, 3).first_document))]
    for document in range(4):
        own = [p.tokens for row in found for p in row if p.document == document]
        assert all((t[0], t[-1]) == (BOS, EOS) and len(t) <= 5 for t in own)
        joined = np.concatenate([t[1:-1] for t in own])
        assert joined.tolist() == store.document(document).tolist()
    with pytest.raises(DataError, match="holds documents, no text pairs"):
        index_text_pairs(store)


def test_a_store_whose_records_are_damaged_is_refused(tmp_path):
    store = store_of(tmp_path / "s", [(3, 2), (4, 3)])
    path = store.folder / "records.bin"
    raw = np.fromfile(path, "<i8")
    raw[1] = 4
    raw.tofile(path)
    with pytest.raises(DataError, match="damaged"):
        TokenStore(store.folder)
    with pytest.raises(DataError, match="does not divide documents"):
        TokenStore(store.folder, verify=False)
