"""What papers printed, as a table, and whether a figure of ours may stand beside it.

published.csv keeps every figure as printed, misprints too; a row says how it was come by, and why
it is not to be compared where it is not. Imports no torch.
"""

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

SOURCE = Path(__file__).with_name("published.csv")

KEY = ("paper", "table", "dataset", "model", "metric")
COLUMNS = (
    *("paper", "table", "dataset", "model", "method", "metric", "value", "bound", "estimator"),
    *("unit", "status", "comparable", "why_not", "sizes", "data", "hash"),
)
MAY_BE_EMPTY = {"method", "bound", "why_not", "sizes", "hash"}

OURS = {("mi", "mixture batch 32"): "mi_batch32", ("neg_elbo", "exact"): "nll"}
"""By what a paper calls it and its estimator."""
VERIFIED, FROM_MEMORY = "verified", "from memory"
"""Read in the paper or in another that quotes it; or not read again since."""

COSTS = ("nats/sentence", "nats/image")
UNITS = {
    **dict.fromkeys(("nll", "neg_elbo", "rec", "kl", "mi"), COSTS),
    "au": ("units",),
    "ppl": ("per word", "per subword"),
    "train_hours": ("hours",),
}
"""The metrics, by our names, and the units each may have."""

WORDS = {
    "metric": tuple(UNITS),
    "bound": ("", "upper"),
    "status": (VERIFIED, FROM_MEMORY),
    "comparable": ("yes", "no"),
}
SIZES = ("embedding", "hidden", "latent")

DRAWN_FROM = {"yelp_full": "yelp"}
"""Data sets of ours beside which another's published figures are shown: the papers drew from the
same reviews. Whether it is the same draw is for the hash to say."""


def load(path: str | Path = SOURCE) -> pd.DataFrame:
    """One row a figure: COLUMNS, `value` a float, `comparable` a bool, the rest words.

    Raises ValueError with the line of the first row that cannot be right.
    """
    rows: list[dict[str, Any]] = []
    seen: dict[tuple[str, ...], int] = {}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = tuple(next(reader, ()))
        if header != COLUMNS:
            raise ValueError(f"{path}, line 1: the columns are {','.join(COLUMNS)}")
        for cells in reader:
            line = reader.line_num
            try:
                row = _row(cells)
                key = tuple(row[name] for name in KEY)
                if seen.setdefault(key, line) != line:
                    raise ValueError(f"line {seen[key]} has {' / '.join(key)} already")
            except ValueError as error:
                raise ValueError(f"{path}, line {line}: {error}") from None
            rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"value": float, "comparable": bool})


def beside(dataset: str, method: str, published: pd.DataFrame | None = None) -> pd.DataFrame:
    """The published rows of one of our methods on one of our data sets, comparable or not.

    A method is that of one remedy: what a paper stacked (`aggressive+anneal`) is no method's row.
    """
    table = load() if published is None else published
    named = (table["dataset"] == DRAWN_FROM.get(dataset, dataset)) & (table["method"] == method)
    return table.loc[named & (method != "")]


def ours(row: Mapping[str, Any]) -> str:
    """The measure of ours that is what a row printed: by its estimator it may have another name."""
    metric = str(row["metric"])
    return OURS.get((metric, str(row.get("estimator"))), metric)


def comparable(
    row: Mapping[str, Any],
    *,
    data_hash: str | None,
    sizes: Mapping[str, Any],
    estimator: str | None,
) -> tuple[bool, str]:
    """Whether a figure of a run of ours measures what a published row does; if not, why not.

    Args:
        row: one of `load`'s, as a record.
        data_hash: of the run's prepared data, which covers vocabulary, splits and order.
        sizes: the run's `embedding`, `hidden` and `latent`.
        estimator: as the run's trail has it for the figure; None where the metric's name says it.

    Training is not looked at: a row that is comparable may still come of another budget.
    """
    paper = row["paper"]
    if row["status"] != VERIFIED:
        return False, f"the figure is {row['status']}"
    if not row["comparable"]:
        return False, row["why_not"]
    if not row["hash"]:
        return False, f"the files behind {paper} are not at hand ({row['data']}): no hash is known"
    if row["hash"] != data_hash:
        return False, f"other data than {paper}'s ({row['data']}): the hashes differ"
    theirs = row["sizes"].split("/") if row["sizes"] else []
    if not theirs:
        return False, f"the sizes of {paper}'s model are not known"
    for name, size in zip(SIZES, theirs, strict=True):
        if size != "-" and str(sizes.get(name)) != size:
            return False, f"{name} size {sizes.get(name)}, where {paper} has {size}"
    if not _same_estimator(row["estimator"], estimator):
        how = estimator or "by the metric's definition"
        return False, f"estimated {how}, in {paper} by {row['estimator']}"
    return True, ""


def _row(cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(COLUMNS):
        raise ValueError(f"{len(cells)} cells, not {len(COLUMNS)}")
    row: dict[str, Any] = dict(zip(COLUMNS, cells, strict=True))
    for name, cell in row.items():
        if not cell and name not in MAY_BE_EMPTY:
            raise ValueError(f"{name} is empty")
    for name, words in WORDS.items():
        if row[name] not in words:
            raise ValueError(f"{name} is one of {', '.join(map(repr, words))}, not {row[name]!r}")
    if row["unit"] not in UNITS[row["metric"]]:
        expected = " or ".join(UNITS[row["metric"]])
        raise ValueError(f"the unit of {row['metric']} is {expected}, not {row['unit']!r}")
    if not re.fullmatch(r"(\d+/\d+/(\d+|-))?", row["sizes"]):
        raise ValueError(f"sizes are embedding/hidden/latent, not {row['sizes']!r}")
    if not re.fullmatch(r"([0-9a-f]{64})?", row["hash"]):
        raise ValueError(f"a hash is 64 hexadecimal digits, not {row['hash']!r}")
    row["comparable"] = row["comparable"] == "yes"
    if row["comparable"] == bool(row["why_not"]):
        raise ValueError("why_not says why a row is not comparable, and nothing else")
    if row["comparable"] and row["status"] != VERIFIED:
        raise ValueError(f"a figure {row['status']} is never comparable")
    row["value"] = _number(row["value"])
    return row


def _number(text: str) -> float:
    value = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else math.nan
    if not math.isfinite(value):
        raise ValueError(f"value is a number as printed, not {text!r}")
    return value


def _same_estimator(theirs: str, ours: str | None) -> bool:
    """Whether both estimate one quantity. The number of sentences an importance-weighted bound is
    taken on, and that of samples behind an ELBO, change its noise and not what it estimates."""
    if theirs == "1 sample ELBO":
        return not ours
    if theirs.startswith("iwae K="):
        return bool(re.fullmatch(rf"{theirs}( n=\d+)?", ours or ""))
    if theirs == "mixture whole split":  # ours over batches has the papers' sizes of a batch
        found = re.fullmatch(r"mixture n=(\d+)", ours or "")
        return bool(found) and int(found[1]) > 50
    if batch := re.fullmatch(r"mixture batch (\d+)", theirs):
        return ours == f"mixture n={batch[1]}"
    return theirs == "exact" == ours
