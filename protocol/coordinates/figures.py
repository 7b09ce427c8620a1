"""Pictures of a coordinate check: the size of every tap by width after some steps."""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from protocol.board.figures import COLORS, use_log_axis
from protocol.coordinates.measure import MAX_SLOPE, CoordinateCheck

MAX_PANELS = 4


def iter_figures(check: CoordinateCheck) -> Iterator[tuple[str, Figure]]:
    """Yields the name and the figure of the picture."""
    last = check.num_steps
    steps = sorted({round(step) for step in np.linspace(0, last, min(MAX_PANELS, last + 1))})
    figure = Figure(figsize=(2.6 * len(steps), 3.0))
    panels = figure.subplots(1, len(steps), sharey=True, squeeze=False)[0]
    for axes, step in zip(panels, steps, strict=True):
        slopes = check.slopes(step)
        for name, sizes in check.taps.items():
            color = COLORS[1] if abs(slopes[name]) > MAX_SLOPE else COLORS[0]
            axes.plot(check.widths, sizes[:, step], color=color, linewidth=0.8, marker=".", ms=3)
        axes.set(xscale="log", xlabel="width", title=f"after {step} steps")
        axes.set_xticks(check.widths, [str(width) for width in check.widths])
        axes.minorticks_off()
    use_log_axis(panels[0], "y", "{:g}".format)
    panels[0].set_ylabel("root mean square")
    figure.suptitle(f"{check.parametrization}: slopes above {MAX_SLOPE:g} in the second color")
    figure.tight_layout()
    yield "coordinates", figure
