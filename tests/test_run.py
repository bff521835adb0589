"""A cell end to end, as a user starts it."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmark import record

SMALL = [
    "threads=1",
    "budget.epochs=null",
    "budget.evaluation.nll_samples=24",
    "budget.evaluation.nll_sentences=60",
    "budget.evaluation.valid_nll_sentences=30",
    "budget.evaluation.read_sentences=30",
    "budget.evaluation.valid_read_sentences=10",
]


def run(folder: Path, *overrides: str, check: bool = True) -> subprocess.CompletedProcess:
    """`python -m benchmark.run` from inside `folder`, with results and data below it."""
    return subprocess.run(
        [sys.executable, "-m", "benchmark.run", *overrides],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=check,
        timeout=280,
    )


def records(folder: Path) -> list[tuple[record.RunDirectory, dict]]:
    return list(record.scan(folder / "results"))


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """A folder with a small cell each of the first methods."""
    folder = tmp_path_factory.mktemp("three")
    run(folder, "-m", "method=vae,lm,kl_annealing", *SMALL, "budget.steps=30")
    return folder


def test_every_cell_of_a_sweep_is_done_and_valid(three):
    found = records(three)
    assert {known["cell"]["method"] for _, known in found} == {"vae", "lm", "kl_annealing"}
    for directory, known in found:
        assert known["status"] == "done"
        assert record.validate(directory.path) == []
        assert known["selected_step"] == 30
        assert known["cost"]["steps"] == known["cost"]["backwards"] == 30
        assert known["provenance"]["data_hash"]
        slots = {"vae": [], "lm": ["model"], "kl_annealing": ["objective"]}
        assert known["provenance"]["slots"] == slots[known["cell"]["method"]]


def test_nothing_is_written_outside_results_and_data(three):
    assert {path.name for path in three.iterdir()} == {"results", "data"}


def test_the_summary_is_consistent(three):
    for _, known in records(three):
        for split in ("valid", "test"):
            found = known["summary"][split]
            kl = found["kl"] or 0.0
            assert found["neg_elbo"] == pytest.approx(found["rec"] + kl, rel=1e-9)
            assert found["elbo_gap"] > 0
            assert found["ppl"] == pytest.approx(math.exp(found["nll"] / 17), rel=1e-6)
        if known["cell"]["method"] == "lm":
            assert found["verdict"] == "none" and found["nll"] == found["neg_elbo"]
            assert "test/mi" in known["notes"]


def test_the_trail_holds_training_validation_and_test(three):
    for directory, _ in records(three):
        lines = record.read_metrics(directory.path / "metrics.jsonl")
        assert {(line["step"], line["split"]) for line in lines} == {
            (30, "train"),
            (30, "valid"),
            (30, "test"),
        }
        keys = [(n["split"], n["step"], n["metric"], n["estimator"]) for n in lines]
        assert len(keys) == len(set(keys))


def test_sentences_units_and_samples_are_kept(three):
    for directory, known in records(three):
        sentences = np.load(directory.path / "sentences.npz")
        assert len(sentences["neg_elbo"]) == 1000
        assert sentences["neg_elbo"].mean() == pytest.approx(
            known["summary"]["test"]["neg_elbo"], rel=1e-6
        )
        samples = (directory.path / "samples.jsonl").read_text().splitlines()
        kinds = {json.loads(line)["kind"] for line in samples}
        if known["cell"]["method"] == "lm":
            assert kinds == {"prior"}
            continue
        assert kinds == {"prior", "reconstruction", "interpolation"}
        units = np.load(directory.path / "units.npz")
        assert units["kl"].shape == (1, 8) and units["test_kl"].shape == (8,)
        assert units["test_kl"].sum() == pytest.approx(known["summary"]["test"]["kl"], rel=1e-5)


def test_only_the_selected_checkpoint_stays(three):
    for directory, _ in records(three):
        names = {path.name for path in (directory.path / "checkpoints").iterdir()}
        assert names == {"best.pt"}


def test_a_done_cell_returns_at_once_and_is_not_touched(three):
    directory = next(d for d, known in records(three) if known["cell"]["method"] == "vae")
    before = {p: p.stat().st_mtime_ns for p in directory.path.rglob("*")}
    again = run(three, "method=vae", *SMALL, "budget.steps=30")
    assert "done already" in again.stdout
    assert before == {p: p.stat().st_mtime_ns for p in directory.path.rglob("*")}


def test_a_done_cell_does_not_answer_for_other_data(tmp_path):
    words = ["dataset=text", "budget=smoke", *SMALL, "budget.steps=2", "model.hidden=8"]
    for name, text in (("first", "a b c\nb a\n"), ("second", "d e f\ne d\n")):
        (tmp_path / name).mkdir()
        for split in ("train", "valid", "test"):
            (tmp_path / name / f"{split}.txt").write_text(text * 8)
    run(tmp_path, *words, "dataset.path=first")
    assert "done already" in run(tmp_path, *words, "dataset.path=first").stdout
    refused = run(tmp_path, *words, "dataset.path=second", check=False)
    assert refused.returncode != 0 and "dataset.name=WORD" in refused.stderr
    run(tmp_path, *words, "dataset.path=second", "dataset.name=second")
    assert len(records(tmp_path)) == 2


def test_bucketed_batches_train_the_same_model_to_about_the_same_loss(tmp_path, shared_data):
    """On text of unequal lengths; the two differ in what stands in a batch, and are two cells."""
    for batching in ("exact", "bucketed"):
        run(
            tmp_path,
            "dataset=snli",
            f"dataset.path={shared_data / 'snli'}",
            "budget=smoke",
            f"batching={batching}",
            *SMALL,
            "budget.steps=60",
            "model.embedding=32",
            "model.hidden=32",
        )
    first, second = (known for _, known in records(tmp_path))
    assert first["cell"]["id"] != second["cell"]["id"]
    losses = [known["summary"]["test"]["neg_elbo"] for known in (first, second)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_real_text_end_to_end(tmp_path, shared_data):
    done = run(
        tmp_path,
        "dataset=ptb",
        f"dataset.path={shared_data / 'ptb'}",
        "budget=smoke",
        *SMALL,
        "budget.steps=25",
        "model.embedding=16",
        "model.hidden=16",
    )
    assert "verdict" in done.stdout
    ((directory, known),) = records(tmp_path)
    assert record.validate(directory.path) == []
    found = known["summary"]["test"]
    assert found["mi_n"] == 3761 and found["z_gain_n"] > 3700
    assert found["ppl"] == pytest.approx(math.exp(found["nll"] * 3761 / 82430), rel=1e-6)


def gap_and_mi(folder: Path, method: str, seed: int) -> tuple[dict, float]:
    run(folder, f"method={method}", f"seed={seed}", "threads=1", "results_dir=results")
    known = next(
        known
        for _, known in records(folder)
        if known["cell"]["method"] == method and known["cell"]["seed"] == seed
    )
    return known["summary"]["test"], known["cost"]["train_seconds"]


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (1, 2))]
)
def test_the_plain_vae_collapses_and_annealing_prevents_what_it_costs(tmp_path, seed):
    plain, _ = gap_and_mi(tmp_path, "vae", seed)
    annealed, _ = gap_and_mi(tmp_path, "kl_annealing", seed)
    assert plain["kl"] < 0.05 and plain["verdict"] == "collapsed"
    assert annealed["nll"] < plain["nll"] - 0.5
    assert 1.4 < annealed["mi"] < math.log(8) and annealed["verdict"] == "read"
