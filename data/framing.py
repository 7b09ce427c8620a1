"""Special ids of a tokenizer, and what frames a text: ids around it, stop ids, and a window.

A document is framed in training. A text is framed where a model is used: before a context or a
prompt, before a text without a context, and after a whole text that is embedded.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from errors import DataError
from settings.json_types import JsonObject

Ids = tuple[int, ...]

SPECIAL_NAMES = ("pad", "bos", "eos", "sep", "cls", "mask")
NUM_SENTINELS = 100
NUM_MODES = 3
SPECIAL_TOKENS = (
    *(f"<|{name}|>" for name in SPECIAL_NAMES),
    *(f"<|sentinel_{i}|>" for i in range(NUM_SENTINELS)),
    *(f"<|mode_{i}|>" for i in range(NUM_MODES)),
)


@dataclass(frozen=True)
class Specials:
    """Special ids of a tokenizer; a missing id is -1, missing sentinels or modes are empty."""

    pad: int
    bos: int
    eos: int
    sep: int
    cls: int
    mask: int
    sentinels: Ids
    modes: Ids
    unk: int = -1
    decoder_start: int = -1  # The first input of a decoder; T5 starts from pad.

    def require(self, *names: str, needed_by: str) -> None:
        """Refuses a tokenizer that lacks one of the ids `names`.

        Raises:
            DataError: if an id is missing; `needed_by` is named in the message.
        """
        for name in names:
            if getattr(self, name) in (-1, ()):
                token = f"<|{name.rstrip('s')}_0|>" if name in ("sentinels", "modes") else name
                declared = "declare it as a special token in its tokenizer.json"
                if name in SPECIAL_NAMES:
                    token = f"<|{name}|>"
                    declared = f"name its {name}_token in tokenizer_config.json, or {declared}"
                raise DataError(
                    f"{needed_by} needs the token {name!r}, which the tokenizer lacks; {declared} "
                    f"(the project's own is {token})"
                )


@dataclass(frozen=True)
class Framing:
    """The ids around documents and texts, and what ends a text; () is none."""

    document_prefix: Ids = ()  # Before a document in training, and in the evaluation of splits.
    document_suffix: Ids = ()  # After it.
    text_prefix: Ids = ()  # Before a context, a prompt, or a text to embed.
    text_suffix: Ids = ()  # After a whole text to embed; never after a context.
    empty_context: Ids = ()  # Before a text without a context: bos, else eos, else pad.
    stop_ids: Ids = ()  # Each of these ids ends a continuation.
    window: int = 0  # Positions of the model by its own files; 0: unknown.
    chat_template: str = ""  # The program in Jinja of the model's files; "" if there is none.


class Reading(NamedTuple):
    """How a model reads texts."""

    window: int  # Number of tokens of a row; 0: unknown.
    prefix: Ids  # Ids before a context, a prompt or a text to embed.
    empty_context: Ids  # Ids before a text without a context.
    suffix: Ids  # Ids after a whole text to embed.
    stop_ids: Ids  # Each of these ids ends a continuation.

    def frame(self, ids: np.ndarray) -> np.ndarray:
        """Returns a context or prompt behind the prefix, which is not repeated."""
        if tuple(ids[: len(self.prefix)].tolist()) == self.prefix:
            return ids.astype(np.int32)
        return np.concatenate([self.prefix, ids]).astype(np.int32)


def default_framing(bos: int, eos: int, pad: int) -> Framing:
    """Returns the frame of a tokenizer without files of a model: bos before, eos after a text."""
    first = next((i for i in (bos, eos, pad) if i >= 0), -1)
    prefix, suffix, empty = (tuple(i for i in (x,) if i >= 0) for x in (bos, eos, first))
    return Framing(prefix, suffix, prefix, suffix, empty, suffix)


def to_json(specials: Specials, framing: Framing) -> JsonObject:
    """Returns the content of framing.json, from which `from_json` makes the same values."""
    return {
        "format": 1,
        "specials": dataclasses.asdict(specials),
        "framing": dataclasses.asdict(framing),
    }


def from_json(values: JsonObject) -> tuple[Specials, Framing]:
    """Returns special ids and framing of the content of framing.json.

    Raises:
        DataError: if a name is missing or not known, or a value has another type.
    """
    try:
        specials, framing = values["specials"], values["framing"]
        parts = Specials(**_as_fields(specials)), Framing(**_as_fields(framing))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"framing.json is damaged ({type(error).__name__}: {error}); import the model again"
        ) from error
    for part in parts:
        for field in dataclasses.fields(part):
            value, kind = getattr(part, field.name), field.type
            if type(value) is not (kind if kind in (int, str) else tuple):
                raise DataError(
                    f"framing.json has {field.name} {value!r}, which has another type; import the "
                    "model again"
                )
    return parts


def _as_fields(values: JsonObject) -> JsonObject:
    """Returns values whose lists are tuples of ids.

    Raises:
        ValueError: if a list has other values.
    """
    for value in values.values():
        if isinstance(value, list) and not all(type(i) is int and i >= 0 for i in value):
            raise ValueError(f"{value!r} is not a list of ids")
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
