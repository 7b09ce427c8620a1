"""The isoFLOP picture: loss by size at each budget, and the sizes at the minima by budget."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from protocol.columns import scientific
from protocol.frontier import Minimum, PowerLaw
from protocol.scaling import Point


class Drawn(NamedTuple):
    """What is drawn of one architecture."""

    points: Sequence[Point]
    minima: Sequence[Minimum]
    frontier: PowerLaw | None = None  # of N


def plot(path: Path, architectures: Mapping[str, Drawn], metric: str = "loss") -> None:
    """Write the picture to `path`, whose ending says how (.png, .svg, .pdf)."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (name, drawn) in enumerate(architectures.items()):
        _curves(left, name, drawn, f"C{number}")
        _frontier(right, drawn, f"C{number}")
    left.set(xscale="log", xlabel="parameters", ylabel=metric)
    right.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel="parameters at minimum")
    left.legend(fontsize="small")
    figure.savefig(path)


def _curves(axes: Axes, name: str, drawn: Drawn, color: str) -> None:
    """Larger budgets are darker. Hollow minima lie at the edge, and are no findings."""
    label = name
    for shade, m in zip(np.linspace(0.35, 1, len(drawn.minima)), drawn.minima, strict=True):
        points = [p for p in drawn.points if p.budget == m.budget]
        sizes = np.array([p.params for p in points])
        axes.plot(sizes, [p.loss for p in points], ".", color=color, alpha=shade)
        line = np.geomspace(sizes.min(), sizes.max(), 100)
        axes.plot(line, m.loss_at(line), color=color, alpha=shade, label=label)
        end, text = (line[-1], m.loss_at(line)[-1]), f"{scientific(m.budget)} FLOPs"
        axes.annotate(text, end, (6, 0), textcoords="offset points", va="center", fontsize="small")
        fill = "none" if m.edge else color
        axes.plot([m.params], [m.loss], "D", color=color, markerfacecolor=fill)
        label = ""


def _frontier(axes: Axes, drawn: Drawn, color: str) -> None:
    inside = [m for m in drawn.minima if not m.edge]
    for m in inside:
        ends = m.interval or (m.params, m.params)
        axes.plot([m.budget] * 2, ends, color=color, alpha=0.5)
        axes.plot([m.budget], [m.params], "D", color=color)
    if drawn.frontier and inside:
        line = np.geomspace(inside[0].budget, inside[-1].budget, 2)
        axes.plot(line, [drawn.frontier.at(c) for c in line.tolist()], color=color)
