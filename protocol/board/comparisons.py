"""Which pairs of rows are compared: those that plans declare, else all; and pairs that are not.

A pair of rows that saw other data is compared with nothing (item 5 of docs/protocol.md). A copy of
another row, under another name or with other settings that nothing reads, is no candidate.
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from protocol.board.rows import BoardRow
from protocol.records.run_record import RunRecord
from protocol.records.study_record import MAX_COMPARISONS, StudyRecord
from protocol.records.tuning_record import BATCH_SIZE

MAX_RANKED = 40  # Candidates of a group whose pairs are compared at most.

NamePairs = list[tuple[str, str]]


class ComparisonPairs(NamedTuple):
    """Pairs of rows, by name."""

    declared: NamePairs
    exploratory: NamePairs
    too_few_runs: NamePairs  # Pairs with a row of too few runs, compared for the sentence only.
    margin_by_pair: Mapping[frozenset[str], float]  # Margins of the declared pairs.

    def margins(self, pairs: NamePairs) -> list[float]:
        """Returns the margin of each pair; 0 where none was declared."""
        return [self.margin_by_pair.get(frozenset(pair), 0.0) for pair in pairs]

    def without(self, excluded: Collection[frozenset[str]]) -> "ComparisonPairs":
        """Returns the pairs that are not among the excluded ones."""
        declared, exploratory, too_few = (
            [pair for pair in pairs if frozenset(pair) not in excluded] for pairs in self[:3]
        )
        return ComparisonPairs(declared, exploratory, too_few, self.margin_by_pair)


def all_pairs(rows: Sequence[BoardRow]) -> ComparisonPairs:
    """Returns all pairs of rows; a row of too few runs is paired with the first row only."""
    rankable = [row.name for row in rows if not row.too_few_runs]
    first = [*rankable, *(row.name for row in rows)][:1]
    unranked = {row.name for row in rows} - {*rankable}
    pairs = [(name, row.name) for name in first for row in rows if row.name in unranked - {name}]
    return ComparisonPairs([], list(itertools.combinations(rankable, 2)), pairs, {})


def declared_pairs(rows: Sequence[BoardRow], studies: Sequence[StudyRecord]) -> ComparisonPairs:
    """Returns the pairs of rows for the pairs of candidates that plans declare.

    Where a candidate of a plan has several rows, the plan does not declare which of them is
    compared. Then all are compared, which is exploratory.
    """
    rows_by_name: dict[str, list[BoardRow]] = {}
    rows_by_plan: dict[tuple[str, str], list[BoardRow]] = {}
    for row in rows:
        rows_by_name.setdefault(row.candidate, []).append(row)
        for plan, name in dict.fromkeys((r.study.plan, r.study.candidate) for r in row.runs):
            rows_by_plan.setdefault((plan, name), []).append(row)
    plans: dict[frozenset[str], dict[str, tuple[str, str]]] = {}
    smallest_margins: dict[frozenset[str], float] = {}
    for study in studies:
        for pair in study.comparisons:
            key = frozenset(pair)
            plans.setdefault(key, {})[study.plan] = pair
            margin = smallest_margins.get(key, math.inf)
            smallest_margins[key] = min(margin, study.margin or 0.0)
    declared, exploratory, too_few = (dict[frozenset[str], tuple[str, str]]() for _ in range(3))
    margins: dict[frozenset[str], float] = {}
    for candidates, pair_by_plan in plans.items():
        if len(candidates) < 2:
            continue
        rows_of_pairs = [
            [rows_by_plan.get((plan, n), []) for n in pair] for plan, pair in pair_by_plan.items()
        ]
        unique = [(x[0], y[0]) for x, y in rows_of_pairs if len(x) == len(y) == 1]
        a, b = (rows_by_name.get(name, []) for name in [*pair_by_plan.values()][-1])
        with_first = [(x, y) for x in a for y in b[:1]] + [(x, y) for x in a[:1] for y in b]
        ranked = [(x, y) for x in a for y in b if not x.too_few_runs and not y.too_few_runs]
        for x, y in unique or [*ranked, *with_first]:
            names = frozenset((x.name, y.name))
            target = declared if unique else exploratory
            (too_few if x.too_few_runs or y.too_few_runs else target)[names] = (x.name, y.name)
            margins[names] = smallest_margins[candidates] if unique else 0.0
    return ComparisonPairs(
        list(declared.values()), list(exploratory.values()), list(too_few.values()), margins
    )


def count_declared(runs: Sequence[RunRecord]) -> int:
    """Returns the number of comparisons that the plans of these runs declare in total.

    A pair counts once, in however many plans it stands: a plan with more seeds compares the same
    candidates again. Candidates are the same if name and settings are.
    """
    identities: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        identities.setdefault((run.study.plan, run.study.candidate), set()).add(run.identity)
    counts: dict[frozenset[tuple[str, frozenset[str]]], float] = {}
    for study in dict.fromkeys(run.study for run in runs):
        pairs = {frozenset(pair) for pair in study.comparisons}
        # Groups of the plan, at each of which the pairs are compared.
        n_groups = study.n_comparisons / max(len(pairs), 1)
        for pair in pairs:
            key = frozenset(
                (name, frozenset(identities.get((study.plan, name), ()))) for name in pair
            )
            counts[key] = max(counts.get(key, 0.0), n_groups)
    return min(math.ceil(sum(counts.values()) - 1e-9), MAX_COMPARISONS)


def find_copies(rows: Sequence[BoardRow], reference: str) -> dict[str, str]:
    """Returns the name of the original by the name of each copy.

    Rows are copies if their settings agree in all that is read, or if all runs of common seeds
    have the same results to the last digit. The original is the reference, else the first row.
    """
    originals: dict[object, BoardRow] = {}  # By digest, and by each (seed, score).
    copies: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: (row.candidate != reference, row.name)):
        keys = [row.sample.digest, *((r.seed, r.value) for r in row.runs if r.value is not None)]
        steps_by_seed = [originals[key] for key in keys if key in originals]
        original = next((o for o in steps_by_seed if _is_copy(row, o)), None)
        if original is None:
            originals |= {key: row for key in keys if key not in originals}
        else:
            copies[row.name] = original.name
    return copies


def _is_copy(row: BoardRow, other: BoardRow) -> bool:
    if row.sample.digest == other.sample.digest:
        return True
    runs = {run.seed: run for run in other.runs if run.seed is not None}
    common = [(run, runs[run.seed]) for run in row.runs if run.seed in runs]
    return bool(common) and all(
        a.value is not None
        and a.value == b.value
        and bool(a.learning_curve)
        and a.learning_curve == b.learning_curve
        for a, b in common
    )


def data_agreement(row: BoardRow, reference: BoardRow) -> str:
    """Returns up to which step two rows saw the same batches; the minimum over shared seeds."""
    if row is reference:
        return "reference"
    if _has_tuned_batches(row, reference):
        return "other batch size, by tuning"
    steps_by_seed = _common_steps(row, reference)
    if not steps_by_seed:
        return ""
    step, _, steps = min(steps_by_seed.values())
    return f"{step:,} of {steps:,} steps" if step >= 0 else "broken: hashes differ, then agree"


def other_data_problem(a: BoardRow, b: BoardRow) -> str:
    """Returns why two rows did not see the same data; blank if their hashes agree.

    Studies that vary the objective, or tune the batch size, make other batches from the same
    documents; their hashes show nothing.
    """
    if any(run.study.varied_settings for row in (a, b) for run in row.runs):
        return ""
    if _has_tuned_batches(a, b):
        return ""
    for seed, (step, shorter, _) in sorted(_common_steps(a, b).items()):
        if step < 0:
            return (
                f"{a.name} and {b.name} are not compared: the hashes of their data differ and then "
                f"agree (seed {seed}), which cannot be"
            )
        if step < shorter:
            return (
                f"{a.name} and {b.name} are not compared: they saw other data after step {step:,} "
                f"of {shorter:,} (seed {seed})"
            )
    return ""


def _has_tuned_batches(a: BoardRow, b: BoardRow) -> bool:
    """Returns whether tuning gave two rows other batch sizes."""
    runs = [run for row in (a, b) for run in row.runs]
    is_tuned = all(BATCH_SIZE in run.study.tuned_settings for run in runs)
    return is_tuned and len({run.settings.get(BATCH_SIZE) for run in runs}) > 1


def _common_steps(a: BoardRow, b: BoardRow) -> dict[int, tuple[int, int, int]]:
    """Returns by common seed: last common step, last step that both logged, steps of `a`."""
    others = {run.seed: run for run in b.runs}
    steps_by_seed: dict[int, tuple[int, int, int]] = {}
    for run in a.runs:
        if run.seed is None or run.seed not in others:
            continue
        x, y = run.data_hashes, others[run.seed].data_hashes
        if common := x.keys() & y.keys():
            steps_by_seed[run.seed] = (_last_common_step(x, y), max(common), run.steps)
    return steps_by_seed


def _last_common_step(a: Mapping[int, str], b: Mapping[int, str]) -> int:
    """Returns the last step up to which rolling hashes agree; -1 if they agree again later.

    Rolling hashes cannot agree again after they differed, so the latter is an error.
    """
    equal = [(step, a[step] == b[step]) for step in sorted(a.keys() & b.keys())]
    prefix = [step for step, is_equal in itertools.takewhile(lambda item: item[1], equal)]
    if sum(is_equal for _, is_equal in equal) > len(prefix):
        return -1
    return prefix[-1] if prefix else 0
