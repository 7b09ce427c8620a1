"""A model of a given cost: width, depth and feed-forward width, from a candidate's own shape.

The fine knob is the feed-forward width (of each expert in a mixture), in the largest of the
multiples 64, 16, 8 that meets the target. Width and depth stay ("fixed"), or move with it near the
candidate's own ratio of width to depth and of feed-forward width to width ("aspect"): as `configs`
does it, heads keep their width, and the pattern is repeated whole. A pattern without a channel, as
`mamba2+none`, has no fine knob: its width and depth move in any case.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from arch import ModelConfig
from errors import ConfigError
from training.settings import Settings

MULTIPLES = (64, 16, 8)  # of a width, in the order of liking
APART = math.log(2)  # most that a ratio may leave the candidate's own

Shape = Literal["fixed", "aspect"]
Measure = Callable[[Settings], float]


class Found(NamedTuple):
    settings: Settings
    value: float  # of the measure
    strain: float  # how far the ratios are from the candidate's own, in logarithms


def sized(
    settings: Settings, measure: Measure, target: float, tolerance: float, shape: Shape = "fixed"
) -> Found:
    """The settings nearest in shape of which `measure` is `target`; ConfigError if none is."""
    fixed = shape == "fixed" and measure(_moved(settings)) != measure(_moved(settings, ratio=2.0))
    shapes = [(settings.model.width, _rounds(settings.model))] if fixed else None
    tried, best = [], None
    for width, rounds in shapes or _shapes(settings, measure, target):
        for found in _with_channel(settings, measure, target, width, rounds):
            tried.append(found)
            if abs(found.value / target - 1) <= tolerance:
                best = found if best is None or found.strain < best.strain else best
                break
    if best is None:
        raise ConfigError(_refusal(tried, target, tolerance, fixed))
    return best


def _refusal(tried: list[Found], target: float, tolerance: float, fixed: bool) -> str:
    if not tried:
        return f"no size near {target:.6g} has a shape like the candidate's; change its width"
    near = min(tried, key=lambda found: abs(math.log(found.value / target)))
    model = near.settings.model
    way = "let width and depth move (aspect), or " if fixed else ""
    return (
        f"{target:.6g} is not reached within {tolerance:.2%}; nearest: {near.value:.6g} "
        f"({near.value / target - 1:+.2%}, width {model.width}, depth {model.depth}); {way}make "
        "this candidate the reference"
    )


def _with_channel(
    settings: Settings, measure: Measure, target: float, width: int, rounds: int
) -> Iterator[Found]:
    """The model of this width and depth, its feed-forward width solved by each multiple."""
    own = settings.model
    try:
        low, high = (measure(_moved(settings, width, rounds, ratio)) for ratio in (0.5, 2.0))
    except ConfigError:  # heads that do not divide, and the like
        return
    aspect = abs(math.log(width / rounds * _rounds(own) / own.width))
    if low == high:
        yield Found(_moved(settings, width, rounds), low, aspect)
        return
    ratio = 0.5 + 1.5 * (target - low) / (high - low)
    nearest = min(max(ratio, math.exp(-APART)), math.exp(APART))
    for multiple in MULTIPLES:
        found = _moved(settings, width, rounds, nearest, multiple)
        moved = abs(math.log(_channel(found.model) / width * own.width / _channel(own)))
        yield Found(found, measure(found), aspect + moved)


def _shapes(settings: Settings, measure: Measure, target: float) -> Iterator[tuple[int, int]]:
    """Widths and repeats that may hold the target, near the candidate's own aspect."""
    own = settings.model
    aspect = own.width / _rounds(own)
    width = MULTIPLES[-1]
    while width <= 64 * own.width:
        try:
            one, two = (measure(_moved(settings, width, rounds)) for rounds in (1, 2))
        except ConfigError:
            one, two = math.nan, math.nan
        if one > 2 * target:
            return
        if two > one:
            middle = 1 + (target - one) / (two - one)
            near = {math.floor(middle), math.ceil(middle)}
            yield from (
                (width, rounds)
                for rounds in sorted(near)
                if rounds > 0 and abs(math.log(width / rounds / aspect)) <= APART
            )
        width += next(m for m in MULTIPLES if width >= 16 * m or m == MULTIPLES[-1])


def _moved(
    settings: Settings, width: int = 0, rounds: int = 0, ratio: float = 1.0, multiple: int = 1
) -> Settings:
    """The candidate at another size; `ratio` is of feed-forward width to width, over its own."""
    own = settings.model
    width, rounds = width or own.width, rounds or _rounds(own)
    scale, used = width / own.width, {name for e in own.entries() for name in (e[0], e[2])}
    changes: dict[str, Any] = {"width": width}
    changes["depth"] = len(own.first) + rounds * len(own.layers)
    if own.encoder.depth:
        used.add("cross")
        blocks = len(own.encoder.layers)
        deep = (own.encoder.depth - len(own.encoder.first)) * rounds / _rounds(own)
        deep = len(own.encoder.first) + max(round(deep / blocks), 1) * blocks
        changes["encoder"] = replace(own.encoder, depth=deep)
    for name in used & {"attention", "local_attention", "cross"}:
        part = getattr(own, name)
        groups = part.kv_heads if part.kv_heads < 2 else _whole(part.kv_heads * scale, name)
        heads = _whole(part.heads * scale, name)
        changes[name] = replace(part, heads=heads, kv_heads=groups)
    if "gated_deltanet" in used:
        heads = _whole(own.gated_deltanet.heads * scale, "gated_deltanet")
        changes["gated_deltanet"] = replace(own.gated_deltanet, heads=heads)
    for name in used & {"lstm", "gated_conv"}:
        inner = getattr(own, name)
        changes[name] = replace(inner, width=_whole(inner.width * scale, name))
    if "mlp" in used:
        wide = _near(own.mlp.size(own.width) * scale * ratio, multiple)
        changes["mlp"] = replace(own.mlp, width=wide)
    if "moe" in used:
        wide = _near(own.moe.size(own.width) * scale * ratio, multiple)
        shared = own.moe.shared_width and _near(own.moe.shared_width * scale * ratio, multiple)
        changes["moe"] = replace(own.moe, width=wide, shared_width=shared)
    return replace(settings, model=replace(own, **changes))


def _channel(model: ModelConfig) -> int:
    """The feed-forward width that stands for the model's."""
    mixed = all(e.channel == "moe" for e in model.entries())
    return model.moe.size(model.width) if mixed else model.mlp.size(model.width)


def _rounds(model: ModelConfig) -> int:
    """How often the pattern is repeated, whole."""
    return max((model.depth - len(model.first)) // len(model.layers), 1)


def _near(width: float, multiple: int) -> int:
    return max(round(width / multiple), 1) * multiple


def _whole(count: float, name: str) -> int:
    if count != round(count):
        raise ConfigError(f"{name} of {count:g} heads or channels; choose another width")
    return round(count)
