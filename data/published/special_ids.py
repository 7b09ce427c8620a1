"""Which tokens of a tokenizer are special, and what frames a text, by the files of its model.

The first of these that speaks of a token decides; null in a file means that there is none:
    1. tokenizer_config.json      `bos_token` and the like
    2. special_tokens_map.json    the same names
    3. config.json, then generation_config.json      `bos_token_id` and the like
    4. the defaults of the tokenizer's class, for tokens that tokenizer.json has
A tokenizer.json alone has what its post-processor inserts, the project's own special tokens, and
the usual names among the tokens that it declares to be special. A token that is only in the
vocabulary is text, whatever its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.framing import SPECIAL_NAMES, Framing, Ids, Specials, default_framing
from data.published.model_files import ModelFiles
from errors import CheckpointError
from settings.json_types import JsonObject

ROLES = (*SPECIAL_NAMES, "unk")
# Usual names of tokens that a tokenizer.json declares to be special, best first.
USUAL_NAMES = {
    "pad": ("<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>"),
    "bos": ("<|bos|>", "<bos>", "<s>", "[BOS]", "<|begin_of_text|>", "[CLS]", "<|endoftext|>"),
    "eos": ("<|eos|>", "<eos>", "</s>", "[EOS]", "<|end_of_text|>", "[SEP]", "<|endoftext|>"),
    "sep": ("<|sep|>", "[SEP]", "<sep>", "</s>"),
    "cls": ("<|cls|>", "[CLS]", "<cls>", "<s>"),
    "mask": ("<|mask|>", "[MASK]", "<mask>"),
    "unk": ("<unk>", "[UNK]", "<|unk|>"),
}
SENTINEL_PATTERNS = ("<|sentinel_{}|>", "<extra_id_{}>")
_ENDOFTEXT = dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>")
NO_PREFIX = ("model", "added_tokens", "decoder", "post_processor")  # Parts that add no space.
_SENTENCEPIECE = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
_GEMMA = {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "unk": "<unk>"}
_BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_ROBERTA = {"cls": "<s>", "sep": "</s>", "pad": "<pad>", "mask": "<mask>", **_SENTENCEPIECE}
# Special tokens of the tokenizer class of a `model_type`, which files need not repeat.
CLASS_DEFAULTS: dict[str, Mapping[str, str]] = {
    **dict.fromkeys(("gpt2", "gptj", "codegen"), _ENDOFTEXT),
    **dict.fromkeys(("gpt_neox", "mamba", "mamba2", "olmoe", "olmo2", "olmo3"), _ENDOFTEXT),
    "olmo_hybrid": _ENDOFTEXT,
    **dict.fromkeys(("llama", "mistral", "mixtral"), _SENTENCEPIECE),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    "bloom": {"pad": "<pad>", **_SENTENCEPIECE},
    "clip": {"bos": "<|startoftext|>"} | dict.fromkeys(("eos", "pad", "unk"), "<|endoftext|>"),
    "bert": _BERT,
    "modernbert": _BERT,
    "roberta": _ROBERTA,
    "opt": {"bos": "</s>", "eos": "</s>", "pad": "<pad>", "unk": "</s>"},
    **dict.fromkeys(("t5", "switch_transformers"), {"eos": "</s>", "pad": "<pad>", "unk": "<unk>"}),
    **dict.fromkeys(
        ("qwen2_moe", "qwen3_moe", "qwen3", "qwen3_next"),
        dict.fromkeys(("eos", "pad", "unk"), "<|endoftext|>"),
    ),
}
# Families whose tokenizers have no class of their own, or several: their files name the tokens. A
# vision transformer has no tokenizer.
WITHOUT_DEFAULTS: tuple[str, ...] = (
    "siglip_vision_model",
    "vit",
    "falcon",
    "falcon_h1",
    "bamba",
    "jamba",
    "gpt_oss",
    "phi3",
)
WITHOUT_DEFAULTS += ("deepseek_v2", "deepseek_v3", "kimi_linear", "llava")
# Classes that put bos before a text if neither the post-processor nor a file speaks of it.
BOS_BY_DEFAULT = ("llama", "mistral", "mixtral", "gemma2", "gemma3_text")


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer.json says of its tokens."""

    ids: Mapping[str, int]  # The id of every token.
    declared: frozenset[str]  # The tokens that are declared to be special.
    unknown: str  # The model's token for unknown text, "" if there is none.
    template: tuple[Ids, Ids] | None  # The ids before and after a text; None: it says nothing.


@dataclass(frozen=True)
class FoundIds:
    """The special ids and the framing of a tokenizer, and what a reader should know of them."""

    specials: Specials
    framing: Framing
    notes: tuple[str, ...]


def find_special_ids(vocabulary: Vocabulary, files: ModelFiles) -> FoundIds:
    """Returns special ids and framing by the rules of this file."""
    notes = list[str]()
    single = {role: _find_role(role, vocabulary, files, notes) for role in ROLES}
    if not files.is_model:
        single = _of_definition(vocabulary)
    for role, substitute in (("bos", "cls"), ("eos", "sep")):  # BERT begins and ends with these.
        single[role] = single[role] if single[role] >= 0 else single[substitute]
    if single["unk"] < 0 and vocabulary.unknown in vocabulary.ids:
        single["unk"] = vocabulary.ids[vocabulary.unknown]
    sentinels = max((_numbered(vocabulary, p) for p in SENTINEL_PATTERNS), key=len)
    start, is_given = _decoder_start(files, single, bool(sentinels))
    specials = Specials(
        **single,
        sentinels=sentinels,
        modes=_numbered(vocabulary, "<|mode_{}|>"),
        decoder_start=start,
    )
    framing = _framing(vocabulary, files, specials, is_given, notes)
    if note := files.generation_note():
        notes.append(note)
    return FoundIds(specials, framing, tuple(notes))


def parse_template(processor: object) -> tuple[Ids, Ids] | None:
    """Returns the ids that a post-processor puts before and after a text; None: it has no template.

    Raises:
        CheckpointError: if the post-processor is damaged.
    """
    try:
        return _parse_template(processor)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"the post_processor of tokenizer.json is damaged ({type(error).__name__}: {error}); "
            "download it again"
        ) from error


def _parse_template(processor: object) -> tuple[Ids, Ids] | None:
    if not isinstance(processor, dict):
        return None
    kind = processor["type"]
    if kind == "Sequence":
        parts = [_parse_template(part) for part in processor["processors"]]
        templates = [part for part in parts if part is not None]
        before = tuple(i for part in reversed(templates) for i in part[0])
        return (before, tuple(i for part in templates for i in part[1])) if templates else None
    if kind in ("BertProcessing", "RobertaProcessing"):
        return (int(processor["cls"][1]),), (int(processor["sep"][1]),)
    if kind != "TemplateProcessing":
        return None
    sides: tuple[list[int], list[int]] = ([], [])
    side = 0
    for piece in processor["single"]:
        if "Sequence" in piece:
            side = 1
        else:
            sides[side].extend(processor["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
    return tuple(map(int, sides[0])), tuple(map(int, sides[1]))


def _find_role(role: str, vocabulary: Vocabulary, files: ModelFiles, notes: list[str]) -> int:
    """Returns the id of a special token by the files of the model, -1 if there is none."""
    name = f"{role}_token"
    for file, content in (
        ("tokenizer_config.json", files.tokenizer),
        ("special_tokens_map.json", files.tokens_map),
    ):
        if name not in content:
            continue
        token = content[name]
        token = token.get("content") if isinstance(token, dict) else token
        if token is None:
            return -1
        if not isinstance(token, str) or token not in vocabulary.ids:
            notes.append(f"{name} {token!r} of {file} is no token of tokenizer.json; there is none")
            return -1
        return _with_note(name, token, vocabulary, files, notes)
    for content in (files.config, files.generation):
        if f"{name}_id" in content:
            ids = as_ids(content[f"{name}_id"])
            return ids[0] if ids else -1
    kind = str(files.config.get("model_type", ""))
    return vocabulary.ids.get(CLASS_DEFAULTS.get(kind, {}).get(role, ""), -1)


def _with_note(
    name: str, token: str, vocabulary: Vocabulary, files: ModelFiles, notes: list[str]
) -> int:
    """Returns the id of a token, and notes where config.json says another."""
    token_id = vocabulary.ids[token]
    others = as_ids(files.config.get(f"{name}_id"))
    if others and token_id not in others:
        notes.append(
            f"{name} is {token!r} ({token_id}) in the tokenizer's files and {others[0]} in "
            "config.json; the tokenizer's is used"
        )
    return token_id


def _of_definition(vocabulary: Vocabulary) -> dict[str, int]:
    """Returns the special ids of a tokenizer.json alone."""
    before, after = vocabulary.template or ((), ())
    ids = vocabulary.ids
    single = {
        role: next((ids[n] for n in names if n in vocabulary.declared and n in ids), -1)
        for role, names in USUAL_NAMES.items()
    }
    single["bos"] = before[0] if before else single["bos"]
    single["eos"] = after[-1] if after else single["eos"]
    return single


def _decoder_start(
    files: ModelFiles, single: Mapping[str, int], has_sentinels: bool
) -> tuple[int, bool]:
    """Returns the first input of a decoder, and whether the tokenizer is an encoder-decoder's."""
    for content in (files.config, files.generation):
        if start_ids := as_ids(content.get("decoder_start_token_id")):
            return start_ids[0], True
    is_seq2seq = files.config.get("is_encoder_decoder") is True
    is_seq2seq |= files.config.get("model_type") in ("t5", "switch_transformers")
    if single["bos"] < 0 and (is_seq2seq or has_sentinels):
        return single["pad"], True  # As T5 does.
    return single["bos"], is_seq2seq


def _framing(
    vocabulary: Vocabulary,
    files: ModelFiles,
    specials: Specials,
    is_seq2seq: bool,
    notes: list[str],
) -> Framing:
    base = default_framing(specials.bos, specials.eos, specials.pad)
    prefix = base.document_prefix if specials.bos >= 0 or is_seq2seq else base.document_suffix
    before, after = _text_frame(vocabulary, files, specials, notes)
    is_alone = not files.is_model and vocabulary.template is None
    return Framing(
        document_prefix=prefix,
        document_suffix=base.document_suffix,
        text_prefix=prefix if is_alone else before,
        text_suffix=base.document_suffix if is_alone else after,
        empty_context=base.empty_context,
        stop_ids=_stop_ids(files, specials),
        window=files.window(),
        chat_template=files.chat_template(),
    )


def _text_frame(
    vocabulary: Vocabulary, files: ModelFiles, specials: Specials, notes: list[str]
) -> tuple[Ids, Ids]:
    """Returns what the model's tokenizer puts around a text, as published."""
    bos, eos = specials.bos, specials.eos
    adds_bos, adds_eos = (files.tokenizer.get(f"add_{name}_token") for name in ("bos", "eos"))
    if vocabulary.template is not None:
        before, after = vocabulary.template
        if adds_bos is not None and bos >= 0 and bool(adds_bos) != (bos in before):
            notes.append(
                f"add_bos_token is {adds_bos} in tokenizer_config.json, and the post-processor of "
                f"tokenizer.json puts {list(before)} before a text; the post-processor is followed"
            )
        return before, after
    if adds_bos is None:
        adds_bos = files.config.get("model_type") in BOS_BY_DEFAULT
    before = (bos,) if adds_bos and bos >= 0 else ()
    return before, (eos,) if adds_eos and eos >= 0 else ()


def _stop_ids(files: ModelFiles, specials: Specials) -> Ids:
    """Returns every id that ends a text: those of generation, and the tokenizer's own."""
    declared = files.generation if "eos_token_id" in files.generation else files.config
    stop_ids = {*as_ids(declared.get("eos_token_id")), specials.eos} - {-1}
    return tuple(sorted(stop_ids))


def _numbered(vocabulary: Vocabulary, pattern: str) -> Ids:
    """Returns the ids of the declared tokens of a pattern with 0, 1, 2 ... as far as they go."""
    numbered = list[int]()
    while (token := pattern.format(len(numbered))) in vocabulary.declared:
        numbered.append(vocabulary.ids[token])
    return tuple(numbered)


def as_ids(value: object) -> Ids:
    """Returns the ids of a key of config.json, which is null, an id, or a list of ids.

    Raises:
        CheckpointError: if it is something else.
    """
    single = [] if value is None else [value]
    values: list[Any] = value if isinstance(value, list) else single
    if not all(type(i) is int and -1 <= i < 1 << 31 for i in values):
        raise CheckpointError(
            f"the id {value!r} of a special token in config.json or generation_config.json is no "
            "integer; correct it"
        )
    return tuple(i for i in values if i >= 0)


def without_excess(definition: JsonObject, vocab_size: int) -> tuple[JsonObject, tuple[str, ...]]:
    """Returns a tokenizer.json without added tokens whose id is beyond a model's embedding.

    Returns:
        The definition and the tokens that were dropped.
    """
    added = definition.get("added_tokens") or []
    dropped = [token for token in added if token["id"] >= vocab_size]
    remaining = [token for token in added if token["id"] < vocab_size]
    names = tuple(str(token["content"]) for token in dropped)
    return {**definition, "added_tokens": remaining}, names


def without_prefix(part: object) -> object:
    """Returns a part of a tokenizer.json, or all of it, such that no space is put before a text.

    The space is made by a Metaspace, by a normalizer Prepend (as in Llama 2), or by ByteLevel.
    """
    if isinstance(part, list):
        return [without_prefix(x) for x in part if not _is_prepend(x)]
    if not isinstance(part, dict):
        return part
    changed = {
        name: value if name in NO_PREFIX else None if _is_prepend(value) else without_prefix(value)
        for name, value in part.items()
    }
    if changed.get("type") == "Metaspace":
        changed["prepend_scheme"] = "never"
    if "add_prefix_space" in changed:
        changed["add_prefix_space"] = False
    return changed


def _is_prepend(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "Prepend"
