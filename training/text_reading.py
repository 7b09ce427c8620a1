"""How the model of a run reads texts: ids around them, its window, and the ids that end a text.

A run that was trained reads as in training. A model that was imported, and not trained here, reads
as its own files say (`data/framing.py`): its window may be longer than the rows of the run. It is
recorded in run.json, and a dry run prints it.
"""

from data.framing import Framing, Ids, Reading
from data.tokenizers import Tokenizer
from training.settings import Settings

DEFAULT_WINDOW = 2048  # Tokens of an imported model whose files state no limit, as in lm-eval.
# What a record of framing has, and how it is printed.
FRAMING_LABELS = {
    "document_prefix": "before a document",
    "document_suffix": "after a document",
    "text_prefix": "before a context or a prompt",
    "empty_context": "before a text without context",
    "text_suffix": "after a whole text to embed",
    "stop_ids": "a text ends with",
    "window": "window",
    "chat_template": "chat template",
    "embedding": "embedding",
}


def reading_of_run(settings: Settings, framing: Framing) -> Reading:
    """Returns how the model of a run reads texts.

    Args:
        settings: the settings of the run.
        framing: what the files of its tokenizer say.
    """
    if not settings.train.steps:
        positions = settings.model.positions
        limit = positions.max_length if positions.learned else 0
        return imported_reading(framing, DEFAULT_WINDOW, limit)
    return Reading(
        settings.train.seq_len,
        framing.document_prefix,
        framing.document_prefix or framing.empty_context,
        framing.document_suffix,
        _unique((*framing.stop_ids, *framing.document_suffix)),
    )


def imported_reading(framing: Framing, default_window: int, max_positions: int = 0) -> Reading:
    """Returns how a published model reads texts, by its own files.

    Args:
        framing: what the files say.
        default_window: the window if the files state none; 0: unknown.
        max_positions: the number of learned positions, which no window exceeds; 0: no limit.
    """
    window = framing.window or default_window
    return Reading(
        min(window, max_positions) if max_positions and window else window,
        framing.text_prefix,
        framing.empty_context,
        framing.text_suffix,
        _unique(framing.stop_ids),
    )


def framing_record(tokenizer: Tokenizer, reads: Reading, vocab_size: int) -> dict[str, str]:
    """Returns what run.json records of the frame of texts, by the names of `FRAMING_LABELS`.

    Args:
        tokenizer: the tokenizer of the run.
        reads: how the model reads texts.
        vocab_size: the number of ids that the model has.
    """
    framing = tokenizer.framing
    rows = {
        "document_prefix": _name(tokenizer, framing.document_prefix),
        "document_suffix": _name(tokenizer, framing.document_suffix),
        "text_prefix": _name(tokenizer, reads.prefix),
        "empty_context": _name(tokenizer, reads.empty_context),
        "text_suffix": _name(tokenizer, reads.suffix),
        "stop_ids": _name(tokenizer, reads.stop_ids),
        "window": f"{reads.window} tokens" if reads.window else "not stated",
    }
    if framing.chat_template:
        rows["chat_template"] = "that of the tokenizer's files"
    if sentence := unused_rows(tokenizer, vocab_size):
        rows["embedding"] = sentence
    return rows


def run_framing(settings: Settings, tokenizer: Tokenizer) -> dict[str, str]:
    """Returns the record of a run whose settings are resolved."""
    reads = reading_of_run(settings, tokenizer.framing)
    return framing_record(tokenizer, reads, settings.model.vocab_size)


def unused_rows(tokenizer: Tokenizer, vocab_size: int) -> str:
    """Returns how many ids of a model no token has, in words; "" if there are none."""
    n = vocab_size - tokenizer.vocab_size
    return f"{n} of {vocab_size} ids have no token, and decode to nothing" if n > 0 else ""


def _name(tokenizer: Tokenizer, ids: Ids) -> str:
    tokens = (repr(tokenizer.decode_marked([i])) for i in ids)
    return ", ".join(f"{t} ({i})" for t, i in zip(tokens, ids, strict=True)) or "nothing"


def _unique(ids: Ids) -> Ids:
    return tuple(sorted(set(ids)))
