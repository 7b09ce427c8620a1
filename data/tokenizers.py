"""Text to ids and back: bytes, a byte-level BPE trained on the spot, or any tokenizer.json.

Our own vocabularies end with the same specials in the same order: pad, bos, eos, sep, cls, mask,
100 sentinels, 3 modes. Special ids come from the program only: text that spells a special is text.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers as hf

from data.files import home
from errors import ConfigError, DataError

FILE = "tokenizer.json"
SINGLE = ("pad", "bos", "eos", "sep", "cls", "mask")
SENTINELS = 100
MODES = 3
NAMES = (
    *(f"<|{name}|>" for name in SINGLE),
    *(f"<|sentinel_{i}|>" for i in range(SENTINELS)),
    *(f"<|mode_{i}|>" for i in range(MODES)),
)

# What published tokenizers call their specials, best first; BERT frames with [CLS] and [SEP].
KNOWN = {
    "pad": ("<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>"),
    "bos": ("<|bos|>", "<s>", "<bos>", "[BOS]", "<|begin_of_text|>", "[CLS]", "<|endoftext|>"),
    "eos": ("<|eos|>", "</s>", "<eos>", "[EOS]", "<|end_of_text|>", "[SEP]", "<|endoftext|>"),
    "sep": ("<|sep|>", "[SEP]", "<sep>", "</s>"),
    "cls": ("<|cls|>", "[CLS]", "<cls>", "<s>"),
    "mask": ("<|mask|>", "[MASK]", "<mask>"),
}
KNOWN_SENTINELS = ("<|sentinel_{}|>", "<extra_id_{}>")
BPE_BYTES = 256 << 20  # of training text that a BPE vocabulary is learnt from


@dataclass(frozen=True)
class Specials:
    """Ids with a meaning of their own; -1 or an empty tuple where a tokenizer has none."""

    pad: int
    bos: int
    eos: int
    sep: int
    cls: int
    mask: int
    sentinels: tuple[int, ...]
    modes: tuple[int, ...]

    def require(self, *names: str, what: str) -> None:
        """Refuse a tokenizer without the ids that `what` needs."""
        for name in names:
            if getattr(self, name) in (-1, ()):
                spelt = ", ".join(KNOWN.get(name, (f"<|{name.rstrip('s')}_0|>",)))
                raise DataError(
                    f"{what} needs the token {name!r}, which the tokenizer lacks; "
                    f"add one of {spelt} to its {FILE}"
                )


class Tokenizer(Protocol):
    vocab: int  # number of ids, without padding
    specials: Specials
    fingerprint: str  # sha256 of the definition

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The int32 ids of every text, without specials."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; specials and ids outside the vocabulary are left out."""

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, which `open_tokenizer` reads."""


class ByteTokenizer:
    """Ids 0 to 255 are the bytes of UTF-8."""

    def __init__(self) -> None:
        self.specials = _ours(256)
        self.vocab = 256 + len(NAMES)
        self._definition = json.dumps({"type": "bytes", "format": 1, "specials": NAMES}).encode()
        self.fingerprint = hashlib.sha256(self._definition).hexdigest()

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        try:
            return [np.frombuffer(t.encode(), np.uint8).astype(np.int32) for t in texts]
        except UnicodeEncodeError as error:
            raise DataError(f"the text holds a lone surrogate: {error}") from error

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in map(int, ids) if 0 <= i < 256).decode(errors="replace")

    def save(self, folder: Path) -> None:
        (folder / FILE).write_bytes(self._definition)


class JsonTokenizer:
    """A tokenizer of the `tokenizers` library; truncation, padding and templates are turned off."""

    def __init__(self, definition: bytes, name: str):
        try:
            self._hf = hf.Tokenizer.from_buffer(definition)
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{name} is not a tokenizer.json: {error}") from error
        self._hf.no_truncation()
        self._hf.no_padding()
        self._hf.encode_special_tokens = True
        self._definition = definition
        self.fingerprint = hashlib.sha256(definition).hexdigest()
        ids = self._hf.get_vocab(with_added_tokens=True)
        self.vocab = max(ids.values(), default=-1) + 1
        single = {k: next((ids[n] for n in names if n in ids), -1) for k, names in KNOWN.items()}
        sentinels = max((_numbered(ids, pattern) for pattern in KNOWN_SENTINELS), key=len)
        self.specials = Specials(**single, sentinels=sentinels, modes=_numbered(ids, "<|mode_{}|>"))

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        try:
            found = self._hf.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError as error:
            raise DataError(f"the text cannot be encoded (a lone surrogate?): {error}") from error
        return [np.array(encoding.ids, np.int32) for encoding in found]

    def decode(self, ids: Iterable[int]) -> str:
        known = [i for i in map(int, ids) if 0 <= i < self.vocab]
        return self._hf.decode(known, skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        (folder / FILE).write_bytes(self._definition)


def open_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer "bytes", or the one in a tokenizer.json, or in the folder of one."""
    if spec == "bytes":
        return ByteTokenizer()
    path = home(spec, "data.tokenizer")
    try:
        path = path / FILE if path.is_dir() else path
        definition = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"data.tokenizer {spec!r}: {error.strerror} ({path}); use bytes, bpe:8192 or a file"
        ) from error
    ours = ByteTokenizer()
    return ours if _is(ours, definition) else JsonTokenizer(definition, str(path))


def bpe_size(spec: str) -> int:
    """The size that "bpe:SIZE" asks for, 0 if `spec` names no BPE; specials come on top."""
    kind, _, size = spec.partition(":")
    if kind != "bpe":
        return 0
    if not size.isdecimal() or not 257 <= int(size) <= 1 << 20:
        raise ConfigError(f"data.tokenizer is {spec!r}; the size is 257 to 1048576: bpe:8192")
    return int(size)


def train_bpe(texts: Iterable[str], size: int) -> JsonTokenizer:
    """Learn a byte-level BPE (Sennrich et al., arXiv:1508.07909) with GPT-2's word pattern.

    Deterministic; reads the first 256 MiB of `texts`. A small text gives fewer than `size` entries.
    """
    tokenizer = hf.Tokenizer(hf.models.BPE())
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = hf.decoders.ByteLevel()
    alphabet = sorted(hf.pre_tokenizers.ByteLevel.alphabet())
    trainer = hf.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(_first(texts, BPE_BYTES), trainer)
    tokenizer.add_special_tokens([hf.AddedToken(n, special=True, normalized=False) for n in NAMES])
    return JsonTokenizer(tokenizer.to_str(pretty=True).encode(), f"bpe:{size}")


def _ours(first: int) -> Specials:
    ids = iter(range(first, first + len(NAMES)))
    single = {name: next(ids) for name in SINGLE}
    sentinels = tuple(next(ids) for _ in range(SENTINELS))
    return Specials(**single, sentinels=sentinels, modes=tuple(ids))


def _is(ours: ByteTokenizer, definition: bytes) -> bool:
    return hashlib.sha256(definition).hexdigest() == ours.fingerprint


def _numbered(ids: dict[str, int], pattern: str) -> tuple[int, ...]:
    """The ids of pattern 0, 1, 2 ... up to the first that is not there."""
    found: list[int] = []
    while pattern.format(len(found)) in ids:
        found.append(ids[pattern.format(len(found))])
    return tuple(found)


def _first(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        yield text
        limit -= len(text.encode())
        if limit <= 0:
            return
