"""How figures are drawn: colours, panels, text, and SVG for a page; imports no torch.

On a page colours are names (`var(--c0)`), so that a figure follows its light and its dark. The
same data give the same bytes: no date, no random ids.
"""

import io
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise, product
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

Array = NDArray[np.float64]
Look = dict[str, Any]
"""What matplotlib takes by name."""

INK, FAINT, RULE, PAPER = "#1f2328", "#59636e", "#e4e7ea", "#ffffff"
LIGHT = {
    **{"c0": "#0a6fb0", "c1": "#c44e00", "c2": "#721732", "c3": "#322e8c", "c4": "#6c4a04"},
    **{"c5": "#b98805", "c6": "#f15876", "c7": "#b437d6", "c8": "#31996f", "c9": "#a172c7"},
    **{"c10": "#5e7e42", "c11": "#006b5f", "other": "#8c959f"},
    **{"ink": INK, "faint": FAINT, "rule": RULE, "paper": PAPER},
}
DARK = {
    **{"c0": "#50a2e4", "c1": "#f48350", "c2": "#e02464", "c3": "#6b6cff", "c4": "#fdb529"},
    **{"c5": "#fdd995", "c6": "#c1888e", "c7": "#a040bb", "c8": "#8fc7ab", "c9": "#d5aff7"},
    **{"c10": "#6bac11", "c11": "#aaeee1", "other": "#6e7681"},
    **{"ink": "#e6edf3", "faint": "#9198a1", "rule": "#2f353d", "paper": "#0d1117"},
}
"""Each colour keeps its hue in the dark. Found by annealing the least distance of two (OKLab) for
all common colour blindnesses (Machado et al. 2009) at a contrast to the paper of 3:1 or more."""
BASE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
}
STYLE: dict[Any, Any] = BASE | {
    "svg.hashsalt": "figure",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 12,
    "path.simplify": False,
}
XLINK = "{http://www.w3.org/1999/xlink}href"
GID = "series-"
AXES = "axes fraction"
HALO = f"paint-order: stroke; stroke: {PAPER}; stroke-width: 3px"
TITLE = 54  # px above a figure


class Sheet(NamedTuple):
    """A figure before it is written."""

    figure: Figure
    title: str
    caption: str
    """How it is read, and where it misleads."""
    summary: str
    """What it shows, in words, for who cannot see it."""


class Entry(NamedTuple):
    """A line of a legend."""

    name: str
    colour: str
    marker: str
    gid: str | None = None


@contextmanager
def style() -> Iterator[None]:
    """All that follows is drawn alike."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing", UserWarning)  # of a row's name
        yield


def canvas(height: float, title: str, width: float = 600) -> Figure:
    """An empty figure in px, above it the title, which takes no part of the height."""
    whole = height + TITLE
    figure = Figure(figsize=(width / 72, whole / 72), dpi=72, facecolor=PAPER)
    lines = "\n".join(textwrap.wrap(title, int(width / 8.6)))
    figure.text(12 / width, 1 - 10 / whole, lines, size=14, va="top", gid="headline")
    return figure


def axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at px from the lower left corner."""
    whole, high = figure.get_size_inches() * 72
    return figure.add_axes((left / whole, bottom / high, width / whole, height / high))


def dress(panel: Axes, x: str, y: str, log: str = "") -> None:
    """Few lines and ticks, and what the axes measure; log: those with logarithmic ticks."""
    panel.set_facecolor("none")
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.grid(axis="y", color=RULE, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(length=0, which="both", labelsize=11)
    for name, axis in (("x", panel.xaxis), ("y", panel.yaxis)):
        axis.set_minor_locator(NullLocator())
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(tick)
        if name in log:
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 3000 * low else (1,)))
    say(panel, x, (0, 0), (0, -34), AXES, color=FAINT)
    say(panel, y, (0, 1), (0, 10), AXES, color=FAINT)


def say(panel: Axes, text: str, at: Any, offset: Any = (0, 0), frame: Any = "data", **look: Any):
    """Text at a point, moved by px."""
    place: Look = {"xycoords": frame, "xytext": offset, "textcoords": "offset points"}
    look = {"size": 11.5, "annotation_clip": False} | place | look
    panel.annotate(text, tuple(at), **look)


def tiles(
    panel: Axes, group: Sequence[tuple[float, ...]], colour: str, alpha: float, gid: str
) -> None:
    """Rectangles (x0, x1, y0, y1) as one path."""
    x0, x1, y0, y1 = np.transpose(group)
    corners = np.stack([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]).transpose(2, 0, 1)
    codes = [Outline.MOVETO, *[Outline.LINETO] * 3, Outline.CLOSEPOLY] * len(x0)
    look = {"facecolor": colour, "alpha": alpha, "linewidth": 0, "gid": f"{gid}-cells"}
    panel.add_patch(PathPatch(Outline(corners.reshape(-1, 2), codes), **look))


def legend(
    figure: Figure, entries: Sequence[Entry], left: float, top: float, width: float, columns: int
) -> None:
    """Marks and names, line by line, at px."""
    whole, high = figure.get_size_inches() * 72
    for i, entry in enumerate(entries):
        x, y = left + i % columns * width / columns, top - 18 * (i // columns)
        look: Look = {"marker": entry.marker, "markersize": 7, "linestyle": "none"}
        look |= {"markeredgewidth": 2.5 if entry.marker == "|" else 0}
        look |= {"color": entry.colour, "gid": entry.gid}
        figure.add_artist(Line2D([(x + 6) / whole], [y / high], **look))
        name = brief(entry.name, int((width / columns - 18) / 6.9))
        at = ((x + 16) / whole, y / high)
        figure.text(*at, name, va="center", size=11.5, gid=entry.gid)


def span(values: Any) -> tuple[float, float]:
    """An axis's limits around the values that are known."""
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    margin = 0.06 * (high - low) or max(0.05 * abs(low), 0.5)
    return low - margin, high + margin


def thinned(n: int, most: int) -> NDArray[np.intp]:
    """Indices of at most so many of n, evenly, the ends among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.intp))


# Room for names ----------------------------------------------------------------------------------


class Spot(NamedTuple):
    """Where a name stands, in px of the figure."""

    x: float
    y: float
    side: str
    far: bool


def room(
    marks: Array, names: Sequence[str], frame: Array, taken: Sequence[Array], dots: Array
) -> list[Spot | None]:
    """A spot for each name near its mark (the first marks have names), on no other name and no
    mark, on few dots; None where there is none. All in px."""
    dots = dots[np.isfinite(dots).all(1)]
    boxes = [np.concatenate([mark - 6, mark + 6]) for mark in marks] + [*taken]
    angles = [math.radians(angle) for angle in range(0, 360, 30)]
    found: list[Spot | None] = []
    for i, name in enumerate(names):
        best, place, least = None, None, math.inf
        others = np.array(boxes[:i] + boxes[i + 1 :]).reshape(-1, 4)
        for radius, angle in product((10, 18, 28, 40, 54, 70, 90), angles):
            at = marks[i] + radius * np.array([math.cos(angle), math.sin(angle)])
            across = round(at[0] - marks[i, 0])
            side = "left" if across > 0 else "right" if across else "center"
            box = text_box(at, name, side, "center", 11.5)
            cost = radius + (0 if across else 6)
            if cost >= least or (box[:2] < frame[:2]).any() or (box[2:] > frame[2:]).any():
                continue
            way = marks[i] + np.linspace(0.25, 0.95, 5)[:, None] * (at - marks[i])
            if _met(box, way, others):
                continue
            cost += 1.5 * min(12, inside(dots, box))
            if cost < least:
                best, place, least = Spot(at[0], at[1], side, radius > 18), box, cost
        found.append(best)
        if place is not None:
            boxes.append(place)
    return found


def _met(box: Array, way: Array, others: Array) -> bool:
    """Whether a box [4] overlaps one of others [n, 4], or one of them holds a point of a way."""
    apart = (box[:2] >= others[:, 2:]) | (box[2:] <= others[:, :2])
    through = (way[:, None] > others[:, :2]) & (way[:, None] < others[:, 2:])
    return bool((~apart).all(1).any() or through.all(2).any())


def between(panel: Axes, x: Any, y: Any) -> Array:
    """Points of a line, 4 px apart, in px."""
    corners = panel.transData.transform(np.stack([x, y], 1))
    parts = [np.empty((0, 2))]
    for a, b in pairwise(corners[np.isfinite(corners).all(1)]):
        parts.append(np.linspace(a, b, max(2, int(np.hypot(*(b - a)) / 4))))
    return np.concatenate(parts)


def text_box(at: Array, text: str, side: str, height: str, size: float) -> Array:
    """[x0, y0, x1, y1] that a text takes, in px: no less than in most fonts."""
    width = 0.61 * size * len(text)
    left = at[0] - {"left": 0.0, "right": width, "center": width / 2}[side]
    low = at[1] if height == "bottom" else at[1] - 0.6 * size
    return np.array([left, low, left + width, low + 1.2 * size])


def overlap(a: Array, b: Array) -> bool:
    """Whether two boxes do."""
    return bool(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])


def inside(points: Array, box: Array) -> int:
    """How many points lie in a box."""
    return int(((points > box[:2]) & (points < box[2:])).all(1).sum())


# Words -------------------------------------------------------------------------------------------


def tick(value: float, _: object = None) -> str:
    """A number at an axis."""
    return f"{value + 0.0:,.6g}"


def printable(text: str) -> str:
    """A record's text without what XML cannot hold."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def brief(text: str, most: int = 25) -> str:
    """A record's text as a label: variants of one method differ at the end."""
    line, tail = printable(text), most * 2 // 5
    return line if len(line) <= most else f"{line[: most - tail - 2]}..{line[-tail:]}"


# SVG ---------------------------------------------------------------------------------------------


def svg(
    figure: Figure, summary: str, prefix: str, names: Sequence[str] = ()
) -> ElementTree.Element:
    """A figure in light colours, with its title, and with a summary for who cannot see it.

    prefix: of all ids. names: of the series, by the number in their gid, GID0 and so on.
    """
    written = io.BytesIO()
    nothing = dict.fromkeys(["Date", "Creator", "Format", "Type"])
    figure.savefig(written, format="svg", metadata=nothing)
    root = ElementTree.fromstring(written.getvalue())
    _name_parts(root, prefix, names)
    root.set("role", "img")
    root.set("aria-label", printable(summary))
    return root


def for_page(figure: Figure, root: ElementTree.Element) -> str:
    """The same, changed in place, for a page: colours by name, the page's font and width, no
    title."""
    by_hex = {value: f"var(--{name})" for name, value in LIGHT.items()}
    for element in root.iter():
        if "style" in element.attrib:
            style = element.attrib["style"]
            style = re.sub("#[0-9a-f]{6}", lambda found: by_hex.get(found[0], found[0]), style)
            element.set("style", style)
        for child in [child for child in element if child.get("class") == "headline"]:
            element.remove(child)
    for name in ("width", "height", "font-family"):
        del root.attrib[name]
    width, height = figure.get_size_inches() * 72
    root.set("viewBox", f"0 {TITLE} {width:.6g} {height - TITLE:.6g}")
    return ElementTree.tostring(root, encoding="unicode")


def _name_parts(root: ElementTree.Element, prefix: str, names: Sequence[str]) -> None:
    """Keep of all ids those that are referred to, under the prefix, and name the series."""
    used = set()
    for element in root.iter():
        used.update(re.findall(r"(?<=#)[\w.-]+", element.get(XLINK, "")))
        used.update(re.findall(r"(?<=url\(#)[\w.-]+", element.get("clip-path", "")))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.text = element.text if element.text and element.text.strip() else None
        element.tail = None
        identity = element.attrib.pop("id", "")
        if identity.endswith("-cells"):
            element.set("shape-rendering", "crispEdges")
        if series := re.fullmatch(rf"{GID}(\d+)(-cells|-name)?", identity):
            element.set("class", "series")
            element.set("data-row", printable(names[int(series[1])]))
        if identity.endswith("-name"):
            for text in element.iter("{http://www.w3.org/2000/svg}text"):
                text.set("style", f"{HALO}; {text.get('style', '')}")
        elif identity == "headline":
            element.set("class", "headline")
        elif identity in used:
            element.set("id", f"{prefix}-{identity}")
        if "clip-path" in element.attrib:
            element.set("clip-path", element.attrib["clip-path"].replace("(#", f"(#{prefix}-"))
        if XLINK in element.attrib:
            element.set("href", element.attrib.pop(XLINK).replace("#", f"#{prefix}-"))
        if "style" in element.attrib:
            style = re.sub(r"font-family: [^;]*;? ?", "", element.attrib["style"])
            element.set("style", style)
    root.remove(root[0])  # a style that would be all the page's
    root.set("xmlns", "http://www.w3.org/2000/svg")
    root.set("stroke-linejoin", "round")
    root.set("font-family", "DejaVu Sans, Verdana, sans-serif")
