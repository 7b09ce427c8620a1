"""The small files of a published model that say how its tokenizer is used.

These are config.json and generation_config.json (ids), tokenizer_config.json and
special_tokens_map.json (tokens), and chat_template.jinja. A missing file is empty.
"""

import stat
from dataclasses import dataclass, field
from pathlib import Path

from errors import CheckpointError
from settings.json_files import read_json_object
from settings.json_types import JsonObject

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
TOKENIZER_CONFIG, TOKENS_MAP = "tokenizer_config.json", "special_tokens_map.json"
CHAT_TEMPLATE = "chat_template.jinja"
MAX_TEMPLATE_BYTES = 1 << 20
MAX_WINDOW = 1 << 24  # Larger numbers stand for "no limit" (transformers writes 1e30).
# Keys of config.json with the number of positions that a model was trained to read.
WINDOW_KEYS: tuple[str, ...] = ("max_position_embeddings", "n_positions", "n_ctx")
WINDOW_KEYS += ("max_sequence_length", "seq_length", "model_max_length")
# Keys of generation_config.json that change which tokens are generated, and the values that do not.
PENALTIES: JsonObject = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
    "penalty_alpha": 0.0,
    "guidance_scale": 1.0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "forced_decoder_ids": None,
    "stop_strings": None,
}
# Keys that count where tokens are drawn; a run of the command has them as flags.
SAMPLING_KEYS: tuple[str, ...] = ("temperature", "top_k", "top_p", "min_p", "typical_p")
SAMPLING_KEYS += ("epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True)
class ModelFiles:
    """The content of a model's small files; {} is a missing file."""

    config: JsonObject = field(default_factory=dict)
    generation: JsonObject = field(default_factory=dict)
    tokenizer: JsonObject = field(default_factory=dict)
    tokens_map: JsonObject = field(default_factory=dict)
    template_file: str = ""

    @property
    def is_model(self) -> bool:
        """Whether these are the files of a model, beyond a tokenizer.json alone."""
        return bool(self.config or self.generation or self.tokenizer or self.tokens_map)

    def window(self) -> int:
        """Returns the number of positions of the model, 0 if the files state none."""
        declared = [self.config.get(key) for key in WINDOW_KEYS]
        declared.append(self.tokenizer.get("model_max_length"))
        return next((n for n in declared if type(n) is int and 0 < n <= MAX_WINDOW), 0)

    def generation_note(self) -> str:
        """Returns which keys of generation_config.json are not applied here, "" if there are none.

        config.json may have them instead, as in old models.
        """
        declared = {**self.config, **self.generation}
        names = [n for n in PENALTIES if declared.get(n, PENALTIES[n]) not in (PENALTIES[n], None)]
        if declared.get("do_sample") is True:
            names += [n for n in SAMPLING_KEYS if declared.get(n) is not None]
        if not names:
            return ""
        values = ", ".join(f"{name}={declared[name]!r}"[:80] for name in names)
        return (
            f"the files ask to generate with {values}, which is not applied: temperature, top_k, "
            "top_p and min_p are flags of generate.py, the others do not exist here"
        )

    def chat_template(self) -> str:
        """Returns the program of the model's chats, "" if there is none.

        A list of named templates has the one for chats under the name "default".
        """
        if self.template_file:
            return self.template_file
        template = self.tokenizer.get("chat_template")
        if isinstance(template, list):
            named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
            template = named.get("default")
        return template if isinstance(template, str) else ""


def read_model_files(folder: Path) -> ModelFiles:
    """Reads the small files beside a tokenizer.json.

    Raises:
        CheckpointError: if a file is damaged.
    """
    names = (CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG, TOKENS_MAP)
    present = [folder / name for name in names]
    config, generation, tokenizer, tokens_map = (
        read_json_object(path) if path.exists() else {} for path in present
    )
    template = _read_template(folder / CHAT_TEMPLATE)
    return ModelFiles(config, generation, tokenizer, tokens_map, template)


def _read_template(path: Path) -> str:
    """Returns the text of chat_template.jinja, "" if there is none.

    Raises:
        CheckpointError: if it cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_TEMPLATE_BYTES:
            raise CheckpointError(
                f"{path} is no file of at most {MAX_TEMPLATE_BYTES} bytes; remove it"
            )
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); download it again") from error
