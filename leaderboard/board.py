"""The board: for each data set a row a variant, with what may be said of it and what may not.

A row is compared with the plain VAE by seed, with the language model by sentence, with its placebo
by seed, and with every other row for ties. Rows are of one data set only if its content was the
same; a difference is told only where the estimates carry it (`inference.may_win`).
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from leaderboard.inference import (
    Array,
    Comparison,
    holm,
    interval,
    may_win,
    paired,
    paired_by_sentence,
    pays,
    share,
    tie_groups,
    winner,
)
from leaderboard.load import DUPLICATE
from leaderboard.statistics import mean

PLAIN, LANGUAGE_MODEL = "vae", "lm"
PLACEBO = " placebo"
MEASURES = {
    "nll": "NLL",
    "neg_elbo": "-ELBO",
    "kl": "KL",
    "rec": "Rec",
    "mi": "MI",
    "au": "AU",
    "units": "units",
    "ppl": "PPL",
    "i_read": "i_read",
    "z_gain": "z-gain",
    "nll_gap": "NLL gap",
    "elbo_gap": "ELBO gap",
    "khat_bad": "bad weights",
}
"""Of the test split, by the record's names."""

Cell = dict[str, Any]


@dataclass
class Row:
    """A variant on a data set, over its finished seeds. Costs in nats a sentence."""

    name: str
    method: str
    id: str
    cells: list[Cell]
    """Of every seed, finished or not."""
    means: dict[str, tuple[float, float]] = field(default_factory=dict)
    """(mean, half of the 95 % interval) by MEASURES; also `seconds` and `tokens_per_second`."""
    versus_plain: Comparison | None = None
    """NLL less the plain VAE's, by seed."""
    p: float = math.nan
    """Of no such difference, adjusted for all rows of the board (Holm 1979)."""
    versus_placebo: Comparison | None = None
    pays: str | None = None
    """pays, free or costs, against the language model; None where it cannot be told."""
    groups: str = ""
    """Letters: two rows that share one cannot be told apart by NLL."""
    best: bool = False
    """Whether its NLL is told apart from every other row's, and lower."""

    @property
    def done(self) -> list[Cell]:
        return [cell for cell in self.cells if cell["status"] == "done"]

    @property
    def seeds(self) -> dict[int, Cell]:
        return {int(cell["seed"]): cell for cell in self.done}

    @property
    def states(self) -> Counter[str]:
        """How many cells are where."""
        return Counter(cell["status"] for cell in self.cells)

    @property
    def verdicts(self) -> Counter[str]:
        return Counter(str(cell["test/verdict"]) for cell in self.done)

    @property
    def collapsed(self) -> tuple[int, int, float, float]:
        """(k of n seeds, and the 95 % interval of the share); of a model with latents."""
        k, n = self.verdicts["collapsed"], len(self.done) - self.verdicts["none"]
        return (k, n, *(share(k, n) if n else (math.nan, math.nan)))

    @property
    def about(self) -> dict[str, Any]:
        """Means by the names of `load_cells`, for `may_win`."""
        names = ("nll", "nll_half", "khat_bad")
        kinds = {cell["test/latent"] for cell in self.done}
        found: dict[str, Any] = {
            f"test/{name}": mean([cell[f"test/{name}"] for cell in self.done]) for name in names
        }
        return found | {"test/latent": kinds.pop() if len(kinds) == 1 else None}


@dataclass
class Board:
    """The rows of one data set, best first, the unknown last."""

    dataset: str
    hash: str | None
    rows: list[Row]


def boards(cells: pd.DataFrame) -> list[Board]:
    """One board a data set and content; a cell that has not told its content goes with the most."""
    kept = [cell for cell in cells.to_dict("records") if cell["status"] != DUPLICATE]
    found = []
    for dataset in sorted({cell["dataset"] for cell in kept}):
        here = [cell for cell in kept if cell["dataset"] == dataset]
        hashes = Counter(h for cell in here if isinstance(h := cell["provenance/data_hash"], str))
        ranked = [name for name, _ in sorted(hashes.items(), key=lambda pair: (-pair[1], pair[0]))]
        by_id = {  # an unfinished cell has the content of its variant's finished ones
            cell["id"]: cell["provenance/data_hash"]
            for cell in here
            if isinstance(cell["provenance/data_hash"], str)
        }
        for content in ranked or [None]:
            members = [
                c for c in here if by_id.get(c["id"], ranked[0] if ranked else None) == content
            ]
            label = f"{dataset} ({content[:6]})" if content and len(ranked) > 1 else dataset
            found.append(_board(label, content, members))
    return found


def _board(label: str, content: str | None, cells: list[Cell]) -> Board:
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell["method"], cell["id"]), []).append(cell)
    rows = [Row(_name(c), method, id_, c) for (method, id_), c in sorted(groups.items())]
    shared = Counter(row.name for row in rows)
    for row in rows:
        if shared[row.name] > 1:
            row.name = f"{row.name} ({row.id[:6]})"
        _measure(row)
    rows.sort(key=lambda row: (math.isnan(row.means["nll"][0]), row.means["nll"][0], row.name))
    _compare(rows)
    return Board(label, content, rows)


def _name(cells: list[Cell]) -> str:
    """The shortest label: an override that repeats a default leaves the identity as it was."""
    labels = [cell["variant"] for cell in cells if isinstance(cell["variant"], str)]
    return min(labels, key=lambda label: (len(label), label), default=cells[0]["method"])


def _measure(row: Row) -> None:
    for name in MEASURES:
        row.means[name] = interval([cell[f"test/{name}"] for cell in row.done])
    row.means["seconds"] = interval([cell["cost/train_seconds"] for cell in row.done])
    speeds = [cell["cost/tokens_per_second"] for cell in row.done]
    row.means["tokens_per_second"] = interval(speeds)


def _compare(rows: list[Row]) -> None:
    """Fill in what rows say of each other."""
    named = {row.name: row for row in rows}
    plain, model = named.get(PLAIN), named.get(LANGUAGE_MODEL)
    for row in rows:
        if plain is not None and row is not plain:
            row.versus_plain = paired(_nll(row), _nll(plain))
        itself = named.get(row.name.removesuffix(PLACEBO))
        if itself is not None and itself is not row:
            itself.versus_placebo = paired(_nll(itself), _nll(row))
        if model is not None and row is not model:
            row.pays = pays(_by_sentence(row, model), _by_sentence(model, row))
    tested = [row for row in rows if row.versus_plain is not None]
    for row, p in zip(tested, holm([_p(row.versus_plain) for row in tested]), strict=True):
        row.p = float(p)
    told = _told_apart(rows)
    names = [row.name for row in rows]
    groups = tie_groups(names, [row.means["nll"][0] for row in rows], lambda a, b: told[a, b])
    first = winner(groups) if len(rows) > 1 else None
    for row in rows:
        row.groups = "".join(_letter(i) for i, group in enumerate(groups) if row.name in group)
        row.best = row.name == first


def _told_apart(rows: list[Row]) -> dict[tuple[str, str], bool]:
    """Of every pair, whether their NLL differs: by seeds and sentences, adjusted for all pairs, and
    by no more than the estimates carry."""
    pairs = list(combinations(rows, 2))
    p = holm([_p(paired_by_sentence(_by_sentence(a, b), _by_sentence(b, a))) for a, b in pairs])
    told = {}
    for (a, b), value in zip(pairs, p, strict=True):
        apart = bool(value < 0.05) and bool(may_win(a.about, b.about))
        told[a.name, b.name] = told[b.name, a.name] = apart
    return told


def _p(comparison: Comparison | None) -> float:
    return math.nan if comparison is None else comparison.p


def _nll(row: Row) -> Mapping[int, float]:
    return {seed: cell["test/nll"] for seed, cell in row.seeds.items()}


def _by_sentence(row: Row, other: Row) -> dict[int, Array]:
    """Each common seed's NLL by sentence, where both have the same sentences."""
    found = {}
    for seed in sorted(row.seeds.keys() & other.seeds.keys()):
        ours, theirs = (sentences(each.seeds[seed]["path"]) for each in (row, other))
        if ours is not None and theirs is not None and ours.shape == theirs.shape:
            found[seed] = ours
    return found


@cache
def sentences(path: str) -> Array | None:
    """[N] NLL of a run's test sentences, NaN where it was not measured; None where there is no
    file to trust."""
    try:
        with np.load(Path(path) / "sentences.npz", allow_pickle=False) as file:
            return file["nll"].astype(float)
    except (OSError, ValueError, KeyError):
        return None


def _letter(i: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    return (_letter(i // 26 - 1) if i >= 26 else "") + chr(ord("a") + i % 26)
