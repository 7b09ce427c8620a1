"""The board as a table for the terminal, Markdown, CSV and JSON; `protocol/page.py` makes the page.

What came out of a run folder is text: each form escapes it for whoever reads the form.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from protocol import words
from protocol.board import Board, Family, Group
from protocol.columns import COLUMNS, shown
from protocol.metrics import better
from protocol.page import page
from protocol.records import Record
from protocol.rows import Row
from training.files import disk

FORMAT = 1  # of leaderboard.json
FORMULA = tuple("=+-@＝＋－＠")  # what a spreadsheet would compute
MARKDOWN = re.compile(r"([\\`*_\[\]<>#|~&$])")
SCREEN_GROUPS, SCREEN_ROWS = 8, 20
TERMINAL = ("params", "training_flops", "seconds", "state_bytes")


def write(board: Board, folder: Path) -> list[Path]:
    """All files of the board in `folder`; the same board gives the same bytes."""
    texts = {
        "leaderboard.md": markdown(board),
        "leaderboard.csv": spreadsheet(board),
        "leaderboard.json": json.dumps(tree(board), allow_nan=False) + "\n",
        "leaderboard.html": page(board),
    }
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8", newline="")
    return [folder / name for name in texts]


def terminal(board: Board, console: Console) -> None:
    """A table for each group, and in words what it shows; of a large board, its beginning."""
    groups = list(_groups(board))
    for family, group in groups[:SCREEN_GROUPS]:
        table = Table(title=Text(_title(family, group)))
        for label in ("rank", "candidate", words.named(family.name), "n"):
            table.add_column(label, overflow="fold")
        for key in TERMINAL:
            table.add_column(COLUMNS[key].label, justify="right")
        for row in group.rows[:SCREEN_ROWS]:
            cells = [_rank(row), row.name, words.quality(row), str(row.sample.runs)]
            cells += [shown(key, row.amounts.get(key)) for key in TERMINAL]
            table.add_row(*map(Text, cells))
        console.print(table)
        if len(group.rows) > SCREEN_ROWS:
            console.print(Text(f"and {len(group.rows) - SCREEN_ROWS} more rows"))
        head = words.head(group, family)
        for text in (head.short, *head.by, *head.sure):
            console.print(Text(text))
    if len(groups) > SCREEN_GROUPS:
        console.print(Text(f"and {len(groups) - SCREEN_GROUPS} more groups: --out=DIR has them"))
    for item in board.unreadable:
        console.print(Text(f"not readable: {item.folder}: {item.reason}", style="yellow"))
    console.print(Text(words.counts(board)))


def markdown(board: Board) -> str:
    lines = ["# Leaderboard", "", _md(words.counts(board)) + ".", ""]
    for family, group in _groups(board):
        head = words.head(group, family)
        lines += [f"## {_md(_title(family, group))}", ""]
        lines += [_md(head.short), "", f"- **What differs:** {_md(head.differs)}"]
        for label, texts in (("By how much", head.by), ("At what cost", head.cost)):
            lines += [f"- **{label}:** {_md(' '.join(texts))}"] if texts else []
        lines += [f"- **How sure:** {_md(' '.join(head.sure))}"] if head.sure else []
        fixed = "; ".join(f"{key} {words.brief(text)}" for key, text in family.keys.items() if text)
        lines += [f"- **The same for all:** {_md(fixed)}", ""]
        keys = [key for key in COLUMNS if any(key in row.amounts for row in group.rows)]
        titles = ["rank", "candidate", words.named(family.name), "diverged/n"]
        titles += [*(COLUMNS[key].label for key in keys), "same data", "Pareto", "notes"]
        lines += [_cells(titles), "|" + " --- |" * len(titles)]
        for row in group.rows:
            cells = [_rank(row), row.name, words.quality(row), _diverged(row)]
            cells += [shown(key, row.amounts.get(key)) for key in keys]
            cells += [row.same_data, ", ".join(row.fronts), "; ".join((*row.problems, *row.notes))]
            lines.append(_cells(cells))
        lines.append("")
    lines += ["## Not ranked together", "", *(f"- {_md(x)}" for x in board.apart), ""] * bool(
        board.apart
    )
    if board.unreadable:
        lines += ["## Not readable", ""]
        lines += [f"- {_md(item.folder)}: {_md(item.reason)}" for item in board.unreadable]
    return "\n".join(lines).rstrip() + "\n"


def spreadsheet(board: Board) -> str:
    """One line a candidate; numbers in full, text that begins like a formula behind a quote."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    costs, keys = list(COLUMNS), list(board.families[0].keys) if board.families else []
    writer.writerow(
        [
            *("family", "axis", "value", "rank", "exploratory", "candidate", "metric"),
            *(
                "mean",
                "low",
                "high",
                "n",
                "diverged",
                *costs,
                "same_data",
                "pareto",
                "problems",
                "notes",
                "source",
            ),
            *("command", "evidence", *keys),
        ]
    )
    for number, family in enumerate(board.families, 1):
        for group in family.groups:
            for row in group.rows:
                writer.writerow(_line(number, family, group, row))
    return out.getvalue()


def _line(number: int, family: Family, group: Group, row: Row) -> list[Any]:
    interval = row.interval
    texts = [row.same_data, " ".join(row.fronts), "; ".join(row.problems), "; ".join(row.notes)]
    texts += [row.first.source, row.first.command, row.first.evidence, *family.keys.values()]
    return [
        *(number, safe(group.axis), _blank(group.value), _blank(row.rank)),
        *(str(group.explored).lower(), safe(row.name)),
        *(safe(family.name), _blank(row.sample.mean)),
        *(("", "") if interval is None else interval),
        *(row.sample.runs, row.sample.diverged),
        *(_blank(row.amounts.get(key)) for key in COLUMNS),
        *map(safe, texts),
    ]


def safe(text: str) -> str:
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text


def tree(board: Board) -> dict[str, Any]:
    """The board as JSON: a row has lm-evaluation-harness's keys, and what those do not hold."""
    return {
        "format": FORMAT,
        "families": [
            {
                "keys": dict(family.keys),
                "metric": family.name,
                "groups": [_group(group, family) for group in family.groups],
            }
            for family in board.families
        ],
        "not_ranked_together": list(board.apart),
        "tuning_runs": board.tuning,
        "unreadable": [item._asdict() for item in board.unreadable],
    }


def _group(group: Group, family: Family) -> dict[str, Any]:
    return {
        "axis": group.axis,
        "declared": group.declared,
        "exploratory": group.explored,
        "value": group.value,
        "head": words.head(group, family)._asdict(),
        "comparisons": [
            {"a": v.a.name, "b": v.b.name, "declared": v.declared, "margin": v.metric.margin}
            | {"verdict": v.kind, "p": v.p, "sentence": v.sentence}
            for v in group.verdicts
        ],
        **({"minima": [curve.tree for curve in group.curves]} if group.curves else {}),
        "refusals": list(group.refusals),
        "rows": [_row(row, family) for row in group.rows],
    }


def _row(row: Row, family: Family) -> dict[str, Any]:
    first, interval = row.first, row.interval
    tasks = {name: name.rpartition("/")[0] or name for name in row.scores}
    results: dict[str, dict[str, Any]] = {}
    for name, value in row.scores.items():
        metric = name.rpartition("/")[2]
        results.setdefault(tasks[name], {"alias": tasks[name]})[f"{metric},none"] = value
    return {
        "results": results,
        "versions": {
            tasks[name]: run.scores[name][1]
            for run in row.runs
            for name in row.scores
            if name in run.scores
        },
        "higher_is_better": {
            tasks[family.name]: {family.name.rpartition("/")[2]: family.metric.better == "higher"}
        }
        if family.name in tasks and better(family.name, first.study)
        else {},
        "config": {"model": row.name, "model_args": dict(first.settings)},
        "git_hash": first.code,
        "rank": row.rank,
        "mean": row.sample.mean,
        "interval": None if interval is None else list(interval),
        "n": row.sample.runs,
        "diverged": row.sample.diverged,
        "amounts": dict(row.amounts),
        "architecture": first.architecture,
        "same_data": row.same_data,
        "pareto": list(row.fronts),
        "problems": list(row.problems),
        "notes": list(row.notes),
        "self_reported": first.source or None,
        "refutes": first.study.refutes or None,
        "runs": [_run(run) for run in row.runs],
    }


def _run(run: Record) -> dict[str, Any]:
    return {
        "folder": run.folder,
        "run_id": run.run_id,
        "seed": run.seed,
        "state": run.state,
        "value": run.value if run.value is not None and math.isfinite(run.value) else None,
        "evidence": run.evidence,
        "command": run.command,
    }


def _groups(board: Board) -> Iterator[tuple[Family, Group]]:
    for family in board.families:
        for group in family.groups:
            yield family, group


def _title(family: Family, group: Group) -> str:
    at = words.subtitle(group)
    return f"{words.title(family)}, {at[0].lower()}{at[1:]}"


def _rank(row: Row) -> str:
    return "" if row.rank is None else str(row.rank)


def _diverged(row: Row) -> str:
    return f"{row.sample.diverged}/{row.sample.runs}"


def _blank(value: float | None) -> float | str:
    return "" if value is None else value


def _cells(texts: list[str]) -> str:
    return "| " + " | ".join(map(_md, texts)) + " |"


def _md(text: str) -> str:
    """Text in which Markdown finds no mark-up, no cell and no line of its own."""
    return MARKDOWN.sub(r"\\\1", text.replace("\n", " "))
