"""The embedded corpus: its splits, its size as published, its rights."""

from pathlib import Path

import pytest

import data.corpus as corpus
from errors import DataError

# As counted when the corpus came: bytes of text, verses.
PUBLISHED = {"train": (11_720_439, 28_691), "valid": (537_099, 1_222), "test": (659_852, 1_186)}
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("split", PUBLISHED)
def test_the_text_has_the_published_size(split):
    """Published sizes join the works of a source by blank lines and all verses by line breaks."""
    size, verses = PUBLISHED[split]
    found = list(corpus.iter_documents(split))
    works = [p for p in found if p.source != "bible"]
    chapters = [p for p in found if p.source == "bible"]
    assert sum(p.text.count("\n") + 1 for p in chapters) == verses
    joints = 2 * (len(works) - 2) + len(chapters) - 1
    assert sum(len(p.text.encode()) for p in found) + joints == size


def test_splits_are_whole_works():
    names = {
        split: {(p.source, p.name) for p in corpus.iter_documents(split)} for split in PUBLISHED
    }
    assert not names["train"] & names["valid"] | names["train"] & names["test"]
    plays = {split: {n for s, n in found if s == "shakespeare"} for split, found in names.items()}
    assert plays["valid"] == {"measure_for_measure", "julius_caesar"}
    assert plays["test"] == {"twelfth_night", "macbeth"}
    books = {split: {n.split("-")[0] for s, n in f if s == "bible"} for split, f in names.items()}
    assert books["valid"] == {"17", "32", "44"}  # Esther, Jonah, Acts
    assert books["test"] == {"8", "21", "43"}  # Ruth, Ecclesiastes, John
    assert len(books["train"]) == 60


def test_a_chapter_is_its_verses():
    texts = {p.name: p.text for p in corpus.iter_documents("test") if p.source == "bible"}
    assert texts["43-3"].split("\n")[15].startswith("For God so loved the world")
    assert texts["43-11"].split("\n")[34] == "Jesus wept."
    assert len(texts["8-1"].split("\n")) == 22  # Ruth 1 has 22 verses


def test_a_damaged_file_is_refused(tmp_path, monkeypatch):
    for file in corpus.FOLDER.glob("*.xz"):
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        (tmp_path / file.name).write_bytes(raw)
    (tmp_path / "SHA256SUMS").write_bytes((corpus.FOLDER / "SHA256SUMS").read_bytes())
    monkeypatch.setattr(corpus, "FOLDER", tmp_path)
    with pytest.raises(DataError, match="lm_valid.jsonl.xz is damaged"):
        next(corpus.iter_documents("valid"))


def test_every_part_is_attributed():
    notice = " ".join((ROOT / "NOTICE").read_text().split())
    for part in ("CC BY 2.5", "State of the Union", "World English Bible", "Young's Literal"):
        assert part.replace("CC BY", "Creative Commons Attribution") in notice
    assert "derived from the World English Bible" in notice
