"""What a run logged, as the board uses it: its curve, and columns that are one number a run."""

import math
import statistics

from errors import DataError
from protocol.untrusted import Fields, rows

POINTS = 100  # of a curve
CURVES = ("bits_per_byte", "nats", "loss")  # the first that a run logs is its curve
LAST = {  # metric, as the last row has it: column
    "tokens": "tokens",
    "unique_tokens": "unique_tokens",
    "epochs": "epochs",
    "peak_memory": "peak_memory",
    "moe.load_entropy": "load_entropy",
    "moe.dead": "dead_experts",
    "moe.dropped": "dropped",
}
AMOUNTS = (  # columns
    *("params", "active_params", "training_flops", "executed_flops", "head_share", "tokens"),
    *("unique_tokens", "epochs", "seconds", "tokens_per_second", "mfu", "peak_memory"),
    *("prefill_tokens_per_second", "decode_ms_per_token", "state_bytes", "state_measured"),
    *("load_entropy", "dead_experts", "dropped"),
)
Scores = dict[str, tuple[float, int]]  # value and version of the task, by name


def rising(data: bytes) -> list[Fields]:
    """Metrics by step, rising: a row at an earlier step takes back what was beyond it."""
    series: list[tuple[int, Fields]] = []
    for row in rows(data, "metrics.jsonl"):
        step = row.count("step")
        if step is None:
            raise DataError(f"{row.name} has no step")
        while series and series[-1][0] > step:
            series.pop()
        if row.flag("resumed"):
            continue
        if series and series[-1][0] == step:
            same = series[-1][1].tree.get("attempt") == row.tree.get("attempt")
            old = series.pop()[1].tree if same else {}
            row = Fields(old | row.tree, row.name)
        series.append((step, row))
    return [row for _, row in series]


def amounts(
    cost: Fields, train: Fields, positions: float | None, series: list[Fields], scores: Scores
) -> dict[str, float]:
    """Columns that are one number a run; what is not known is left out.

    `positions` are those of the whole run, which cost what `cost` says of one.
    """
    last = {name: _last(series, name) for name in LAST}
    head = cost.section("terms").section("head.logits").amount("model")
    token, step = cost.amount("training_flops"), _median(series, "step_seconds")
    forward, executed = cost.amount("model_flops"), cost.amount("executed_training_flops")
    if executed is None and (once := cost.amount("executed_flops")) is not None:
        executed = 3 * once  # of runs that recorded but the forward pass
    found = {name: cost.amount(name) for name in ("params", "active_params", "state_bytes")}
    params, active, body = (cost.amount(f"{name}params") for name in ("", "active_", "body_"))
    if None not in (params, active, body):
        found["active_body_params"] = active - (params - body)  # type: ignore[operator]
    found |= {LAST[name]: value for name, value in last.items()}
    found |= {
        "training_flops": None if token is None or positions is None else token * positions,
        "executed_flops": None if executed is None or positions is None else executed * positions,
        "head_share": head / forward if head is not None and forward else None,
        "seconds": None if step is None else step * (train.amount("steps") or 0),
        "tokens_per_second": _median(series, "tokens_per_second"),
        "mfu": _median(series, "mfu"),
    }
    for name in ("prefill_tokens_per_second", "decode_ms_per_token"):
        found[name] = _longest(scores, name)
    found["state_measured"] = _longest(scores, "state_bytes")
    return {k: v for k, v in found.items() if v is not None and math.isfinite(v)}


def _last(series: list[Fields], name: str) -> float | None:
    return next((row.amount(name) for row in reversed(series) if name in row.tree), None)


def _median(series: list[Fields], name: str) -> float | None:
    values = [v for row in series if name in row.tree and (v := row.amount(name)) is not None]
    return statistics.median(values) if values else None


def _longest(scores: Scores, name: str) -> float | None:
    """The score `name@CONTEXT` of the longest context, or `name` itself."""
    found = {0: scores[name][0]} if name in scores else {}
    for key, (value, _) in scores.items():
        base, _, context = key.partition("@")
        if base == name and context.isascii() and context.isdigit() and len(context) < 12:
            found[int(context)] = value
    return found[max(found)] if found else None


def curve_name(series: list[Fields]) -> str:
    return next((name for name in CURVES if any(name in row.tree for row in series)), "")


def curve(series: list[Fields]) -> tuple[tuple[float, float], ...]:
    name = curve_name(series)
    points = []
    for row in series:
        x, y = row.amount("tokens"), row.number(name) if name else None
        if x is not None and y is not None and math.isfinite(y):
            points.append((x, y))
    every = max(1, math.ceil(len(points) / POINTS))
    return tuple(points[::-1][::every][::-1])
