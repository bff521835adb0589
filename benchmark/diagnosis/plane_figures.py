"""The plane of posterior means over training (He et al., ICLR 2019), as SVG and as an animation;
imports no torch.

A trail is {"steps": [S], "plane": {"truth": [S][n][D], "encoder": [S][n][D], ...}}, a replay with
`plane.points` for its probe. The same trails give the same bytes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes

from benchmark.diagnosis.drawing import (
    AXES,
    FAINT,
    INK,
    LIGHT,
    RULE,
    Array,
    Entry,
    Look,
    Sheet,
    axes,
    canvas,
    legend,
    printable,
    say,
    style,
    svg,
    thinned,
)

Trail = Mapping[str, Any]
UNITS = (LIGHT["c0"], LIGHT["c1"])
PANELS, POINTS = 5, 200  # at most: of a row, and of a panel
SIDE, LEFT, ABOVE, BELOW = 92, 52, 30, 46  # px: of a panel, and around a row of them
LARGE = 240  # px: of an animation's panel
ROOMY = 1.0  # half an axis, at least: the prior's deviation, so that a dead code looks dead
READ = (
    "A point is a sentence: right, the mean of its true posterior; up, the mean that the encoder "
    "gives it. On the diagonal the encoder is right. On the horizontal line it lags: there is "
    "something to encode, and it says the prior. All at the centre, the decoder has dropped the "
    "code."
)


def sheet(trails: Mapping[str, Trail]) -> Sheet:
    """A row of panels for each trail, by its name, the steps evenly chosen."""
    planes = {name: _points(trail) for name, trail in trails.items()}
    half = _half(planes)
    title = "What the encoder says of the codes, by where they are"
    high = len(planes) * (SIDE + ABOVE) + BELOW
    figure, units = canvas(high, title), _units(planes)
    for row, (name, points) in enumerate(planes.items()):
        bottom = BELOW + (len(planes) - 1 - row) * (SIDE + ABOVE)
        for column, i in enumerate(thinned(len(points), PANELS)):
            panel = axes(figure, LEFT + column * (SIDE + 16), bottom, SIDE, SIDE)
            dress(panel, half, left=column == 0, bottom=row == len(planes) - 1)
            scatter(panel, points[i])
            say(panel, f"step {trails[name]['steps'][i]:,}", (0, 1), (0, 5), AXES, color=FAINT)
            if column == 0:
                look: Look = {"rotation": 90, "va": "center", "ha": "center"}
                say(panel, printable(name), (0, 0.5), (-38, 0), AXES, color=INK, **look)
    say(figure.axes[0], "mean of q(z|x)", (0, 1), (-44, 22), AXES, color=FAINT)
    say(figure.axes[-1], "mean of p(z|x)", (1, 0), (0, -34), AXES, color=FAINT, ha="right")
    if units > 1:
        entries = [Entry(f"unit {d}", UNITS[d], "o") for d in range(units)]
        legend(figure, entries, LEFT, 8, 160, 2)
    told = [
        f"{name or 'the model'}: standard deviation of the true means {_spread(points[-1][0])}, of "
        f"the encoder's {_spread(points[-1][1])}"
        for name, points in planes.items()
    ]
    return Sheet(figure, title, READ, f"{title}. At the last step {'; '.join(told)}.")


def panels(trails: Mapping[str, Trail], prefix: str = "plane") -> str:
    """`sheet` as the text of an SVG file; all its ids begin with the prefix."""
    with style():
        drawn = sheet(trails)
        return ElementTree.tostring(svg(drawn.figure, drawn.summary, prefix), encoding="unicode")


def animate(trails: Mapping[str, Trail], path: Path, fps: int = 2) -> None:
    """Write a GIF, or an animated PNG, by the path's suffix: a panel for each trail side by side, a
    frame for each step, which all trails must share. Raises ValueError."""
    steps = [[*trail["steps"]] for trail in trails.values()]
    if any(some != steps[0] for some in steps):
        raise ValueError("an animation needs trails of the same steps: replay them at the same")
    planes = {name: _points(trail) for name, trail in trails.items()}
    half, writer = _half(planes), PillowWriter(fps)
    with style():
        figure = canvas(LARGE + ABOVE + BELOW, "", LEFT + len(planes) * (LARGE + 24))
        for i, name in enumerate(planes):
            panel = axes(figure, LEFT + i * (LARGE + 24), BELOW, LARGE, LARGE)
            dress(panel, half, left=i == 0, bottom=True)
            say(panel, printable(name), (0, 1), (0, 8), AXES, color=INK)
            say(panel, "mean of p(z|x)", (1, 0), (0, -34), AXES, color=FAINT, ha="right")
            if i == 0:
                say(panel, "mean of q(z|x)", (0, 1), (-44, 26), AXES, color=FAINT)
        headline = figure.texts[0]
        with writer.saving(figure, str(path), dpi=144):
            for i, step in enumerate(steps[0]):
                headline.set_text(f"step {step:,}")
                drawn = [
                    line
                    for panel, points in zip(figure.axes, planes.values(), strict=True)
                    for line in scatter(panel, points[i])
                ]
                writer.grab_frame()
                for line in drawn:
                    line.remove()


def _points(trail: Trail) -> list[Array]:
    """[2, n, D] at each step, truths and then what the encoder says."""
    found = trail["plane"]
    return [np.array(pair) for pair in zip(found["truth"], found["encoder"], strict=True)]


def _half(planes: Mapping[str, list[Array]]) -> float:
    """Half an axis, the same of all."""
    every = np.concatenate([np.abs(p).ravel() for points in planes.values() for p in points])
    return max(ROOMY, 1.05 * float(every.max()))


def _units(planes: Mapping[str, list[Array]]) -> int:
    return max(points[0].shape[-1] for points in planes.values())


def _spread(means: Array) -> str:
    return ", ".join(f"{value:.2f}" for value in means.std(0))


def dress(panel: Axes, half: float, *, left: bool, bottom: bool) -> None:
    panel.set_facecolor("none")
    panel.set_xlim(-half, half)
    panel.set_ylim(-half, half)
    for spine in panel.spines.values():
        spine.set_color(RULE)
    panel.tick_params(length=0, labelsize=11, labelleft=left, labelbottom=bottom)
    whole = np.floor(half)
    panel.set_xticks([-whole, 0, whole], [f"{-whole:.0f}", "0", f"{whole:.0f}"])
    panel.set_yticks([-whole, 0, whole], [f"{-whole:.0f}", "0", f"{whole:.0f}"])
    panel.axhline(0, color=RULE, linewidth=0.8, zorder=0)
    panel.axvline(0, color=RULE, linewidth=0.8, zorder=0)
    panel.plot([-half, half], [-half, half], color=FAINT, linewidth=0.8, dashes=(3, 3), zorder=0)


def scatter(panel: Axes, points: Array) -> list[Any]:
    """The lines of at most POINTS sentences, of each unit one."""
    some = thinned(points.shape[1], POINTS)
    look: Look = {"marker": "o", "linestyle": "none", "markersize": 2.6, "markeredgewidth": 0}
    return [
        panel.plot(*points[:, some, d], color=UNITS[d], alpha=0.5, **look)[0]
        for d in range(points.shape[-1])
    ]
