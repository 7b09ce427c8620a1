"""Sizes a model to a given cost by its width, its depth and the knobs of its parts.

The fine knobs are by default the hidden widths of the channels (of each expert in a mixture), which
change by one factor. A study may declare another one, as "model.lstm.width". They are rounded to
the largest of the multiples 64, 16 and 8 that meets the target. Width and depth are kept ("fixed"),
or change with it ("aspect") such that two ratios stay near the candidate's: width to depth, and
feed-forward width to width. As in `configs`, the width of a head does not change, and the layer
pattern is repeated as a whole. A pattern without a channel, such as `mamba2+none`, has no knob by
default: its width and depth change in any case. `arch/scaling.py` states how parts declare what is
a knob and what follows the width.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from arch import ModelConfig
from arch.scaling import SizeSetting, require_declarations, size_settings, whole_size
from errors import ConfigError
from settings.changes import with_changes
from settings.types import did_you_mean
from training.settings import Settings

WIDTH_MULTIPLES = (64, 16, 8)  # Multiples of a width, the preferred one first.
MAX_SHAPE_CHANGE = math.log(2)  # Limit of the change of a ratio, as a logarithm.

ShapeMode = Literal["fixed", "aspect"]
CostFn = Callable[[Settings], float]


class SizedModel(NamedTuple):
    """A model with its cost."""

    settings: Settings
    cost: float
    shape_change: float  # Sum of the absolute changes of the two ratios, as logarithms.


class _Sizer(NamedTuple):
    """A candidate, and the knobs by which it meets a cost."""

    settings: Settings
    cost_fn: CostFn
    knobs: tuple[str, ...]  # Dotted keys in the model.


def size_model(
    settings: Settings,
    cost_fn: CostFn,
    target: float,
    tolerance: float,
    shape: ShapeMode = "fixed",
    knob: str = "",
    remedy: str = "make this candidate the reference",
) -> SizedModel:
    """Returns the model nearest in shape whose cost is `target`.

    Args:
        settings: the candidate.
        cost_fn: the cost of settings.
        target: the cost to meet.
        tolerance: relative difference within which the cost must meet the target.
        shape: whether width and depth are kept or change.
        knob: the setting to solve, as "model.lstm.width"; blank: the hidden widths of the channels.
        remedy: what a user can change if no model meets the target.

    Raises:
        ConfigError: if no shape meets the target within the tolerance, the layers do not have the
            knob, it does not change the cost, or a part does not declare how its size follows the
            width.
    """
    sizer = _Sizer(settings, cost_fn, _select_knobs(settings.model, knob))
    has_effect = cost_fn(_with_shape(sizer)) != cost_fn(_with_shape(sizer, ratio=2.0))
    if knob and not has_effect:
        raise ConfigError(f"the knob {knob!r} does not change the cost; name another knob")
    fixed = shape == "fixed" and has_effect
    if not fixed:
        require_declarations(settings.model)
    shapes = [(settings.model.width, _pattern_repeats(settings.model))] if fixed else None
    tried: list[SizedModel] = []
    best: SizedModel | None = None
    for width, repeats in shapes or _candidate_shapes(sizer, target):
        for model in _solve_knobs(sizer, target, width, repeats):
            tried.append(model)
            if abs(model.cost / target - 1) <= tolerance:
                best = model if best is None or model.shape_change < best.shape_change else best
                break
    if best is None:
        alternative = "let width and depth change (aspect), or " if fixed else ""
        alternative = "name another knob, or " if knob else alternative
        raise ConfigError(_no_solution_message(tried, target, tolerance, alternative + remedy))
    return best


def _no_solution_message(
    tried: list[SizedModel], target: float, tolerance: float, remedy: str
) -> str:
    if not tried:
        return (
            f"no size near {target:.6g} has a shape like the candidate's; change its width, or "
            f"{remedy}"
        )
    nearest = min(tried, key=lambda model: abs(math.log(model.cost / target)))
    model = nearest.settings.model
    return (
        f"{target:.6g} is not reached within {tolerance:.2%}; nearest: {nearest.cost:.6g} "
        f"({nearest.cost / target - 1:+.2%}, width {model.width}, depth {model.depth}); "
        f"{remedy}"
    )


def _solve_knobs(sizer: _Sizer, target: float, width: int, repeats: int) -> Iterator[SizedModel]:
    """Yields models of this width and depth, with the knobs solved per multiple."""
    base, cost_fn = sizer.settings.model, sizer.cost_fn
    try:
        low, high = (cost_fn(_with_shape(sizer, width, repeats, ratio)) for ratio in (0.5, 2.0))
    except ConfigError:  # Heads or channels would not be whole numbers.
        return
    aspect = abs(math.log(width / repeats * _pattern_repeats(base) / base.width))
    if low == high:
        yield SizedModel(_with_shape(sizer, width, repeats), low, aspect)
        return
    ratio = 0.5 + 1.5 * (target - low) / (high - low)
    nearest = min(max(ratio, math.exp(-MAX_SHAPE_CHANGE)), math.exp(MAX_SHAPE_CHANGE))
    for multiple in WIDTH_MULTIPLES:
        sized = _with_shape(sizer, width, repeats, nearest, multiple)
        knob_ratio = _knob_size(sized.model, sizer) / _knob_size(base, sizer)
        yield SizedModel(sized, cost_fn(sized), aspect + abs(math.log(knob_ratio)))


def _candidate_shapes(sizer: _Sizer, target: float) -> Iterator[tuple[int, int]]:
    """Yields widths and repeats that may meet the target, near the candidate's aspect ratio."""
    base, cost_fn = sizer.settings.model, sizer.cost_fn
    aspect = base.width / _pattern_repeats(base)
    width = WIDTH_MULTIPLES[-1]
    while width <= 64 * base.width:
        try:
            cost_1, cost_2 = (cost_fn(_with_shape(sizer, width, repeats)) for repeats in (1, 2))
        except ConfigError:
            cost_1, cost_2 = math.nan, math.nan
        if cost_1 > 2 * target:
            return
        if cost_2 > cost_1:
            solution = 1 + (target - cost_1) / (cost_2 - cost_1)
            yield from (
                (width, repeats)
                for repeats in sorted({math.floor(solution), math.ceil(solution)})
                if repeats > 0 and abs(math.log(width / repeats / aspect)) <= MAX_SHAPE_CHANGE
            )
        width += next(m for m in WIDTH_MULTIPLES if width >= 16 * m or m == WIDTH_MULTIPLES[-1])


def _with_shape(
    sizer: _Sizer, width: int = 0, repeats: int = 0, ratio: float = 1.0, multiple: int = 1
) -> Settings:
    """Returns the candidate at another size; `ratio` scales the knobs over the width."""
    base = sizer.settings.model
    width, repeats = width or base.width, repeats or _pattern_repeats(base)
    changes = {"width": width, "depth": len(base.first_layers) + repeats * len(base.layers)}
    if base.encoder.depth:
        encoder, block = base.encoder, len(base.encoder.layers)
        layers = (encoder.depth - len(encoder.first_layers)) * repeats / _pattern_repeats(base)
        depth = len(encoder.first_layers) + max(round(layers / block), 1) * block
        changes["encoder.depth"] = depth
    for setting in size_settings(base):
        scale = width / base.width if setting.is_scaled else 1.0
        if setting.key not in sizer.knobs:
            changes[setting.key] = whole_size(setting.value * scale, setting.key)
        elif setting.size:
            changes[setting.key] = _nearest_multiple(setting.size * scale * ratio, multiple)
    return with_changes(sizer.settings, {f"model.{key}": value for key, value in changes.items()})


def _select_knobs(model: ModelConfig, knob: str) -> tuple[str, ...]:
    """Returns the keys of the knobs to solve.

    Raises:
        ConfigError: if the layers do not have the knob that is named.
    """
    knobs = [setting for setting in size_settings(model) if setting.is_knob]
    if not knob:
        return tuple(setting.key for setting in knobs if setting.is_channel)
    choices = [f"model.{setting.key}" for setting in knobs if setting.size]
    if knob not in choices:
        hint = did_you_mean(knob, choices) if choices else "its parts declare no knobs"
        raise ConfigError(f"the layers {' '.join(model.layers)} have no knob {knob!r}; {hint}")
    return (knob.removeprefix("model."),)


def _knob_size(model: ModelConfig, sizer: _Sizer) -> float:
    """Returns the size of the first knob, over the width of the model if it is scaled with it."""
    settings: dict[str, SizeSetting] = {setting.key: setting for setting in size_settings(model)}
    setting = settings[sizer.knobs[0]]
    return setting.size / model.width if setting.is_scaled else setting.size


def _pattern_repeats(model: ModelConfig) -> int:
    """Returns how often the whole pattern is repeated."""
    return max((model.depth - len(model.first_layers)) // len(model.layers), 1)


def _nearest_multiple(width: float, multiple: int) -> int:
    return max(round(width / multiple), 1) * multiple
