"""Documents of a Hugging Face data set, streamed at a pinned commit; needs `datasets`.

If the network fails, the stream is opened again at the same position, a few times with increasing
pauses, before the failure is reported. Code from the hub is never run.
"""

import importlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from errors import DataError
from settings.json_types import JsonObject

MAX_ATTEMPTS = 5  # Maximum number of failures without a document in between.
NETWORK_MODULES = (
    "aiohttp",
    "fsspec",
    "httpcore",
    "httpx",
    "huggingface_hub",
    "requests",
    "urllib3",
)
LOG = logging.getLogger(__name__)


def iter_examples(path: str, config_name: str, revision: str, split: str) -> Iterator[JsonObject]:
    """Yields the examples of one split, each once and in order.

    Raises:
        DataError: if the data set cannot be read, or the network failed too often.
    """
    datasets = _import_datasets(path)
    label = f"{path}@{revision[:8]} ({split})"
    state, failures = None, 0
    while True:
        stream, has_advanced = None, False
        try:
            stream = datasets.load_dataset(
                path,
                config_name or None,
                split=split,
                revision=revision,
                streaming=True,
                trust_remote_code=False,
            )
            if state:
                stream.load_state_dict(state)
            for example in stream:
                failures, has_advanced = 0, True
                yield example
            return
        except Exception as error:
            if not _is_transient(error):
                raise DataError(f"{label}: {_format_error(error)}") from error
            failures += 1
            if failures == MAX_ATTEMPTS:
                raise DataError(
                    f"{label}: the stream failed {MAX_ATTEMPTS} times in a row "
                    f"({_format_error(error)}); run again when the network is back"
                ) from error
            # A stream that yielded no example since load_state_dict does not return its position.
            if stream is not None and has_advanced:
                state = stream.state_dict()
            pause = 2**failures
            LOG.warning("%s: %s; trying again in %d s", path, _format_error(error), pause)
            time.sleep(pause)


def _import_datasets(path: str) -> Any:
    """Imports the `datasets` library.

    Raises:
        DataError: if the library is missing or may not use the network.
    """
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


def _is_transient(error: Exception) -> bool:
    """Returns whether a second attempt may help: not if the name or the format is wrong."""
    if isinstance(error, (FileNotFoundError, PermissionError, NotADirectoryError)):
        return False
    return isinstance(error, (OSError, EOFError)) or type(error).__module__.startswith(
        NETWORK_MODULES
    )


def _format_error(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
