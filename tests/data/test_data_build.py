"""Building token stores: fingerprints, refusals, many builders at once, full disks."""

import json
import multiprocessing
import os
import random
import shutil
import threading

import pytest

from data import build_store, fetch, fill_stores
from data.open_stores import open_data
from data.settings import DataConfig
from data.store_writer import TokenStoreWriter
from errors import ConfigError, DataError, DiskError
from hub.download import check_source
from storage import scratch

SPLITS = ("train", "valid", "test")


@pytest.fixture
def texts(tmp_path):
    """Settings for three small files and a cache of their own."""
    for split in SPLITS:
        (tmp_path / f"{split}.txt").write_text(f"Text of the {split} split. " * 40)
    paths = {"path": "train", "valid_path": "valid", "test_path": "test"}
    named = {key: str(tmp_path / f"{name}.txt") for key, name in paths.items()}
    return {"source": "text", "cache": str(tmp_path / "cache"), **named}


def test_open_data_gives_the_text_of_the_files(texts, tmp_path):
    opened = open_data(DataConfig(**texts))
    for split in SPLITS:
        raw = (tmp_path / f"{split}.txt").read_bytes()
        store = getattr(opened, split)
        assert opened.tokenizer.decode(store.document(0)) == raw.decode()
        assert (store.n_documents, store.n_tokens, store.text_bytes) == (1, len(raw), len(raw))
        assert opened.describe()[split]["text_bytes"] == len(raw)
    json.dumps(opened.describe())


def test_a_warm_cache_reads_no_text(texts, monkeypatch):
    first = open_data(DataConfig(**texts))

    def none(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(build_store, "_build", none)
    again = open_data(DataConfig(**texts))
    assert again.folder == first.folder
    assert again.train.fingerprint == first.train.fingerprint
    with pytest.raises(AssertionError, match="read again"):
        open_data(DataConfig(**texts | {"on_error": "replace"}))


def test_the_fingerprint_follows_the_text_and_the_tokenizer(texts, tmp_path):
    # covers D6, D7
    def now(**changes) -> str:
        return open_data(DataConfig(**texts | changes)).fingerprint

    original = now()
    train = tmp_path / "train.txt"
    os.utime(train, ns=(1, 1))
    assert now() == original  # touched
    train.rename(tmp_path / "renamed.txt")
    assert now(path=str(tmp_path / "renamed.txt")) == original
    (tmp_path / "zz.more").write_text("more")
    added = now(path=f"{tmp_path}/renamed.txt,{tmp_path}/zz.more")
    reordered = now(path=f"{tmp_path}/zz.more,{tmp_path}/renamed.txt")
    bpe = now(path=str(tmp_path / "renamed.txt"), tokenizer="bpe:260")
    (tmp_path / "test.txt").write_text("another test split")
    judged = now(path=str(tmp_path / "renamed.txt"))
    assert len({original, added, reordered, bpe, judged}) == 5


def test_a_tokenizer_swapped_in_the_cache_is_refused(texts):
    # covers D7
    ours, other = (DataConfig(**texts, tokenizer=t) for t in ("bpe:260", "bpe:262"))
    first, second = open_data(ours), open_data(other)
    shutil.copy(second.folder / "tokenizer.json", first.folder / "tokenizer.json")
    for reach in (lambda d: d.train, lambda d: d.fingerprint, lambda d: d.describe()):
        with pytest.raises(DataError, match=f"made with tokenizer .*delete {first.folder}"):
            reach(open_data(ours))


def test_damage_in_the_cache_names_the_way_out(texts):
    opened = open_data(DataConfig(**texts))
    raw = bytearray((opened.folder / "valid" / "tokens.bin").read_bytes())
    raw[3] ^= 1
    (opened.folder / "valid" / "tokens.bin").write_bytes(raw)
    again = open_data(DataConfig(**texts))
    assert again.train.n_tokens  # splits are looked at when they are used
    with pytest.raises(DataError, match=f"valid/tokens.bin is damaged.*delete {opened.folder}"):
        _ = again.valid
    assert open_data(DataConfig(**texts, verify=False)).valid.n_tokens


def test_no_flipped_bit_in_a_cache_passes_unnoticed(texts):
    opened = open_data(DataConfig(**texts, tokenizer="bpe:260"))
    cfg, record = DataConfig(**texts, tokenizer="bpe:260"), opened.describe()
    wanted = [getattr(opened, split).document(0).tolist() for split in SPLITS]
    files = sorted(path for path in opened.folder.rglob("*") if path.is_file())
    rng, silent = random.Random(1), []
    for number in range(200):
        path = files[number % len(files)]
        raw = path.read_bytes()
        bit = rng.randrange(8 * len(raw))
        path.write_bytes(
            raw[: bit // 8] + bytes([raw[bit // 8] ^ 1 << bit % 8]) + raw[bit // 8 + 1 :]
        )
        os.utime(path, ns=(number, number))  # A hash is computed once for each time of a change.
        try:
            again = open_data(cfg)
            ids = [getattr(again, split).document(0).tolist() for split in SPLITS]
            if again.describe() != record or ids != wanted:
                silent.append((path.name, bit))
        except DataError as error:
            assert path.name in str(error) or "tokenizer" in str(error)
        path.write_bytes(raw)
        os.utime(path, ns=(number + 1000, number + 1000))
    assert silent == []


def test_a_vocabulary_that_the_text_cannot_fill_is_said(texts, capsys):
    pieces = open_data(DataConfig(**texts, tokenizer="bpe:50000")).tokenizer.vocab_size - 109
    assert f"the training split has only {pieces} pieces to learn" in capsys.readouterr().err


def test_bpe_is_learnt_from_the_training_split_alone(texts, tmp_path):
    first = open_data(DataConfig(**texts, tokenizer="bpe:300")).tokenizer.fingerprint
    (tmp_path / "valid.txt").write_text("zyzzyva " * 999)
    assert open_data(DataConfig(**texts, tokenizer="bpe:300")).tokenizer.fingerprint == first


@pytest.mark.parametrize("key", ["cache", "tokenizer", "path", "valid_path"])
def test_a_home_that_is_nobodys_is_refused(texts, key):
    name = "path" if "path" in key else key
    with pytest.raises(ConfigError, match=f"data.{name} is '~nosuchuser/x': there is no such user"):
        open_data(DataConfig(**{**texts, key: "~nosuchuser/x"}))


def test_a_home_that_is_nobodys_is_one_line_for_all_that_have_a_folder(monkeypatch):
    """A container may run under a user who has neither an entry nor HOME."""
    for use in (
        lambda: fetch.cache_folder("evals", "~nosuchuser/x"),
        lambda: fetch.fetch_texts("~nosuchuser/x"),
        lambda: check_source("~nosuchuser/x"),
    ):
        with pytest.raises(ConfigError, match="no home folder .HOME is not set.; write the full"):
            use()
    monkeypatch.setattr(scratch, "ROOT", "~nosuchuser/x")
    with pytest.raises(DiskError, match="~nosuchuser/x: this user has no home folder; set HOME"):
        scratch.local_path("s3://bucket/run")


@pytest.mark.parametrize("split", SPLITS)
def test_an_empty_split_is_refused(texts, tmp_path, split):
    # covers D2
    (tmp_path / f"{split}.txt").write_text("")
    with pytest.raises(DataError, match=f"no tokens in the {split} split of .*empty 1, skipped 0"):
        open_data(DataConfig(**texts))
    assert list((tmp_path / "cache").iterdir()) == list((tmp_path / "cache").glob("*.lock"))


def test_one_text_file_makes_three_splits_by_place(texts, tmp_path, capsys):
    # covers D2: the first file of every user is one document
    alone = {key: texts[key] for key in ("source", "cache", "path")}
    text = "".join(f"Paragraph {i} has its own number {i * i}.\n\n" for i in range(1000))
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    for tokenizer in ("bytes", "bpe:300"):
        opened = open_data(DataConfig(**alone, tokenizer=tokenizer))
        stores = [opened.train, opened.valid, opened.test]
        parts = [opened.tokenizer.decode(store.document(0)) for store in stores]
        assert "".join(parts) == text
        assert all(part.startswith("Paragraph") for part in parts)
        held_out = [len(part) / len(text) for part in parts[1:]]
        assert held_out == pytest.approx([0.01, 0.01], rel=0.5)
        said = "train.txt: one document, whose end is held out: 1 % for valid, then 1 % for test"
        assert said in capsys.readouterr().err
        assert opened.valid.index["hold_out"].startswith("one document, whose end is held out")
    cut = open_data(DataConfig(**alone, document_separator="\\n\\n"))
    assert sum(s.n_documents for s in (cut.train, cut.valid, cut.test)) == 1000
    assert cut.train.index["hold_out"] == ""


def test_a_text_that_repeats_itself_is_told_and_not_refused(texts, tmp_path, caplog):
    alone = {"cache": texts["cache"], "path": str(tmp_path / "mine.txt")}
    (tmp_path / "mine.txt").write_text("The quick brown fox jumps over the lazy dog again. " * 900)
    assert open_data(DataConfig(**alone)).valid.n_tokens
    assert "the score of the valid split will be too good: 0 % of the documents" in caplog.text
    # With files of their own for the splits, it is an error.
    (tmp_path / "valid.txt").write_bytes((tmp_path / "mine.txt").read_bytes())
    own = {key: texts[key] for key in ("valid_path", "test_path")}
    with pytest.raises(DataError, match="100 % of the documents"):
        open_data(DataConfig(**alone, **own))


def test_skipped_and_replaced_documents_are_counted(texts, tmp_path, caplog):
    # covers D1
    (tmp_path / "train.txt").write_bytes(b"good, \xff, good, , \xfe")
    counts = {}
    for policy in ("skip", "replace"):
        opened = open_data(DataConfig(**texts, on_error=policy, document_separator=", "))
        found = opened.describe()["train"]
        counts[policy] = [found[n] for n in ("documents", "dropped", "skipped", "replaced")]
    assert counts == {"skip": [2, 1, 2, 0], "replace": [4, 1, 0, 2]}
    assert "'skipped': 2" in caplog.text
    with pytest.raises(DataError, match="train.txt: byte 6 is not UTF-8"):
        open_data(DataConfig(**texts, document_separator=", "))


def test_two_builders_make_one_store(texts, monkeypatch, tmp_path):
    started, done = threading.Barrier(4), []
    write = build_store.write_stores

    def counted(*args):
        done.append(threading.current_thread().name)
        write(*args)

    monkeypatch.setattr(build_store, "write_stores", counted)

    def work() -> None:
        started.wait()
        fingerprints.append(open_data(DataConfig(**texts)).train.fingerprint)

    fingerprints: list[str] = []
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(fingerprints) == 4
    assert len(set(fingerprints)) == 1
    assert len(done) == 1  # the others waited
    assert len([p for p in (tmp_path / "cache").iterdir() if p.is_dir()]) == 1


def test_without_locks_the_first_builder_wins(texts, monkeypatch, tmp_path):
    def unsupported(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(build_store.fcntl, "flock", unsupported)
    write = build_store.write_stores

    def overtaken(*args):
        monkeypatch.setattr(build_store, "write_stores", write)
        winner.append(open_data(DataConfig(**texts)).folder.stat().st_ino)
        write(*args)

    winner: list[int] = []
    monkeypatch.setattr(build_store, "write_stores", overtaken)
    opened = open_data(DataConfig(**texts))
    assert opened.folder.stat().st_ino == winner[0]
    assert opened.train.n_tokens
    assert len([p for p in (tmp_path / "cache").iterdir() if p.is_dir()]) == 1


def killed(texts) -> None:
    """A builder that dies in the middle, as by kill -9."""
    build_store.write_stores = lambda *_: os._exit(9)
    open_data(DataConfig(**texts))


def test_a_killed_builder_leaves_nothing_in_the_way(texts, tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=killed, args=(texts,))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert len(list((tmp_path / "cache").glob("*.partial"))) == 1
    assert open_data(DataConfig(**texts)).train.n_tokens
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_a_source_that_changes_while_it_is_read_is_refused(texts, monkeypatch, tmp_path):
    write = build_store.write_stores

    def meddled(*args):
        write(*args)
        (tmp_path / "train.txt").write_text("something else")

    monkeypatch.setattr(build_store, "write_stores", meddled)
    with pytest.raises(DataError, match="changed while it was read"):
        open_data(DataConfig(**texts))


def test_a_full_disk_is_a_disk_error(texts, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TokenStoreWriter, "add", full)
    with pytest.raises(DiskError, match="cache: No space left on device; no store was written"):
        open_data(DataConfig(**texts))
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_a_cache_that_cannot_be_written_is_a_disk_error(texts, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="set data.cache to another folder"):
        open_data(DataConfig(**texts | {"cache": str(tmp_path / "file" / "below")}))


def test_many_small_documents_stream_through(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(
        fill_stores, "BLOCK_CHARACTERS", 1 << 12
    )  # many blocks, of 16 documents at most
    documents = [f"document {i} " * (i % 7) for i in range(5000)]
    lines = "\n".join(json.dumps({"text": d}) for d in documents)
    (tmp_path / "all.jsonl").write_text(lines)
    only = {"source": "jsonl", "path": str(tmp_path / "all.jsonl"), "cache": texts["cache"]}
    opened = open_data(DataConfig(**only, valid_share=0.1, test_share=0.1))
    stores = [opened.train, opened.valid, opened.test]
    found = [opened.tokenizer.decode(s.document(i)) for s in stores for i in range(s.n_documents)]
    assert sorted(found) == sorted(d for d in documents if d)
    assert sum(s.index["dropped"] for s in stores) == documents.count("")
