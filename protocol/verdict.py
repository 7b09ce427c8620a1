"""Verdicts: what the runs of declared comparisons support, as data and as one sentence each.

Claims of a difference and ties are each adjusted over the declared comparisons (Holm), so that a
false claim, or a false tie, stands anywhere in a family with probability 5 % at most. A tie is
shown (TOST inside the margin); failing to show a difference is "not distinguishable". Intervals
hold for one comparison by itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from errors import ConfigError, DataError
from protocol.statistics import (
    Difference,
    Interval,
    holm,
    may_pool,
    mean_interval,
    pooled,
    pooled_sigma,
    rate_interval,
    welch,
)
from schema import nearest

RANKED_RUNS = 3  # with fewer, nothing is ranked
CLAIMS = ("lower", "higher", "equivalent", "open")  # kinds that say something of a difference

Kind = Literal["lower", "higher", "equivalent", "open", "constant", "few", "diverged", "copy"]


@dataclass(frozen=True)
class Sample:
    """The runs of a candidate: the metric of those that ended well, and how many diverged.

    `digest` is that of the settings without name and seed: equal ones are copies of one candidate.
    `planned` runs were to be made; while some of them lack, it is not ranked.
    """

    name: str
    values: tuple[float, ...]
    diverged: int = 0
    digest: str = ""
    planned: int = 0

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.values)):
            raise DataError(
                f"{self.name} has the values {self.values}, must be finite; `sample` counts others "
                "as diverged"
            )

    @property
    def runs(self) -> int:
        return len(self.values) + self.diverged

    @property
    def needed(self) -> int:
        """Runs that a rank takes."""
        return max(RANKED_RUNS, self.planned)

    @property
    def mean(self) -> float | None:
        """None if a run diverged, for then the candidate has a rate, or if there is none."""
        return None if self.diverged or not self.values else float(np.mean(self.values))

    @property
    def interval(self) -> Interval | None:
        return None if self.diverged else mean_interval(self.values)

    @property
    def divergence(self) -> Interval:
        return rate_interval(self.diverged, self.runs)


def sample(name: str, values: Sequence[float], digest: str = "") -> Sample:
    """All runs of a candidate, in which a value that is not finite is a diverged run."""
    ended = tuple(float(x) for x in values if math.isfinite(x))
    return Sample(name, ended, len(values) - len(ended), digest)


class Metric(NamedTuple):
    """`margin`: differences below it are of no practical consequence; 0 if none was declared."""

    unit: str = "bits per byte"
    margin: float = 0.0
    better: Literal["lower", "higher"] = "lower"


@dataclass(frozen=True)
class Verdict:
    """Of a minus b; `p` and `p_tie` are adjusted by Holm."""

    a: Sample
    b: Sample
    kind: Kind
    metric: Metric
    where: str
    level: float = 0.95
    difference: Difference | None = None  # None: a single run, or one diverged
    p: float = 1.0
    p_tie: float = 1.0
    claimable: float = math.inf  # the smallest difference that could have been claimed
    declared: bool = True  # before the runs; else it is exploratory

    @property
    def sentence(self) -> str:
        said = _SENTENCES[self.kind](self)
        return said if self.declared or self.kind not in CLAIMS else f"exploratory: {said}"

    def winner(self) -> str | None:
        """Who is shown to be better."""
        if self.kind not in ("lower", "higher"):
            return None
        return self.a.name if self.kind == self.metric.better else self.b.name


def judged(
    samples: Sequence[Sample],
    declared: Sequence[tuple[str, str]],
    metric: Metric,
    *,
    level: float = 0.95,
    where: str = "at this N and D",
    beside: int = 0,
    margins: Sequence[float] = (),
    differences: Sequence[Difference] = (),
) -> list[Verdict]:
    """A verdict for each declared comparison; all of them count in the adjustment.

    So do comparisons `beside` these, which the same plan declares of other samples. `margins`
    are those of the comparisons where they are not the metric's, `differences` what is compared
    where it is not means.
    """
    known = _by_name(samples, declared)
    pairs = [(known[a], known[b]) for a, b in declared]
    found = [*differences] or _differences(pairs, samples)
    ones = [1.0 if d is None else float(d.p) for d in found]
    metrics = [metric._replace(margin=m) for m in margins or [metric.margin] * len(declared)]
    ties = [
        1.0 if d is None or not m.margin else float(d.tie(m.margin))
        for d, m in zip(found, metrics, strict=True)
    ]
    padding = [1.0] * beside
    adjusted, adjusted_ties = (holm(np.array([*p, *padding])) for p in (ones, ties))
    count = len(declared)
    return [
        Verdict(
            *(a, b, _kind(a, b, d, p, tie, 1 - level), m, where, level, d, p, tie),
            math.inf if d is None or not d.error else float(d.claimable(count + beside, 1 - level)),
        )
        for (a, b), m, d, p, tie in zip(
            *(pairs, metrics, found, adjusted[:count].tolist(), adjusted_ties[:count].tolist()),
            strict=True,
        )
    ]


def ranks(samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> dict[str, int | None]:
    """1 + how many are shown to be better: those not told apart share a rank.

    None for a candidate with a diverged run, or with fewer than it needs.
    """
    beaten = {s.name: 0 for s in samples}
    for verdict in verdicts:
        if (winner := verdict.winner()) is not None:
            beaten[verdict.b.name if winner == verdict.a.name else verdict.a.name] += 1
    return {
        s.name: None if s.diverged or s.runs < s.needed else 1 + beaten[s.name] for s in samples
    }


def _by_name(
    samples: Sequence[Sample], declared: Sequence[tuple[str, str]]
) -> Mapping[str, Sample]:
    known = {s.name: s for s in samples}
    if len(known) < len(samples):
        raise ConfigError(f"two samples share a name among {sorted(s.name for s in samples)}")
    for pair in declared:
        for name in pair:
            if name not in known:
                raise ConfigError(f"the comparison {pair} names {name!r}; {nearest(name, known)}")
    unordered = {frozenset(pair) for pair in declared}
    if len(unordered) < len(declared) or any(len(pair) < 2 for pair in unordered):
        raise ConfigError(f"comparisons {list(declared)} must be of two candidates, each once")
    if not declared:
        raise ConfigError("no comparison is declared; name pairs of candidates")
    return known


def _differences(
    pairs: Sequence[tuple[Sample, Sample]], samples: Sequence[Sample]
) -> list[Difference | None]:
    """By one sigma for all if their spreads allow it, else by Welch."""
    whole = [np.array(s.values) for s in samples if not s.diverged and len(s.values) > 1]
    together = len(whole) > 1 and bool(may_pool(whole))
    found: list[Difference | None] = []
    for a, b in pairs:
        x, y = np.array(a.values), np.array(b.values)
        if a.diverged or b.diverged or min(x.size, y.size) < 2:
            found.append(None)
        elif together:
            found.append(pooled(x, y, *pooled_sigma(whole)))
        else:
            found.append(welch(x, y))
    return found


def _kind(
    a: Sample, b: Sample, difference: Difference | None, p: float, tie: float, alpha: float
) -> Kind:
    if a.digest and a.digest == b.digest:
        return "copy"
    if a.diverged or b.diverged:
        return "diverged"
    if difference is None or a.runs < a.needed or b.runs < b.needed:
        return "few"
    if not difference.error:
        return "constant"
    if tie <= alpha:
        return "equivalent"
    if p > alpha:
        return "open"
    return "lower" if difference.mean < 0 else "higher"


def _told_apart(v: Verdict) -> str:
    mean, half = _half(v)
    size = f"{_short(abs(mean), half)} +- {_short(half, half)} {v.metric.unit}"
    return (
        f"{v.a.name} is {v.kind} than {v.b.name} by {size} {v.where} ({_basis(v)}), Holm p{_p(v.p)}"
    )


def _equivalent(v: Verdict) -> str:
    margin = f"{_short(v.metric.margin, v.metric.margin)} {v.metric.unit}"
    return (
        f"{v.a.name} and {v.b.name} are equivalent within {margin} {v.where}: {_signed(v)} "
        f"({_basis(v)}), TOST Holm p{_p(v.p_tie)}"
    )


def _open(v: Verdict) -> str:
    return (
        f"{v.a.name} and {v.b.name} are not distinguishable at n={_runs(v)} {v.where}: "
        f"{_signed(v)} ({_basis(v)}), Holm p{_p(v.p)}; the smallest claimable difference is "
        f"{_short(v.claimable, v.claimable)}"
    )


def _few(v: Verdict) -> str:
    pair = f"{v.a.name} and {v.b.name}"
    if v.difference is not None:
        return (
            f"{pair} are not ranked at n={_runs(v)}, which takes {_needed(v)}; "
            f"{v.where}: {_signed(v)} ({_basis(v)})"
        )
    if v.a.mean is None or v.b.mean is None:
        return f"{pair} are not compared: n={_runs(v)}"
    apart = v.a.mean - v.b.mean
    return (
        f"{pair} are not ranked at n={_runs(v)}: they differ by {_short(apart, apart)} "
        f"{v.metric.unit} {v.where}, and one run has no interval"
    )


def _constant(v: Verdict) -> str:
    apart = float(v.difference.mean) if v.difference else math.nan
    return (
        f"{v.a.name} and {v.b.name} are not judged at n={_runs(v)} {v.where}: the runs of each do "
        f"not differ among themselves, so that no interval exists; they lie "
        f"{_short(abs(apart), apart)} {v.metric.unit} apart"
    )


def _diverged(v: Verdict) -> str:
    rates = [
        f"{s.name} diverged in {s.diverged} of {s.runs} runs ({_rate(s.divergence)})"
        for s in (v.a, v.b)
        if s.diverged
    ]
    return f"{' and '.join(rates)} {v.where}: a rate, not a mean, and not ranked"


def _copy(v: Verdict) -> str:
    return f"{v.a.name} and {v.b.name} have the same settings: what differs is noise, not ranked"


_SENTENCES = {
    "lower": _told_apart,
    "higher": _told_apart,
    "equivalent": _equivalent,
    "open": _open,
    "constant": _constant,
    "few": _few,
    "diverged": _diverged,
    "copy": _copy,
}


def _half(v: Verdict) -> tuple[float, float]:
    """The mean difference and half its interval."""
    if v.difference is None:
        raise DataError(f"{v.a.name} and {v.b.name} have no interval; add seeds")
    return float(v.difference.mean), float(v.difference.half(v.level))


def _signed(v: Verdict) -> str:
    mean, half = _half(v)
    return f"the difference is {_short(mean, half)} +- {_short(half, half)} {v.metric.unit}"


def _basis(v: Verdict) -> str:
    method = v.difference.method if v.difference else ""
    return f"{100 * v.level:g} %, n={_runs(v)}, {method}"


def _runs(v: Verdict) -> str:
    return str(v.a.runs) if v.a.runs == v.b.runs else f"{v.a.runs} and {v.b.runs}"


def _needed(v: Verdict) -> str:
    a, b = v.a, v.b
    if a.needed == b.needed:
        return f"{a.needed} runs of each"
    return f"{a.needed} runs of {a.name} and {b.needed} of {b.name}"


def _rate(interval: Interval) -> str:
    return f"95 %: {interval.low:.2f} to {interval.high:.2f}".replace(" 0.", " .")


def _p(p: float) -> str:
    return "<.001" if p < 0.001 else "=" + _short(p, p)


def _short(value: float, scale: float) -> str:
    """`value` to the second digit of `scale`, without the zero before the point."""
    places = 1 - math.floor(math.log10(abs(scale))) if scale else 2
    if not math.isfinite(value):
        return str(value)
    text = f"{value:z.{max(places, 0)}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text
