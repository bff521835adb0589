"""Figures from recorded runs: `python -m leaderboard.figures results docs`.

The same runs give the same bytes: no date, no random ids, text as outlines of matplotlib's font.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from benchmark.diagnosis.drawing import BASE, FAINT, PAPER, RULE
from leaderboard.load import load_cells, load_curves

SIZE = (9.375, 3.75)  # inches: 900 x 360 px on a screen
COLOURS = ("#c44e00", "#0a6fb0")  # apart under every common colour blindness
STYLE: dict[Any, Any] = BASE | {
    "svg.hashsalt": "leaderboard",
    "svg.fonttype": "path",
    "font.size": 9,
}
ASIDE = {"bottom": 1, "center": 0, "top": -1}  # points, of a label from its line's end
PANELS = {
    "kl": (
        "The code: how much it can tell",
        "rate: KL of the posterior from the prior, nats a sentence",
    ),
    "z_gain": (
        "The decoder: what a wrong code costs it",
        "z-gain: log p(x | own z) less log p(x | another's z), nats",
    ),
}


class Unfit(ValueError):
    """The runs are not those that a figure needs; the message says what to do."""


def collapse(
    cells: pd.DataFrame,
    dataset: str,
    methods: Sequence[str],
    labels: Sequence[str] | None = None,
    mark: tuple[float, str] | None = None,
) -> Figure:
    """Rate and z-gain over training of two methods' finished cells: a thin line a seed, a thick
    one their mean. Raises Unfit.

    mark: a step, and what happens there.
    """
    labels = labels or methods
    done = pd.DataFrame(cells[(cells["status"] == "done") & (cells["dataset"] == dataset)])
    for method in methods:
        variants = len(set(done.loc[done["method"] == method, "id"]))
        if variants != 1:
            raise Unfit(
                f"One finished variant of {method} on {dataset} is needed, {variants} found: run "
                f"`python -m benchmark.run method={method} dataset={dataset}`, or name a folder "
                "of results where it is alone."
            )
    done = pd.DataFrame(done[done["method"].isin(list(methods))])
    curves = load_curves(done)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, facecolor=PAPER)
        figure.subplots_adjust(left=0.035, right=0.87, top=0.735, bottom=0.135, wspace=0.48)
        figure.text(0.012, 0.925, _headline(done, methods, labels), size=12.5, weight="bold")
        panels = dict(zip(PANELS, figure.subplots(1, 2), strict=True))
        for metric, panel in panels.items():
            lines = [_seeds(curves, method, metric) for method in methods]
            _draw(panel, lines, labels)
            _dress(panel, *PANELS[metric])
            if mark is not None:
                _mark(panel, *mark)
        _truth(panels["kl"], done)
        seeds = len(set(done["seed"]))
        who = f"{seeds} seeds and their mean" if seeds > 1 else "one seed"
        figure.text(0.988, 0.048, f"{who}, validation split", size=8.5, color=FAINT, ha="right")
    return figure


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write stem.svg and stem.png, alike for like figures."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_suffix(".svg"), stem.with_suffix(".png")]
    with mpl.rc_context(STYLE):
        figure.savefig(paths[0], metadata={"Date": None, "Creator": None})
        figure.savefig(paths[1], dpi=192, metadata={"Software": None})  # sharp on dense screens
    return paths


def _headline(done: pd.DataFrame, methods: Sequence[str], labels: Sequence[str]) -> str:
    """What every seed's verdict says, or no more than what is drawn."""
    verdicts = [set(done.loc[done["method"] == method, "test/verdict"]) for method in methods]
    if verdicts == [{"collapsed"}, {"read"}]:
        return f"Same model, same data: {labels[0]} loses its code, {labels[1]} keeps it"
    return f"Same model, same data: {labels[0]} and {labels[1]}"


def _seeds(curves: pd.DataFrame, method: str, metric: str) -> pd.DataFrame:
    """Validation's values [steps, seeds], at the steps that all seeds have."""
    chosen = curves[
        (curves["method"] == method) & (curves["metric"] == metric) & (curves["split"] == "valid")
    ]
    line = chosen.pivot_table(index="step", columns="seed", values="value").dropna()
    if line.empty:
        raise Unfit(f"The runs of {method} recorded no {metric} at a step that all of them share.")
    return line


def _draw(panel: Axes, lines: Sequence[pd.DataFrame], labels: Sequence[str]) -> None:
    means = [line.mean(axis=1) for line in lines]
    for line, mean, colour in zip(lines, means, COLOURS, strict=True):
        if len(line.columns) > 1:
            panel.plot(line.index, line.to_numpy(), color=colour, linewidth=0.7, alpha=0.45)
        panel.plot(mean.index, mean, color=colour, linewidth=2.0, solid_capstyle="round")
        panel.plot(mean.index[-1:], mean[-1:], "o", color=colour, markersize=4.5, clip_on=False)
    ends = [(mean.index[-1], mean.iloc[-1]) for mean in means]
    (_, first), (_, second) = ends
    bottom, top = panel.get_ylim()
    aligned = ["center", "center"]
    if abs(first - second) < 0.15 * (top - bottom):  # a label's height: they would overlap
        aligned = ["bottom", "top"] if first >= second else ["top", "bottom"]
    for end, label, colour, side in zip(ends, labels, COLOURS, aligned, strict=True):
        panel.annotate(
            f"{label}\n{round(end[1], 1) + 0.0:.1f} nats",  # + 0.0: no -0.0
            end,
            **{"xytext": (8, ASIDE[side]), "textcoords": "offset points", "va": side},
            **{"color": colour, "weight": "bold", "annotation_clip": False},
        )


def _dress(panel: Axes, title: str, subtitle: str) -> None:
    panel.set_facecolor(PAPER)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.grid(axis="y", color=RULE, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(length=0)
    panel.margins(x=0.0, y=0.06)
    panel.set_xlim(left=0)
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    panel.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    panel.set_xlabel("training steps", loc="left")
    panel.text(0, 1.145, title, transform=panel.transAxes, size=10.5, weight="bold")
    panel.text(0, 1.055, subtitle, transform=panel.transAxes, size=8.5, color=FAINT)


def _mark(panel: Axes, step: float, text: str) -> None:
    panel.axvline(step, color=FAINT, linewidth=0.8, dashes=(2, 2))
    panel.annotate(
        text,
        (step, 1),
        xycoords=("data", "axes fraction"),
        **{"xytext": (4, -2), "textcoords": "offset points", "va": "top"},
        **{"color": FAINT, "size": 8.5},
    )


def _truth(panel: Axes, done: pd.DataFrame) -> None:
    """I(x; z) under the generator, where there is one."""
    known = set(done["test/truth_mi"])
    truth = known.pop()
    if known or math.isnan(truth):
        return
    panel.axhline(truth, color=FAINT, linewidth=0.8, dashes=(2, 2), zorder=1)
    panel.annotate(
        f"the data hold {truth:.2f}",
        (0, truth),
        **{"xytext": (3, -5), "textcoords": "offset points", "va": "top"},
        **{"color": FAINT, "size": 8.5, "bbox": {"color": PAPER, "pad": 0.5}},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m leaderboard.figures",
        description="Draw OUT/collapse.svg and .png: rate and z-gain over the training of two "
        "methods, from their finished runs.",
    )
    parser.add_argument("results", help="folder that benchmark.run wrote to")
    parser.add_argument("out", help="folder to write to")
    parser.add_argument("--dataset", default="synthetic", help="default: %(default)s")
    parser.add_argument(
        "--methods",
        nargs=2,
        default=["vae", "kl_annealing"],
        metavar=("COLLAPSED", "OTHER"),
        help="names of two method configs (default: vae kl_annealing)",
    )
    parser.add_argument(
        "--labels", nargs=2, metavar="LABEL", help="what to call them (default: their names)"
    )
    parser.add_argument(
        "--mark", nargs=2, metavar=("STEP", "TEXT"), help="a step to mark, and what happens there"
    )
    options = parser.parse_args(arguments)
    try:
        mark = options.mark and (float(options.mark[0]), options.mark[1])
    except ValueError:
        parser.error(f"--mark takes a number of steps and a text, not {options.mark[0]!r}")
    cells = load_cells([options.results])
    try:
        figure = collapse(cells, options.dataset, options.methods, options.labels, mark)
    except Unfit as error:
        print(error, file=sys.stderr)
        return 1
    for path in save(figure, Path(options.out) / "collapse"):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
