"""The verdicts on the rows of a group, and the ranks or standings that follow from them.

A study that declares looks is tested at each number of seeds that all of its rows have reached, at
a level that makes a false claim at any look in at most 5 % of studies. A claim stands once it is
made.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from protocol.board.comparisons import (
    MAX_RANKED,
    ComparisonPairs,
    NamePairs,
    all_pairs,
    count_declared,
    declared_pairs,
    find_copies,
    other_data_problem,
)
from protocol.board.rows import BoardRow
from protocol.records.study_record import StudyRecord
from protocol.statistics.ranks import RankInterval, compute_ranks
from protocol.statistics.sample import CandidateSample
from protocol.statistics.sequential import look_level
from protocol.statistics.verdict import MetricSpec, Verdict, compare_candidates

ALPHA = 0.05  # Probability of a false claim among the declared comparisons.
SCOPE = "at this N and D"


class RowComparison(NamedTuple):
    """The verdicts on rows, with what follows from them, by name of the row."""

    verdicts: list[Verdict]
    ranks: Mapping[str, RankInterval]  # Empty unless all pairs are compared.
    standings: Mapping[str, str]  # Places relative to the reference; empty if there are ranks.
    copies: Mapping[str, str]  # Name of the original of each copy.
    problems: list[str]
    reference: str  # Name of the reference's row; blank if none is declared.
    data_problems: list[str]  # Pairs that saw other data, which are among the problems too.


def compare_rows(rows: Sequence[BoardRow], metric: MetricSpec) -> RowComparison:
    """Returns the verdicts on rows, with their ranks and the reasons why pairs are not compared.

    Declared claims are adjusted among themselves. Pairs with a row that is not ranked are compared
    for the sentence only. Exploratory verdicts are adjusted separately.
    """
    comparable = [row for row in rows if not row.exclusions]
    runs = [run for row in comparable for run in row.runs]
    studies = list(dict.fromkeys(run.study for run in runs))
    is_declared = any(study.comparisons for study in studies)
    reference = _reference_row(comparable, studies)
    copies = find_copies(comparable, reference.candidate if reference else "")
    originals = [row for row in comparable if row.name not in copies]
    rankable = [row.name for row in originals if not row.too_few_runs]
    pairs = declared_pairs(originals, studies) if is_declared else all_pairs(originals)
    if max(len(pairs.declared), len(pairs.exploratory)) > math.comb(MAX_RANKED, 2):
        return RowComparison([], {}, {}, copies, [_too_many(rankable, pairs)], "", [])
    pairs, data_problems = _without_other_data(pairs, originals)
    problems = list(data_problems)
    if is_declared and len(comparable) > 1:
        problems += _pair_problems(pairs, rankable)

    def compare(selected: NamePairs, is_declared: bool, n_other: int = 0) -> list[Verdict]:
        verdicts = _compare_pairs(comparable, selected, pairs, metric, n_other, is_declared)
        return [dataclasses.replace(v, is_declared=is_declared) for v in verdicts]

    count = count_declared(runs)
    declared = compare(pairs.declared, True, max(count - len(pairs.declared), 0))
    exploratory = compare(pairs.exploratory, False, max(count - len(pairs.exploratory), 0))
    ordering = declared or exploratory
    samples = [row.sample for row in originals if row.name in rankable]
    ranks = compute_ranks(samples, ordering)
    standings = {}
    if not ranks and reference is not None:
        standings = _standings(reference.name, rankable, ordering)
    same = _copy_verdicts(comparable, copies, metric)
    verdicts = [*declared, *exploratory, *same, *compare(pairs.too_few_runs, is_declared)]
    name = reference.name if reference else ""
    return RowComparison(verdicts, ranks, standings, copies, problems, name, data_problems)


def _reference_row(rows: Sequence[BoardRow], studies: Sequence[StudyRecord]) -> BoardRow | None:
    """Returns the only row of the declared reference, else of the candidate of all pairs."""
    names = {study.reference for study in studies if study.reference}
    if not names:
        pairs = {frozenset(pair) for study in studies for pair in study.comparisons}
        names = set(frozenset.intersection(*pairs)) if len(pairs) > 1 else set()
    matching = [row for row in rows if row.candidate in names]
    return matching[0] if len(names) == len(matching) == 1 else None


def _without_other_data(
    pairs: ComparisonPairs, rows: Sequence[BoardRow]
) -> tuple[ComparisonPairs, list[str]]:
    """Returns the pairs that saw the same data, and why the others are not compared."""
    by_name = {row.name: row for row in rows}
    reasons = {
        frozenset(pair): problem
        for selected in pairs[:3]
        for pair in selected
        if (problem := other_data_problem(*(by_name[name] for name in pair)))
    }
    return pairs.without(reasons.keys()), list(reasons.values())


def _compare_pairs(
    rows: Sequence[BoardRow],
    selected: NamePairs,
    pairs: ComparisonPairs,
    metric: MetricSpec,
    n_other: int,
    is_declared: bool,
) -> list[Verdict]:
    """Returns the verdicts on the selected pairs, at all looks that their rows have reached."""
    if not selected:
        return []
    names = {name for pair in selected for name in pair}
    members = [row for row in rows if row.name in names]
    looks = _common_looks(members) if is_declared else ()
    is_paired = is_declared and all(run.study.is_paired for row in members for run in row.runs)

    def compare(
        truncate: Callable[[CandidateSample], CandidateSample], alpha: float, scope: str
    ) -> list[Verdict]:
        samples = [truncate(row.sample) for row in members]
        return compare_candidates(
            *(samples, selected, metric),
            alpha=alpha,
            scope=scope,
            n_other_comparisons=n_other,
            margins=pairs.margins(selected),
            is_paired=is_paired and len({frozenset(s.seeds) for s in samples}) == 1,
        )

    if not looks:
        return compare(lambda sample: sample, ALPHA, SCOPE)
    n_reached = min(sum(row.sample.n_runs >= look for look in looks) for row in members)
    alpha = look_level(looks, ALPHA, len(selected) + n_other)
    claims: dict[int, Verdict] = {}
    verdicts: list[Verdict] = []
    for number, look in enumerate(looks[: max(n_reached, 1)], 1):
        scope = f"{SCOPE}, at look {number} of {len(looks)}"
        verdicts = compare(lambda sample, n=look: sample.first_runs(n), alpha, scope)  # type: ignore[misc]
        for index, verdict in enumerate(verdicts):
            if verdict.kind in ("lower", "higher", "equivalent"):
                claims.setdefault(index, verdict)
    return [
        verdict if verdict.kind == "diverged" else claims.get(index, verdict)
        for index, verdict in enumerate(verdicts)
    ]


def _copy_verdicts(
    rows: Sequence[BoardRow], copies: Mapping[str, str], metric: MetricSpec
) -> list[Verdict]:
    """Returns for each copy the verdict that it is one."""
    samples = {row.name: row.sample for row in rows}
    return [
        Verdict(samples[copy], samples[original], "duplicate", metric, SCOPE)
        for copy, original in copies.items()
    ]


def _common_looks(rows: Sequence[BoardRow]) -> tuple[int, ...]:
    """Returns the looks that all runs of the rows declare; empty if they differ."""
    looks = {run.study.looks for row in rows for run in row.runs}
    return looks.pop() if len(looks) == 1 else ()


def _standings(
    reference: str, rankable: Sequence[str], verdicts: Sequence[Verdict]
) -> dict[str, str]:
    """Returns where each ranked row stands relative to the reference."""
    standings = {reference: "reference"} if reference in rankable else {}
    for verdict in verdicts:
        names = (verdict.a.name, verdict.b.name)
        if reference not in names:
            continue
        other = names[0] if names[1] == reference else names[1]
        winner = verdict.winner()
        if winner is not None:
            standings[other] = "above" if winner == other else "below"
        elif verdict.kind == "equivalent":
            standings[other] = "equivalent"
        else:
            standings[other] = "not distinguished"
    return {name: text for name, text in standings.items() if name in rankable}


def _too_many(rankable: Sequence[str], pairs: ComparisonPairs) -> str:
    count = len(pairs.declared or pairs.exploratory)
    return (
        f"{len(rankable)} candidates with {count:,} comparisons are not ranked; a group ranks "
        f"at most {MAX_RANKED} candidates"
    )


def _pair_problems(pairs: ComparisonPairs, rankable: Sequence[str]) -> list[str]:
    """Returns which comparisons of a group are not made, or not as they were declared."""
    n_all = math.comb(len(rankable), 2)
    problems = []
    if pairs.exploratory:
        problems = [
            "candidates have several rows here, and no plan declares which of them are compared"
        ]
    n_compared = len(pairs.declared) + len(pairs.exploratory)
    if not n_compared:
        return ["no declared comparison is between rows that can be ranked, so nothing is compared"]
    if n_compared < n_all:
        verb = "was" if n_compared == 1 else "were"
        problems.append(
            f"{n_compared} of {n_all} pairs {verb} declared and can be compared; ranks need all "
            "pairs"
        )
    return problems
