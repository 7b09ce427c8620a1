"""The tokenizer beside exported weights, as transformers' AutoTokenizer reads it.

Without a class of its own in tokenizer_config.json a folder gets that of its `model_type`, which
adds specials of its own to the vocabulary or refuses the file.
"""

import json
from pathlib import Path

import tokenizers as hf

from data.tokenizers import FILE, SINGLE, JsonTokenizer, Tokenizer

CONFIG = "tokenizer_config.json"


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and, if its format is theirs, what its specials are called."""
    tokenizer.save(folder)
    if not isinstance(tokenizer, JsonTokenizer):
        return
    known = hf.Tokenizer.from_file(str(folder / FILE))
    ids = {name: getattr(tokenizer.specials, name) for name in SINGLE}
    names = {f"{name}_token": known.id_to_token(i) for name, i in ids.items() if i >= 0}
    # Spaces before punctuation are text.
    keys = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / CONFIG).write_text(json.dumps(keys | names, indent=2, sort_keys=True) + "\n")
