"""Layers with a window among layers without: `layer_types` of config.json."""

from collections.abc import Sequence

from arch.attention import AttentionConfig
from hub.keys import Keys

WINDOW, FULL = "sliding_attention", "full_attention"
MIXERS = {WINDOW: "local_attention", FULL: "attention"}  # ours


def mixers(k: Keys, windows: Sequence[bool]) -> tuple[str, ...]:
    """The mixer of each layer; without `layer_types` those of `windows` have one."""
    kinds = k.get("layer_types", [WINDOW if one else FULL for one in windows])
    if len(kinds) != len(windows) or not {*kinds} <= {*MIXERS}:
        raise k.refused("layer_types", f"known: {len(windows)} of {', '.join(MIXERS)}")
    return tuple(MIXERS[kind] for kind in kinds)


def written(parts: Sequence[AttentionConfig]) -> list[str]:
    return [WINDOW if part.window else FULL for part in parts]
