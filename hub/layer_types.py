"""Converts `layer_types` of config.json: which layers have attention with a window."""

from collections.abc import Sequence

from arch.mixers.attention import AttentionConfig
from hub.hf_config import HfConfig

SLIDING, FULL = "sliding_attention", "full_attention"
MIXERS = {SLIDING: "local_attention", FULL: "attention"}  # names of mixers


def from_hf(hf: HfConfig, has_window: Sequence[bool]) -> tuple[str, ...]:
    """Returns the mixer of each layer; `has_window` applies if `layer_types` is missing."""
    kinds = hf.get("layer_types", [SLIDING if windowed else FULL for windowed in has_window])
    if len(kinds) != len(has_window) or not {*kinds} <= {*MIXERS}:
        raise hf.unsupported_error(
            "layer_types", f"must be a list of {len(has_window)}, each one of {', '.join(MIXERS)}"
        )
    return tuple(MIXERS[kind] for kind in kinds)


def to_hf(parts: Sequence[AttentionConfig]) -> list[str]:
    """Returns `layer_types` for the attention of each layer."""
    return [SLIDING if part.window else FULL for part in parts]
