"""Pictures of a fit: loss by size at each budget, and residuals of the surface by compute."""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure

from formatting import format_scientific
from protocol.board.figures import COLORS, MARKERS
from protocol.fit.report import FitReport
from protocol.statistics.isoflop import Minimum
from protocol.statistics.scaling_law import Point
from protocol.statistics.surface import SurfaceFit


def iter_figures(reports: Sequence[FitReport]) -> Iterator[tuple[str, Figure]]:
    """Yields the name and the figure of each picture."""
    for number, report in enumerate(reports, 1):
        minima = [m for result in report.results for m in result.minima]
        fits = [r.fit for r in report.results if isinstance(r.fit, SurfaceFit)]
        if minima:
            yield f"fit{number}-curves", _curves(report.points, minima, report.source.name)
        if fits:
            yield f"fit{number}-residuals", _residuals(report, fits[0])


def _curves(points: Sequence[Point], minima: Sequence[Minimum], name: str) -> Figure:
    figure = Figure(figsize=(5, 3.4))
    axes = figure.subplots()
    for index, m in enumerate(minima):
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        sizes = [p.params for p in points if p.budget == m.budget]
        losses = [p.loss for p in points if p.budget == m.budget]
        grid = np.geomspace(min(sizes), max(sizes), 100)
        label = f"{format_scientific(m.budget)} FLOPs"
        axes.plot(sizes, losses, linestyle="", marker=marker, color=color, ms=4, label=label)
        axes.plot(grid, m.loss_at(grid), color=color, linewidth=1)
        fill = "none" if m.is_at_edge else color
        axes.plot([m.params], [m.loss], marker="*", color=color, markerfacecolor=fill, ms=10)
    axes.set(xscale="log", xlabel="parameters", ylabel="loss", title=name)
    axes.legend(fontsize=7)
    return figure


def _residuals(report: FitReport, fit: SurfaceFit) -> Figure:
    figure = Figure(figsize=(5, 3.4))
    axes = figure.subplots()
    means = fit.means
    compute = 6 * means.params * means.tokens
    residuals = means.losses - fit.law.loss(means.params, means.tokens) - fit.gap * means.gaps
    axes.plot(compute, residuals, linestyle="", marker="o", color=COLORS[0], ms=4)
    axes.axhline(0.0, color="0.4", linewidth=0.8)
    axes.set(xscale="log", xlabel="6 N D", ylabel="loss - surface", title=report.source.name)
    return figure
