"""Documents of a Hugging Face data set, streamed at a pinned commit; needs `datasets`.

The network fails now and then: a stream that breaks is opened again where it stood, a few times
with growing pauses, before the failure is reported. Code from the hub is never run.
"""

import importlib
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

from errors import DataError

PINNED = re.compile("[0-9a-f]{40}")
TRIES = 5  # without a document in between
NETWORK = ("aiohttp", "fsspec", "httpcore", "httpx", "huggingface_hub", "requests", "urllib3")
LOG = logging.getLogger(__name__)


def records(path: str, subset: str, revision: str, split: str) -> Iterator[dict[str, Any]]:
    """The records of one split, each once and in order."""
    datasets = _library(path)
    state, tries = None, 0
    while True:
        stream, moved = None, False
        try:
            stream = datasets.load_dataset(
                path,
                subset or None,
                split=split,
                revision=revision,
                streaming=True,
                trust_remote_code=False,
            )
            if state:
                stream.load_state_dict(state)
            for record in stream:
                tries, moved = 0, True
                yield record
            return
        except Exception as error:
            if not _transient(error):
                raise DataError(f"{path}@{revision[:8]} ({split}): {_brief(error)}") from error
            tries += 1
            if tries == TRIES:
                raise DataError(
                    f"{path}@{revision[:8]} ({split}): the stream failed {TRIES} times in a row "
                    f"({_brief(error)}); run again when the network is back"
                ) from error
            if (
                stream is not None and moved
            ):  # a stream that gave nothing does not know where it was put
                state = stream.state_dict()
            LOG.warning("%s: %s; trying again in %d s", path, _brief(error), 2**tries)
            time.sleep(2**tries)


def _library(path: str) -> Any:
    """The `datasets` library, if it is there and may use the network."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            "data.source 'datasets' needs the library: pip install 'isoflop[datasets]'"
        ) from error
    if datasets.config.HF_HUB_OFFLINE:
        raise DataError(
            f"{path} is not in data.cache and Hugging Face is offline (HF_HUB_OFFLINE); "
            "unset it, or use data.source=jsonl on a copy"
        )
    return datasets


def _transient(error: Exception) -> bool:
    """Whether trying again may help: the network failed, not the name or the format."""
    if isinstance(error, (FileNotFoundError, PermissionError, NotADirectoryError)):
        return False
    return isinstance(error, (OSError, EOFError)) or type(error).__module__.startswith(NETWORK)


def _brief(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
