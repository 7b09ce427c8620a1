"""What `python -m data.prepare` is told; the help of a flag stands beside its default."""

import dataclasses
from typing import Any, Literal

from data.prepare import quality
from data.sources import DataConfig
from errors import ConfigError
from schema import Count, Share, config


def _flag(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@config
class PrepareConfig:
    path: str = _flag("", "files, globs, folders, by commas; .gz .bz2 .xz .zst are unpacked")
    source: Literal["jsonl", "text"] = _flag("jsonl", "jsonl or text")
    field: str = _flag("text", "of jsonl: what holds the text")
    separator: str = _flag(
        "", "of text: cuts a file into documents, \\n is a line break; '': a file is one"
    )
    errors: Literal["strict", "replace", "skip"] = _flag(
        "strict", "strict, replace or skip: what is not UTF-8 or not JSON"
    )
    quality: str = _flag(
        "gopher", "rules by commas, NAME or NAME=LOW:HIGH; gopher: all of its; '': none"
    )
    toxic_words: str = _flag("", "file with a word or phrase a line; '': no such filter")
    toxic_count: Count = _flag(1, "drop a document with at least so many of them,")
    toxic_share: Share = _flag(0.0, "if they are at least this share of its words too")
    evals: str = _flag(
        "", "JSON lines or text that must not be trained on; fetched: of data.fetch evals"
    )
    ngram: Count = _flag(13, "words in a row that a document may not share with them")
    shortest: Count = _flag(8, "words of an evaluation text that is searched as a whole")
    exact: bool = _flag(True, "drop texts that were there before")
    near: Share = _flag(0.8, "drop texts as alike as this to one before (Jaccard); 0: none")
    compress: bool = _flag(True, "write documents.jsonl.zst rather than documents.jsonl")
    workers: Count = _flag(1, "processes that examine documents; the result is the same")
    cache: str = _flag(DataConfig().cache, "where data.fetch keeps its files")

    def check(self) -> None:
        quality.parse(self.quality)
        if not self.path:
            raise ConfigError("--path is empty; name the files to prepare")
        if self.shortest > self.ngram:
            raise ConfigError(f"--shortest={self.shortest} must be at most --ngram={self.ngram}")
