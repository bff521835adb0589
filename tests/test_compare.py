"""The command that puts runs side by side."""

import io
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from omegaconf import OmegaConf
from rich.console import Console

from benchmark import compare
from benchmark.comparison.differences import comparison
from benchmark.comparison.figure import draw
from benchmark.comparison.runs import CURVES, read
from benchmark.comparison.tables import show
from benchmark.grid import Cell
from benchmark.record import SUMMARY, TRUTH, RunDirectory

PUBLISHED = Path(__file__).parent.parent / "leaderboard/reference/runs/synthetic"
CONFIG: dict[str, Any] = {
    "method": {"name": "plain"},
    "dataset": {"name": "toy", "sizes": {"latent": 8}},
    "model": {"latent": 8},
    "budget": {"clip": 5.0, "evaluation": {"nll_samples": 500}},
    "seed": 0,
    "threads": 1,
}
NLL = [1.0, 2.0, 3.0, 4.0]
KL = [0.0, 0.0, 0.0, 0.0]


def lay(
    results: Path,
    seed: int = 0,
    *,
    status: str = "done",
    config: dict[str, Any] | None = None,
    trail: Mapping[int, Mapping[str, float | None]] | None = None,
    sentences: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
    cost: dict[str, Any] | None = None,
    variant: str = "plain",
    dataset: str = "toy",
    **measures: Any,
) -> Path:
    """A run directory whose test summary holds `measures`; sentences: {} lays no file."""
    run = RunDirectory(Cell(dataset, "plain", variant, seed, "0123456789ab").path(results))
    run.create(Cell(dataset, "plain", variant, seed, "0123456789ab"), "")
    whole = OmegaConf.merge(CONFIG, config or {}, {"seed": seed})
    (run.path / "config.yaml").write_text(OmegaConf.to_yaml(whole))
    base = dict.fromkeys(SUMMARY.keys() - TRUTH, 1.0) | {"verdict": "read", "latent": "global"}
    test = base | measures
    arrays = {"index": range(4), "length": [5] * 4, "nll": NLL, "kl": KL}
    arrays = arrays if sentences is None else sentences
    with run.lease():
        run.save_npz("units.npz", kl=[0.0])
        run.save_text("samples.jsonl", "")
        run.save_npz("sentences.npz", **arrays)
        metrics = run.metrics()
        for step, values in (trail or {10: {"nll": 2.0}}).items():
            metrics.add(step, "valid", values, seconds=1.0, batches=step, backwards=step)
        metrics.add(30, "test", {"nll": 99.0}, seconds=1.0, batches=30, backwards=30)
        run.write(
            status=status,
            selected_step=10,
            summary={"valid": base, "test": test} if status in ("done", "stopped") else {},
            notes={f"test/{name}": "so it is" for name, value in test.items() if value is None},
            cost=cost or {"train_seconds": 10.0, "steps": 30},
            provenance={"data_hash": "a" * 64, "result_version": 1} | (provenance or {}),
        )
    if not arrays:
        (run.path / "sentences.npz").unlink()
    return run.path


def compared(*paths: Path) -> dict[str, Any]:
    sides = [read(path, letter) for path, letter in zip(paths, "ABCD", strict=False)]
    found = comparison(sides)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def shown(found: dict[str, Any], width: int = 100) -> str:
    show(found, Console(file=(out := io.StringIO()), width=width))
    return out.getvalue()


# What differs ------------------------------------------------------------------------------------


def test_fields_that_make_a_cell_are_told_apart_from_those_that_do_not(tmp_path):
    changes = {
        "method": {"ramp": 0.4},
        "dataset": {"path": "/there", "sizes": {"latent": 9}},
        "budget": {"clip": 1.0, "evaluation": {"every": 7}},
        "threads": 2,
    }
    found = compared(lay(tmp_path), lay(tmp_path, 1, config=changes))
    assert found["config"] == {
        "method.ramp": [None, 0.4],
        "budget.clip": [5.0, 1.0],
        "seed": [0, 1],
    }
    aside = {"dataset.path", "dataset.sizes.latent", "budget.evaluation.every", "threads"}
    assert found["aside"].keys() == aside and found["aside"]["threads"] == [1, 2]
    assert found["provenance"] == {} and found["warnings"] == []


def test_a_field_that_older_code_did_not_have_was_neutral(tmp_path):
    new = {"budget": {"evaluation": {"valid_gain_sentences": 500}}, "placebo": False}
    assert compared(lay(tmp_path / "a"), lay(tmp_path / "b", config=new))["config"] == {}
    other = {"budget": {"evaluation": {"valid_gain_sentences": 9}}}
    found = compared(lay(tmp_path / "a"), lay(tmp_path / "c", config=other))
    assert found["config"] == {"budget.evaluation.valid_gain_sentences": [500, 9]}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"dataset": "other"},
            "different data (A toy aaaaaaaaaaaa, B other aaaaaaaaaaaa): no number",
        ),
        (
            {"provenance": {"data_hash": "f" * 64}},
            "different data (A toy aaaaaaaaaaaa, B toy ffffffffffff): no number",
        ),
        ({"provenance": {"result_version": 2}}, "different result versions (A 1, B 2)"),
        ({"provenance": {"device": "cuda"}}, "different devices (A -, B cuda)"),
        (
            {"config": {"budget": {"evaluation": {"nll_samples": 40}}}},
            "budget.evaluation.nll_samples (A 500, B 40): what",
        ),
        ({"status": "stopped", "cost": {"steps": 30, "reached": 40}}, "B was stopped at step 40"),
    ],
)
def test_what_cannot_be_compared_is_said(changes, told, tmp_path):
    found = compared(lay(tmp_path / "a"), lay(tmp_path / "b", **changes))
    (warning,) = found["warnings"]
    assert told in warning and f"Beware: {warning}" in shown(found, 500)


# What was measured -------------------------------------------------------------------------------


def test_the_summaries_stand_side_by_side(tmp_path):
    first = lay(tmp_path, 0, nll=30.5, nll_se=0.5, kl=2.0, verdict="read")
    other = lay(tmp_path, 1, nll=31.75, nll_se=0.75, kl=None, verdict="collapsed")
    found = compared(first, other)
    test = found["summary"]["test"]
    assert test["nll"] == {"values": [30.5, 31.75], "differences": [1.25], "notes": [None, None]}
    assert test["kl"] == {"values": [2.0, None], "differences": [None], "notes": [None, "so it is"]}
    assert test["nll_se"]["differences"] == test["verdict"]["differences"] == [None]
    assert test["nll_sentences"]["differences"] == [0.0]
    text = shown(found).split("\n")
    assert ["nll", "30.500", "31.750", "+1.250"] in [line.split() for line in text]
    assert "Null in B (so it is): kl." in text


def test_sentences_are_paired_by_their_index(tmp_path):
    # kl: 1, 1, 2, 2 more; nll: 1, 0, 2, 1 more, and one sentence that only the second has measured
    other = {"index": [3, 2, 1, 0, 7], "length": [5] * 5, "nll": [5.0, 5.0, 2.0, 2.0, 9.0]}
    other |= {"kl": [2.0, 2.0, 1.0, 1.0, 9.0]}
    found = compared(lay(tmp_path, 0), lay(tmp_path, 1, sentences=other))
    (pair,) = found["sentences"]
    assert pair["runs"] == ["B", "A"] and pair["why"] is None
    t = 3.182446305  # of three degrees of freedom, from a table
    half, se = t * math.sqrt(2 / 3 / 4), math.sqrt(2 / 3 / 4)
    nll = {"mean": 1.0, "se": se, "low": 1 - half, "high": 1 + half, "apart": False, "n": 4}
    assert pair["measures"]["nll"] == pytest.approx(nll)
    half, se = t * math.sqrt(1 / 3 / 4), math.sqrt(1 / 3 / 4)
    kl = {"mean": 1.5, "se": se, "low": 1.5 - half, "high": 1.5 + half, "apart": True, "n": 4}
    assert pair["measures"]["kl"] == pytest.approx(kl) and pair["measures"].keys() == {"kl", "nll"}
    lines = [line.split() for line in shown(found).split("\n")]
    assert ["nll,", "B", "-", "A", "+1", "0.408", "-0.299", "to", "+2.299", "inside", "4"] in lines


def test_what_was_not_measured_is_not_paired(tmp_path):
    nan = {"index": range(4), "nll": [math.nan, 2.0, math.nan, math.nan], "kl": KL}
    (pair,) = compared(lay(tmp_path, 0), lay(tmp_path, 1, sentences=nan, kl=None))["sentences"]
    alone = {"mean": None, "se": None, "low": None, "high": None, "apart": None, "n": 1}
    assert pair["measures"] == {"nll": alone}  # a KL of zeros that the summary does not own to


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"sentences": {}}, "sentences.npz is missing in B"),
        ({"provenance": {"data_hash": "f" * 64}}, "their data hashes do not say"),
    ],
)
def test_other_sentences_are_not_paired(changes, why, tmp_path):
    found = compared(lay(tmp_path, 0), lay(tmp_path, 1, **changes))
    assert found["sentences"][0]["measures"] == {} and why in found["sentences"][0]["why"]
    assert f"B and A are not paired by sentence, as {why}" in shown(found, 200)


def test_identical_runs_do_not_differ(tmp_path):
    found = compared(lay(tmp_path / "a"), lay(tmp_path / "b"))
    assert found["sentences"][0]["measures"]["nll"]["apart"] is False
    assert found["config"] == found["aside"] == found["provenance"] == {}
    assert "differs: nothing" in shown(found)


def test_curves_are_compared_at_the_steps_that_all_have(tmp_path):
    first = lay(tmp_path, 0, trail={10: {"nll": 4.0, "kl": None}, 20: {"nll": 3.0, "kl": None}})
    other = lay(tmp_path, 1, trail={15: {"nll": 9.0}, 20: {"nll": 2.5, "kl": 1.0, "rec": 7.0}})
    curves = compared(first, other)["curves"]
    assert curves == {"steps": [20], "metrics": {"nll": [[3.0], [2.5]], "kl": [[None], [1.0]]}}
    apart = compared(lay(tmp_path, 2, trail={11: {"nll": 1.0}}), other)
    assert "no step at which all runs were validated" in shown(apart)


def test_costs_are_told_as_ratios(tmp_path):
    other = lay(tmp_path, 1, cost={"train_seconds": 25.0, "steps": None})
    found = compared(lay(tmp_path, 0), other)
    assert found["cost"] == {"train_seconds": [10.0, 25.0], "steps": [30, None]}
    lines = [line.split() for line in shown(found).split("\n")]
    assert ["train_seconds", "10", "25", "2.50"] in lines and ["steps", "30", "-", "-"] in lines


def test_no_number_is_folded_in_80_columns(tmp_path):
    found = compared(*(lay(tmp_path, i, nll=nll) for i, nll in enumerate((31.25, 132.5, -33.75))))
    text = shown(found, 80)
    assert max(map(len, text.split("\n"))) <= 80 and "…" not in text
    rows = [line.split() for line in text.split("\n")]
    assert ["nll", "31.250", "132.500", "-33.750", "+101.250", "-65"] in rows


def test_of_a_curve_the_first_the_last_and_what_lies_evenly_between_is_shown(tmp_path):
    trails = [{10 * i: {"nll": sign * i / 8} for i in range(1, 12)} for sign in (1, -1)]
    found = compared(*(lay(tmp_path, i, trail=trail) for i, trail in enumerate(trails)))
    text = shown(found)
    rows = [line.split() for line in text.split("\n")]
    assert ["valid", "at", "step", "10", "30", "50", "70", "90", "110"] in rows
    assert ["nll", "B", "-0.125", "-0.375", "-0.625", "-0.875", "-1.125", "-1.375"] in rows
    assert "6 of the 11 steps that all have" in text
    trails = [{10 * i: {"nll": 1.0 + j} for i in range(1, 13)} for j in range(2)]
    text = shown(compared(*(lay(tmp_path / "12", i, trail=t) for i, t in enumerate(trails))))
    # of 0 to 11 in steps of 2.2 the nearest: 0, 2, 4, 7, 9, 11
    rows = [line.split() for line in text.split("\n")]
    assert ["valid", "at", "step", "10", "30", "50", "80", "100", "120"] in rows


def test_a_record_cannot_steer_the_terminal(tmp_path):
    path = lay(tmp_path, 0, variant="plain \x1b[2Jx", config={"method": {"word": "\x1b[31m"}})
    assert "\x1b" not in shown(compared(path, lay(tmp_path, 1)))


# Published runs ----------------------------------------------------------------------------------


def published(method: str, seed: int = 0) -> Path:
    (path,) = (  # of the default budget, as others are there too
        path
        for path in PUBLISHED.glob(f"{method}/*/s{seed}")
        if "\n  epochs: 10.0\n" in (path / "config.yaml").read_text()
    )
    return path


def test_a_model_without_a_latent_against_one_that_has_one():
    found = compared(published("lm"), published("kl_annealing"))
    test, (pair,) = found["summary"]["test"], found["sentences"]
    assert found["config"]["method.name"] == ["lm", "kl_annealing"] and found["warnings"] == []
    assert pair["measures"].keys() == {"nll", "neg_elbo"}
    for name, measured in pair["measures"].items():  # all sentences count in both
        assert measured["mean"] == pytest.approx(test[name]["differences"][0])
        assert measured["n"] == 1000 and measured["apart"]
    assert "no latent variable" in test["mi"]["notes"][0] and test["mi"]["notes"][1] is None
    assert found["curves"]["steps"] == [*range(250, 2501, 250)]
    assert [*found["curves"]["metrics"]] == [*CURVES]


def test_two_seeds_of_one_variant():
    found = compared(published("vae"), published("vae", 1))
    assert found["config"] == {"seed": [0, 1]} and found["warnings"] == []
    assert [run["name"] for run in found["runs"]] == [
        "vae on synthetic, seed 0",
        "vae on synthetic, seed 1",
    ]


# The command -------------------------------------------------------------------------------------


def test_a_figure_is_written_as_each_kind_of_file(tmp_path):
    runs = [str(lay(tmp_path, 0, variant="plain a<b")), str(lay(tmp_path, 1))]
    outs = [tmp_path / "new" / f"curves{suffix}" for suffix in compare.FORMATS]
    for out in outs:
        assert compare.main([*runs, "--out", str(out)]) == 0
    svg, png, pdf = before = [out.read_bytes() for out in outs]
    words = " ".join(ElementTree.fromstring(svg).itertext())
    assert "A  plain a<b on toy, seed 0" in words and "B  plain on toy, seed 1" in words
    assert "nll" in words and png[:4] == b"\x89PNG" and pdf[:4] == b"%PDF"
    assert b"CreationDate" not in pdf
    for out in outs:
        assert compare.main([*runs, f"--out={out}"]) == 0
    assert [out.read_bytes() for out in outs] == before


def test_a_figure_has_every_step_of_each_run(tmp_path):
    trails = [{10: {"nll": 4.0}, 20: {"nll": 3.0}}, {15: {"nll": 2.5, "kl": 1.0}}]
    paths = [lay(tmp_path, i, trail=trail) for i, trail in enumerate(trails)]
    sides = [read(path, letter) for path, letter in zip(paths, "AB", strict=True)]
    nll, kl = draw(sides).axes
    lines = [np.asarray(line.get_xydata()).tolist() for line in nll.lines]
    assert lines == [[[10, 4.0], [20, 3.0]], [[10, 4.0]], [[15, 2.5]], []]  # and what was selected
    lines = [np.asarray(line.get_xydata()).tolist() for line in kl.lines]
    assert lines == [[], [], [[15, 1.0]], []]


def test_json_is_one_object(tmp_path, capsys):
    runs = [lay(tmp_path, 0), lay(tmp_path, 1)]
    out = tmp_path / "curves.svg"
    assert compare.main([*map(str, runs), "--json", "--out", str(out)]) == 0
    assert json.loads(capsys.readouterr().out) == compared(*runs) and out.exists()


def test_a_run_is_found_by_the_beginning_of_its_path(tmp_path):
    one, two = lay(tmp_path / "a", 1), lay(tmp_path / "ab", 10)
    assert compare.find(f"{tmp_path}/a/toy/pl") == compare.find(f"{tmp_path}/a") == one
    assert compare.find(f"{tmp_path}/ab/toy/plain/0123") == compare.find(str(two)) == two
    for word, told in ((f"{two.parent}/s1", "is no run"), (f"{tmp_path}/a*", "is no run")):
        with pytest.raises(compare.UserError, match=told):
            compare.find(word)
    lay(tmp_path / "ab", 11)
    with pytest.raises(compare.UserError, match=f"names 2 runs: name one of them, as {two}"):
        compare.find(f"{tmp_path}/ab/toy")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{0}"], "name 2 to 12 runs, not 1"),
        (["{0}"] * 13, "name 2 to 12 runs, not 13"),
        (["{0}", "{1}/nothing"], "is no run directory"),
        (["{0}", "{1}/running/t"], "is running: name a run that is done"),
        (["{0}", "{1}/r/toy", "--all"], "unrecognized arguments: --all; --help tells"),
        (["{0}", "{1}/running", "--out"], "argument --out: expected one argument"),
        (["{0}", "{1}/running", "--out=a.html"], "--out is followed by a file that ends in .svg"),
    ],
)
def test_a_wrong_word_is_told(words, told, tmp_path, capsys):
    first = lay(tmp_path / "r")
    lay(tmp_path / "running", status="running")
    assert compare.main([word.format(first, tmp_path) for word in words]) == 1
    streams = capsys.readouterr()
    assert told in streams.err and streams.err.count("\n") == 1 and streams.out == ""


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("run.json", "{", "run.json is damaged"),
        ("config.yaml", "seed: [", "config.yaml, line"),
        ("config.yaml", None, "s1/config.yaml'"),
        ("metrics.jsonl", "{\n{}\n", "metrics.jsonl, line 1 is damaged"),
        ("metrics.jsonl", None, "s1/metrics.jsonl'"),
        ("sentences.npz", "PK\3\4", "sentences.npz is damaged"),
        ("sentences.npz", "", "sentences.npz is damaged"),
    ],
)
def test_a_damaged_run_is_told(name, content, told, tmp_path, capsys):
    paths = [lay(tmp_path, 0), lay(tmp_path, 1)]
    (paths[1] / name).unlink()
    if content is not None:
        (paths[1] / name).write_text(content)
    assert compare.main([*map(str, paths)]) == 1
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1


def test_neither_help_nor_comparing_needs_torch_or_pandas():
    runs = [str(published("vae")), str(published("lm"))]
    for words in (["--help"], runs):
        asked = f"import sys; from benchmark import compare; assert compare.main({words}) == 0"
        code = f"{asked}; assert not {{'torch', 'pandas', 'matplotlib'}} & {{*sys.modules}}"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
