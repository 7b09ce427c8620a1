"""Converts the rotary positions of config.json, as versions 4 and 5 of transformers write them.

Version 4 has `rope_theta` and `rope_scaling`, and version 5 has one dict, `rope_parameters`. Files
use `type` or `rope_type`, and `su` for longrope. `arch/layers/rope.py` has the formulas.
"""

import math
from collections.abc import Sequence

from arch.layers.rope import RopeConfig, attention_factor
from arch.mixers.attention import AttentionConfig
from errors import ConfigError
from hub import layer_types
from hub.hf_config import HfConfig
from settings.json_types import JsonObject

ROPE_TYPE_ALIASES = {"default": "none", "su": "longrope"}
ROPE_TYPE_OPTIONS = {  # options of each rope_type
    "none": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "truncate")
    + ("mscale", "mscale_all_dim"),
    "longrope": ("factor", "attention_factor", "short_factor", "long_factor"),
}
COMMON_OPTIONS: tuple[str, ...] = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
COMMON_OPTIONS += ("original_max_position_embeddings",)


def from_hf(
    hf: HfConfig,
    head_dim: int,
    *,
    rotary_fraction: float = 0.0,
    theta: float = 10000.0,
    style: str = "half",
) -> RopeConfig:
    """Reads the rotary positions of a config.

    Args:
        hf: the config.
        head_dim: the width of a head.
        rotary_fraction: the default of the fraction of a head that is rotated, if the family has
            such an option; 0 if the family always rotates the full head.
        theta: the default of the base of the frequencies.
        style: which features of a head form pairs.

    Raises:
        ConfigError: if the config rotates a part of a head and the family has no such option.
    """
    rope_parameters = {"rope_theta": hf.get("rope_theta", theta)}
    rope_parameters |= hf.get("rope_scaling", {})
    rope_parameters |= hf.get("rope_parameters", {})
    fraction = rope_parameters.get("partial_rotary_factor") or hf.get(
        "partial_rotary_factor", rotary_fraction or 1.0
    )
    if not rotary_fraction and fraction != 1:
        raise ConfigError(
            f"config.json: partial_rotary_factor {fraction} is not implemented for "
            f"{hf.model_type}, which rotates full heads; remove it"
        )
    return from_rope_parameters(hf, rope_parameters, int(head_dim * fraction), head_dim, style)


def has_positions(hf: HfConfig) -> bool:
    """Returns whether `rope_theta` has a number; null means attention without positions."""
    parameters: JsonObject = hf.get("rope_parameters", {})
    theta = parameters.get("rope_theta", hf.get("rope_theta", 0.0))
    return theta is not None and theta > 0


def from_rope_parameters(
    hf: HfConfig,
    rope_parameters: JsonObject,
    rotary_dim: int,
    head_dim: int,
    style: str = "half",
) -> RopeConfig:
    """Reads the dict `rope_parameters` of version 5, in which null means a missing key.

    Raises:
        ConfigError: if a rope_type or an option is not implemented.
    """
    rope_parameters = {name: value for name, value in rope_parameters.items() if value is not None}
    kind = str(rope_parameters.get("rope_type", rope_parameters.get("type", "default")))
    kind = ROPE_TYPE_ALIASES.get(kind, kind)
    if kind not in ROPE_TYPE_OPTIONS:
        raise ConfigError(
            f"config.json: rope_type {kind!r} is not known; known: {', '.join(ROPE_TYPE_OPTIONS)}"
        )
    if unknown := sorted(set(rope_parameters) - {*COMMON_OPTIONS, *ROPE_TYPE_OPTIONS[kind]}):
        names = ", ".join(f"{name}={rope_parameters[name]!r}" for name in unknown)
        raise ConfigError(f"config.json: rope_type {kind!r} has no option {names}; remove it")
    max_length = int(hf.get("max_position_embeddings", 2048))
    original_length = rope_parameters.get("original_max_position_embeddings") or hf.get(
        "original_max_position_embeddings", max_length
    )
    original_length = max_length if kind == "dynamic" else int(original_length)
    options: JsonObject = {"theta": float(rope_parameters["rope_theta"]), "style": style}
    options["rotary_dim"] = 0 if rotary_dim == head_dim else rotary_dim
    if kind == "none":
        return RopeConfig(**options)
    factor = float(rope_parameters.get("factor") or max_length / original_length)
    options |= {"scaling": kind, "factor": factor}
    if kind == "linear":
        return RopeConfig(**options)
    numbers = ("low_freq_factor", "high_freq_factor", "attention_factor", "beta_fast", "beta_slow")
    options |= {name: float(rope_parameters[name]) for name in numbers if name in rope_parameters}
    if kind == "longrope":
        options |= {"short_factor": tuple(map(float, rope_parameters["short_factor"]))}
        options |= {"long_factor": tuple(map(float, rope_parameters["long_factor"]))}
    options |= {"truncate": rope_parameters["truncate"]} if "truncate" in rope_parameters else {}
    if (
        rope_parameters.get("mscale")
        and rope_parameters.get("mscale_all_dim")
        and "attention_factor" not in rope_parameters
    ):
        options["attention_factor"] = _yarn_mscale(
            factor, rope_parameters["mscale"]
        ) / _yarn_mscale(factor, rope_parameters["mscale_all_dim"])
    return RopeConfig(**options, original_length=original_length)


def to_hf(cfg: RopeConfig, head_dim: int, *, rotary_fraction: float = 0.0) -> JsonObject:
    """Returns the keys of version 4 that `from_hf` reads, which all versions accept.

    `rotary_fraction` has the same meaning as in `from_hf`.

    Raises:
        LookupError: if a part of a head is rotated and the family has no such option.
    """
    keys: JsonObject = {"rope_theta": cfg.theta, "rope_scaling": None}
    fraction = (cfg.rotary_dim or head_dim) / head_dim
    if not rotary_fraction and fraction != 1:
        raise LookupError("partial_rotary_factor")
    if fraction != (rotary_fraction or 1.0):
        keys["partial_rotary_factor"] = fraction
    if cfg.scaling == "none":
        return keys
    scaling: JsonObject = {"rope_type": cfg.scaling, "factor": cfg.factor}
    if cfg.scaling == "llama3":
        scaling |= {
            "low_freq_factor": cfg.low_freq_factor,
            "high_freq_factor": cfg.high_freq_factor,
        }
    if cfg.scaling == "yarn":
        scaling |= {"beta_fast": cfg.beta_fast, "beta_slow": cfg.beta_slow}
        scaling |= {} if cfg.truncate else {"truncate": False}
    if cfg.scaling == "longrope":
        scaling |= {"short_factor": list(cfg.short_factor), "long_factor": list(cfg.long_factor)}
    if cfg.scaling in ("yarn", "longrope") and cfg.attention_factor:
        scaling |= {"attention_factor": cfg.attention_factor}
    if cfg.scaling == "dynamic":
        keys["max_position_embeddings"] = cfg.original_length
    elif cfg.scaling != "linear":
        scaling["original_max_position_embeddings"] = cfg.original_length
    return keys | {"rope_scaling": scaling}


def no_positions_to_hf() -> JsonObject:
    """Returns the keys of attention without positions, for families that `has_positions` reads."""
    return {"rope_theta": None, "rope_scaling": None}


def yarn_score_growth(hf: HfConfig) -> float:
    """Returns the factor m of queries and keys that `mscale_all_dim` of YaRN gives all features.

    Scores grow by its square (DeepSeek-V2's and DeepSeek-V3's code).
    """
    parameters: JsonObject = {**hf.get("rope_scaling", {}), **hf.get("rope_parameters", {})}
    if parameters.get("rope_type", parameters.get("type")) != "yarn":
        return 1.0
    return _yarn_mscale(float(parameters["factor"]), parameters.get("mscale_all_dim") or 0.0)


def yarn_to_hf(cfg: RopeConfig, head_dim: int, score_growth: float) -> JsonObject:
    """Returns the keys of `to_hf`, in which `mscale` and `mscale_all_dim` state both factors.

    Raises:
        LookupError: if the scores grow and the scaling is not YaRN.
    """
    keys = to_hf(cfg, head_dim)
    if cfg.scaling != "yarn":
        if score_growth != 1:
            raise LookupError("mscale_all_dim")
        return keys
    log = 0.1 * math.log(cfg.factor)
    all_dim = (score_growth - 1) / log
    if all_dim:
        scaling = keys["rope_scaling"]
        scaling.pop("attention_factor", None)
        scaling["mscale_all_dim"] = round(all_dim, 9)
        scaling["mscale"] = round((attention_factor(cfg) * score_growth - 1) / log, 9)
    return keys


def by_layer_type(
    hf: HfConfig, head_dim: int, *, sliding: JsonObject, style: str = "half"
) -> dict[str, RopeConfig]:
    """Reads the rotary positions of layers without and with a window, by `layer_types`.

    Version 5 has one dict of parameters for each type. Version 4 has `rope_theta` and
    `rope_scaling` for full layers; `sliding` are then the parameters of the others.
    """
    parameters: JsonObject = hf.get("rope_parameters", {})
    if layer_types.FULL not in parameters and layer_types.SLIDING not in parameters:
        full = {"rope_theta": hf["rope_theta"], **hf.get("rope_scaling", {}), **parameters}
        parameters = {layer_types.FULL: full, layer_types.SLIDING: sliding}
    return {
        kind: from_rope_parameters(hf, parameters[kind], head_dim, head_dim, style)
        for kind in (layer_types.FULL, layer_types.SLIDING)
        if kind in parameters
    }


def by_layer_type_to_hf(parts: Sequence[AttentionConfig], width: int) -> JsonObject:
    """Returns `rope_parameters` of version 5, one dict for each layer type.

    A type that no layer has gets the parameters of the other.
    """
    ropes = {kind: part for part in parts for kind in layer_types.to_hf([part])}
    parameters: JsonObject = {}
    for kind in (layer_types.FULL, layer_types.SLIDING):
        part = ropes.get(kind, parts[0])
        keys = to_hf(part.rope, part.head_shape(width)[2])
        scaling = keys["rope_scaling"] or {"rope_type": "default"}
        parameters[kind] = {"rope_theta": keys["rope_theta"], **scaling}
    return {"rope_parameters": parameters}


def with_both_generations(keys: JsonObject) -> JsonObject:
    """Adds the dict of version 5 to a config.json that has the keys of version 4."""
    if "rope_theta" not in keys or "rope_parameters" in keys:
        return keys
    rope_parameters = {"rope_theta": keys["rope_theta"]}
    rope_parameters |= keys.get("rope_scaling") or {"rope_type": "default"}
    if "partial_rotary_factor" in keys:
        rope_parameters["partial_rotary_factor"] = keys["partial_rotary_factor"]
    return keys | {"rope_parameters": rope_parameters}


def as_rope_parameters(keys: JsonObject) -> JsonObject:
    """Converts the output of `to_hf` to version 5, for families that read a fraction only there."""
    moved = ("rope_theta", "partial_rotary_factor")
    rope_parameters = {name: keys[name] for name in moved}
    rope_parameters |= keys["rope_scaling"] or {"rope_type": "default"}
    remaining = {name: keys[name] for name in keys if name not in (*moved, "rope_scaling")}
    return remaining | {"rope_parameters": rope_parameters}


def _yarn_mscale(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
