"""The board in words: what differs, by how much, at what cost, and how sure the result is.

Every sentence is derived from the statistics. Where they support no claim, no claim is made.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from formatting import format_scientific
from protocol.board.board import Board, ComparableSet
from protocol.board.caveats import (
    contamination_sentences,
    declaration_sentences,
    differences_sentence,
    energy_sentences,
    equal_score_sentences,
    margin_sentences,
    origin_sentences,
    seal_sentences,
    skipped_sentences,
    tokenizer_sentences,
    tuning_sentences,
)
from protocol.board.columns import (
    AXIS_COLUMN_ALIASES,
    AXIS_LABELS,
    COLUMNS,
    MAX_LISTED,
    format_cell,
    format_score,
    join_names,
    metric_label,
    pluralize,
)
from protocol.board.groups import Group
from protocol.board.rows import BoardRow
from protocol.board.score_signal import signal_sentences
from protocol.records.comparability import NOT_STATED
from protocol.statistics.verdict import Verdict

OBJECTIVE_TITLES = {
    "causal_lm": "Causal language modeling",
    "masked_lm": "Masked language modeling",
    "denoising": "Denoising",
    "contrastive": "Contrastive learning",
    "preference": "Preferences",
    "mixture": "A mixture of objectives",
}
RATIO_COLUMNS = ("params", "active_params", "training_flops", "tokens", "seconds", "state_bytes")
MAX_PARAMS_RATIO = 2.0  # Ratio of parameters above which equal state is said not to be equal size.
LARGE_HEAD_SHARE = 0.25  # Share of the output head above which a conclusion mentions it.
ASSUMPTIONS = (
    "These tests assume that seeds are independent of each other, and that one candidate does not "
    "have rare bad runs while another has rare good ones."
)
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


def shorten_hashes(text: str) -> str:
    """Returns `text` with each long hash cut to its first 10 digits."""
    return HASH_PATTERN.sub(r"\1", text)


def summarize_group(group: Group, comparable_set: ComparableSet) -> GroupSummary:
    """Returns the conclusions on a group."""
    return GroupSummary(
        verdict=_verdict_sentence(group, comparable_set),
        differences=differences_sentence(group),
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
    if board.stage_runs:
        text += f"; {pluralize(board.stage_runs, 'run')} of earlier stages not shown"
    if board.unreadable:
        text += f"; {pluralize(len(board.unreadable), 'result')} not readable"
    return text


def _axis_label(group: Group) -> str:
    return AXIS_LABELS.get(group.axis, group.axis.replace("_", " "))


def _verdict_sentence(group: Group, comparable_set: ComparableSet) -> str:
    """Returns the verdicts on the reference, or on the first row, in one sentence."""
    if group.order == "nothing":
        if group.curves:
            return "Candidates are compared at the minima of their curves, not size by size."
        return "Nothing is ranked here."
    subject = group.reference if group.order == "reference" else group.rows[0]
    others = [row.name for row in group.rows if row.is_ranked and row is not subject]
    names_by_outcome = _outcomes(subject.name, group.verdicts)
    compared = {name for names in names_by_outcome.values() for name in names}
    metric = metric_label(comparable_set.metric_name)
    clauses = []
    if group.order == "ranks":
        # Only a row that is shown to be better than all others has the lowest mean over all seeds.
        mean = "" if subject.rank == 1 else "mean "
        clauses = [f"{subject.name} has the {_superlative(comparable_set)} {mean}{metric}"]
    predicates = {
        "better": f"shown to be better than {subject.name}",
        "worse": f"shown to be worse than {subject.name}",
        "equivalent": f"equivalent to {subject.name} within the declared margin",
        "inconclusive": f"not distinguishable from {subject.name} by these runs",
    }
    if group.order == "ranks":
        predicates["worse"] = "shown to be worse"
    for outcome, predicate in predicates.items():
        if names := names_by_outcome.get(outcome):
            clauses.append(f"{join_names(names)} {_is_or_are(names)} {predicate}")
    if names := names_by_outcome.get("no_variance"):
        clauses.append(
            f"{join_names(names)} cannot be tested against {subject.name}, because the runs of "
            "each have the same score"
        )
    if undeclared := [name for name in others if name not in compared]:
        clauses.append(f"{join_names(undeclared)} {_is_or_are(undeclared)} not compared with it")
    if unranked := [row.name for row in group.rows if not row.is_ranked]:
        clauses.append(f"{join_names(unranked)} {_is_or_are(unranked)} not ranked")
    return "Exploratory: " * group.is_exploratory + "; ".join(clauses) + "."


def _outcomes(subject: str, verdicts: Sequence[Verdict]) -> dict[str, list[str]]:
    """Returns the names of the rows that were compared with one row, by outcome for them."""
    names: dict[str, list[str]] = {}
    for verdict in verdicts:
        pair = {verdict.a.name, verdict.b.name}
        if subject in pair:
            winner = verdict.winner()
            outcome: str = verdict.kind
            if winner is not None:
                outcome = "worse" if winner == subject else "better"
            names.setdefault(outcome, []).extend(pair - {subject})
    return names


def _superlative(comparable_set: ComparableSet) -> str:
    return "lowest" if comparable_set.metric.better == "lower" else "highest"


def _is_or_are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _comparison_sentences(group: Group) -> tuple[str, ...]:
    """Returns the verdicts with the reference, then other claims, then the other verdicts."""
    curves = [curve.sentence for curve in group.curves if curve.sentence]
    if not group.verdicts:
        nothing = "No claim is possible: fewer than two candidates here are comparable."
        return (*curves[:MAX_LISTED], nothing)
    first = group.reference.name if group.order == "reference" else group.rows[0].name

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
    """Returns what was matched, and the other costs as ratios to the reference."""
    if len(group.rows) < 2:
        return ()
    sentences = []
    column = AXIS_COLUMN_ALIASES.get(group.axis, group.axis)
    comparable = [row for row in group.rows if not row.exclusions]
    values = [row.costs[column] for row in comparable if column in row.costs]
    if len(values) > 1 and min(values) > 0:
        spread = max(values) / min(values) - 1
        subject = "All" if len(comparable) == len(group.rows) else "The compared rows"
        tolerance = f", within {100 * spread:.1g} %" if spread > 1e-9 else ""
        sentences.append(f"{subject} have equal {_axis_label(group)}{tolerance}.")
    sentences += (
        _curve_cost_sentences(group) if group.curves else _row_cost_sentences(group, column)
    )
    sentences += energy_sentences(group)
    if column == "state_bytes":
        sentences += _size_sentences(comparable)
    heavy = {
        label: row.costs["head_share"]
        for row, label in zip(group.rows, group.labels, strict=True)
        if row.costs.get("head_share", 0) > LARGE_HEAD_SHARE
    }
    if heavy:
        shares = sorted(heavy.values())
        ends = dict.fromkeys(format_cell("head_share", share) for share in (shares[0], shares[-1]))
        sentences.append(
            f"The output head takes {' to '.join(ends)} of the FLOPs of "
            f"{join_names([*heavy])}; at larger sizes its share is smaller, and the "
            "result may change."
        )
    return tuple(sentences)


def _row_cost_sentences(group: Group, column: str) -> list[str]:
    """Returns the costs of rows relative to the reference, and those of their studies."""
    others = [row for row in group.rows if row is not group.reference][: MAX_LISTED - 1]
    ratios = (_ratio_sentence(row, group.reference, column) for row in others)
    return [
        *(text for text in ratios if text),
        *(
            f"The study of {row.name} cost {row.study_cost}."
            for row in group.rows[:MAX_LISTED]
            if row.study_cost
        ),
    ]


def _curve_cost_sentences(group: Group) -> list[str]:
    """Returns the costs at the minima of curves relative to the reference, and of their studies."""
    declared = (curve for curve in group.curves if curve.candidate == curve.study.reference)
    reference = next(declared, group.curves[-1])
    sentences = [curve.cost_sentence(reference) for curve in group.curves[:MAX_LISTED]]
    for curve in group.curves[:MAX_LISTED]:
        of_curve = [
            row for row, x in zip(group.rows, group.labels, strict=True) if x == curve.candidate
        ]
        costs = (
            (key, sum(row.costs.get(key, 0.0) for row in of_curve))
            for key in ("study_flops", "study_seconds")
        )
        texts = [format_cell(key, total) for key, total in costs if total]
        if texts:
            texts[0] += " FLOPs"
            total = f"{', '.join(texts[:-1])} and {texts[-1]}" if len(texts) > 1 else texts[0]
            sentences.append(
                f"The studies of the {len(of_curve)} sizes of {curve.candidate} cost {total}."
            )
    return [text for text in sentences if text]


def _size_sentences(rows: Sequence[BoardRow]) -> list[str]:
    """Returns how unequal the parameters of rows of equal state are, where they are."""
    sizes = [row.costs["params"] for row in rows if row.costs.get("params")]
    if len(sizes) < 2 or max(sizes) <= MAX_PARAMS_RATIO * min(sizes):
        return []
    return [
        f"The largest row has {max(sizes) / min(sizes):,.3g} times the parameters of the smallest: "
        "rows of equal state are not models of equal size."
    ]


def _ratio_sentence(row: BoardRow, first: BoardRow, matched: str) -> str:
    """Returns the costs of a row relative to the reference; blank if no cost is known of both."""
    keys = [k for k in RATIO_COLUMNS if k != matched and first.costs.get(k) and k in row.costs]
    ratios = {key: f"{row.costs[key] / first.costs[key]:.2f}" for key in keys}
    different = [f"{r} x {COLUMNS[key].label}" for key, r in ratios.items() if r != "1.00"]
    equal = [COLUMNS[key].label for key, r in ratios.items() if r == "1.00"]
    parts = [", ".join(different)] * bool(different) + [f"equal {', '.join(equal)}"] * bool(equal)
    return f"{row.name} relative to {first.name}: {'; '.join(parts)}." if parts else ""


def _confidence_sentences(group: Group) -> tuple[str, ...]:
    sentences = declaration_sentences(group)
    ranked = [row for row in group.rows if row.is_ranked]
    claims = [v.critical_difference for v in group.verdicts if math.isfinite(v.critical_difference)]
    if len(ranked) > 1:
        runs = sorted({row.sample.n_runs for row in ranked})
        n = str(runs[0]) if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
        sentences.append(f"n={n} training runs per candidate, which differ only in their seed.")
        if claims:
            sentences.append(f"The smallest claimable difference is {min(claims):.2g}.")
        sentences += [_order_sentence(group), ASSUMPTIONS]
    elif len(group.rows) > 1 and not group.problems and not group.curves:
        sentences.append("Nothing is ranked: a rank needs 3 training runs of each candidate.")
    sentences += [*contamination_sentences(group), *tuning_sentences(group)]
    sentences += [*margin_sentences(group), *origin_sentences(group)]
    sentences += [*equal_score_sentences(group), *tokenizer_sentences(group)]
    sentences += [*skipped_sentences(group), *signal_sentences(group.signals)]
    sentences += seal_sentences(group)
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


def _order_sentence(group: Group) -> str:
    if group.order == "ranks":
        return (
            "A rank is the range of places that the comparisons of all pairs leave open; in 95 of "
            "100 studies, all ranges hold."
        )
    return (
        f"No order follows from these comparisons: a row is above {group.reference_name} (shown to "
        "be better), below it, or not distinguished from it."
    )


def _finish_sentence(text: str) -> str:
    return text.replace("+-", "±").rstrip(".") + "."
