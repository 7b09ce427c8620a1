"""Pictures of a fit: loss by size at each budget, and residuals of the surface by compute."""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from formatting import format_scientific, format_si
from protocol.board.columns import metric_label
from protocol.board.figures import COLORS, MARKERS, use_log_axis
from protocol.fit.report import FitReport
from protocol.statistics.isoflop import Minimum
from protocol.statistics.scaling_law import MAX_EPOCHS
from protocol.statistics.surface import SurfaceFit


def iter_figures(reports: Sequence[FitReport]) -> Iterator[tuple[str, Figure]]:
    """Yields the name and the figure of each picture."""
    for number, report in enumerate(reports, 1):
        minima = [m for result in report.results for m in result.minima]
        fits = [r.fit for r in report.results if isinstance(r.fit, SurfaceFit)]
        if minima:
            yield f"fit{number}-curves", _curves(report, minima, fits[0] if fits else None)
        if fits:
            yield f"fit{number}-residuals", _residuals(report, fits[0])


def _curves(report: FitReport, minima: Sequence[Minimum], surface: SurfaceFit | None) -> Figure:
    """Draws the losses over N with the parabola of each budget, and the surface beside it."""
    figure = Figure(figsize=(6.4, 3.8))
    axes = figure.subplots()
    colors = colormaps["viridis"](np.linspace(0.0, 0.9, len(minima)))
    for index, (m, color) in enumerate(zip(minima, colors, strict=True)):
        curve = [p for p in report.points if p.budget == m.budget and p.epochs <= MAX_EPOCHS]
        sizes, tokens, losses = np.array(sorted((p.params, p.tokens, p.loss) for p in curve)).T
        grid = np.geomspace(sizes[0], sizes[-1], 100)
        axes.plot(
            *(sizes, losses),
            linestyle="",
            marker=MARKERS[index % len(MARKERS)],
            color=color,
            ms=4,
            label=f"{format_scientific(m.budget)} FLOPs",
        )
        axes.plot(grid, m.loss_at(grid), color=color, linewidth=1)
        if surface:
            on_grid = np.exp(np.interp(np.log(grid), np.log(sizes), np.log(tokens)))
            axes.plot(grid, surface.law.loss(grid, on_grid), "--", color=color, linewidth=1)
        if not m.is_at_edge:
            axes.plot([m.params], [m.loss], marker="*", color=color, markeredgecolor="k", ms=10)
    axes.plot([], [], color="0.4", linewidth=1, label="parabola")
    if surface:
        axes.plot([], [], "--", color="0.4", linewidth=1, label="surface")
    label = "minimum of the parabola"
    axes.plot([], [], "*", color="0.7", markeredgecolor="k", ms=10, label=label)
    axes.set(xlabel="parameters N", ylabel=_loss_label(report))
    use_log_axis(axes, format_tick=format_si)
    axes.set_title(report.source.name)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def _residuals(report: FitReport, fit: SurfaceFit) -> Figure:
    """Draws what the surface does not explain, one mark a size."""
    figure = Figure(figsize=(5, 3.4))
    axes = figure.subplots()
    means = fit.means
    compute = 6 * means.params * means.tokens
    residuals = means.losses - fit.law.loss(means.params, means.tokens) - fit.gap * means.gaps
    axes.plot(compute, residuals, linestyle="", marker="o", color=COLORS[0], ms=4)
    axes.axhline(0.0, color="0.4", linewidth=0.8)
    axes.set(xlabel="training FLOPs, 6 N D", title=report.source.name)
    use_log_axis(axes)
    axes.set_ylabel(f"{_loss_label(report)}, less the surface")
    return figure


def _loss_label(report: FitReport) -> str:
    return metric_label(report.source.metric) if report.source.metric else "loss"
