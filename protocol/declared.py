"""What a study declares before it runs: `study` in run.json, or in a result from elsewhere."""

from collections.abc import Iterable
from typing import NamedTuple

from protocol.untrusted import Fields

MOST_DECLARED = 10_000  # comparisons of a plan


class Study(NamedTuple):
    """Blank where nothing was declared."""

    plan: str = ""  # hash of the plan
    candidate: str = ""
    axis: str = ""  # what is equal: training_flops, tokens, params, active_params, ...
    value: float | None = None
    metric: str = ""
    better: str = ""  # "lower" or "higher"
    margin: float | None = None  # of practical equivalence
    trials: int | None = None  # of tuning
    role: str = ""  # "tuning": chosen from, never reported
    refutes: str = ""
    comparisons: tuple[tuple[str, str], ...] = ()  # pairs of candidates
    declared: int = 0  # comparisons of the whole plan, other sizes and objectives included
    seeds: tuple[int, ...] = ()  # of the runs that will be reported
    varies: tuple[str, ...] = ()  # settings of the objective that it compares
    curve: str = ""  # of several sizes at one budget, of which this is one; minima are compared


def study_of(study: Fields) -> Study:
    return Study(
        plan=study.text("plan"),
        candidate=study.text("candidate", 80),
        axis=study.text("axis", 40),
        value=study.amount("value"),
        metric=study.text("metric", 80),
        better=study.text("better", 20),
        margin=study.amount("margin"),
        trials=study.count("trials"),
        role=study.text("role", 20),
        refutes=study.text("refutes"),
        comparisons=tuple(study.pairs("comparisons", 80)),
        declared=min(study.count("declared") or 0, MOST_DECLARED),
        seeds=tuple(study.counts("seeds")),
        varies=tuple(study.texts("varies", 80)),
        curve=study.text("curve", 80),
    )


def counted(studies: Iterable[Study]) -> int:
    """Comparisons that the plans of these declare, together."""
    plans: dict[str, int] = {}
    for study in studies:
        plans[study.plan] = max(plans.get(study.plan, 0), study.declared)
    return min(sum(plans.values()), MOST_DECLARED)
