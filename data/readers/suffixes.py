"""Suffixes of files, which say what is in them; capitals do not matter."""

from pathlib import Path

TEXT_SUFFIXES = (".txt", ".text", ".md")
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
ARROW_SUFFIXES = (".parquet", ".arrow")
COMPRESSION_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
# Formats that hold several files, which no source reads.
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar")


def is_compressed(path: Path) -> bool:
    """Whether a file is one of a compression that is read."""
    return path.suffix.lower() in COMPRESSION_SUFFIXES


def suffix_of(path: Path) -> str:
    """Returns the suffix that names the content of a file: the last one before a compression's."""
    return Path(path.stem if is_compressed(path) else path.name).suffix.lower()
