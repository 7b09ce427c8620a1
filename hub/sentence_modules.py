"""Reads how a model embeds sentences, as sentence-transformers records it in modules.json.

The modules run one after another: a transformer, a pooling of its tokens, and perhaps a division by
the length of the vector. Others are refused by name, because they change the vectors.
"""

import logging
from pathlib import Path
from typing import Literal, NamedTuple

from data.published.model_files import MAX_WINDOW, TOKENIZER_CONFIG
from errors import CheckpointError, ConfigError
from settings.json_files import read_json_object, read_json_objects
from settings.json_types import JsonObject

LOG = logging.getLogger(__name__)
Pooling = Literal["first", "mean", "last"]  # Names of objectives/pooling.py.
MODULES, SENTENCE_CONFIG = "modules.json", "sentence_bert_config.json"
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
# Names of the ways to pool, in old files as switches and in new ones as `pooling_mode`. The mean
# times the root of the number of tokens has the direction of the mean; embeddings have length 1.
POOLINGS: dict[str, Pooling] = {
    "cls_token": "first",
    "cls": "first",
    "mean_tokens": "mean",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean",
    "lasttoken": "last",
}
SWITCH = "pooling_mode_"


class SentenceModules(NamedTuple):
    """How a model makes the vector of a text."""

    pooling: Pooling
    max_length: int  # Tokens of a text, with those around it; 0: as many as the model reads.


def read_sentence_modules(folder: Path) -> SentenceModules | None:
    """Returns how the model in a folder embeds texts, None if its files do not say so.

    Raises:
        CheckpointError: if a file is damaged.
        ConfigError: if a module or a pooling is not implemented.
    """
    if not (folder / MODULES).is_file():
        return None
    modules = read_json_objects(folder / MODULES)
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    others = [kind for kind in kinds if kind not in KNOWN_MODULES]
    if others or kinds[:2] != ["Transformer", "Pooling"]:
        raise ConfigError(
            f"{folder / MODULES}: the modules {', '.join(kinds) or 'none'} are not implemented; "
            f"known: {', '.join(KNOWN_MODULES)}; remove modules.json to import the model without "
            "them"
        )
    if modules[0].get("path"):
        raise ConfigError(
            f"{folder / MODULES}: the transformer is in {str(modules[0]['path'])[:100]!r}; move "
            "its files beside modules.json"
        )
    path = folder / str(modules[1].get("path")) / "config.json"
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{path} is outside of {folder}; correct modules.json")
    return SentenceModules(_read_pooling(path), _read_max_length(folder))


def _read_pooling(path: Path) -> Pooling:
    """Returns the pooling of a config of that module.

    Raises:
        ConfigError: if it is not implemented, or several are chosen.
    """
    values = read_json_object(path)
    chosen = [k.removeprefix(SWITCH) for k, v in values.items() if k.startswith(SWITCH) and v]
    if "pooling_mode" in values:
        chosen = [str(values["pooling_mode"])]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise ConfigError(
            f"{path}: the pooling {', '.join(chosen) or 'none'} is not implemented; known: one of "
            f"{', '.join(POOLINGS)}"
        )
    return POOLINGS[chosen[0]]


def _read_max_length(folder: Path) -> int:
    """Returns the tokens of a text, 0 if the files do not say so.

    sentence_bert_config.json has the number, or in newer files the tokenizer's own.
    """
    path = folder / SENTENCE_CONFIG
    values: JsonObject = read_json_object(path) if path.is_file() else {}
    if values.get("do_lower_case"):
        LOG.warning("%s: do_lower_case is left to the tokenizer, texts are not changed", path)
    path = folder / TOKENIZER_CONFIG
    tokenizer: JsonObject = read_json_object(path) if path.is_file() else {}
    lengths = (values.get("max_seq_length"), tokenizer.get("model_max_length"))
    return next((n for n in lengths if type(n) is int and 0 < n <= MAX_WINDOW), 0)
