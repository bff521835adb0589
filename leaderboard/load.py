"""Run directories as tables: one row a cell, one row a measurement; imports no torch.

Nothing is dropped: what cannot be read, or must not be counted, is a row with the reason.
"""

import contextlib
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from benchmark.grid import SILENT
from benchmark.record import (
    RESULT_VERSION,
    SPLITS,
    SUMMARY,
    WORDS,
    RunDirectory,
    read_metrics,
    validate,
)

log = logging.getLogger(__name__)

YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

DAMAGED, DUPLICATE = "damaged", "duplicate"
"""Two statuses beside the record's own: a directory that cannot be trusted, and another copy of
a cell that is counted already."""

Lines = dict[str, Any]
"""A metrics.jsonl by columns: LINE_WORDS as lists, LINE_NUMBERS as arrays."""

KEY = ("dataset", "method", "id", "seed")
COST = (
    *("train_seconds", "lost_seconds", "tokens_per_second", "steps", "reached"),
    *("batches", "backwards", "peak_memory_mb"),
)
PROVENANCE = (
    *("commit", "dirty", "fingerprint", "earlier_fingerprints"),
    *("result_version", "data_hash"),
)
COLUMNS = (
    *(*KEY, "variant", "status", "reason", "selected_step", "budget", "setting", "path"),
    *(f"{split}/{name}" for split in SPLITS for name in SUMMARY),
    *(f"cost/{name}" for name in COST),
    *(f"provenance/{name}" for name in PROVENANCE),
)
LINE_WORDS, LINE_NUMBERS = (
    ("split", "metric", "estimator"),
    ("step", "value", "seconds", "batches", "backwards"),
)


def find_runs(results: str | Path) -> list[Path]:
    """The run directories of a results folder, with a record or without, in order."""
    return sorted(path for path in Path(results).glob("*/*/*/s*") if _is_run(path))


def load_cells(folders: Iterable[str | Path]) -> pd.DataFrame:
    """One row a run directory of any of the results folders: COLUMNS, and `test/nll@name` and the
    like where a model has them. A number that is not there is NaN, a word None."""
    found = {path.resolve(): path for folder in folders for path in find_runs(folder)}
    rows = [_row(path) for path in found.values()]
    _mark_duplicates(rows)
    columns: dict[str, pd.Series] = {}
    for name in dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)]):
        values = [row.get(name) for row in rows]
        columns[name] = (
            pd.Series([_number(value) for value in values], dtype=float)
            if _is_number(name)
            else pd.Series(values, dtype="Int64" if name == "seed" else object)
        )
    return pd.DataFrame(columns)


def check(cells: pd.DataFrame) -> list[str]:
    """Every run that is not done and to be trusted, with the reason, in words."""
    found = []
    for cell in cells.to_dict("records"):
        version = cell["provenance/result_version"]
        if cell["status"] == "done" and version != RESULT_VERSION:
            why = f"stale: of result version {_number(version):g}, this code's is {RESULT_VERSION}"
        elif cell["status"] != "done":
            reason = cell["reason"]
            why = f"{cell['status']}{f': {reason}' if isinstance(reason, str) else ''}"
        else:
            continue
        found.append(f"{cell['path']}: {why}")
    return found


def load_curves(cells: pd.DataFrame) -> pd.DataFrame:
    """Every line of the cells' metrics.jsonl, KEY in front; a file that cannot be read is logged
    and gives none."""
    found: list[Lines] = []
    places: list[int] = []  # of their cells
    for place, path in enumerate(cells["path"]):
        try:
            found.append(_lines(Path(path) / "metrics.jsonl"))
            places.append(place)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            log.warning("no curves: %s", error)
    repeated = np.repeat(places, [len(lines["step"]) for lines in found]).astype(int)
    columns: dict[str, Any] = {}
    for name in KEY:
        kind = "Int64" if name == "seed" else "str"
        columns[name] = cells[name].astype(kind).array.take(repeated)
    for name in LINE_WORDS:
        words = chain.from_iterable(lines[name] for lines in found)
        columns[name] = pd.array(list(words), dtype="str")
    for name in LINE_NUMBERS:
        columns[name] = np.concatenate([np.zeros(0), *(lines[name] for lines in found)])
    return pd.DataFrame(columns)


def stale(runs: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a version of the code made one of these whose results are not those of now."""
    return any(run["provenance/result_version"] != RESULT_VERSION for run in runs)


def _is_run(path: Path) -> bool:
    named = re.fullmatch(r"s\d+", path.name) and re.fullmatch(r"[0-9a-f]{12}", path.parent.name)
    return path.is_dir() and (bool(named) or (path / "run.json").exists())


def _row(path: Path) -> dict[str, Any]:
    """A run directory's row. What its place says stands where the record cannot be read."""
    dataset, method, identity, seed = path.absolute().parts[-4:]
    row: dict[str, Any] = {"dataset": dataset, "method": method, "id": identity, "path": str(path)}
    row |= {"seed": int(seed[1:]) if re.fullmatch(r"s\d+", seed) else None}
    row["budget"], row["setting"] = _setting(path / "config.yaml")
    try:
        problems, record = validate(path, _lines), RunDirectory(path).read()
    except (OSError, ValueError) as error:
        problems, record = [str(error)], None
    if record is not None:
        summary, cost = record["summary"], record["cost"]
        row |= {name: record[name] for name in ("status", "reason", "selected_step")}
        row |= {f"{split}/{name}": x for split in summary for name, x in summary[split].items()}
        row |= {f"cost/{name}": cost.get(name) for name in COST}
        row |= {f"provenance/{name}": record["provenance"].get(name) for name in PROVENANCE}
        row["reason"] = _word(row["reason"])
        if not problems:
            row["variant"] = _word(record["cell"]["variant"])
    if problems:
        row |= {"status": DAMAGED, "reason": "; ".join(problems)}
    return row


def _setting(path: Path) -> tuple[str | None, str | None]:
    """By a run's config.yaml the name and size of its budget, and what of its model, training and
    measurement is no method's and changes a result, option -> value as JSON; None where it does not
    say. What ends by a rule of its own has no size."""
    try:
        blocks = _BLOCKS.findall(path.read_text(encoding="utf-8"))
        known = yaml.load("".join(blocks), YAML)
    except (OSError, ValueError, yaml.YAMLError):
        return None, None
    budget = known.get("budget") if isinstance(known, dict) else None
    if not isinstance(budget, dict):
        return None, None
    steps, epochs = budget.get("steps"), budget.get("epochs")
    size = None
    if budget.get("name") == RECIPES:
        known["budget"] = {option: budget[option] for option in _SHARED if option in budget}
    elif isinstance(steps, int) and steps:
        size = f"{steps:,}{SIZES[0]}"
    elif isinstance(epochs, int | float) and not budget.get("halving"):
        size = f"{epochs:g}{SIZES[1]}"
    name = ", ".join(str(part) for part in (budget.get("name"), size) if part) or None
    told = {option: value for option, value in _leaves(known).items() if option not in SILENT}
    return name, json.dumps(told, sort_keys=True, default=str)


SIZES = (" steps", " epochs")
"""By which the name of a budget ends that has a size."""
RECIPES = "paper"
"""The budget whose optimiser, batches and the like are each method's own."""
_SHARED = ("name", "epochs", "steps", "evaluation")
_BLOCKS = re.compile(r"^(?:budget|model|batching|precision):(?:.*\n(?: .*\n)*)", re.M)


def _leaves(node: Any, place: str = "") -> dict[str, Any]:
    """option -> value."""
    if not isinstance(node, dict):
        return {place: node}
    parts = (_leaves(inner, f"{place}.{name}".lstrip(".")) for name, inner in node.items())
    return {option: value for part in parts for option, value in part.items()}


def _lines(path: Path) -> Lines:
    """Every whole line of a metrics.jsonl. Raises ValueError for a damaged one."""
    stat = path.stat()
    return _read_lines(path, stat.st_mtime_ns, stat.st_size)


@cache  # most files are asked for twice: whether they can be trusted, and what they hold
def _read_lines(path: Path, changed: int, size: int) -> Lines:
    lines, names = _parse(path), (*LINE_WORDS, *LINE_NUMBERS)
    try:
        values = [*zip(*map(itemgetter(*names), lines), strict=True)]
    except KeyError:  # what is not there is None
        values = [*zip(*([line.get(name) for name in names] for line in lines), strict=True)]
    columns = dict(zip(names, values or [()] * len(names), strict=True))
    found: Lines = {name: _words(columns[name]) for name in LINE_WORDS}
    return found | {name: _numbers(columns[name]) for name in LINE_NUMBERS}


def _parse(path: Path) -> list[dict[str, Any]]:
    """`read_metrics`, three times as fast: all lines as one array of JSON."""
    whole = path.read_bytes().rpartition(b"\n")[0]
    try:
        # NaN and the infinities are refused: none of them is an int
        lines = json.loads(b"[%b]" % whole.replace(b"\n", b","), parse_constant=int)
    except (ValueError, RecursionError):
        return read_metrics(path)  # which says what is wrong, and where
    one_each = len(lines) == whole.count(b"\n") + bool(whole) and {*map(type, lines)} <= {dict}
    return lines if one_each else read_metrics(path)


def _mark_duplicates(rows: list[dict[str, Any]]) -> None:
    """Let one copy of a cell count, a finished one if there is one: a seed is no sample twice."""
    counted: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["status"] != "done"):
        if row["status"] == DAMAGED:
            continue
        first = counted.setdefault(tuple(row[name] for name in KEY), row)
        if first is not row:
            reason = f"this cell is counted from {first['path']}"
            row |= {"status": DUPLICATE, "reason": reason}


def _is_number(name: str) -> bool:
    place, _, measure = name.partition("/")
    words = place in SPLITS and measure.partition("@")[0] in WORDS
    return name == "selected_step" or (place in ("cost", *SPLITS) and not words)


def _words(values: Sequence[Any]) -> list[str | None]:
    if not {*map(type, values)} <= {str, type(None)}:
        return [_word(value) for value in values]
    known = {value: _word(value) for value in {*values}}
    return [*map(known.get, values)]  # one object a word, however often it is there


def _numbers(values: Sequence[Any]) -> NDArray[np.float64]:
    if {*map(type, values)} <= {int, float, type(None)}:
        with contextlib.suppress(OverflowError):
            return np.array(values, dtype=float)  # None is NaN
    return np.array([_number(value) for value in values], dtype=float)


def _number(value: Any) -> float:
    try:
        return float(value) if type(value) in (int, float) else math.nan
    except OverflowError:  # JSON knows no largest integer
        return math.nan


def _word(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else repr(value)
    return text.encode(errors="replace").decode()  # half a character can be written nowhere
