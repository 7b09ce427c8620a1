"""The table of sources by the kind of their documents.

A source is a function from `DataConfig` to a `TextSource` (`data/sources/source.py`). To add one,
write it in a file of this folder and name it here as "module:function". It is imported when data
is read from it.
"""

from typing import Literal

# What a store holds: texts, or records of several texts.
StoreKind = Literal["documents", "text_pairs", "preferences"]

SOURCE_PATHS: dict[StoreKind, dict[str, str]] = {
    "documents": {
        "corpus": "data.sources.documents:open_corpus",
        "text": "data.sources.documents:open_text",
        "jsonl": "data.sources.documents:open_jsonl",
        "datasets": "data.sources.datasets:open_datasets",
        "digits": "data.sources.documents:open_digits",
        "images": "data.sources.documents:open_images",
    },
    "text_pairs": {
        "corpus": "data.sources.text_pairs:open_corpus",
        "jsonl": "data.sources.text_pairs:open_jsonl",
        "datasets": "data.sources.text_pairs:open_datasets",
    },
    "preferences": {
        "corpus": "data.chats.preferences:open_corpus",
        "jsonl": "data.chats.preferences:open_jsonl",
        "datasets": "data.chats.preferences:open_datasets",
    },
}
BUILT_IN_SOURCES = ("corpus", "digits")  # Sources without a path.
IMAGE_SOURCES = ("digits", "images")  # Sources whose documents are texts with an image each.
