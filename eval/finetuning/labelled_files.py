"""Labelled examples from files: tables with a header (TSV, CSV) and JSON lines.

A file name with train, dev or valid, or test names the part of its examples; a file without such a
name is training data. A table is split at tabs, and quotes are text, as in GLUE; `.csv` is split at
commas and may have quotes. A file whose examples have no label is left out.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.readers import json_lines, read_policy, text_files
from data.readers.input_files import find_files
from data.readers.read_stats import ReadStats
from data.readers.suffixes import JSON_LINES_SUFFIXES, is_compressed, suffix_of
from errors import ConfigError, DataError
from settings.json_types import JsonObject
from storage.paths import expand_user
from training.run.console import LOGGER
from training.settings import FinetuneConfig

PARTS = (("train", r"train"), ("valid", r"dev|valid"), ("test", r"test"))
TEXT_FIELDS = (
    *(("sentence1", "sentence2"), ("#1 String", "#2 String"), ("question1", "question2")),
    *(("question", "sentence"), ("premise", "hypothesis"), ("text_a", "text_b"), ("a", "b")),
    *(("tokens",), ("words",), ("sentence",), ("text",)),
)
LABEL_FIELDS = (
    *("label", "labels", "Quality", "gold_label", "is_duplicate", "score", "tags", "ner_tags"),
)
NO_LABEL = ("", "-1", "-")  # Labels that stand for none.
DECIMAL = re.compile(r"[-+]?[0-9]+\.[0-9]+(e[-+]?[0-9]+)?", re.IGNORECASE)
TABLE_SEPARATORS = {".tsv": "\t", ".txt": "\t", ".csv": ","}

Label = str | float | tuple[str, ...]


class LabelledExample(NamedTuple):
    """An example: its text, its two texts, or the words of a text whose tokens have labels."""

    texts: tuple[str, ...]
    label: Label  # A class, a number, or a class for each word.
    location: str  # File and record, for messages.


class LabelledFiles(NamedTuple):
    """The examples of a data set by the part that its files name."""

    name: str
    problem: str  # classes, regression or tokens
    parts: dict[str, list[LabelledExample]]


class _Fields(NamedTuple):
    """The fields of a file that hold texts and label."""

    texts: tuple[str, ...]
    label: str


def read_labelled_files(path: str, cfg: FinetuneConfig) -> LabelledFiles:
    """Reads the data set of one file or folder.

    Raises:
        DataError: if there is no example, or a record has no text or no label.
    """
    records: dict[str, list[tuple[str, JsonObject]]] = {}
    folder = expand_user(path, "eval.finetune.path")
    for file in find_files(path, "eval.finetune.path").paths:
        part = next((p for p, pattern in PARTS if re.search(pattern, file.name.lower())), "train")
        if rows := _labelled_rows(file, cfg):
            records.setdefault(part, []).extend(rows)
    if "train" not in records:
        raise DataError(
            f"{path} has no labelled training examples; name a file, or a folder with a file "
            "train.tsv or train.jsonl"
        )
    fields = _find_fields(*records["train"][0], cfg)
    raw = {
        part: [(where, _texts(where, r, fields), r[fields.label]) for where, r in rows]
        for part, rows in records.items()
    }
    problem = _find_problem([label for rows in raw.values() for _, _, label in rows], cfg)
    parts = {
        part: [
            LabelledExample(texts, _parse_label(label, texts, where, problem), where)
            for where, texts, label in rows
        ]
        for part, rows in raw.items()
    }
    stem = _plain_stem(folder)
    return LabelledFiles(re.sub(r"[^a-z0-9-]+", "-", stem.lower()), problem, parts)


def _plain_stem(path: Path) -> str:
    """Returns the name of a folder, or of a file without its suffixes."""
    if path.is_dir():
        return path.resolve().name
    is_packed = is_compressed(path)
    return Path(path.stem).stem if is_packed else path.stem


def _labelled_rows(path: Path, cfg: FinetuneConfig) -> list[tuple[str, JsonObject]]:
    """Returns the records of a file with their locations; none if they have no labels."""
    policy = read_policy.ErrorPolicy("strict", "train", ReadStats(), "eval.finetune.")
    suffix = suffix_of(path)
    if suffix in JSON_LINES_SUFFIXES:
        rows = [
            (read_policy.format_location(path, offset), record)
            for offset, _, record in json_lines.iter_json(path, policy)
        ]
    elif suffix in TABLE_SEPARATORS:
        rows = [*_table_rows(path, TABLE_SEPARATORS[suffix], policy)]
    else:
        return []
    if not rows:
        return []
    names = (cfg.label_field,) if cfg.label_field else LABEL_FIELDS
    label = next((name for name in names if name in rows[0][1]), "")
    if not label or all(str(record.get(label, "")) in NO_LABEL for _, record in rows):
        LOGGER.info("  %s has no labels and is left out", path)
        return []
    return rows


def _table_rows(
    path: Path, separator: str, policy: read_policy.ErrorPolicy
) -> Iterator[tuple[str, JsonObject]]:
    """Yields the rows of a table by the names of its header.

    Raises:
        DataError: if a row has another number of fields than the header.
    """
    header: list[str] = []
    for offset, row in _split_table(path, separator, policy):
        if not header:
            header = [name.strip() for name in row]
            continue
        location = read_policy.format_location(path, offset)
        if len(row) != len(header):
            raise DataError(
                f"{location} has {len(row)} fields, the header has {len(header)} "
                f"({', '.join(header[:8])}); correct the line"
            )
        yield location, dict(zip(header, row, strict=True))


def _split_table(
    path: Path, separator: str, policy: text_files.ErrorPolicy
) -> Iterator[tuple[int, list[str]]]:
    """Yields the fields of each row with its offset; blank lines are no rows.

    In a file of commas a quoted field may have line breaks (RFC 4180).

    Raises:
        DataError: if a row is none of commas, such as one with a quote that is not closed.
    """
    lines = text_files.iter_texts(path, b"\n", policy)
    if separator != ",":
        yield from ((offset, line.split(separator)) for offset, line in lines if line.strip())
        return
    csv.field_size_limit(text_files.MAX_DOCUMENT_BYTES)  # The default refuses texts of 128 KiB.
    offsets = list[int]()

    def read_lines() -> Iterator[str]:
        for offset, line in lines:
            offsets.append(offset)
            yield f"{line}\n"

    reader = csv.reader(read_lines(), strict=True)
    while True:
        first = reader.line_num
        try:
            fields = next(reader, None)
        except csv.Error as error:
            location = read_policy.format_location(path, offsets[first])
            raise DataError(f"{location} is no row of commas ({error}); correct it") from error
        if fields is None:
            return
        if fields:
            yield offsets[first], fields


def _find_fields(location: str, record: JsonObject, cfg: FinetuneConfig) -> _Fields:
    """Returns the fields of texts and label, by the settings or by known names.

    Raises:
        ConfigError: if the record lacks them.
    """
    choices = (cfg.text_fields,) if cfg.text_fields else TEXT_FIELDS
    texts = next((names for names in choices if all(n in record for n in names)), None)
    labels = (cfg.label_field,) if cfg.label_field else LABEL_FIELDS
    label = next((name for name in labels if name in record), None)
    if texts is None or label is None or len(texts) > 2:
        raise ConfigError(
            f"{location} has the fields {', '.join(list(record)[:8])}; set "
            "eval.finetune.text_fields to one or two of them, and eval.finetune.label_field"
        )
    return _Fields(texts, label)


def _texts(location: str, record: JsonObject, fields: _Fields) -> tuple[str, ...]:
    """Returns the texts of a record.

    Raises:
        DataError: if the record has no text or no label.
    """
    values = [record.get(name) for name in fields.texts]
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    texts = tuple(v for v in values if isinstance(v, str) and v.strip())
    if not values or len(texts) < len(values):
        raise DataError(
            f"{location} has no text under {' and '.join(fields.texts)}; add it or remove the "
            "record"
        )
    if str(record.get(fields.label, "")) in NO_LABEL:
        raise DataError(f"{location} has no label under {fields.label!r}; add it")
    return texts


def _find_problem(labels: list[object], cfg: FinetuneConfig) -> str:
    if cfg.problem != "auto":
        return cfg.problem
    if any(isinstance(label, list) for label in labels):
        return "tokens"
    texts = [str(label) for label in labels]
    has_decimals = any(DECIMAL.fullmatch(text) for text in texts)
    return "regression" if has_decimals and all(map(_is_number, texts)) else "classes"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parse_label(label: object, texts: tuple[str, ...], location: str, problem: str) -> Label:
    """Returns the label as the problem needs it.

    Raises:
        DataError: if the label does not fit the problem.
    """
    if problem == "tokens":
        if not isinstance(label, list) or len(label) != len(texts):
            size = len(label) if isinstance(label, list) else 1
            raise DataError(
                f"{location} has {size} labels for {len(texts)} words; give one label for each word"
            )
        return tuple(map(str, label))
    if isinstance(label, (list, dict)):
        raise DataError(
            f"{location} has the label {str(label)[:60]}; a label is a text or a number"
        )
    if problem == "classes":
        return str(label)
    if not _is_number(str(label)):
        raise DataError(f"{location} has the label {label!r}, must be a number; correct it")
    return float(str(label))
