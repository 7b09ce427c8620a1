"""The budget solver: candidates made equal along one axis by one free knob, the rest published.

- `by_size`: same tokens, batch, length and steps; the size is solved for equal model FLOPs of
  training, parameters, active parameters or state (`protocol/sizing.py`).
- `by_steps`: same size; the steps are solved for equal training FLOPs, tokens or measured seconds.
- `isoflop`: several sizes at several budgets of training FLOPs, the steps solved at each: what
  `protocol/frontier.py` fits. It is the strong comparison.

Model FLOPs match, executed ones measure; within 1 %, or the candidate is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from errors import ConfigError
from protocol.sizing import Measure, Shape, sized
from schema import nearest
from training.report import executed, positions, priced
from training.settings import Settings
from training.tree import differences

TOLERANCE = 0.01
BUDGETS, SIZES = 3, 5  # the fewest of an isoFLOP comparison
TOKENS_A_PARAM = 20.0  # about where a budget is spent best (arXiv:2203.15556)

Axis = Literal["params", "active_params", "training_flops", "tokens", "wall_clock", "state_bytes"]
SIZE_AXES = ("training_flops", "params", "active_params", "state_bytes")
STEP_AXES = ("training_flops", "tokens", "wall_clock")


class Measures(NamedTuple):
    """Of a whole run, by axis; then what is published beside them."""

    params: float
    active_params: float
    training_flops: float  # model FLOPs, forward and backward, of all steps
    tokens: float  # of text
    wall_clock: float  # seconds of all steps; 0: not measured
    state_bytes: float  # that decoding keeps for a row
    body_params: float  # without embedding and head
    body_flops: float
    executed_flops: float
    head_share: float  # of the model FLOPs; above .25 a conclusion says so (arXiv:2406.19146)


class Matched(NamedTuple):
    name: str
    settings: Settings
    measures: Measures
    residual: float  # value / target - 1, of the axis
    ratios: dict[str, float]  # of every measure to the reference's; the unmatched are published
    changed: dict[str, tuple]  # (before, after) by dotted key: where the knob stands
    budget: float = 0.0  # training FLOPs that an isoFLOP run was planned for
    place: int = 0  # among the sizes of its budget, from 1


def measured(settings: Settings, seconds: float = 0.0) -> Measures:
    """`settings` are resolved (the tokenizer's vocabulary is in them); `seconds` are of a step."""
    train, rows, bill = settings.train, settings.rows, priced(settings)
    scored = positions(settings)
    return Measures(
        params=bill.params,
        active_params=bill.active_params,
        training_flops=bill.training_flops * scored,
        tokens=train.steps * train.batch * rows.text * rows.texts,
        wall_clock=seconds * train.steps,
        state_bytes=bill.state_bytes,
        body_params=bill.body_params,
        body_flops=3 * bill.body_flops * scored,
        executed_flops=executed(settings) * scored,
        head_share=bill.head_flops / bill.model_flops,
    )


def by_size(
    candidates: Mapping[str, Settings],
    axis: Axis = "training_flops",
    *,
    reference: str,
    shapes: Sequence[Shape] = ("fixed", "aspect"),
    tolerance: float = TOLERANCE,
) -> list[Matched]:
    """Candidates as large as costs what the reference costs; the reference stays as it is.

    The first of `shapes` that meets the target is taken.
    """
    _known(candidates, reference)
    if axis not in SIZE_AXES:
        raise ConfigError(
            f"axis {axis!r} is not matched by size; {nearest(axis, SIZE_AXES)}; by_steps takes it"
        )
    _alike(candidates, ("steps", "batch", "length"))
    goal = measured(candidates[reference])
    target, found = goal._asdict()[axis], []
    for name, settings in candidates.items():
        solved = settings
        if name != reference:
            solved = _of(
                name, settings, lambda s: measured(s)._asdict()[axis], target, tolerance, shapes
            )
        found.append(_matched(name, settings, solved, axis, target, goal))
    return found


def by_steps(
    candidates: Mapping[str, Settings],
    axis: Axis = "training_flops",
    *,
    reference: str,
    seconds: Mapping[str, float] | None = None,
    tolerance: float = TOLERANCE,
) -> list[Matched]:
    """Candidates trained for as many steps as cost what the reference's cost.

    `seconds` of a step are measured on the hardware that the claim names, compilation apart.
    """
    _known(candidates, reference)
    times = dict.fromkeys(candidates, 0.0) | dict(seconds or {})
    if axis not in STEP_AXES:
        raise ConfigError(
            f"axis {axis!r} is not matched by steps; {nearest(axis, STEP_AXES)}; by_size takes it"
        )
    if axis == "wall_clock" and (missing := [n for n in candidates if times[n] <= 0]):
        raise ConfigError(f"wall_clock needs measured seconds per step of {', '.join(missing)}")
    goal = measured(candidates[reference], times[reference])
    target, found = goal._asdict()[axis], []
    for name, settings in candidates.items():
        solved = _stepped(name, settings, axis, target, times[name], tolerance)
        found.append(_matched(name, settings, solved, axis, target, goal, times[name]))
    return found


def as_given(
    candidates: Mapping[str, Settings],
    axis: Axis = "training_flops",
    *,
    reference: str,
    tolerance: float = TOLERANCE,
) -> list[Matched]:
    """Candidates as they are, which must cost the same already; ConfigError where one does not."""
    _known(candidates, reference)
    if axis == "wall_clock":
        raise ConfigError("wall_clock is not known before it is measured; match it by steps")
    goal = measured(candidates[reference])
    target, found = goal._asdict()[axis], []
    for name, settings in candidates.items():
        one = _matched(name, settings, settings, axis, target, goal)
        if abs(one.residual) > tolerance:
            raise ConfigError(
                f"{name} has {axis} {target * (1 + one.residual):.6g}, {one.residual:+.2%} from "
                f"{reference}, must be within {tolerance:.0%}; set rule to size or steps"
            )
        found.append(one)
    return found


def isoflop(
    candidates: Mapping[str, Settings],
    budgets: Sequence[float],
    *,
    sizes: int = SIZES,
    reach: float = 4.0,
    tokens_a_param: float = TOKENS_A_PARAM,
    tolerance: float = TOLERANCE,
) -> list[Matched]:
    """Each candidate at `sizes` sizes of each budget, spread over `reach` around the likely best.

    A size is the active parameters without embedding and head; ratios are to the first candidate's
    run at the same budget and place among the sizes.
    """
    if len(set(budgets)) < BUDGETS or sizes < SIZES:
        raise ConfigError(
            f"{len(set(budgets))} budgets of {sizes} sizes, must be at least {BUDGETS} of {SIZES}; "
            "add budgets or sizes"
        )
    found: list[Matched] = []
    first: dict[tuple[float, int], Measures] = {}
    for name, settings in candidates.items():
        for budget in budgets:
            best = (budget / (6 * tokens_a_param)) ** 0.5
            for place in range(sizes):
                body = best * reach ** (2 * place / (sizes - 1) - 1)
                model = _of(f"{name} at {budget:g}", settings, _body, body, 0.15, ("aspect",))
                solved = _stepped(name, model, "training_flops", budget, 0.0, tolerance)
                goal = first.setdefault((budget, place), measured(solved))
                matched = _matched(name, settings, solved, "training_flops", budget, goal)
                found.append(matched._replace(budget=budget, place=place + 1))
    return found


def _of(
    name: str,
    settings: Settings,
    measure: Measure,
    target: float,
    tolerance: float,
    shapes: Sequence[Shape],
) -> Settings:
    for shape in shapes:
        try:
            return sized(settings, measure, target, tolerance, shape).settings
        except ConfigError as error:
            if shape == shapes[-1]:
                raise ConfigError(f"{name}: {error}") from error
    raise ConfigError(f"{name}: no shape is allowed to move; name 'fixed' or 'aspect'")


def _body(settings: Settings) -> float:
    return priced(settings).active_body_params


def _stepped(
    name: str, settings: Settings, axis: Axis, target: float, seconds: float, tolerance: float
) -> Settings:
    """With the steps that reach the target, and a warm-up of the same share of them."""
    train, optimizer = settings.train, settings.optimizer

    def of(steps: int) -> float:
        own = replace(settings, train=replace(train, steps=steps))
        return measured(own, seconds)._asdict()[axis]

    steps = max(round(target / of(1)), 1)
    for _ in range(8):  # what is not done at every step counts too
        steps = max(round(steps * target / of(steps)), 1)
    if abs(of(steps) / target - 1) > tolerance:
        raise ConfigError(
            f"{name}: {axis} {target:.6g} is not reached within {tolerance:.2%} by whole steps; "
            f"nearest: {of(steps):.6g} with train.steps {steps}; reduce train.batch"
        )
    warmup = min(round(optimizer.warmup * steps / max(train.steps, 1)), steps - 1)
    return replace(
        settings,
        train=replace(train, steps=steps),
        optimizer=replace(optimizer, warmup=warmup),
    )


def _matched(
    name: str,
    before: Settings,
    after: Settings,
    axis: Axis,
    target: float,
    reference: Measures,
    seconds: float = 0.0,
) -> Matched:
    own = measured(after, seconds)
    pairs = zip(own._asdict().items(), reference, strict=True)
    ratios = {key: value / other for (key, value), other in pairs if other}
    changed = {key: (old, new) for key, old, new in differences(before, after)}
    return Matched(name, after, own, own._asdict()[axis] / target - 1, ratios, changed)


def _known(candidates: Mapping[str, Settings], reference: str) -> None:
    if reference not in candidates:
        raise ConfigError(
            f"the reference {reference!r} is no candidate; {nearest(reference, candidates)}"
        )


def _alike(candidates: Mapping[str, Settings], keys: Sequence[str]) -> None:
    """What matching by size holds equal."""
    for key in keys:
        values = {name: vars(s.train)[key] for name, s in candidates.items()}
        if len(set(values.values())) > 1:
            raise ConfigError(f"train.{key} differs, must be equal to match by size: {values}")
