"""The page's figures, of runs and curves written by hand."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Annotation

from leaderboard import plots as plotting
from leaderboard.board import Board, boards
from leaderboard.load import load_cells
from leaderboard.plots import DARK, LIGHT, draw, front, over_training, plots, reached, trails
from leaderboard.report import measurements
from tests.test_board import grid, only, outdate, run
from tests.test_leaderboard import write

HOSTILE = (
    *("<script>alert(1)</script>", "$x^2$", 'a&b"c', "]]>\x00\x1b[0m\ud800\u202e", "--><!--"),
    *("#1f2328", 'id="series-0"', "url(#p)", "\U0001f600 混合", r"$\frac{", "n" * 300, " "),
)
HIGH = 35.0


def curves(results: Path) -> pd.DataFrame:
    return measurements(load_cells([results]))


def made(results: Path) -> list[plotting.Plot]:
    return plots(only(results), curves(results))


def sheets(board: Board, lines: pd.DataFrame | None = None) -> dict[str, plotting.Sheet]:
    by_row = {} if lines is None else trails(lines)
    return dict(plotting.sheets(board, by_row))


def drawn(sheet: plotting.Sheet, label: str) -> dict[str, list[tuple[float, float]]]:
    """By series, the points of its marks."""
    found: dict[str, list[tuple[float, float]]] = {}
    for panel in sheet.figure.axes:
        for line in panel.lines:
            if line.get_label() == label:
                points = list(zip(*map(np.ravel, line.get_data()), strict=True))
                found.setdefault(str(line.get_gid()), []).extend(points)
    return found


def trail(
    board: Board, records: Callable[[str, int], list[tuple[float, float, Mapping[str, float]]]]
) -> pd.DataFrame:
    """Curves: of each row and seed some (step, seconds, metric -> value)."""
    lines = []
    for row in board.rows:
        for seed in row.seeds:
            for step, seconds, values in records(row.name, seed):
                for metric, value in values.items():
                    lines.append(
                        {
                            **{"dataset": row.cells[0]["dataset"], "method": row.method},
                            **{"id": row.id, "seed": seed, "split": "valid", "metric": metric},
                            **{"estimator": None, "step": step, "value": value},
                            **{"seconds": seconds},
                        }
                    )
    return pd.DataFrame(lines)


# -- values ----------------------------------------------------------------------------------------


def test_seeds_and_means_stand_where_they_were_measured(tmp_path: Path):
    for seed in range(3):
        run(tmp_path, "vae", seed, 34.0 + seed, kl=seed / 10, rec=33.0 + seed, z_gain=1.0 + seed)
        run(tmp_path, "free", seed, 32.0, kl=2.0, rec=31.0, z_gain=4.0)
        run(tmp_path, "lm", seed, 34.5)
    board = only(tmp_path)
    gids = {row.name: f"series-{i}" for i, row in enumerate(board.rows)}
    found = sheets(board)
    rate, gain = found["rate-distortion"], found["z-gain"]
    assert drawn(rate, "mean") == {
        gids["vae"]: [pytest.approx((0.1, 34.0))],
        gids["free"]: [pytest.approx((2.0, 31.0))],
    }  # and none of lm, which has no rate
    assert drawn(rate, "seeds")[gids["vae"]] == [(0.0, 33.0), (0.1, 34.0), (0.2, 35.0)]
    assert drawn(gain, "mean") == {gids["vae"]: [(2.0, 35.0)], gids["free"]: [(4.0, 32.0)]}
    for sheet, slope in ((rate, -1.0), (gain, 0.0)):  # of the language model's line
        (line,) = (
            one
            for one in sheet.figure.axes[0].lines
            if one.get_gid() == gids["lm"] and len(one.get_xdata()) == 2
        )
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        assert y - slope * x == pytest.approx([34.5, 34.5])
    assert "free has the lowest -ELBO: 2.00 + 31.00" in rate.summary


def test_diagonals_hold_one_elbo_each(tmp_path: Path):
    for method, rate in (("vae", 0.0), ("free", 4.0)):
        run(tmp_path, method, 0, 34.0, kl=rate, rec=36.0 - 2 * rate)
    panel = sheets(only(tmp_path))["rate-distortion"].figure.axes[0]
    said = [float(t.get_text().split()[-1]) for t in panel.texts if "-ELBO" in t.get_text()]
    lines = [line.get_xydata() for line in panel.lines if line.get_gid() is None]
    sums = [np.sum(np.asarray(line), 1) for line in lines if len(line) == 2]
    assert len(said) >= 2 and all(np.ptp(each) < 1e-9 for each in sums)
    assert {*said} <= {round(each[0], 6) for each in sums}


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_nothing_beats(seed: int):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 6, (2, 12)).astype(float)  # with ties and equal points
    x[rng.integers(12)] = np.nan
    y[rng.integers(12)] = np.inf
    known = [i for i in range(12) if np.isfinite(x[i] + y[i])]
    beaten = {
        i
        for i in known
        for j in known
        if x[j] <= x[i] and y[j] <= y[i] and (x[j] < x[i] or y[j] < y[i])
    }
    found = front(list(x), list(y))
    assert sorted(found) == sorted({*known} - beaten) and len({*found}) == len(found)
    assert list(x[found]) == sorted(x[found])


def records(*lines: tuple[float, ...]) -> pd.DataFrame:
    """A trail: seed, step, seconds, nll, z_gain, i_read; of both the s.e. is 1."""
    table = pd.DataFrame(lines, columns=["seed", "step", "seconds", "nll", "z_gain", "i_read"])
    return table.assign(z_gain_se=1.0, i_read_se=1.0)


def test_the_cost_is_of_the_first_record_that_is_good_and_read():
    found = reached(
        records(
            (0, 30, 3.0, HIGH, 5.0, 5.0),  # out of order
            (0, 10, 1.0, HIGH + 1, 5.0, 5.0),  # not good
            (0, 20, 2.0, HIGH - 1, 1.9, 1.9),  # not read
            (1, 10, 7.0, HIGH, 2.1, 0.0),
            (1, 20, 9.0, HIGH, 2.1, 0.0),
            (2, 10, 8.0, HIGH, math.nan, 2.1),
            (3, 10, 8.0, math.nan, 9.0, 9.0),
        ),
        HIGH,
    )
    assert list(found) == [3.0, 7.0, 8.0, math.inf]
    unknown = records((0, 10, 8.0, HIGH, 0.1, 0.0)).assign(z_gain_se=math.nan)
    assert list(reached(unknown, HIGH)) == [8.0]


def test_rows_that_never_get_there_are_listed(tmp_path: Path):
    grid(tmp_path, vae=36.0, lm=34.0, free=32.0, half=33.0)
    board = only(tmp_path)

    def of(name: str, seed: int) -> list[tuple[float, float, Mapping[str, float]]]:
        if name == "lm":  # its last record counts: 35 on average
            return [(10, 1.0, {"nll": 20.0}), (20, 2.0, {"nll": HIGH + seed - 2})]
        good = {"free": 5, "half": 2, "vae": 0}[name]
        values = {"nll": HIGH if seed < good else HIGH + 0.1, "z_gain": 1.0}
        return [(10, 1.0, {"nll": HIGH - 1, "z_gain": -1.0}), (20, 5.0 + seed, values)]

    sheet = sheets(board, trail(board, of))["cost"]
    gids = {row.name: f"series-{i}" for i, row in enumerate(board.rows)}
    means, seeds = drawn(sheet, "mean"), drawn(sheet, "seeds")
    assert {gid: [x for x, _ in each] for gid, each in means.items()} == {gids["free"]: [7.0]}
    assert [x for x, _ in seeds[gids["half"]]] == [5.0, 6.0] and not seeds.get(gids["vae"])
    texts = [text.get_text() for text in sheet.figure.axes[0].texts]
    assert {"5/5", "2/5", "never 0/5"} <= {*texts} and "35.00" in " ".join(texts)
    assert "2 of 3 rows" in sheet.title and "Never: vae." in sheet.summary


def test_a_line_is_the_mean_of_all_seeds_where_all_are(tmp_path: Path):
    table = records(
        *[(seed, step, step + seed, 10.0 * seed, 0, 0) for seed in range(3) for step in (1, 2)],
        (0, 3, 9.0, 1.0, 0, 0),  # the others stopped
    )
    table.loc[(table["seed"] == 2) & (table["step"] == 1), "nll"] = math.inf
    line = over_training(table, "nll")
    assert line.to_numpy().tolist() == [[2.0, 3.0, 10.0]]
    stalled = records(*[(seed, 1, [5.0, 6.0, 3297.0][seed], seed, 0, 0) for seed in range(3)])
    assert over_training(stalled, "nll").to_numpy().tolist() == [[1.0, 6.0, 1.0]]
    long = records(*[(0, step, step, step, 0, 0) for step in range(1000)])
    thin = over_training(long, "nll")
    assert len(thin) == 200 and {0.0, 999.0} <= {*thin["step"]} and thin["step"].is_unique


def test_learning_curves_have_twelve_colours_at_most(tmp_path: Path):
    grid(tmp_path, lm=30.0, **{f"m{i:02d}": 31.0 + i for i in range(15)})
    board = only(tmp_path)
    lines = trail(board, lambda name, seed: [(t, 2.0 * t, {"nll": 1.0 * t}) for t in (1, 2)])
    figure = sheets(board, lines)["learning"].figure
    assert len(figure.axes) == 2  # of NLL alone: against steps and seconds
    assert [list(axes.lines[0].get_xdata()) for axes in figure.axes] == [[1, 2], [2, 4]]
    used = [str(line.get_color()) for line in figure.axes[0].lines]
    assert used.count(LIGHT["other"]) == 3 and used.count(LIGHT["ink"]) == 1
    assert len({*used}) == 14 and len(used) == 16
    names = {text.get_text() for text in figure.texts}
    assert {"m00", "m11", "lm"} <= names and "m12" not in names


def test_units_are_sorted_and_their_levels_told(tmp_path: Path):
    for seed in range(2):
        run(tmp_path, "vae", seed, 34.0)
    board = only(tmp_path)
    kl = np.array([[9.0, 9.0, 9.0], [0.0001, 2.0, 0.02]])
    path = Path(board.rows[0].seeds[0]["path"])
    (path / "units.npz").unlink()
    np.savez(path / "units.npz", kl=kl, step=np.array([10, 20]))
    sheet = sheets(board)["units"]
    assert sheet.title == "2 of 3 units end above 0.01 nats"
    cells = {}
    for patch in sheet.figure.axes[0].patches:
        box = patch.get_path().get_extents().bounds
        cells[box] = (patch.get_facecolor()[:3], patch.get_alpha())
    assert {*cells} == {(0, 0, 10, 3), (10, 0, 10, 1), (10, 1, 10, 1), (10, 2, 10, 1)}
    alphas = [cells[10, unit, 10, 1][1] for unit in range(3)]
    assert alphas[0] > alphas[1] > alphas[2]
    assert cells[10, 1, 10, 1][0] == cells[10, 0, 10, 1][0] != cells[10, 2, 10, 1][0]


def at_budget(results: Path, method: str, seeds: int, nll: float, steps: int, config: str) -> None:
    """Finished cells of a configuration of its own, trained for so many steps."""
    identity = f"{crc32(f'{method} {config}'.encode()):012x}"
    for seed in range(seeds):
        run(results / "aside", method, seed, nll)
        (old,) = results.glob(f"aside/toy/{method}/*/s{seed}")
        new = results / f"all/toy/{method}/{identity}/s{seed}"
        new.parent.mkdir(parents=True, exist_ok=True)
        text = (old / "run.json").read_text().replace(old.parent.name, identity)
        old.rename(new)
        (new / "run.json").write_text(text.replace('"steps": 30', f'"steps": {steps}'))
        (new / "config.yaml").write_text(f"method: {method}\n{config}\n")


def prices(results: Path) -> list[list[list[float]]]:
    """The lines of the price of collapse without the language model's own, nought: where more than
    one point is drawn."""
    (main,) = (board for board in boards(load_cells([results / "all"])) if board.others)
    _, *lines = sheets(main)["price"].figure.axes[0].lines
    data = [np.asarray(line.get_xydata()).tolist() for line in lines]
    return [points for points in data if len(points) > 1]


def test_the_price_is_paid_by_budget(tmp_path: Path):
    """And not by how the bound is measured."""
    # the larger budget's are of a later program, which has more fields; the last of another bound
    grids = (
        (100, 40.0, "evaluation: {nll_samples: 5}, ", "{}"),
        (400, 36.5, "evaluation: {nll_samples: 5, n: 1}, ", "{x: null, y: false}"),
        (400, 30.0, "evaluation: {nll_samples: 9}, ", "{}"),
    )
    for number, (steps, vae, more, model) in enumerate(grids):
        for method, nll in (("vae", vae), ("lm", 38.0 - steps / 100)):
            config = f"budget: {{{more}steps: {steps}}}\nmodel: {model}"
            at_budget(tmp_path, method, 3 - (number == 2), nll, steps, config)
    write(tmp_path / "all", "vae", status="failed", reason="full", identity="f" * 12)
    main, *others = boards(load_cells([tmp_path / "all"]))
    assert main.others == others and len(others) == 2 and others[0].dataset == "toy, 400 steps"
    sheet = sheets(main)["price"]
    lines = [line.get_xydata() for line in sheet.figure.axes[0].lines]
    assert not any((line == 30.0 - 34.0).any() for line in lines)
    assert np.array([[100, 3.0], [400, 2.5]]) == pytest.approx(np.asarray(lines[1]))
    assert "vae is +2.50 nats" in sheet.title


@pytest.mark.parametrize(
    "other", [{"model": "{latent: 9}"}, {"batching": "exact"}, {"precision": "bf16"}]
)
def test_the_price_is_by_the_same_models_language_model(tmp_path: Path, other: dict[str, str]):
    """Another's is a better one, and of more seeds."""
    usual = {"model": "{latent: 8}", "batching": "bucketed", "precision": "fp32"}
    for steps in (100, 400):
        grids = (
            *(("vae", 3, 36.0, usual), ("lm", 3, 34.0, usual)),
            *(("vae", 5, 21.0, usual | other), ("lm", 5, 20.0, usual | other)),
        )
        for method, seeds, nll, settings in grids:
            lines = [f"{name}: {value}" for name, value in settings.items()]
            config = "\n".join([f"budget: {{name: own, steps: {steps}}}", *lines])
            at_budget(tmp_path, method, seeds, nll, steps, config)
    assert sorted(prices(tmp_path)) == [[[100, 1.0], [400, 1.0]], [[100, 2.0], [400, 2.0]]]


def test_stale_rows_are_in_no_figure(tmp_path: Path):
    """Neither of this board nor of another budget's; and they take no colour."""
    for steps in (100, 400, 900):
        for method, nll in (("vae", 36.0), ("lm", 34.0), ("free", 30.0)):
            config = f"budget: {{name: own, steps: {steps}}}"
            at_budget(tmp_path, method, 3 + (steps == 100), nll, steps, config)
    for path in (tmp_path / "all/toy").glob("*/*/s*"):
        if path.parts[-3] == "free" or "900" in (path / "config.yaml").read_text():
            outdate(path / "run.json")
    (main,) = (board for board in boards(load_cells([tmp_path / "all"])) if board.others)
    lines = trail(main, lambda name, seed: [(t, t, {"nll": 1.0 * t, "kl": 1.0}) for t in (1, 2)])
    found = sheets(main, lines)
    assert {"rate-distortion", "z-gain", "learning", "price", "pairs"} <= {*found}
    gid = next(f"series-{i}" for i, row in enumerate(main.rows) if row.name == "free")
    for sheet in found.values():
        assert "free" not in sheet.title + sheet.summary
        assert not sheet.figure.findobj(lambda artist: str(artist.get_gid()).startswith(gid))
    assert [[x for x, _ in line] for line in prices(tmp_path)] == [[100, 400]]
    assert {*plotting.colours([main])} == {"vae"}


def test_one_budget_has_no_price(tmp_path: Path):
    grid(tmp_path, vae=34.0, lm=33.0)
    assert "price" not in sheets(only(tmp_path))


def test_pairs_are_coloured_where_they_are_told_apart(tmp_path: Path):
    grid(tmp_path, vae=34.0, twin=34.0, free=32.0)
    board = only(tmp_path)
    sheet = sheets(board)["pairs"]
    assert sheet.title == "2 of 3 pairs of rows can be told apart by NLL"
    assert board.rows[0].name == "free"
    panel = sheet.figure.axes[0]
    said = [text for text in panel.texts if isinstance(text, Annotation)]
    texts = {text.xy: text.get_text() for text in said}
    assert texts[1.5, 0.5] == "-2.00" and texts[0.5, 2.5] == "2.00" and texts[1.5, 2.5] == "0.00"
    colours = {}
    for patch in panel.patches:
        for box in patch.get_path().to_polygons():
            x, y = np.mean(box[:4], 0)
            colours[round(x, 3), round(y, 3)] = patch.get_facecolor()[:3]
    assert colours[1.5, 0.5] == colours[2.5, 0.5] != colours[0.5, 1.5] == colours[0.5, 2.5]
    assert colours[1.5, 2.5] == colours[2.5, 1.5] not in (colours[1.5, 0.5], colours[0.5, 1.5])
    assert (0.5, 0.5) not in colours


# -- colours ---------------------------------------------------------------------------------------


def linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def luminance(colour: str) -> float:
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_stand_out_from_their_paper(palette: Mapping[str, str]):
    assert {*LIGHT} == {*DARK} and len({*palette.values()}) == len(palette)
    paper = luminance(palette["paper"])
    for name in {*palette} - {"paper", "rule"}:
        low, high = sorted([luminance(palette[name]), paper])
        assert (high + 0.05) / (low + 0.05) >= (4.5 if name in ("ink", "faint") else 3), name


BLIND = {  # Machado et al. 2009, of linear RGB
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [
        *([0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216]),
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        *([0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413]),
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        *([1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602]),
        [0.004733, 0.691367, 0.303900],
    ],
}
CONES = [  # Ottosson 2020: linear RGB to LMS, and its cube root to OKLab
    *([0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]),
    [0.0883024619, 0.2817188376, 0.6299787005],
]
LAB = [
    *([0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]),
    [0.0259040371, 0.7827717662, -0.8086757660],
]


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("blindness", BLIND)
def test_colours_are_told_apart_by_the_colour_blind(palette: Mapping[str, str], blindness: str):
    names = [f"c{i}" for i in range(12)]
    seen = np.array([linear(palette[name]) for name in names]) @ np.transpose(BLIND[blindness])
    lab = np.cbrt(np.clip(seen, 0, 1) @ np.transpose(CONES)) @ np.transpose(LAB)
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1) + np.eye(12)
    assert distances.min() > 0.05  # two and a half times what is just seen in large patches
    assert distances[0, 1] > 0.15  # better and worse


def test_a_row_has_one_colour_on_all_boards(tmp_path: Path):
    for dataset, names in (("one", ("a", "c", "lm")), ("two", ("b", "c"))):
        for name in names:
            run(tmp_path / dataset, name, 0, 34.0)
    found = [only(tmp_path / name) for name in ("one", "two")]
    assert plotting.colours(found) == {"a": 0, "b": 1, "c": 2}
    for board in found:
        (plot,) = (
            p
            for p in plots(board, pd.DataFrame(curves(tmp_path / "one")), {"c": 2})
            if p.name == "z-gain"
        )
        root = ElementTree.fromstring(plot.page)
        marks = [g for g in root.iter() if g.get("data-row") == "c"]
        assert any("var(--c2)" in ElementTree.tostring(g, "unicode") for g in marks)


def test_long_names_keep_what_tells_them_apart():
    names = [f"free_bits_with_a_long_name target={i}.5" for i in range(9)]
    assert len({plotting.brief(name) for name in names}) == 9
    assert max(len(plotting.brief(name)) for name in names) == 25
    assert plotting.brief("x" * 25) == "x" * 25


# -- the page --------------------------------------------------------------------------------------


def hostile(results: Path) -> tuple[Board, pd.DataFrame]:
    for i in range(len(HOSTILE)):
        run(results, f"m{i}", 0, 30.0 + i, kl=float(i), rec=30.0)
    run(results, "lm", 0, 33.0)
    board = only(results)
    for row in board.rows:
        if row.name != "lm":
            row.name = HOSTILE[int(row.name[1:])]
    board.dataset = '<b> & "x"'
    return board, trail(board, lambda name, seed: [(9, 1.0, {"nll": 1.0, "kl": 1.0})])


def test_names_are_text_whatever_they_hold(tmp_path: Path):
    board, lines = hostile(tmp_path)
    found = plots(board, lines)
    assert {"rate-distortion", "z-gain", "learning", "pairs"} <= {plot.name for plot in found}
    for plot in found:
        for text in (plot.page, plot.files["svg"].decode()):
            root = ElementTree.fromstring(text)
            assert not [e for e in root.iter() if e.tag.rpartition("}")[2] == "script"]
            assert root.get("aria-label") and "<script" not in text
    page = ElementTree.fromstring(next(p for p in found if p.name == "pairs").page)
    rows = {e.get("data-row") for e in page.iter() if e.get("class") == "series"}
    assert {*HOSTILE[:3], *HOSTILE[4:9], "lm"} <= rows
    shown = {e.text for e in page.iter() if e.tag.endswith("text")}
    assert any(t and "$x^2$" in t for t in shown) and any(t and "#1f2328" in t for t in shown)
    assert any(t and t.startswith("<script>alert(1)</script>") for t in shown)


def test_a_page_holds_all_figures_with_no_id_twice(tmp_path: Path):
    for name in ("a", "b"):
        for seed in range(3):
            run(tmp_path / name, "vae", seed, 34.0)
            run(tmp_path / name, "lm", seed, 33.0)
    found = [only(tmp_path / name) for name in ("a", "b")]
    found[0].dataset, found[1].dataset = "toy x", "toy-x"
    every = [p for board in found for p in plots(board, curves(tmp_path / "a"))]
    page = "".join(plot.page for plot in every)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len({*ids}) == len(ids) > 20
    referred = re.findall(r'(?:href="#|url\(#)([^")]*)', page)
    assert referred and {*referred} == {*ids}
    assert {*re.findall(r'http[^"]*', page)} == {"http://www.w3.org/2000/svg"}
    assert "<?xml" not in page and "<!DOCTYPE" not in page and "<style" not in page
    assert not re.search("#[0-9a-f]{6}\\b", page) and "font-family" not in page
    assert {*re.findall(r"var\(--(\w+)\)", page)} <= {*LIGHT}
    for plot in every:
        root = ElementTree.fromstring(plot.page)
        assert root.get("role") == "img" and root.get("width") is None
        assert root.get("aria-label") == plot.summary and plot.caption and plot.title
        assert "headline" not in plot.page
        file = ElementTree.fromstring(plot.files["svg"])
        assert file.get("width") and "var(" not in plot.files["svg"].decode()
        assert plot.title.split()[0] in "".join(file.itertext())
        assert plot.files["pdf"].startswith(b"%PDF") and b"/Type3" not in plot.files["pdf"]


def test_the_page_leaves_the_title_out_and_nothing_else(tmp_path: Path):
    grid(tmp_path, vae=34.0, lm=33.0)
    for plot in made(tmp_path):
        page, file = (ElementTree.fromstring(x) for x in (plot.page, plot.files["svg"]))
        box, whole = ([float(x) for x in e.get("viewBox", "").split()] for e in (page, file))
        assert box[1] >= 38 and box[1] + box[3] == whole[3] and box[2] == whole[2]
        words = [[e.text for e in root.iter() if e.tag.endswith("text")] for root in (page, file)]
        assert len(words[0]) < len(words[1]) and {*words[0]} <= {*words[1]}


SAME = """
import hashlib, sys
from pathlib import Path
from leaderboard.board import boards
from leaderboard.load import load_cells
from leaderboard.plots import plots
from leaderboard.report import measurements

cells = load_cells([Path(sys.argv[1])])
for plot in plots(boards(cells)[0], measurements(cells)):
    whole = plot.page.encode() + plot.files["svg"] + plot.files["pdf"]
    print(plot.name, hashlib.sha256(whole).hexdigest())
"""


def test_the_same_runs_give_the_same_bytes(tmp_path: Path):
    grid(tmp_path, vae=34.0, lm=33.0)
    first = made(tmp_path)
    assert first == made(tmp_path)
    said = [
        subprocess.run(
            [sys.executable, "-c", SAME, str(tmp_path)],
            **{"check": True, "capture_output": True, "text": True},
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1] and len(said[0].splitlines()) == len(first)


def test_several_processes_draw_what_one_draws(tmp_path: Path):
    for name in ("a", "b"):
        run(tmp_path / name, "vae", 0, 34.0)
        run(tmp_path / name, "free", 0, 33.0)
    found = [only(tmp_path / name) for name in ("a", "b")]
    found[1].dataset = "other"
    lines = curves(tmp_path / "a")
    colours = plotting.colours(found)
    assert draw(found, lines) == {b.dataset: plots(b, lines, colours) for b in found}
    assert draw([], lines) == {}


# -- what is missing -------------------------------------------------------------------------------


NOTHING: tuple[Any, ...] = (None, math.nan, math.inf, -math.inf, 1e300, 0.0)


@pytest.mark.parametrize("value", NOTHING)
@pytest.mark.parametrize("n", [1, 3])
def test_no_value_is_too_strange_to_be_drawn(tmp_path: Path, value: Any, n: int):
    for seed in range(n):
        run(tmp_path, "vae", seed, 34.0)
        run(tmp_path, "odd", seed, 33.0)
        run(tmp_path, "lm", seed, 33.0)
    board = only(tmp_path)
    for row in board.rows:
        if row.name == "odd" or value == 0.0:
            for name in row.means:
                row.means[name] = (math.nan if value is None else value, math.nan)
            for cell in row.cells:
                strange = {k: value for k, v in cell.items() if isinstance(v, float)}
                cell.update(strange)
    values = dict.fromkeys(["kl", "mi", "nll", "z_gain", "i_read"], value)
    lines = trail(board, lambda name, seed: [(t, t / 2, values) for t in (0, 5)])
    (odd,) = (f"series-{i}" for i, row in enumerate(board.rows) if row.name == "odd")
    if value != 0.0:
        for sheet in sheets(board, lines).values():
            assert odd not in drawn(sheet, "mean")
    for plot in plots(board, lines):
        ElementTree.fromstring(plot.page)
        assert "nan" not in re.sub('aria-label="[^"]*"', "", plot.page)


def test_what_is_not_there_is_not_drawn(tmp_path: Path):
    assert plots(Board("empty", "empty", None, []), curves(tmp_path)) == []
    run(tmp_path / "one", "vae", 0, 34.0)
    names = {plot.name for plot in made(tmp_path / "one")}
    assert names == {"rate-distortion", "z-gain", "learning"}
    for seed in range(3):
        run(tmp_path / "lm", "lm", seed, 34.0)
    assert not {p.name for p in made(tmp_path / "lm")} & {"rate-distortion", "z-gain", "cost"}
    cells = load_cells([tmp_path / "one"])
    cells["status"] = "failed"
    (failed,) = boards(cells)
    assert plots(failed, curves(tmp_path / "one")) == []
