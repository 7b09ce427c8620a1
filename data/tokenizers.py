"""Tokenizers: bytes, a byte-level BPE learned from the training text, or any tokenizer.json.

The project's own vocabularies end with the same special tokens in the same order: pad, bos, eos,
sep, cls, mask, 100 sentinels, 3 modes. Only the program inserts special ids. Text that spells a
special token is encoded as text.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from data.input_files import check_regular, expand_user
from errors import ConfigError, DataError

TOKENIZER_FILE = "tokenizer.json"
SPECIAL_NAMES = ("pad", "bos", "eos", "sep", "cls", "mask")
NUM_SENTINELS = 100
NUM_MODES = 3
SPECIAL_TOKENS = (
    *(f"<|{name}|>" for name in SPECIAL_NAMES),
    *(f"<|sentinel_{i}|>" for i in range(NUM_SENTINELS)),
    *(f"<|mode_{i}|>" for i in range(NUM_MODES)),
)

# Names of special tokens in published tokenizers, best first; BERT frames with [CLS] and [SEP].
SPECIAL_ALIASES = {
    "pad": ("<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>"),
    "bos": ("<|bos|>", "<s>", "<bos>", "[BOS]", "<|begin_of_text|>", "[CLS]", "<|endoftext|>"),
    "eos": ("<|eos|>", "</s>", "<eos>", "[EOS]", "<|end_of_text|>", "[SEP]", "<|endoftext|>"),
    "sep": ("<|sep|>", "[SEP]", "<sep>", "</s>"),
    "cls": ("<|cls|>", "[CLS]", "<cls>", "<s>"),
    "mask": ("<|mask|>", "[MASK]", "<mask>"),
}
SENTINEL_PATTERNS = ("<|sentinel_{}|>", "<extra_id_{}>")
MAX_BPE_BYTES = 256 << 20  # Maximum size of the text from which a BPE vocabulary is learned.
MAX_DEFINITION_BYTES = 512 << 20  # Maximum size of a tokenizer.json.
PIECE_CHARACTERS = 1 << 16  # Long texts are encoded in pieces of about this size.
LEARNING_CHARACTERS = 1 << 14  # Size of the pieces of which a vocabulary is learned.
MAX_CUT_TRIALS = 8  # Number of places that are tried to end a piece.
CUT_CONTEXT = 200  # Characters on each side of a place that decide whether a piece may end there.
END_OF_WORD = re.compile(r"(?<=\S)\s")


@dataclass(frozen=True)
class Specials:
    """Special ids of a tokenizer; a missing id is -1, missing sentinels or modes are empty."""

    pad: int
    bos: int
    eos: int
    sep: int
    cls: int
    mask: int
    sentinels: tuple[int, ...]
    modes: tuple[int, ...]

    def require(self, *names: str, needed_by: str) -> None:
        """Refuses a tokenizer that lacks one of the ids `names`.

        Raises:
            DataError: if an id is missing; `needed_by` is named in the message.
        """
        for name in names:
            if getattr(self, name) in (-1, ()):
                aliases = ", ".join(SPECIAL_ALIASES.get(name, (f"<|{name.rstrip('s')}_0|>",)))
                raise DataError(
                    f"{needed_by} needs the token {name!r}, which the tokenizer lacks; "
                    f"add one of {aliases} to its {TOKENIZER_FILE}"
                )


class Tokenizer(Protocol):
    """A tokenizer maps text to ids and ids to text."""

    vocab_size: int  # Number of ids, without padding.
    specials: Specials
    fingerprint: str  # The sha256 of the definition.

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the int32 ids of every text, without special ids."""

    def find_cut(self, text: str, end: int) -> int:
        """Returns a place up to `end` at which dividing `text` changes no id; 0 if none is found.

        A tokenizer that looks further than CUT_CONTEXT characters may be judged wrongly.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids` without special ids and ids outside the vocabulary."""

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, which `open_tokenizer` reads."""


class ByteTokenizer:
    """A tokenizer whose ids 0 to 255 are the bytes of UTF-8."""

    def __init__(self) -> None:
        self.specials = _make_specials(256)
        self.vocab_size = 256 + len(SPECIAL_TOKENS)
        self._definition = json.dumps(
            {"type": "bytes", "format": 1, "specials": SPECIAL_TOKENS}
        ).encode()
        self.fingerprint = hashlib.sha256(self._definition).hexdigest()

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the bytes of every text, as int32.

        Raises:
            DataError: if a text has a lone surrogate.
        """
        try:
            return [np.frombuffer(t.encode(), np.uint8).astype(np.int32) for t in texts]
        except UnicodeEncodeError as error:
            raise DataError(f"the text holds a lone surrogate: {error}") from error

    def find_cut(self, text: str, end: int) -> int:
        """Returns `end`, since every character is encoded by itself."""
        return end

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of the ids that are bytes; invalid UTF-8 is replaced."""
        return bytes(i for i in map(int, ids) if 0 <= i < 256).decode(errors="replace")

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, which `open_tokenizer` reads."""
        (folder / TOKENIZER_FILE).write_bytes(self._definition)


class JsonTokenizer:
    """A tokenizer of the `tokenizers` library without truncation, padding and templates."""

    def __init__(self, definition: bytes, name: str):
        import tokenizers as hf

        try:
            self._hf = hf.Tokenizer.from_buffer(definition)
        except Exception as error:  # The library raises plain Exception.
            raise DataError(f"{name} is not a tokenizer.json: {error}") from error
        self._hf.no_truncation()
        self._hf.no_padding()
        self._hf.encode_special_tokens = True
        self._definition = definition
        self.fingerprint = hashlib.sha256(definition).hexdigest()
        ids = self._hf.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values(), default=-1) + 1
        single_ids = {
            k: next((ids[n] for n in names if n in ids), -1) for k, names in SPECIAL_ALIASES.items()
        }
        sentinels = max((_numbered_ids(ids, pattern) for pattern in SENTINEL_PATTERNS), key=len)
        self.specials = Specials(
            **single_ids, sentinels=sentinels, modes=_numbered_ids(ids, "<|mode_{}|>")
        )

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the int32 ids of every text, without special ids.

        Raises:
            DataError: if a text cannot be encoded.
        """
        try:
            encodings = self._hf.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError as error:
            raise DataError(f"the text cannot be encoded (a lone surrogate?): {error}") from error
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def find_cut(self, text: str, end: int) -> int:
        """Returns an end of a word or of a token at which the division changes no id near it."""
        start = max(end - (CUT_CONTEXT << 4), 0)
        words = [start + match.start() for match in END_OF_WORD.finditer(text[start:end])]
        base = max(end - 2 * CUT_CONTEXT, 0)
        offsets = self._hf.encode(text[base:end], add_special_tokens=False).offsets
        tokens = [base + first for first, _ in offsets if base + first < end - CUT_CONTEXT]
        for positions in (words, tokens):
            for position in positions[: -MAX_CUT_TRIALS - 1 : -1]:
                left = text[max(position - CUT_CONTEXT, 0) : position]
                right = text[position : position + CUT_CONTEXT]
                joined, *parts = self.encode([left + right, left, right])
                if left and np.array_equal(joined, np.concatenate(parts)):
                    return position
        return 0

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids` without special ids and ids outside the vocabulary."""
        valid_ids = [i for i in map(int, ids) if 0 <= i < self.vocab_size]
        return self._hf.decode(valid_ids, skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, which `open_tokenizer` reads."""
        (folder / TOKENIZER_FILE).write_bytes(self._definition)


def open_tokenizer(spec: str) -> Tokenizer:
    """Opens the tokenizer `spec`: "bytes", a tokenizer.json, or a folder with one.

    Raises:
        DataError: if the file cannot be read.
    """
    if spec == "bytes":
        return ByteTokenizer()
    path = expand_user(spec, "data.tokenizer")
    try:
        path = path / TOKENIZER_FILE if path.is_dir() else path
        status = path.stat()
        check_regular(path, status)
        if status.st_size > MAX_DEFINITION_BYTES:
            raise DataError(
                f"data.tokenizer {spec!r}: {path} has {status.st_size} bytes, more than any "
                "tokenizer.json; use bytes, bpe:8192 or another file"
            )
        definition = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"data.tokenizer {spec!r}: {error.strerror} ({path}); use bytes, bpe:8192 or a file"
        ) from error
    byte_tokenizer = ByteTokenizer()
    if _is_byte_tokenizer(byte_tokenizer, definition):
        return byte_tokenizer
    return JsonTokenizer(definition, str(path))


def bpe_size(spec: str) -> int:
    """Returns SIZE of "bpe:SIZE", the vocabulary without special tokens; 0 for other tokenizers.

    Raises:
        ConfigError: if the size is not a number in range.
    """
    kind, _, size = spec.partition(":")
    if kind != "bpe":
        return 0
    if not size.isdecimal() or not 257 <= int(size) <= 1 << 20:
        raise ConfigError(
            f"data.tokenizer is {spec!r}; the size must be 257 to 1048576, as bpe:8192"
        )
    return int(size)


def train_bpe(texts: Iterable[str], size: int) -> JsonTokenizer:
    """Learns a byte-level BPE (Sennrich et al., arXiv:1508.07909) with GPT-2's word pattern.

    The result is deterministic. Only the first 256 MiB of `texts` are read. A small text gives
    fewer than `size` entries. Texts are read in pieces that end with a word.
    """
    import tokenizers as hf

    tokenizer = hf.Tokenizer(hf.models.BPE())
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = hf.decoders.ByteLevel()
    alphabet = sorted(hf.pre_tokenizers.ByteLevel.alphabet())
    trainer = hf.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    size_of_pieces = LEARNING_CHARACTERS  # The library reads ahead by hundreds of pieces.
    pieces = (
        piece for text in texts for piece in iter_pieces([text], _last_word_end, size_of_pieces)
    )
    tokenizer.train_from_iterator(_take_bytes(pieces, MAX_BPE_BYTES), trainer)
    tokenizer.add_special_tokens(
        [hf.AddedToken(n, special=True, normalized=False) for n in SPECIAL_TOKENS]
    )
    return JsonTokenizer(tokenizer.to_str(pretty=True).encode(), f"bpe:{size}")


def iter_pieces(
    parts: Iterable[str], find_cut: Callable[[str, int], int], size: int = PIECE_CHARACTERS
) -> Iterator[str]:
    """Yields the text of `parts` in pieces of about `size` characters.

    Args:
        parts: Parts of one text, divided anywhere.
        find_cut: See `Tokenizer.find_cut`. If it finds no place, the rest is one piece.
        size: Maximum number of characters of a piece.
    """
    text, undivided = "", list[str]()
    for part in parts:
        if undivided:
            undivided.append(part)
            continue
        text, start = text + part, 0
        while len(text) - start > size + CUT_CONTEXT:
            window = text[start : start + size + CUT_CONTEXT]
            cut = find_cut(window, size)
            if not cut:
                undivided.append(text[start:])
                break
            yield window[:cut]
            start += cut
        text = "" if undivided else text[start:]
    if undivided or text:
        yield "".join(undivided) or text


def _last_word_end(text: str, end: int) -> int:
    """Returns the end of the last word before `end`, or `end` in the middle of a very long one."""
    words = END_OF_WORD.finditer(text, max(end - (CUT_CONTEXT << 4), 0), end)
    return max((match.start() for match in words), default=end)


def _make_specials(first: int) -> Specials:
    ids = iter(range(first, first + len(SPECIAL_TOKENS)))
    single_ids = {name: next(ids) for name in SPECIAL_NAMES}
    sentinels = tuple(next(ids) for _ in range(NUM_SENTINELS))
    return Specials(**single_ids, sentinels=sentinels, modes=tuple(ids))


def _is_byte_tokenizer(byte_tokenizer: ByteTokenizer, definition: bytes) -> bool:
    return hashlib.sha256(definition).hexdigest() == byte_tokenizer.fingerprint


def _numbered_ids(ids: dict[str, int], pattern: str) -> tuple[int, ...]:
    """Returns the ids of the pattern with 0, 1, 2 ... up to the first missing one."""
    numbered: list[int] = []
    while pattern.format(len(numbered)) in ids:
        numbered.append(ids[pattern.format(len(numbered))])
    return tuple(numbered)


def _take_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        yield text
        limit -= len(text.encode())
        if limit <= 0:
            return
