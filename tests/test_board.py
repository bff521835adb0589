"""What the board says of runs written by hand, and the files it is written to."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
import pytest

from leaderboard import page
from leaderboard.__main__ import main
from leaderboard.board import Board, _letter, boards, overall
from leaderboard.inference import interquartile_mean, stratified_bootstrap
from leaderboard.load import load_cells
from leaderboard.report import UNIQUE, markdown, measurements, tex
from tests.records import MODEL, UNITS, WRITTEN, full, lay
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


def test_each_kind_of_latent_has_ties_of_its_own(tmp_path: Path):
    """With the rows that have none, which are compared with all."""
    for seed in range(5):
        run(tmp_path, "lm", seed, 34.0)
        run(tmp_path, "vae", seed, 34.0)
        run(tmp_path, "free", seed, 32.0)
        run(tmp_path, "path", seed, 30.0, latent="sequence")
        run(tmp_path, "walk", seed, 34.0, latent="sequence")
    rows = {row.name: set(row.groups) for row in only(tmp_path).rows}
    assert rows["vae"] & rows["lm"] and rows["walk"] & rows["lm"]
    assert not (rows["vae"] | rows["free"]) & (rows["walk"] | rows["path"])
    assert not rows["free"] & rows["lm"] and not rows["path"] & rows["lm"]
    assert {row.name for row in only(tmp_path).rows if row.best} == {"free", "path"}


def test_a_row_without_latents_is_best_if_no_kind_has_a_better(tmp_path: Path):
    for seed in range(5):
        run(tmp_path, "lm", seed, 31.0)
        run(tmp_path, "free", seed, 32.0)
        run(tmp_path, "path", seed, 33.0, latent="sequence")
    assert [row.name for row in only(tmp_path).rows if row.best] == ["lm"]
    for seed in range(5):
        run(tmp_path, "walk", seed, 30.0, latent="sequence")
    assert [row.name for row in only(tmp_path).rows if row.best] == ["walk"]


@pytest.mark.parametrize("why", [{"khat_bad": 0.2}, {"nll_half": 40.0}])
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
    tell(next((tmp_path / "toy/free").rglob("run.json")), data_hash="other-hash")
    found = {
        board.dataset: [row.name for row in board.rows] for board in boards(load_cells([tmp_path]))
    }
    assert found == {"toy (h)": ["vae"], "toy (other-)": ["free"]}


def test_the_seeds_of_a_variant_are_on_the_board_of_their_own_content(tmp_path: Path):
    """And one that has not told its content where most of its variant's are."""
    for seed in range(5):
        run(tmp_path, "vae", seed, 34.0 - 10 * (seed > 2))
    for seed in (3, 4):
        tell(next(tmp_path.glob(f"toy/vae/*/s{seed}/run.json")), data_hash="other-hash")
    identity = next(tmp_path.glob("toy/vae/*")).name
    waits = write(tmp_path, "vae", 5, status="queued", identity=identity)
    tell(waits.path / "run.json", data_hash=None)
    for seed in range(4):  # of the other content there are more runs, but not of this variant
        run(tmp_path, "free", seed, 30.0)
        tell(next(tmp_path.glob(f"toy/free/*/s{seed}/run.json")), data_hash="other-hash")
    found = {board.dataset: board.rows for board in boards(load_cells([tmp_path]))}
    rows = {(name, row.name): row for name, rows in found.items() for row in rows}
    ours, theirs = rows.pop(("toy (h)", "vae")), rows.pop(("toy (other-)", "vae"))
    assert [*rows] == [("toy (other-)", "free")]
    assert ({*ours.seeds}, {*theirs.seeds}) == ({0, 1, 2}, {3, 4})
    assert ours.means["nll"] == (34.0, 0.0)
    assert (len(ours.cells), len(theirs.cells)) == (4, 2)


def test_a_row_without_a_likelihood_says_so_and_a_board_without_runs_comes_last(tmp_path: Path):
    grid(tmp_path, lm=34.0, free=33.0)
    for seed in range(5):
        write(tmp_path, "implicit", seed, nll=None, identity="a" * 12)
    write(tmp_path, "late", 0, status="queued", identity="b" * 12)
    write(tmp_path, "vae", 0, status="queued", dataset="a_first", identity="c" * 12)
    found = boards(load_cells([tmp_path]))
    assert [board.dataset for board in found] == ["toy", "a_first"]
    why = {row.name: row.why_not for row in found[0].rows}
    assert why["implicit"] == "there is no likelihood to compare" and why["late"] == ""


def test_two_budgets_are_two_boards(tmp_path: Path):
    """The larger budget is no variant that a search found, nor a row to tie with."""
    for method, steps, seeds in (("vae", 10, 2), ("free", 10, 2), ("vae", 40, 1)):
        for seed in range(seeds):
            at = write(tmp_path, method, seed, nll=34.0, identity=f"{steps:012d}").path
            text = f"budget:\n  name: own\n  epochs: {steps}\nseed: {seed}\n"
            (at / "config.yaml").write_text(text)
    write(tmp_path, "free", 7, status="failed", reason="full", identity="f" * 12)
    (tmp_path / "toy/free" / ("f" * 12) / "s7/config.yaml").write_text("nothing\n")
    main, other = boards(load_cells([tmp_path]))
    assert (main.dataset, other.dataset) == ("toy", "toy, own, 40 epochs")
    assert [(row.method, len(row.cells)) for row in main.rows] == [
        ("free", 2),
        ("vae", 2),
        ("free", 1),
    ]
    assert [(row.name, len(row.cells)) for row in other.rows] == [("vae", 1)]
    assert main.others == [other] and other.others == []
    assert {choice.method: choice.tried for choice in main.methods} == {"free": 1, "vae": 1}


def test_another_model_or_measurement_is_another_board(tmp_path: Path):
    """Only a method's own options are its variants; and what has run comes before what is to."""

    def lay(settings: str, seeds: int, identity: str, status: str = "done", **changes):
        for seed in range(seeds):
            at = write(tmp_path, "vae", seed, status=status, identity=identity, **changes).path
            (at / "config.yaml").write_text(f"{settings}seed: {seed}\n")

    old, samples = "model: {latent: 8}\n", "budget: {{name: own, {}evaluation: {{samples: {}}}}}\n"
    ten = "epochs: 10, steps: null, "
    lay(old + samples.format(ten, 500), 3, "a" * 12, nll=34.0)
    # more records than these change no result
    lay(old + samples.format(ten, "500, every: 9"), 1, "f" * 12, nll=34.0)
    # an older file, which lacks an option that came since
    lay("model: {}\n" + samples.format("epochs: 10, ", 500), 2, "b" * 12, nll=34.0)
    lay("model: {latent: 9}\n" + samples.format("epochs: 10, ", 500), 1, "c" * 12, nll=33.0)
    lay(old + samples.format("epochs: 10, ", 4), 1, "d" * 12, nll=33.0)
    lay(old + samples.format("epochs: null, steps: 50, ", 500), 9, "e" * 12, "queued")
    lay("batching: bucketed\n" + samples.format(ten, 500), 1, "1" * 12, nll=33.0)
    lay("precision: bf16\n" + samples.format(ten, 500), 1, "2" * 12, nll=33.0)
    lay(
        "batching: exact\nprecision: fp32\n" + old + samples.format(ten, 500), 2, "3" * 12, nll=35.0
    )
    main, *others = boards(load_cells([tmp_path]))
    assert main.dataset == "toy" and sorted(row.id[0] for row in main.rows) == ["3", "a", "b", "f"]
    assert {board.dataset: board.rows[0].id[0] for board in others} == {
        "toy, batching=bucketed": "1",
        "toy, precision=bf16": "2",
        "toy, model.latent=9": "c",
        "toy, budget.evaluation.samples=4": "d",
        "toy, own, 50 steps": "e",
    }
    assert {id(board) for board in main.others} == {id(board) for board in others}


def test_the_papers_recipes_are_one_board(tmp_path: Path):
    """Each method's optimiser is its own there; how long and how it is measured is not."""
    budgets = {
        "vae": "epochs: 100, clip: 5.0, halving: {patience: 2}",
        "free": "epochs: 100, clip: 0.25, halving: null",
        "short": "epochs: 30, clip: 5.0, halving: {patience: 2}",
    }
    budgets = {method: f"name: paper, {budget}, " for method, budget in budgets.items()}
    budgets["few"], budgets["usual"] = budgets["vae"], "name: default, epochs: 10, "

    def lay(method: str, seeds: int, samples: int = 500) -> None:
        budget = f"{budgets[method]}evaluation: {{samples: {samples}}}"
        for seed in range(seeds):
            at = write(tmp_path, method, seed, identity=f"{len(method):012d}", nll=34.0).path
            (at / "config.yaml").write_text(f"budget: {{{budget}}}\n")

    def found() -> dict[str, set[str]]:
        tables = boards(load_cells([tmp_path]))
        return {board.dataset: {row.method for row in board.rows} for board in tables}

    lay("vae", 3), lay("free", 3), lay("short", 2), lay("few", 1, samples=4)
    assert found() == {
        "toy": {"vae", "free"},
        "toy, budget.epochs=30": {"short"},
        "toy, budget.evaluation.samples=4": {"few"},
    }
    lay("usual", 9)  # by which the others are named, each by what it is
    assert found() == {
        "toy": {"usual"},
        "toy, paper, budget.epochs=100": {"vae", "free"},
        "toy, paper, budget.epochs=30": {"short"},
        "toy, paper, budget.epochs=100, budget.evaluation.samples=4": {"few"},
    }


def test_only_the_most_run_setting_stands_for_a_data_set(tmp_path: Path):
    """In the comparison across data sets."""
    for dataset in ("toy", "zoo"):
        for method, epochs, seeds in (("vae", 10, 2), ("free", 10, 2), ("vae", 40, 1)):
            for seed in range(seeds):
                about = {"dataset": dataset, "nll": 30.0 + seed, "ppl": 9.0}
                at = write(tmp_path, method, seed, identity=f"{epochs:012d}", **about).path
                (at / "config.yaml").write_text(f"budget: {{name: own, epochs: {epochs}}}\n")
    found = overall(boards(load_cells([tmp_path])))
    assert found is not None and found.datasets == ["toy", "zoo"]
    assert {row.name for row in found.rows} == {"vae", "free"} and found.left_out == {}


@pytest.mark.parametrize(
    ("budget", "size"),
    [
        ("{name: smoke, epochs: null, steps: 200}", "smoke, 200 steps"),
        ("{name: paper, epochs: 100, steps: null, halving: {patience: 2}}", "paper"),
        ("\n  name: own\n  epochs: 10\n  halving: null\nmodel: {}", "own, 10 epochs"),
        ("[1]", None),
        ("{", None),
    ],
)
def test_a_budget_is_told_by_its_name_and_size(tmp_path: Path, budget, size):
    at = write(tmp_path).path
    (at / "config.yaml").write_text(f"seed: 0\nbudget: {budget}\n")
    assert list(load_cells([tmp_path])["budget"]) == [size]


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
    assert r"broken seed 7: failed, a\|b \<i>\*" in text
    tidy = pd.read_parquet(out / "results.parquet")
    assert not tidy.duplicated(UNIQUE).any()
    assert len(tidy) == len(measurements(load_cells([tmp_path / "results"]))) > 0
    tex = (out / "table.tex").read_text()
    assert r"\textbf{free} & 5 & 32.04 $\pm$" in tex and tex.count("tabular") == 2
    assert main([str(tmp_path / "results"), "--out", str(tmp_path / "again")]) == 0
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in (out, tmp_path / "again")
    )
    assert first == second and len(first) >= 3


def tell(path: Path, part: str = "provenance", **words) -> None:
    """Let a record say something else of where it comes from, or in another of its parts."""
    known = json.loads(path.read_text())
    known[part] |= words
    path.write_text(json.dumps(known))


def outdate(path: Path) -> None:
    """Make a record one of an older version of the code."""
    tell(path, result_version=0)


def test_rows_of_an_older_version_are_marked(tmp_path: Path):
    """And told apart from none: the lower NLL is not bold."""
    grid(tmp_path / "r", vae=34.0, free=32.0)
    outdate(next((tmp_path / "r/toy/free").rglob("s1/run.json")))
    assert main([str(tmp_path / "r"), "--out", str(tmp_path)]) == 0
    text, tex_ = ((tmp_path / name).read_text() for name in ("RESULTS.md", "table.tex"))
    assert "| free (stale) |" in text and "| vae |" in text and text.count("(stale)") == 1
    assert tex_.count("(stale)") == 1
    assert (tmp_path / "index.html").read_text().count('<span class="quiet">stale</span>') == 1


def test_a_row_of_an_older_version_takes_part_in_nothing(tmp_path: Path):
    for dataset in ("toy", "zoo"):
        for method in ("vae", "lm", "free"):
            for seed in range(3):
                run(tmp_path, method, seed, 34.0 + 0.02 * seed, dataset=dataset, ppl=9.0)
    for path in tmp_path.glob("*/free/*/s*/run.json"):
        outdate(path)
    found = boards(load_cells([tmp_path]))
    for board in found:
        free = board.row("free")
        assert free is not None and free.stale and free.groups == "" and not free.best
        assert not any(row.apart(free) or free.apart(row) for row in board.rows)
        assert {each.method for each in board.methods} == {"vae", "lm"}
    across = overall(found)
    assert across is not None and {row.name for row in across.rows} == {"vae", "lm"}
    for path in tmp_path.glob("*/*/*/s*/run.json"):
        outdate(path)
    (board, _) = boards(load_cells([tmp_path]))
    assert page._story(board) == ["Every run is of older code, and stale."]
    assert overall([board]) is None


def test_check_lists_what_is_not_to_be_trusted(tmp_path: Path, capsys):
    grid(tmp_path, vae=34.0)
    write(tmp_path, "broken", 1, status="failed", reason="out of memory", identity="0" * 12)
    torn = next((tmp_path / "toy/vae").rglob("s2/run.json"))
    torn.write_text(torn.read_text()[:50])
    outdate(next((tmp_path / "toy/vae").rglob("s3/run.json")))
    assert main([str(tmp_path), "--check"]) == 1
    said = capsys.readouterr().out
    assert "s1: failed: out of memory" in said and "s2: damaged" in said
    assert "s3: stale: of result version 0, this code's is" in said
    assert said.count("stale") == 1
    assert said.endswith("6 runs checked\n") and not (tmp_path / "leaderboard").exists()


# -- the variants of a method ----------------------------------------------------------------------


def variant(
    results: Path,
    name: str,
    test: Sequence[float],
    valid: Sequence[float] | None = None,
    **measures,
) -> None:
    """A cell a seed with these NLLs; infinite is diverged."""
    identity = f"{crc32(name.encode()):012x}"
    for seed, nll in enumerate(test):
        status = "diverged" if nll == math.inf else "done"
        known = {"nll": nll, "nll_half": nll, "khat_bad": 0.0} if status == "done" else {}
        write(
            *(results, name.split()[0], seed, status),
            reason="not finite" if status == "diverged" else None,
            variant=name,
            identity=identity,
            valid=(valid or test)[seed],
            **known,
            **measures,
        )


def test_a_variant_is_chosen_on_some_seeds_and_reported_on_others(tmp_path: Path):
    # lucky wins validation on seeds 0 to 2, and so is reported, on 3 to 5: (34 + 35 + 36) / 3;
    # on all seeds it is steady that validation and test would choose
    variant(tmp_path, "free lucky=1", [30, 30, 30, 34, 35, 36], [30, 30, 30, 36, 36, 36])
    variant(tmp_path, "free steady=1", [32, 32, 32, 32, 32, 32], [31, 31, 31, 31, 31, 31])
    variant(tmp_path, "free steady=1 placebo", [1, 1, 1, 1, 1, 1])
    variant(tmp_path, "vae", [33, 34, 35])
    plain, free = only(tmp_path).methods
    assert (free.method, free.name, free.tried) == ("free", "free lucky=1", 2)
    assert (free.chosen_on, free.seeds, free.note) == ((0, 1, 2), (3, 4, 5), "")
    assert free.nll == (35.0, pytest.approx(4.302653 / 3**0.5, abs=1e-6))
    # validation means 33 and 31: one of the two by chance 32, the better of both 31
    assert free.curve == pytest.approx((32, 31))
    assert (plain.method, plain.name, plain.tried, plain.chosen_on) == ("vae", "vae", 1, ())
    assert plain.seeds == (0, 1, 2) and plain.nll[0] == 34 and plain.curve == (34,)


def test_a_variant_that_diverged_is_infinitely_bad(tmp_path: Path):
    variant(tmp_path, "free lucky=1", [math.inf, 30, 30, 30, 30, 30])
    variant(tmp_path, "free steady=1", [32, 32, 32, 32, 33, math.inf])
    (free,) = only(tmp_path).methods
    assert free.name == "free steady=1" and free.nll[0] == math.inf and free.tried == 2
    assert free.curve == (math.inf, math.inf)


def test_methods_are_compared_at_equal_rate(tmp_path: Path):
    variant(tmp_path, "free kl=1", [40, 42], kl=1.0)
    variant(tmp_path, "free kl=3", [36, 38], kl=3.0)
    variant(tmp_path, "free kl=9 placebo", [0, 0], kl=9.0)
    variant(tmp_path, "word a=1", [50], kl=0.0)
    variant(tmp_path, "word a=2", [30], kl=8.0)
    variant(tmp_path, "vae", [50], kl=0.0)
    found = only(tmp_path).at_rates
    nan = pytest.approx(math.nan, nan_ok=True)
    assert found == {  # free: 41 at 1 nat and 37 at 3; word: 2.5 nats of NLL for one of rate
        "free": {0.5: nan, 1.0: 41.0, 2.0: 39.0, 4.0: nan, 8.0: nan},
        "word": {0.5: 48.75, 1.0: 47.5, 2.0: 45.0, 4.0: 40.0, 8.0: 30.0},
    }


def test_rows_are_compared_at_equal_cost(tmp_path: Path):
    """The quick method is ahead after 15 s, the most it has spent, and behind after as many
    backwards: of the three seeds one stops at 14 s, one has its last validation too late."""
    for seed, end in enumerate((14.0, 15.0, 16.0)):
        quick = [
            (5.0, 100, 36.0 + seed),
            (10.0, 200, 33.0 + seed),
            (end, 300, 34.0 - 4 * (end > 15)),
        ]
        slow = [(10.0, 100, 39.0 + seed), (20.0, 200, 30.0), (30.0, 300, 25.0)]
        write(tmp_path, "quick", seed, identity="1" * 12, trail=quick)
        write(tmp_path, "slow", seed, identity="2" * 12, trail=slow)
    write(tmp_path, "slower", identity="3" * 12, trail=[(20.0, 300, 10.0)])
    write(tmp_path, "failed", status="failed", identity="4" * 12, trail=[(1.0, 1, 1.0)])
    cells = load_cells([tmp_path])
    (board,) = boards(cells, measurements(cells))
    by_time, by_work = board.equal["seconds"], board.equal["backwards"]
    assert (by_time.cost, list(by_time.nll)) == (15.0, ["quick", "slow", "slower"])
    half = 4.302653 / 3**0.5
    # quick: the best of each, not the last: 33, 34, 35
    assert by_time.nll["quick"] == (pytest.approx(34.0), pytest.approx(half, abs=1e-6))
    assert by_time.nll["slow"] == (pytest.approx(40.0), pytest.approx(half, abs=1e-6))
    assert math.isnan(by_time.nll["slower"][0])  # has not validated by then
    assert (by_work.cost, list(by_work.nll)) == (300.0, ["slower", "slow", "quick"])
    assert by_work.nll["slow"][0] == 25.0 and by_work.nll["quick"][0] == pytest.approx(97 / 3)
    assert boards(cells)[0].equal == {}


# -- across data sets ------------------------------------------------------------------------------


def test_variants_are_compared_across_data_sets(tmp_path: Path):
    """Two data sets of 10 and 20 tokens a sentence, three seeds each."""
    for dataset, tokens in (("long", 20), ("short", 10)):

        def add(method, seed, nll, dataset=dataset, tokens=tokens, **measures):
            variant_id = f"{crc32((method + dataset).encode()):012x}"
            known = {"ppl": math.exp(nll / tokens), "nll": nll, "nll_half": nll, "khat_bad": 0.0}
            status = measures.pop("status", "done")
            values = known | measures if status == "done" else {}
            write(tmp_path, method, seed, status, "x", method, variant_id, dataset, **values)

        for seed, gain in enumerate([-1, 2, 4] if dataset == "long" else [1, 2, 3]):
            add("vae", seed, 30.0 + seed)
            add("free", seed, 30.0 + seed - gain)
            add("lm", seed, 30.0 + seed - 2, latent="none", verdict="none")
        add("free", 3, 1.0)  # no vae of this seed
        add("unstable", 0, 29.0)
        add("unstable", 1, math.inf, status="diverged")
    add("lonely", 0, 1.0)
    found = overall(boards(load_cells([tmp_path])))
    assert found and found.datasets == ["long", "short"]
    assert found.left_out == {"lonely": ["long"]}
    rows = {row.name: row for row in found.rows}
    # free: 1/20, -2/20, -4/20, -1/10, -2/10, -3/10: without the lowest and the highest
    free = rows["free"]
    assert (free.runs, free.diverged) == (6, 0)
    assert free.mean == pytest.approx(-(0.2 + 0.2 + 0.1 + 0.1) / 4)
    low, high = free.interval
    assert low < free.mean < high and low >= -0.3 and high <= 0.05
    assert free.over_plain[0] == pytest.approx((2 / 3 + 1) / 2)  # by seed
    # lm: 28, 29, 30 on both; of free 31, 29, 28, 1 on long, 29, 29, 29, 1 on short; a tie is a half
    assert free.over_model[0] == pytest.approx(((0 + 1.5 + 2.5 + 3) / 12 + (3 * 1.5 + 3) / 12) / 2)
    assert free.profile == pytest.approx((5 / 6, 5 / 6, 5 / 6, 5 / 6, 5 / 6, 5 / 6, 1))
    assert free.carried == 2 and free.missing == {"long": [3], "short": [3]}
    bad = rows["unstable"]
    # 0: -0.05 and -0.1; 1: diverged. Of four the two in the middle: -0.05 and infinity
    assert (bad.runs, bad.diverged, bad.mean) == (4, 2, math.inf)
    assert bad.profile == pytest.approx((1 / 4, 1 / 2, 1 / 2, 1 / 2, 1 / 2, 1 / 2, 1 / 2))
    assert bad.missing == {"long": [2, 3], "short": [2, 3]}
    assert rows["vae"].mean == 0 and math.isnan(rows["vae"].over_plain[0])
    assert [row.name for row in found.rows[2:]] == ["vae", "unstable"]
    assert rows["lm"].mean == pytest.approx(-0.15) and rows["lm"].over_plain[0] == 1


def two_sets(results: Path, method: str, toy: Sequence[float], zoo: Sequence[float]) -> None:
    """A variant's NLLs by seed on two data sets, of ten tokens a sentence for the plain VAE."""
    for dataset, nlls in (("toy", toy), ("zoo", zoo)):
        for seed, nll in enumerate(nlls):
            run(results, method, seed, nll, dataset=dataset, ppl=math.exp(nll / 10))


def test_the_plain_vaes_noise_is_no_part_of_the_comparison_with_the_language_model(tmp_path: Path):
    """Every run is a nat better than any of lm, and the vae's seeds lie 20 nats apart."""
    for method, nlls in (("vae", [20, 30, 40]), ("free", [31, 31, 31]), ("lm", [32, 32, 32])):
        two_sets(tmp_path, method, nlls, nlls)
    found = overall(boards(load_cells([tmp_path])))
    rows = {row.name: row.over_model for row in found.rows} if found else {}
    assert rows["free"] == (1.0, 1.0, 1.0) and rows["vae"][0] == pytest.approx(2 / 3)
    assert math.isnan(rows["lm"][0])


def test_a_data_set_weighs_no_more_for_its_seeds(tmp_path: Path):
    """Nine seeds tie with the vae on one, and on the other one is better by a nat a token."""
    two_sets(tmp_path, "vae", [30] * 9, [30])
    two_sets(tmp_path, "free", [30] * 9, [20])
    found = overall(boards(load_cells([tmp_path])))
    (free, _) = found.rows if found else ()
    assert (free.name, free.runs, free.mean) == ("free", 10, pytest.approx(-0.5))
    assert free.interval == pytest.approx((-0.5, -0.5))


def test_the_interquartile_mean_weighs_data_sets_alike():
    # each weighs 1, and 2 scores of 10 are cut off on either side, 0.4: of 0 and 9 0.1 is left
    scores = [[9.0, 0.0], [5.0, 4.0, 4.0, 4.0, 5.0, 4.0, 5.0, 5.0]]
    assert interquartile_mean(scores) == pytest.approx(
        (0.1 * 0 + 0.5 * 4 + 0.5 * 5 + 0.1 * 9) / 1.2
    )
    assert interquartile_mean(scores[::-1]) == interquartile_mean(scores)
    # what is cut off may be infinite, and what is left
    assert interquartile_mean([[0.0] * 9, [math.inf]]) == math.inf
    assert interquartile_mean([[0.0] * 3, [0.0] * 8 + [math.inf] * 4]) == 0
    assert stratified_bootstrap([[0.0] * 9, [1.0]], interquartile_mean) == (0.5, 0.5)


def test_data_sets_are_compared_that_most_variants_share(tmp_path: Path):
    """Of three data sets vae and one more have all, six scores; two others have two: eight."""
    have = {"vae": "abc", "full": "abc", "most": "ab", "also": "ab", "one": "c"}
    for method, datasets in have.items():
        for name in datasets:
            identity = f"{crc32((method + name).encode()):012x}"
            write(tmp_path, method, dataset=name, identity=identity, nll=30.0, ppl=7.0)
    found = overall(boards(load_cells([tmp_path])))
    assert found and found.datasets == ["a", "b"]
    assert sorted(row.name for row in found.rows) == ["also", "full", "most", "vae"]
    assert found.left_out == {"one": ["a", "b"]}


def test_one_data_set_or_no_vae_is_nothing_to_compare_across(tmp_path: Path):
    run(tmp_path / "one", "vae", 0, 34.0, ppl=7.0)
    run(tmp_path / "one", "free", 0, 33.0)
    assert overall(boards(load_cells([tmp_path / "one"]))) is None
    for dataset in ("toy", "other"):
        write(
            tmp_path / "none", "free", dataset=dataset, identity=f"{crc32(dataset.encode()):012x}"
        )
    assert overall(boards(load_cells([tmp_path / "none"]))) is None


# -- what may be said ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("why", "reason"),
    [({"khat_bad": 0.2}, "importance weights"), ({"nll_half": 40.0}, "samples are doubled")],
)
def test_what_the_estimates_do_not_carry_neither_pays_nor_wins(tmp_path: Path, why, reason):
    for seed in range(5):
        run(tmp_path, "vae", seed, 34.0 + 0.1 * (seed % 2))
        run(tmp_path, "lm", seed, 34.0)
        run(tmp_path, "free", seed, 32.0)
        run(tmp_path, "bad", seed, 32.0, **why)
    rows = {row.name: row for row in only(tmp_path).rows}
    assert rows["free"].pays == "pays" and rows["free"].won is True and not rows["free"].why_not
    assert rows["bad"].pays is None and reason in rows["bad"].why_not
    assert rows["bad"].p < 0.05 and rows["bad"].won is None
    assert rows["vae"].pays == "free" and rows["vae"].won is None
    assert rows["lm"].won is False and not rows["lm"].why_not


def test_free_is_told_whatever_the_weights_and_the_words_say_so(tmp_path: Path):
    grid(tmp_path, lm=34.0)
    for seed in range(5):
        run(tmp_path, "bad", seed, 34.0 + 0.02 * seed, khat_bad=0.5)
    rows = {row.name: row for row in only(tmp_path).rows}
    assert rows["bad"].pays == "free" and not rows["bad"].why_not
    (pitfall,) = (term["pitfall"] for term in page.glossary() if term["name"] == "pays")
    assert "Free is told all the same" in pitfall
    assert "`free`, that none could be told,\nwithout" in written(tmp_path)[0]


def test_too_few_seeds_are_no_word_of_paying(tmp_path: Path):
    for seed in range(2):
        run(tmp_path, "lm", seed, 34.0)
        run(tmp_path, "free", seed, 32.0)
    rows = {row.name: row for row in only(tmp_path).rows}
    assert rows["free"].pays is None and "fewer than three seeds" in rows["free"].why_not


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x93NUMPY"])
def test_a_damaged_file_of_sentences_costs_its_run_the_comparison(tmp_path: Path, content):
    grid(tmp_path, vae=34.0, free=32.0)
    next((tmp_path / "toy/free").rglob("s1/sentences.npz")).write_bytes(content)
    rows = {row.name: row for row in only(tmp_path).rows}
    assert rows["free"].groups != rows["vae"].groups and len(rows["free"].done) == 5


def test_many_groups_have_a_letter_each():
    assert [_letter(i) for i in (0, 25, 26, 51)] == ["a", "z", "A", "Z"]
    letters = [_letter(i) for i in range(300)]
    assert len({*letters}) == 300 and all(len(x) == 1 and x.isprintable() for x in letters)


# -- the files -------------------------------------------------------------------------------------


def written(results: Path) -> tuple[str, str]:
    """RESULTS.md and table.tex."""
    cells = load_cells([results])
    found = boards(cells, measurements(cells))
    return markdown(cells, found, overall(found)), tex(found)


def test_the_further_tables_are_where_there_is_something_to_say(tmp_path: Path):
    grid(tmp_path / "plain", vae=34.0, free=32.0)
    text, _ = written(tmp_path / "plain")
    assert "###" not in text and "Across" not in text
    results, trail = tmp_path / "results", [(1.0, 10, 40.0), (2.0, 20, 30.0)]
    for dataset, content in (("toy", "a"), ("other", "b")):
        for method, nll in (("vae", 34.0), ("free kl=1", 33.0), ("free kl=3", 31.0)):
            for seed in range(6):
                measures = {"nll": nll, "nll_half": nll, "khat_bad": 0.2 * ("3" in method)}
                write(
                    *(results, method.split()[0], seed, "done", None, method),
                    identity=f"{crc32((content + method).encode()):012x}",
                    dataset=dataset,
                    valid=nll,
                    trail=trail,
                    kl=float("3" in method) * 2 + 1,
                    ppl=7.0,
                    **measures,
                )
    text, table = written(results)
    assert text.count("### By method") == text.count("### At equal rate") == 2
    assert "| free | 2 | free kl=3 | 0 1 2 | 3 4 5 | 31.00 ± 0.00 | 32.00, 31.00 |  |" in text
    assert "| free | - | 33.00 | 32.00 | - | - |" in text
    assert "| after 2.0 s | NLL | after 20 backwards | NLL |" in text
    assert "inference, as to refine a posterior, are not counted there" in text
    assert "| free kl=1 | 30.00 ± 0.00 | free kl=1 | 30.00 ± 0.00 |" in text
    assert "## Across data sets" in text and "run on all of: other, toy." in text
    # (31 - 34) / (34 / ln 7) = -0.172
    assert (
        "| free kl=3 | 12 | 0 | -0.172 (-0.172 to -0.172) | 1.00 (1.00 to 1.00) | - | 0/2 |" in text
    )
    assert "| -3.00 ± 0.00 | (<0.001) |" in text and "| -1.00 ± 0.00 | **<0.001** |" in text
    assert table.count(r"\begin{tabular}") == table.count(r"\bottomrule") == 2
    assert (text, table) == written(results)


def test_a_stalled_run_does_not_move_the_seconds(tmp_path: Path):
    grid(tmp_path, vae=34.0)
    for seed, seconds in enumerate([25, 27, 3297, 41, 26]):
        path = next(tmp_path.glob(f"toy/vae/*/s{seed}/run.json"))
        tell(path, "cost", train_seconds=seconds, tokens_per_second=54000 / seconds)
    (row,) = only(tmp_path).rows
    found = {name: row.means[name] for name in ("seconds", "tokens_per_second")}
    unknown = pytest.approx(math.nan, nan_ok=True)
    assert found == {"seconds": (27.0, unknown), "tokens_per_second": (2000.0, unknown)}
    text, _ = written(tmp_path)
    assert "| 27 |" in text and "**s**:\nseconds of training, the median" in text
    means = {term["name"]: term["means"] for term in page.glossary()}
    assert all("median" in means[name] for name in ("s", "tokens/s"))


def test_code_that_no_commit_names_is_counted(tmp_path: Path):
    grid(tmp_path / "all", vae=34.0)
    known = {"commit": "a" * 40, "dirty": False}
    abouts = [known, known, known | {"dirty": True}, known | {"earlier_fingerprints": ["1"]}]
    for seed, about in enumerate(abouts):
        tell(next(tmp_path.glob(f"all/toy/vae/*/s{seed}/run.json")), **about)
    write(tmp_path / "all", "plain", status="queued")  # which no code has run
    code = (
        f"{'a' * 12}, 1 run of no known one, 1 run of one with changes, "
        "1 run trained by two versions or more"
    )
    assert f"5 of 6 runs are done. Code: {code}.\n" in written(tmp_path / "all")[0]
    assert main([str(tmp_path / "all"), "--out", str(tmp_path)]) == 0
    assert code in (tmp_path / "index.html").read_text()


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def table(text: str, title: str) -> dict[str, list[str]]:
    """Below a title of RESULTS.md: the rows by their first cell."""
    below = text.partition(f"### {title}\n")[2].partition("\n#")[0]
    lines = [cells_of(line) for line in below.splitlines() if line.startswith("|")]
    return {line[0].replace("\\_", "_"): line[1:] for line in (lines[0], *lines[2:])}


def test_diagnosed_seeds_have_a_table(tmp_path: Path):
    """Of means over those that were diagnosed; other variants have no row."""
    grid(tmp_path, vae=34.0, lm=33.0, free=32.0)
    for seed, factor in enumerate([1.0, 2.0, 3.0]):
        (path,) = tmp_path.glob(f"toy/vae/*/s{seed}")
        units = {k: [factor * x for x in v] for k, v in UNITS.items() if k != "reliability"}
        lay(path, "diagnosis", full(units=units))
    (path,) = tmp_path.glob("toy/lm/*/s1")
    lay(path, "diagnosis", MODEL)
    found = table(written(tmp_path)[0], "Why units live or die")
    assert [*found] == ["variant", "lm", "vae"]
    vae = dict(zip(found["variant"], found["vae"], strict=True))
    assert vae["n"] == "3" and vae["units"] == (
        "3 active, 3 undecided, 3 unread, 3 outliers, 3 noisy, 3 weak"
    )
    half = 4.302653 / 3**0.5  # of the factors' mean, 2
    for name, column in (("rate", "rate"), ("C + H", "bound"), ("G", "mismatch")):
        total = sum(UNITS[column])
        assert vae[name] == f"{2 * total:.2f} ± {half * total:.2f}"
    assert vae["code"] == "14.40 ± 0.00" and vae["in the code"] == "1.64 ± 0.00"
    assert vae["read"] == "1.43 ± 0.00" and vae["lag"] == "2.10 ± 0.00, encoder lags"
    lm = dict(zip(found["variant"], found["lm"], strict=True))
    assert lm["errors in common"] == "2.31, could pay" and lm["rate"] == lm["lag"] == "-"
    tell(next(tmp_path.glob("toy/vae/*/s0/run.json")), result_version=0)
    assert [*table(written(tmp_path)[0], "Why units live or die")][2] == "vae (stale)"


def test_what_is_written_is_compared_where_as_much_was_asked_for(tmp_path: Path):
    grid(tmp_path, vae=34.0, free=32.0)
    for method, change in (("vae", 0.0), ("free", 6.0)):
        for seed in range(3):
            (path,) = tmp_path.glob(f"toy/{method}/*/s{seed}")
            sampling = WRITTEN["prior"]["sampling"] | {"self_bleu": 60.0 + change + seed - 1}
            lay(path, "generation", WRITTEN | {"prior": WRITTEN["prior"] | {"sampling": sampling}})
    found = table(written(tmp_path)[0], "What is written")
    assert [*found] == ["text", "real text", "free", "vae"]  # the rows by NLL
    heads = found["text"]
    assert found["real text"][heads.index("n")] == "6"
    assert found["real text"][heads.index("reverse PPL")] == "17.50 ± 0.00"
    free = dict(zip(heads, found["free"], strict=True))
    assert free["self-BLEU"] == f"66.00 ± {4.302653 / 3**0.5:.2f}"
    assert free["dist-2"] == "0.200 ± 0.000" and free["PPL"] == "18.00 ± 0.00"
    assert free["greedily"] == "0.300 ± 0.000" and free["BLEU"] == "13.00 ± 0.00"
    assert "1,000 sentences from the prior at temperature 1." in written(tmp_path)[0]
    assert "that read 10,000 real" in written(tmp_path)[0]
    (path,) = tmp_path.glob("toy/vae/*/s0")
    lay(path, "generation", WRITTEN | {"settings": WRITTEN["settings"] | {"samples": 100}})
    text = written(tmp_path)[0]
    assert [*table(text, "What is written, of 100")] == ["text", "real text", "vae"]
    assert table(text, "What is written, of 1,000")["vae"][0] == "2"


@pytest.mark.parametrize("name", ["diagnosis", "generation"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema": 2}', '{"schema": 1}', "\xff"])
def test_a_damaged_file_beside_a_run_is_nothing(tmp_path: Path, name, content):
    grid(tmp_path, vae=34.0)
    before = written(tmp_path)
    (path,) = tmp_path.glob("toy/vae/*/s0")
    (path / f"{name}.json").write_text(content, encoding="latin-1")
    if content == '{"schema": 1}':
        assert "vae" in written(tmp_path)[0]
    else:
        assert written(tmp_path) == before


def test_only_runs_that_count_are_measured(tmp_path: Path):
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, trail=[(1.0, 7, 40.0)])
    write(there, trail=[(1.0, 7, 99.0)])
    (write(there, seed=1).path / "samples.jsonl").unlink()
    found = measurements(load_cells([here, there]))
    assert list(found.loc[found["metric"] == "nll", "value"]) == [40.0]
    assert {*found["seed"]} == {0}
