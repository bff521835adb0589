"""What the cells say together: a row a variant."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # scipy.stats takes a second to import

from leaderboard.load import DUPLICATE, stale

MEASURES = ("nll", "nll_gap", "kl", "mi", "au", "units", "ppl", "i_read", "z_gain")
VARIANT = ("dataset", "method", "id")


def mean(values: Sequence[float]) -> float:
    """Their mean; NaN if there are none or one of them is: without it the mean would be another
    quantity."""
    return float(np.mean(values)) if len(values) else math.nan


def median(values: Sequence[float]) -> float:
    """Their median, which one run on a machine that stalled does not move; NaN where the mean would
    be."""
    return float(np.median(values)) if len(values) else math.nan


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % t-interval of the mean; NaN for fewer than three values, whose interval
    is too wide to mean anything."""
    n = len(values)
    if n < 3:
        return math.nan
    return float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / n**0.5)


def unfinished(runs: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Which runs, (name, cell) each, are not in the means and why; those that share it together."""
    found: dict[tuple[str, str], list[int]] = {}
    for name, cell in runs:
        if cell["status"] == "done":
            continue
        reason = cell["reason"] if isinstance(cell["reason"], str) else None
        if reason is None and cell["status"] == "stopped":
            at = cell["cost/steps"] if pd.isna(cell["cost/reached"]) else cell["cost/reached"]
            reason = f"evaluated at step {at:.0f}, before its budget's end"
        why = cell["status"] + (f", {reason}" if reason else "")
        seeds = found.setdefault((name, why), [])
        seeds += [] if pd.isna(cell["seed"]) else [int(cell["seed"])]
    return [f"{name}{_seeds(seeds)}: {why}" for (name, why), seeds in found.items()]


def _seeds(seeds: Sequence[int]) -> str:
    listed = ", ".join(map(str, sorted(seeds)))
    return f" seed{'s' * (len(seeds) > 1)} {listed}" if seeds else ""


def summarise(cells: pd.DataFrame) -> pd.DataFrame:
    """One row a variant on a data set, by data set and nll, the unknown last.

    Columns: VARIANT, `variant`, `budget`; `done` of `cells` seeds; of the done ones, `<measure>`
    (the test split's mean) with `<measure>_half` of its interval, the median `seconds` of training,
    `verdict`, and whether one is `stale`, of another result version than this code's.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in cells.to_dict("records"):
        if cell["status"] != DUPLICATE:
            groups.setdefault(tuple(cell[name] for name in VARIANT), []).append(cell)
    rows = []
    for key, group in groups.items():
        done = [cell for cell in group if cell["status"] == "done"]
        row: dict[str, Any] = dict(zip(VARIANT, key, strict=True))
        # the shortest: an override that repeats a default leaves the identity as it was
        labels = [cell["variant"] for cell in group if cell["variant"] is not None]
        row["variant"] = min(labels, key=lambda label: (len(label), label), default=row["method"])
        row["budget"] = next((cell["budget"] for cell in group if cell["budget"]), None)
        row |= {"done": len(done), "cells": len(group)}
        row["stale"] = stale(done)
        for name in MEASURES:
            values = [cell[f"test/{name}"] for cell in done]
            row |= {name: mean(values), f"{name}_half": half_width(values)}
        row["seconds"] = median([cell["cost/train_seconds"] for cell in done])
        row["verdict"] = _verdict([cell["test/verdict"] for cell in done])
        rows.append(row)
    halves = [f"{name}_half" for name in MEASURES]
    columns = [
        *VARIANT,
        "variant",
        "budget",
        "done",
        "cells",
        "stale",
        *MEASURES,
        *halves,
        "seconds",
        "verdict",
    ]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(["dataset", "nll", "variant", "id"], ignore_index=True)


def _verdict(verdicts: list[str | None]) -> str:
    """The seeds' one verdict, or how many have which; empty where no seed has finished."""
    counts = Counter(verdict or "none known" for verdict in verdicts)
    if len(counts) > 1:
        return ", ".join(f"{counts[verdict]} {verdict}" for verdict in sorted(counts))
    return next(iter(counts), "")
