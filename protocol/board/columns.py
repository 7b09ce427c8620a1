"""The columns of the board: the label, the description and the number format of each."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from formatting import format_bytes, format_percent, format_scientific, format_si


def format_score(x: float) -> str:
    """Returns a score with four decimals; large ones with four digits."""
    return f"{x:.4f}" if abs(x) < 1000 else f"{x:.4g}"


def format_seconds(seconds: float) -> str:
    """Returns a duration in its two largest units: 2.5 s, 16 s, 4 min 10 s, 3 h 5 min."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, s = divmod(round(seconds), 60)
    if not minutes:
        return f"{s} s"
    hours, m = divmod(minutes, 60)
    return f"{hours:,} h {m} min" if hours else f"{m} min {s} s"


def format_joules(joules: float) -> str:
    """Returns an energy in joules, from 1,000 kJ on in kWh."""
    kwh = joules / 3.6e6
    return f"{kwh:,.3g} kWh" if joules >= 1e6 else format_si(joules, "J")


def format_grams(grams: float) -> str:
    """Returns a mass in grams, from 1,000 g on in kg."""
    return f"{grams:.2g} g" if grams < 1000 else f"{grams / 1000:,.3g} kg"


def _format_plain(x: float) -> str:
    return f"{x:.3g}"


class Column(NamedTuple):
    """A column of costs."""

    label: str
    description: str
    format_value: Callable[[float], str]


COLUMNS: Mapping[str, Column] = {
    "params": Column("params", "All parameters of the model.", format_si),
    "active_params": Column(
        "active params", "Parameters that one token uses (fewer in an MoE).", format_si
    ),
    "training_flops": Column(
        "FLOPs",
        "Model FLOPs of the whole training: forward and backward, with the output head.",
        format_scientific,
    ),
    "executed_flops": Column(
        "executed FLOPs",
        "FLOPs that are executed: with padding, full score matrices and recomputation.",
        format_scientific,
    ),
    "head_share": Column(
        "head share", "Share of the output head in the model FLOPs.", format_percent
    ),
    "elementwise_share": Column(
        "elementwise share",
        "Share of elementwise work (scans, convolutions) in the model FLOPs. Norms, softmax, "
        "rotary encodings, activations and embedding lookups count as 0.",
        format_percent,
    ),
    "study_flops": Column(
        "study FLOPs",
        "Model FLOPs of the whole study: tuning, noise floor, failed runs, evaluation and results.",
        format_scientific,
    ),
    "study_seconds": Column(
        "study time", "Seconds of the whole study, without compilation.", format_seconds
    ),
    "study_joules": Column(
        "study energy",
        "Energy of the whole study, measured or estimated; of evaluation at the power of training.",
        format_joules,
    ),
    "tokens": Column("tokens", "Training tokens, with repetitions.", format_si),
    "tokens_per_param": Column(
        "tokens/param",
        "Training tokens over active parameters without embedding and head.",
        _format_plain,
    ),
    "unique_tokens": Column("unique tokens", "Training tokens, without repetitions.", format_si),
    "epochs": Column("epochs", "Passes over the training text.", _format_plain),
    "seconds": Column(
        "time",
        "Median time of a step, with waiting for data, times the steps; without compilation.",
        format_seconds,
    ),
    "joules": Column(
        "energy",
        "Joules of training, measured by counters (RAPL, NVML) that count all programs on the "
        "machine; median of a step times the steps.",
        format_joules,
    ),
    "estimated_joules": Column(
        "energy (estimate)",
        "Joules of training, estimated from the power of the devices and of the processor cores, "
        "times time.",
        format_joules,
    ),
    "co2_grams": Column(
        "CO2", "CO2 of that energy, at the grams per kWh that the settings state.", format_grams
    ),
    "tokens_per_second": Column("tok/s", "Median training speed.", format_si),
    "mfu": Column(
        "MFU",
        "Model FLOPs per second, without recomputation, as a share of the device's peak.",
        format_percent,
    ),
    "peak_memory": Column("memory", "Peak memory of a device during training.", format_bytes),
    "prefill_tokens_per_second": Column(
        "prefill", "Tokens read per second at inference.", format_si
    ),
    "decode_ms_per_token": Column(
        "decode", "Milliseconds per generated token.", lambda x: f"{_format_plain(x)} ms"
    ),
    "decode_flops": Column(
        "decode FLOPs",
        "Model FLOPs of generating one token at the end of a row of the training length.",
        format_scientific,
    ),
    "state_bytes": Column(
        "state",
        "Bytes that generation stores for one sequence of the training length, computed from the "
        "settings.",
        format_bytes,
    ),
    "measured_state_bytes": Column(
        "measured state",
        "Bytes that generation stores for one sequence, measured at the longest context.",
        format_bytes,
    ),
    "load_entropy": Column(
        "expert balance",
        "Entropy of the experts' load over its maximum; 1 is perfectly even (MoE).",
        lambda x: f"{x:.3f}",
    ),
    "dead_experts": Column(
        "dead experts", "Share of experts that receive no token (MoE).", format_percent
    ),
    "dropped_tokens": Column(
        "dropped tokens",
        "Share of (token, expert) choices that exceeded the capacity of an expert (MoE).",
        format_percent,
    ),
}
AXIS_LABELS = {
    "training_flops": "training FLOPs",
    "tokens": "training tokens",
    "unique_tokens": "unique training tokens",
    "active_params": "active parameters",
    "params": "parameters",
    "state_bytes": "bytes of decoding state",
    "wall_clock": "seconds of training",
    "decode": "FLOPs of generating a token",
}
# Axes whose column has another name.
AXIS_COLUMN_ALIASES = {
    **{"wall_clock": "seconds", "time": "seconds"},
    "decode": "decode_flops",
}
MAX_LISTED = 6  # Rows, settings or sentences that are listed.
TIME_COLUMNS = ("seconds", "decode_ms_per_token")  # Columns that are properties of a machine.
PARETO_COSTS = {"training_flops": "FLOPs", "seconds": "time", "state_bytes": "state"}


def format_cell(key: str, value: float | None) -> str:
    """Returns the text of a cell; a missing value is blank."""
    return "" if value is None or not math.isfinite(value) else COLUMNS[key].format_value(value)


def pluralize(count: int, noun: str) -> str:
    """Returns a count with its noun, in the plural unless it is 1."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def join_names(names: list[str]) -> str:
    """Returns names as a list in words; of many, the first ones and the number of the others."""
    listed = names
    if len(names) > MAX_LISTED:
        listed = [*names[: MAX_LISTED - 1], f"{len(names) - MAX_LISTED + 1} others"]
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"


def metric_label(metric: str) -> str:
    """Returns the label of a metric: "bits per byte on test" for test/bits_per_byte."""
    split, _, name = metric.rpartition("/")
    return name.replace("_", " ") + (f" on {split}" if split else "")
