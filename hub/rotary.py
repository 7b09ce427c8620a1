"""Rotary positions in config.json, in the words of versions 4 and 5.

Version 4 has `rope_theta` and `rope_scaling`, version 5 one dict `rope_parameters`. Names in files:
`type` or `rope_type`, `su` for longrope. Formulas: `arch/rope.py`.
"""

import math
from collections.abc import Mapping
from typing import Any

from arch.rope import RopeConfig
from errors import ConfigError
from hub.keys import Keys

ALIASES = {"default": "none", "su": "longrope"}
OWN = {  # options of each kind
    "none": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "truncate")
    + ("mscale", "mscale_all_dim"),
    "longrope": ("factor", "attention_factor", "short_factor", "long_factor"),
}
ANY: tuple[str, ...] = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
ANY += ("original_max_position_embeddings",)


def rope(
    k: Keys, head: int, *, partial: float = 0.0, theta: float = 10000.0, style: str = "half"
) -> RopeConfig:
    """The rotary positions of heads of width `head`; `partial` is the share that turns where the
    family knows one (by default), 0: it turns all."""
    found = dict(k.get("rope_scaling", {}))
    old = {"rope_theta": k.get("rope_theta", theta)}
    found = old | found | k.get("rope_parameters", {})
    share = found.get("partial_rotary_factor") or k.get("partial_rotary_factor", partial or 1.0)
    if not partial and share != 1:
        raise ConfigError(f"config.json: {k.kind} turns whole heads; partial_rotary_factor {share}")
    return of(k, found, int(head * share), head, style)


def of(k: Keys, found: Mapping[str, Any], width: int, head: int, style: str = "half") -> RopeConfig:
    """From one dict of version 5; null is as if it were not there."""
    found = {name: value for name, value in found.items() if value is not None}
    kind = found.get("rope_type", found.get("type", "default"))
    kind = ALIASES.get(kind, kind)
    if kind not in OWN:
        raise ConfigError(f"config.json: rope_type {kind!r} is not known; known: {', '.join(OWN)}")
    if unknown := sorted(set(found) - {*ANY, *OWN[kind]}):
        told = ", ".join(f"{name}={found[name]!r}" for name in unknown)
        raise ConfigError(f"config.json: rope_type {kind!r} has no {told}; remove them")
    most = int(k.get("max_position_embeddings", 2048))
    old = found.get("original_max_position_embeddings") or k.get(
        "original_max_position_embeddings", most
    )
    old = most if kind == "dynamic" else int(old)
    options: dict[str, Any] = {"theta": float(found["rope_theta"]), "style": style}
    options["width"] = 0 if width == head else width
    if kind == "none":
        return RopeConfig(**options)
    options |= {"scaling": kind, "factor": float(found.get("factor") or most / old)}
    if kind == "linear":
        return RopeConfig(**options)
    names = {"low_freq_factor": "low", "high_freq_factor": "high", "attention_factor": "magnitude"}
    same = {name: name for name in ("beta_fast", "beta_slow")}
    for theirs, ours in (names | same).items():
        if theirs in found:
            options[ours] = float(found[theirs])
    if kind == "longrope":
        options |= {"short": tuple(map(float, found["short_factor"]))}
        options |= {"long": tuple(map(float, found["long_factor"]))}
    options |= {"truncate": found["truncate"]} if "truncate" in found else {}
    if found.get("mscale") and found.get("mscale_all_dim") and "attention_factor" not in found:
        up, down = (_yarn(options["factor"], found[n]) for n in ("mscale", "mscale_all_dim"))
        options["magnitude"] = up / down
    return RopeConfig(**options, original=old)


def written(cfg: RopeConfig, head: int, *, partial: float = 0.0) -> dict[str, Any]:
    """The keys that `rope` reads, which all versions understand."""
    keys: dict[str, Any] = {"rope_theta": cfg.theta, "rope_scaling": None}
    share = (cfg.width or head) / head
    if not partial and share != 1:
        raise LookupError("a share of the head")
    if share != (partial or 1.0):
        keys["partial_rotary_factor"] = share
    if cfg.scaling == "none":
        return keys
    scaling: dict[str, Any] = {"rope_type": cfg.scaling, "factor": cfg.factor}
    if cfg.scaling == "llama3":
        scaling |= {"low_freq_factor": cfg.low, "high_freq_factor": cfg.high}
    if cfg.scaling == "yarn":
        scaling |= {"beta_fast": cfg.beta_fast, "beta_slow": cfg.beta_slow}
        scaling |= {} if cfg.truncate else {"truncate": False}
    if cfg.scaling == "longrope":
        scaling |= {"short_factor": list(cfg.short), "long_factor": list(cfg.long)}
    if cfg.scaling in ("yarn", "longrope") and cfg.magnitude:
        scaling |= {"attention_factor": cfg.magnitude}
    if cfg.scaling == "dynamic":
        keys["max_position_embeddings"] = cfg.original
    elif cfg.scaling != "linear":
        scaling["original_max_position_embeddings"] = cfg.original
    return keys | {"rope_scaling": scaling}


def nested(keys: Mapping[str, Any]) -> dict[str, Any]:
    """What `written` says as the one dict of version 5, where alone some shares are heard."""
    inside = ("rope_theta", "partial_rotary_factor")
    found = {name: keys[name] for name in inside}
    found |= keys["rope_scaling"] or {"rope_type": "default"}
    rest = {name: keys[name] for name in keys if name not in (*inside, "rope_scaling")}
    return rest | {"rope_parameters": found}


def _yarn(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
