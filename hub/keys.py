"""config.json, read so that nothing in it is passed over: every key is used, inert, or refused."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from arch.mlp import Activation
from errors import CheckpointError, ConfigError

FILE = "config.json"
# What a config says of training, generation, bookkeeping, or the way to compute the same numbers.
_INERT = """_name_or_path _attn_implementation _commit_hash architectures auto_map model_type
    transformers_version dtype torch_dtype torchscript use_bfloat16 use_cache return_dict
    return_dict_in_generate output_attentions output_hidden_states output_scores
    output_router_logits output_past initializer_range initializer_factor init_std
    initializer_cutoff_factor gradient_checkpointing id2label label2id num_labels problem_type
    finetuning_task task_specific_params tokenizer_class prefix bos_token_id eos_token_id
    pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id decoder_start_token_id
    forced_bos_token_id forced_eos_token_id max_length min_length do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    remove_invalid_values attention_dropout attn_pdrop embd_pdrop resid_pdrop hidden_dropout
    hidden_dropout_prob attention_probs_dropout_prob dropout dropout_rate activation_dropout
    layerdrop classifier_dropout classifier_dropout_prob summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj summary_hidden_dropout tf_legacy_loss
    pretraining_tp slow_but_exact chunk_size_feed_forward tokenizer_model_max_length
    _num_labels n_ctx vocab_file language model_max_length"""
INERT = frozenset(_INERT.split())
# Of the base class; harmless only as they are here.
OFF: dict[str, Any] = {
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "pruned_heads": {},
    "quantization_config": None,
    "tie_encoder_decoder": False,
    "sparse_attention": None,
}
ACTIVATIONS: dict[str, Activation] = {  # theirs, the first of each kind is written
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",  # with sqrt(2 / pi) cut off after ten digits: 4e-12
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "tanh": "tanh",
}


class Keys:
    """`keys["name"]` must be there; `get` says what null means; `done` refuses what nobody asked
    for. A key that is missing is as in `defaults`, if it is there, and else as if it were null."""

    def __init__(
        self,
        values: Mapping[str, Any],
        path: str,
        tensors: Iterable[str],
        defaults: Mapping[str, Any] = MappingProxyType({}),
    ):
        self._values, self._path, self._seen = {**defaults, **values}, path, {"model_type"}
        self._given, self._tensors = frozenset(values), frozenset(tensors)

    def __getitem__(self, name: str) -> Any:
        self._seen.add(name)
        if self._values.get(name) is None:
            raise ConfigError(f"{self._path} lacks {name}, which {self.kind} needs; add it")
        return self._values[name]

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    @property
    def kind(self) -> str:
        return str(self._values.get("model_type"))

    def get(self, name: str, default: Any) -> Any:
        """The value, or `default` where it is null or missing without a default of the family."""
        self._seen.add(name)
        value = self._values.get(name)
        return default if value is None else value

    def holds(self, *names: str) -> bool:
        """Whether the files have a tensor that ends in one of `names`."""
        return any(f".{tensor}".endswith(f".{name}") for tensor in self._tensors for name in names)

    def first(self, *names: str) -> Any:
        """The value under one of several names that versions gave it."""
        self._seen.update(names)
        return self[next((name for name in names if name in self), names[0])]

    def only(self, name: str, *known: Any) -> None:
        """Refuse another value than `known`; missing or null is as the first of them."""
        if self.get(name, known[0]) not in known:
            raise self.refused(name, f"known: {', '.join(map(repr, known))}")

    def unused(self, *names: str) -> None:
        """Keys without meaning for what the others say."""
        self._seen.update(names)

    def activation(self, name: str, default: str = "") -> Activation:
        value = self.get(name, default) if default else self[name]
        if value not in ACTIVATIONS:
            raise self.refused(name, f"known: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def refused(self, name: str, way: str) -> ConfigError:
        value = self._values.get(name)
        return ConfigError(f"{self._path}: {name} {value!r} is not implemented; {way}")

    def done(self) -> None:
        """Every key was asked for, is inert, or is refused by name."""
        for name, value in OFF.items():
            if name not in self._seen:
                self.only(name, value)
        rest = sorted(self._given - self._seen - INERT)
        if rest:
            told = ", ".join(f"{name}={self._values[name]!r}" for name in rest[:10])
            raise ConfigError(
                f"{self._path}: {self.kind} has options that are not known here: {told}; remove "
                "them if they change nothing"
            )


def activation_name(ours: str) -> str:
    """Theirs for one of our activations; KeyError if they have none."""
    names = [theirs for theirs, name in ACTIVATIONS.items() if name == ours]
    if not names:
        raise KeyError(ours)
    return names[0]


def read_config(folder: Path) -> dict[str, Any]:
    """config.json; infinities are bare words in old files and {"__float__": "Infinity"} in new."""
    path = folder / FILE
    try:
        found = json.loads(path.read_text("utf-8"), object_hook=_number)
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror}; give the folder of a Hugging Face checkpoint"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON ({error}); download it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is no JSON object; download it again")
    return found


def _number(found: dict[str, Any]) -> Any:
    return float(found["__float__"]) if set(found) == {"__float__"} else found
