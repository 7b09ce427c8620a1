"""The board as a table for the terminal, as Markdown, CSV and JSON; `html.py` makes the page.

Texts from run folders are not trusted: each format escapes them for its reader.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from protocol.board import sentences
from protocol.board.baselines import Baseline, group_baselines, shown_baselines
from protocol.board.board import Board, ComparableSet, Group
from protocol.board.columns import COLUMNS, format_cell, metric_label, pluralize
from protocol.board.fitted_laws import law_sentences
from protocol.board.html import to_html
from protocol.board.rows import BoardRow
from protocol.board.score_signal import SIGNAL_COLUMNS
from protocol.records.comparability import key_label
from protocol.records.metrics import metric_direction
from protocol.records.run_record import RunRecord
from storage.disk_errors import disk_errors

FORMAT = 2  # Format of leaderboard.json.
FORMULA_PREFIXES = tuple("=+-@＝＋－＠")  # A spreadsheet would evaluate a text that begins so.
MARKDOWN_SPECIAL = re.compile(r"([\\`*_\[\]<>#|~&$])")
ACROSS_TITLE, LAWS_TITLE = "Across sizes and budgets", "Fitted laws"
MAX_TERMINAL_GROUPS, MAX_TERMINAL_ROWS = 8, 20
TERMINAL_COLUMNS = ("params", "training_flops", "seconds", "state_bytes")


def write_board(board: Board, folder: Path) -> list[Path]:
    """Writes all files of the board to `folder`; the same board gives the same bytes."""
    texts = {
        "leaderboard.md": to_markdown(board),
        "leaderboard.csv": to_csv(board),
        "leaderboard.json": json.dumps(to_json_tree(board), allow_nan=False) + "\n",
        "leaderboard.html": to_html(board),
    }
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8", newline="")
    return [folder / name for name in texts]


def print_board(board: Board, console: Console) -> None:
    """Prints a table of each group and its conclusions; of a large board, the first groups."""
    groups = list(_iter_groups(board))
    for title, comparable_set, group in groups[:MAX_TERMINAL_GROUPS]:
        table = Table(title=Text(title))
        metric = metric_label(comparable_set.metric_name)
        for label in ("rank", "candidate", metric, "n"):
            table.add_column(label, overflow="fold")
        for key in TERMINAL_COLUMNS:
            table.add_column(COLUMNS[key].label, justify="right")
        for row in group.rows[:MAX_TERMINAL_ROWS]:
            cells = [_format_rank(row), row.name, sentences.format_result(row)]
            cells += [str(row.sample.n_runs)]
            cells += [format_cell(key, row.costs.get(key)) for key in TERMINAL_COLUMNS]
            table.add_row(*map(Text, cells))
        console.print(table)
        if len(group.rows) > MAX_TERMINAL_ROWS:
            n_more = len(group.rows) - MAX_TERMINAL_ROWS
            console.print(Text(f"and {pluralize(n_more, 'more row')}"))
        summary = sentences.summarize_group(group, comparable_set)
        baselines = shown_baselines(_baselines(group, comparable_set))
        if baselines:
            texts = (f"{item.label} {item.text}" for item in baselines)
            console.print(Text(f"baselines: {', '.join(texts)}"))
        for text in (summary.verdict, *summary.comparisons, *summary.confidence):
            console.print(Text(text))
        if group is comparable_set.groups[-1]:
            for lines in _set_sentences(board, comparable_set).values():
                console.print(Text("\n".join(lines)))
    if len(groups) > MAX_TERMINAL_GROUPS:
        n_more = len(groups) - MAX_TERMINAL_GROUPS
        console.print(
            Text(f"and {pluralize(n_more, 'more group')}; --out=DIR writes a page with all of them")
        )
    for text in board.fit_problems:
        console.print(Text(f"not shown: {text}", style="yellow"))
    for item in board.unreadable:
        console.print(Text(f"not readable: {item.folder}: {item.reason}", style="yellow"))
    console.print(Text(sentences.format_counts(board)))


def to_markdown(board: Board) -> str:
    """Returns the board as a Markdown document."""
    lines = ["# Leaderboard", "", _escape_markdown(sentences.format_counts(board)) + ".", ""]
    for title, comparable_set, group in _iter_groups(board):
        lines += _group_markdown(title, comparable_set, group)
        if group is comparable_set.groups[-1]:
            for label, set_texts in _set_sentences(board, comparable_set).items():
                lines += [f"### {label}", "", *(f"- {_escape_markdown(t)}" for t in set_texts), ""]
    if board.fit_problems:
        lines += ["## Laws that are not shown", ""]
        lines += [*(f"- {_escape_markdown(text)}" for text in board.fit_problems), ""]
    if board.not_comparable:
        texts = (_escape_markdown(text) for text in board.not_comparable)
        lines += ["## Not comparable with each other", "", *(f"- {text}" for text in texts), ""]
    if board.unreadable:
        lines += ["## Not readable", ""]
        lines += [
            f"- {_escape_markdown(item.folder)}: {_escape_markdown(item.reason)}"
            for item in board.unreadable
        ]
    return "\n".join(lines).rstrip() + "\n"


def _group_markdown(title: str, comparable_set: ComparableSet, group: Group) -> list[str]:
    summary = sentences.summarize_group(group, comparable_set)
    keys_text = "; ".join(
        f"{key_label(key)} {sentences.shorten_hashes(text)}"
        for key, text in comparable_set.keys.items()
        if text
    )
    items = {
        "What differs": summary.differences,
        "By how much": " ".join(summary.comparisons),
        "At what cost": " ".join(summary.costs),
        "How sure": " ".join(summary.confidence),
        "The same for all": keys_text,
    }
    lines = [f"## {_escape_markdown(title)}", ""]
    lines += [_escape_markdown(summary.verdict), ""]
    lines += [f"- **{label}:** {_escape_markdown(text)}" for label, text in items.items() if text]
    columns = [key for key in COLUMNS if any(key in row.costs for row in group.rows)]
    metric = metric_label(comparable_set.metric_name)
    titles = ["rank", "candidate", metric, "diverged/n", *(COLUMNS[key].label for key in columns)]
    titles += ["same data", "Pareto", "notes"]
    lines += ["", _markdown_row(titles), "|" + " --- |" * len(titles)]
    for row in group.rows:
        cells = [_format_rank(row), row.name, sentences.format_result(row), _format_diverged(row)]
        cells += [format_cell(key, row.costs.get(key)) for key in columns]
        cells += [row.data_agreement, ", ".join(row.pareto)]
        cells += ["; ".join((*row.problems, *row.notes))]
        lines.append(_markdown_row(cells))
    for item in shown_baselines(_baselines(group, comparable_set)):
        cells = ["", item.label, item.text] + [""] * (len(titles) - 4) + ["baseline"]
        lines.append(_markdown_row(cells))
    return [*lines, "", *_signal_markdown(group)]


def _signal_markdown(group: Group) -> list[str]:
    """Returns the table of the signal and the noise of several scores."""
    rows = [[s.score, *s.cells] for s in group.signals if s.result is not None]
    if len(rows) < 2:
        return []
    titles = ["score", *SIGNAL_COLUMNS]
    header = [_markdown_row(titles), "|" + " --- |" * len(titles)]
    return [*header, *map(_markdown_row, rows), ""]


def to_csv(board: Board) -> str:
    """Returns a line for each row, with all digits; a formula is escaped with a quote."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    keys = list(board.comparable_sets[0].keys) if board.comparable_sets else []
    writer.writerow(
        [
            *("comparable_set", "axis", "value", "rank", "place", "exploratory", "candidate"),
            "metric",
            *("mean", "low", "high", "n", "diverged", *COLUMNS, "data_agreement", "pareto"),
            *("problems", "notes", "source", "command", "content_hash", *keys),
        ]
    )
    for number, comparable_set in enumerate(board.comparable_sets, 1):
        for group in comparable_set.groups:
            for row in group.rows:
                writer.writerow(_csv_row(number, comparable_set, group, row))
    return out.getvalue()


def _csv_row(
    number: int, comparable_set: ComparableSet, group: Group, row: BoardRow
) -> list[object]:
    interval, first = row.interval, row.first_run
    texts = [row.data_agreement, " ".join(row.pareto)]
    texts += ["; ".join(row.problems), "; ".join(row.notes)]
    texts += [first.external_source, first.command, first.content_hash]
    texts += comparable_set.keys.values()
    return [
        *(number, escape_formula(group.axis), _blank_if_none(group.value)),
        *(_blank_if_none(row.rank), row.place_text, str(group.is_exploratory).lower()),
        escape_formula(row.name),
        *(escape_formula(comparable_set.metric_name), _blank_if_none(row.sample.mean)),
        *(("", "") if interval is None else interval),
        *(row.sample.n_runs, row.sample.n_diverged),
        *(_blank_if_none(row.costs.get(key)) for key in COLUMNS),
        *map(escape_formula, texts),
    ]


def escape_formula(text: str) -> str:
    """Returns `text` with a quote before it if a spreadsheet would evaluate it."""
    return f"'{text}" if text.lstrip().startswith(FORMULA_PREFIXES) else text


def to_json_tree(board: Board) -> dict[str, object]:
    """Returns the board as JSON; a row has the keys of lm-evaluation-harness, and more."""
    return {
        "format": FORMAT,
        "comparable_sets": [_set_json(s) for s in board.comparable_sets],
        "not_comparable": list(board.not_comparable),
        "tuning_runs": board.tuning_runs,
        "stage_runs": board.stage_runs,
        "unreadable": [item._asdict() for item in board.unreadable],
        **({"fit": board.fit_source} if board.fit_source else {}),
    }


def _set_sentences(board: Board, comparable_set: ComparableSet) -> dict[str, list[str]]:
    """Returns what is said of a comparable set as a whole, by title; only what there is."""
    across = comparable_set.across
    texts = {
        ACROSS_TITLE: list(across.sentences) if across else [],
        LAWS_TITLE: law_sentences(comparable_set.laws, board.fit_source),
    }
    return {title: lines for title, lines in texts.items() if lines}


def _set_json(comparable_set: ComparableSet) -> dict[str, object]:
    across = comparable_set.across
    return {
        "keys": dict(comparable_set.keys),
        "metric": comparable_set.metric_name,
        "groups": [_group_json(group, comparable_set) for group in comparable_set.groups],
        **({"across_sizes": across.json_tree} if across else {}),
        **({"laws": [law.json_tree for law in comparable_set.laws]} if comparable_set.laws else {}),
    }


def _group_json(group: Group, comparable_set: ComparableSet) -> dict[str, object]:
    return {
        "axis": group.axis,
        "axis_declared": group.axis_declared,
        "exploratory": group.is_exploratory,
        "value": group.value,
        "summary": sentences.summarize_group(group, comparable_set)._asdict(),
        "comparisons": [
            {"a": v.a.name, "b": v.b.name, "declared": v.is_declared, "margin": v.metric.margin}
            | {"verdict": v.kind, "p": v.p, "sentence": v.sentence}
            | {"winner": v.winner(), "level": v.level, "half_width": v.half_width}
            for v in group.verdicts
        ],
        **({"minima": [curve.json_tree for curve in group.curves]} if group.curves else {}),
        "signals": [signal.json_tree for signal in group.signals],
        "problems": list(group.problems),
        "reference": group.reference_name,
        "baselines": {b.key: [b.low, b.high] for b in _baselines(group, comparable_set)},
        "order": group.order,
        "rows": [_row_json(row, comparable_set) for row in group.rows],
    }


def _row_json(row: BoardRow, comparable_set: ComparableSet) -> dict[str, object]:
    first, interval = row.first_run, row.interval
    metric_name = comparable_set.metric_name
    tasks = {name: name.rpartition("/")[0] or name for name in row.scores}
    results: dict[str, dict[str, object]] = {}
    for name, value in row.scores.items():
        metric = name.rpartition("/")[2]
        results.setdefault(tasks[name], {"alias": tasks[name]})[f"{metric},none"] = value
    higher_is_better = {}
    if metric_name in tasks and metric_direction(metric_name, first.study):
        is_higher = comparable_set.metric.better == "higher"
        higher_is_better = {tasks[metric_name]: {metric_name.rpartition("/")[2]: is_higher}}
    return {
        "results": results,
        "versions": {
            tasks[name]: run.scores[name][1]
            for run in row.runs
            for name in row.scores
            if name in run.scores
        },
        "higher_is_better": higher_is_better,
        "config": {"model": row.name, "model_args": dict(first.settings)},
        "git_hash": first.code_version,
        "rank": row.rank,
        "rank_interval": None if row.rank_interval is None else list(row.rank_interval),
        "standing": row.standing or None,
        "copy_of": row.copy_of or None,
        "mean": row.sample.mean,
        "interval": None if interval is None else list(interval),
        "n": row.sample.n_runs,
        "diverged": row.sample.n_diverged,
        "costs": dict(row.costs),
        "architecture": first.architecture,
        "data_agreement": row.data_agreement,
        "pareto": list(row.pareto),
        "problems": list(row.problems),
        "notes": list(row.notes),
        "self_reported": first.external_source or None,
        "refutes": first.study.refutes or None,
        "runs": [_run_json(run) for run in row.runs],
    }


def _run_json(run: RunRecord) -> dict[str, object]:
    return {
        "folder": run.folder,
        "run_id": run.run_id,
        "seed": run.seed,
        "state": run.state,
        "value": run.value if run.value is not None and math.isfinite(run.value) else None,
        "content_hash": run.content_hash,
        "command": run.command,
    }


def _iter_groups(board: Board) -> Iterator[tuple[str, ComparableSet, Group]]:
    """Yields groups with their titles, which number the comparable sets if there are several."""
    for number, comparable_set in enumerate(board.comparable_sets, 1):
        prefix = f"Set {number}: " if len(board.comparable_sets) > 1 else ""
        for group in comparable_set.groups:
            cost = sentences.group_title(group)
            title = f"{sentences.set_title(comparable_set)}, {cost[0].lower()}{cost[1:]}"
            yield prefix + title, comparable_set, group


def _baselines(group: Group, comparable_set: ComparableSet) -> list[Baseline]:
    return group_baselines([row.scores for row in group.rows], comparable_set.metric_name)


def _format_rank(row: BoardRow) -> str:
    return row.place_text


def _format_diverged(row: BoardRow) -> str:
    return f"{row.sample.n_diverged}/{row.sample.n_runs}"


def _blank_if_none(value: float | None) -> float | str:
    return "" if value is None else value


def _markdown_row(texts: list[str]) -> str:
    return "| " + " | ".join(map(_escape_markdown, texts)) + " |"


def _escape_markdown(text: str) -> str:
    """Escapes everything that Markdown would take for markup, a cell or a line."""
    return MARKDOWN_SPECIAL.sub(r"\\\1", text.replace("\n", " "))
