"""Data: from text to batches, through sources, tokenizers, token stores, packing and the loader.

`open_data(config)` returns a tokenizer and a token store for each split. `packing.PackedRows` makes
rows from a store of documents, `text_rows.TextRows` from a store of text pairs. `loader.Batches`
makes batches of rows, and `loader.read_ahead` builds them in the background. The package uses numpy
throughout and depends neither on models nor on objectives.
"""

import importlib
from typing import TYPE_CHECKING

import errors  # noqa: F401  first, since it names the systems that the project runs on

if TYPE_CHECKING:
    from data.open_stores import Data, open_data
    from data.settings import DataConfig

__all__ = ["Data", "DataConfig", "open_data"]

# The public names by module. They are imported when they are read, since the settings of the data,
# which every command loads, need no store.
_MODULES = {
    "Data": "data.open_stores",
    "DataConfig": "data.settings",
    "open_data": "data.open_stores",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'data' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
