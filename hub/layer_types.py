"""Converts `layer_types` of config.json: which layers have a window, or no attention at all."""

from collections.abc import Mapping, Sequence

from arch import ModelConfig
from arch.mixers.attention import AttentionConfig
from hub.hf_config import HfConfig

SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"
MIXERS = {SLIDING: "local_attention", FULL: "attention"}  # names of mixers


def from_hf(hf: HfConfig, has_window: Sequence[bool]) -> tuple[str, ...]:
    """Returns the mixer of each layer; `has_window` applies if `layer_types` is missing."""
    return read(hf, [SLIDING if windowed else FULL for windowed in has_window], MIXERS)


def read(hf: HfConfig, default: Sequence[str], mixers: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the mixer of each layer.

    Args:
        hf: the config.
        default: the types of the layers if `layer_types` is missing, one a layer.
        mixers: the name of the mixer of each type.
    """
    types = hf.get("layer_types", list(default))
    if len(types) != len(default) or not {*types} <= {*mixers}:
        raise hf.unsupported_error(
            "layer_types", f"must be a list of {len(default)}, each one of {', '.join(mixers)}"
        )
    return tuple(mixers[name] for name in types)


def to_hf(parts: Sequence[AttentionConfig]) -> list[str]:
    """Returns `layer_types` for the attention of each layer."""
    return [SLIDING if part.window else FULL for part in parts]


def write(config: ModelConfig, mixers: Mapping[str, str]) -> list[str]:
    """Returns `layer_types` for the mixer of each layer, the inverse of `read`.

    Raises:
        LookupError: if a layer has a mixer without a type.
    """
    names = {mixer: name for name, mixer in mixers.items()}
    return [names[spec.mixer] for spec in config.layer_layout().layer_specs()]
