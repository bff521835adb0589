"""What differs between runs, what forbids to compare them, and what differs by sentence."""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # scipy.stats takes a second to import

from benchmark.comparison.runs import CURVES, Side
from benchmark.grid import CONTENT, LISTED
from benchmark.record import SUMMARY

PROVENANCE = ("result_version", "data_hash", "fingerprint", "commit")
EFFORT = "budget.evaluation."
SILENT = EFFORT + "every"  # extra records, which nothing reads


def comparison(sides: Sequence[Side]) -> dict[str, Any]:
    """All that the command tells, in JSON's types; what is by run is in the order of the sides,
    differences are to the first."""
    every = dict.fromkeys(chain(*(side.config for side in sides)))
    fields = _apart({name: [side.config.get(name) for side in sides] for name in every})
    costs = dict.fromkeys(chain(*(side.known["cost"] for side in sides)))
    return {
        "schema": 1,
        "runs": [
            {"letter": side.letter, "name": side.name, "path": str(side.path)}
            | {key: side.known[key] for key in ("cell", "status", "selected_step")}
            for side in sides
        ],
        "warnings": warnings(sides, fields),
        "config": {name: values for name, values in fields.items() if _makes_a_cell(name)},
        "aside": {name: values for name, values in fields.items() if not _makes_a_cell(name)},
        "provenance": _apart({name: [side.origin(name) for side in sides] for name in PROVENANCE}),
        "summary": {split: _summary(split, sides) for split in ("test", "valid")},
        "sentences": [_by_sentence(sides[0], side) for side in sides[1:]],
        "cost": {name: [side.known["cost"].get(name) for side in sides] for name in costs},
        "curves": _curves(sides),
    }


def differ(values: Sequence[Any]) -> bool:
    """Whether they do."""
    return any(value != values[0] for value in values)


def brief(value: Any) -> str:
    """A field's value in a line: hashes by their beginning."""
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    is_hash = len(text) >= 40 and {*text} <= {*"0123456789abcdef"}
    return text[:12] if is_hash else text


def warnings(sides: Sequence[Side], fields: Mapping[str, Sequence[Any]]) -> list[str]:
    """Why numbers cannot be compared, in words; fields: those of the configuration that differ."""
    data = [f"{side.known['cell']['dataset']} {brief(side.origin('data_hash'))}" for side in sides]
    versions = [side.origin("result_version") for side in sides]
    devices = [side.origin("device") for side in sides]
    reasons = [
        ("Of different data", data, "no number can be compared"),
        ("Of different result versions", versions, "the same cell gives other numbers under each"),
        ("Trained on different devices", devices, "compare no seconds"),
        *(
            (f"Measured with different {name}", values, "what depends on it is not comparable")
            for name, values in fields.items()
            if name.startswith(EFFORT) and name != SILENT
        ),
    ]
    told = []
    for what, values, so in reasons:
        if differ(values):
            by_run = [f"{s.letter} {brief(value)}" for s, value in zip(sides, values, strict=True)]
            told.append(f"{what} ({', '.join(by_run)}): {so}.")
    for side in sides:
        if side.known["status"] == "stopped":
            at = side.known["cost"].get("reached", side.known["cost"].get("steps"))
            told.append(f"{side.letter} was stopped at step {at}, before its budget's end.")
    return told


def _apart(values: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Those that are not the same in all runs."""
    return {name: by_run for name, by_run in values.items() if differ(by_run)}


def _makes_a_cell(name: str) -> bool:
    """Whether a field is part of what a result is of, by the same lists as its identity."""
    first, *rest = name.split(".")
    if first == "dataset":
        return rest[0] in CONTENT
    return first in (*LISTED, "seed") and name != SILENT


def _summary(split: str, sides: Sequence[Side]) -> dict[str, Any]:
    """By metric: values, differences, and why a value is null."""
    given = [side.known["summary"][split] for side in sides]
    place = {name: i for i, name in enumerate(SUMMARY)}
    found = {}
    for name in sorted({*chain(*given)}, key=lambda name: (place[name.partition("@")[0]], name)):
        values = [summary.get(name) for summary in given]
        notes = [side.known["notes"] for side in sides]
        found[name] = {
            "values": values,
            "differences": [_difference(name, values[0], value) for value in values[1:]],
            "notes": [
                note.get(f"{split}/{name}", note.get(name)) if value is None else None
                for note, value in zip(notes, values, strict=True)
            ],
        }
    return found


def _difference(name: str, first: Any, value: Any) -> float | None:
    is_error = name.partition("@")[0].endswith("_se")
    return None if None in (first, value) or isinstance(value, str) or is_error else value - first


def _by_sentence(first: Side, other: Side) -> dict[str, Any]:
    """The paired differences of two runs' test sentences, or why there are none."""
    pair = {"runs": [other.letter, first.letter], "measures": {}, "why": None}
    lacking = [side.letter for side in (first, other) if not side.sentences]
    if lacking:
        return pair | {"why": f"sentences.npz is missing in {' and '.join(lacking)}"}
    hashes = [side.origin("data_hash") for side in (first, other)]
    if None in hashes or differ(hashes):
        return pair | {"why": "their data hashes do not say that the sentences are the same"}
    names = first.sentences.keys() & other.sentences.keys() - {"index", "length"}
    # a model without a latent has a KL of zeros by sentence, and none in its summary
    tests = [side.known["summary"]["test"] for side in (first, other)]
    measures = {
        name: paired(first.sentences, other.sentences, name)
        for name in sorted(names)
        if all(test.get(name) is not None for test in tests)
    }
    return pair | {"measures": measures}


def paired(first: Mapping[str, NDArray], other: Mapping[str, NDArray], name: str) -> dict[str, Any]:
    """Other less first over the sentences that both have measured: the mean, its standard error,
    its 95 % t-interval (Student 1908), and whether that leaves zero out; None of fewer than two.
    Uncertain is the choice of sentences alone: the runs are taken as they are."""
    _, ours, theirs = np.intersect1d(first["index"], other["index"], return_indices=True)
    d = other[name][theirs].astype(float) - first[name][ours]
    d = d[np.isfinite(d)]
    n = len(d)
    if n < 2:
        return dict.fromkeys(("mean", "se", "low", "high", "apart")) | {"n": n}
    mean, se = float(d.mean()), float(d.std(ddof=1) / n**0.5)
    half = float(stdtrit(n - 1, 0.975)) * se
    ends = {"low": mean - half, "high": mean + half}
    return {"mean": mean, "se": se} | ends | {"apart": abs(mean) > half, "n": n}


def _curves(sides: Sequence[Side]) -> dict[str, Any]:
    """What validation measured, at the steps that all sides have, by metric and side."""
    steps = sorted(set.intersection(*({*chain(*side.trail.values())} for side in sides)))
    return {
        "steps": steps,
        "metrics": {
            name: [[side.trail.get(name, {}).get(step) for step in steps] for side in sides]
            for name in CURVES
            if any(name in side.trail for side in sides)
        },
    }
