"""Masked language modelling as it is judged: 15 % of the text behind masks, always the same tokens.

Which tokens is a file beside each split of the token store, `mask-LENGTH.bin`, for rows of LENGTH
tokens: drawn once, whatever the training rate, kept with its hash in `mask-LENGTH.json`, verified
whenever it is read (docs/formats.md). Its sha256 stands in every result, and the board ranks rows
of different files apart. All models see the windows of `eval/held_out.py`.
"""

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool

from data.store import Store
from errors import DataError
from eval.held_out import SPLITS, means, read, swept
from eval.task import Score, Subject
from objectives.masked_lm import JUDGED_RATE

FORMAT = 1
LOG = logging.getLogger(__name__)


class Masked:
    """Cross-entropy and accuracy on the tokens of the file."""

    version: ClassVar[int] = 3
    objective: ClassVar[str] = "masked_lm"

    def __init__(self, splits: tuple[str, ...] = SPLITS):
        self.splits = splits

    def __call__(self, subject: Subject) -> Iterator[Score]:
        for split in self.splits:
            store = getattr(subject.data, split)
            mask = fixed(subject, store)
            found, digest = swept(subject, store, _behind(subject, store, mask.hidden))
            yield from means(found, split, "masked", ("masked_nats", "accuracy"))
            yield Score(f"{split}/set", digest)
            yield Score(f"{split}/mask", mask.sha256)


class Mask(NamedTuple):
    """Which tokens of which window are hidden, and the hash of the file that says so."""

    hidden: Bool[np.ndarray, "N T"]
    sha256: str


class Index(NamedTuple):
    """What the JSON beside the bits says of them."""

    format: int
    store: str  # fingerprint of the split
    windows: int
    length: int  # tokens of a window
    rate: float  # share of a window's text that is hidden
    hidden: int  # tokens, in all
    sha256: str  # of the bits


def fixed(subject: Subject, store: Store) -> Mask:
    """The mask of a split for rows of train.length: from its file, which is made if it is not
    there. DataError for one that is damaged, or of other text."""
    length = subject.settings.train.length
    path = store.folder / f"mask-{length}.bin"
    if not path.with_suffix(".json").exists():
        hidden = _drawn(subject, store)
        try:
            _keep(path, store, hidden)
        except OSError as error:
            LOG.warning("%s is not kept (%s); it is drawn again each time", path, error.strerror)
            return Mask(hidden, hashlib.sha256(_bits(hidden)).hexdigest())
    return _read(path, store, length)


def _drawn(subject: Subject, store: Store) -> Bool[np.ndarray, "N T"]:
    """As the objective draws it for these windows."""
    return np.concatenate([rows["drawn"][_there(rows)] for rows in _windows(subject, store)])


def _keep(path: Path, store: Store, hidden: Bool[np.ndarray, "N T"]) -> None:
    """Both files by renaming, the index last: of processes at work at once any may win."""
    bits, (windows, length) = _bits(hidden), hidden.shape
    digest = hashlib.sha256(bits).hexdigest()
    index = Index(
        *(FORMAT, store.fingerprint, windows, length, JUDGED_RATE, int(hidden.sum()), digest)
    )
    text = json.dumps(index._asdict(), indent=1) + "\n"
    for place, content in ((path, bits), (path.with_suffix(".json"), text.encode())):
        partial = place.with_name(f"{place.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
        partial.write_bytes(content)
        partial.rename(place)


def _read(path: Path, store: Store, length: int) -> Mask:
    beside, way = path.with_suffix(".json"), f"delete {path.with_suffix('.*')}, it is drawn again"
    try:
        index, bits = Index(**json.loads(beside.read_text())), path.read_bytes()
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{beside} cannot be read ({error}); {way}") from error
    windows = -(-int((store.lengths + 2).sum()) // length)
    expected = FORMAT, store.fingerprint, windows, length, JUDGED_RATE
    if index[:5] != expected:
        raise DataError(f"{beside} is {index[:5]}, must be {expected}; {way}")
    width = -(-length // 8)
    if len(bits) != windows * width or hashlib.sha256(bits).hexdigest() != index.sha256:
        raise DataError(f"{path} is damaged: sha256 is not that of {beside.name}; {way}")
    packed = np.frombuffer(bits, np.uint8).reshape(windows, width)
    return Mask(np.unpackbits(packed, axis=1, count=length).astype(bool), index.sha256)


def _bits(hidden: Bool[np.ndarray, "N T"]) -> bytes:
    return np.packbits(hidden, axis=1).tobytes()


def _behind(
    subject: Subject, store: Store, hidden: Bool[np.ndarray, "N T"]
) -> Iterator[dict[str, np.ndarray]]:
    """All windows, with these tokens behind masks; only they count."""
    at, mask = 0, subject.data.tokenizer.specials.mask
    for rows in _windows(subject, store):
        count = int(_there(rows).sum())
        own = np.zeros_like(rows.pop("drawn"))
        own[:count] = hidden[at : at + count]
        at += count
        rows["tokens"] = np.where(own, mask, rows["targets"]).astype(rows["tokens"].dtype)
        yield rows | {"weights": rows["weights"] * own}


def _windows(subject: Subject, store: Store) -> Iterator[dict[str, np.ndarray]]:
    """With the weight of every token of the text, and `drawn`: what the objective would hide."""
    settings, objective = subject.settings, subject.objective.judged()
    plain = objective.host(settings.model, settings.train.length, subject.data.tokenizer)

    def example(
        pieces: list[np.ndarray], length: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        row = plain(pieces, length, rng)
        drawn = row["tokens"] != row["targets"]
        return row | {"drawn": drawn, "weights": (row["segments"] != 0).astype(np.float32)}

    return read(subject, store, example)


def _there(rows: dict[str, np.ndarray]) -> np.ndarray:
    """Which rows are no padding; these come first."""
    return np.asarray(rows["segments"].any(axis=1))
