"""A comparison as it stands in a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from benchmark.comparison.differences import brief, differ

STEPS = 6  # of a curve: no more fit into 80 columns
DIM = "dim"


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print it."""
    letters = [run["letter"] for run in found["runs"]]
    for run in found["runs"]:
        console.print(_text(f"{run['letter']}  {run['name']}: {run['path']}"))
    for text in found["warnings"]:
        console.print(_text(f"Beware: {text}", "bold"))
    for part in (
        _fields(found, letters),
        _measured("test", found["summary"]["test"], letters),
        _by_sentence(found["sentences"]),
        _measured("valid", found["summary"]["valid"], letters),
        _cost(found["cost"], letters),
        _over_training(found["curves"], letters),
    ):
        console.print()
        for block in part:
            console.print(block)


def _fields(found: Mapping[str, Any], letters: Sequence[str]) -> Iterator[RenderableType]:
    differing = found["config"] | found["provenance"]
    rows = [[name, *map(brief, values)] for name, values in differing.items()]
    yield _table(["differs", *letters], rows)
    if "fingerprint" in found["provenance"]:
        yield _text("A fingerprint is of the harness and of the method's own file.", DIM)
    if found["aside"]:
        said = [f"{name} ({', '.join(map(brief, v))})" for name, v in found["aside"].items()]
        yield _text(f"No part of what a cell is: {', '.join(said)}.", DIM)


def _measured(
    split: str, summary: Mapping[str, Any], letters: Sequence[str]
) -> Iterator[RenderableType]:
    rows, same = [], []
    nulls: dict[tuple[str, str], list[str]] = {}
    for name, row in summary.items():
        values = row["values"]
        if differ(values):
            differences = [_value(difference, "+") for difference in row["differences"]]
            rows.append([name, *map(_value, values), *differences])
        elif values[0] is not None:
            same.append(f"{name} {_value(values[0])}")
        for reason in dict.fromkeys(filter(None, row["notes"])):
            noted = zip(letters, row["notes"], strict=True)
            which = ", ".join(letter for letter, note in noted if note == reason)
            nulls.setdefault((reason, which), []).append(name)
    yield _table([split, *letters, *(f"{letter} - {letters[0]}" for letter in letters[1:])], rows)
    if same:
        yield _text(f"The same in all: {', '.join(same)}.", DIM)
    for (reason, which), names in nulls.items():
        yield _text(f"Null in {which} ({reason}): {', '.join(names)}.", DIM)


def _by_sentence(pairs: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    rows = []
    for pair in pairs:
        for name, found in pair["measures"].items():
            low, high = _value(found["low"], "+"), _value(found["high"], "+")
            zero = {True: "outside", False: "inside", None: "-"}[found["apart"]]
            numbers = [_value(found["mean"], "+"), _value(found["se"]), f"{low} to {high}", zero]
            rows.append([f"{name}, {' - '.join(pair['runs'])}", *numbers, _value(found["n"])])
    if rows:
        yield _table(["test, paired", "mean", "s.e.", "95 %", "zero", "sentences"], rows)
        yield _text(
            "Uncertain here is the choice of sentences alone: whether other seeds' runs differ "
            "likewise, only their runs can tell.",
            DIM,
        )
    for pair in pairs:
        if pair["why"]:
            yield _text(
                f"{' and '.join(pair['runs'])} are not paired by sentence, as {pair['why']}."
            )


def _cost(cost: Mapping[str, Any], letters: Sequence[str]) -> Iterator[RenderableType]:
    rows = []
    for name, (first, *others) in cost.items():
        times = [f"{v / first:.2f}" if first and v is not None else "-" for v in others]
        rows.append([name, *map(_value, (first, *others)), *times])
    yield _table(["cost", *letters, *(f"{letter} / {letters[0]}" for letter in letters[1:])], rows)


def _over_training(curves: Mapping[str, Any], letters: Sequence[str]) -> Iterator[RenderableType]:
    steps = curves["steps"]
    if not steps:
        yield _text("No curves: there is no step at which all runs were validated.")
        return
    shown = np.unique(np.linspace(0, len(steps) - 1, STEPS).round().astype(int))
    rows = [
        [f"{name} {letter}", *(_value(values[i]) for i in shown)]
        for name, by_run in curves["metrics"].items()
        for letter, values in zip(letters, by_run, strict=True)
    ]
    yield _table(["valid at step", *(_value(steps[i]) for i in shown)], rows)
    if len(shown) < len(steps):
        yield _text(f"{len(shown)} of the {len(steps)} steps that all have; --json has all.", DIM)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    if not rows:
        return _text(f"{heads[0]}: nothing")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def _text(words: str, style: str = "") -> Text:
    """A record's words without what would steer the terminal."""
    return Text("".join(letter if letter.isprintable() else " " for letter in words), style)


def _value(value: Any, sign: str = "") -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:{sign},.0f}"
    return f"{value:{sign}.3f}" if abs(value) >= 0.001 else f"{value:{sign}.1e}"
