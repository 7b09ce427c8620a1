"""What a sweep records of its trials, and whether a choice follows from them.

A sweep has a rate, the other settings and a score for each trial: `learning_rates`, `trials` (blank
for a grid of rates) and `scores`, in the same order. sweep.json and plan.json have it as "curve".
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from protocol.records.safe_read import CheckedFields, flatten

LEARNING_RATE = "optimizer.learning_rate"
BATCH_SIZE = "train.batch_size"
# Settings that follow from another tuned one, so that a search does not declare them.
DERIVED_SETTINGS = ("train.steps",)
RATE_TOLERANCE = 1e-9
MAX_TRIALS = 256  # Trials of a sweep; the memory of their statistics grows with the square.


class TrialRecord(NamedTuple):
    """A trial of a recorded sweep."""

    name: str  # Blank for a rate of a grid.
    learning_rate: float | None
    overrides: Mapping[str, str]  # Other settings of the trial, by dotted key.
    score: float | None  # Mean over the tuning seeds; None: a seed diverged.


def read_trials(curve: CheckedFields) -> list[TrialRecord]:
    """Returns the trials of a recorded sweep; none if it is incomplete, or has too many."""
    rates, scores = curve.numbers("learning_rates"), curve.numbers("scores")
    others = curve.objects("trials")
    is_complete = all(rate is not None and math.isfinite(rate) for rate in rates)
    is_complete &= len(rates) == len(scores) and len(others) in (0, len(rates))
    if not is_complete or len(rates) > MAX_TRIALS:
        return []
    scores = [score if score is not None and math.isfinite(score) else None for score in scores]
    names = [trial.text("name", 80) for trial in others] or [""] * len(rates)
    overrides = [flatten(trial.section("overrides").tree) for trial in others]
    return [
        TrialRecord(name, rate, settings, score)
        for name, rate, settings, score in zip(
            names, rates, overrides or [{}] * len(rates), scores, strict=True
        )
    ]


def find_choice_problem(
    trials: Sequence[TrialRecord], rate: float | None, overrides: Mapping[str, str], better: str
) -> str:
    """Returns why a choice is not the best of its recorded trials; blank if it is, or none is."""
    scored = [trial for trial in trials if trial.score is not None]
    if not scored or rate is None:
        return ""
    best = best_trial(scored, better)
    is_best = math.isclose(best.learning_rate or 0.0, rate, rel_tol=RATE_TOLERANCE)
    if best.name and not (is_best and dict(overrides) == dict(best.overrides)):
        return f"its settings are not those of the best trial of its recorded search, {best.name}"
    if is_best:
        return ""
    return (
        f"its learning rate {rate:g} is not the optimum of its recorded sweep, "
        f"{best.learning_rate:g}"
    )


def best_trial(trials: Sequence[TrialRecord], better: str) -> TrialRecord:
    """Returns the trial with the best score, of trials that have one; the first of equal ones."""
    sign = -1 if better == "higher" else 1
    return min(trials, key=lambda trial: math.inf if trial.score is None else sign * trial.score)


def find_trials_problem(
    trials: Sequence[TrialRecord], declared: Sequence[tuple[str, Mapping[str, str]]]
) -> str:
    """Returns why the trials that ran are not those that a plan declares; blank if they are."""
    if len(trials) != len(declared):
        return f"it had {len(trials)} tuning trials, its plan declares a search of {len(declared)}"
    for trial, (name, settings) in zip(trials, declared, strict=True):
        ran = {k: v for k, v in trial.overrides.items() if k not in DERIVED_SETTINGS}
        others = {k: v for k, v in settings.items() if k != LEARNING_RATE}
        rate = _number_of(settings.get(LEARNING_RATE, str(trial.learning_rate)))
        if trial.name != name or ran != others or rate != trial.learning_rate:
            return f"its tuning trial {trial.name} is not {name} of the search of its plan"
    return ""


def find_edges(trials: Sequence[TrialRecord], best: TrialRecord) -> dict[str, str]:
    """Returns the tuned settings of which no trial has a lower, or higher, value than the best.

    The value is "lowest" or "highest". Settings that are no numbers, or do not vary, have no ends.
    """
    edges = {}
    for key in (LEARNING_RATE, *best.overrides):
        values = [_number(trial, key) for trial in trials]
        value, numbers = _number(best, key), [x for x in values if x is not None]
        if value is None or len(numbers) < len(trials) or min(numbers) == max(numbers):
            continue
        if value in (min(numbers), max(numbers)) and key not in DERIVED_SETTINGS:
            edges[key] = "lowest" if value == min(numbers) else "highest"
    return edges


def describe_edges(name: str, trials: Sequence[TrialRecord], best: TrialRecord) -> list[str]:
    """Returns a line if the best trial is at an end of what was tried; `name` is the candidate."""
    edges = find_edges(trials, best)
    if not edges:
        return []
    ends = " and ".join(f"the {end} {key} tried ({_text(best, key)})" for key, end in edges.items())
    return [
        f"{name}: the best of its {len(trials)} tuning trials has {ends}, so that a better setting "
        "may lie outside; widen the range"
    ]


def _text(trial: TrialRecord, key: str) -> str:
    return f"{trial.learning_rate:.4g}" if key == LEARNING_RATE else trial.overrides[key]


def _number(trial: TrialRecord, key: str) -> float | None:
    return trial.learning_rate if key == LEARNING_RATE else _number_of(trial.overrides.get(key, ""))


def _number_of(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
