"""Verdicts: what the runs of the declared comparisons support, as data and as one sentence each.

Claims of a difference and ties are each adjusted over all declared comparisons (Holm). The
probability of any false claim among them is therefore at most 5 %, and so is that of any false tie.
A tie is a claim of its own (TOST inside the margin). Without a claim of either kind, candidates are
"not distinguishable". The interval of a sentence is that of its own test: its level is the one at
which Holm's procedure tests the comparison, so that it excludes 0 exactly if there is a claim.
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
    can_pool,
    holm,
    holm_levels,
    paired_difference,
    pooled_difference,
    pooled_sigma,
    welch,
)
from protocol.statistics.sample import CandidateSample
from settings.types import did_you_mean

CLAIM_KINDS = ("lower", "higher", "equivalent", "inconclusive")  # Kinds that describe a difference.
RANKING_KINDS = (*CLAIM_KINDS, "no_variance")  # Kinds of pairs that were compared.

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
    level: float = 0.95  # Level of the interval that the sentence prints.
    difference: Difference | None = None  # None: a candidate has a single run, or one diverged.
    p: float = 1.0  # Adjusted by Holm.
    equivalence_p: float = 1.0  # Adjusted by Holm.
    critical_difference: float = math.inf  # The smallest claimable difference.
    is_declared: bool = True  # False: not declared before the runs, so it is exploratory.
    n_comparisons: int = 1  # Comparisons for which p and the interval are adjusted.
    alpha: float = 0.05  # Level at which p is tested.
    remark: str = ""  # What a second fit says of the same comparison.

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval of the sentence; None if there is no interval."""
        if self.difference is None:
            return None
        return float(self.difference.claim_half_width(self.level))

    @property
    def sentence(self) -> str:
        """The verdict as one sentence, without a full stop."""
        text = _SENTENCES[self.kind](self) + f"; {self.remark}" * bool(self.remark)
        return text if self.is_declared or self.kind not in CLAIM_KINDS else f"exploratory: {text}"

    def winner(self) -> str | None:
        """Returns the name of the candidate that is shown to be better, if any."""
        if self.kind not in ("lower", "higher"):
            return None
        return self.a.name if self.kind == self.metric.better else self.b.name

    def defeat(self) -> tuple[str, str] | None:
        """Returns the names of the better and the worse candidate, if that is shown."""
        if (winner := self.winner()) is None:
            return None
        return winner, self.b.name if winner == self.a.name else self.a.name


def compare_candidates(
    samples: Sequence[CandidateSample],
    comparisons: Sequence[tuple[str, str]],
    metric: MetricSpec,
    *,
    alpha: float = 0.05,
    scope: str = "at this N and D",
    n_other_comparisons: int = 0,
    margins: Sequence[float] = (),
    differences: Sequence[Difference] = (),
    is_paired: bool = False,
) -> list[Verdict]:
    """Returns a verdict for each comparison; all of them count in the adjustment.

    Args:
        samples: the candidates; names must be unique.
        comparisons: pairs of names, which all count in the Holm adjustment.
        metric: the metric of the values.
        alpha: the probability of any false claim that is permitted.
        scope: text that limits the claim, such as "at this N and D".
        n_other_comparisons: comparisons of other samples that the same plan declares; they count
            in the adjustment too.
        margins: the margin of each comparison, where it is not the metric's.
        differences: the difference of each comparison, where it is not that of the means.
        is_paired: whether runs with the same seed are compared with each other, which the study
            declares; candidates must then have the same seeds.
    """
    by_name = _check_comparisons(samples, comparisons)
    pairs = [(by_name[a], by_name[b]) for a, b in comparisons]
    used = [*differences] or _differences(pairs, samples, is_paired)
    metrics = [metric._replace(margin=m) for m in margins or [metric.margin] * len(comparisons)]
    raw_p = [1.0 if d is None else float(d.p) for d in used]
    raw_equivalence_p = [
        1.0 if d is None or not m.margin else float(d.equivalence_p(m.margin))
        for d, m in zip(used, metrics, strict=True)
    ]
    padding = [1.0] * n_other_comparisons
    p, tie_p = (np.array([*raw, *padding]) for raw in (raw_p, raw_equivalence_p))
    levels, tie_levels = holm_levels(p, alpha), holm_levels(tie_p, alpha)
    adjusted, adjusted_ties = holm(p), holm(tie_p)
    verdicts = []
    for i, ((a, b), m, d) in enumerate(zip(pairs, metrics, used, strict=True)):
        kind = _verdict_kind(a, b, d, float(adjusted[i]), float(adjusted_ties[i]), alpha)
        verdict = Verdict(
            *(a, b, kind, m, scope),
            # A tie at level x is the interval of level 1 - 2 x inside the margin.
            level=float(1 - 2 * tie_levels[i] if kind == "equivalent" else 1 - levels[i]),
            difference=d,
            p=float(adjusted[i]),
            equivalence_p=float(adjusted_ties[i]),
            critical_difference=_critical_difference(d, p.size, alpha),
            n_comparisons=p.size,
            alpha=alpha,
        )
        verdicts.append(verdict)
    return verdicts


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


def _critical_difference(difference: Difference | None, n_comparisons: int, alpha: float) -> float:
    if difference is None or not difference.standard_error:
        return math.inf
    return float(difference.critical_difference(n_comparisons, alpha))


def _differences(
    pairs: Sequence[tuple[CandidateSample, CandidateSample]],
    samples: Sequence[CandidateSample],
    is_paired: bool,
) -> list[Difference | None]:
    """Returns paired differences, or with one pooled sigma if the spreads allow it, else Welch's.

    Raises:
        ConfigError: if a paired comparison is of candidates with other seeds.
    """
    groups = [np.array(s.values) for s in samples if not s.n_diverged and len(s.values) > 1]
    is_pooled = len(groups) > 1 and bool(can_pool(groups))
    differences: list[Difference | None] = []
    for a, b in pairs:
        x, y = np.array(a.values), np.array(b.values)
        if a.n_diverged or b.n_diverged or min(x.size, y.size) < 2:
            differences.append(None)
        elif is_paired:
            differences.append(paired_difference(*_align_by_seed(a, b)))
        elif is_pooled:
            differences.append(pooled_difference(x, y, *pooled_sigma(groups)))
        else:
            differences.append(welch(x, y))
    return differences


def _align_by_seed(a: CandidateSample, b: CandidateSample) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values of two candidates in the order of their common seeds.

    Raises:
        ConfigError: if the candidates do not have the same seeds.
    """
    if not a.seeds or sorted(a.seeds) != sorted(b.seeds):
        raise ConfigError(
            f"{a.name} has the seeds {list(a.seeds)} and {b.name} {list(b.seeds)}, must be the "
            "same for a paired comparison; run the missing ones"
        )
    ordered = (dict(sorted(zip(s.seeds, s.values, strict=True))) for s in (a, b))
    x, y = (np.array([*values.values()]) for values in ordered)
    return x, y


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
        f"{v.a.name} and {v.b.name} are equivalent within {margin} {v.scope}{_inside(v)}: "
        f"{_format_difference(v)} ({_format_basis(v)}), TOST Holm p{_format_p(v.equivalence_p)}"
    )


def _inside(v: Verdict) -> str:
    """Returns what is shown of a difference inside the margin; blank if nothing is."""
    if v.difference is None or v.p > v.alpha:
        return ""
    lower = v.a.name if v.difference.mean < 0 else v.b.name
    return f", although {lower} has lower {v.metric.unit} (Holm p{_format_p(v.p)})"


def _inconclusive(v: Verdict) -> str:
    return (
        f"{v.a.name} and {v.b.name} are not distinguishable at {_format_count(v)} {v.scope}: "
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
        f"{s.name} diverged in {s.n_diverged} of {s.n_runs} runs (95 %: "
        f"{s.divergence_interval.low:.2f} to {s.divergence_interval.high:.2f})"
        for s in (v.a, v.b)
        if s.n_diverged
    ]
    return (
        f"{' and '.join(rates)} {v.scope}; a candidate with a diverged run has a rate instead of a "
        "mean and is not ranked"
    )


def _duplicate(v: Verdict) -> str:
    if v.a.values and v.a.values == v.b.values:
        return (
            f"{v.a.name} and {v.b.name} have the same results to the last digit: nothing reads the "
            "settings in which they differ, and they are not ranked against each other"
        )
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
    return float(v.difference.mean), v.half_width or 0.0


def _format_difference(v: Verdict) -> str:
    mean, half = _mean_and_half_width(v)
    size = f"{_round_to_scale(mean, half)} +- {_round_to_scale(half, half)}"
    return f"the difference is {size} {v.metric.unit}"


def _format_basis(v: Verdict) -> str:
    method = v.difference.method if v.difference else ""
    adjusted = f", adjusted for {v.n_comparisons} comparisons" * (v.n_comparisons > 1)
    return f"{100 * v.level:.3g} %{adjusted}, {_format_count(v)}, {method}"


def _format_count(v: Verdict) -> str:
    """Returns how many runs were compared, or through how many sizes each curve was fitted."""
    sizes = " and ".join(map(str, sorted({v.a.n_sizes, v.b.n_sizes})))
    return f"{sizes} sizes of each" if v.a.n_sizes else f"n={_format_runs(v)}"


def _format_runs(v: Verdict) -> str:
    return str(v.a.n_runs) if v.a.n_runs == v.b.n_runs else f"{v.a.n_runs} and {v.b.n_runs}"


def _format_required_runs(v: Verdict) -> str:
    a, b = v.a, v.b
    if a.required_runs == b.required_runs:
        return f"{a.required_runs} runs of each"
    return f"{a.required_runs} runs of {a.name} and {b.required_runs} of {b.name}"


def _format_p(p: float) -> str:
    return "<0.001" if p < 0.001 else "=" + _round_to_scale(p, p)


def _round_to_scale(value: float, scale: float) -> str:
    """Rounds `value` to the second digit of `scale`."""
    places = 1 - math.floor(math.log10(abs(scale))) if scale else 2
    if not math.isfinite(value):
        return str(value)
    return f"{value:z.{max(places, 0)}f}"
