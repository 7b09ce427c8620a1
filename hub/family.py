"""Describes a published family: how its config maps to a model config, and its tensor names."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from arch import ModelConfig
from hub.config_equivalence import CANONICAL_PART
from hub.hf_config import HfConfig
from hub.tensor_transforms import TensorMap
from settings.json_types import JsonObject


def _no_duplicates(config: ModelConfig) -> tuple[tuple[str, str], ...]:
    return ()


def _no_defaults(config: ModelConfig) -> JsonObject:
    return {}


def _complete(config: ModelConfig) -> str:
    return ""


def _all_supported(config: ModelConfig) -> list[str]:
    return []


@dataclasses.dataclass(frozen=True)
class HfFamily:
    """Holds everything that reading and writing checkpoints of one `model_type` needs."""

    model_type: str  # `model_type` in config.json
    architecture: str  # class of transformers that reads an exported checkpoint
    # Converts a config.json to a model config.
    read: Callable[[HfConfig], ModelConfig]
    # Converts a model config to keys of config.json; a LookupError means that it has no such keys.
    write: Callable[[ModelConfig], JsonObject]
    # Returns the names of the tensors of a model.
    name_map: Callable[[ModelConfig], tuple[TensorMap, ...]]
    # Converts the config.json of an old `model_type` (`OLD_MODEL_TYPES`) to today's keys.
    from_old: Callable[[JsonObject], JsonObject] = dict
    # Values of missing keys in the reference, where they differ from the meaning of null.
    hf_defaults: Mapping[str, object] = dataclasses.field(default_factory=dict, hash=False)
    prefix: str = ""  # prefix of tensor names that a file may omit
    # Patterns of tensor names that are skipped when a file is read.
    ignored_tensors: tuple[str, ...] = (r".*rotary_emb\.inv_freq",)
    # Pairs (copy, original) of names: a file may contain the copy, which must equal the original.
    tied_tensors: tuple[tuple[str, str], ...] = ()
    # Pairs (pattern, replacement) that turn old tensor names into those of the name map.
    renames: tuple[tuple[str, str], ...] = ()
    # Pairs (duplicate, original) of names that version 5 of the reference stores twice and version
    # 4 once: both are written; the original is read, or the duplicate if the original is missing.
    duplicated_tensors: Callable[[ModelConfig], tuple[tuple[str, str], ...]] = _no_duplicates
    # Ids that missing keys mean to the reference; an export has null where they have no embedding.
    hf_ids: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)
    # Keys of config.json for an export, unless the run has other values for them.
    export_defaults: Callable[[ModelConfig], JsonObject] = _no_defaults
    # Class of a model without parts that `architecture` always has; "" for a complete model.
    smaller_architecture: Callable[[ModelConfig], str] = _complete
    # Settings that config.json can express and the class that reads the export cannot compute.
    unsupported: Callable[[ModelConfig], list[str]] = _all_supported
    # Position of the first token in a padded row: "column" is its column, "count" is 0, and "ids"
    # counts the tokens that are not `pad_token_id`.
    position_numbering: Literal["column", "count", "ids"] = "column"
    task: Literal["causal", "masked", "seq2seq"] = "causal"  # task of the pre-trained head
    padding_matters: bool = False  # whether padding changes outputs (pooled token, expert capacity)

    def architecture_of(self, config: ModelConfig) -> str:
        """Returns the class of transformers that reads an export of this model."""
        return self.smaller_architecture(config) or self.architecture

    def default_keys(self, config: ModelConfig) -> JsonObject:
        """Returns keys of config.json for an export, unless the run has other values."""
        unknown = {
            name: None for name, number in self.hf_ids.items() if number >= config.vocab_size
        }
        return unknown | self.export_defaults(config)

    def is_bare(self, config: ModelConfig) -> bool:
        """Returns whether a model is an encoder without the head of its family."""
        return self.smaller_architecture(config).endswith("Model")

    def saved_name(self, name: str, config: ModelConfig) -> str:
        """Returns the name of a tensor in an export, which has no prefix without a head."""
        return name.removeprefix(self.prefix) if self.is_bare(config) else name


def find_part(config: ModelConfig, kind: str, layer: int = -1) -> Any:
    """Returns the config of the first mixer or channel of a kind, or of the one in `layer`.

    Raises:
        LookupError: if there is none.
    """
    for i, spec in enumerate(config.layer_layout().layer_specs()):
        for name, variant in spec.parts():
            part = config.part_config(name, variant)
            if CANONICAL_PART.get(name, name) == kind and layer in (-1, i) and part is not None:
                return part
    raise LookupError(f"no {kind}")


def part_or_default(config: ModelConfig, kind: str) -> Any:
    """Returns the same as `find_part`, or the config that such a layer would have."""
    try:
        return find_part(config, kind)
    except LookupError:
        return config.part_config(kind, "")


def all_parts(config: ModelConfig, kind: str) -> list[Any]:
    """Returns the config of `kind` in every layer; LookupError if a layer has another part."""
    return [find_part(config, kind, i) for i in range(config.depth)]


def shortest_period(layers: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the shortest pattern whose repetition gives `layers`."""
    n = len(layers)
    return next(
        layers[:p] for p in range(1, n + 1) if all(layers[i] == layers[i % p] for i in range(n))
    )
