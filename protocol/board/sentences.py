"""The board in words: what differs, by how much, at what cost, and how sure the result is.

Every sentence is derived from the statistics. Where they support no claim, no claim is made.
"""

import math
import re
from typing import NamedTuple

from formatting import format_scientific
from protocol.board.board import Board, ComparableSet, Group
from protocol.board.columns import (
    AXIS_COLUMN_ALIASES,
    AXIS_LABELS,
    COLUMNS,
    format_cell,
    format_score,
    pluralize,
)
from protocol.board.rows import BoardRow
from protocol.records.comparability import NOT_STATED
from protocol.statistics.verdict import Verdict

OBJECTIVE_TITLES = {
    "causal_lm": "Causal language modeling",
    "masked_lm": "Masked language modeling",
    "denoising": "Denoising",
    "contrastive": "Contrastive learning",
    "mixture": "A mixture of objectives",
}
RATIO_COLUMNS = ("params", "active_params", "training_flops", "tokens", "seconds", "state_bytes")
MAX_LISTED = 6  # Rows, settings or sentences that are listed.
LARGE_HEAD_SHARE = 0.25  # Share of the output head above which a conclusion mentions it.
HASH_PATTERN = re.compile(r"\b([0-9a-f]{10})[0-9a-f]{22,}\b")


class GroupSummary(NamedTuple):
    """The conclusions on a group; each text is one or more sentences."""

    verdict: str
    differences: str
    comparisons: tuple[str, ...]
    costs: tuple[str, ...]
    confidence: tuple[str, ...]


def set_title(comparable_set: ComparableSet) -> str:
    """Returns the title of a comparable set: its objective and metric."""
    objective = comparable_set.keys["objective"]
    name = objective.split(" ")[0]
    title = OBJECTIVE_TITLES.get(name, name)
    if objective == NOT_STATED:
        title = "Objective not stated"
    return f"{title}, by {metric_label(comparable_set.metric_name)}"


def group_title(group: Group) -> str:
    """Returns the title of a group: the matched cost and its value."""
    axis = _axis_label(group)
    if group.value is None:
        return f"{axis[:1].upper()}{axis[1:]} unknown"
    exploratory = " (exploratory)" if group.is_exploratory else ""
    return f"At {format_scientific(group.value)} {axis}{exploratory}"


def metric_label(metric: str) -> str:
    """Returns the label of a metric: "bits per byte on test" for test/bits_per_byte."""
    split, _, name = metric.rpartition("/")
    return name.replace("_", " ") + (f" on {split}" if split else "")


def shorten_hashes(text: str) -> str:
    """Returns `text` with each long hash cut to its first 10 digits."""
    return HASH_PATTERN.sub(r"\1", text)


def summarize_group(group: Group, comparable_set: ComparableSet) -> GroupSummary:
    """Returns the conclusions on a group."""
    return GroupSummary(
        verdict=_verdict_sentence(group, comparable_set),
        differences=_differences_sentence(group),
        comparisons=_comparison_sentences(group),
        costs=_cost_sentences(group),
        confidence=_confidence_sentences(group),
    )


def format_result(row: BoardRow) -> str:
    """Returns the mean with half its interval, else the rate of diverged runs; blank if neither."""
    sample = row.sample
    if sample.n_diverged:
        return f"{sample.n_diverged} of {sample.n_runs} diverged"
    if sample.mean is None:
        return ""
    mean, half = format_score(sample.mean), half_width(row)
    return mean if half is None else f"{mean} ± {half:.2g}"


def half_width(row: BoardRow) -> float | None:
    """Returns half the width of the interval of the mean; None if there is no interval."""
    interval = row.interval
    return None if interval is None else (interval.high - interval.low) / 2


def format_counts(board: Board) -> str:
    """Returns how many runs, candidates and groups the board has, without a full stop."""
    rows = [row for comparable_set in board.comparable_sets for row in comparable_set.rows]
    n_runs = sum(len(row.runs) for row in rows)
    n_groups = sum(len(comparable_set.groups) for comparable_set in board.comparable_sets)
    text = (
        f"{pluralize(n_runs, 'run')} of {pluralize(len(rows), 'candidate')} in "
        f"{pluralize(n_groups, 'group')}"
    )
    if board.tuning_runs:
        text += f"; {pluralize(board.tuning_runs, 'tuning run')} not shown"
    if board.unreadable:
        text += f"; {pluralize(len(board.unreadable), 'result')} not readable"
    return text


def _axis_label(group: Group) -> str:
    return AXIS_LABELS.get(group.axis, group.axis.replace("_", " "))


def _verdict_sentence(group: Group, comparable_set: ComparableSet) -> str:
    """Returns the verdicts on the first row in one sentence."""
    first = group.rows[0]
    if group.curves and first.rank is None:
        return "Candidates are compared at the minima of their curves, not size by size."
    if first.rank is None:
        return "Nothing is ranked here."
    names_by_kind: dict[str, list[str]] = {}
    for verdict in group.verdicts:
        pair = {verdict.a.name, verdict.b.name}
        if first.name in pair:
            kind = "worse" if verdict.winner() == first.name else verdict.kind
            names_by_kind.setdefault(kind, []).extend(pair - {first.name})
    metric = metric_label(comparable_set.metric_name)
    clauses = [f"{first.name} has the {_superlative(comparable_set)} {metric}"]
    predicates = {
        "worse": "shown to be worse",
        "equivalent": f"equivalent to {first.name} within the declared margin",
        "inconclusive": f"not distinguishable from {first.name} by these runs",
    }
    for outcome, predicate in predicates.items():
        if names := names_by_kind.get(outcome):
            clauses.append(f"{_join_names(names)} {_is_or_are(names)} {predicate}")
    compared = {name for names in names_by_kind.values() for name in names} | {first.name}
    if names := names_by_kind.get("no_variance"):
        clauses.append(
            f"{_join_names(names)} cannot be tested against {first.name}, because the runs of each "
            "have the same score"
        )
    ranked = [row.name for row in group.rows if row.rank is not None]
    if undeclared := [name for name in ranked if name not in compared]:
        clauses.append(f"no comparison of {_join_names(undeclared)} with {first.name} was declared")
    if unranked := [row.name for row in group.rows if row.rank is None]:
        clauses.append(f"{_join_names(unranked)} {_is_or_are(unranked)} not ranked")
    return "Exploratory: " * group.is_exploratory + "; ".join(clauses) + "."


def _superlative(comparable_set: ComparableSet) -> str:
    return "lowest" if comparable_set.metric.better == "lower" else "highest"


def _join_names(names: list[str]) -> str:
    listed = names
    if len(names) > MAX_LISTED:
        listed = [*names[: MAX_LISTED - 1], f"{len(names) - MAX_LISTED + 1} others"]
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"


def _is_or_are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _differences_sentence(group: Group) -> str:
    rows = group.rows
    if len(rows) == 1:
        return f"Nothing: {rows[0].name} is the only row here."
    tables = [row.first_run.settings for row in rows]
    keys = sorted({key for table in tables for key in table})
    differing = [key for key in keys if len({table.get(key) for table in tables}) > 1]
    names = _join_names([row.name for row in rows])
    if not differing:
        return f"{names} have the same settings."
    n_more = len(differing) - MAX_LISTED
    suffix = f" and {pluralize(n_more, 'more setting')}" if n_more > 0 else ""
    return f"{names} differ in {', '.join(differing[:MAX_LISTED])}{suffix}."


def _comparison_sentences(group: Group) -> tuple[str, ...]:
    """Returns the verdicts with the first row, then other claims, then the other verdicts."""
    curves = [curve.sentence for curve in group.curves if curve.sentence]
    if not group.verdicts:
        nothing = "No claim is possible: fewer than two candidates here are comparable."
        return (*curves[:MAX_LISTED], nothing)
    first = group.rows[0].name

    def position(v: Verdict) -> tuple[bool, bool, float]:
        return first not in (v.a.name, v.b.name), not v.winner(), v.p

    texts = (_finish_sentence(v.sentence) for v in sorted(group.verdicts, key=position))
    unique = list(dict.fromkeys(texts))  # A rate of divergence is the same in each comparison.
    n_more = len(unique) - MAX_LISTED
    return (
        *curves[:MAX_LISTED],
        *unique[:MAX_LISTED],
        *([f"And {pluralize(n_more, 'more comparison')}."] if n_more > 0 else ()),
    )


def _cost_sentences(group: Group) -> tuple[str, ...]:
    """Returns what was matched, and the other costs as ratios to the first row."""
    if len(group.rows) < 2:
        return ()
    first, sentences = group.rows[0], []
    column = AXIS_COLUMN_ALIASES.get(group.axis, group.axis)
    comparable = [row for row in group.rows if not row.exclusions]
    values = [row.costs[column] for row in comparable if column in row.costs]
    if len(values) > 1 and min(values) > 0:
        spread = max(values) / min(values) - 1
        subject = "All" if len(comparable) == len(group.rows) else "The compared rows"
        tolerance = f", within {100 * spread:.1g} %" if spread > 1e-9 else ""
        sentences.append(f"{subject} have equal {_axis_label(group)}{tolerance}.")
    ratios = (_ratio_sentence(row, first, column) for row in group.rows[1:MAX_LISTED])
    sentences += [text for text in ratios if text]
    heavy = [row for row in group.rows if row.costs.get("head_share", 0) > LARGE_HEAD_SHARE]
    if heavy:
        shares = sorted(row.costs["head_share"] for row in heavy)
        ends = dict.fromkeys(format_cell("head_share", share) for share in (shares[0], shares[-1]))
        sentences.append(
            f"The output head takes {' to '.join(ends)} of the FLOPs of "
            f"{_join_names([row.name for row in heavy])}; at larger sizes its share is smaller, "
            "and the result may change."
        )
    return tuple(sentences)


def _ratio_sentence(row: BoardRow, first: BoardRow, matched: str) -> str:
    """Returns the costs of a row relative to the first row; blank if no cost is known of both."""
    keys = [k for k in RATIO_COLUMNS if k != matched and first.costs.get(k) and k in row.costs]
    ratios = {key: f"{row.costs[key] / first.costs[key]:.2f}" for key in keys}
    different = [f"{r} x {COLUMNS[key].label}" for key, r in ratios.items() if r != "1.00"]
    equal = [COLUMNS[key].label for key, r in ratios.items() if r == "1.00"]
    parts = [", ".join(different)] * bool(different) + [f"equal {', '.join(equal)}"] * bool(equal)
    return f"{row.name} relative to {first.name}: {'; '.join(parts)}." if parts else ""


def _confidence_sentences(group: Group) -> tuple[str, ...]:
    sentences = _declaration_sentences(group)
    ranked = [row for row in group.rows if row.rank is not None]
    claims = [v.critical_difference for v in group.verdicts if math.isfinite(v.critical_difference)]
    if len(ranked) > 1:
        runs = sorted({row.sample.n_runs for row in ranked})
        n = str(runs[0]) if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
        sentences.append(f"n={n} training runs per candidate, which differ only in their seed.")
        if claims:
            sentences.append(f"The smallest claimable difference is {min(claims):.2g}.")
        sentences.append("The rank is 1 + the number of rows shown to be better.")
    elif len(group.rows) > 1 and not group.problems and not group.curves:
        sentences.append("Nothing is ranked: a rank needs 3 training runs of each candidate.")
    lost = [(row, sum(r.state in ("failed", "unfinished") for r in row.runs)) for row in ranked]
    sentences += [
        f"{row.name}: {pluralize(n, 'unfinished or failed run')} {'is' if n == 1 else 'are'} "
        "excluded."
        for row, n in lost
        if n
    ]
    sentences += [_finish_sentence(problem) for problem in group.problems[:MAX_LISTED]]
    if len(group.problems) > MAX_LISTED:
        n_more = len(group.problems) - MAX_LISTED
        sentences.append(f"And {pluralize(n_more, 'more problem')}; the table has those of rows.")
    return tuple(sentences)


def _declaration_sentences(group: Group) -> list[str]:
    """Returns what was not declared or not known before the runs."""
    sentences = []
    if group.value is None:
        sentences.append("The costs of these rows are unknown, so they may not be equal.")
    elif not group.axis_declared:
        sentences.append(
            "Exploratory: no matched axis was declared before the runs. Rows are grouped because "
            "their training FLOPs agree within 1 %."
        )
    elif not group.rows[0].first_run.study.plan:
        sentences.append(
            "The matched axis is declared, but no plan proves that this happened before the runs."
        )
    if group.axis_declared and group.is_exploratory:
        sentences.append("Exploratory: these comparisons were not declared before the runs.")
    return sentences


def _finish_sentence(text: str) -> str:
    return text.replace("+-", "±").rstrip(".") + "."
