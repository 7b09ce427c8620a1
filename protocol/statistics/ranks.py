"""Ranks as intervals that follow from verdicts, so that no rank says more than the comparisons do.

A rank is an interval of places: from 1 + the number of candidates that are shown to be better, to
the number of candidates - the number that are shown to be worse (the stepwise intervals of Mogstad,
Romano, Shaikh & Wilhelm, Review of Economic Studies 91, 2024, from Holm's procedure). What follows
from two verdicts counts: if a is better than b and b than c, a is better than c. Unless one of the
verdicts is false, which happens in at most 5 % of studies, all intervals hold the true places.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from protocol.statistics.sample import CandidateSample
from protocol.statistics.verdict import RANKING_KINDS, Verdict


class RankInterval(NamedTuple):
    """The places that a candidate may have; both ends are included."""

    low: int
    high: int

    @property
    def rank(self) -> int | None:
        """The place, where only one is possible."""
        return self.low if self.low == self.high else None

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}–{self.high}"


def compute_ranks(
    samples: Sequence[CandidateSample], verdicts: Sequence[Verdict]
) -> dict[str, RankInterval]:
    """Returns the places of each candidate that is ranked; empty unless all pairs are compared.

    A candidate with a diverged run, or with fewer runs than a rank needs, has no rank. The others
    have ranks only if each two of them are compared: fewer comparisons do not decide an order.
    """
    names = [s.name for s in samples if not s.n_diverged and s.n_runs >= s.required_runs]
    compared = [(v.a.name, v.b.name) for v in verdicts if v.kind in RANKING_KINDS]
    if len(names) < 2 or not covers_all_pairs(names, compared):
        return {}
    defeats = [defeat for verdict in verdicts if (defeat := verdict.defeat())]
    return rank_intervals(names, defeats)


def rank_intervals(
    names: Sequence[str], defeats: Iterable[tuple[str, str]]
) -> dict[str, RankInterval]:
    """Returns the places of each candidate.

    Args:
        names: the candidates that are ranked.
        defeats: pairs (better, worse) that are shown.
    """
    direct: dict[str, set[str]] = {name: set() for name in names}
    for better, worse in defeats:
        if better in direct and worse in direct:
            direct[better].add(worse)
    worse_than = {name: _reachable(name, direct) - {name} for name in names}
    return {
        name: RankInterval(
            1 + sum(name in worse for worse in worse_than.values()),
            len(names) - len(worse_than[name]),
        )
        for name in names
    }


def covers_all_pairs(names: Collection[str], pairs: Iterable[tuple[str, str]]) -> bool:
    """Returns whether each two of the names are compared by one of the pairs."""
    compared = {frozenset(pair) for pair in pairs}
    ordered = sorted(names)
    return all(
        frozenset((a, b)) in compared for i, a in enumerate(ordered) for b in ordered[i + 1 :]
    )


def _reachable(start: str, direct: dict[str, set[str]]) -> set[str]:
    """Returns all candidates that are worse than `start` by a chain of verdicts."""
    worse: set[str] = set()
    pending = [start]
    while pending:
        for name in direct[pending.pop()]:
            if name not in worse:
                worse.add(name)
                pending.append(name)
    return worse
