"""A diagnosis in figures, as SVG for a page; imports no torch.

Whatever the record lacks is not drawn. The same record gives the same bytes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from benchmark.diagnosis import plane_figures, words
from benchmark.diagnosis.drawing import (
    AXES,
    FAINT,
    INK,
    LIGHT,
    PAPER,
    RULE,
    Array,
    Entry,
    Look,
    Sheet,
    axes,
    canvas,
    dress,
    for_page,
    legend,
    overlap,
    room,
    say,
    span,
    style,
    svg,
    text_box,
    thinned,
    tick,
    tiles,
)
from benchmark.diagnosis.words import (
    Record,
    Unit,
    nats,
    number,
    numbers,
    pair,
    section,
    threshold,
)

VERDICTS = {
    "active": ("c0", "o"),
    "undecided": ("c8", "D"),
    "unread": ("c1", "s"),
    "outliers": ("c7", "^"),
    "noisy": ("c5", "v"),
    "weak": ("other", "o"),
}
"""Colour and marker."""
PARTS = {
    "capacity": Entry("C, capacity of the means", LIGHT["c0"], "s"),
    "heterogeneity": Entry("H, in the variances", LIGHT["c8"], "s"),
    "mismatch": Entry("G, mismatch with the prior", LIGHT["c1"], "s"),
}
"""Of the rate, as they are stacked."""
INFORMATION = Entry("I, information", INK, "|")
CAPACITIES = (0.05, 0.2, 0.5, 1.0, 2.0, 3.0)  # nats, of the contours
LISTED, LINES, POINTS = 24, 48, 120  # at most: rows, units over training, records of each
LEAST = 1e-6  # of a variance that a logarithmic axis shows
TWO = 2.0  # standard errors, of bands and whiskers
BESIDE: Look = {"frame": ("axes fraction", "data"), "va": "center"}
"""Text at an edge of a panel, at a height of its data."""


@dataclass(frozen=True)
class Drawing:
    """A figure ready to be put into a page."""

    name: str
    title: str
    caption: str
    page: str
    """SVG, without its title; its ids begin with the prefix."""


def drawings(record: Record, prefix: str, names: Sequence[str] = ()) -> list[Drawing]:
    """The figures for which there are data, of these names or all of FIGURES."""
    found = []
    for name, sheet in sheets(record, names):
        root = svg(sheet.figure, sheet.summary, f"{prefix}-{name}")
        page = for_page(sheet.figure, root)
        found.append(Drawing(name, sheet.title, sheet.caption, page))
    return found


def sheets(record: Record, names: Sequence[str] = ()) -> Iterator[tuple[str, Sheet]]:
    """The same before they are written, by name."""
    for name in names or FIGURES:
        with style():
            sheet = FIGURES[name](record)
            if sheet is not None:
                yield name, sheet


# -- units ----------------------------------------------------------------------------------------


def _units(record: Record) -> Sheet | None:
    found = [unit for unit in words.units(record) if math.isfinite(unit.rate)]
    if not found:
        return None
    largest = sorted(found, key=lambda unit: -max(unit.rate, unit.bound))[:LISTED]
    shown = [unit for unit in found if unit in largest]
    rate, informs = (sum(getattr(u, name) for u in found) for name in ("rate", "bound"))
    title = f"Of {nats(rate)} nats of rate at most {nats(informs)} inform of the sentence"
    height, written = 19 * len(shown), threshold(record, "information")
    figure = canvas(height + 92, title)
    panel = axes(figure, 118, 44, 366, height)
    # noise alone must not look like a code
    rows = [[getattr(unit, name) for name in (*PARTS, "information")] for unit in shown]
    stack(panel, rows, least=2 * written)
    if written:
        panel.axvline(written, color=FAINT, linewidth=1, dashes=(2, 2), zorder=0)
    for y, unit in enumerate(shown):
        colour = FAINT if unit.verdict == "weak" else INK
        name, lost = f"{unit.number}  {unit.verdict}", nats(unit.read)
        lost += "" if math.isnan(unit.read_error) else f" ± {nats(unit.read_error)}"
        say(panel, name, (0, y), (-6, 0), ha="right", color=colour, **BESIDE)
        say(panel, lost, (1, y), (8, 0), color=colour, **BESIDE)
    legend(figure, [*PARTS.values(), INFORMATION], 4, height + 78, 470, 2)
    say(panel, "lost without it", (1, 1), (8, 8), AXES, color=FAINT)
    return Sheet(
        figure,
        title,
        "The rate of a unit falls into three parts; only the first two can inform of the sentence "
        "(their sum bounds the information, the dark mark). Dashed: from where a unit counts as "
        "written. Right: what the decoder loses if the unit alone is another sentence's, nats ± a "
        "standard error." + _rest(len(found) - len(shown)),
        f"{title}. " + " ".join(f"Unit {u.number}, {u.verdict}: {_parts(u)}." for u in shown),
    )


def stack(panel: Axes, rows: Sequence[Sequence[float]], least: float = 0.0) -> None:
    """Rates as rows of PARTS side by side, what is below 0 to the left of all, and a mark at the
    information, the last of a row. least: that the axis reaches."""
    values = np.array(rows, dtype=float)
    parts, informed = np.nan_to_num(values[:, :-1]), values[:, -1]
    above = np.maximum(parts, 0)
    start = np.where(parts > 0, np.cumsum(above, 1) - above, 0)
    low, high = np.minimum(start, start + parts), np.maximum(start, start + parts)
    right = max(least, float(high.max()), float(np.nanmax(informed, initial=0.0)))
    panel.set_xlim(float(low.min()), 1.02 * right or 1.0)
    panel.set_ylim(len(values) - 0.5, -0.5)
    _rows(panel, "nats a sentence")
    for part, (name, entry) in enumerate(PARTS.items()):
        boxes = [(low[y, part], high[y, part], y - 0.36, y + 0.36) for y in range(len(values))]
        if boxes := [box for box in boxes if box[0] < box[1]]:
            tiles(panel, boxes, entry.colour, 1.0, name)
    known = np.flatnonzero(np.isfinite(informed))
    look: Look = {"markersize": 13, "markeredgewidth": 2.5, "color": INK}
    panel.plot(informed[known], known, "|", gid="information", **look)


def _parts(unit: Unit) -> str:
    told = {name: getattr(unit, name) for name in (*PARTS, "information")}
    told["lost without it"] = unit.read
    return ", ".join(f"{name} {nats(value)}" for name, value in told.items())


def _signal(record: Record) -> Sheet | None:
    found = [u for u in words.units(record) if u.noise > 0 and u.signal >= 0]
    if not found:
        return None
    noise, signal = np.array([(u.noise, max(u.signal, LEAST)) for u in found]).T
    active = threshold(record, "signal")
    drowned = sum(u.signal < u.noise for u in found)
    title = f"In {drowned} of {len(found)} units the noise is larger than the signal"
    figure = canvas(430, title)
    panel = axes(figure, 52, 44, 488, 336)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(noise.min() / 1.6, max(2.0, 1.6 * noise.max()))
    panel.set_ylim(min(signal.min(), active or 1.0) / 2.5, max(4.0, 2 * signal.max()))
    dress(panel, "noise N: the posterior's mean variance", "signal S: variance of its mean", "xy")
    taken = _contours(panel)
    x = np.geomspace(panel.get_xlim()[0], 0.999999, 200)
    panel.plot(x, 1 - x, color=FAINT, linewidth=1, dashes=(1, 2), zorder=1, gid="prior")
    if active:
        text, at = f"active units: S above {active:g}", (panel.get_xlim()[0], active)
        panel.axhline(active, color=FAINT, linewidth=1, dashes=(4, 2), zorder=1)
        say(panel, text, at, (4, 4), size=10.5, color=FAINT)
        corner = panel.transData.transform(at) + np.array([4, 4])
        taken.append(text_box(corner, text, "left", "bottom", 10.5))
    verdicts = np.array([unit.verdict for unit in found])
    there = [verdict for verdict in VERDICTS if verdict in verdicts]
    for verdict in reversed(there):
        (colour, marker), of_it = VERDICTS[verdict], verdicts == verdict
        look: Look = {"markeredgecolor": PAPER, "markeredgewidth": 0.8, "markersize": 8}
        look |= {"color": LIGHT[colour], "gid": verdict}
        panel.plot(noise[of_it], signal[of_it], marker, **look)
    _numbers(panel, np.stack([noise, signal], 1), found, taken)
    _legend(figure, there, 412)
    best = max(found, key=lambda u: u.signal / u.noise)
    return Sheet(
        figure,
        title,
        "A unit a mark, with its number where there is room. Along a line the means' channel has "
        "one capacity, C = ½ ln(1 + S/N): up and to the left is more. On the dotted curve S + N = "
        "1, the prior's own variance: a unit that collapses runs along it to the right and down.",
        f"{title}. The best, unit {best.number}: signal {best.signal:.3g}, noise {best.noise:.3g}.",
    )


def _contours(panel: Axes) -> list[Array]:
    """Lines of one capacity, with its value where they leave the panel; the boxes of all text."""
    (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
    corner = panel.transData.transform((left, top))
    boxes = [text_box(corner, " " * 30, "left", "bottom", 20)]  # of what the axis measures
    for capacity in CAPACITIES:
        ratio = math.expm1(2 * capacity)
        x = np.array([max(left, bottom / ratio), min(right, top / ratio)])
        if x[0] >= x[1]:
            continue
        panel.plot(x, ratio * x, color=RULE, linewidth=1, zorder=0.5, gid="capacity")
        text, end, aside = f"C = {capacity:g}", (x[1], ratio * x[1]), bool(x[1] == right)
        side = "left" if aside else "center"
        box = text_box(panel.transData.transform(end), text, side, "bottom", 10.5)
        if not any(overlap(box, other) for other in boxes):
            look: Look = {"ha": side, "va": "center" if aside else "bottom", "color": FAINT}
            say(panel, text, end, (5, 0) if aside else (0, 3), size=10.5, **look)
            boxes.append(box)
    return boxes


def _numbers(panel: Axes, at: Array, found: Sequence[Unit], taken: Sequence[Array]) -> None:
    """Beside the marks, the living first, where there is room."""
    order = sorted(range(len(found)), key=lambda i: found[i].verdict == "weak")
    marks, invert = panel.transData.transform(at[order]), panel.transData.inverted().transform
    names, frame = [str(found[i].number) for i in order], panel.get_window_extent().extents
    spots = room(marks, names, np.array(frame), taken, marks)
    for place, spot, name in zip(order, spots, names, strict=True):
        if spot is not None and not spot.far:
            colour = FAINT if found[place].verdict == "weak" else INK
            look: Look = {"ha": spot.side, "va": "center", "color": colour, "gid": "unit-name"}
            say(panel, name, invert((spot.x, spot.y)), **look)


def _collapse(record: Record) -> Sheet | None:
    found = np.array([u.epsilon for u in words.units(record) if u.epsilon >= 0])
    if not len(found):
        return None
    ends, n = np.sort(np.maximum(found, LEAST)), len(found)
    counted = threshold(record, "information")
    share = words.all_but_delta(record)
    below = int((found < counted).sum())
    title = f"{below} of {n} units stay below {counted:g} nats in {share} of the sentences"
    figure = canvas(318, title)
    panel = axes(figure, 52, 44, 488, 224)
    panel.set_xscale("log")
    panel.set_xlim(min(ends[0], counted or 1.0) / 2, 2 * max(ends[-1], counted))
    panel.set_ylim(0, 1.04 * n)
    dress(panel, "ε, nats", "units that have collapsed", "x")
    if counted:
        panel.axvline(counted, color=FAINT, linewidth=1, dashes=(4, 2), zorder=1)
    x = np.concatenate([panel.get_xlim()[:1], ends, panel.get_xlim()[1:]])
    y = np.array([0, *range(1, n + 1), n])
    panel.step(x, y, where="post", color=LIGHT["c0"], linewidth=1.6, gid="collapsed")
    return Sheet(
        figure,
        title,
        f"A unit is (ε, δ)-collapsed (Lucas et al. 2019) where its KL is below ε for a share 1 - δ "
        f"= {share} of the sentences. The count over ε; dashed: the ε from which a unit counts "
        "as written. A step at the left is a unit that died, one at the right a unit that some "
        "sentences use.",
        f"{title}. " + ", ".join(f"{i + 1} from {end:.2g}" for i, end in enumerate(ends[:LISTED])),
    )


def _trajectory(record: Record) -> Sheet | None:
    found = section(record, "trajectory")
    steps, names = np.array(numbers(found.get("steps"))), ("signal", "noise")
    if len(steps) < 2 or any(len(found.get(name) or ()) != len(steps) for name in names):
        return None
    kept = thinned(len(steps), POINTS)
    signal, noise = (np.array([numbers(line) for line in found[name]])[kept] for name in names)
    order = {u.number: u.verdict for u in words.units(record)}
    living = [d for d, verdict in order.items() if verdict != "weak"][:LINES]
    weak = [d for d, verdict in order.items() if verdict == "weak"][: LINES - len(living)]
    if not living + weak:
        return None
    active, shown = threshold(record, "signal"), living + weak
    if not np.isfinite(signal[:, shown]).any() or not np.isfinite(noise[:, shown]).any():
        return None
    had, has = (int(some.sum()) for some in ((signal >= active).any(0), signal[-1] >= active))
    title = f"{had} of {signal.shape[1]} units ever had a signal, {has} at the end"
    figure = canvas(318, title)
    curves = {"signal S, variance of the mean": signal, "noise N, mean variance": noise}
    for i, (what, values) in enumerate(curves.items()):
        panel = axes(figure, 52 + i * 296, 44, 226, 216)
        values = np.maximum(values, LEAST)
        panel.set_yscale("log")
        panel.set_xlim(0, steps[-1])
        panel.set_ylim(np.nanmin(values[:, shown]) / 1.5, 1.5 * max(1.0, np.nanmax(values)))
        dress(panel, "training steps", what, "y")
        if not i and active:
            panel.axhline(active, color=FAINT, linewidth=1, dashes=(4, 2), zorder=1)
        for d in reversed(shown):
            look: Look = {"linewidth": 1, "alpha": 0.6} if d in weak else {"linewidth": 1.6}
            look |= {"color": LIGHT[VERDICTS[order[d]][0]], "gid": f"unit{d}"}
            panel.plot(steps[kept], values[:, d], **look)
        _ends(panel, {str(d): float(values[-1, d]) for d in living}, 12)
    _legend(figure, [v for v in VERDICTS if v in {order[d] for d in shown}], 300)
    return Sheet(
        figure,
        title,
        "A line a unit, at every validation of its training, in the colour of its verdict; "
        "dashed: the signal of an active unit. A unit whose signal never rises was never written; "
        "one whose signal falls again lost what it had." + _rest(len(order) - len(shown)),
        f"{title}, from step {steps[0]:,.0f} to {steps[-1]:,.0f}.",
    )


def _drift(record: Record) -> Sheet | None:
    found = section(record, "drift")
    steps, lines = numbers(found.get("steps")), found.get("drift") or []
    order = {u.number: u.verdict for u in words.units(record)}
    if len(steps) < 3 or len(lines) != len(steps) or not order:
        return None
    moved = np.array([numbers(line, len(order)) for line in lines[1:]])
    living = [d for d, verdict in order.items() if verdict not in ("weak", "noisy")]
    known = moved[np.nan_to_num(moved) > 0]
    if not len(known):
        return None
    title = "No unit is written whose means could be steady"
    if living and np.isfinite(moved[-1, living]).any():
        most = nats(float(np.nanmax(moved[-1, living])))
        title = f"At the end the means of what is written move by {most} of their variance"
    figure = canvas(338, title)
    panel = axes(figure, 52, 44, 500, 240)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(steps[1] / 1.15, steps[-1] * 1.15)
    panel.set_ylim(max(LEAST, known.min()) / 1.5, 1.5 * max(1.0, known.max()))
    dress(panel, "training steps", "means moved since the look before, of their variance", "xy")
    panel.axhline(1, color=INK, linewidth=1, dashes=(4, 2), zorder=1)
    shown = sorted(order, key=lambda d: d not in living)[:LINES]
    for d in reversed(shown):
        look: Look = {"linewidth": 1.6} if d in living else {"linewidth": 1, "alpha": 0.6}
        look |= {"color": LIGHT[VERDICTS[order[d]][0]], "gid": f"unit{d}"}
        panel.plot(steps[1:], np.maximum(moved[:, d], LEAST), **look)
    _ends(panel, {str(d): float(moved[-1, d]) for d in living if moved[-1, d] > 0}, 12)
    _legend(figure, [v for v in VERDICTS if v in {order[d] for d in shown}], 320)
    return Sheet(
        figure,
        title,
        "E (mean now - mean before)² / 2S of each unit between two looks at a replay of the "
        "training: 0 where a sentence keeps its mean, 1 (dashed) where it might have any "
        "other's. What moves as fast as the decoder learns cannot be read."
        + _rest(len(order) - len(shown)),
        f"{title}, from step {steps[0]:,.0f} to {steps[-1]:,.0f}.",
    )


# -- decoder and encoder --------------------------------------------------------------------------


def _positions(record: Record) -> Sheet | None:
    found = section(section(record, "reading"), "by_position")
    places, gain, error = (
        np.array(numbers(found.get(name))) for name in ("position", "gain", "error")
    )
    if len(places) < 2 or not np.isfinite(gain).any():
        return None
    error = np.nan_to_num(error)
    half, total = words.half_way(found), float(np.nansum(gain))
    title = "The code gains nothing at any word"
    if half and total > TWO * math.hypot(*error):
        title = f"Half of what the code gains it gains by word {half[0]} of {half[1]}"
    figure = canvas(330, title)
    panel = axes(figure, 52, 44, 532, 256)
    low, high = gain - TWO * error, gain + TWO * error
    panel.set_xlim(places[0] - 0.5, places[-1] + 0.5)
    panel.set_ylim(span([0.0, *low, *high]))
    dress(panel, "predicted word", "gain over another sentence's code, nats")
    panel.axhline(0, color=INK, linewidth=1, zorder=1)
    panel.fill_between(places, low, high, color=LIGHT["c0"], alpha=0.2, linewidth=0, gid="band")
    look: Look = {"color": LIGHT["c0"], "linewidth": 1.6, "markersize": 4, "markeredgewidth": 0}
    panel.plot(places, gain, "o-" if len(places) <= 60 else "-", gid="gain", **look)
    best = int(np.nanargmax(gain))
    return Sheet(
        figure,
        title,
        "log p of each word with the sentence's own code less that with the code of another "
        "sentence of the same length, mean over the sentences that have such a word; the band is "
        "two standard errors wide on each side. A decoder tends to read early and to know by "
        "itself later.",
        f"{title}. Most at word {places[best]:.0f}: {nats(gain[best])} nats; {nats(total)} in all.",
    )


def _lag(record: Record) -> Sheet | None:
    found = section(record, "lag")
    steps = np.array(numbers(found.get("steps")))
    starts = {"encoder": ("from the encoder's", "c0"), "prior": ("from the prior", "c1")}
    known = [name for name in starts if len(section(found, name).get("elbo") or ()) == len(steps)]
    if len(steps) < 2 or not known:
        return None
    gain, _ = pair(section(found, known[0])["elbo"][-1])
    title = f"{steps[-1]:.0f} refinement steps of each posterior gain {nats(gain)} nats"
    figure, places = canvas(318, title), np.arange(len(steps))
    measures = {"elbo": "ELBO less the encoder's, nats", "kl": "KL, nats"}
    for i, (measure, what) in enumerate(measures.items()):
        panel = axes(figure, 52 + i * 296, 44, 236, 216)
        lines = {name: _path(section(found, name).get(measure), len(steps)) for name in known}
        ends = [mean + side * TWO * error for mean, error in lines.values() for side in (-1, 1)]
        panel.set_ylim(span([0.0, *np.ravel(ends)]))
        panel.set_xlim(-0.2, len(steps) - 0.8)
        dress(panel, "refinement steps", what)
        panel.set_xticks(places, [f"{step:.0f}" for step in steps])
        panel.axhline(0, color=INK, linewidth=1, zorder=1)
        for name, (mean, error) in lines.items():
            look: Look = {"color": LIGHT[starts[name][1]], "linewidth": 1.6, "capsize": 3}
            panel.errorbar(places, mean, TWO * error, marker="o", markersize=5, **look)
    entries = [Entry(starts[name][0], LIGHT[starts[name][1]], "o") for name in known]
    legend(figure, entries, 48, 304, 400, 2)
    return Sheet(
        figure,
        title,
        "With the decoder held still each sentence's own posterior climbs its ELBO, once from what "
        "the encoder says and once from the prior; whiskers of two standard errors. Both up: the "
        "encoder missed what there was to encode. KL at 0 from both starts: the decoder offers "
        "nothing to encode.",
        f"{title} from the encoder's start: {found.get('verdict') or 'no verdict'}.",
    )


def _probes(record: Record) -> Sheet | None:
    found, colours = section(record, "probes"), {"state": "c0", "mean": "c1", "code": "c5"}
    rows = [
        (target, place, *pair(section(found, target).get(place)))
        for target in words.TARGETS
        for place in words.PLACES
        if words.known(pair(section(found, target).get(place)))
    ]
    if not rows:
        return None
    told = words.listed(
        [f"{max(share, 0):.0%} in {words.PLACES[p]}" for _, p, share, _ in rows[:3]]
    )
    title = f"Of {words.TARGETS[rows[0][0]]} a linear probe finds {told}"
    figure = canvas(30 * len(rows) + 66, title)
    panel = axes(figure, 206, 44, 280, 30 * len(rows))
    panel.set_xlim(-0.04, 1.04)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    _rows(panel, "share of its variance, R²")
    panel.axvline(0, color=INK, linewidth=1, zorder=1)
    for y, (target, place, share, error) in enumerate(rows):
        tiles(panel, [(0.0, max(share, 0.0), y - 0.3, y + 0.3)], LIGHT[colours[place]], 1.0, place)
        ends = np.clip(share + TWO * error * np.array([-1, 1]), 0, 1)
        panel.plot(ends, [y, y], color=INK, linewidth=1.5, gid="error")
        say(panel, f"{target} in {words.PLACES[place]}", (0, y), (-8, 0), ha="right", **BESIDE)
        say(panel, nats(share), (1, y), (8, 0), **BESIDE)
    return Sheet(
        figure,
        title,
        "Ridge regressions fitted on validation and read on test; whiskers of two standard errors. "
        "What the state has and the means have not is lost in the head, what the means have and "
        "the codes have not to the posterior's noise. A probe knows no scale.",
        f"{title}.",
    )


def _plane(record: Record) -> Sheet | None:
    points = _means(section(record, "plane"), 2)
    if points is None:
        return None
    told = [", ".join(nats(deviation) for deviation in each.std(0)) for each in points]
    title = f"The true means deviate by {told[0]} over sentences, the encoder's by {told[1]}"
    figure = canvas(344, title)
    panel = axes(figure, 64, 46, 270, 270)
    half = max(plane_figures.ROOMY, 1.05 * float(np.abs(points).max()))
    plane_figures.dress(panel, half, left=True, bottom=True)
    plane_figures.scatter(panel, points)
    say(panel, "mean of p(z|x)", (0, 0), (0, -34), AXES, color=FAINT)
    say(panel, "mean of q(z|x)", (0, 1), (0, 10), AXES, color=FAINT)
    entries = [Entry(f"unit {d}", colour, "o") for d, colour in enumerate(plane_figures.UNITS)]
    legend(figure, entries[: points.shape[-1]], 370, 306, 200, 1)
    return Sheet(figure, title, plane_figures.READ, f"{title}.")


def _planes(record: Record) -> Sheet | None:
    trail = section(record, "planes")
    known = _means(section(trail, "plane"), 3) is not None and trail.get("steps")
    return plane_figures.sheet({"": trail}) if known else None


def _means(plane: Record, dimensions: int) -> Array | None:
    """Of the true posteriors and of the encoder's, [2, ...]; None where one is not known."""
    means = [np.array(plane.get(name) or [], dtype=float) for name in ("truth", "encoder")]
    shapes = {each.shape for each in means}
    if len(shapes) > 1 or means[0].ndim != dimensions or not np.isfinite(means).all():
        return None
    return np.stack(means)


def _path(values: Any, n: int) -> Array:
    """[2, n], means and their errors, 0 where these are not known."""
    if not isinstance(values, list) or len(values) != n:
        return np.full((2, n), np.nan)
    pairs = [pair(value) if isinstance(value, list) else (number(value), 0.0) for value in values]
    mean, error = np.array(pairs).T
    return np.stack([mean, np.nan_to_num(error)])


# -- training -------------------------------------------------------------------------------------


def _gradients(record: Record) -> Sheet | None:
    found = section(record, "gradients")
    steps = np.array(numbers(found.get("steps")))
    costs = {"rec": ("reconstruction", "c0"), "kl": ("KL", "c1")}
    lines: dict[str, tuple[Array, Array]] = {}
    for name in costs:
        one, batch, error = (
            np.array(numbers(section(found, name).get(key), len(steps)))
            for key in ("snr", "snr_batch", "snr_error")
        )
        if len(batch) == len(steps) > 1 and np.isfinite(batch).any():
            with np.errstate(divide="ignore", invalid="ignore"):
                lines[name] = batch, np.nan_to_num(error * np.abs(batch / one))
    if not lines:
        return None
    last = {costs[name][0]: float(batch[-1]) for name, (batch, _) in lines.items()}
    told = [f"{words.ratio(value)} for the {name}" for name, value in last.items()]
    title = f"Signal over noise of a batch's gradient ends at {words.listed(told)}"
    figure = canvas(348, title)
    panel = axes(figure, 52, 44, 420, 274)
    known = np.concatenate([batch[np.nan_to_num(batch) > 0] for batch, _ in lines.values()])
    floor = max(1e-4, float(known.min(initial=1.0)) / 3)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(max(0.8, steps[0] / 1.15), steps[-1] * 1.15)
    panel.set_ylim(floor / 1.5, 3 * float(known.max(initial=1.0)))
    dress(panel, "training steps", "signal over noise of a batch's gradient", "xy")
    panel.axhline(1, color=INK, linewidth=1, dashes=(4, 2), zorder=1)
    for name, (batch, error) in lines.items():
        colour = LIGHT[costs[name][1]]
        low, high = (np.maximum(batch + side * TWO * error, floor) for side in (-1, 1))
        look: Look = {"color": colour, "alpha": 0.18, "linewidth": 0, "gid": f"{name}-band"}
        panel.fill_between(steps, low, high, **look)
        look = {"color": colour, "linewidth": 1.6, "markersize": 5, "markeredgewidth": 0}
        panel.plot(steps, np.maximum(batch, floor), "o-", gid=name, **look)
        below = batch <= floor
        look = {"color": PAPER, "markeredgecolor": colour, "markersize": 7, "gid": f"{name}-below"}
        panel.plot(steps[below], np.full(below.sum(), floor), "v", **look)
    _ends(panel, {name: max(value, floor) for name, value in last.items()}, 16, apart=True)
    return Sheet(
        figure,
        title,
        "|mean|² over the total variance of the encoder's gradient, of a batch, apart for the two "
        "costs; above the dashed line a batch points more than it scatters. Bands: two standard "
        "errors; open marks: at or below the panel's floor, for an estimate may be below 0. "
        "Collapse by noise shows as a KL that is coherent while the reconstruction is not.",
        f"{title}, from step {steps[0]:,.0f} to {steps[-1]:,.0f}.",
    )


def _interventions(record: Record) -> Sheet | None:
    found = section(record, "interventions")
    branches = section(found, "branches")
    if not branches:
        return None
    lives = sum(bool(end.get("alive")) for end in branches.values())
    title = f"The code lives in {lives} of {len(branches)} branches; cause: {found.get('cause')}"
    height = 30 * len(branches)
    figure = canvas(height + 66, title)
    for i, (name, what) in enumerate({"kl": "KL, nats", "z_gain": "z-gain, nats"}.items()):
        panel = axes(figure, 206 + i * 172, 44, 146, height)
        values, errors = (
            np.array([number(end.get(key)) for end in branches.values()])
            for key in (name, f"{name}_se")
        )
        panel.set_xlim(span([0.0, *(values - TWO * errors), *values, *(values + TWO * errors)]))
        panel.set_ylim(len(branches) - 0.5, -0.5)
        _rows(panel, what)
        panel.axvline(0, color=INK, linewidth=1, zorder=1)
        for y, (branch, end) in enumerate(branches.items()):
            alive, value = bool(end.get("alive")), float(values[y])
            if math.isfinite(value):
                box = (*sorted((0.0, value)), y - 0.3, y + 0.3)
                tiles(panel, [box], LIGHT["c0" if alive else "other"], 1.0, branch)
            if math.isfinite(errors[y]):
                ends = value + TWO * errors[y] * np.array([-1, 1])
                panel.plot(ends, [y, y], color=INK, linewidth=1.5, gid="error")
            if not i:
                named = words.BRANCHES.get(branch, branch)
                say(panel, named, (0, y), (-8, 0), ha="right", **BESIDE)
            else:
                fate = "diverges" if math.isnan(value) else "lives" if alive else "dies"
                say(panel, fate, (1, y), (8, 0), color=INK if alive else FAINT, **BESIDE)
    told = [
        f"{words.BRANCHES.get(name, name)}: KL {nats(number(end.get('kl')))}, z-gain "
        f"{nats(number(end.get('z_gain')))}, {'alive' if end.get('alive') else 'dead'}"
        for name, end in branches.items()
    ]
    return Sheet(
        figure,
        title,
        f"The run trained on from step {tick(number(found.get('at')))} for "
        f"{tick(number(found.get('steps')))} steps in several ways, on validation at their end; "
        "blue: the code is read, grey: it is not; whiskers of two standard errors. A cause is what "
        "rescues when it is taken away. One seed, each branch trained once.",
        f"{title}. {'; '.join(told)}.",
    )


def _residuals(record: Record) -> Sheet | None:
    found = section(record, "residuals")
    kinds = {name: section(found, name) for name in ("unigram", "bigram")}
    kinds = {name: kind for name, kind in kinds.items() if kind.get("ratio") is not None}
    if not kinds:
        return None
    ratios = {name: number(kind["ratio"]) for name, kind in kinds.items()}
    errors = {name: TWO * number(kind.get("error")) for name, kind in kinds.items()}
    told = words.listed([f"{nats(ratio)} by {name}s" for name, ratio in ratios.items()])
    title = f"What the errors in a sentence have in common: {told}"
    figure = canvas(30 * len(kinds) + 66, title)
    panel = axes(figure, 92, 44, 400, 30 * len(kinds))
    counts = number(found.get("threshold"))
    ends = [ratios[name] + side * errors[name] for name in kinds for side in (-1, 1)]
    panel.set_xlim(span([1.0, counts, *ends]))
    panel.set_ylim(len(kinds) - 0.5, -0.5)
    _rows(panel, "errors in common, 1 where the model is right")
    panel.axvline(1, color=INK, linewidth=1, zorder=1)
    if math.isfinite(counts):
        panel.axvline(counts, color=FAINT, linewidth=1, dashes=(4, 2), zorder=1)
    for y, (name, kind) in enumerate(kinds.items()):
        look: Look = {"color": LIGHT["c0"], "capsize": 4, "markersize": 8, "linewidth": 1.6}
        panel.errorbar([ratios[name]], [y], xerr=np.nan_to_num([errors[name]]), fmt="o", **look)
        say(panel, f"{name}s", (0, y), (-8, 0), ha="right", **BESIDE)
        say(panel, str(kind.get("verdict") or ""), (1, y), (8, 0), **BESIDE)
    return Sheet(
        figure,
        title,
        "Of a language model alone: how much more the errors at two places of a sentence go "
        "together than under a right model; whiskers of two standard errors, dashed from where it "
        "counts. Above that sentences differ by something that the words before do not tell, which "
        "a latent could.",
        f"{title}: {found.get('verdict')}.",
    )


FIGURES: dict[str, Callable[[Record], Sheet | None]] = {
    "units": _units,
    "signal": _signal,
    "collapse": _collapse,
    "trajectory": _trajectory,
    "drift": _drift,
    "positions": _positions,
    "lag": _lag,
    "probes": _probes,
    "plane": _plane,
    "planes": _planes,
    "gradients": _gradients,
    "interventions": _interventions,
    "residuals": _residuals,
}


# -- what several of them have --------------------------------------------------------------------


def _rows(panel: Axes, x: str) -> None:
    """Of a panel whose heights are rows with names."""
    dress(panel, x, "")
    panel.grid(visible=False, axis="y")
    panel.grid(axis="x", color=RULE, linewidth=0.8)
    panel.set_yticks([])


def _legend(figure: Any, verdicts: Sequence[str], top: float) -> None:
    entries = [Entry(v, LIGHT[VERDICTS[v][0]], VERDICTS[v][1]) for v in verdicts]
    legend(figure, entries, 250, top, 350, max(3, len(entries)))


def _ends(panel: Axes, ends: dict[str, float], least: float, apart: bool = False) -> None:
    """Names behind the ends of their lines, at least so many px above one another: moved up for
    it, or left out."""
    taken, scale = -math.inf, panel.transData
    for name, value in sorted(ends.items(), key=lambda end: end[1]):
        height = float(scale.transform((1, value))[1])
        if height - taken < least and not apart:
            continue
        taken = max(height, taken + least)
        at = scale.inverted().transform((0, taken))[1]
        say(panel, name, (1, at), (5, 0), size=10.5, **BESIDE)


def _rest(n: int) -> str:
    return f" {n} more units are not shown." if n else ""
