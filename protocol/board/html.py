"""The board as one HTML page that needs no network and runs only its own script.

A template that escapes everything makes the markup. The numbers of the charts are JSON in which
nothing can end a script. The content security policy allows one style and one script, by hash.
"""

import base64
import hashlib
import json
import math
from pathlib import Path

import jinja2
from markupsafe import Markup

from protocol.board import sentences
from protocol.board.baselines import LINES, group_baselines, shown_baselines
from protocol.board.board import Board, ComparableSet, Group
from protocol.board.columns import COLUMNS, PARETO_COSTS, format_cell, metric_label
from protocol.board.fitted_laws import law_sentences
from protocol.board.rows import BoardRow
from protocol.board.score_signal import SIGNAL_COLUMNS
from protocol.records.comparability import key_label

TEMPLATE_FOLDER = Path(__file__).parent
N_COLORS = 8
PROBE_PREFIX = "probe/"
# Costs that the table shows at first, so that it fits 1,280 pixels; a button shows the others.
TABLE_COLUMNS = ("params", "training_flops", "tokens", "seconds", "peak_memory", "state_bytes")
COLUMN_HELP = {  # Descriptions of the columns that are not costs.
    "rank": "Places that the comparisons of all pairs leave open; without these, whether the row "
    "is above (better than) the reference, below it or not distinguished; –: not ranked.",
    "candidate": "The model that was trained. Runs that differ only in their seed are one row.",
    "quality": "Mean over training runs, ± half of its 95 % interval.",
    "diverged/n": "Diverged runs and all runs. A diverged run counts as a run.",
    "same data": "Number of steps for which the row saw the same batches as the first row.",
    "Pareto": "Costs at which no row is both better and cheaper; time on equal devices only.",
}


def to_html(board: Board) -> str:
    """Returns the page of the board."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (
        (TEMPLATE_FOLDER / f"board.{kind}").read_text("utf-8") for kind in ("css", "js")
    )
    sets = [
        _set_context(s, f"s{n}") | {"laws": law_sentences(s.laws, board.fit_source)}
        for n, s in enumerate(board.comparable_sets, 1)
    ]
    if len(sets) > 1:
        for number, context in enumerate(sets, 1):
            context["title"] = f"Set {number}: {context['title']}"
    return environment.get_template("board.html.j2").render(
        content_security_policy=content_security_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        data=Markup(inline_json({"comparable_sets": [s["data"] for s in sets]})),
        counts=sentences.format_counts(board),
        comparable_sets=sets,
        board=board,
        column_help=COLUMN_HELP,
        columns=COLUMNS,
        table_columns=TABLE_COLUMNS,
        signal_columns=SIGNAL_COLUMNS,
    )


def content_security_policy(style: str, script: str) -> str:
    """Returns a policy that allows this style and this script, and nothing else."""
    sources = {"style-src": style, "script-src": script}
    allowed = [f"{name} 'sha256-{_csp_hash(text)}'" for name, text in sources.items()]
    return "; ".join(["default-src 'none'", *allowed, "base-uri 'none'", "form-action 'none'"])


def inline_json(value: object) -> str:
    """Returns JSON that is safe inside a script element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _csp_hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _set_context(comparable_set: ComparableSet, name: str) -> dict[str, object]:
    """Returns the variables of the template, with those of the script as "data"."""
    rows, metric = comparable_set.rows, metric_label(comparable_set.metric_name)
    names = dict.fromkeys(row.name for row in rows)
    colors = {row_name: index % N_COLORS for index, row_name in enumerate(names)}
    groups = [
        _group_context(g, comparable_set, f"{name}g{n}", colors)
        for n, g in enumerate(comparable_set.groups)
    ]
    probes = sorted({key for row in rows for key in row.scores if key.startswith(PROBE_PREFIX)})
    return {
        "id": name,
        "title": sentences.set_title(comparable_set),
        "better": comparable_set.metric.better,
        "metric": metric,
        "keys": {
            key_label(key): sentences.shorten_hashes(text)
            for key, text in comparable_set.keys.items()
            if text
        },
        "groups": groups,
        "across": comparable_set.across,
        "has_probes": bool(probes),
        "has_budgets": len(comparable_set.groups) > 1,
        "data": {
            "id": name,
            "metric": metric,
            "better": comparable_set.metric.better,
            "pareto_costs": {key: COLUMNS[key].label for key in PARETO_COSTS},
            "probes": probes,
            "groups": [group["data"] for group in groups],
        },
    }


def _group_context(
    group: Group, comparable_set: ComparableSet, name: str, colors: dict[str, int]
) -> dict[str, object]:
    rows = [_row_context(row, f"{name}r{n}", colors[row.name]) for n, row in enumerate(group.rows)]
    columns = [key for key in COLUMNS if any(key in row.costs for row in group.rows)]
    baselines = group_baselines([row.scores for row in group.rows], comparable_set.metric_name)
    return {
        "id": name,
        "title": sentences.group_title(group),
        "summary": sentences.summarize_group(group, comparable_set),
        "sentences": [verdict.sentence.replace("+-", "±") for verdict in group.verdicts],
        "columns": columns,
        "signals": [signal for signal in group.signals if signal.result is not None],
        "has_more_columns": any(key not in TABLE_COLUMNS for key in columns),
        "baselines": shown_baselines(baselines),
        "all_baselines": baselines,
        "rows": rows,
        "data": {
            "id": name,
            "title": sentences.group_title(group),
            "value": group.value,
            "baselines": [{"label": b.label, "value": b.mean} for b in baselines if b.key in LINES],
            "rows": [row["data"] for row in rows],
        },
    }


def _row_context(row: BoardRow, name: str, color: int) -> dict[str, object]:
    interval, first = row.interval, row.first_run
    badges = [("self-reported", first.external_source)] if first.external_source else []
    badges += [("refutation", first.study.refutes)] if first.study.refutes else []
    badges += [("diverged", row.too_few_runs)] if row.sample.n_diverged else []
    if row.exclusions and not first.external_source:
        is_unfinished = all(run.state == "unfinished" for run in row.runs)
        label = "unfinished" if is_unfinished else "excluded"
        badges.append((label, "; ".join(row.exclusions)))
    return {
        "id": name,
        "row": row,
        "color": color,
        "quality": sentences.format_result(row),
        "badges": badges,
        "text": f"{row.name} {first.architecture} {first.external_source}".lower(),
        "cells": {key: format_cell(key, row.costs.get(key)) for key in COLUMNS},
        "data": {
            "id": name,
            "name": row.name,
            "architecture": first.architecture.partition(",")[0],
            "color": color,
            "rank": None if row.rank_interval is None else list(row.rank_interval),
            "place": row.place_text,
            "mean": row.sample.mean,
            "interval": None if interval is None else list(interval),
            "values": list(row.sample.values),
            "costs": {k: _round_for_chart(v) for k, v in row.costs.items()},
            "probes": {k: v for k, v in row.scores.items() if k.startswith(PROBE_PREFIX)},
            "curve_metric": first.learning_curve_metric,
            "curves": [
                [[_round_for_chart(x), _round_for_chart(y)] for x, y in run.learning_curve]
                for run in row.runs
                if run.learning_curve
            ],
        },
    }


def _round_for_chart(x: float) -> float:
    """Rounds to five digits, which are enough for a chart."""
    return float(f"{x:.5g}") if math.isfinite(x) else 0.0
