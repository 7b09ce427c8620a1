"""Tokenizers: bytes, a byte-level BPE learned from the training text, or any tokenizer.json.

The project's own vocabularies end with the same special tokens in the same order: pad, bos, eos,
sep, cls, mask, 100 sentinels, 3 modes. Only the program inserts special ids. Text that spells a
special token is encoded as text.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from data.framing import (
    NUM_SENTINELS,
    SPECIAL_NAMES,
    SPECIAL_TOKENS,
    Framing,
    Specials,
    default_framing,
    from_json,
)
from data.published.hub_files import NOT_TOKENIZER, TOKENIZER_PATTERNS, download
from data.published.json_tokenizer import (
    CUT_CONTEXT,
    END_OF_WORD,
    FRAMING_FILE,
    NO_FILES,
    TOKENIZER_FILE,
    JsonTokenizer,
)
from data.published.model_files import read_model_files
from data.readers.input_files import check_regular
from errors import DataError
from settings.json_files import read_json_object
from storage.paths import expand_user
from storage.remote import is_url
from storage.scratch import local_copy

HUB_PREFIX = "hf:"  # Names a tokenizer of the Hugging Face hub.
MAX_BPE_BYTES = 256 << 20  # Maximum size of the text from which a BPE vocabulary is learned.
MAX_DEFINITION_BYTES = 512 << 20  # Maximum size of a tokenizer.json.
PIECE_CHARACTERS = 1 << 16  # Long texts are encoded in pieces of about this size.
LEARNING_CHARACTERS = 1 << 14  # Size of the pieces of which a vocabulary is learned.
MARKED = re.compile(f"({'|'.join(map(re.escape, SPECIAL_TOKENS))})")


class Tokenizer(Protocol):
    """A tokenizer maps text to ids and ids to text."""

    vocab_size: int  # Number of ids, without padding.
    specials: Specials
    fingerprint: str  # The sha256 of the definition.
    framing: Framing
    special_texts: tuple[str, ...]  # The strings that `encode_marked` turns into special ids.
    notes: tuple[str, ...]  # What a user should know of the tokenizer's files.

    @property
    def non_text_ids(self) -> np.ndarray:
        """The sorted ids that stand for no text: special, unknown and unused ones."""

    @property
    def identity(self) -> str:
        """The sha256 of the definition, and of the framing if files of a model declare it."""

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the int32 ids of every text, without special ids."""

    def find_cut(self, text: str, end: int) -> int:
        """Returns a place up to `end` at which dividing `text` changes no id; 0 if none is found.

        A tokenizer that looks further than CUT_CONTEXT characters may be judged wrongly.
        """

    def encode_marked(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the ids as `encode` does, but special tokens that a text spells are their ids."""

    def going_on(self, is_behind_special: bool) -> "Tokenizer":
        """Returns the tokenizer of a text that goes on behind another text or a special token.

        Some tokenizers put a space before a text; one that goes on gets none.
        """

    def token_id(self, token: str) -> int:
        """Returns the id of exactly this token, or -1 if the vocabulary lacks it."""

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids` without special ids and ids outside the vocabulary."""

    def decode_marked(self, ids: Iterable[int]) -> str:
        """Returns the text as `decode` does, with special tokens written out."""

    def byte_lengths(self) -> np.ndarray:
        """Returns the bytes of text that each id stands for, as far as an id has its own bytes."""

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, which `open_tokenizer` reads."""


class ByteTokenizer:
    """A tokenizer whose ids 0 to 255 are the bytes of UTF-8."""

    def __init__(self) -> None:
        self.specials = _make_specials(256)
        self.vocab_size = 256 + len(SPECIAL_TOKENS)
        self.framing = default_framing(*(self.specials.bos, self.specials.eos, self.specials.pad))
        self.special_texts = SPECIAL_TOKENS
        self.notes: tuple[str, ...] = ()
        self.non_text_ids = np.arange(256, self.vocab_size, dtype=np.int32)
        self._definition = json.dumps(
            {"type": "bytes", "format": 1, "specials": SPECIAL_TOKENS}
        ).encode()
        self.fingerprint = self.identity = hashlib.sha256(self._definition).hexdigest()

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the bytes of every text, as int32.

        Raises:
            DataError: if a text has a lone surrogate.
        """
        try:
            return [np.frombuffer(t.encode(), np.uint8).astype(np.int32) for t in texts]
        except UnicodeEncodeError as error:
            raise DataError(f"the text holds a lone surrogate: {error}") from error

    def encode_marked(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the bytes of every text, and the ids of special tokens that it spells."""
        pieces = [MARKED.split(text) for text in texts]  # Every second one is a special token.
        return [
            np.concatenate(
                [
                    np.array([self.token_id(piece)], np.int32) if i % 2 else self.encode([piece])[0]
                    for i, piece in enumerate(parts)
                ]
            )
            for parts in pieces
        ]

    def going_on(self, is_behind_special: bool) -> "ByteTokenizer":
        """Returns the tokenizer itself, which puts nothing before a text."""
        return self

    def token_id(self, token: str) -> int:
        """Returns the id of a special token or of a character of one byte, or -1."""
        if token in SPECIAL_TOKENS:
            return 256 + SPECIAL_TOKENS.index(token)
        return ord(token) if len(token) == 1 and token.isascii() else -1

    def find_cut(self, text: str, end: int) -> int:
        """Returns `end`, since every character is encoded by itself."""
        return end

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of the ids that are bytes; invalid UTF-8 is replaced."""
        return bytes(i for i in map(int, ids) if 0 <= i < 256).decode(errors="replace")

    def decode_marked(self, ids: Iterable[int]) -> str:
        """Returns the text of bytes, with special tokens written out."""
        spelled = [bytes([i]) for i in range(256)] + [name.encode() for name in SPECIAL_TOKENS]
        valid_ids = (i for i in map(int, ids) if 0 <= i < len(spelled))
        return b"".join(spelled[i] for i in valid_ids).decode(errors="replace")

    def byte_lengths(self) -> np.ndarray:
        """Returns 1 for each byte and 0 for special ids."""
        return (np.arange(self.vocab_size) < 256).astype(np.int64)

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, which `open_tokenizer` reads."""
        (folder / TOKENIZER_FILE).write_bytes(self._definition)


def open_tokenizer(spec: str) -> Tokenizer:
    """Opens the tokenizer `spec`: "bytes", a tokenizer.json, a folder with one, or "hf:NAME".

    In a folder, the files of a model say which tokens are special and what frames a text.

    Raises:
        DataError: if the file cannot be read.
    """
    if spec == "bytes":
        return ByteTokenizer()
    if spec.startswith(HUB_PREFIX):
        name = spec.removeprefix(HUB_PREFIX)
        path = download(name, TOKENIZER_PATTERNS, NOT_TOKENIZER, needed=f"its {TOKENIZER_FILE}")
    else:
        path = local_copy(spec) if is_url(spec) else expand_user(spec, "data.tokenizer")
    folder = path if path.is_dir() else None
    definition = _read_definition(path / TOKENIZER_FILE if folder else path, spec)
    byte_tokenizer = ByteTokenizer()
    if hashlib.sha256(definition).hexdigest() == byte_tokenizer.fingerprint:
        return byte_tokenizer
    has_framing = folder is not None and (folder / FRAMING_FILE).exists()
    files = NO_FILES if folder is None or has_framing else read_model_files(folder)
    tokenizer = JsonTokenizer(definition, str(path), files)
    if folder is not None and has_framing:
        tokenizer.use_framing(*from_json(read_json_object(folder / FRAMING_FILE)))
    return tokenizer


def _read_definition(path: Path, spec: str) -> bytes:
    """Returns the content of a tokenizer.json.

    Raises:
        DataError: if the file cannot be read or is too large.
    """
    try:
        status = path.stat()
        check_regular(path, status)
        if status.st_size > MAX_DEFINITION_BYTES:
            raise DataError(
                f"data.tokenizer {spec!r}: {path} has {status.st_size} bytes, more than any "
                "tokenizer.json; use bytes, bpe:8192 or another file"
            )
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"data.tokenizer {spec[:200]!r}: {error.strerror} ({path}); use bytes, bpe:8192, "
            "a file, a folder, or hf:NAME"
        ) from error


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
    return Specials(
        **single_ids,
        sentinels=sentinels,
        modes=tuple(ids),
        decoder_start=single_ids["bos"],
    )


def _take_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        yield text
        limit -= len(text.encode())
        if limit <= 0:
            return
