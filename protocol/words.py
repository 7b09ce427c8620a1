"""The board in a newcomer's words: what differs, by how much, at what cost, how sure that is.

Every sentence is made from the statistics; none is made where they support none.
"""

import math
import re
from typing import NamedTuple

from protocol.board import Board, Family, Group
from protocol.columns import AXES, COLUMNS, many, scientific, score, shown
from protocol.rows import Row
from protocol.verdict import Verdict

OBJECTIVES = {
    "causal_lm": "Causal language modelling",
    "masked_lm": "Masked language modelling",
    "denoising": "Denoising",
    "contrastive": "Contrastive learning",
    "mixture": "A mixture of objectives",
}
AXIS = {
    "training_flops": "training FLOPs",
    "active_params": "active parameters",
    "params": "parameters",
    "state_bytes": "bytes of decoding state",
    "wall_clock": "seconds of training",
}
RATIOS = ("params", "active_params", "training_flops", "tokens", "seconds", "state_bytes")
MOST = 6  # rows, settings or sentences that are spelled out
HEAVY = 0.25  # share of the head above which it is part of the conclusion
HASH = re.compile(r"\b([0-9a-f]{10})[0-9a-f]{22,}\b")


class Head(NamedTuple):
    short: str
    differs: str
    by: tuple[str, ...]
    cost: tuple[str, ...]
    sure: tuple[str, ...]


def title(family: Family) -> str:
    objective = family.keys["objective"].split(" ")[0]
    return OBJECTIVES.get(objective, objective) + f", by {named(family.name)}"


def subtitle(group: Group) -> str:
    axis = AXIS.get(group.axis, group.axis.replace("_", " "))
    if group.value is None:
        return f"{axis[:1].upper()}{axis[1:]} not known"
    return f"At {scientific(group.value)} {axis}" + (" (exploratory)" if group.explored else "")


def named(metric: str) -> str:
    """test/bits_per_byte as "bits per byte on test"."""
    split, _, name = metric.rpartition("/")
    return name.replace("_", " ") + (f" on {split}" if split else "")


def brief(text: str) -> str:
    """With hashes cut to their beginning."""
    return HASH.sub(r"\1", text)


def head(group: Group, family: Family) -> Head:
    return Head(*(_short(group, family), _differs(group), _by(group)), _cost(group), _sure(group))


def quality(row: Row) -> str:
    """The mean and half the interval, or the rate of diverged runs, or what there is."""
    sample = row.sample
    if sample.diverged:
        return f"{sample.diverged} of {sample.runs} diverged"
    if sample.mean is None:
        return ""
    half = half_width(row)
    return score(sample.mean) if half is None else f"{score(sample.mean)} ± {half:.2g}"


def half_width(row: Row) -> float | None:
    interval = row.interval
    return None if interval is None else (interval.high - interval.low) / 2


def counts(board: Board) -> str:
    rows = [row for family in board.families for row in family.rows]
    runs = sum(len(row.runs) for row in rows)
    groups = sum(len(family.groups) for family in board.families)
    parts = [many(runs, "run"), "of " + many(len(rows), "candidate")]
    parts.append("in " + many(groups, "group"))
    text = " ".join(parts)
    if board.tuning:
        text += f"; {many(board.tuning, 'tuning run')} not shown"
    if board.unreadable:
        text += f"; {len(board.unreadable)} not readable"
    return text


def _short(group: Group, family: Family) -> str:
    """The verdicts on the first row in one sentence."""
    first = group.rows[0]
    if group.curves and first.rank is None:
        return "Candidates are compared at the minima of their curves, not size by size."
    if first.rank is None:
        return "Nothing is ranked here."
    others: dict[str, list[str]] = {"worse": [], "open": [], "equivalent": [], "constant": []}
    for verdict in group.verdicts:
        pair = {verdict.a.name, verdict.b.name}
        if first.name in pair:
            kind = "worse" if verdict.winner() == first.name else verdict.kind
            others.setdefault(kind, []).append(*(pair - {first.name}))
    parts = [f"{first.name} has the {_least(family)} {named(family.name)}"]
    if others["worse"]:
        parts.append(f"{_enumerated(others['worse'])} {_is(others['worse'])} shown to be worse")
    if others["equivalent"]:
        parts.append(f"{_enumerated(others['equivalent'])} as good, inside the declared margin")
    if others["open"]:
        parts.append(f"{_enumerated(others['open'])} cannot be told apart from it by these runs")
    met = {name for names in others.values() for name in names} | {first.name}
    if others["constant"]:
        parts.append(f"of {_enumerated(others['constant'])} no runs differ, so nothing is shown")
    if apart := [row.name for row in group.rows if row.rank is not None and row.name not in met]:
        parts.append(f"no comparison of {_enumerated(apart)} with it was declared")
    unranked = [row.name for row in group.rows if row.rank is None]
    if unranked:
        parts.append(f"{_enumerated(unranked)} {_is(unranked)} not ranked")
    return "Exploratory: " * group.explored + "; ".join(parts) + "."


def _least(family: Family) -> str:
    return "lowest" if family.metric.better == "lower" else "highest"


def _enumerated(names: list[str]) -> str:
    kept = names if len(names) <= MOST else [*names[: MOST - 1], f"{len(names) - MOST + 1} others"]
    return kept[0] if len(kept) == 1 else f"{', '.join(kept[:-1])} and {kept[-1]}"


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _differs(group: Group) -> str:
    rows = group.rows
    if len(rows) == 1:
        return f"Nothing: {rows[0].name} is alone here, so there is nothing to compare it with."
    tables = [row.first.settings for row in rows]
    keys = sorted({key for table in tables for key in table})
    differ = [key for key in keys if len({table.get(key) for table in tables}) > 1]
    names = ", ".join(row.name for row in rows[:MOST]) + (", ..." if len(rows) > MOST else "")
    what = ", ".join(differ[:MOST]) or "nothing that a setting says"
    more = len(differ) - MOST
    return f"{names} differ in {what}" + (f" and {more} more settings." if more > 0 else ".")


def _by(group: Group) -> tuple[str, ...]:
    """The sentences about the first row, then what else was told apart, then what was not."""
    drawn = [curve.sentence for curve in group.curves if curve.sentence]
    if not group.verdicts:
        nothing = "Nothing can be said: fewer than two candidates here may be compared."
        return (*drawn[:MOST], nothing)
    first = group.rows[0].name

    def place(v: Verdict) -> tuple[bool, bool, float]:
        return first not in (v.a.name, v.b.name), not v.winner(), v.p

    said = (_sentence(v.sentence) for v in sorted(group.verdicts, key=place))
    told = list(dict.fromkeys(said))  # a rate of divergence is the same in each comparison
    left = len(told) - MOST
    return (
        *drawn[:MOST],
        *told[:MOST],
        *([f"And {many(left, 'more comparison')}."] if left > 0 else ()),
    )


def _cost(group: Group) -> tuple[str, ...]:
    """What was matched, and the other costs as ratios to the first row."""
    if len(group.rows) < 2:
        return ()
    first, found = group.rows[0], []
    column = AXES.get(group.axis, group.axis)
    sound = [row for row in group.rows if not row.barred]
    values = [row.amounts[column] for row in sound if column in row.amounts]
    if len(values) > 1 and min(values) > 0:
        spread = max(values) / min(values) - 1
        what = AXIS.get(group.axis, group.axis.replace("_", " "))
        found.append(
            f"{'All' if len(sound) == len(group.rows) else 'Those compared'} have the same {what}"
            + (f", to {100 * spread:.1g} %." if spread > 1e-9 else ".")
        )
    found += [text for row in group.rows[1:MOST] if (text := _ratios(row, first, column))]
    heavy = [row for row in group.rows if row.amounts.get("head_share", 0) > HEAVY]
    found += [
        f"The output head is {shown('head_share', row.amounts['head_share'])} of the FLOPs of "
        f"{row.name}: at a larger size the balance is another."
        for row in heavy[:MOST]
    ]
    return tuple(found)


def _ratios(row: Row, first: Row, matched: str) -> str:
    """What a row costs beside another."""
    both = [k for k in RATIOS if k != matched and first.amounts.get(k) and k in row.amounts]
    ratios = {key: f"{row.amounts[key] / first.amounts[key]:.2f}" for key in both}
    other = [f"{r} x {COLUMNS[key].label}" for key, r in ratios.items() if r != "1.00"]
    equal = [COLUMNS[key].label for key, r in ratios.items() if r == "1.00"]
    parts = [", ".join(other)] * bool(other) + [f"equal {', '.join(equal)}"] * bool(equal)
    return f"{row.name} against {first.name}: {'; '.join(parts)}." if parts else ""


def _sure(group: Group) -> tuple[str, ...]:
    found = []
    if group.value is None:
        found.append("What these rows cost is not known, so nothing shows that it is the same.")
    elif not group.declared:
        found.append(
            "Exploratory: no matched axis was declared before the runs, so rows stand together "
            "because their training FLOPs agree within 1 %."
        )
    elif not group.rows[0].first.study.plan:
        found.append("The axis is declared, but no plan: nothing shows that it was so beforehand.")
    if group.declared and group.explored:
        found.append("Exploratory: what is compared here was not declared before the runs.")
    ranked = [row for row in group.rows if row.rank is not None]
    claims = [v.claimable for v in group.verdicts if math.isfinite(v.claimable)]
    if len(ranked) > 1:
        runs = sorted({row.sample.runs for row in ranked})
        n = str(runs[0]) if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
        text = f"n={n} training runs of each, which differ in their seed alone"
        if claims:
            text += f"; differences below {min(claims):.2g} could not have been claimed"
        found.append(f"{text}. A rank is 1 + the rows shown to be better.")
    elif len(group.rows) > 1 and not group.refusals and not group.curves:
        found.append("Nothing is ranked: that takes 3 training runs each of two candidates.")
    lost = [(row, sum(r.state in ("failed", "unfinished") for r in row.runs)) for row in ranked]
    found += [f"Left out of {row.name}: {many(n, 'run')} without an end." for row, n in lost if n]
    found += [_sentence(refusal) for refusal in group.refusals[:MOST]]
    if len(group.refusals) > MOST:
        found.append(f"{len(group.refusals) - MOST} more rows are not ranked.")
    return tuple(found)


def _sentence(text: str) -> str:
    return text.replace("+-", "±") + "."
