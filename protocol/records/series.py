"""What a run logged, as the board shows it: its learning curve, and one number for each column."""

import math
import statistics

from errors import DataError
from protocol.records.safe_read import CheckedFields, parse_jsonl, sanitize
from settings.types import is_digits

LATE_SHARE = 0.2  # Share of the steps at the end of a run in which scores count as late.
MAX_LATE_SCORES = 30  # The number of last checkpoints of arXiv:2508.13144.
VALIDATION_PREFIX = "valid/"
MAX_CURVE_POINTS = 100  # Points of a learning curve that the page draws.
CURVE_METRICS = ("bits_per_byte", "nats", "loss")  # The first one that a run logs is its curve.
LAST_ROW_COLUMNS = {  # Metrics of which the last row is shown, with their columns.
    "tokens": "tokens",
    "unique_tokens": "unique_tokens",
    "epochs": "epochs",
    "peak_memory": "peak_memory",
    "moe.load_entropy": "load_entropy",
    "moe.dead": "dead_experts",
    "moe.dropped": "dropped_tokens",
}
COST_COLUMNS = (
    *(
        "params",
        "active_params",
        "training_flops",
        "executed_flops",
        "head_share",
        "elementwise_share",
    ),
    *("tokens", "tokens_per_param"),
    *("unique_tokens", "epochs", "seconds", "tokens_per_second", "mfu", "peak_memory"),
    *("prefill_tokens_per_second", "decode_ms_per_token", "decode_flops"),
    *("state_bytes", "measured_state_bytes"),
    *("load_entropy", "dead_experts", "dropped_tokens"),
    *("joules", "estimated_joules", "co2_grams"),
)
JOULES_PER_KWH = 3.6e6
MEASURED_JOULES, ESTIMATED_JOULES = "step_joules", "estimated_step_joules"  # Metrics by source.
Scores = dict[str, tuple[float, int]]  # Value and version of the task, by name.


def increasing_steps(data: bytes) -> list[CheckedFields]:
    """Returns the rows of metrics.jsonl by increasing step.

    A row at an earlier step removes the rows after that step, because the run was rolled back or
    resumed from there. Rows of one step are merged, also those of two attempts.

    Raises:
        DataError: if a row has no step.
    """
    series: list[tuple[int, CheckedFields]] = []
    for row in parse_jsonl(data, "metrics.jsonl"):
        step = row.count("step")
        if step is None:
            raise DataError(f"{row.name} has no step")
        while series and series[-1][0] > step:
            series.pop()
        if row.boolean("resumed"):
            continue
        if series and series[-1][0] == step:
            row = CheckedFields(series.pop()[1].tree | row.tree, row.name)
        series.append((step, row))
    return [row for _, row in series]


def read_costs(
    cost: CheckedFields,
    settings: CheckedFields,
    run_tokens: float | None,
    series: list[CheckedFields],
    scores: Scores,
) -> dict[str, float]:
    """Returns the columns of a run that are one number, without those that are unknown.

    Args:
        cost: section of run.json with the costs of one token.
        settings: settings of the run.
        run_tokens: tokens of the whole run, each of which costs what `cost` states.
        series: rows of metrics.jsonl.
        scores: scores of the last step.
    """
    head = cost.section("terms").section("head.logits").nonnegative("model")
    token, step = cost.nonnegative("training_flops"), _median(series, "step_seconds")
    forward, executed = cost.nonnegative("model_flops"), cost.nonnegative("executed_training_flops")
    # A run may record the executed FLOPs of the forward pass alone.
    if executed is None and (forward_executed := cost.nonnegative("executed_flops")) is not None:
        executed = 3 * forward_executed
    steps = settings.section("train").nonnegative("steps") or 0
    names = ("params", "active_params", "state_bytes", "decode_flops")
    columns = {name: cost.nonnegative(name) for name in names}
    params, active = columns["params"], columns["active_params"]
    body = cost.nonnegative("non_embedding_params")
    if params is not None and active is not None and body is not None:
        columns["active_non_embedding_params"] = active - (params - body)
    columns |= {column: _last_value(series, name) for name, column in LAST_ROW_COLUMNS.items()}
    columns |= {
        "training_flops": None if token is None or run_tokens is None else token * run_tokens,
        "executed_flops": None if executed is None or run_tokens is None else executed * run_tokens,
        "head_share": head / forward if head is not None and forward else None,
        "elementwise_share": _elementwise_flops(cost) / forward if forward else None,
        "seconds": None if step is None else step * steps,
        "tokens_per_second": _median(series, "tokens_per_second"),
        "mfu": _median(series, "mfu"),
    }
    size, tokens = columns.get("active_non_embedding_params"), columns["tokens"]
    if size is not None and tokens is not None and size > 0:
        columns["tokens_per_param"] = tokens / size
    columns |= _energy_columns(series, steps, settings.section("log"))
    for name in ("prefill_tokens_per_second", "decode_ms_per_token"):
        columns[name] = _longest_context(scores, name)
    columns["measured_state_bytes"] = _longest_context(scores, "state_bytes")
    return {k: v for k, v in columns.items() if v is not None and math.isfinite(v)}


def count_skipped_updates(series: list[CheckedFields]) -> int:
    """Returns how many updates were not applied (`optimizer.on_nonfinite`, `spike_sigma`).

    A row has the mean over the steps since the row before.
    """
    total, before = 0.0, 0
    for row in series:
        step, share = row.count("step") or 0, row.nonnegative("skipped")
        if share is not None:
            total += share * (step - before)
            before = step
    return round(total)


def _elementwise_flops(cost: CheckedFields) -> float:
    """Returns the FLOPs per token of the terms that are no matrix products."""
    terms = cost.section("terms")
    sections = [terms.section(name) for name in terms.tree]
    return sum(term.nonnegative("model") or 0.0 for term in sections if term.boolean("elementwise"))


def _energy_columns(
    series: list[CheckedFields], steps: float, log: CheckedFields
) -> dict[str, float | None]:
    """Returns joules, of which one kind is known, and grams of CO2 at the factor of the settings.

    Steps of a run that were measured in part and estimated in part count as estimated.
    """
    values = [value for row in series if (value := read_step_joules(row)) is not None]
    if not values:
        return {}
    is_estimated = any(ESTIMATED_JOULES in row.tree for row in series)
    joules, factor = statistics.median(values) * steps, log.nonnegative("co2_grams_per_kwh")
    return {
        "estimated_joules" if is_estimated else "joules": joules,
        "co2_grams": None if factor is None else joules / JOULES_PER_KWH * factor,
    }


def read_step_joules(row: CheckedFields) -> float | None:
    """Returns the joules of a step in a row of the log, measured or estimated; None: not logged."""
    names = (name for name in (MEASURED_JOULES, ESTIMATED_JOULES) if name in row.tree)
    return next((row.nonnegative(name) for name in names), None)


def _last_value(series: list[CheckedFields], name: str) -> float | None:
    return next((row.nonnegative(name) for row in reversed(series) if name in row.tree), None)


def _median(series: list[CheckedFields], name: str) -> float | None:
    values = [v for row in series if name in row.tree and (v := row.nonnegative(name)) is not None]
    return statistics.median(values) if values else None


def _longest_context(scores: Scores, name: str) -> float | None:
    """Returns the score `name@CONTEXT` of the longest context, or the score `name` itself."""
    by_context = {0: scores[name][0]} if name in scores else {}
    for key, (value, _) in scores.items():
        base, _, context = key.partition("@")
        if base == name and is_digits(context):
            by_context[int(context)] = value
    return by_context[max(by_context)] if by_context else None


def learning_curve_metric(series: list[CheckedFields]) -> str:
    """Returns the name of the metric whose curve is shown; blank if the run logs none."""
    return next((name for name in CURVE_METRICS if any(name in row.tree for row in series)), "")


def learning_curve(series: list[CheckedFields]) -> tuple[tuple[float, float], ...]:
    """Returns at most `MAX_CURVE_POINTS` points (tokens, loss), always with the last one."""
    name = learning_curve_metric(series)
    points = []
    for row in series:
        x, y = row.nonnegative("tokens"), row.number(name) if name else None
        if x is not None and y is not None and math.isfinite(y):
            points.append((x, y))
    stride = max(1, math.ceil(len(points) / MAX_CURVE_POINTS))
    return tuple(points[::-1][::stride][::-1])


def late_scores(
    series: list[CheckedFields], steps: int
) -> dict[str, tuple[tuple[float, float], ...]]:
    """Returns the points (step, score) of the validation scores of the last steps of a run.

    A run logs them during training where `eval.every` is set.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for row in series:
        step = row.count("step") or 0
        if step < (1 - LATE_SHARE) * steps:
            continue
        for name in row.tree:
            # The label of the part of a split is a text.
            if not name.startswith(VALIDATION_PREFIX) or row.is_text(name):
                continue
            value = row.number(name)
            if value is not None and math.isfinite(value):
                points.setdefault(sanitize(name, 80), []).append((float(step), value))
    return {name: tuple(values[-MAX_LATE_SCORES:]) for name, values in points.items()}
