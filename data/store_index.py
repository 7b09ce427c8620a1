"""The index of a token store: names and sizes of its files, counts, hashes, and their checks."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np

from errors import DataError
from settings.json_types import JsonObject

FORMAT = 1
TOKENS_FILE, OFFSETS_FILE, INDEX_FILE = "tokens.bin", "offsets.bin", "index.json"
RECORDS_FILE, WEIGHTS_FILE, IMAGES_FILE = "records.bin", "weights.bin", "images.bin"
DTYPES: dict[str, np.dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
REBUILD_HINT = "rebuild the store"
FINGERPRINT_KEYS = (
    *("format", "dtype", "vocab", "tokenizer", "documents", "tokens", "text_bytes", "files"),
)


def read_index(folder: Path) -> JsonObject:
    """Returns the content of index.json after checks of types and sizes.

    Raises:
        DataError: if the file is missing, damaged or of a newer format.
    """
    path = folder / INDEX_FILE
    try:
        index = json.loads(path.read_text())
        if index["format"] > FORMAT:
            raise DataError(
                f"{folder} has format {index['format']}, this version reads up to {FORMAT}; "
                "update isoflop"
            )
        is_valid = _has_valid_types(index) and _has_valid_sizes(index)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; {REBUILD_HINT}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error!r}); {REBUILD_HINT}") from error
    if not is_valid:
        raise DataError(f"{path} has entries that contradict each other; {REBUILD_HINT}")
    if index.pop("sha256", "") != hash_json(index):
        raise DataError(f"{path} is damaged: its sha256 differs; {REBUILD_HINT}")
    return index


def _has_valid_types(index: JsonObject) -> bool:
    """Whether the counts of an index are integers, and its tokenizer is a text."""
    counts = ("documents", "tokens", "text_bytes", "vocab", "bos", "eos", "dropped")
    sizes = [index[name] for name in counts]
    sizes += [index["files"][name]["bytes"] for name in (TOKENS_FILE, OFFSETS_FILE)]
    return all(type(size) is int for size in sizes) and type(index["tokenizer"]) is str


def _has_valid_sizes(index: JsonObject) -> bool:
    """Whether the files of an index have the sizes that follow from its counts."""
    width, n_tokens = DTYPES[index["dtype"]].itemsize, index["tokens"]
    sizes = {name: file["bytes"] for name, file in index["files"].items()}
    return (
        n_tokens > 0
        and 0 < index["vocab"] <= 1 << 8 * width
        and sizes[TOKENS_FILE] == n_tokens * width
        and sizes[OFFSETS_FILE] == 8 * (index["documents"] + 1)
        and sizes.get(RECORDS_FILE, 16) >= 16
        and sizes.get(WEIGHTS_FILE, 4 * n_tokens) == 4 * n_tokens
        and _has_valid_images(index)
    )


def _has_valid_images(index: JsonObject) -> bool:
    """Whether the images of an index fill their file, if it has images."""
    if IMAGES_FILE not in index["files"]:
        return True
    shape, size = index["image_shape"], index["files"][IMAGES_FILE]["bytes"]
    is_shape = len(shape) == 3 and all(type(n) is int for n in shape) and min(shape) > 0
    return is_shape and size == index["documents"] * math.prod(shape)


def hash_json(content: object) -> str:
    """Returns the sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def fingerprint(index: JsonObject) -> str:
    """Returns the sha256 of the data, which does not depend on names of source files."""
    return hash_json({name: index[name] for name in FINGERPRINT_KEYS})


def out_of_range_message(folder: Path, index: int, document: int, token: int, vocab: int) -> str:
    """Returns the message that refuses an id of a store, which is token `index` of it."""
    return (
        f"{folder / TOKENS_FILE}: token {index} (document {document}) has id {token}, outside the "
        f"vocabulary of {vocab} ids; use the store with the tokenizer that made it"
    )
