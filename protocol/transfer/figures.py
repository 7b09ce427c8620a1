"""Pictures of a search for rates: the loss over the rate, a curve for each width.

A star is the best rate of the grid, a dotted line the minimum of the parabola.
"""

from collections.abc import Iterator

from matplotlib.figure import Figure

from protocol.board.figures import COLORS, MARKERS, use_log_axis
from protocol.transfer.search import RateSearch


def iter_figures(search: RateSearch) -> Iterator[tuple[str, Figure]]:
    """Yields the name and the figure of the picture."""
    figure = Figure(figsize=(5, 3.4))
    axes = figure.subplots()
    for index, width in enumerate(search.widths):
        losses, best = search.losses(width), search.best_rate(width)
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        axes.plot(list(losses), list(losses.values()), color=color, marker=marker, ms=4)
        axes.plot([best], [losses[best]], color=color, marker="*", ms=11, label=f"width {width}")
        axes.axvline(search.parabola(width).minimum, color=color, lw=1, ls=":")
    axes.set(xlabel="learning rate", ylabel="loss (nats per token)")
    use_log_axis(axes, format_tick="{:g}".format)
    axes.set_title(f"{' '.join(search.layers)}, {search.parametrization}")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    yield "transfer", figure
