"""The board as one page that needs nothing else: no network, no script but its own.

Markup comes from a template that escapes everything; numbers for the charts travel as JSON in which
nothing can end a script. The content security policy names the hashes of the only style and script.
"""

import base64
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from protocol import words
from protocol.board import Board, Family, Group
from protocol.columns import COLUMNS, FRONTS, shown
from protocol.rows import Row

HERE = Path(__file__).parent
COLOURS = 8
PROBE = "probe/"
ABOUT = {  # of columns that are not amounts
    "rank": "1 + the rows of this table that were shown to be better; blank: not ranked.",
    "candidate": "What was trained. Runs that differ in nothing but their seed are one row.",
    "quality": "Mean over training runs, ± half of its 95 % interval.",
    "n": "Diverged runs of all runs. A diverged run stays in the count.",
    "data": "Up to which step the row saw the very batches that the first row saw.",
    "Pareto": "Costs at which no other row is both better and cheaper; time: on the same devices.",
}


def page(board: Board) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((HERE / f"board.{kind}").read_text("utf-8") for kind in ("css", "js"))
    families = [_family(family, f"f{n}") for n, family in enumerate(board.families)]
    return environment.get_template("board.html.j2").render(
        policy=policy(style, script),
        style=Markup(style),
        script=Markup(script),
        data=Markup(embedded({"families": [family["data"] for family in families]})),
        counts=words.counts(board),
        families=families,
        board=board,
        about=ABOUT,
        columns=COLUMNS,
    )


def policy(style: str, script: str) -> str:
    """Nothing from anywhere, but this style and this script."""
    sources = {"style-src": style, "script-src": script}
    allowed = [f"{name} 'sha256-{_digest(text)}'" for name, text in sources.items()]
    return "; ".join(["default-src 'none'", *allowed, "base-uri 'none'", "form-action 'none'"])


def embedded(value: Any) -> str:
    """JSON that may stand in a script element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _family(family: Family, name: str) -> dict[str, Any]:
    """What the template and what the charts need."""
    colours = {
        row: index % COLOURS
        for index, row in enumerate(dict.fromkeys(row.name for row in family.rows))
    }
    groups = [_group(g, family, f"{name}g{n}", colours) for n, g in enumerate(family.groups)]
    probes = sorted({key for row in family.rows for key in row.scores if key.startswith(PROBE)})
    return {
        "id": name,
        "title": words.title(family),
        "better": family.metric.better,
        "metric": words.named(family.name),
        "keys": {key: words.brief(text) for key, text in family.keys.items() if text},
        "groups": groups,
        "probes": bool(probes),
        "budgets": len(family.groups) > 1,
        "data": {
            "id": name,
            "metric": words.named(family.name),
            "better": family.metric.better,
            "costs": {key: f"{COLUMNS[key].label}: {COLUMNS[key].about}" for key in FRONTS},
            "probes": probes,
            "groups": [group["data"] for group in groups],
        },
    }


def _group(group: Group, family: Family, name: str, colours: dict[str, int]) -> dict[str, Any]:
    rows = [_row(row, f"{name}r{n}", colours[row.name]) for n, row in enumerate(group.rows)]
    return {
        "id": name,
        "title": words.subtitle(group),
        "head": words.head(group, family),
        "sentences": [verdict.sentence.replace("+-", "±") for verdict in group.verdicts],
        "columns": [key for key in COLUMNS if any(key in row.amounts for row in group.rows)],
        "rows": rows,
        "data": {
            "id": name,
            "title": words.subtitle(group),
            "value": group.value,
            "rows": [row["data"] for row in rows],
        },
    }


def _row(row: Row, name: str, colour: int) -> dict[str, Any]:
    interval, first = row.interval, row.first
    badges = [("self-reported", first.source)] if first.source else []
    badges += [("refutation", first.study.refutes)] if first.study.refutes else []
    badges += [("diverged", row.few)] if row.sample.diverged else []
    badges += [("not comparable", "; ".join(row.barred))] * bool(row.barred and not first.source)
    return {
        "id": name,
        "row": row,
        "colour": colour,
        "quality": words.quality(row),
        "badges": badges,
        "text": f"{row.name} {first.architecture} {first.source}".lower(),
        "cells": {key: shown(key, row.amounts.get(key)) for key in COLUMNS},
        "data": {
            "id": name,
            "name": row.name,
            "architecture": first.architecture.partition(",")[0],
            "colour": colour,
            "ranked": row.rank is not None,
            "mean": row.sample.mean,
            "interval": None if interval is None else list(interval),
            "values": list(row.sample.values),
            "amounts": {k: _short(v) for k, v in row.amounts.items()},
            "probes": {k: v for k, v in row.scores.items() if k.startswith(PROBE)},
            "curve": first.curve_name,
            "curves": [
                [[_short(x), _short(y)] for x, y in run.curve] for run in row.runs if run.curve
            ],
        },
    }


def _short(x: float) -> float:
    """Five digits, enough for a chart."""
    return float(f"{x:.5g}") if math.isfinite(x) else 0.0
