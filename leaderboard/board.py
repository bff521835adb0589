"""The board: for each data set a row a variant, with what may be said of it and what may not.

A row is compared with the plain VAE by seed, with the language model by sentence, with its placebo
by seed, and with every other row for ties; a method's variants with each other, by validation; and
all rows at one rate, at one cost, and across data sets (`overall`). Rows are of one data set only
if its content was the same; a difference is told only where the estimates carry it
(`inference.may_win`).
"""

import json
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import combinations
from pathlib import Path
from string import ascii_letters
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from leaderboard.inference import (
    Array,
    Comparison,
    at_rate,
    choose,
    expected_best,
    holm,
    interquartile_mean,
    interval,
    may_win,
    paired,
    pairs_by_sentence,
    pays,
    performance_profile,
    probability_of_improvement,
    share,
    stratified_bootstrap,
    tie_groups,
    winner,
)
from leaderboard.load import DUPLICATE, KEY, SIZES, stale
from leaderboard.statistics import mean, median

PLAIN, LANGUAGE_MODEL = "vae", "lm"
PLACEBO = " placebo"
NAMED = ("budget.name", "budget.epochs", "budget.steps")
"""Options that the name of a budget tells, the size where it ends by one."""
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

RATES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Nats a sentence at which methods are compared."""
COSTS = ("seconds", "backwards")
"""Of training, at which rows are compared; a backward pass is one of the whole objective."""
THRESHOLDS = (-0.1, -0.03, -0.01, 0.0, 0.01, 0.03, 0.1)
"""Of the score across data sets, in nats a token."""

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
    """(mean, half of the 95 % interval) by MEASURES; also `seconds` and `tokens_per_second`, the
    median of each, without."""
    versus_plain: Comparison | None = None
    """NLL less the plain VAE's, by seed."""
    p: float = math.nan
    """Of no such difference, adjusted for all rows of the board (Holm 1979)."""
    won: bool | None = None
    """Whether it is better than the plain VAE; None where no such word may be said: the difference
    is not known, or it is significant but more than the estimates carry."""
    versus_placebo: Comparison | None = None
    pays: str | None = None
    """pays, free or costs, against the language model; None where it cannot be told."""
    why_not: str = ""
    """Why that cannot be told."""
    groups: str = ""
    """Letters: two rows that share one cannot be told apart by NLL; rows of two kinds of latents
    share none."""
    best: bool = False
    """Whether its NLL is lower than that of every row it can be compared with, and told apart."""

    @cached_property
    def done(self) -> list[Cell]:
        return [cell for cell in self.cells if cell["status"] == "done"]

    @cached_property
    def seeds(self) -> dict[int, Cell]:
        return {int(cell["seed"]): cell for cell in self.done}

    @property
    def stale(self) -> bool:
        """Whether a version of the code made it whose results are not those of now."""
        return stale(self.done)

    @property
    def is_placebo(self) -> bool:
        return _name(self.cells).endswith(PLACEBO)

    def outcomes(self, split: str) -> dict[int, float]:
        """seed -> NLL, of the runs that ended: infinite where one diverged."""
        ended = [cell for cell in self.cells if cell["status"] in ("done", "diverged")]
        return {
            int(cell["seed"]): cell[f"{split}/nll"] if cell["status"] == "done" else math.inf
            for cell in ended
        }

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
    def kind(self) -> str | None:
        """Of latents: none, global, sequence or implicit; None where the seeds do not agree."""
        kinds = {cell["test/latent"] for cell in self.done}
        return kinds.pop() if len(kinds) == 1 else None

    def compares(self, other: "Row") -> bool:
        """Whether their NLL may be compared: of one kind of latents, or one has none."""
        return self.kind == other.kind or "none" in (self.kind, other.kind)

    def apart(self, other: "Row") -> bool:
        """Whether the two are told apart by NLL; a stale one never is."""
        known = self.compares(other) and bool(self.groups and other.groups)
        return known and not {*self.groups} & {*other.groups}

    @cached_property
    def about(self) -> dict[str, Any]:
        """Means by the names of `load_cells`, for `may_win`."""
        names = ("nll", "nll_half", "khat_bad")
        found: dict[str, Any] = {
            f"test/{name}": mean([cell[f"test/{name}"] for cell in self.done]) for name in names
        }
        return found | {"test/latent": self.kind}


@dataclass
class Selected:
    """The best of a method's variants, placebos apart, by validation NLL on some seeds, with its
    test NLL on the others: where it was selected, it looks better than it is."""

    method: str
    name: str | None
    """The chosen row's; None where none could be chosen."""
    tried: int
    chosen_on: tuple[int, ...]
    seeds: tuple[int, ...]
    """Reported on: all, where one variant was tried."""
    nll: tuple[float, float]
    """(mean, half) on those; infinite where one of them diverged."""
    note: str
    """What is wanting; empty where nothing is."""
    curve: tuple[float, ...]
    """The best validation NLL that a search of 1, 2, ... of the variants would have found."""


@dataclass
class Equal:
    """The best validation NLL so far when each row has spent one cost, the largest that all
    reached."""

    cost: float
    """The least of all rows of the median of what their seeds spent."""
    nll: dict[str, tuple[float, float]]
    """(mean, half) over finished seeds by row, best first; NaN before the first validation."""


@dataclass
class Board:
    """The rows of one data set, model, budget and measurement, best first, the unknown last; stale
    ones are shown and take part in nothing."""

    dataset: str
    """Its name, and what sets it apart from another board of that name."""
    name: str
    hash: str | None
    rows: list[Row]
    methods: list[Selected] = field(default_factory=list)
    """Best first; one for every method."""
    at_rates: dict[str, dict[float, float]] = field(default_factory=dict)
    """method -> rate -> NLL, between its variants; of methods with several of a known rate."""
    equal: dict[str, Equal] = field(default_factory=dict)
    """By COSTS; empty where fewer than two rows have told of their training."""
    others: "list[Board]" = field(default_factory=list)
    """Of the same data at other settings, if this one's has the most runs."""

    def row(self, name: str | None) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)


Trails = dict[tuple[Any, ...], list[Array]]
"""KEY -> [n] of COSTS and the validation NLL then, for every validation of a run."""


def boards(cells: pd.DataFrame, curves: pd.DataFrame | None = None) -> list[Board]:
    """One board a data set, content and setting, that is model, budget and measurement; those
    without a finished run last. A cell that has not told its content goes with the most of its
    variant's, or else of all; one that has not told its setting with the most.

    curves: of `load_curves`, without which there is no comparison at equal cost.
    """
    trails = {} if curves is None else _trails(curves)
    kept = [cell for cell in cells.to_dict("records") if cell["status"] != DUPLICATE]
    found = []
    for dataset in sorted({cell["dataset"] for cell in kept}):
        here = [cell for cell in kept if cell["dataset"] == dataset]
        hashes = Counter(h for cell in here if isinstance(h := cell["provenance/data_hash"], str))
        ranked = [name for name, _ in sorted(hashes.items(), key=lambda pair: (-pair[1], pair[0]))]
        contents = _contents(here, ranked[0] if ranked else None)
        for content in ranked or [None]:
            members = [c for c, own in zip(here, contents, strict=True) if own == content]
            label = f"{dataset} ({content[:6]})" if content and len(ranked) > 1 else dataset
            main, *others = (
                _board(", ".join([label, *apart]), dataset, content, theirs, trails)
                for apart, theirs in _by_setting(members)
            )
            main.others = others
            found += [main, *others]
    return sorted(found, key=lambda board: not any(row.done for row in board.rows))


def _contents(cells: list[Cell], usual: str | None) -> list[str | None]:
    """The hash of each cell's data: its own, or else what most of its variant's cells have."""
    own = [h if isinstance(h := cell["provenance/data_hash"], str) else None for cell in cells]
    by_id: dict[str, Counter[str]] = {}
    for cell, content in zip(cells, own, strict=True):
        if content is not None:
            by_id.setdefault(cell["id"], Counter())[content] += 1
    most = {id_: heard.most_common(1)[0][0] for id_, heard in by_id.items()}
    return [
        most.get(cell["id"], usual) if content is None else content
        for cell, content in zip(cells, own, strict=True)
    ]


def _by_setting(cells: list[Cell]) -> list[tuple[list[str], list[Cell]]]:
    """The cells of each setting, and what sets it apart from the first, which has the most finished
    ones. An option that a cell does not tell is as most have it."""
    told = {text: json.loads(text) for c in cells if isinstance(text := c["setting"], str)}
    weight = {True: len(cells), False: 1}  # what has run, first
    heard: Counter[str] = Counter()
    for cell in cells:
        heard[cell["setting"]] += weight[cell["status"] == "done"]
    votes: dict[str, Counter[str]] = {}
    for text, setting in told.items():
        for option, value in setting.items():
            votes.setdefault(option, Counter())[json.dumps(value)] += heard[text]
    usual = {option: values.most_common(1)[0][0] for option, values in sorted(votes.items())}
    groups: dict[tuple[str, ...], list[Cell]] = {}
    unknown = []
    for cell in cells:
        setting = told.get(cell["setting"])
        if setting is None:
            unknown.append(cell)
            continue
        whole = (json.dumps(setting[o]) if o in setting else usual[o] for o in usual)
        groups.setdefault(tuple(whole), []).append(cell)

    def size(setting: tuple[str, ...]) -> tuple[int, int, tuple[str, ...]]:
        done = sum(cell["status"] == "done" for cell in groups[setting])
        return -done, -len(groups[setting]), setting

    ranked = sorted(groups, key=size)
    if not ranked:
        return [([], unknown)]
    first = groups[ranked[0]]
    found: list[tuple[list[str], list[Cell]]] = [([], [*first, *unknown])]
    for setting in ranked[1:]:
        theirs = groups[setting]
        name = theirs[0]["budget"]
        named = name and name != first[0]["budget"]
        told_by_name = () if not named else NAMED if name.endswith(SIZES) else NAMED[:1]
        changed = [
            f"{option}={json.loads(value)}"
            for option, value, common in zip(usual, setting, ranked[0], strict=True)
            if value != common and option not in told_by_name
        ]
        found.append(([name, *changed] if named else changed, theirs))
    return found


def _trails(curves: pd.DataFrame) -> Trails:
    columns = [*COSTS, "value"]
    validations = (curves["split"] == "valid") & (curves["metric"] == "nll")
    chosen = curves[validations & curves[columns].notna().all(axis=1)]
    found: Trails = {}
    keys = zip(*(chosen[name].tolist() for name in KEY), strict=True)
    for key, line in zip(keys, np.asarray(chosen[columns], dtype=float), strict=True):
        found.setdefault(key, []).append(line)
    return found


def _board(label: str, name: str, content: str | None, cells: list[Cell], trails: Trails) -> Board:
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
    current = [row for row in rows if not row.stale]
    _compare(current)
    equal = {name: found for name in COSTS if (found := _equal(current, trails, name))}
    return Board(label, name, content, rows, _select(current), _at_rates(current), equal)


def _name(cells: list[Cell]) -> str:
    """The shortest label: an override that repeats a default leaves the identity as it was."""
    labels = [cell["variant"] for cell in cells if isinstance(cell["variant"], str)]
    return min(labels, key=lambda label: (len(label), label), default=cells[0]["method"])


def _measure(row: Row) -> None:
    for name in MEASURES:
        row.means[name] = interval([cell[f"test/{name}"] for cell in row.done])
    for name, cost in (("seconds", "train_seconds"), ("tokens_per_second", "tokens_per_second")):
        row.means[name] = median([cell[f"cost/{cost}"] for cell in row.done]), math.nan


def _compare(rows: list[Row]) -> None:
    """Fill in what rows say of each other."""
    named = {row.name: row for row in rows}
    plain, model = named.get(PLAIN), named.get(LANGUAGE_MODEL)
    by_sentence = _by_sentence(rows)
    for row in rows:
        if plain is not None and row is not plain:
            row.versus_plain = paired(_nll(row), _nll(plain))
        itself = named.get(row.name.removesuffix(PLACEBO))
        if itself is not None and itself is not row:
            itself.versus_placebo = paired(_nll(itself), _nll(row))
        if model is not None and row is not model:
            row.pays, row.why_not = _pays(row, model, by_sentence)
    tested = [row for row in rows if row.versus_plain is not None]
    for row, p in zip(tested, holm([_p(row.versus_plain) for row in tested]), strict=True):
        row.p = float(p)
        row.won = plain and _won(row, plain)
    _tie(rows, _told_apart(rows, by_sentence))


def _tie(rows: list[Row], told: Mapping[tuple[str, str], bool]) -> None:
    """Fill in who ties with whom: the rows of each kind of latent with those that have none."""
    groups: list[tuple[str, ...]] = []
    winners: list[str | None] = []
    kinds = {row.name: row.kind for row in rows}
    for kind in sorted({*kinds.values()} - {"none"}, key=str) or ["none"]:
        members = [row for row in rows if kinds[row.name] in (kind, "none")]
        means = [row.means["nll"][0] for row in members]
        found = tie_groups([row.name for row in members], means, lambda a, b: told[a, b])
        groups += [group for group in found if group not in groups]
        first = winner(found) if len(members) > 1 else None
        winners += [first]
        for row in members:
            row.best = row.name == first and (kinds[row.name] != "none" or {*winners} == {first})
    for row in rows:
        row.groups = "".join(_letter(i) for i, group in enumerate(groups) if row.name in group)


def _pays(
    row: Row, model: Row, by_sentence: Mapping[str, dict[int, Array]]
) -> tuple[str | None, str]:
    """`Row.pays` and `Row.why_not`."""
    if not row.done:
        return None, ""  # as the count of its runs says
    if all(math.isnan(cell["test/nll"]) for cell in row.done):
        return None, "there is no likelihood to compare"
    word = pays(by_sentence[row.name], by_sentence[model.name])
    if word is None:
        return None, f"fewer than three seeds share their sentences with {model.name}"
    answer = may_win(row.about, model.about)
    # that no difference could be told needs no estimate that carries one
    return (word, "") if answer or word == "free" else (None, answer.reason)


def _won(row: Row, plain: Row) -> bool | None:
    if math.isnan(row.p) or row.versus_plain is None:
        return None
    if row.p < 0.05 and not may_win(row.about, plain.about):
        return None
    return row.p < 0.05 and row.versus_plain.mean < 0


def _told_apart(
    rows: list[Row], by_sentence: Mapping[str, dict[int, Array]]
) -> dict[tuple[str, str], bool]:
    """Of every pair, whether their NLL differs: by seeds and sentences, adjusted for all pairs, and
    by no more than the estimates carry."""
    pairs = list(combinations(rows, 2))
    p = holm([found.p for found in pairs_by_sentence([by_sentence[row.name] for row in rows])])
    told = {}
    for (a, b), value in zip(pairs, p, strict=True):
        apart = bool(value < 0.05) and bool(may_win(a.about, b.about))
        told[a.name, b.name] = told[b.name, a.name] = apart
    return told


def _p(comparison: Comparison | None) -> float:
    return math.nan if comparison is None else comparison.p


def _nll(row: Row) -> Mapping[int, float]:
    return {seed: cell["test/nll"] for seed, cell in row.seeds.items()}


def _by_sentence(rows: list[Row]) -> dict[str, dict[int, Array]]:
    """row -> seed -> [N] NLLs, of the runs with as many sentences as most."""
    found = {
        row.name: {seed: sentences(cell["path"]) for seed, cell in row.seeds.items()}
        for row in rows
    }
    lengths = Counter(v.shape for runs in found.values() for v in runs.values() if v is not None)
    usual = max(lengths, key=lambda shape: (lengths[shape], shape), default=None)
    return {
        name: {seed: v for seed, v in runs.items() if v is not None and v.shape == usual}
        for name, runs in found.items()
    }


@cache
def sentences(path: str) -> Array | None:
    """[N] NLL of a run's test sentences, NaN where it was not measured; None where there is no
    file to trust."""
    try:
        with (
            (Path(path) / "sentences.npz").open("rb") as file,
            np.load(file, allow_pickle=False) as arrays,
        ):
            values = arrays["nll"].astype(float)
    except (OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error):
        return None
    return values if values.ndim == 1 else None


def _letter(i: int) -> str:
    """a, b, ..., z, A, ..., Z, and others beyond: one each, for they stand side by side."""
    return ascii_letters[i] if i < len(ascii_letters) else chr(0x100 + i - len(ascii_letters))


# -- the variants of a method ----------------------------------------------------------------------


def _select(rows: list[Row]) -> list[Selected]:
    named = {row.name: row for row in rows}
    found = []
    for method, variants in _methods(rows).items():
        valid = {row.name: row.outcomes("valid") for row in variants}
        choice = choose(valid)
        test = named[choice.name].outcomes("test") if choice.name is not None else {}
        nll = interval([test[seed] for seed in choice.seeds])
        curve = expected_best([mean([*seeds.values()]) for seeds in valid.values() if seeds])
        where = (choice.name, choice.tried, choice.chosen_on, choice.seeds)
        found.append(Selected(method, *where, nll, choice.note, tuple(curve.tolist())))
    return sorted(found, key=lambda each: (*_rank(each.nll[0]), each.method))


def _at_rates(rows: list[Row]) -> dict[str, dict[float, float]]:
    found = {}
    for method, variants in _methods(rows).items():
        points = [(row.means["kl"][0], row.means["nll"][0]) for row in variants]
        points = [(kl, nll) for kl, nll in points if not math.isnan(kl)]
        if len(points) > 1:
            rates, nlls = zip(*points, strict=True)
            found[method] = {rate: at_rate(rates, nlls, rate) for rate in RATES}
    return found


def _methods(rows: list[Row]) -> dict[str, list[Row]]:
    """The variants of each, placebos apart."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.method, row.name)):
        if not row.is_placebo:
            found.setdefault(row.method, []).append(row)
    return found


def _equal(rows: list[Row], trails: Trails, cost: str) -> Equal | None:
    place = COSTS.index(cost)
    told: dict[str, list[Array]] = {}
    for row in rows:
        keys = [tuple(cell[name] for name in KEY) for cell in row.done]
        told[row.name] = [np.array(trails[key]) for key in keys if key in trails]
    told = {name: runs for name, runs in told.items() if runs}
    if len(told) < 2:
        return None
    limit = min(float(np.median([run[:, place].max() for run in runs])) for runs in told.values())
    best = {
        name: interval([_least(run[run[:, place] <= limit, -1]) for run in runs])
        for name, runs in told.items()
    }
    return Equal(limit, dict(sorted(best.items(), key=lambda pair: (*_rank(pair[1][0]), pair[0]))))


def _least(values: Array) -> float:
    return float(values.min()) if len(values) else math.nan


def _rank(value: float) -> tuple[bool, float]:
    """A key by which what is not known comes last."""
    return math.isnan(value), value


# -- across data sets ------------------------------------------------------------------------------


@dataclass
class Standing:
    """A variant across data sets. Its scores: NLL less the plain VAE's of the same seed, in nats a
    token of that seed's VAE, infinite where it diverged."""

    name: str
    runs: int
    """Scores, over all data sets."""
    diverged: int
    mean: float
    """The interquartile mean of the scores, in which data sets weigh alike."""
    interval: tuple[float, float]
    """The mean's, 95 %, by stratified bootstrap."""
    over_plain: tuple[float, float, float]
    """(chance, low, high) that a run is better than the plain VAE of the same seed."""
    over_model: tuple[float, float, float]
    """(chance, low, high) that the NLL of a run is lower than that of one of the language model,
    each of those that have a score."""
    carried: int
    """Data sets on which the estimates carry the difference from the plain VAE."""
    profile: tuple[float, ...]
    """The share of runs at or below each of THRESHOLDS."""
    missing: dict[str, list[int]]
    """data set -> seeds that some variant was run with and that give this one no score."""


@dataclass
class Overall:
    """The variants that all of some data sets have, best first."""

    datasets: list[str]
    rows: list[Standing]
    left_out: dict[str, list[str]]
    """Other variants, and the data sets on which they have no score."""


def overall(found: Sequence[Board]) -> Overall | None:
    """The comparison across data sets, of which a variant has to have two; None where none does.

    Of each data set the setting of the most runs. Which data sets: those of one of the variants,
    such that they and the variants that have them all make the most scores.
    """
    smaller = {other.dataset for board in found for other in board.others}
    found = [board for board in found if board.dataset not in smaller]
    scored = {board.dataset: (board, _scores(board)) for board in found}
    present: dict[str, set[str]] = {}
    for dataset, (_, scores) in scored.items():
        for name in scores:
            present.setdefault(name, set()).add(dataset)
    candidates = sorted({tuple(sorted(where)) for where in present.values() if len(where) > 1})
    if not candidates:
        return None
    shared = max(candidates, key=lambda sets: len(sets) * _having(present, sets))
    boards_, tables = zip(*(scored[dataset] for dataset in shared), strict=True)
    names = sorted(name for name, where in present.items() if where >= {*shared})
    compared = {name: [table[name] for table in tables] for name in names}
    ran = {
        board.dataset: {
            int(cell["seed"])
            for row in board.rows
            if row.name in compared
            for cell in row.cells
            if not pd.isna(cell["seed"])
        }
        for board in boards_
    }
    rows = [_standing(name, compared, boards_, ran) for name in names]
    rows.sort(key=lambda row: (*_rank(row.mean), row.name))
    left_out = {
        name: [dataset for dataset in shared if dataset not in present[name]]
        for name in sorted(present.keys() - compared.keys())
    }
    return Overall([*shared], rows, left_out)


def _scores(board: Board) -> dict[str, dict[int, float]]:
    """row -> seed -> score, of the rows that have any and are not stale."""
    plain = board.row(PLAIN)
    if plain is None or plain.stale:
        return {}
    base = {
        seed: (cell["test/nll"], cell["test/nll"] / math.log(cell["test/ppl"]))
        for seed, cell in plain.seeds.items()
        if cell["test/nll"] > 0 and cell["test/ppl"] > 1
    }
    found = {}
    for row in board.rows:
        outcomes = {} if row.stale else row.outcomes("test")
        found[row.name] = {
            seed: (outcomes[seed] - nll) / tokens
            for seed, (nll, tokens) in sorted(base.items())
            if seed in outcomes
        }
    return {name: scores for name, scores in found.items() if scores}


def _having(present: Mapping[str, set[str]], datasets: Iterable[str]) -> int:
    return sum(where >= {*datasets} for where in present.values())


def _standing(
    name: str,
    compared: Mapping[str, list[dict[int, float]]],
    found: Sequence[Board],
    ran: Mapping[str, set[int]],
) -> Standing:
    scores = _arrays(compared[name])
    model = None if name == LANGUAGE_MODEL else compared.get(LANGUAGE_MODEL)
    rows = [(board.row(name), board.row(PLAIN)) for board in found]
    return Standing(
        name=name,
        runs=sum(map(len, scores)),
        diverged=sum(int(np.isposinf(group).sum()) for group in scores),
        mean=float(interquartile_mean(scores)),
        interval=stratified_bootstrap(scores, interquartile_mean),
        over_plain=_improvement(scores, None if name == PLAIN else [np.zeros(1)] * len(scores)),
        over_model=_improvement(
            _nlls(name, found), _nlls(LANGUAGE_MODEL, found) if model else None
        ),
        carried=sum(bool(row and plain and may_win(row.about, plain.about)) for row, plain in rows),
        profile=tuple(performance_profile(scores, THRESHOLDS).tolist()),
        missing={
            board.dataset: lacking
            for board, own in zip(found, compared[name], strict=True)
            if (lacking := sorted(ran[board.dataset] - own.keys()))
        },
    )


def _nlls(name: str, found: Sequence[Board]) -> list[Array]:
    """Of each data set a row's NLLs, those of seeds that no plain VAE has too."""
    rows = [next(row for row in board.rows if row.name == name) for board in found]
    return [np.array([*row.outcomes("test").values()]) for row in rows]


def _arrays(scores: list[dict[int, float]]) -> list[Array]:
    return [np.array([*seeds.values()], dtype=float) for seeds in scores]


def _improvement(ours: list[Array], theirs: Sequence[Array] | None) -> tuple[float, float, float]:
    """Its chance and the interval of that; NaN of no others."""
    if theirs is None:
        return math.nan, math.nan, math.nan
    sets = len(ours)
    chance = float(probability_of_improvement(ours, theirs))
    return chance, *stratified_bootstrap(
        [*ours, *theirs], lambda both: probability_of_improvement(both[:sets], both[sets:])
    )
