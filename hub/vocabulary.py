"""Reads the tokenizer next to weights, and writes it as transformers' AutoTokenizer reads it.

If tokenizer_config.json does not name a class, AutoTokenizer takes the class of the `model_type`,
which adds its own special tokens to the vocabulary or refuses the file. What frames a text is the
post-processor of tokenizer.json, which every reader follows.
"""

import json
import logging
from pathlib import Path
from typing import NamedTuple

from arch import ModelConfig
from data.framing import SPECIAL_NAMES, Ids
from data.published.model_files import TOKENIZER_CONFIG
from data.tokenizers import TOKENIZER_FILE, JsonTokenizer, Tokenizer, open_tokenizer
from errors import CheckpointError
from settings.json_files import read_json_object
from settings.json_types import JsonObject
from training.text_reading import FRAMING_LABELS, framing_record, imported_reading, unused_rows

LOG = logging.getLogger(__name__)

FINGERPRINT_KEY = "isoflop_tokenizer"  # the tokenizer of the run, whose file had another frame


class TextUse(NamedTuple):
    """How the texts of an exported model are framed, and its chats written."""

    prefix: Ids  # ids before a text
    suffix: Ids  # ids after a text
    stop_ids: Ids  # ids that end a text; the first one is the eos of the tokenizer
    chat_template: str = ""  # a program in Jinja; "" if there is none


def load_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer | None:
    """Loads the tokenizer next to the weights, None if there is none.

    The log names files that contradict each other, and which one is followed.

    Raises:
        CheckpointError: if the tokenizer belongs to another model: it has more tokens than the
            embedding has rows (added tokens beyond them are left out), or it frames texts with ids
            that the embedding lacks; or a file of the model names such an id.
    """
    if not (folder / TOKENIZER_FILE).is_file():
        return None
    tokenizer = open_tokenizer(str(folder))
    framing, specials = tokenizer.framing, tokenizer.specials
    frame = {*framing.text_prefix, *framing.text_suffix, *framing.stop_ids, specials.decoder_start}
    largest = max(frame)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{folder / TOKENIZER_FILE} has the id {tokenizer.vocab_size - 1}, the model "
            f"{config.vocab_size} ids: the tokenizer belongs to another model; replace or remove "
            "this tokenizer.json"
        )
    if largest >= config.vocab_size:
        raise CheckpointError(
            f"{folder}: the special id {largest} of config.json or generation_config.json is "
            f"beyond the {config.vocab_size} ids of the model; correct or remove it there"
        )
    unused = unused_rows(tokenizer, config.vocab_size)
    for note in (*tokenizer.notes, *([unused] if unused else [])):
        LOG.warning("%s: %s", folder, note)
    return tokenizer


def describe(tokenizer: Tokenizer | None) -> list[str]:
    """Returns lines that say how texts are framed, and what ends them."""
    if tokenizer is None:
        return ["there is no tokenizer.json: the run reads bytes"]
    reads = imported_reading(tokenizer.framing, 0)
    rows = framing_record(tokenizer, reads, tokenizer.vocab_size)
    return [f"{FRAMING_LABELS[name]}: {text}" for name, text in rows.items()]


def published_use(tokenizer: Tokenizer, is_causal: bool) -> TextUse:
    """Returns the use of texts by the tokenizer's own files."""
    framing, eos = tokenizer.framing, tokenizer.specials.eos
    declares = isinstance(tokenizer, JsonTokenizer) and tokenizer.has_model_files
    suffix = framing.text_suffix if declares or not is_causal else ()
    stops = tuple(sorted(framing.stop_ids, key=lambda i: (i != eos, i)))
    return TextUse(framing.text_prefix, suffix, stops, framing.chat_template)


def save_tokenizer(tokenizer: Tokenizer, folder: Path, use: TextUse) -> None:
    """Writes tokenizer.json, and tokenizer_config.json with the names of the special tokens.

    Args:
        tokenizer: the tokenizer; bytes have no file that other readers know.
        folder: the folder of the weights.
        use: how texts are framed.
    """
    if not isinstance(tokenizer, JsonTokenizer):
        tokenizer.save(folder)
        return
    (folder / TOKENIZER_FILE).write_text(framed_definition(tokenizer, use), "utf-8")
    ids = {name: getattr(tokenizer.specials, name) for name in (*SPECIAL_NAMES, "unk")}
    ids["eos"] = use.stop_ids[0] if use.stop_ids else ids["eos"]
    # A cleanup would remove spaces before punctuation, which belong to the text.
    keys = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    keys |= {f"{name}_token": tokenizer.token_of(i) for name, i in ids.items() if i >= 0}
    keys |= {FINGERPRINT_KEY: tokenizer.fingerprint}
    keys |= {"chat_template": use.chat_template} if use.chat_template else {}
    text = json.dumps(keys, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    (folder / TOKENIZER_CONFIG).write_text(text + "\n", "utf-8")


def fingerprints(tokenizer: Tokenizer, folder: Path) -> tuple[str, ...]:
    """Returns the fingerprints of the tokenizer of a folder and of the run that it was exported of.

    Both give the same ids to a text.
    """
    path = folder / TOKENIZER_CONFIG
    recorded = read_json_object(path).get(FINGERPRINT_KEY) if path.exists() else None
    return (
        (tokenizer.fingerprint, recorded) if isinstance(recorded, str) else (tokenizer.fingerprint,)
    )


def framed_definition(tokenizer: JsonTokenizer, use: TextUse) -> str:
    """Returns the tokenizer.json whose post-processor puts `use` around a text.

    A definition that does so already stays as it is.
    """
    text = tokenizer.definition.decode()
    if tokenizer.template == (use.prefix, use.suffix):
        return text
    values = json.loads(text)
    processors = _without_template(values.get("post_processor"))
    framed = [*processors, _template(tokenizer, use)] if use.prefix or use.suffix else processors
    processor = framed[0] if len(framed) == 1 else {"type": "Sequence", "processors": framed}
    values["post_processor"] = processor if framed else None
    return json.dumps(values, indent=2, ensure_ascii=False)


def _template(tokenizer: JsonTokenizer, use: TextUse) -> JsonObject:
    tokens = {i: tokenizer.token_of(i) for i in (*use.prefix, *use.suffix)}

    def pieces(name: str, type_id: int) -> list[JsonObject]:
        before, after = (
            [{"SpecialToken": {"id": tokens[i], "type_id": type_id}} for i in side]
            for side in (use.prefix, use.suffix)
        )
        return [*before, {"Sequence": {"id": name, "type_id": type_id}}, *after]

    return {
        "type": "TemplateProcessing",
        "single": pieces("A", 0),
        "pair": [*pieces("A", 0), *pieces("B", 1)],
        "special_tokens": {
            token: {"id": token, "ids": [i], "tokens": [token]} for i, token in tokens.items()
        },
    }


def _without_template(processor: JsonObject | None) -> list[JsonObject]:
    """Returns the post-processors that insert nothing, such as that of offsets in bytes."""
    if processor is None:
        return []
    if processor["type"] == "Sequence":
        return [p for part in processor["processors"] for p in _without_template(part)]
    inserts = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")
    return [] if processor["type"] in inserts else [processor]
