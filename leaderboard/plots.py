"""A board's figures: SVG for the page, SVG and PDF for papers.

On the page colours are names (`var(--c0)`), so that a figure follows its light and its dark. Names
of rows come from records: they are text, whatever they hold. The same records give the same bytes.
"""

import io
import json
import math
import multiprocessing
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree
from zlib import crc32

import numpy as np
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from benchmark.diagnosis import words
from benchmark.diagnosis.drawing import (
    AXES,
    FAINT,
    GID,
    INK,
    LIGHT,
    PAPER,
    RULE,
    TITLE,
    Entry,
    Look,
    Sheet,
    axes,
    between,
    brief,
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
from benchmark.diagnosis.drawing import DARK as DARK
from benchmark.diagnosis.figures import INFORMATION, PARTS, stack
from benchmark.diagnosis.words import nats
from leaderboard import beside
from leaderboard.board import LANGUAGE_MODEL, Board, Row
from leaderboard.inference import Array, paired
from leaderboard.load import YAML

COLOURS = 12
MARKERS = "os^DvPX<>phd"
TRAIL = ["kl", "mi", "nll", "z_gain", "z_gain_se", "i_read", "i_read_se"]
POINTS, RECORDS, UNITS = 200, 60, 64  # at most: of a line, and of a heat map
PANELS, PAIRS, LISTED = 12, 20, 30  # rows, at most
DEAD = 0.01  # nats of a unit below which it has collapsed
LEVELS = [0.001, 0.003, DEAD, 0.03, 0.1, 0.3, 1.0, 3.0]
LARGEST = 1e12  # beyond it an axis has no ticks to tell its numbers apart
WIDE, SIDE = 880, 180  # px: of a large figure, of a legend beside


@dataclass(frozen=True)
class Plot:
    """A figure of a board, ready to be written."""

    name: str
    """Of the file and of the element."""
    title: str
    caption: str
    """How it is read, and where it misleads."""
    summary: str
    """What it shows, in words, for who cannot see it."""
    page: str
    """SVG to be put into a page, without its title; its ids are unique there."""
    files: Mapping[str, bytes]
    """svg and pdf, in light colours, with the title."""


@dataclass(frozen=True)
class Series:
    """A row as all figures of its board draw it."""

    row: Row
    gid: str
    """Of all that is drawn of it."""
    colour: str
    marker: str
    trail: pd.DataFrame
    """The validation records of its finished seeds: seed, step, seconds, TRAIL."""

    @property
    def name(self) -> str:
        return brief(self.row.name)

    @property
    def grey(self) -> bool:
        return self.colour == LIGHT["other"]

    @property
    def latent(self) -> bool:
        return any(cell["test/latent"] != "none" for cell in self.row.done)

    def mean(self, measure: str) -> float:
        return _drawable(self.row.means[measure][0])

    def seeds(self, measure: str) -> Array:
        return np.array([_drawable(cell[f"test/{measure}"]) for cell in self.row.done])


def plots(
    board: Board, curves: pd.DataFrame, colours: Mapping[str, int] | None = None
) -> list[Plot]:
    """A board's figures; one whose data are not there is left out.

    curves: of `measurements`. colours: of `colours`, for several boards to have the same.
    """
    return _plots(board, trails(curves), colours)


def draw(found: Sequence[Board], curves: pd.DataFrame) -> dict[str, list[Plot]]:
    """The figures of all boards, by data set, drawn on all cores."""
    by_row, by_name = trails(curves), colours(found)
    jobs = [(board, {key: by_row[key] for key in _keys(board) & by_row.keys()}) for board in found]
    workers = min(len(os.sched_getaffinity(0)) - 1, len(found))
    if not workers:
        return {board.dataset: _plots(board, own, by_name) for board, own in jobs}
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        tasks = [pool.submit(_plots, board, own, by_name) for board, own in jobs]
        drawn = []
        for task, (board, own) in zip(reversed(tasks), reversed(jobs), strict=True):
            # this process is the last core's: it draws what no other has begun
            drawn.append(_plots(board, own, by_name) if task.cancel() else task)
        each = [one if isinstance(one, list) else one.result() for one in reversed(drawn)]
    return {board.dataset: plots_ for board, plots_ in zip(found, each, strict=True)}


def colours(found: Sequence[Board]) -> dict[str, int]:
    """The number of each row's colour: of the rows that are best on some board, by name."""
    ranks: dict[str, int] = {}
    for board in found:
        coloured = [row for row in board.rows if row.name != LANGUAGE_MODEL and _counts(row)]
        for rank, row in enumerate(coloured):
            ranks[row.name] = min(rank, ranks.get(row.name, rank))
    best = sorted(ranks, key=lambda name: (ranks[name], name))[:COLOURS]
    return {name: i for i, name in enumerate(sorted(best))}


def sheets(
    board: Board, by_row: Mapping[Any, pd.DataFrame], colours_: Mapping[str, int] | None = None
) -> Iterator[tuple[str, Sheet]]:
    """The figures by name, one after another. by_row: of `trails`."""
    numbers = colours([board]) if colours_ is None else colours_
    rows = [_series(i, row, by_row, numbers) for i, row in enumerate(board.rows) if _counts(row)]
    same = {(s.row.method, _label(s.row)): s for s in rows}
    elsewhere = [  # at other budgets, in the colours of this one
        replace(same[key], row=row)
        for other in board.others
        for row in other.rows
        if _counts(row) and (key := (row.method, _label(row))) in same
    ]
    for name, make in FIGURES.items():
        with style():
            sheet = make([*rows, *elsewhere] if make is _price else rows)
            if sheet is not None:
                yield name, sheet


def _counts(row: Row) -> bool:
    """Whether it is drawn: a stale one is compared with none."""
    return bool(row.done) and not row.stale


def _plots(
    board: Board, by_row: Mapping[Any, pd.DataFrame], numbers: Mapping[str, int] | None
) -> list[Plot]:
    found = []
    for name, sheet in sheets(board, by_row, numbers):
        page, files = _write(sheet, f"figure-{_slug(board.dataset)}-{name}", board)
        found.append(Plot(name, sheet.title, sheet.caption, sheet.summary, page, files))
    return found


# Data --------------------------------------------------------------------------------------------


def trails(curves: pd.DataFrame) -> dict[Any, pd.DataFrame]:
    """The validation records of each (dataset, method, id), by seed and step, a column a metric."""
    key = ["dataset", "method", "id", "seed", "step"]
    wanted = (curves["split"] == "valid") & curves["metric"].isin(TRAIL) & curves["seed"].notna()
    lines = pd.DataFrame(curves[wanted]).drop_duplicates([*key, "metric"], keep="last")
    if lines.empty:
        return {}
    records = lines.drop_duplicates(key).set_index(key)[["seconds"]]
    for name in TRAIL:
        of_it = lines[lines["metric"] == name]
        records[name] = of_it.set_index(key)["value"]
    table = records.reset_index().sort_values(key, ignore_index=True).astype({"seed": int})
    return {names: part.drop(columns=key[:3]) for names, part in table.groupby(key[:3], sort=False)}


def _keys(board: Board) -> set[Any]:
    return {_key(row) for row in board.rows}


def _key(row: Row) -> tuple[str, str, str]:
    return row.cells[0]["dataset"], row.method, row.id


def _series(
    index: int, row: Row, by_row: Mapping[Any, pd.DataFrame], numbers: Mapping[str, int]
) -> Series:
    trail = by_row.get(_key(row), pd.DataFrame(columns=["seed", "step", "seconds", *TRAIL]))
    trail = pd.DataFrame(trail[trail["seed"].isin(list(row.seeds))])
    number = numbers.get(row.name)
    colour = "other" if number is None else f"c{number % COLOURS}"
    if row.name == LANGUAGE_MODEL:
        colour = "ink"
    marker = "o" if number is None else MARKERS[number % COLOURS]
    return Series(row, f"{GID}{index}", LIGHT[colour], marker, trail)


def front(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """The points than which none is as low in both and lower in one, from left to right."""
    known = [i for i in range(len(x)) if math.isfinite(x[i]) and math.isfinite(y[i])]
    found: list[int] = []
    for i in sorted(known, key=lambda i: (x[i], y[i])):
        if not found or y[i] < y[found[-1]] or (x[i], y[i]) == (x[found[-1]], y[found[-1]]):
            found.append(i)
    return found


def reached(trail: pd.DataFrame, target: float) -> Array:
    """For each seed the training seconds of its first record with an NLL at or below the target
    and a code that is read (z-gain or i_read above 2 s.e.); infinite where there is none."""
    read = trail["i_read"] > 2 * trail["i_read_se"]
    read |= trail["z_gain"] > 2 * trail["z_gain_se"].fillna(0)
    there = pd.DataFrame(trail[read & (trail["nll"] <= target)])
    there = there.sort_values("step").drop_duplicates("seed")
    seconds = there.set_index("seed")["seconds"].reindex(sorted(set(trail["seed"])))
    return seconds.fillna(math.inf).to_numpy(float)


def over_training(trail: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The mean over seeds at the steps where all have it, and the median of their seconds: step,
    seconds, value; at most POINTS."""
    table = trail[["step", "seconds", metric]].astype(float)
    table = table.where(table.abs() < LARGEST)
    by_step = table.groupby("step")
    line = pd.DataFrame(
        {
            "seconds": by_step["seconds"].median(skipna=False),
            "value": by_step[metric].mean(skipna=False),
        }
    )
    line = line[by_step.size() == len(set(trail["seed"]))].dropna().reset_index()
    return line.iloc[thinned(len(line), POINTS)]


class Units(NamedTuple):
    """KL by unit over training, of one seed."""

    step: Array  # [R]
    kl: Array  # [U, R], most at the end first
    alive: int
    total: int


def _units(row: Row) -> Units | None:
    """Of its first seed that has them; at most RECORDS and UNITS of them, evenly."""
    for seed in sorted(row.seeds):
        try:
            with np.load(Path(row.seeds[seed]["path"]) / "units.npz", allow_pickle=False) as file:
                kl, step = file["kl"].astype(float), file["step"].astype(float)
        except (OSError, ValueError, KeyError, EOFError):
            continue
        if kl.ndim == 2 and kl.size and step.shape == kl.shape[:1] and np.isfinite(step).all():
            at, last = thinned(len(step), RECORDS), np.nan_to_num(kl[-1])
            order = np.argsort(-last, kind="stable")[thinned(len(last), UNITS)]
            return Units(step[at], kl[at][:, order].T, int((last > DEAD).sum()), len(last))
    return None


def _difference(ours: Row, theirs: Row) -> float:
    """The mean NLL less the other's, by common seeds."""
    of = [{s: cell["test/nll"] for s, cell in row.seeds.items()} for row in (ours, theirs)]
    return _drawable(paired(*of).mean)


def _drawable(value: Any) -> float:
    """The value, NaN for what no axis can hold."""
    return float(value) if value is not None and abs(value) < LARGEST else math.nan


def _model(rows: Iterable[Series]) -> Series | None:
    """The language model."""
    return next((s for s in rows if s.row.name == LANGUAGE_MODEL), None)


# Figures -----------------------------------------------------------------------------------------


def _rate_distortion(rows: Sequence[Series]) -> Sheet | None:
    drawn = [s for s in rows if s.latent and _known(s.seeds("kl") + s.seeds("rec"))]
    if not drawn:
        return None
    means = np.array([(s.mean("kl"), s.mean("rec")) for s in drawn])
    title = "Rate and distortion: what the code costs, and what it leaves to be told"
    if _known(means.sum(1)):
        i = int(np.nanargmin(means.sum(1)))
        rate, rec = map(nats, means[i])
        title = f"{drawn[i].name} has the lowest -ELBO: {rate} + {rec} nats"
    lm, level, told = _level_of(rows)
    figure = canvas(430, title)
    panel = axes(figure, 52, 44, 532, 356)
    panel.set_xlim(span(np.concatenate([s.seeds("kl") for s in drawn])))
    panel.set_ylim(span([level, *np.concatenate([s.seeds("rec") for s in drawn])]))
    names = ("rate: KL, nats a sentence", "distortion: -log p(x|z), nats a sentence")
    _dress(panel, *names, grey=drawn)
    taken = _diagonals(panel, level, lm)
    best = front(*means.T.tolist())
    x, y = (np.repeat(means[best, axis], 2) for axis in (0, 1))
    panel.plot(x[1:], y[:-1], color=FAINT, linewidth=1, dashes=(1, 2), gid="front")
    ends = np.array(panel.get_xlim())
    lines = [between(panel, x[1:], y[:-1]), between(panel, ends, level - ends)]
    _scatter(figure, panel, drawn, "kl", "rec", taken, lines)
    on = ", ".join(drawn[i].name for i in best) or "none"
    return Sheet(
        figure,
        title,
        "Small: seeds, large: their mean; test split; down and left is better. Along a thin "
        "diagonal -ELBO (rate + distortion) is one, along the dashed one it is the language "
        "model's NLL; dots join the rows that no other beats in both. -ELBO is only a bound: a "
        "loose posterior lies above its model's NLL.",
        f"{title}. {_range('Rate', means[:, 0])} {_range('Distortion', means[:, 1])} "
        f"On the Pareto front: {on}.{told}",
    )


def _diagonals(panel: Axes, level: float, lm: Series | None) -> list[Array]:
    """Lines of one -ELBO, with its value where they leave the panel; the values' boxes."""
    (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
    ticks = MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(left + bottom, right + top)
    near = (ticks[1] - ticks[0]) / 3
    drawn: list[tuple[float, str, Series | None]] = []
    if lm is not None and math.isfinite(level):
        drawn = [(level, f"{lm.name} {nats(level)}", lm)]
    drawn += [(c, f"-ELBO {tick(c)}", None) for c in ticks if not abs(c - level) < near]
    boxes: list[Array] = []
    for c, text, s in drawn:
        x = np.array([max(left, c - top), min(right, c - bottom)])
        start, end = panel.transData.transform(np.stack([x, c - x], 1))
        if x[0] >= x[1] or np.hypot(*(end - start)) < 60:
            continue
        look: Look = {"color": INK, "dashes": (4, 2), "gid": s.gid} if s else {"color": RULE}
        panel.plot(x, c - x, linewidth=1, zorder=1, **look)
        side, offset = ("right", (-2, -17)) if x[1] == right else ("left", (3, 3))  # beside it
        box = text_box(end + np.array(offset), text, side, "bottom", 10.5)
        if not any(overlap(box, other) for other in boxes):
            boxes.append(box)
            look = {"gid": s.gid} if s else {"color": FAINT}
            say(panel, text, (x[1], c - x[1]), offset, ha=side, size=10.5, **look)
    return boxes


def _z_gain(rows: Sequence[Series]) -> Sheet | None:
    drawn = [s for s in rows if s.latent and _known(s.seeds("z_gain") + s.seeds("nll"))]
    if not drawn:
        return None
    lm, level, told = _level_of(rows)
    verdicts = [s.row.pays for s in drawn if s.row.pays is not None]
    title = "Does reading the code come with a better likelihood?"
    if verdicts:
        title = f"Reading the code pays for {verdicts.count('pays')} of {len(verdicts)} rows"
    figure = canvas(400, title)
    panel = axes(figure, 52, 44, 532, 326)
    panel.set_xlim(span(np.concatenate([s.seeds("z_gain") for s in drawn])))
    panel.set_ylim(span([level, *np.concatenate([s.seeds("nll") for s in drawn])]))
    names = ("z-gain: what the own code tells the decoder, nats", "NLL, nats a sentence")
    _dress(panel, *names, grey=drawn)
    taken, lines = [], []
    if lm is not None and math.isfinite(level):
        text, at = f"{lm.name} {nats(level)}", (panel.get_xlim()[1], level)
        panel.axhline(level, color=INK, linewidth=1, dashes=(4, 2), zorder=1, gid=lm.gid)
        say(panel, text, at, (-2, 3), ha="right", size=10.5, gid=lm.gid)
        corner = panel.transData.transform(at) + np.array([-2, 3])
        taken = [text_box(corner, text, "right", "bottom", 10.5)]
        lines = [between(panel, panel.get_xlim(), (level, level))]
    _scatter(figure, panel, drawn, "z_gain", "nll", taken, lines)
    best = min(drawn, key=lambda s: (math.isnan(s.mean("nll")), s.mean("nll")))
    return Sheet(
        figure,
        title,
        "Small: seeds, large: their mean; test split. Right: the decoder listens to its code; "
        "down: a better likelihood; dashed: the same decoder without a code. A z-gain is no virtue "
        "by itself: on data without a latent it is bought with NLL.",
        f"{title}. {_range('z-gain', [s.mean('z_gain') for s in drawn])} "
        f"{_range('NLL', [s.mean('nll') for s in drawn])} Lowest NLL: {best.name}, "
        f"{nats(best.mean('nll'))}, at a z-gain of {nats(best.mean('z_gain'))}.{told}",
    )


def _learning(rows: Sequence[Series]) -> Sheet | None:
    metrics = {"kl": "KL, nats a sentence", "mi": "MI, nats", "nll": "NLL, nats a sentence"}
    lines = {m: [(s, over_training(s.trail, m)) for s in rows] for m in metrics}
    lines = {m: [(s, line) for s, line in of if len(line)] for m, of in lines.items()}
    lines = {m: of for m, of in lines.items() if of}
    if not lines:
        return None
    last = {m: [float(line["value"].iloc[-1]) for _, line in of] for m, of in lines.items()}
    ends = [f"{m.upper()} {nats(min(all_))} to {nats(max(all_))}" for m, all_ in last.items()]
    title = f"Validation over training ends at {', '.join(ends)}"
    drawn = [s for s in rows if any(s is other for of in lines.values() for other, _ in of)]
    named = [s for s in drawn if not s.grey]
    depth = 18 * math.ceil(len(named) / 4)
    figure = canvas(514 + depth, title, width=WIDE)
    width = (WIDE - 74 - 56 * (len(lines) - 1)) / len(lines)
    for i, (metric, of) in enumerate(lines.items()):
        for j, (clock, unit) in enumerate((("step", "steps"), ("seconds", "seconds"))):
            panel = axes(figure, 50 + i * (width + 56), 60 + depth + 246 * j, width, 180)
            ends = [float(line[clock].iloc[-1]) for _, line in of]
            slow = min(ends) > 0 and max(ends) > 5 * np.median(ends)
            if slow:  # a method with an inner loop would press all others to the left
                panel.set_xscale("log")
                starts = [line.loc[line[clock] > 0, clock].min() for _, line in of]
                panel.set_xlim(np.nanmin(starts) / 1.1, max(ends))
            else:
                panel.set_xlim(0, max(*ends, 1e-9) * 1.02)
            near = [line["value"].iloc[-1] for s, line in of if not s.grey] or [0.0]
            most = max(near) - min(near) or 1.0  # the first steps would flatten all that follows
            values = np.concatenate([line["value"] for _, line in of])
            panel.set_ylim(span(np.clip(values, min(near) - most, max(near) + most)))
            corner = i == len(lines) - 1 and j
            _dress(
                panel,
                f"training {unit}",
                metrics[metric],
                drawn if corner else (),
                "x" if slow else "",
            )
            for s, line in sorted(of, key=lambda pair: not pair[0].grey):
                look: Look = {"linewidth": 1, "alpha": 0.6} if s.grey else {"linewidth": 1.6}
                if s.row.name == LANGUAGE_MODEL:
                    look["dashes"] = (4, 2)
                panel.plot(line[clock], line["value"], color=s.colour, gid=s.gid, **look)
                end = panel.lines[-1]
                end.set(marker=s.marker, markersize=4.5, markeredgewidth=0, markevery=[-1])
    _legend(figure, named, 50, depth + 2, WIDE - 60, 4)
    steps = max(float(line["step"].iloc[-1]) for of in lines.values() for _, line in of)
    return Sheet(
        figure,
        title,
        "Mean over seeds, at the steps that all of them have, against seconds (above; their "
        "median, and the clock stops during evaluation) and steps (below); lines may come in from "
        "outside of a panel. "
        "A method with an inner loop does more in a step: compare by seconds.",
        f"{title}. {len(drawn)} rows, {steps:,.0f} steps at most.",
    )


def _kl_by_unit(rows: Sequence[Series]) -> Sheet | None:
    found = [(s, units) for s in rows if s.latent and (units := _units(s.row))][:PANELS]
    if not found:
        return None
    alive, total = (sum(units[i] for _, units in found) for i in (2, 3))
    title = f"{alive} of {total} units end above {DEAD} nats"
    columns, deep = min(4, len(found)), math.ceil(len(found) / 4)
    figure = canvas(deep * 112 + 78, title, width=WIDE)
    width = (WIDE - 58 - 18 * 3) / 4
    for k, (s, units) in enumerate(found):
        left, bottom = 44 + k % 4 * (width + 18), 72 + (deep - 1 - k // 4) * 112
        panel = axes(figure, left, bottom, width, 78)
        last, n = max(units.step[-1], 1.0), len(units.kl)
        panel.set_xlim(0, last)
        panel.set_ylim(n, 0)
        panel.set_axis_off()
        _heat(panel, units, s.gid)
        name = brief(s.row.name, int((width - 42) / 6.7))
        say(panel, name, (0, 1), (0, 6), AXES, gid=s.gid)
        many = f"{units.alive}/{units.total}"
        say(panel, many, (1, 1), (0, 6), AXES, ha="right", color=FAINT, gid=s.gid)
        quiet = {"size": 10.5, "color": FAINT}
        for unit, number in {0: 1, n - 1: units.total}.items():
            say(panel, f"{number}", (0, unit + 0.5), (-5, 0), ha="right", va="center", **quiet)
        if k + columns >= len(found):
            say(panel, "0", (0, 0), (0, -14), AXES, **quiet)
            say(panel, f"{last:,.6g} steps", (1, 0), (0, -14), AXES, ha="right", **quiet)
    _scale(figure)
    by_row = ", ".join(f"{s.name} {units.alive} of {units.total}" for s, units in found)
    return Sheet(
        figure,
        title,
        "A line of cells a unit, sorted by its last KL; nats a sentence, the first seed of a row. "
        f"Grey is below {DEAD} nats: collapsed. KL does not prove that the decoder reads the unit."
        + _rest(sum(s.latent for s in rows) - len(found)),
        f"{title}, by row: {by_row}.",
    )


def _heat(panel: Axes, units: Units, gid: str) -> None:
    """Cells of one level as one path; neighbours in time are joined."""
    levels = np.where(np.isnan(units.kl), -1, np.digitize(units.kl, LEVELS))
    edges = np.concatenate([[0.0], units.step])
    boxes: dict[int, list[tuple[float, ...]]] = defaultdict(list)
    for unit, line in enumerate(levels):
        breaks = [0, *np.flatnonzero(np.diff(line)) + 1, len(line)]
        for start, end in pairwise(breaks):
            boxes[int(line[start])].append((float(edges[start]), float(edges[end]), unit, unit + 1))
    for level, group in sorted(boxes.items()):
        if level >= 0:
            tiles(panel, group, *_shade(level), gid)


def _shade(level: int) -> tuple[str, float]:
    """The colour and its opacity: two scales that meet where a unit is dead."""
    dead, most = LEVELS.index(DEAD), len(LEVELS)
    if level <= dead:
        return LIGHT["other"], 0.12 + 0.14 * level
    return LIGHT["c0"], (level - dead + 0.6) / (most - dead + 0.6)


def _scale(figure: Figure) -> None:
    """The levels of KL by unit, as a strip below."""
    n = len(LEVELS) + 1
    panel = axes(figure, 44, 26, 48 * n, 10)
    panel.set_axis_off()
    panel.set_xlim(0, n)
    panel.set_ylim(0, 1)
    for level in range(n):
        tiles(panel, [(level, level + 1, 0, 1)], *_shade(level), "scale")
    for i, value in enumerate(LEVELS, 1):
        colour = INK if value == DEAD else FAINT
        look = {"ha": "center", "va": "top", "size": 10.5, "color": colour}
        say(panel, f"{value:g}", (i, 0), (0, -4), **look)
    dead = LEVELS.index(DEAD) + 1
    panel.plot([dead, dead], [-0.3, 1.3], color=INK, linewidth=1.5, clip_on=False)
    say(panel, "KL of a unit, nats; below the mark: collapsed", (n, 0.5), (10, 0), va="center")


def _cost(rows: Sequence[Series]) -> Sheet | None:
    lm = _model(rows)
    target = math.nan
    if lm is not None:
        last = lm.trail.sort_values("step").drop_duplicates("seed", keep="last")
        target = _drawable(last["nll"].mean(skipna=False))
    found = [(s, reached(s.trail, target)) for s in rows if s.latent and len(s.trail)]
    if math.isnan(target) or not found:
        return None
    found.sort(key=lambda one: (np.median(one[1]), -np.isfinite(one[1]).sum(), one[1].min()))
    first, quickest = found[0][0].name, float(np.median(found[0][1]))
    arrived = sum(bool(np.isfinite(times).any()) for _, times in found)
    title = f"{arrived} of {len(found)} rows reach the language model's NLL while read"
    if math.isfinite(quickest):
        title += f"; {first} first, after {quickest:,.3g} s"
    shown = found[:LISTED]
    figure = canvas(19 * len(shown) + 54, title)
    panel = axes(figure, 190, 44, 300, 19 * len(shown))
    known = np.concatenate([times[times < LARGEST] for _, times in found])
    wide = len(known) > 0 and known.max() > 15 * known.min() > 0
    if wide:
        panel.set_xscale("log")
        panel.set_xlim(known.min() / 1.15, known.max() * 1.15)
    else:
        panel.set_xlim(0, 1.06 * known.max(initial=1.0))
    panel.set_ylim(len(shown) - 0.5, -0.5)
    _dress(
        panel,
        f"training seconds to a validation NLL of {nats(target)}",
        "",
        log="x" if wide else "",
    )
    panel.set_yticks([])
    for place, (s, times) in enumerate(shown):
        panel.axhline(place, color=RULE, linewidth=0.8, zorder=0)
        there = times[times < LARGEST]
        _points(panel, s, there, np.full(len(there), place))
        if np.median(times) < LARGEST:
            _mean(panel, s, float(np.median(times)), place)
        many = f"{'' if len(there) else 'never '}{len(there)}/{len(times)}"
        colour = INK if len(there) else FAINT
        look = {"frame": ("axes fraction", "data"), "va": "center", "gid": s.gid}
        say(panel, s.name, (0, place), (-6, 0), ha="right", **look)
        say(panel, many, (1, place), (8, 0), color=colour, **look)
    medians = [(s.name, float(np.median(times))) for s, times in found]
    soon = ", ".join(f"{name} {nats(t)}" for name, t in medians if math.isfinite(t)) or "none"
    never = ", ".join(s.name for s, times in found if not np.isfinite(times).any()) or "none"
    return Sheet(
        figure,
        title,
        "Small: seeds, large: their median, where a seed that never got there counts as later than "
        "all; right: how many seeds did. Read: a z-gain or i_read above 2 s.e. at that record. "
        "Validation runs at the ends of epochs, and its NLL of few samples is an upper bound for a "
        "model with latents: the true times are somewhat earlier." + _rest(len(found) - len(shown)),
        f"{title}. Median seconds: {soon}. Never: {never}.",
    )


def _price(rows: Sequence[Series]) -> Sheet | None:
    alike: dict[Any, list[Series]] = defaultdict(list)
    for s in rows:
        alike[s.row.method, _label(s.row)].append(s)
    several = [s for group in alike.values() if len(group) > 1 for s in group]
    settings = {_key(s.row): _settings(s.row) for s in several}
    models: dict[str, Row] = {}
    for s in several:
        if _label(s.row) == LANGUAGE_MODEL:
            models.setdefault(settings[_key(s.row)][1], s.row)
    lines: dict[Any, list[tuple[float, float, Series]]] = defaultdict(list)
    for s in several:
        rest, training = settings[_key(s.row)]
        steps = _drawable(np.mean([cell["cost/steps"] for cell in s.row.done]))
        model = models.get(training)
        if model is not None and _label(s.row) != LANGUAGE_MODEL and steps > 0:
            more = _difference(s.row, model)
            if math.isfinite(more):
                lines[s.row.method, _label(s.row), rest].append((steps, more, s))
    drawn = [sorted(line, key=lambda point: point[:2]) for line in lines.values()]
    drawn = sorted((x for x in drawn if x[0][0] < x[-1][0]), key=lambda line: line[-1][1])
    if not drawn:
        return None
    names = [brief(_label(line[-1][2].row)) for line in drawn]
    least, most = drawn[0][-1][1], drawn[-1][-1][1]
    title = f"At the largest budget {names[0]} is {nats(least, '+')} nats from the language model"
    figure = canvas(400, title)
    panel = axes(figure, 52, 44, 362, 326)
    steps = [point[0] for line in drawn for point in line]
    panel.set_xscale("log")
    panel.set_xlim(min(steps) / 1.1, max(steps) * 1.1)
    panel.set_ylim(span([0.0, *(point[1] for line in drawn for point in line)]))
    _dress(panel, "steps trained", "NLL less the language model's, nats", log="x")
    panel.axhline(0, color=INK, linewidth=1, dashes=(4, 2), zorder=1)
    height = -math.inf
    for line, name in zip(drawn, names, strict=True):
        x, y, points = zip(*line, strict=True)
        end = points[-1]
        panel.plot(x, y, color=end.colour, linewidth=1.6, gid=end.gid)
        for s, *at in zip(points, x, y, strict=True):
            _mean(panel, replace(end, gid=s.gid), *at)
        bottom, top = panel.get_ylim()
        height = max(y[-1], height + 16 * (top - bottom) / 326)  # a line above the one before
        look = {"frame": ("axes fraction", "data"), "va": "center", "gid": end.gid}
        say(panel, name, (1, height), (6, 0), **look)
    return Sheet(
        figure,
        title,
        "One variant at several budgets, mean over seeds, against the language model of the same "
        "sizes, budget, batches and precision; below the line reading the code pays. The price of "
        "collapse shrinks where more training lets the decoder find by itself what the code would "
        "tell it.",
        f"{title}; {names[-1]} is {nats(most, '+')}. {len(drawn)} variants, "
        f"{min(steps):,.0f} to {max(steps):,.0f} steps.",
    )


def _label(row: Row) -> str:
    """The variant without what its name may say of the budget."""
    labels = [cell["variant"] for cell in row.cells if isinstance(cell["variant"], str)]
    label = min(labels, key=lambda text: (len(text), text), default=row.method)
    return " ".join(word for word in label.split() if not word.startswith("budget."))


def _settings(row: Row) -> tuple[str, str]:
    """What else defines the variant and its bound, and what it shares with the language model that
    it is held to, its budget and the like; as text."""
    try:
        text = (Path(row.done[0]["path"]) / "config.yaml").read_text(encoding="utf-8")
        config = yaml.load(text, YAML)
    except (OSError, ValueError, yaml.YAMLError):
        config = None
    config = config if isinstance(config, dict) else {}
    others = {n: config.get(n) for n in ("method", "model", "batching", "precision", "placebo")}
    budget = config.get("budget")
    if isinstance(budget, dict):  # how much is measured is no part of training's
        measured = budget.get("evaluation")
        others["samples"] = measured.get("nll_samples") if isinstance(measured, dict) else None
        budget = {name: value for name, value in budget.items() if name != "evaluation"}
    shared = {n: others[n] for n in ("model", "batching", "precision")} | {"budget": budget}
    rest, said = (json.dumps(_said(x), sort_keys=True, default=str) for x in (others, shared))
    return rest, said


def _said(node: Any) -> Any:
    """A configuration without what is null or off: an older one lacks fields that came since."""
    if isinstance(node, dict):
        return {n: _said(x) for n, x in node.items() if x is not None and x is not False}
    return node


def _pairs(rows: Sequence[Series]) -> Sheet | None:
    known = [s for s in rows if math.isfinite(s.mean("nll"))]
    if len(known) < 2:
        return None
    shown = known[:PAIRS]
    n = len(shown)
    less = np.array([[_difference(a.row, b.row) for b in shown] for a in shown])
    apart = np.array([[a.row.apart(b.row) for b in shown] for a in shown])
    apart &= np.isfinite(less)
    title = f"{apart.sum() // 2} of {n * (n - 1) // 2} pairs of rows can be told apart by NLL"
    size = min(31.0, 372 / n)
    figure = canvas(n * size + 66, title)
    panel = axes(figure, 190, 32, n * size, n * size)
    panel.set_xlim(0, n)
    panel.set_ylim(n, 0)
    panel.set_axis_off()
    largest = float(np.abs(less[apart]).max(initial=0.0)) or 1.0
    for i, s in enumerate(shown):
        groups: dict[tuple[str, float], list[tuple[float, ...]]] = defaultdict(list)
        for j in {*range(n)} - {i}:
            shade = RULE, 0.5
            if apart[i, j]:
                side = LIGHT["c0"] if less[i, j] < 0 else LIGHT["c1"]
                shade = side, 0.1 + 0.1 * math.ceil(5 * abs(less[i, j]) / largest)
            groups[shade].append((j + 0.03, j + 0.97, i + 0.03, i + 0.97))
            if n <= PANELS and math.isfinite(less[i, j]):
                look = {"ha": "center", "va": "center", "size": 9.5, "gid": s.gid}
                colour = INK if apart[i, j] else FAINT
                say(panel, nats(less[i, j]), (j + 0.5, i + 0.5), color=colour, **look)
        for shade, group in sorted(groups.items()):
            tiles(panel, group, *shade, s.gid)
        name = f"{s.name}  {i + 1}"
        say(panel, name, (0, i + 0.5), (-6, 0), ha="right", va="center", gid=s.gid)
        say(panel, f"{i + 1}", (i + 0.5, 0), (0, 4), ha="center", color=FAINT, gid=s.gid)
    if apart.any():
        _scale_of_pairs(figure, n * size, largest)
    far = ""
    if _known(less[apart]):
        i, j = np.unravel_index(np.argmin(np.where(apart, less, np.inf)), less.shape)
        far = f" Furthest apart: {shown[i].name} less {shown[j].name}, {nats(less[i, j])} nats."
    return Sheet(
        figure,
        title,
        "NLL of the row less that of the column, nats, by common seeds; blue: the row is better, "
        "orange: worse. Without colour the two cannot be told apart (they share a letter), which "
        "does not say that they are equal." + _rest(len(known) - n),
        f"{title}. Best first: {', '.join(s.name for s in shown)}.{far}",
    )


def _scale_of_pairs(figure: Figure, width: float, largest: float) -> None:
    panel = axes(figure, 190, 10, width, 8)
    panel.set_axis_off()
    panel.set_xlim(-5, 5)
    panel.set_ylim(0, 1)
    for k in range(5):
        tiles(panel, [(-k - 1, -k, 0, 1)], LIGHT["c0"], 0.2 + 0.1 * k, "scale")
        tiles(panel, [(k, k + 1, 0, 1)], LIGHT["c1"], 0.2 + 0.1 * k, "scale")
    look = {"va": "center", "size": 10.5, "color": FAINT}
    say(panel, nats(-largest, "+"), (-5, 0.5), (-4, 0), ha="right", **look)
    say(panel, nats(largest, "+"), (5, 0.5), (4, 0), **look)


def _parts(rows: Sequence[Series]) -> Sheet | None:
    names = (*PARTS, "information")
    found: list[tuple[Series, list[float], Counter[str]]] = []
    for s in rows:
        known = [beside.diagnosis(cell["path"]) for cell in s.row.done]
        units = [each for record in known if record and (each := words.units(record))]
        if units:
            sums = [[sum(getattr(u, name) for u in each) for name in names] for each in units]
            verdicts = Counter(unit.verdict for each in units for unit in each)
            found.append((s, np.mean(sums, 0).tolist(), verdicts))
    if not found:
        return None
    shown = found[:LISTED]
    informing = [sums[0] + sums[1] for _, sums, _ in found]
    title = "How much of their rates can inform of a sentence"
    if _known(np.array(informing)):
        best = int(np.nanargmax(informing))
        title = f"{found[best][0].name}'s rate informs of a sentence most, by at most "
        title += f"{nats(informing[best])} nats"
    height = 19 * len(shown)
    figure = canvas(height + 92, title)
    panel = axes(figure, 190, 44, 290, height)
    stack(panel, [sums for _, sums, _ in shown])
    for y, (s, _, verdicts) in enumerate(shown):
        look: Look = {"frame": ("axes fraction", "data"), "va": "center", "gid": s.gid}
        many = f"{verdicts['active']}/{sum(verdicts.values())} read"
        say(panel, s.name, (0, y), (-6, 0), ha="right", **look)
        say(panel, many, (1, y), (8, 0), **look)
    legend(figure, [*PARTS.values(), INFORMATION], 4, height + 78, 470, 2)
    told = [
        f"{s.name}: C + H {nats(informs)}, G {nats(sums[2])}, {verdicts['active']} of "
        f"{sum(verdicts.values())} units read"
        for (s, sums, verdicts), informs in zip(found, informing, strict=True)
    ]
    return Sheet(
        figure,
        title,
        "The rate, summed over units, mean over the diagnosed seeds: C and H bound what it can "
        "tell of the sentence, G is paid for an aggregate that is not the prior. The mark: the "
        "units' information, counted twice where two of them tell the same. Right: of the units "
        "of all seeds those that are written and read." + _rest(len(found) - len(shown)),
        f"{title}. {'; '.join(told)}.",
    )


FIGURES: dict[str, Callable[[Sequence[Series]], Sheet | None]] = {
    "rate-distortion": _rate_distortion,
    "z-gain": _z_gain,
    "learning": _learning,
    "units": _kl_by_unit,
    "cost": _cost,
    "price": _price,
    "pairs": _pairs,
    "parts": _parts,
}


# Words -------------------------------------------------------------------------------------------


def _level_of(rows: Sequence[Series]) -> tuple[Series | None, float, str]:
    """The language model, its NLL, and a sentence that tells it."""
    lm = _model(rows)
    level = math.nan if lm is None else lm.mean("nll")
    return lm, level, "" if math.isnan(level) else f" The language model's NLL: {nats(level)}."


def _range(what: str, values: Iterable[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    told = f"{nats(min(known))} to {nats(max(known))} nats" if known else "unknown"
    return f"{what}: {told}."


def _rest(n: int) -> str:
    return f" {n} more rows are not shown." if n else ""


# Drawing -----------------------------------------------------------------------------------------


def _dress(panel: Axes, x: str, y: str, grey: Sequence[Series] = (), log: str = "") -> None:
    dress(panel, x, y, log)
    if more := sum(s.grey for s in grey):
        say(panel, f"grey: {more} more rows", (1, 0), (0, -34), AXES, ha="right", color=FAINT)


def _points(panel: Axes, s: Series, x: Array, y: Array) -> None:
    """Of seeds."""
    look = {"color": s.colour, "markersize": 3.2, "markeredgewidth": 0, "alpha": 0.4}
    panel.plot(x, y, "o", gid=s.gid, label="seeds", zorder=2, **look)


def _mean(panel: Axes, s: Series, x: float, y: float) -> None:
    look = {"color": s.colour, "markersize": 6 if s.grey else 8.5}
    look |= {"markeredgecolor": PAPER, "markeredgewidth": 0.8}
    panel.plot([x], [y], s.marker, gid=s.gid, label="mean", zorder=3, **look)


def _scatter(
    figure: Figure,
    panel: Axes,
    drawn: Sequence[Series],
    x: str,
    y: str,
    taken: Sequence[Array],
    lines: Sequence[Array],
) -> None:
    """Seeds, means, and names beside these where there is room, at the side where there is not.

    taken: boxes where no name may be. lines: points, all in px, that names should not hide.
    """
    dots = [*lines]
    for s in sorted(drawn, key=lambda s: not s.grey):
        points = np.stack([s.seeds(x), s.seeds(y)])
        _points(panel, s, *points[:, np.isfinite(points).all(0)])
        dots.append(panel.transData.transform(points.T))
    marked = [s for s in drawn if math.isfinite(s.mean(x) + s.mean(y))]
    marked.sort(key=lambda s: s.grey)
    for s in reversed(marked):
        _mean(panel, s, s.mean(x), s.mean(y))
    named = [s for s in marked if not s.grey]
    means = np.array([(s.mean(x), s.mean(y)) for s in marked]).reshape(-1, 2)
    marks, invert = panel.transData.transform(means), panel.transData.inverted().transform
    frame = panel.get_window_extent().extents + np.array([0, 0, 6, 0])
    names = [s.name for s in named]
    spots = room(marks, names, frame, taken, np.concatenate([np.empty((0, 2)), *dots]))
    for s, mean, spot in zip(named, means, spots, strict=False):  # without the grey means
        if spot is not None:
            at = invert((spot.x, spot.y))
            if spot.far:
                way = np.stack([mean, at], 1)
                panel.plot(*way, color=FAINT, linewidth=0.6, gid=s.gid, zorder=1.5)
            gid = f"{s.gid}-name"
            say(panel, s.name, at, ha=spot.side, va="center", gid=gid, zorder=4)
    placed = {s.gid for s, spot in zip(named, spots, strict=True) if spot is not None}
    rest = [s for s in drawn if not s.grey and s.gid not in placed]
    if rest:  # a column at the side, for which the figure grows
        left, bottom, width, height = panel.get_position().bounds
        old, high = (float(size) for size in figure.get_size_inches())
        figure.set_size_inches(old + SIDE / 72, high)
        share = old / (old + SIDE / 72)
        panel.set_position((left * share, bottom, width * share, height))
        for text in figure.texts:
            text.set_x(text.get_position()[0] * share)
        _legend(figure, rest, old * 72, high * 72 - TITLE - 40, SIDE, 1)


def _legend(
    figure: Figure, rows: Sequence[Series], left: float, top: float, width: float, columns: int
) -> None:
    entries = [Entry(s.row.name, s.colour, s.marker, s.gid) for s in rows]
    legend(figure, entries, left, top, width, columns)


def _known(values: Array) -> bool:
    return bool(np.isfinite(values).any())


# SVG and PDF -------------------------------------------------------------------------------------


def _write(sheet: Sheet, prefix: str, board: Board) -> tuple[str, dict[str, bytes]]:
    """A sheet for the page, and as files."""
    root = svg(sheet.figure, sheet.summary, prefix, [row.name for row in board.rows])
    for text in sheet.figure.findobj(Text):
        text.set_path_effects([Normal()])  # as outlines: publishers refuse fonts of type 3
    pdf = io.BytesIO()
    nothing = dict.fromkeys(["CreationDate", "Creator", "Producer"])
    sheet.figure.savefig(pdf, format="pdf", metadata=nothing)
    file = ElementTree.tostring(root, encoding="unicode")
    return for_page(sheet.figure, root), {"svg": file.encode(), "pdf": pdf.getvalue()}


def _slug(text: str) -> str:
    """The text as a part of an id, of its own for each text."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return plain if plain == text else f"{plain}-{crc32(text.encode(errors='replace')):08x}"
