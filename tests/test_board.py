"""What the board says of runs written by hand, and the files it is written to."""

import math
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
import pytest

from leaderboard.__main__ import main
from leaderboard.board import Board, boards
from leaderboard.load import load_cells
from leaderboard.report import UNIQUE, measurements
from tests.test_leaderboard import write

N = 200  # sentences
LEVEL = np.random.default_rng(0).normal(30, 5, N)  # how hard each is, for every method


def run(results: Path, method: str, seed: int, nll: float, **measures) -> None:
    """A finished cell of a method, whose sentences differ from others' by a constant and a bit."""
    noise = np.random.default_rng([seed, *method.encode()]).normal(0, 0.5, N)
    measures = {"nll": nll, "nll_half": nll, "khat_bad": 0.0} | measures
    if method.startswith("lm"):
        measures |= {"latent": "none", "verdict": "none"}
    identity = f"{crc32(method.encode()):012x}"
    done = write(results, method.split()[0], seed, variant=method, identity=identity, **measures)
    with done.lease():
        done.save_npz("sentences.npz", nll=LEVEL + nll - 30 + noise - noise.mean())


def grid(results: Path, **nll: float) -> None:
    for method, level in nll.items():
        for seed in range(5):
            run(results, method, seed, level + 0.02 * seed)


def only(results: Path) -> Board:
    (found,) = boards(load_cells([results]))
    return found


def test_rows_are_told_apart_where_seeds_and_sentences_allow(tmp_path: Path):
    grid(tmp_path, vae=34.0, lm=34.0, free=32.0, word=36.0)
    board = only(tmp_path)
    rows = {row.name: row for row in board.rows}
    assert board.rows[0].name == "free" and rows["free"].best
    assert rows["vae"].groups == rows["lm"].groups and not rows["vae"].best
    assert len({rows[name].groups for name in ("free", "vae", "word")}) == 3
    assert {name: row.pays for name, row in rows.items()} == {
        **{"free": "pays", "vae": "free", "word": "costs", "lm": None}
    }
    assert rows["free"].versus_plain and rows["free"].versus_plain.mean == pytest.approx(-2)
    assert rows["free"].p < 0.05 < 1 and math.isnan(rows["vae"].p)


@pytest.mark.parametrize("why", [{"khat_bad": 0.2}, {"nll_half": 40.0}, {"latent": "sequence"}])
def test_what_the_estimates_do_not_carry_is_no_win(tmp_path: Path, why):
    for seed in range(5):
        run(tmp_path, "vae", seed, 34.0)
        run(tmp_path, "free", seed, 32.0, **why)
    rows = {row.name: row for row in only(tmp_path).rows}
    assert rows["free"].groups == rows["vae"].groups and not rows["free"].best


def test_a_method_is_set_against_its_placebo(tmp_path: Path):
    for seed in range(3):
        run(tmp_path, "free", seed, 32.0)
        run(tmp_path, "free placebo", seed, 33.5)
    rows = {row.name: row for row in only(tmp_path).rows}
    against = rows["free"].versus_placebo
    assert against and against.mean == pytest.approx(-1.5)
    assert rows["free placebo"].versus_placebo is None


def test_collapsed_seeds_are_counted_with_an_interval(tmp_path: Path):
    for seed in range(4):
        run(tmp_path, "vae", seed, 34.0, verdict="collapsed" if seed else "read")
        run(tmp_path, "lm", seed, 34.0)
    rows = {row.name: row for row in only(tmp_path).rows}
    k, n, low, high = rows["vae"].collapsed
    assert (k, n) == (3, 4) and low == pytest.approx(0.19412, abs=1e-5) and high < 1
    assert rows["lm"].collapsed[:2] == (0, 0)


def test_two_contents_are_two_boards(tmp_path: Path):
    run(tmp_path, "vae", 0, 34.0)
    run(tmp_path, "free", 0, 30.0)
    other = next((tmp_path / "toy/free").rglob("run.json"))
    other.write_text(other.read_text().replace('"data_hash": "h"', '"data_hash": "other-hash"'))
    found = {
        board.dataset: [row.name for row in board.rows] for board in boards(load_cells([tmp_path]))
    }
    assert found == {"toy (h)": ["vae"], "toy (other-)": ["free"]}


def test_unfinished_cells_are_in_the_counts_and_not_in_the_means(tmp_path: Path):
    run(tmp_path, "vae", 0, 34.0)
    identity = next(iter(only(tmp_path).rows)).id
    write(tmp_path, "vae", 1, status="failed", reason="out of memory", identity=identity)
    (row,) = only(tmp_path).rows
    assert row.states == {"done": 1, "failed": 1} and row.means["nll"] == (
        34.0,
        pytest.approx(math.nan, nan_ok=True),
    )


def test_the_files_tell_all_and_are_the_same_twice(tmp_path: Path, capsys):
    grid(tmp_path / "results", vae=34.0, free=32.0)
    write(tmp_path / "results", "broken", 7, status="failed", reason="a|b <i>*", identity="0" * 12)
    assert main([str(tmp_path / "results")]) == 0
    out = tmp_path / "results/leaderboard"
    text = (out / "RESULTS.md").read_text()
    assert "| **free** | 5 | 32.04 ± " in text
    assert r"broken seed 7: failed: a\|b \<i>\*" in text
    tidy = pd.read_parquet(out / "results.parquet")
    assert not tidy.duplicated(UNIQUE).any()
    assert len(tidy) == len(measurements(load_cells([tmp_path / "results"]))) > 0
    tex = (out / "table.tex").read_text()
    assert r"\textbf{free} & 5 & 32.04 $\pm$" in tex and tex.count("tabular") == 2
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main([str(tmp_path / "results"), "--out", str(tmp_path / "again")]) == 0
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}


def test_check_lists_what_is_not_to_be_trusted(tmp_path: Path, capsys):
    grid(tmp_path, vae=34.0)
    write(tmp_path, "broken", 1, status="failed", reason="out of memory", identity="0" * 12)
    torn = next((tmp_path / "toy/vae").rglob("s2/run.json"))
    torn.write_text(torn.read_text()[:50])
    assert main([str(tmp_path), "--check"]) == 1
    said = capsys.readouterr().out
    assert "s1: failed: out of memory" in said and "s2: damaged" in said
    assert "stale: of result version" in said  # written by hand, without one
    assert said.endswith("6 runs checked\n") and not (tmp_path / "leaderboard").exists()
