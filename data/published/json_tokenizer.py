"""Tokenizers of the `tokenizers` library: any tokenizer.json, with the files of its model."""

import functools
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.framing import Framing, Specials, to_json
from data.published import special_ids
from data.published.model_files import ModelFiles
from errors import DataError
from settings.json_types import JsonObject

if TYPE_CHECKING:
    import tokenizers as hf

TOKENIZER_FILE, FRAMING_FILE = "tokenizer.json", "framing.json"
NO_FILES = ModelFiles()
MAX_CUT_TRIALS = 8  # Number of places that are tried to end a piece.
CUT_CONTEXT = 200  # Characters on each side of a place that decide whether a piece may end there.
END_OF_WORD = re.compile(r"(?<=\S)\s")
UNUSED_TOKEN = re.compile(r"[\[<]\|?unused_?\d+\|?[\]>]")


class JsonTokenizer:
    """A tokenizer of the `tokenizers` library without truncation, padding and templates.

    `files` are those of its model; without them, the special ids are those of the definition alone.
    """

    def __init__(self, definition: bytes, name: str, files: ModelFiles = NO_FILES):
        import tokenizers as hf

        self._definition, self.notes = _within_embedding(definition, name, files)
        try:
            self._hf = hf.Tokenizer.from_buffer(self._definition)
        except Exception as error:  # The library raises plain Exception.
            raise DataError(f"{name} is not a tokenizer.json: {error}") from error
        self._hf.no_truncation()
        self._hf.no_padding()
        self._hf.encode_special_tokens = True
        self.fingerprint = hashlib.sha256(self._definition).hexdigest()
        ids = self._hf.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values(), default=-1) + 1
        added = self._hf.get_added_tokens_decoder()
        self.special_texts = tuple(t.content for t in added.values() if t.special)
        parsed = json.loads(self._definition)
        self.template = special_ids.parse_template(parsed.get("post_processor"))
        vocabulary = special_ids.Vocabulary(
            ids=ids,
            declared=frozenset(self.special_texts),
            unknown=_unknown_token(parsed["model"]),
            template=self.template,
        )
        declared_ids = special_ids.find_special_ids(vocabulary, files)
        self.specials, self.framing = declared_ids.specials, declared_ids.framing
        self.notes += declared_ids.notes
        self.has_model_files = files.is_model
        unused = {i for token, i in ids.items() if UNUSED_TOKEN.fullmatch(token)}
        holes = {*range(self.vocab_size)} - {*ids.values()}
        declared = {i for i, token in added.items() if token.special}
        self._not_text = declared | unused | holes

    @property
    def definition(self) -> bytes:
        """The content of tokenizer.json."""
        return self._definition

    def token_of(self, token_id: int) -> str:
        """Returns the token of an id of the vocabulary, as tokenizer.json spells it."""
        return str(self._hf.id_to_token(token_id))

    def use_framing(self, specials: Specials, framing: Framing) -> None:
        """Replaces special ids and framing by those that framing.json recorded."""
        self.specials, self.framing, self.has_model_files = specials, framing, True

    @property
    def non_text_ids(self) -> np.ndarray:
        """The sorted ids that stand for no text: special, unknown and unused ones."""
        s = self.specials
        specials = {s.pad, s.bos, s.eos, s.sep, s.cls, s.mask, s.unk, *s.sentinels, *s.modes}
        return np.array(sorted((self._not_text | specials) - {-1}), np.int32)

    @property
    def identity(self) -> str:
        """The sha256 of the definition, and of the framing if files of a model declare it."""
        if not self.has_model_files:
            return self.fingerprint
        framing = json.dumps(to_json(self.specials, self.framing), sort_keys=True)
        return hashlib.sha256(f"{self.fingerprint} {framing}".encode()).hexdigest()

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

    @functools.cached_property
    def _marking(self) -> "hf.Tokenizer":
        """The same tokenizer, which encodes special tokens that a text spells."""
        import tokenizers as hf

        tokenizer = hf.Tokenizer.from_buffer(self._definition)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def encode_marked(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the ids as `encode` does, but special tokens that a text spells are their ids.

        Raises:
            DataError: if a text cannot be encoded.
        """
        try:
            encodings = self._marking.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError as error:
            raise DataError(f"the text cannot be encoded (a lone surrogate?): {error}") from error
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    @functools.cached_property
    def _without_prefix(self) -> "JsonTokenizer":
        """The tokenizer without the space that it puts before a text; itself if it puts none."""
        definition = json.loads(self._definition)
        trimmed = special_ids.without_prefix(definition)
        if trimmed == definition:
            return self
        content = json.dumps(trimmed, ensure_ascii=False).encode()
        return JsonTokenizer(content, "the tokenizer of a text that goes on")

    @functools.cached_property
    def _begins_once(self) -> bool:
        """Whether only the beginning of a text gets a space, not what is behind a special token."""
        pre_tokenizer = json.dumps(json.loads(self._definition).get("pre_tokenizer"))
        return '"prepend_scheme": "first"' in pre_tokenizer

    def going_on(self, is_behind_special: bool) -> "JsonTokenizer":
        """Returns the tokenizer of a text that goes on behind another text or a special token.

        Behind a special token, most tokenizers begin anew, with the space of a beginning.
        """
        begins = is_behind_special and not self._begins_once
        return self if begins else self._without_prefix

    def token_id(self, token: str) -> int:
        """Returns the id of exactly this token, or -1 if the vocabulary lacks it."""
        token_id = self._hf.token_to_id(token)
        return -1 if token_id is None else token_id

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

    def decode_marked(self, ids: Iterable[int]) -> str:
        """Returns the text as `decode` does, with special tokens written out."""
        valid_ids = [i for i in map(int, ids) if 0 <= i < self.vocab_size]
        return self._hf.decode(valid_ids, skip_special_tokens=False)

    def byte_lengths(self) -> np.ndarray:
        """Returns the bytes of each id: exact if the vocabulary is of bytes, else of its text."""
        decoder = json.loads(self._definition).get("decoder") or {}
        kinds = {part.get("type") for part in (decoder, *decoder.get("decoders", ()))}
        is_byte_level = "ByteLevel" in kinds
        added = self._hf.get_added_tokens_decoder()
        lengths = np.zeros(self.vocab_size, np.int64)
        for token, i in self._hf.get_vocab(with_added_tokens=True).items():
            if is_byte_level and i not in added:
                lengths[i] = len(token)  # Each character of the token stands for one byte.
            else:
                lengths[i] = len(self.decode([i]).encode())
        return lengths

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, and framing.json if files of a model declare it."""
        (folder / TOKENIZER_FILE).write_bytes(self._definition)
        if self.has_model_files:
            framing = json.dumps(to_json(self.specials, self.framing), indent=1)
            (folder / FRAMING_FILE).write_text(framing + "\n")


def _within_embedding(
    definition: bytes, name: str, files: ModelFiles
) -> tuple[bytes, tuple[str, ...]]:
    """Drops added tokens beyond the model's embedding, of which no text may be made.

    Returns:
        The definition, and what was dropped as a sentence.

    Raises:
        DataError: if the definition is not a tokenizer.json.
    """
    limit = files.config.get("vocab_size")
    if type(limit) is not int:
        return definition, ()
    try:
        trimmed, dropped = special_ids.without_excess(json.loads(definition), limit)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{name} is not a tokenizer.json: {error}; download it again") from error
    if not dropped:
        return definition, ()
    note = (
        f"the embedding has {limit} rows, so the added tokens {', '.join(dropped[:5])} of "
        "tokenizer.json, which have ids beyond it, are left out"
    )
    return json.dumps(trimmed, ensure_ascii=False).encode(), (note,)


def _unknown_token(model: JsonObject) -> str:
    """Returns the token of a model of `tokenizers` for unknown text, "" if there is none."""
    if isinstance(model.get("unk_token"), str):
        return str(model["unk_token"])
    vocab, index = model.get("vocab"), model.get("unk_id")  # Unigram has a list of pairs.
    if isinstance(vocab, list) and type(index) is int and 0 <= index < len(vocab):
        return str(vocab[index][0])
    return ""
