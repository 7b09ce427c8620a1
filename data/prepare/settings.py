"""Settings of `python -m data.prepare`, each with the help of its flag."""

import dataclasses
from typing import Literal, TypeVar

from data.prepare import quality
from data.settings import DataConfig
from errors import ConfigError
from settings.types import Fraction, PositiveInt, config

T = TypeVar("T")


def _flag(default: T, text: str) -> T:
    field: T = dataclasses.field(default=default, metadata={"help": text})
    return field


@config
class PrepareConfig:
    """Settings of the preparation of text."""

    path: str = _flag(
        "", "files, globs and folders, separated by commas; .gz .bz2 .xz .zst are decompressed"
    )
    source: Literal["jsonl", "text"] = _flag("jsonl", "format of the files: jsonl or text")
    text_field: str = _flag("text", "for jsonl: name of the field with the text")
    document_separator: str = _flag(
        "",
        "for text: separator that cuts a file into documents, \\n is a line break; '': a file is "
        "one document",
    )
    on_error: Literal["strict", "replace", "skip"] = _flag(
        "strict",
        "treatment of documents that are not UTF-8 or not JSON: strict (stop with an error), "
        "replace or skip",
    )
    quality: str = _flag(
        "gopher",
        "quality rules, separated by commas, NAME or NAME=LOW:HIGH; gopher: all of its rules; "
        "'': none",
    )
    toxic_words: str = _flag("", "file with one word or phrase per line; '': no toxicity filter")
    toxic_count: PositiveInt = _flag(1, "minimum number of toxic words in a dropped document")
    toxic_share: Fraction = _flag(
        0.0, "minimum share of toxic words among the words of a dropped document"
    )
    evals: str = _flag(
        "",
        "JSON lines or text files of evaluation sets to exclude; fetched: those of "
        "`data.fetch evals`",
    )
    ngram: PositiveInt = _flag(
        13, "number of consecutive words that drops a document if an evaluation text has them too"
    )
    min_words: PositiveInt = _flag(
        8, "minimum words of an evaluation text that is shorter than --ngram words to be compared"
    )
    exact: bool = _flag(True, "drop documents whose text occurred before")
    jaccard_threshold: Fraction = _flag(
        0.8, "drop documents with at least this Jaccard similarity to an earlier one; 0: none"
    )
    compress: bool = _flag(True, "write documents.jsonl.zst instead of documents.jsonl")
    workers: PositiveInt = _flag(
        1, "number of processes that filter documents; the result does not depend on it"
    )
    cache: str = _flag(DataConfig().cache, "folder of the files of data.fetch")

    def check(self) -> None:
        """Checks the quality rules, the path and the lengths of n-grams.

        Raises:
            ConfigError: if the path is empty or `min_words` is above `ngram`.
        """
        quality.parse_rules(self.quality)
        if not self.path:
            raise ConfigError("--path is empty; name the files to prepare")
        if self.min_words > self.ngram:
            raise ConfigError(f"--min_words={self.min_words} must be at most --ngram={self.ngram}")
