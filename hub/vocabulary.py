"""Writes the tokenizer next to exported weights, as transformers' AutoTokenizer reads it.

If tokenizer_config.json does not name a class, AutoTokenizer takes the class of the `model_type`,
which adds its own special tokens to the vocabulary or refuses the file.
"""

import json
from pathlib import Path

import tokenizers as hf

from data.tokenizers import SPECIAL_NAMES, TOKENIZER_FILE, JsonTokenizer, Tokenizer

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the tokenizer's file, and for tokenizer.json also the names of the special tokens."""
    tokenizer.save(folder)
    if not isinstance(tokenizer, JsonTokenizer):
        return
    hf_tokenizer = hf.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    ids = {name: getattr(tokenizer.specials, name) for name in SPECIAL_NAMES}
    names = {f"{name}_token": hf_tokenizer.id_to_token(i) for name, i in ids.items() if i >= 0}
    # A cleanup would remove spaces before punctuation, which belong to the text.
    keys = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / TOKENIZER_CONFIG_FILE).write_text(
        json.dumps(keys | names, indent=2, sort_keys=True) + "\n"
    )
