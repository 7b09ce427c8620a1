"""The budget solver: makes candidates equal in one cost by one free setting; reports the others.

- `match_by_size`: same tokens, batch size, sequence length and steps. The size is solved for equal
  training FLOPs, parameters, active parameters, state or FLOPs of a generated token
  (`protocol/study/model_sizing.py`).
- `match_by_steps`: same size. The steps are solved for equal training FLOPs, tokens or measured
  seconds.
- `match_as_is`: nothing is solved. Runs of equal unique tokens (data-limited studies) may differ in
  their steps, and so in their epochs.
- `match_isoflop`: several sizes at each of several budgets of training FLOPs, with the steps solved
  for each. `protocol/statistics/isoflop.py` fits the results. It is the strongest comparison.

Costs are matched in model FLOPs; executed FLOPs are only reported. A candidate that cannot be
matched within 1 % is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from errors import ConfigError
from protocol.study.model_sizing import CostFn, ShapeMode, size_model
from settings.changes import with_changes
from settings.tree import differences
from settings.types import did_you_mean
from training.accounting import decode_flops, executed_flops_per_token, model_cost, run_tokens
from training.settings import Settings

TOLERANCE = 0.01
MIN_BUDGETS, MIN_SIZES = 3, 6  # Minimal budgets and sizes of an isoFLOP comparison.
TOKENS_PER_PARAM = 20.0  # Approximate compute-optimal ratio (arXiv:2203.15556).

Axis = Literal[
    "params",
    "active_params",
    "training_flops",
    "tokens",
    "unique_tokens",
    "wall_clock",
    "state_bytes",
    "decode",
]
SIZE_AXES = ("training_flops", "params", "active_params", "state_bytes", "decode")
STEP_AXES = ("training_flops", "tokens", "wall_clock")


class RunCosts(NamedTuple):
    """The costs of a whole run: the axes first, then other costs that are reported."""

    params: float
    active_params: float
    training_flops: float  # Model FLOPs of all steps, forward and backward.
    tokens: float  # Tokens of text.
    unique_tokens: float  # Of these, the distinct ones; 0: train.unique_tokens does not limit them.
    wall_clock: float  # Seconds of all steps; 0: not measured.
    state_bytes: float  # Bytes that decoding stores for a sequence.
    decode: float  # FLOPs of generating the last token of a row.
    non_embedding_params: float  # Parameters without embedding and head.
    non_embedding_flops: float  # Training FLOPs without the head.
    executed_flops: float
    epochs: float  # Tokens over unique tokens; 0: unknown.
    head_share: float  # Share of the head in the model FLOPs; the board mentions it above .25.


class MatchedModel(NamedTuple):
    """A candidate with the settings that match its cost."""

    name: str
    settings: Settings
    costs: RunCosts
    residual: float  # Value of the axis over its target, minus 1.
    cost_ratios: dict[str, float]  # Each cost over that of the reference.
    changed_settings: dict[str, tuple]  # (before, after) by dotted key.
    budget: float = 0.0  # Training FLOPs for which an isoFLOP run was planned.
    size_index: int = 0  # Number of the size at its budget, from 1; 0: not an isoFLOP run.


def compute_run_costs(settings: Settings, step_seconds: float = 0.0) -> RunCosts:
    """Returns the costs of a run of resolved settings, which include the vocabulary size."""
    train, rows, cost = settings.train, settings.row_spec, model_cost(settings)
    n_tokens, row_tokens = run_tokens(settings), rows.text_length * rows.n_texts
    text_tokens = train.steps * train.batch_size * row_tokens
    unique_tokens = min(text_tokens, train.unique_tokens // row_tokens * row_tokens)
    return RunCosts(
        params=cost.params,
        active_params=cost.active_params,
        training_flops=cost.training_flops * n_tokens,
        tokens=text_tokens,
        unique_tokens=unique_tokens,
        wall_clock=step_seconds * train.steps,
        state_bytes=cost.state_bytes,
        decode=decode_flops(settings),
        non_embedding_params=cost.non_embedding_params,
        non_embedding_flops=3 * cost.non_embedding_flops * n_tokens,
        executed_flops=executed_flops_per_token(settings) * n_tokens,
        epochs=text_tokens / unique_tokens if unique_tokens else 0.0,
        head_share=cost.head_flops / cost.model_flops,
    )


def match_by_size(
    candidates: Mapping[str, Settings],
    axis: Axis = "training_flops",
    *,
    reference: str,
    shapes: Sequence[ShapeMode] = ("fixed", "aspect"),
    knobs: Mapping[str, str] | None = None,
    tolerance: float = TOLERANCE,
) -> list[MatchedModel]:
    """Solves the size of each candidate for the cost of the reference, which does not change.

    Args:
        candidates: settings by name.
        axis: the cost to match.
        reference: the name of the candidate that sets the target.
        shapes: whether width and depth may change; the first that meets the target is used.
        knobs: the only setting that is solved, as "model.lstm.width", by candidate; those without
            one are matched by the hidden widths of their channels.
        tolerance: relative difference within which the costs must agree.

    Raises:
        ConfigError: if the axis does not depend on the size, or a candidate cannot be matched.
    """
    _check_reference(candidates, reference)
    if axis not in SIZE_AXES:
        raise ConfigError(
            f"axis {axis!r} is not matched by size; {did_you_mean(axis, SIZE_AXES)}; or match it "
            "by steps"
        )
    _check_equal_settings(candidates, ("steps", "batch_size", "seq_len"))
    reference_costs = compute_run_costs(candidates[reference])
    target = reference_costs._asdict()[axis]
    matched = []
    for name, settings in candidates.items():
        sized = settings
        if name != reference:
            knob = (knobs or {}).get(name, "")
            sized = _resize_to_target(
                name,
                settings,
                lambda s: compute_run_costs(s)._asdict()[axis],
                target,
                tolerance,
                ("fixed",) if knob else shapes,
                knob,
            )
        matched.append(_make_matched(name, settings, sized, axis, target, reference_costs))
    return matched


def match_by_steps(
    candidates: Mapping[str, Settings],
    axis: Axis = "training_flops",
    *,
    reference: str,
    step_seconds: Mapping[str, float] | None = None,
    tolerance: float = TOLERANCE,
) -> list[MatchedModel]:
    """Solves the steps of each candidate for the cost of the reference.

    Args:
        candidates: settings by name.
        axis: the cost to match.
        reference: the name of the candidate that sets the target.
        step_seconds: measured seconds per step, without compilation, for the axis wall_clock.
        tolerance: relative difference within which the costs must agree.

    Raises:
        ConfigError: if the axis does not depend on the steps, or a candidate cannot be matched.
    """
    _check_reference(candidates, reference)
    times = dict.fromkeys(candidates, 0.0) | dict(step_seconds or {})
    if axis not in STEP_AXES:
        raise ConfigError(
            f"axis {axis!r} is not matched by steps; {did_you_mean(axis, STEP_AXES)}; or match it "
            "by size"
        )
    if axis == "wall_clock" and (missing := [n for n in candidates if times[n] <= 0]):
        raise ConfigError(f"wall_clock needs measured seconds per step of {', '.join(missing)}")
    reference_costs = compute_run_costs(candidates[reference], times[reference])
    target = reference_costs._asdict()[axis]
    matched = []
    for name, settings in candidates.items():
        solved = _with_steps(name, settings, axis, target, times[name], tolerance)
        matched.append(
            _make_matched(name, settings, solved, axis, target, reference_costs, times[name])
        )
    return matched


def match_as_is(
    candidates: Mapping[str, Settings],
    axis: Axis = "training_flops",
    *,
    reference: str,
    tolerance: float = TOLERANCE,
) -> list[MatchedModel]:
    """Returns the candidates unchanged; they must have the same cost already.

    Raises:
        ConfigError: if a candidate has another cost than the reference.
    """
    _check_reference(candidates, reference)
    if axis == "unique_tokens":
        _check_unique_tokens(candidates)
    if axis == "wall_clock":
        raise ConfigError("wall_clock is unknown before it is measured; match it by steps")
    reference_costs = compute_run_costs(candidates[reference])
    target = reference_costs._asdict()[axis]
    matched = []
    for name, settings in candidates.items():
        model = _make_matched(name, settings, settings, axis, target, reference_costs)
        if abs(model.residual) > tolerance:
            raise ConfigError(
                f"{name} has {axis} {target * (1 + model.residual):.6g}, {model.residual:+.2%} "
                f"from {reference}, must be within {tolerance:.0%}; set match_by to size or steps"
            )
        matched.append(model)
    return matched


def match_isoflop(
    candidates: Mapping[str, Settings],
    budgets: Sequence[float],
    *,
    n_sizes: int = MIN_SIZES,
    size_range_factor: float = 4.0,
    tokens_per_param: float | Mapping[str, float] = TOKENS_PER_PARAM,
    knobs: Mapping[str, str] | None = None,
    tolerance: float = TOLERANCE,
) -> list[MatchedModel]:
    """Returns each candidate at several sizes of each budget, around the expected best size.

    A size is the number of active parameters without embedding and head. Cost ratios are relative
    to the first candidate at the same budget and size index.

    Args:
        candidates: settings by name.
        budgets: training FLOPs.
        n_sizes: sizes per budget.
        size_range_factor: the largest size over the expected best one, and that over the smallest.
        tokens_per_param: tokens per parameter at the expected best size if the budget is 6 N D, of
            all candidates or by candidate; those without one have the default.
        knobs: the setting that is solved beside width and depth, by candidate; those without one
            have the hidden widths of their channels solved.
        tolerance: relative difference within which the training FLOPs must meet the budget.

    Raises:
        ConfigError: if there are too few budgets or sizes, or a size cannot be matched.
    """
    if len(set(budgets)) < MIN_BUDGETS or n_sizes < MIN_SIZES:
        raise ConfigError(
            f"{len(set(budgets))} budgets of {n_sizes} sizes, must be at least {MIN_BUDGETS} of "
            f"{MIN_SIZES}; add budgets or sizes"
        )
    all_matched: list[MatchedModel] = []
    reference_costs: dict[tuple[float, int], RunCosts] = {}
    for name, settings in candidates.items():
        ratio = (
            tokens_per_param.get(name, TOKENS_PER_PARAM)
            if isinstance(tokens_per_param, Mapping)
            else tokens_per_param
        )
        for budget in budgets:
            best_size = (budget / (6 * ratio)) ** 0.5
            for index in range(n_sizes):
                model = _resize_to_target(
                    f"{name}, size {index + 1} of {n_sizes} at the budget {budget:g}, in active "
                    "parameters without embedding and head",
                    settings,
                    _active_non_embedding_params,
                    best_size * size_range_factor ** (2 * index / (n_sizes - 1) - 1),
                    0.15,
                    ("aspect",),
                    (knobs or {}).get(name, ""),
                    remedy="change the budgets or tokens_per_param",
                )
                solved = _with_steps(name, model, "training_flops", budget, 0.0, tolerance)
                costs = reference_costs.setdefault((budget, index), compute_run_costs(solved))
                matched = _make_matched(name, settings, solved, "training_flops", budget, costs)
                all_matched.append(matched._replace(budget=budget, size_index=index + 1))
    return all_matched


def _resize_to_target(
    name: str,
    settings: Settings,
    cost_fn: CostFn,
    target: float,
    tolerance: float,
    shapes: Sequence[ShapeMode],
    knob: str,
    remedy: str = "make this candidate the reference",
) -> Settings:
    for shape in shapes:
        try:
            return size_model(settings, cost_fn, target, tolerance, shape, knob, remedy).settings
        except ConfigError as error:
            if shape == shapes[-1]:
                raise ConfigError(f"{name}: {error}") from error
    raise ConfigError(f"{name}: shapes are empty, must name 'fixed' or 'aspect'")


def _active_non_embedding_params(settings: Settings) -> float:
    return model_cost(settings).active_non_embedding_params


def _with_steps(
    name: str, settings: Settings, axis: Axis, target: float, step_seconds: float, tolerance: float
) -> Settings:
    """Returns settings with the steps that meet the target; warmup keeps its share of them.

    Raises:
        ConfigError: if no whole number of steps meets the target within the tolerance.
    """

    def cost_of(steps: int) -> float:
        candidate = with_changes(settings, {"train.steps": steps})
        return compute_run_costs(candidate, step_seconds)._asdict()[axis]

    # Some work is done once, as by the reference of preferences.
    first, second = cost_of(1), cost_of(2)
    steps = max(1 + round((target - first) / (second - first)), 1)
    # Iterate, because the cost is not linear in the steps: some work is done in some of them.
    for _ in range(8):
        steps = max(round(steps * target / cost_of(steps)), 1)
    if abs(cost_of(steps) / target - 1) > tolerance:
        raise ConfigError(
            f"{name}: {axis} {target:.6g} is not reached within {tolerance:.2%} by whole steps; "
            f"nearest: {cost_of(steps):.6g} with train.steps {steps}; reduce train.batch_size"
        )
    warmup = settings.optimizer.warmup
    if warmup >= 1:  # below 1 it is a share of the steps already
        warmup = min(round(warmup * steps / max(settings.train.steps, 1)), steps - 1)
    return with_changes(settings, {"train.steps": steps, "optimizer.warmup": warmup})


def _make_matched(
    name: str,
    before: Settings,
    after: Settings,
    axis: Axis,
    target: float,
    reference: RunCosts,
    step_seconds: float = 0.0,
) -> MatchedModel:
    costs = compute_run_costs(after, step_seconds)
    pairs = zip(costs._asdict().items(), reference, strict=True)
    ratios = {key: value / base for (key, value), base in pairs if base}
    changed = {key: (old, new) for key, old, new in differences(before, after)}
    return MatchedModel(name, after, costs, costs._asdict()[axis] / target - 1, ratios, changed)


def _check_reference(candidates: Mapping[str, Settings], reference: str) -> None:
    if reference not in candidates:
        raise ConfigError(
            f"the reference {reference!r} is not a candidate; {did_you_mean(reference, candidates)}"
        )


def _check_unique_tokens(candidates: Mapping[str, Settings]) -> None:
    """Refuses candidates without a number of unique tokens.

    Raises:
        ConfigError: if there is one.
    """
    for name, settings in candidates.items():
        if not settings.train.unique_tokens:
            raise ConfigError(
                f"{name} has train.unique_tokens 0, the whole training split, with the axis "
                "unique_tokens; set it to the number of distinct tokens of a run"
            )


def _check_equal_settings(candidates: Mapping[str, Settings], keys: Sequence[str]) -> None:
    for key in keys:
        values = {name: vars(s.train)[key] for name, s in candidates.items()}
        if len(set(values.values())) > 1:
            raise ConfigError(f"train.{key} differs, must be equal to match by size: {values}")
