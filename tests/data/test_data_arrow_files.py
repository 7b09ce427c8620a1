"""Parquet and Arrow files on disk: layouts, splits, damage; no network and no `datasets`."""

from pathlib import Path

import pytest

from data.readers import arrow_files
from data.readers.read_stats import ReadStats
from data.settings import DataConfig
from data.sources.source import SOURCES_OF_KIND
from errors import ConfigError, DataError

SOURCES = SOURCES_OF_KIND["documents"]

pyarrow = pytest.importorskip("pyarrow")


def write(path: Path, texts: list[str]) -> None:
    """Writes a file in the format of its suffix; .arrow in that of `datasets.save_to_disk`."""
    from pyarrow import ipc, parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"text": texts, "a": texts, "b": texts})
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
        return
    new = ipc.new_file if path.name == "file.arrow" else ipc.new_stream
    with path.open("wb") as raw, new(raw, table.schema) as writer:
        writer.write_table(table)


def counts(stats: ReadStats | None = None, **settings) -> dict[str, int]:
    cfg = DataConfig(source="datasets", **settings)
    splits = [split for split, _ in SOURCES["datasets"](cfg).read(stats or ReadStats())]
    return {split: splits.count(split) for split in splits}


TEXTS = [f"document {i} has some words" for i in range(3000)]


def test_folders_of_datasets_and_of_the_hub_are_read(tmp_path):
    for name, files in {
        "saved": ("data-0.arrow", "cache-1.arrow"),
        "dict": ("train/data-0.arrow", "validation/data-0.arrow", "test/data-0.arrow"),
        "hub": ("data/train-0.parquet", "data/validation-0.parquet", "data/test-0.parquet"),
        "flat": ("0000.parquet",),
        "test": ("file.arrow",),
    }.items():
        for file in files:
            is_held_out = file.startswith(("valid", "test", "data/valid", "data/test"))
            write(tmp_path / name / file, TEXTS[: 7 if is_held_out else 3000])
    for name in ("dict", "hub"):
        both = {"valid_path": "validation", "test_path": "test"}
        found = counts(path=str(tmp_path / name), **both)
        assert found == {"train": 3000, "valid": 7, "test": 7}
        assert sum(counts(path=str(tmp_path / name)).values()) == 3000
        with pytest.raises(DataError, match="no .parquet or .arrow file of the split 'dev'"):
            counts(path=str(tmp_path / name), valid_path="dev")
    for path in ("saved", "flat", "flat/*.parquet", "test", "test/file.arrow"):
        assert sum(counts(path=str(tmp_path / path)).values()) == 3000, path
    cfg = DataConfig(source="datasets", path=str(tmp_path / "flat"))
    pairs = list(SOURCES_OF_KIND["text_pairs"]["datasets"](cfg).read(ReadStats()))
    assert len(pairs) == 3000 and pairs[0][1] == (TEXTS[0], TEXTS[0])
    assert SOURCES["datasets"](cfg).size_bytes == (tmp_path / "flat/0000.parquet").stat().st_size


@pytest.mark.parametrize("name", ["b.parquet", "b.arrow", "file.arrow"])
def test_damaged_files_follow_the_policy(tmp_path, name):
    write(tmp_path / "a.parquet", TEXTS)
    write(tmp_path / name, TEXTS)
    raw = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match=f"{name} cannot be read: .*; replace it"):
        counts(path=str(tmp_path))
    stats = ReadStats()
    assert sum(counts(stats, path=str(tmp_path), on_error="skip").values()) == 3000
    assert stats.skipped == {"train": 1}


def test_a_missing_library_or_folder_is_told(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="data.revision is empty, and owner/name is no folder"):
        counts(path="owner/name")
    with pytest.raises(DataError, match="no file matches"):
        counts(path=str(tmp_path / "none"))
    write(tmp_path / "a.parquet", TEXTS)

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(arrow_files.importlib, "import_module", missing)
    with pytest.raises(DataError, match=r"pip install 'isoflop\[datasets\]'"):
        counts(path=str(tmp_path))
