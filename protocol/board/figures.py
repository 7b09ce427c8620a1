"""The charts of the board as figures for papers, PDF and SVG: `leaderboard.py --figures=DIR`.

They show what the page shows, in its light colors, and the same board gives the same bytes. A
reader who confuses colors can tell the rows apart by the shapes of their marks.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from formatting import format_scientific
from protocol.board.baselines import LINES, Baseline, group_baselines
from protocol.board.board import Board, ComparableSet
from protocol.board.columns import COLUMNS, PARETO_COSTS, format_score, metric_label
from protocol.board.groups import Group, sort_key
from protocol.board.rows import BoardRow
from protocol.statistics.verdict import MetricSpec
from storage.disk_errors import disk_errors

STYLE = Path(__file__).parent / "board.css"
COLORS = tuple(
    re.findall(r"--c\d: (#[0-9a-f]{6})", STYLE.read_text("utf-8").partition("@media")[0])
)
MARKERS = ("o", "s", "^", "D")
MAX_ROWS = 40  # Rows of a chart; more cannot be told apart.
MIN_INTERVAL_RUNS = 3  # The interval of two runs is so wide that it hides the others.
FormatTick = Callable[[float], str]
METADATA: Mapping[str, Mapping[str, None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


def write_figures(board: Board, folder: Path) -> list[Path]:
    """Writes each chart of the board to `folder` as PDF and SVG, and returns the paths."""
    return save_figures(_iter_figures(board), folder)


def save_figures(figures: Iterator[tuple[str, Figure]], folder: Path) -> list[Path]:
    """Writes named figures, in the style of the board, as PDF and SVG; returns the paths."""
    paths = []
    context = matplotlib.rc_context(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "svg.hashsalt": "isoflop",
            "text.parse_math": False,
            "pdf.fonttype": 42,
        }
    )
    with context, disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures:
            for kind, metadata in METADATA.items():
                path = folder / f"{name}.{kind}"
                figure.savefig(path, format=kind, metadata=dict(metadata), bbox_inches="tight")
                paths.append(path)
    return paths


def use_log_axis(
    axes: Axes, name: Literal["x", "y"] = "x", format_tick: FormatTick = format_scientific
) -> None:
    """Makes an axis logarithmic, with ticks that are not empty in a narrow range either.

    The labels of ticks are plain text, since `save_figures` draws no mathematical notation.
    """
    axis: Axis = axes.xaxis if name == "x" else axes.yaxis
    if name == "x":
        axes.set_xscale("log")
        low, high = axes.get_xlim()
    else:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
    steps = (1.0,) if high / low > 1000 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=steps) if high / low > 4 else MaxNLocator(4))
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axis.set_minor_formatter(NullFormatter())


def _iter_figures(board: Board) -> Iterator[tuple[str, Figure]]:
    for number, comparable_set in enumerate(board.comparable_sets, 1):
        colors = dict.fromkeys(row.name for row in comparable_set.rows)
        places = {name: index for index, name in enumerate(colors)}
        for index, group in enumerate(comparable_set.groups, 1):
            rows = [row for row in group.rows if row.sample.values]
            if 1 < len(rows) <= MAX_ROWS:
                yield (
                    f"set{number}-group{index}-results",
                    _results(group, rows, comparable_set, places),
                )
        rows = [row for row in comparable_set.rows if row.sample.mean is not None]
        for cost in PARETO_COSTS:
            priced = [row for row in rows if row.costs.get(cost, 0) > 0]
            if priced:
                yield f"set{number}-pareto-{cost}", _pareto(priced, cost, comparable_set, places)
        if drawn := [row for row in comparable_set.rows if any(_curves(row))]:
            yield f"set{number}-curves", _learning_curves(drawn, comparable_set, places)
        if len(comparable_set.groups) > 1 and any("params" in row.costs for row in rows):
            yield f"set{number}-isoflop", _isoflop(comparable_set)


def _results(
    group: Group, rows: Sequence[BoardRow], comparable_set: ComparableSet, places: Mapping[str, int]
) -> Figure:
    """Returns the runs, the means with intervals, and the places that the rows may have."""
    figure = Figure(figsize=(6.5, 0.9 + 0.3 * len(rows)))
    last = max((row.rank_interval.high for row in rows if row.rank_interval), default=0)
    axes, ranks = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1)) if last else (None, None)
    axes = figure.subplots() if axes is None else axes
    for y, row in enumerate(rows):
        color, marker = _style(places[row.name])
        if (interval := _wide_interval(row)) is not None:
            axes.plot(interval, (y, y), color=color, linewidth=1.5)
        means = [] if row.sample.mean is None else [row.sample.mean]
        for xs, size, alpha in ((row.sample.values, 16, 0.4), (means, 36, 1.0)):
            axes.scatter(xs, [y] * len(xs), size, color, marker=marker, alpha=alpha, zorder=2)
        if ranks is not None and row.rank_interval is not None:
            low, high = row.rank_interval
            ranks.barh(y, high - low + 1, 0.5, left=low - 0.5, color=color)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    _draw_baselines(axes, _group_lines([group], comparable_set), vertical=True)
    axes.set_xlabel(_metric_label(comparable_set))
    if ranks is not None:
        ranks.set(xlim=(0.5, last + 0.5), xticks=range(1, last + 1), xlabel="places")
        ranks.tick_params(left=False)
    return figure


def _pareto(
    rows: Sequence[BoardRow], cost: str, comparable_set: ComparableSet, places: Mapping[str, int]
) -> Figure:
    """Returns quality against a cost, with intervals and the front as steps."""
    figure = Figure(figsize=(5, 3.4))
    axes = figure.subplots()
    for row in rows:
        color, marker = _style(places[row.name])
        if (interval := _wide_interval(row)) is not None:
            axes.plot([row.costs[cost]] * 2, interval, color=color, linewidth=1.5)
        if row.sample.mean is not None:
            axes.scatter([row.costs[cost]], [row.sample.mean], 36, color, marker=marker, zorder=2)
    front = _front(rows, cost, comparable_set.metric)
    if len(front) > 1:
        costs, values = zip(*front, strict=True)
        axes.step(costs, values, where="post", color="0.4", linestyle=":", linewidth=1, zorder=0)
    use_log_axis(axes)
    _draw_baselines(axes, _group_lines(comparable_set.groups, comparable_set))
    axes.set(xlabel=COLUMNS[cost].label, ylabel=_metric_label(comparable_set))
    _add_legend(axes, rows, places)
    return figure


def _front(rows: Sequence[BoardRow], cost: str, metric: MetricSpec) -> list[tuple[float, float]]:
    """Returns the points for which no row is both better and cheaper, by rising cost."""
    front: list[tuple[float, float]] = []
    best = float("inf")
    for row in sorted(rows, key=lambda r: (r.costs[cost], *sort_key(r.sample, metric))):
        quality, _ = sort_key(row.sample, metric)
        if quality < best and row.sample.mean is not None:
            best = quality
            front.append((row.costs[cost], row.sample.mean))
    return front


def _learning_curves(
    rows: Sequence[BoardRow], comparable_set: ComparableSet, places: Mapping[str, int]
) -> Figure:
    """Returns the mean over the runs of each row, with a band from the lowest to the highest."""
    figure = Figure(figsize=(5, 3.4))
    axes = figure.subplots()
    for row in rows:
        tokens, losses = mean_curve(_curves(row))
        color = _style(places[row.name]).color
        axes.plot(tokens, losses.mean(axis=0), color=color, linewidth=1.4)
        if len(losses) > 1:
            low, high = losses.min(axis=0), losses.max(axis=0)
            axes.fill_between(tokens, low, high, color=color, alpha=0.2, linewidth=0)
    use_log_axis(axes)
    metric = rows[0].first_run.learning_curve_metric
    if metric == "bits_per_byte":
        _draw_baselines(axes, _group_lines(comparable_set.groups, comparable_set))
    axes.set(xlabel="training tokens", ylabel=f"training {metric.replace('_', ' ')}")
    _add_legend(axes, rows, places)
    return figure


def _isoflop(comparable_set: ComparableSet) -> Figure:
    """Returns quality against size, with a line for each budget and architecture."""
    figure = Figure(figsize=(5, 3.4))
    axes = figure.subplots()
    points: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for group in comparable_set.groups:
        for row in group.rows:
            if row.sample.mean is not None and row.costs.get("params", 0) > 0:
                name = row.first_run.architecture.partition(",")[0]
                point = (row.costs["params"], row.sample.mean)
                points.setdefault((name, group.value or 0.0), []).append(point)
    names = list(dict.fromkeys(name for name, _ in points))
    for (name, _), line in points.items():
        style = _style(names.index(name))
        axes.plot(*zip(*sorted(line), strict=True), color=style.color, marker=style.marker)
    use_log_axis(axes)
    axes.set(xlabel="parameters", ylabel=_metric_label(comparable_set))
    axes.legend([_legend_mark(index) for index in range(len(names))], names)
    return figure


def mean_curve(
    curves: Sequence[Sequence[tuple[float, float]]],
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, "R P"]]:
    """Returns the tokens of the first run that all runs reach, and the loss of each run there."""
    start, end = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    tokens = np.array([x for x, _ in curves[0] if start <= x <= end])
    columns = [np.array(curve).T for curve in curves]
    return tokens, np.stack([np.interp(tokens, xs, ys) for xs, ys in columns])


def _curves(row: BoardRow) -> list[tuple[tuple[float, float], ...]]:
    return [run.learning_curve for run in row.runs if run.learning_curve]


def _wide_interval(row: BoardRow) -> tuple[float, float] | None:
    interval = row.interval
    if interval is None or row.sample.n_runs < MIN_INTERVAL_RUNS:
        return None
    return interval.low, interval.high


def _group_lines(groups: Sequence[Group], comparable_set: ComparableSet) -> list[Baseline]:
    """Returns the baselines of a single group; those of several would not be one line."""
    if len(groups) != 1:
        return []
    scores = [row.scores for row in groups[0].rows]
    return [b for b in group_baselines(scores, comparable_set.metric_name) if b.key in LINES]


def _draw_baselines(axes: Axes, lines: Sequence[Baseline], *, vertical: bool = False) -> None:
    """Draws the baselines that lie near the values; others would leave the values no room."""
    low, high = sorted(axes.get_xlim() if vertical else axes.get_ylim())
    for line in lines:
        if not low - (high - low) < line.mean < high + (high - low):
            continue
        label = f"{line.label} {format_score(line.mean)}"
        draw = axes.axvline if vertical else axes.axhline
        draw(line.mean, color="0.4", linestyle="--", linewidth=0.8, zorder=0)
        if vertical:
            at, transform, align = (line.mean, 1.0), axes.get_xaxis_transform(), "center"
        else:
            at, transform, align = (1.0, line.mean), axes.get_yaxis_transform(), "right"
        axes.text(*at, label, transform=transform, va="bottom", ha=align, size=7)


def _add_legend(axes: Axes, rows: Sequence[BoardRow], places: Mapping[str, int]) -> None:
    names = [name for name in places if any(row.name == name for row in rows)][:MAX_ROWS]
    handles = [_legend_mark(places[name]) for name in names]
    axes.legend(handles, names, loc="center left", bbox_to_anchor=(1.02, 0.5))


class MarkStyle(NamedTuple):
    """The color and the shape of the marks of a row."""

    color: str
    marker: str


def _style(index: int) -> MarkStyle:
    return MarkStyle(COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)])


def _legend_mark(index: int) -> Line2D:
    style = _style(index)
    return Line2D([], [], linestyle="", color=style.color, marker=style.marker)


def _metric_label(comparable_set: ComparableSet) -> str:
    arrow = "lower" if comparable_set.metric.better == "lower" else "higher"
    return f"{metric_label(comparable_set.metric_name)} ({arrow} is better)"
