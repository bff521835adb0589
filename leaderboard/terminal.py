"""The leaderboard on a terminal: a table a data set, and below it what has not finished."""

import math
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from leaderboard.statistics import summarise, unfinished

UNKNOWN = "-"
MEANS = {"nll": "nll", "gap": "nll_gap", "kl": "kl", "mi": "mi", "z-gain": "z_gain"} | {
    "i_read": "i_read",
    "ppl": "ppl",
}
SPARE = ("ppl", "seconds", "i_read", "au", "mi", "gap", "z-gain")
"""Columns that a narrow terminal can do without, the first to go first."""

LEGEND = (
    "Test split, means over seeds, ordered by nll. In nats a sentence: nll, kl, mi; z-gain, what "
    "a sentence's own code gains over another's; i_read, what of a sentence the decoder provably "
    "reads from its code"
)
Row = dict[str, Any]
Columns = dict[str, list[str]]  # head -> what stands below it


def show(cells: pd.DataFrame, console: Console) -> None:
    """Print a table a data set."""
    runs, variants = cells.to_dict("records"), summarise(cells).to_dict("records")
    for dataset in sorted({run["dataset"] for run in runs}):
        here = [[row for row in rows if row["dataset"] == dataset] for rows in (variants, runs)]
        _show_dataset(dataset, here[0], here[1], console)
    known = any(not math.isnan(row["nll_gap"]) for row in variants)
    legend = LEGEND + ("; gap, nll less the exact one. " if known else ". ")
    legend += "au: active of all latent units; seconds: of training, the median."
    if any(row["done"] >= 3 for row in variants):
        legend += " ±: half of the 95 % t-interval over seeds, from three on."
    console.print(Text(legend, style="dim"))


def plain(text: str) -> str:
    """A record's text without what would steer the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _show_dataset(dataset: str, variants: list[Row], runs: list[Row], console: Console) -> None:
    columns, hidden = _columns(variants, " ± "), []
    if _width(columns, console) > console.width:
        columns = _columns(variants, "\n± ")
    while _width(columns, console) > console.width and any(head in columns for head in SPARE):
        hidden.append(next(head for head in SPARE if head in columns))
        del columns[hidden[-1]]
    console.print(Text(plain(dataset), style="bold"))
    console.print(_table(columns))
    if hidden:
        console.print(Text(f"Too narrow to show {', '.join(hidden)}.", style="dim"))
    if len({run["provenance/data_hash"] for run in runs if run["status"] == "done"}) > 1:
        text = "Do not compare these rows: the data set's content was not the same for all."
        console.print(Text(text, style="bold"))
    keys = [(row["method"], row["id"]) for row in variants]
    names = dict(zip(keys, _names(variants), strict=True))
    ordered = sorted(runs, key=lambda run: (run["method"], run["path"]))
    pending = unfinished((names[run["method"], run["id"]], run) for run in ordered)
    for line in ["Not in the means:", *(f"  {plain(line)}" for line in pending)] if pending else []:
        console.print(Text(line))
    console.print()


def _columns(variants: list[Row], plus_minus: str) -> Columns:
    complete = all(row["done"] == row["cells"] for row in variants)
    columns = {
        "variant": [
            name + " (stale)" * row["stale"]
            for name, row in zip(_names(variants), variants, strict=True)
        ],
        "seeds": [f"{row['done']}" + ("" if complete else f"/{row['cells']}") for row in variants],
    }
    for head, name in MEANS.items():
        columns[head] = [_measured(row, name, plus_minus) for row in variants]
    columns["au"] = [_units(row) for row in variants]
    columns["verdict"] = [row["verdict"] or UNKNOWN for row in variants]
    columns["seconds"] = [_number(row["seconds"], 0) for row in variants]
    if all(math.isnan(row["nll_gap"]) for row in variants):
        del columns["gap"]
    return columns


def _names(variants: list[Row]) -> list[str]:
    """What to call each variant; those that differ elsewhere than in the method's own fields have
    one label, and get their budget to it, or else their identity."""
    labels = [row["variant"] for row in variants]
    budgets = [f"{row['variant']} ({row['budget']})" for row in variants]
    identities = [f"{row['variant']} ({row['id'][:6]})" for row in variants]
    choices = zip(labels, budgets, identities, strict=True)
    return [
        plain(
            label
            if labels.count(label) == 1
            else (budget if budgets.count(budget) == 1 else identity)
        )
        for label, budget, identity in choices
    ]


def _table(columns: Columns) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for head in columns:
        if head == "variant":
            table.add_column(Text(head), overflow="fold", min_width=8)
        else:
            justify = "left" if head == "verdict" else "right"
            table.add_column(Text(head), justify=justify, no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, row))
    return table


def _width(columns: Columns, console: Console) -> int:
    unbounded = console.options.update(max_width=10_000)
    return Measurement.get(console, unbounded, _table(columns)).maximum


def _measured(row: Row, name: str, plus_minus: str) -> str:
    half = row[f"{name}_half"]
    return _number(row[name]) + ("" if math.isnan(half) else plus_minus + _number(half))


def _units(row: Row) -> str:
    if math.isnan(row["au"]):
        return UNKNOWN
    return f"{row['au']:.3g}/{_number(row['units'], 0)}"


def _number(value: float, digits: int = 2) -> str:
    if math.isnan(value):
        return UNKNOWN
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no -0.00
