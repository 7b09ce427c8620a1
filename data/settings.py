"""The settings of the data: source, splits, tokenizer and cache."""

import re
from pathlib import Path
from typing import Annotated, Literal

from data.groups.settings import GroupConfig
from data.images.settings import ImagesConfig
from data.readers.suffixes import ARROW_SUFFIXES, JSON_LINES_SUFFIXES, TEXT_SUFFIXES, suffix_of
from data.sources import BUILT_IN_SOURCES, SOURCE_PATHS
from errors import ConfigError
from settings.types import Fraction, NonNegativeInt, Range, config, did_you_mean, is_digits

TOKENIZER_TEMPLATE = "tokenizer"  # Names the template in the files of the tokenizer's model.
COMMIT_HASH = re.compile("[0-9a-f]{40}")
ChatTemplateName = Literal["", "chatml", "vicuna", "llama2", "tokenizer"]
HeldOutShare = Annotated[float, Range(low=0, high=0.5, open_low=True)]
SOURCES_BY_SUFFIX = {
    **dict.fromkeys(TEXT_SUFFIXES, "text"),
    **dict.fromkeys(JSON_LINES_SUFFIXES, "jsonl"),
    **dict.fromkeys(ARROW_SUFFIXES, "datasets"),
}


@config
class DataConfig:
    """The data of a run: source, splits, tokenizer and cache."""

    # Name of the source: corpus, text, jsonl, datasets, digits (drawn pictures with captions) or
    # images (JSON lines that name images). If it is corpus and path is set, the path selects the
    # source: .txt and .md are text, .jsonl is jsonl, .parquet and .arrow are datasets.
    source: str = "corpus"
    images: ImagesConfig = ImagesConfig()
    # Files, globs and folders, separated by commas (.gz .bz2 .xz .zst are decompressed); for
    # datasets: a folder with Parquet or Arrow files, or OWNER/NAME.
    path: str = ""
    # Files of the validation split; "": it is cut from path; for datasets: the name of a split.
    valid_path: str = ""
    # Files of the test split; "": it is cut from path; for datasets: the name of a split.
    test_path: str = ""
    # Share of the documents for validation if valid_path is empty; at least one document.
    valid_share: HeldOutShare = 0.01
    # Share of the documents for the test split if test_path is empty; at least one document.
    test_share: HeldOutShare = 0.01
    # For corpus: number of verses on each side of a verse that become its hard negatives.
    adjacent_negatives: NonNegativeInt = 0
    # For jsonl, datasets and images: name of the field with the text.
    text_field: str = "text"
    # For jsonl: name of the field with a document's loss weight; "": all documents have weight 1.
    weight_field: str = ""
    groups: GroupConfig = GroupConfig()
    # For jsonl: template of chats, of which only the replies have loss; "": lines are texts.
    # tokenizer is the template in the files of the tokenizer's model, a program in Jinja.
    chat_template: ChatTemplateName = ""
    # For text: separator that cuts a file into documents, \n is a line break; "": one document.
    document_separator: str = ""
    # Largest share of the documents or 13-grams of a held-out split that other splits may have too.
    max_shared: Fraction = 0.001
    max_documents: NonNegativeInt = 0  # Maximum number of documents read from each path; 0: all.
    config_name: str = ""  # For datasets: name of the data set's configuration.
    # For datasets: full commit hash of the data set; required for OWNER/NAME.
    revision: str = ""
    # Tokenizer: bytes, bpe:SIZE (learned from the training split), a tokenizer.json, a folder of a
    # model, or hf:NAME (owner/name[@revision] of the Hugging Face hub).
    tokenizer: str = "bytes"
    # Treatment of documents that are not UTF-8 or not JSON: raise an error, replace or skip.
    on_error: Literal["strict", "replace", "skip"] = "strict"
    cache: str = "~/.cache/isoflop"  # Folder of the token stores.
    verify: bool = True  # Whether a process checks the sha256 of a token store at first use.
    allow_changed: bool = False  # Whether a run may resume on other data.

    def check(self) -> None:
        """Checks that the settings agree with the source.

        Raises:
            ConfigError: if a setting is missing or belongs to another source.
        """
        sources = SOURCE_PATHS["documents"]
        if self.source not in sources:
            hint = did_you_mean(self.source, sources)
            raise ConfigError(f"data.source is {self.source!r}; {hint}")
        is_built_in = self.kind in BUILT_IN_SOURCES
        if is_built_in and (self.path or self.valid_path or self.test_path):
            named = {name: getattr(self, name) for name in ("path", "valid_path", "test_path")}
            key, path = next((name, path) for name, path in named.items() if path)
            raise ConfigError(
                f"data.{key} is {path!r}, but data.source is {self.kind!r}, which reads no files; "
                "set data.source to text, jsonl or datasets"
            )
        if not is_built_in and not self.path:
            raise ConfigError(f"data.source {self.source!r} needs data.path")
        if self.revision and not COMMIT_HASH.fullmatch(self.revision):
            raise ConfigError(
                f"data.revision is {self.revision!r}; pin the data set to a full commit hash, "
                f"listed at huggingface.co/datasets/{self.path}/commits/main"
            )
        if (self.chat_template or self.weight_field) and (
            self.kind != "jsonl" or (self.chat_template and self.weight_field)
        ):
            raise ConfigError(
                f"data.chat_template {self.chat_template!r} and data.weight_field "
                f"{self.weight_field!r} need data.source jsonl and exclude each other; leave them "
                "empty"
            )
        self.groups.check_source(self.kind, self.has_weights)
        if self.adjacent_negatives and self.kind != "corpus":
            raise ConfigError(
                f"data.adjacent_negatives {self.adjacent_negatives} are verses of the embedded "
                f"corpus, the source is {self.kind!r}; set it to 0"
            )
        if not self.tokenizer:
            raise ConfigError("data.tokenizer is empty; use bytes, bpe:8192 or a tokenizer.json")
        if bpe_size(self.tokenizer) and self.chat_template == TOKENIZER_TEMPLATE:
            raise ConfigError(
                f"data.chat_template is 'tokenizer', but {self.tokenizer} is a vocabulary that is "
                "learned, without a template; use chatml, vicuna or llama2"
            )
        if not self.cache:
            raise ConfigError("data.cache is empty; name a folder for token stores")

    @property
    def kind(self) -> str:
        """The name of the source, which a path determines if `source` is the default."""
        if self.source != "corpus":
            return self.source
        for name in (self.path.split(",")[0], self.path):  # A comma may belong to the name.
            if source := SOURCES_BY_SUFFIX.get(suffix_of(Path(name.strip()))):
                return source
        return self.source

    @property
    def has_weights(self) -> bool:
        """Whether documents have loss weights."""
        return bool(self.chat_template or self.weight_field)


def bpe_size(spec: str) -> int:
    """Returns SIZE of "bpe:SIZE", the vocabulary without special tokens; 0 for other tokenizers.

    Raises:
        ConfigError: if the size is not a number in range.
    """
    kind, _, size = spec.partition(":")
    if kind != "bpe":
        return 0
    if not is_digits(size) or not 257 <= int(size) <= 1 << 20:
        raise ConfigError(
            f"data.tokenizer is {spec!r}; the size must be 257 to 1048576, as bpe:8192"
        )
    return int(size)
