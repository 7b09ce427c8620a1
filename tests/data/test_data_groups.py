"""Tests groups of documents: shares by temperature, the store, and bits per byte by group."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from oracle import Bigram, eval_context, nats, successor

from data.groups.settings import GroupConfig
from data.groups.shares import epoch_documents
from data.open_stores import open_data
from data.packing import PackedRows
from data.settings import DataConfig
from errors import ConfigError, DataError
from eval.tasks.bits_per_byte import BitsPerByte
from eval.tasks.by_group import GroupBitsPerByte
from settings.changes import with_changes

SIZES = {"en": 60, "de": 12, "ja": 2}  # Documents by group.


def write(folder, sizes=None, field="language"):
    rng = np.random.default_rng(0)
    lines = [
        json.dumps({"text": "".join(rng.choice(list("abcdé"), rng.integers(20, 60))), field: name})
        for name, count in (sizes or SIZES).items()
        for _ in range(count)
    ]
    rng.shuffle(lines)
    path = folder / "texts.jsonl"
    path.write_text("\n".join(lines))
    return path


def config(folder, **changes):
    names = [name for name in ("field", "temperature") if name in changes]
    groups = GroupConfig(**({"field": "language"} | {name: changes.pop(name) for name in names}))
    settings = {"valid_share": 0.2, "test_share": 0.2, "groups": groups} | changes
    path = str(folder / "texts.jsonl")
    return DataConfig(source="jsonl", path=path, cache=str(folder / "cache"), **settings)


@pytest.mark.parametrize("temperature", [1.0, 1.5, 3.0, 100.0])
def test_shares_are_those_of_the_temperature(temperature):
    rng = np.random.default_rng(1)
    groups = np.repeat([0, 1, 2], [800, 150, 40])
    rng.shuffle(groups)
    lengths = rng.integers(5, 40, len(groups))
    documents = epoch_documents(lengths, groups, temperature)
    sizes = np.bincount(groups, lengths)
    sampled = np.bincount(groups[documents], lengths[documents])
    expected = sizes ** (1 / temperature)
    np.testing.assert_allclose(sampled / sampled.sum(), expected / expected.sum(), atol=0.003)
    counts = np.bincount(documents, minlength=len(groups))
    assert counts.min() == 1 and (counts[groups == 0] == 1).all()  # Nothing is left out.
    assert all(np.ptp(counts[groups == g]) <= 1 for g in range(3))
    assert temperature > 1 or np.array_equal(documents, np.arange(len(groups)))


def test_rows_of_training_follow_the_temperature_and_held_out_rows_do_not(tmp_path):
    write(tmp_path)
    plain, even = (open_data(config(tmp_path, temperature=t)) for t in (1.0, 1000.0))
    assert plain.folder == even.folder and plain.fingerprint == even.fingerprint
    store = even.train
    rows = PackedRows(store, 16, 1, seed=3)
    n_rows = -(-rows.epoch_length // 16)
    seen = [item for i in range(n_rows) for item in rows.row(i)]
    totals = np.zeros(3)
    for item in seen:
        totals[store.groups[item.document]] += len(item.tokens) - 1
    np.testing.assert_allclose(totals / totals.sum(), 1 / 3, atol=0.04)
    assert rows.unique_length == PackedRows(plain.train, 16, 1, seed=3).epoch_length
    assert rows.epoch_length > 2 * rows.unique_length > 0
    held = PackedRows(even.valid, 16, 1)
    assert held.epoch_length == held.unique_length
    assert {item.document for i in range(n_rows) for item in rows.row(i)} == {
        *range(store.n_documents)
    }


def test_the_store_counts_each_group(tmp_path):
    path = write(tmp_path)
    data, lines = open_data(config(tmp_path)), map(json.loads, path.read_text().splitlines())
    by_text = {line["text"]: line["language"] for line in lines}
    totals = dict.fromkeys(SIZES, 0)
    for split in ("train", "valid", "test"):
        store = getattr(data, split)
        assert data.describe()[split]["groups"] == store.index["groups"]
        texts = [data.tokenizer.decode(store.document(d)) for d in range(store.n_documents)]
        names = [store.group_names[g] for g in store.groups]
        assert names == [by_text[text] for text in texts]
        for name, counts in store.index["groups"].items():
            size = sum(len(t.encode()) for t, n in zip(texts, names, strict=True) if n == name)
            assert counts["text_bytes"] == counts["tokens"] == size
            totals[name] += counts["documents"]
    assert totals == SIZES
    damaged = data.folder / "train" / "groups.bin"
    raw = bytearray(damaged.read_bytes())
    raw[0] ^= 1
    damaged.write_bytes(raw)
    with pytest.raises(DataError, match="groups.bin is damaged: sha256 differs"):
        _ = open_data(config(tmp_path)).train


def test_bits_per_byte_by_group_add_up_to_the_whole(tmp_path):
    write(tmp_path)
    data = open_data(config(tmp_path))
    table = successor()
    ctx = eval_context(Bigram(jnp.asarray(table, jnp.float32)), length=16)._replace(data=data)
    ctx = ctx._replace(settings=with_changes(ctx.settings, {"eval.limit": 0}))
    scores = {s.name: s for s in GroupBitsPerByte(splits=("test",))(ctx)}
    (whole,) = (s for s in BitsPerByte(splits=("test",))(ctx) if s.name == "test/bits_per_byte")
    store = data.test
    parts = [scores[f"test/{name}/bits_per_byte"] for name in store.group_names]
    assert sum(p.weight for p in parts) == whole.weight
    total = sum(p.value * p.weight for p in parts)
    assert total / whole.weight == pytest.approx(whole.value, rel=1e-5)
    # One group by a loop over its texts: each byte after its predecessor, then the end.
    name, eos = store.group_names[0], data.tokenizer.specials.eos
    sums = n_bytes = 0.0
    for d in np.flatnonzero(store.groups == 0):
        raw = store.document(int(d))
        # A window cuts a document where the bigram still knows the last byte: nothing is lost.
        sums += nats(table, data.tokenizer.decode(raw)).sum()
        row = table[raw[-1]]
        sums += math.log(np.exp(row).sum()) - row[eos]
        n_bytes += len(raw)
    assert scores[f"test/{name}/bits_per_byte"].value == pytest.approx(
        sums / math.log(2) / n_bytes, rel=1e-5
    )
    assert scores[f"test/{name}/tokens_per_byte"].value == 1
    limited = ctx._replace(settings=with_changes(ctx.settings, {"eval.limit": 128}))
    part = {s.name: s for s in GroupBitsPerByte(splits=("test",))(limited)}
    assert sum(s.weight for n, s in part.items() if n.endswith("bits_per_byte")) <= 128
    (tmp_path / "none").mkdir()
    write(tmp_path / "none")
    bare = ctx._replace(data=open_data(config(tmp_path / "none", field="")))
    with pytest.raises(ConfigError, match="task by_group needs groups of documents, and"):
        list(GroupBitsPerByte()(bare))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chat_template": "chatml"}, "data.groups.field 'language' needs data.source jsonl"),
        ({"field": "", "temperature": 2.0}, "temperature 2 needs data.groups.field"),
        ({"temperature": 0.5}, "temperature is 0.5, must be >= 1"),
    ],
)
def test_settings_of_groups_that_contradict_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **changes)


def test_a_document_without_a_group_is_refused_with_its_line(tmp_path):
    write(tmp_path, field="lang")
    with pytest.raises(DataError, match="texts.jsonl: the line at byte 0 has None under 'langu"):
        open_data(config(tmp_path))
    write(tmp_path, {"a/b": 9})
    with pytest.raises(DataError, match="has 'a/b' under 'language', must be a name of letters"):
        open_data(config(tmp_path))
