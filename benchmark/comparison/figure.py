"""Validation over training as a figure."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmark.comparison.runs import CURVES, Side
from benchmark.diagnosis.drawing import LIGHT, Entry, axes, canvas, dress, legend, span, style

DATES = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # one comparison, the same bytes
WIDE, HIGH, APART = 240, 130, 56  # px


def write(path: Path, sides: Sequence[Side]) -> None:
    """The figure as a file of the kind that the path's suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with style():
        draw(sides).savefig(path, dpi=144, metadata=DATES.get(path.suffix))


def draw(sides: Sequence[Side]) -> Figure:
    """A panel a metric, a line a run, a dot at its selected step."""
    metrics = [name for name in CURVES if any(name in side.trail for side in sides)]
    rows, below = -(-len(metrics) // 2), 66 + 18 * -(-len(sides) // 2)
    title = "Validation over training in nats a sentence; dots: the selected step"
    figure = canvas(below + rows * (HIGH + APART) - 28, title)
    for i, name in enumerate(metrics):
        bottom = below + (rows - 1 - i // 2) * (HIGH + APART)
        panel = axes(figure, 44 + i % 2 * (WIDE + APART), bottom, WIDE, HIGH)
        trails = [side.trail.get(name, {}) for side in sides]
        for c, (side, trail) in enumerate(zip(sides, trails, strict=True)):
            points = np.reshape(sorted(trail.items()), (-1, 2))
            selected = points[points[:, 0] == side.known["selected_step"]]
            panel.plot(*points.T, color=LIGHT[f"c{c}"], linewidth=1.6)
            panel.plot(*selected.T, "o", color=LIGHT[f"c{c}"], markersize=6)
        panel.set_ylim(*span([value for trail in trails for value in trail.values()]))
        dress(panel, "step" if i >= len(metrics) - 2 else "", name)
    entries = [
        Entry(f"{side.letter}  {side.name}", LIGHT[f"c{c}"], "o") for c, side in enumerate(sides)
    ]
    legend(figure, entries, 44, below - 52, 544, 2)
    return figure
