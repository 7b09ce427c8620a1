"""Verdicts: what the runs of the declared comparisons support, as data and as one sentence each.

Claims of a difference and ties are each adjusted over all declared comparisons (Holm). The
probability of any false claim among them is therefore at most 5 %, and so is that of any false tie.
A tie is a claim of its own (TOST inside the margin). Without a claim of either kind, candidates are
"not distinguishable". Intervals are not adjusted: each holds for one comparison on its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from errors import ConfigError, DataError
from protocol.records.metrics import Direction
from protocol.statistics.hypothesis_tests import (
    Difference,
    Interval,
    can_pool,
    holm,
    mean_interval,
    pooled_difference,
    pooled_sigma,
    rate_interval,
    welch,
)
from settings.types import did_you_mean

MIN_RANKED_RUNS = 3  # Runs that a rank needs.
CLAIM_KINDS = ("lower", "higher", "equivalent", "inconclusive")  # Kinds that describe a difference.

VerdictKind = Literal[
    "lower",
    "higher",
    "equivalent",
    "inconclusive",
    "no_variance",
    "too_few_runs",
    "diverged",
    "duplicate",
]


@dataclass(frozen=True)
class CandidateSample:
    """The runs of a candidate: the scores of its finished runs, and how many runs diverged."""

    name: str
    values: tuple[float, ...]
    n_diverged: int = 0
    digest: str = ""  # Hash of the settings without name and seed; duplicates have the same.
    planned_runs: int = 0  # The candidate is not ranked before all planned runs have ended.

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.values)):
            raise DataError(
                f"{self.name} has the values {self.values}, must be finite; use `make_sample`, "
                "which counts other runs as diverged"
            )

    @property
    def n_runs(self) -> int:
        """The number of finished and diverged runs."""
        return len(self.values) + self.n_diverged

    @property
    def required_runs(self) -> int:
        """The number of runs that a rank needs."""
        return max(MIN_RANKED_RUNS, self.planned_runs)

    @property
    def mean(self) -> float | None:
        """The mean score; None if there is no run, or one diverged (then a rate is reported)."""
        return None if self.n_diverged or not self.values else float(np.mean(self.values))

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the mean; None if there is no mean or no variance."""
        return None if self.n_diverged else mean_interval(self.values)

    @property
    def divergence_interval(self) -> Interval:
        """The 95 % interval of the rate of diverged runs."""
        return rate_interval(self.n_diverged, self.n_runs)


def make_sample(name: str, values: Sequence[float], digest: str = "") -> CandidateSample:
    """Returns the sample of all runs; a value that is not finite is a diverged run."""
    finite = tuple(float(x) for x in values if math.isfinite(x))
    return CandidateSample(name, finite, len(values) - len(finite), digest)


class MetricSpec(NamedTuple):
    """The metric of a comparison."""

    unit: str = "bits per byte"
    margin: float = 0.0  # Margin of practical equivalence; 0: none was declared.
    better: Direction = "lower"


@dataclass(frozen=True)
class Verdict:
    """The result of one comparison, a minus b."""

    a: CandidateSample
    b: CandidateSample
    kind: VerdictKind
    metric: MetricSpec
    scope: str
    level: float = 0.95
    difference: Difference | None = None  # None: a candidate has a single run, or one diverged.
    p: float = 1.0  # Adjusted by Holm.
    equivalence_p: float = 1.0  # Adjusted by Holm.
    critical_difference: float = math.inf  # The smallest claimable difference.
    is_declared: bool = True  # False: not declared before the runs, so it is exploratory.

    @property
    def sentence(self) -> str:
        """The verdict as one sentence, without a full stop."""
        text = _SENTENCES[self.kind](self)
        return text if self.is_declared or self.kind not in CLAIM_KINDS else f"exploratory: {text}"

    def winner(self) -> str | None:
        """Returns the name of the candidate that is shown to be better, if any."""
        if self.kind not in ("lower", "higher"):
            return None
        return self.a.name if self.kind == self.metric.better else self.b.name


def compare_candidates(
    samples: Sequence[CandidateSample],
    comparisons: Sequence[tuple[str, str]],
    metric: MetricSpec,
    *,
    level: float = 0.95,
    scope: str = "at this N and D",
    n_other_comparisons: int = 0,
    margins: Sequence[float] = (),
    differences: Sequence[Difference] = (),
) -> list[Verdict]:
    """Returns a verdict for each comparison; all of them count in the adjustment.

    Args:
        samples: the candidates; names must be unique.
        comparisons: pairs of names, which all count in the Holm adjustment.
        metric: the metric of the values.
        level: the level of intervals; claims are made at 1 - level.
        scope: text that limits the claim, such as "at this N and D".
        n_other_comparisons: comparisons of other samples that the same plan declares; they count
            in the adjustment too.
        margins: the margin of each comparison, where it is not the metric's.
        differences: the difference of each comparison, where it is not that of the means.
    """
    by_name = _check_comparisons(samples, comparisons)
    pairs = [(by_name[a], by_name[b]) for a, b in comparisons]
    used = [*differences] or _differences(pairs, samples)
    metrics = [metric._replace(margin=m) for m in margins or [metric.margin] * len(comparisons)]
    raw_p = [1.0 if d is None else float(d.p) for d in used]
    raw_equivalence_p = [
        1.0 if d is None or not m.margin else float(d.equivalence_p(m.margin))
        for d, m in zip(used, metrics, strict=True)
    ]
    padding = [1.0] * n_other_comparisons
    adjusted, adjusted_equivalence = (
        holm(np.array([*p, *padding])).tolist() for p in (raw_p, raw_equivalence_p)
    )
    count = len(comparisons)
    return [
        Verdict(
            *(a, b, _verdict_kind(a, b, d, p, tie, 1 - level), m, scope, level, d, p, tie),
            math.inf
            if d is None or not d.standard_error
            else float(d.critical_difference(count + n_other_comparisons, 1 - level)),
        )
        for (a, b), m, d, p, tie in zip(
            *(pairs, metrics, used, adjusted[:count], adjusted_equivalence[:count]), strict=True
        )
    ]


def compute_ranks(
    samples: Sequence[CandidateSample], verdicts: Sequence[Verdict]
) -> dict[str, int | None]:
    """Returns the rank of each candidate: 1 + the number of candidates shown to be better.

    Candidates that are not distinguishable share a rank. A candidate with a diverged run, or with
    fewer runs than a rank needs, has None.
    """
    losses = {s.name: 0 for s in samples}
    for verdict in verdicts:
        if (winner := verdict.winner()) is not None:
            losses[verdict.b.name if winner == verdict.a.name else verdict.a.name] += 1
    return {
        s.name: None if s.n_diverged or s.n_runs < s.required_runs else 1 + losses[s.name]
        for s in samples
    }


def _check_comparisons(
    samples: Sequence[CandidateSample], comparisons: Sequence[tuple[str, str]]
) -> Mapping[str, CandidateSample]:
    """Returns the samples by name.

    Raises:
        ConfigError: if names are not unique, or a comparison is not of two of the samples.
    """
    by_name = {s.name: s for s in samples}
    if len(by_name) < len(samples):
        raise ConfigError(f"two samples share a name among {sorted(s.name for s in samples)}")
    for pair in comparisons:
        for name in pair:
            if name not in by_name:
                raise ConfigError(
                    f"the comparison {pair} names {name!r}; {did_you_mean(name, by_name)}"
                )
    unordered = {frozenset(pair) for pair in comparisons}
    if len(unordered) < len(comparisons) or any(len(pair) < 2 for pair in unordered):
        raise ConfigError(f"comparisons {list(comparisons)} must be of two candidates, each once")
    if not comparisons:
        raise ConfigError("no comparison is declared; name pairs of candidates")
    return by_name


def _differences(
    pairs: Sequence[tuple[CandidateSample, CandidateSample]], samples: Sequence[CandidateSample]
) -> list[Difference | None]:
    """Returns differences with one pooled sigma if the spreads allow it, else Welch's."""
    groups = [np.array(s.values) for s in samples if not s.n_diverged and len(s.values) > 1]
    is_pooled = len(groups) > 1 and bool(can_pool(groups))
    differences: list[Difference | None] = []
    for a, b in pairs:
        x, y = np.array(a.values), np.array(b.values)
        if a.n_diverged or b.n_diverged or min(x.size, y.size) < 2:
            differences.append(None)
        elif is_pooled:
            differences.append(pooled_difference(x, y, *pooled_sigma(groups)))
        else:
            differences.append(welch(x, y))
    return differences


def _verdict_kind(
    a: CandidateSample,
    b: CandidateSample,
    difference: Difference | None,
    p: float,
    tie: float,
    alpha: float,
) -> VerdictKind:
    if a.digest and a.digest == b.digest:
        return "duplicate"
    if a.n_diverged or b.n_diverged:
        return "diverged"
    if difference is None or a.n_runs < a.required_runs or b.n_runs < b.required_runs:
        return "too_few_runs"
    if not difference.standard_error:
        return "no_variance"
    if tie <= alpha:
        return "equivalent"
    if p > alpha:
        return "inconclusive"
    return "lower" if difference.mean < 0 else "higher"


def _different(v: Verdict) -> str:
    mean, half = _mean_and_half_width(v)
    size = f"{_round_to_scale(abs(mean), half)} +- {_round_to_scale(half, half)}"
    return (
        f"{v.a.name} has {v.kind} {v.metric.unit} than {v.b.name}, by {size} {v.scope} "
        f"({_format_basis(v)}), Holm p{_format_p(v.p)}"
    )


def _equivalent(v: Verdict) -> str:
    margin = f"{_round_to_scale(v.metric.margin, v.metric.margin)} {v.metric.unit}"
    return (
        f"{v.a.name} and {v.b.name} are equivalent within {margin} {v.scope}: "
        f"{_format_difference(v)} ({_format_basis(v)}), TOST Holm p{_format_p(v.equivalence_p)}"
    )


def _inconclusive(v: Verdict) -> str:
    return (
        f"{v.a.name} and {v.b.name} are not distinguishable at n={_format_runs(v)} {v.scope}: "
        f"{_format_difference(v)} ({_format_basis(v)}), Holm p{_format_p(v.p)}; the smallest "
        f"claimable difference is {_round_to_scale(v.critical_difference, v.critical_difference)}"
    )


def _too_few_runs(v: Verdict) -> str:
    pair, runs = f"{v.a.name} and {v.b.name}", f"n={_format_runs(v)}"
    if v.difference is not None:
        return (
            f"{pair} are not ranked at {runs}, because a rank needs {_format_required_runs(v)}; "
            f"{v.scope}, {_format_difference(v)} ({_format_basis(v)})"
        )
    if v.a.mean is None or v.b.mean is None:
        return f"{pair} are not compared: {runs}"
    gap = v.a.mean - v.b.mean
    return (
        f"{pair} are not ranked at {runs}: they differ by {_round_to_scale(gap, gap)} "
        f"{v.metric.unit} {v.scope}, and one run has no interval"
    )


def _no_variance(v: Verdict) -> str:
    gap = float(v.difference.mean) if v.difference else math.nan
    return (
        f"{v.a.name} and {v.b.name} cannot be tested at n={_format_runs(v)} {v.scope}: the runs of "
        f"each candidate have the same score, so that no interval exists; their means differ by "
        f"{_round_to_scale(abs(gap), gap)} {v.metric.unit}"
    )


def _diverged(v: Verdict) -> str:
    rates = [
        f"{s.name} diverged in {s.n_diverged} of {s.n_runs} runs "
        f"({_format_rate_interval(s.divergence_interval)})"
        for s in (v.a, v.b)
        if s.n_diverged
    ]
    return (
        f"{' and '.join(rates)} {v.scope}; a candidate with a diverged run has a rate instead of a "
        "mean and is not ranked"
    )


def _duplicate(v: Verdict) -> str:
    return (
        f"{v.a.name} and {v.b.name} have the same settings: their difference is noise, and they "
        "are not ranked against each other"
    )


_SENTENCES = {
    "lower": _different,
    "higher": _different,
    "equivalent": _equivalent,
    "inconclusive": _inconclusive,
    "no_variance": _no_variance,
    "too_few_runs": _too_few_runs,
    "diverged": _diverged,
    "duplicate": _duplicate,
}


def _mean_and_half_width(v: Verdict) -> tuple[float, float]:
    """Returns the mean difference and half the width of its interval.

    Raises:
        DataError: if there is no interval.
    """
    if v.difference is None:
        raise DataError(f"{v.a.name} and {v.b.name} have no interval; add seeds")
    return float(v.difference.mean), float(v.difference.half_width(v.level))


def _format_difference(v: Verdict) -> str:
    mean, half = _mean_and_half_width(v)
    size = f"{_round_to_scale(mean, half)} +- {_round_to_scale(half, half)}"
    return f"the difference is {size} {v.metric.unit}"


def _format_basis(v: Verdict) -> str:
    method = v.difference.method if v.difference else ""
    return f"{100 * v.level:g} %, n={_format_runs(v)}, {method}"


def _format_runs(v: Verdict) -> str:
    return str(v.a.n_runs) if v.a.n_runs == v.b.n_runs else f"{v.a.n_runs} and {v.b.n_runs}"


def _format_required_runs(v: Verdict) -> str:
    a, b = v.a, v.b
    if a.required_runs == b.required_runs:
        return f"{a.required_runs} runs of each"
    return f"{a.required_runs} runs of {a.name} and {b.required_runs} of {b.name}"


def _format_rate_interval(interval: Interval) -> str:
    return f"95 %: {interval.low:.2f} to {interval.high:.2f}"


def _format_p(p: float) -> str:
    return "<0.001" if p < 0.001 else "=" + _round_to_scale(p, p)


def _round_to_scale(value: float, scale: float) -> str:
    """Rounds `value` to the second digit of `scale`."""
    places = 1 - math.floor(math.log10(abs(scale))) if scale else 2
    if not math.isfinite(value):
        return str(value)
    return f"{value:z.{max(places, 0)}f}"
