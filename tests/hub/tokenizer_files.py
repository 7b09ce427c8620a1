"""Small tokenizer.json files of the kinds that published models have."""

import json
from pathlib import Path

import tokenizers as hf

TEXT_WORDS = tuple(f"w{i}" for i in range(20))


def write_words(
    folder: Path,
    specials: tuple[str, ...],
    plain: tuple[str, ...] = (),
    single: str = "",
    added: tuple[str, ...] = (),
    **files: object,
) -> dict[str, int]:
    """Writes a tokenizer of words and the JSON files of its model, and returns the ids.

    Args:
        folder: the folder of the model.
        specials: tokens with the ids 0, 1, ... that are declared to be special.
        plain: further tokens, which are text.
        single: the template of a text, such as "<s> $A"; "" for none.
        added: special tokens beyond the vocabulary.
        **files: content of NAME.json by NAME.
    """
    tokens = (*specials, *plain, *TEXT_WORDS)
    ids = {token: i for i, token in enumerate(tokens)}
    made = hf.Tokenizer(hf.models.WordLevel(ids, unk_token=specials[0] if specials else "w0"))
    made.pre_tokenizer = hf.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([*specials, *added])
    if single:
        used = [t for t in specials if t in single.split()]
        made.post_processor = hf.processors.TemplateProcessing(
            single=single, special_tokens=[(t, ids[t]) for t in used]
        )
    made.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return ids
