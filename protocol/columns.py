"""The columns of the board: what each is, in a newcomer's words, and how its numbers look."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from training.console import clock, human


def share(x: float) -> str:
    return f"{100 * x:.3g} %"


def size(x: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if x < 1024:
            return f"{x:.3g} {unit}"
        x /= 1024
    return f"{x:.3g} TiB"


def scientific(x: float) -> str:
    """Three digits: 1.25e15; small numbers plainly."""
    if not x or 0.01 <= abs(x) < 1e5:
        return f"{x:.3g}" if abs(x) < 1000 else f"{x:.0f}"
    mantissa, _, power = f"{x:.2e}".partition("e")
    return f"{mantissa}e{int(power)}"


def score(x: float) -> str:
    return f"{x:.4f}" if abs(x) < 1000 else f"{x:.4g}"


def duration(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else clock(seconds)


class Column(NamedTuple):
    label: str
    about: str
    text: Callable[[float], str]


COLUMNS: Mapping[str, Column] = {
    "params": Column("params", "Parameters of the model, all of them.", human),
    "active_params": Column("active", "Parameters that one token meets (MoE: fewer).", human),
    "training_flops": Column(
        "FLOPs",
        "Model FLOPs of the whole training, forward and backward, head included.",
        scientific,
    ),
    "executed_flops": Column(
        "executed",
        "FLOPs that really run: with padding, whole score matrices, what is computed again.",
        scientific,
    ),
    "head_share": Column("head", "Share of the model FLOPs that the output head takes.", share),
    "tokens": Column("tokens", "Tokens that were trained on, repetitions included.", human),
    "unique_tokens": Column("unique", "Different tokens among these.", human),
    "epochs": Column("epochs", "Times the training text was gone through.", lambda x: f"{x:.3g}"),
    "seconds": Column(
        "time", "Median step, waiting for data included, times steps; no compilation.", duration
    ),
    "tokens_per_second": Column("tok/s", "Training speed, median.", human),
    "mfu": Column("MFU", "FLOPs per second, none counted again, over the device's peak.", share),
    "peak_memory": Column("memory", "Most bytes that a device held while training.", size),
    "prefill_tokens_per_second": Column("prefill", "Tokens read per second at inference.", human),
    "decode_ms_per_token": Column(
        "decode", "Milliseconds for one generated token.", lambda x: f"{x:.3g} ms"
    ),
    "state_bytes": Column("state", "Bytes kept for one sequence while generating.", size),
    "state_measured": Column("held", "The same, measured in the arrays at the context.", size),
    "load_entropy": Column(
        "load", "Evenness of the experts' load: 1 is even (MoE).", lambda x: f"{x:.3f}"
    ),
    "dead_experts": Column("dead", "Share of experts that get no token (MoE).", share),
    "dropped": Column("drops", "Share of choices that found no room (MoE).", share),
}
AXES = {"wall_clock": "seconds", "time": "seconds"}  # axes that a column names otherwise
FRONTS = {"training_flops": "FLOPs", "seconds": "time", "state_bytes": "state"}


def shown(key: str, value: float | None) -> str:
    """A cell: blank for what is missing."""
    return "" if value is None or not math.isfinite(value) else COLUMNS[key].text(value)


def many(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")
