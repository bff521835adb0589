"""The leaderboard as one page of HTML that opens from file:// and asks the network for nothing.

Whatever a record says is text to the page, whoever wrote it: the template escapes all of it, and a
policy in the page's head lets no script run but its own.
"""

import base64
import hashlib
import json
import math
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from markupsafe import Markup

from benchmark.diagnosis import page as diagnosed
from benchmark.diagnosis.drawing import printable
from benchmark.record import RESULT_VERSION
from leaderboard import beside, published
from leaderboard.board import MEASURES, PLAIN, Board, Overall, Row
from leaderboard.inference import Comparison
from leaderboard.load import DAMAGED, DUPLICATE, YAML
from leaderboard.plots import Plot
from leaderboard.report import (
    UNKNOWN,
    View,
    across,
    called,
    commits,
    number,
    significance,
    untold,
    views,
)

HERE = Path(__file__).parent
SAMPLES, LONGEST = 3, 400  # of a kind, a variant; letters of a text
DRAWN = ("units", "signal", "plane", "residuals")
"""The figures of a diagnosis that are small enough to be here for every variant."""
MACHINE = ("seed", "device", "threads", "save_every", "results_dir", "data_dir", "stop_after")
"""What a run's configuration says of the run and not of its variant."""


@dataclass(frozen=True)
class Column:
    """A column of a data set's table."""

    term: str
    """Its name, also in the glossary."""
    value: Callable[[Row], tuple[str, Any]]
    """What is shown, and what it is sorted by: a number, a word, or None where it is not known."""


def build(
    cells: pd.DataFrame,
    found: Sequence[Board],
    together: Overall | None,
    curves: pd.DataFrame,
    plots: Mapping[str, Sequence[Plot]],
) -> str:
    """The page. cells, found, together, curves, plots: of `load_cells`, `boards`, `overall`,
    `measurements` and `plots.draw`."""
    tested = pd.DataFrame(curves[(curves["split"] == "test") & curves["estimator"].notna()])
    boards = [_board(board, tested, plots.get(board.dataset, ())) for board in found]
    script = _source("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return diagnosed.template(HERE / "templates", "page.html").render(
        style=Markup(diagnosed.style() + _source("page.css")),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        palettes=diagnosed.PALETTES,
        head=_head(cells, found, boards),
        boards=boards,
        overall=_view(across(together)) if together else None,
        damaged=_damaged(cells),
        glossary=glossary(),
        diagnosed=[*diagnosed.COLUMNS.values()],
        unknown=UNKNOWN,
    )


def glossary() -> list[dict[str, str]]:
    """What the columns mean: name, means and, of some, pitfall."""
    return tomllib.loads((HERE / "glossary.toml").read_text(encoding="utf-8"))["term"]


def _source(name: str) -> str:
    return (HERE / "templates" / name).read_text(encoding="utf-8")


# The head ----------------------------------------------------------------------------------------


def _head(
    cells: pd.DataFrame, found: Sequence[Board], boards: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """What was run."""
    states = Counter(cells["status"])
    states["missing"] = sum(len(_absent(board, row)) for board in found for row in board.rows)
    rows = [row for board in boards for row in board["rows"]]
    days = sorted({day for row in rows for day in row["days"]})
    budgets = Counter(row["budget"] for row in rows if row["budget"])
    versions = {v for v in cells["provenance/result_version"] if isinstance(v, int | float)}
    return {
        "done": states.pop("done", 0),
        "others": [f"{n} {state}" for state, n in sorted(states.items()) if n],
        "when": " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "",
        "budgets": [f"{name} ({n} rows)" for name, n in sorted(budgets.items())],
        "commits": commits(cells),
        "stale": [f"{v:g}" for v in sorted(versions - {RESULT_VERSION}) if v == v],
        "version": RESULT_VERSION,
    }


def _absent(board: Board, row: Row) -> list[int]:
    """The seeds that other rows of the board were run with and this one was not."""
    return sorted(_seeds(cell for each in board.rows for cell in each.cells) - _seeds(row.cells))


def _seeds(cells: Iterable[Mapping[str, Any]]) -> set[int]:
    return {int(cell["seed"]) for cell in cells if not pd.isna(cell["seed"])}


def _damaged(cells: pd.DataFrame) -> list[tuple[str, str]]:
    """(place, reason) of what counts for nothing."""
    away = [c for c in cells.to_dict("records") if c["status"] in (DAMAGED, DUPLICATE)]
    return sorted((cell["path"], _reason(cell)) for cell in away)


def _reason(cell: Mapping[str, Any]) -> str:
    return cell["reason"] if isinstance(cell["reason"], str) else ""


# A data set --------------------------------------------------------------------------------------


def _board(board: Board, tested: pd.DataFrame, plots: Sequence[Plot]) -> dict[str, Any]:
    shown = [column for column in COLUMNS if _is_known(column, board)]
    runs = {row.id: _runs(row) for row in board.rows}
    slots: dict[str, list[str]] = {}  # of a method, whichever run has told them
    for row in board.rows:
        slots |= {row.method: runs[row.id]["slots"]} if runs[row.id]["slots"] is not None else {}
    tints: dict[str, int] = {}
    rows = []
    for row in board.rows:
        tint = tints.setdefault(row.groups, len(tints)) % 2 if row.groups else None
        filled = slots.get(row.method)
        rows.append(
            {
                "name": printable(row.name),
                "called": printable(called(row)),
                "best": row.best,
                "stale": row.stale,
                "tint": tint,
                "cells": [column.value(row) for column in shown],
                **runs[row.id],
                "slots": UNKNOWN if filled is None else " + ".join(filled) or "none",
            }
        )
    pending: dict[tuple[str, str, str], list[int | str]] = {}
    for row in board.rows:
        for cell in row.cells:
            if cell["status"] != "done":
                why = (row.name, cell["status"], _reason(cell))
                seed = "?" if pd.isna(cell["seed"]) else int(cell["seed"])
                pending.setdefault(why, []).append(seed)
        if absent := _absent(board, row):
            pending[row.name, "missing", ""] = [*absent]
    return {
        "key": _slug(board.dataset),
        "dataset": board.dataset,
        "about": _about(board),
        "story": _story(board),
        "columns": [column.term for column in shown],
        "rows": rows,
        "untold": untold(board),
        "views": [_view(view) for view in views(board)],
        "plots": plots,
        "published": _published(board, tested, runs),
        "samples": _side_by_side(rows),
        "diagnoses": _diagnoses(board),
        "waiting": sum(map(len, pending.values())),
        "pending": [
            (name, ", ".join(map(str, sorted(seeds, key=str))), state, reason)
            for (name, state, reason), seeds in pending.items()
        ],
    }


def _diagnoses(board: Board) -> list[dict[str, Any]]:
    """What is said of the first diagnosed seed of each row."""
    found = []
    for row in board.rows:
        for seed, cell in sorted(row.seeds.items()):
            if record := beside.diagnosis(cell["path"]):
                key = f"{_slug(board.dataset)}-{row.id}-why"
                with suppress(*beside.DAMAGE):
                    of = f"{row.name}, {board.dataset}"
                    body = Markup(diagnosed.fragment(record, key, of, DRAWN))
                    found.append({"name": printable(called(row)), "seed": seed, "body": body})
                    break
    return found


def _view(view: View) -> dict[str, Any]:
    """For the template: the caption in paragraphs of pieces, (whether it is emphasised, text)."""
    paragraphs = [
        [(i % 2 == 1, piece.replace("`", "")) for i, piece in enumerate(text.split("**"))]
        for text in view.caption.strip().split("\n\n")
    ]
    return {"title": view.title, "caption": paragraphs, "heads": view.head} | {
        "rows": view.rows,
        "after": view.after,
    }


def _slug(dataset: str) -> str:
    """A name for links that no other data set has."""
    readable = re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-")
    return f"data-{readable}-{hashlib.sha256(dataset.encode()).hexdigest()[:4]}"


def _about(board: Board) -> str:
    """What the numbers were estimated with."""
    words = ["test split"]
    for name, text in (
        ("nll_samples", "NLL of {} samples"),
        ("nll_sentences", "on {} sentences"),
        ("mi_n", "MI by a mixture of {}"),
        ("truth_mi", "the generator's own MI {} nats"),
    ):
        found = {v for row in board.rows for c in row.done if (v := c[f"test/{name}"]) == v}
        values = [f"{value:,.4g}" for value in sorted(found)]
        if len(values) > 3:
            values = [f"{values[0]} to {values[-1]}"]
        words += [text.format(" or ".join(values))] if values else []
    return ", ".join(words)


def _story(board: Board) -> list[str]:
    """What the table says, in sentences."""
    rows = [row for row in board.rows if row.groups]
    if not rows:
        older = any(row.stale for row in board.rows)
        return ["Every run is of older code, and stale." if older else "No run is done."]
    first, *others = rows
    others = [row for row in others if first.compares(row)]
    lowest = f"{first.name} has the lowest NLL, {number(*first.means['nll'])} nats a sentence"
    ties = [row.name for row in others if not first.apart(row)]
    named = ", ".join(ties) if len(ties) < 6 else f"{len(ties)} of {len(others)} others"
    told = f"not told apart from {named}" if ties else "told apart from every other"
    story = [f"{lowest}; {told}." if others else f"{lowest}."]
    for verdict, has_latent, words in (
        ("pays", True, "Reading z pays, against the language model: {}."),
        ("pays", False, "Better than the language model without any latent: {}."),
        ("costs", True, "Worse than the language model: {}."),
    ):
        names = [
            row.name for row in rows if row.pays == verdict and (row.kind != "none") == has_latent
        ]
        story += [words.format(", ".join(names))] if names else []
    if any(row.pays for row in rows) and not any(row.pays == "pays" for row in rows):
        story.append("No row is shown to be better than the language model.")
    lower = [row for row in rows if row.p < 0.05 and row.versus_plain and row.versus_plain.mean < 0]
    for won, words in (
        (True, f"Better than the plain VAE ({PLAIN}): {{}}."),
        (
            None,
            f"Of lower NLL than {PLAIN} by seeds; the estimates carry no win: {{}}.",
        ),
    ):
        names = [row.name for row in lower if row.won is won]
        story += [words.format(", ".join(names))] if names else []
    collapsed = [
        f"{row.name} ({k} of {n} seeds)" for row in rows for k, n, *_ in [row.collapsed] if k
    ]
    story += [f"Collapsed: {', '.join(collapsed)}."] if collapsed else []
    return story


# The table's columns -----------------------------------------------------------------------------


def _measure(name: str, digits: int = 2) -> Callable[[Row], tuple[str, Any]]:
    def value(row: Row) -> tuple[str, Any]:
        mean, half = row.means[name]
        return number(mean, half, digits), _finite(mean)

    return value


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _count(row: Row) -> tuple[str, Any]:
    done, all_ = len(row.done), len(row.cells)
    return (str(done) if done == all_ else f"{done}/{all_}"), done


def _units(row: Row) -> tuple[str, Any]:
    active, units = row.means["au"][0], row.means["units"][0]
    if math.isnan(active):
        return UNKNOWN, None
    return f"{active:.3g}/{units:.0f}", active


def _difference(comparison: Comparison | None) -> tuple[str, Any]:
    if comparison is None:
        return UNKNOWN, None
    return number(comparison.mean, comparison.half), _finite(comparison.mean)


def _p(row: Row) -> tuple[str, Any]:
    return significance(row) + (" better" if row.won else ""), _finite(row.p)


def _collapsed(row: Row) -> tuple[str, Any]:
    k, n, low, high = row.collapsed
    return (f"{k}/{n} ({low:.2f}-{high:.2f})", k / n) if n else (UNKNOWN, None)


def _verdict(row: Row) -> tuple[str, Any]:
    several = len(row.verdicts) > 1
    words = [f"{n} {word}" if several else word for word, n in sorted(row.verdicts.items())]
    return (", ".join(words), words[0]) if words else (UNKNOWN, None)


def _word(value: str | None) -> tuple[str, Any]:
    return value or UNKNOWN, value or None


COLUMNS = (
    Column("n", _count),
    *(Column(MEASURES[name], _measure(name)) for name in ("nll", "neg_elbo", "kl", "rec", "mi")),
    Column("AU", _units),
    *(Column(MEASURES[name], _measure(name)) for name in ("ppl", "i_read", "z_gain")),
    Column("pays", lambda row: _word(row.pays)),
    *(Column(MEASURES[name], _measure(name)) for name in ("nll_gap", "elbo_gap")),
    Column("ties", lambda row: _word(row.groups)),
    Column(f"- {PLAIN}", lambda row: _difference(row.versus_plain)),
    Column("p", _p),
    Column("placebo", lambda row: _difference(row.versus_placebo)),
    Column("collapsed", _collapsed),
    Column("verdict", _verdict),
    Column("bad weights", _measure("khat_bad")),
    Column("s", _measure("seconds", 0)),
    Column("tokens/s", _measure("tokens_per_second", 0)),
)


def _is_known(column: Column, board: Board) -> bool:
    return any(column.value(row)[1] is not None for row in board.rows)


# Runs --------------------------------------------------------------------------------------------


def _runs(row: Row) -> dict[str, Any]:
    """A row's runs: how to make them again, where they come from, what they wrote."""
    found: dict[str, Any] = {
        **{"id": row.id, "config": "", "command": "", "slots": None, "days": [], "table": []},
        **{"written": [], "budget": "", "sizes": {}},
    }
    for cell in sorted(row.cells, key=lambda cell: (pd.isna(cell["seed"]), cell["seed"])):
        path = Path(cell["path"])
        about = _provenance(path)
        if isinstance(about.get("slots"), list):
            found["slots"] = [str(slot) for slot in about["slots"]]
        if not found["config"] and (text := _text(path / "config.yaml")):
            config = _parsed(text)
            found["config"] = "".join(
                line for line in text.splitlines(True) if line.partition(":")[0] not in MACHINE
            )
            found["budget"] = str(_mapping(config.get("budget")).get("name") or "")
            found["sizes"] = _mapping(config.get("model"))
            found["command"] = _command(cell, config, about)
        if not found["written"] and cell["status"] == "done":
            found["written"] = _samples(path)
        started = str(about.get("started_at") or UNKNOWN)
        found["days"] += [started[:10]] if started != UNKNOWN else []
        found["table"].append(
            (
                UNKNOWN if pd.isna(cell["seed"]) else int(cell["seed"]),
                cell["status"],
                number(cell["test/nll"]),
                number(cell["cost/train_seconds"], digits=0),
                started,
                str(about.get("host") or UNKNOWN),
                str(about.get("device") or UNKNOWN),
                str(_mapping(about.get("versions")).get("torch") or UNKNOWN),
                str(about.get("commit") or UNKNOWN)[:12],
            )
        )
    return found


def _provenance(path: Path) -> dict[str, Any]:
    with suppress(ValueError):  # then it is listed as damaged
        return _mapping(_mapping(json.loads(_text(path / "run.json"))).get("provenance"))
    return {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _parsed(config: str) -> dict[str, Any]:
    with suppress(yaml.YAMLError):
        return _mapping(yaml.load(config, YAML))
    return {}


def _command(cell: Mapping[str, Any], config: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """What makes a run again, but for its seed: its method and what its name tells of that, and the
    words of its own command that are not the machine's; of a sweep's, its own value."""
    variant = cell["variant"] if isinstance(cell["variant"], str) else cell["method"]
    method, *changed = variant.split(" ")
    budget = str(_mapping(config.get("budget")).get("name") or "")
    argv = about.get("argv")
    asked = _mapping(about.get("submitted")).get("words") or (
        argv[1:] if isinstance(argv, list) else []
    )
    plain: dict[str, str] = {}
    for word in filter(lambda word: isinstance(word, str) and "=" in word, asked):
        given = word.partition("=")[0]
        key = given.lstrip("+~")
        if re.search(r"=(?![\[{'\"]).*,|=(range|glob)\(|=all$", word):
            own = reduce(lambda group, name: _mapping(group).get(name), key.split("."), config)
            if own is None or isinstance(own, dict | list):
                continue
            word = f"{given}={json.dumps(own) if isinstance(own, bool) else own}"
        if key not in MACHINE:
            plain[key] = word
    words = [f"method={method}", plain.pop("dataset", f"dataset={cell['dataset']}")]
    words += ["placebo=true" if word == "placebo" else f"method.{word}" for word in changed]
    words += [] if "budget" in plain or budget in ("", "default") else [f"budget={budget}"]
    told = re.compile(r"(method|placebo|dataset\.path)\b")
    words += [word for key, word in plain.items() if not told.match(key)]
    return " ".join(["python -m benchmark.run", *map(shlex.quote, words), "seed=SEED"])


def _samples(path: Path) -> list[dict[str, str]]:
    """The first of each kind that a run wrote."""
    found: dict[str, list[dict[str, str]]] = {}
    for line in _text(path / "samples.jsonl").splitlines():
        with suppress(ValueError):
            sample = _mapping(json.loads(line))
            text, source, kind = (sample.get(name) for name in ("text", "source", "kind"))
            if isinstance(text, str) and isinstance(kind, str):
                source = source if isinstance(source, str) else ""
                one = {"kind": kind, "source": source[:LONGEST], "text": text[:LONGEST]}
                found.setdefault(kind, []).append(one)
    return [
        one
        for kind, samples in sorted(found.items())
        for one in samples[: 3 * SAMPLES if kind == "interpolation" else SAMPLES]
    ]


def _side_by_side(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the variants wrote, by kind and source: {kind, source, texts: [(variant, texts)]}."""
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        for sample in row["written"]:
            texts = groups.setdefault((sample["kind"], sample["source"]), {})
            texts.setdefault(row["called"], []).append(sample["text"])
    return [
        {"kind": kind, "source": source, "texts": list(texts.items())}
        for (kind, source), texts in sorted(groups.items(), key=lambda group: group[0][0])
    ]


def _published(
    board: Board, tested: pd.DataFrame, runs: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, ...]]:
    """What papers printed of the board's methods, beside ours."""
    table, found = _papers(), []
    for row in board.rows:
        if row.name != row.method or not row.done:
            continue  # papers have no row for our variants
        theirs = published.beside(board.name, row.method, table)
        if theirs.empty:
            continue
        trail = tested[(tested["method"] == row.method) & (tested["id"] == row.id)]
        for printed in theirs.to_dict("records"):
            metric = published.ours(printed)
            estimators = {*trail.loc[trail["metric"] == metric, "estimator"]}
            estimator = estimators.pop() if len(estimators) == 1 else None
            same, why = published.comparable(
                {str(key): value for key, value in printed.items()},
                data_hash=board.hash,
                sizes=runs[row.id]["sizes"],
                estimator=estimator if isinstance(estimator, str) else None,
            )
            found.append(
                (
                    *(called(row), MEASURES.get(printed["metric"], printed["metric"])),
                    f"{printed['value']:g}",
                    number(*row.means.get(metric, (math.nan, math.nan))),
                    *(printed[name] for name in ("paper", "table", "model", "status")),
                    "" if same else why,
                )
            )
    return found


@cache
def _papers() -> pd.DataFrame:
    return published.load()


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
