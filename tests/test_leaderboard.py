"""The leaderboard on run directories written by hand."""

import io
import math
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from rich.console import Console

from benchmark.grid import Cell
from benchmark.record import (
    RESULT_VERSION,
    SUMMARY,
    TRUTH,
    RunDirectory,
    read_metrics,
    validate,
)
from leaderboard import figures
from leaderboard.__main__ import main
from leaderboard.load import find_runs, load_cells, load_curves
from leaderboard.statistics import half_width, summarise, unfinished
from leaderboard.terminal import show

IDS = {"plain": "0123456789ab", "other": "ba9876543210"}


def write(
    results: Path,
    method: str = "plain",
    seed: int = 0,
    status: str = "done",
    reason: str | None = None,
    variant: str | None = None,
    identity: str | None = None,
    dataset: str = "toy",
    valid: float = 1.0,
    trail: Iterable[tuple[float, int, float]] = (),
    **measures: float | str | None,
) -> RunDirectory:
    """A whole run directory whose test summary holds `measures`.

    valid: its validation NLL; trail: (seconds, backwards, validation NLL) over its training.
    """
    cell = Cell(dataset, method, variant or method, seed, identity or IDS[method])
    run = RunDirectory(cell.path(results))
    run.create(cell, "seed: 0\n")
    base = dict.fromkeys(SUMMARY.keys() - TRUTH, 1.0) | {"verdict": "read", "latent": "global"}
    summary = base | measures
    notes = {f"test/{name}": "none" for name, value in summary.items() if value is None}
    with run.lease():
        for name in ("units.npz", "sentences.npz"):
            run.save_npz(name, kl=[0.0])
        run.save_text("samples.jsonl", "")
        metrics = run.metrics()
        for step in (10, 20, 30):
            values = {"kl": measures.get("kl", 1.0), "z_gain": step + seed}
            metrics.add(step, "valid", values, seconds=1.0, batches=step, backwards=step)
        for seconds, backwards, nll in trail:
            cost = {"seconds": seconds, "batches": backwards, "backwards": backwards}
            metrics.add(backwards, "valid", {"nll": nll}, **cost)
        metrics.add(30, "test", {"kl": 99.0}, seconds=1.0, batches=30, backwards=30)
        finished = status in ("done", "stopped")
        run.write(
            status=status,
            reason=reason,
            selected_step=30,
            summary={"valid": base | {"nll": valid}, "test": summary} if finished else {},
            notes=notes,
            cost={"train_seconds": 10.0 + seed, "steps": 30},
            provenance={"data_hash": "h", "result_version": RESULT_VERSION},
        )
    return run


def shown(results: Path, width: int = 500) -> str:
    """What the terminal gets."""
    out = io.StringIO()
    show(load_cells([results]), Console(file=out, width=width, force_terminal=False))
    return out.getvalue()


def row(text: str, name: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(name)).split()


# -- statistics ------------------------------------------------------------------------------------


def test_the_interval_is_students():
    # mean 2, s = 1, t(0.975, 2) = 4.302653: 4.302653 / sqrt(3)
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(2.484138, abs=1e-6)
    # t(0.975, 3) = 3.182446, s^2 = 5/3
    assert half_width([1.0, 2.0, 3.0, 4.0]) == pytest.approx(3.182446 * (5 / 12) ** 0.5, abs=1e-5)
    assert math.isnan(half_width([1.0, 2.0]))


def test_a_variant_is_the_mean_over_its_finished_seeds(tmp_path: Path):
    for seed, nll in enumerate([31.0, 32.0, 33.0]):
        write(tmp_path, seed=seed, nll=nll, au=seed, units=8, kl=0.5, mi=None, nll_gap=nll - 30)
    write(tmp_path, seed=3, status="diverged", reason="the loss is not finite")
    write(tmp_path, "other", nll=30.5, verdict="collapsed")
    first, second = summarise(load_cells([tmp_path])).to_dict("records")
    assert (first["variant"], second["variant"]) == ("other", "plain")  # by nll
    assert (second["done"], second["cells"]) == (3, 4)
    assert second["nll"] == 32.0 and second["nll_half"] == pytest.approx(2.484138, abs=1e-6)
    assert second["nll_gap"] == 2.0 and second["kl_half"] == 0.0 and second["seconds"] == 11.0
    assert math.isnan(second["mi"]) and math.isnan(first["nll_half"])
    text = shown(tmp_path)
    assert row(text, "plain")[:5] == ["plain", "3/4", "32.00", "±", "2.48"]
    assert "1/8" in row(text, "plain") and row(text, "other")[-2:] == ["collapsed", "10"]
    assert text.index("\nother") < text.index("\nplain")
    assert "plain seed 3: diverged, the loss is not finite" in text


def test_seconds_are_the_median(tmp_path: Path):
    for seed, seconds in enumerate([25.0, 27.0, 3297.0]):
        run = write(tmp_path, seed=seed)
        with run.lease():
            run.write(cost={"train_seconds": seconds, "steps": 30})
    (variant,) = summarise(load_cells([tmp_path])).to_dict("records")
    assert variant["seconds"] == 27.0
    text = shown(tmp_path)
    assert row(text, "plain")[-1] == "27" and "seconds: of training, the median." in text


def test_a_value_that_one_seed_lacks_has_no_mean(tmp_path: Path):
    write(tmp_path, seed=0, i_read=1.0)
    write(tmp_path, seed=1, i_read=None)
    (variant,) = summarise(load_cells([tmp_path])).to_dict("records")
    assert math.isnan(variant["i_read"]) and variant["kl"] == 1.0


def test_verdicts_that_differ_are_counted(tmp_path: Path):
    for seed, verdict in enumerate(["read", "collapsed", "read"]):
        write(tmp_path, seed=seed, verdict=verdict)
    assert "1 collapsed, 2 read" in shown(tmp_path)


def test_one_label_for_two_variants_is_told_apart(tmp_path: Path):
    write(tmp_path)
    write(tmp_path, identity="fedcba987654")
    text = shown(tmp_path)
    assert "plain (012345)" in text and "plain (fedcba)" in text


def test_budgets_tell_variants_of_one_label_apart(tmp_path: Path):
    for steps, identity in ((30, IDS["plain"]), (60, "fedcba987654")):
        budget = f"budget:\n  name: small\n  steps: {steps}\n"
        (write(tmp_path, identity=identity).path / "config.yaml").write_text(budget)
    text = shown(tmp_path)
    assert "plain (small, 30 steps)" in text and "plain (small, 60 steps)" in text


def test_a_row_of_another_result_version_is_marked(tmp_path: Path):
    write(tmp_path, "other", nll=0.5)
    write(tmp_path, seed=0)
    assert "stale" not in shown(tmp_path)
    run = write(tmp_path, seed=1)
    with run.lease():
        run.write(provenance={"data_hash": "h", "result_version": RESULT_VERSION - 1})
    begun = write(tmp_path, "other", seed=1, status="running")
    with begun.lease():
        begun.write(provenance={"result_version": RESULT_VERSION - 1})  # not in the row's means
    first, second = summarise(load_cells([tmp_path])).to_dict("records")
    assert (first["variant"], first["stale"], second["stale"]) == ("other", False, True)
    text = shown(tmp_path)
    assert row(text, "plain")[:3] == ["plain", "(stale)", "2/2"]
    assert row(text, "other")[:2] == ["other", "1/2"] and "\n  other seed 1: running\n" in text


# -- what is damaged, unfinished or twice there ----------------------------------------------------


def test_nothing_is_dropped(tmp_path: Path):
    write(tmp_path, seed=0, nll=30.0)
    (write(tmp_path, seed=1, nll=99.0).path / "run.json").write_text('{"schema_ver')
    (write(tmp_path, seed=2, nll=99.0).path / "samples.jsonl").unlink()
    (write(tmp_path, seed=3, nll=99.0).path / "metrics.jsonl").write_text("torn\n{}\n")
    (write(tmp_path, seed=4, nll=99.0).path / "run.json").unlink()
    write(tmp_path, seed=5, status="running")
    write(tmp_path, seed=6, status="stopped", nll=99.0)
    shutil.copytree(write(tmp_path, seed=7).path, tmp_path / "toy" / "plain" / IDS["plain"] / "s8")
    cells = load_cells([tmp_path])
    status = dict(zip(cells["seed"], cells["status"], strict=True))
    assert status == {
        **{0: "done", 1: "damaged", 2: "damaged", 3: "damaged", 4: "damaged"},
        **{5: "running", 6: "stopped", 7: "done", 8: "damaged"},
    }
    reasons = dict(zip(cells["seed"], cells["reason"], strict=True))
    assert "is no JSON" in reasons[1] and reasons[2] == "samples.jsonl is missing"
    assert "line 1 is damaged" in reasons[3] and "holds no run.json" in reasons[4]
    assert "holds the record of toy/plain/0123456789ab/s7" in reasons[8]
    text = shown(tmp_path)
    assert row(text, "plain")[1] == "2/9"
    assert "99" not in row(text, "plain")[2]
    for seed in (1, 2, 3, 4, 8):
        assert f"plain seed {seed}: damaged, " in text
    assert "plain seed 5: running\n" in text
    assert "plain seed 6: stopped, evaluated at step 30, before its budget's end" in text


def test_runs_that_wait_for_the_same_share_a_line():
    waits = [{"seed": seed, "status": "queued", "reason": None} for seed in (4, 0)]
    fell = {"seed": 1, "status": "failed", "reason": "no memory"}
    done = {"seed": 2, "status": "done", "reason": None}
    runs = [("a", waits[0]), ("a", fell), ("a", done), ("a", waits[1]), ("b", waits[0])]
    assert unfinished(runs) == [
        "a seeds 0, 4: queued",
        "a seed 1: failed, no memory",
        "b seed 4: queued",
    ]


def test_a_stopped_run_was_evaluated_where_it_had_come_to():
    stopped = {"seed": 0, "status": "stopped", "reason": None, "cost/steps": 30.0}
    (told,) = unfinished([("a", stopped | {"cost/reached": 40.0})])
    assert told == "a seed 0: stopped, evaluated at step 40, before its budget's end"


def test_a_torn_last_line_costs_no_curve(tmp_path: Path):
    run = write(tmp_path)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "spl')
    cells = load_cells([tmp_path])
    assert list(cells["status"]) == ["done"]
    curves = load_curves(cells)
    kl = curves[(curves["metric"] == "kl") & (curves["split"] == "valid")]
    assert list(kl["step"]) == [10, 20, 30] and list(kl["seed"]) == [0, 0, 0]


def test_curves_that_cannot_be_read_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (write(tmp_path).path / "metrics.jsonl").write_text("torn\n{}\n")
    assert load_curves(load_cells([tmp_path])).empty
    assert "line 1 is damaged" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "run.json").unlink(),
        lambda path: (path / "run.json").write_text("{"),
        lambda path: (path / "units.npz").unlink(),
        lambda path: (path / "metrics.jsonl").unlink(),
        lambda path: (path / "metrics.jsonl").write_text("{}\n\n{}\n"),
        lambda path: path.rename(path.with_name("s9")),
    ],
)
def test_damage_is_told_as_the_record_tells_it(tmp_path: Path, damage):
    write(tmp_path)
    damage(write(tmp_path, seed=1).path)
    _, cell = load_cells([tmp_path]).to_dict("records")
    assert cell["status"] == "damaged"
    assert cell["reason"] == "; ".join(validate(Path(cell["path"]))) != ""


LINE = b'{"step": 1, "split": "valid", "metric": "kl", "value": 2, "seconds": 0.5}'


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\n", b"{", LINE, LINE + b"\n", LINE + b"\n" + LINE[:20], LINE + b"\r\n{}\n"),
        *(b"{}\n\n{}\n", b"[1]\n", b"null\n", b"1,2\n", b"{},{}\n", b"{}{}\n", b"{}]\n[{}\n"),
        *(b'{"step": 1\n"x": 2}\n', b'{"value": NaN}\n', b'{"x": [-Infinity]}\n', b"\xff\n"),
        *(b'{"value": 1e999}\n', b'{"value": "7", "step": true}\n', b'{"split": ["a"]}\n'),
        *(b'{"value": 1%b}\n' % (b"0" * 400), b"[" * 100_000 + b"\n", b'{"metric": "\\ud800"}\n'),
    ],
)
def test_lines_are_read_as_the_record_reads_them(tmp_path: Path, content: bytes):
    path = write(tmp_path).path / "metrics.jsonl"
    path.write_bytes(content)
    cells = load_cells([tmp_path])
    try:
        lines = read_metrics(path)
    except ValueError as error:
        assert list(cells["reason"]) == [str(error)] and load_curves(cells).empty
        return
    assert list(cells["status"]) == ["done"]
    curves = load_curves(cells)
    for name in ("step", "value", "seconds"):
        numbers = [line.get(name) for line in lines]
        known = [type(x) in (int, float) and x < 10**300 for x in numbers]
        assert list(curves[name].notna() & (curves[name] < math.inf)) == known
        assert list(curves[name][known]) == [x for x, k in zip(numbers, known, strict=True) if k]
    for name in ("split", "metric", "estimator"):
        words = [line.get(name) for line in lines]
        assert list(curves[name].isna()) == [word is None for word in words]
    curves.to_parquet(tmp_path / "curves.parquet")


def test_a_file_that_grew_is_read_again(tmp_path: Path):
    run = write(tmp_path)
    before = len(load_curves(load_cells([tmp_path])))
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(LINE + b"\n")
    assert len(load_curves(load_cells([tmp_path]))) == before + 1


def test_a_cell_in_two_folders_counts_once(tmp_path: Path):
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, status="failed", reason="out of memory")
    write(there, nll=30.0)
    cells = load_cells([here, there, there])
    assert sorted(cells["status"]) == ["done", "duplicate"]
    (variant,) = summarise(cells).to_dict("records")
    assert (variant["done"], variant["cells"], variant["nll"]) == (1, 1, 30.0)


def test_numbers_that_are_none_do_not_stop_the_table(tmp_path: Path):
    run = write(tmp_path)
    text = (run.path / "run.json").read_text()
    huge = text.replace('"train_seconds": 10.0', f'"train_seconds": 1{"0" * 400}')
    assert huge != text
    (run.path / "run.json").write_text(huge.replace('"steps": 30', '"steps": ["x"]'))
    cells = load_cells([tmp_path])
    assert list(cells["status"]) == ["done"]
    assert math.isnan(cells["cost/train_seconds"][0]) and math.isnan(cells["cost/steps"][0])
    assert row(shown(tmp_path), "plain")[-1] == "-"


# -- the terminal ----------------------------------------------------------------------------------


def test_text_of_a_record_is_no_markup(tmp_path: Path):
    write(tmp_path, variant="plain [red]x[/red] \x1b[31m:smile:")
    write(tmp_path, "other", status="failed", reason="ValueError: [/bold]\n\x1b]0;title\x07")
    text = shown(tmp_path)
    assert "plain [red]x[/red]  [31m:smile:" in text
    assert "failed, ValueError: [/bold]  ]0;title" in text
    assert "\x1b" not in text


def test_a_narrow_terminal_says_what_it_leaves_out(tmp_path: Path):
    for seed in range(3):
        write(tmp_path, seed=seed, nll=30.0 + seed)
    assert "Too narrow" not in shown(tmp_path)
    text = shown(tmp_path, width=60)
    assert "Too narrow to show ppl, seconds" in text and "31.00" in text
    assert max(map(len, text.splitlines())) <= 60


def test_rows_of_other_data_are_not_compared_in_silence(tmp_path: Path):
    write(tmp_path)
    warning = "Do not compare these rows"
    assert warning not in shown(tmp_path)
    run = write(tmp_path, "other")
    with run.lease():
        run.write(provenance={"data_hash": "another"})
    assert warning in shown(tmp_path)


def test_no_results_end_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for name, expected in (("", "holds no runs"), ("none", "is not there")):
        assert main([str(tmp_path / name)]) == 1
        out, error = capsys.readouterr()
        assert expected in error and error.count("\n") == 1 and not out
    monkeypatch.chdir(tmp_path)
    assert main([]) == 1 and "results is not there" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main([str(tmp_path / "file")]) == 1 and "is no folder" in capsys.readouterr().err
    write(tmp_path / "results", status="failed", reason="no memory")
    assert main([]) == 0 and "failed, no memory" in capsys.readouterr().out


def test_the_command_needs_no_torch(tmp_path: Path):
    write(tmp_path)
    code = (
        "import sys; sys.modules['torch'] = None\n"  # any import of it fails
        "from leaderboard import figures, __main__\n"
        f"sys.exit(__main__.main([{str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "plain" in done.stdout and not done.stderr, done.stderr


# -- figures ---------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    for seed in range(2):
        write(tmp_path, seed=seed, kl=0.0, verdict="collapsed", truth_mi=2.0)
        write(tmp_path, "other", seed=seed, kl=2.0, truth_mi=2.0)
    return tmp_path


def test_a_figure_is_the_same_bytes_again(pair: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--dataset", "toy", "--methods", "plain", "other", "--mark", "15", "ramp"]
    files = []
    for out in (pair / "one", pair / "two"):
        assert figures.main([str(pair), str(out), *options]) == 0
        files.append([(out / f"collapse.{kind}").read_bytes() for kind in ("svg", "png")])
    assert files[0] == files[1]
    assert b"<svg" in files[0][0] and files[0][1].startswith(b"\x89PNG")
    assert b"<dc:date>" not in files[0][0]


def test_a_figure_draws_seeds_and_mean_of_validation(pair: Path):
    figure = figures.collapse(load_cells([pair]), "toy", ["plain", "other"], ["A", "B"])
    rate, gain = figure.axes
    seeds_and_mean = [list(line.get_ydata()) for line in gain.lines[:3]]
    assert seeds_and_mean == [[10, 20, 30], [11, 21, 31], [10.5, 20.5, 30.5]]
    assert max(max(line.get_ydata()) for line in rate.lines) == 2.0  # the test split's 99 is not in
    assert figure.texts[0].get_text() == "Same model, same data: A loses its code, B keeps it"
    assert [text.get_text() for text in gain.texts[:2]] == ["A\n30.5 nats", "B\n30.5 nats"]
    figure.draw_without_rendering()
    for panel in figure.axes:  # the labels stand apart where the lines end together
        first, second = (text.get_window_extent() for text in panel.texts[:2])
        assert not first.overlaps(second)


def test_the_headline_claims_no_more_than_the_verdicts(pair: Path):
    write(pair, "other", seed=2, verdict="unclear", truth_mi=2.0)
    write(pair, seed=2, verdict="collapsed", truth_mi=2.0)
    figure = figures.collapse(load_cells([pair]), "toy", ["plain", "other"])
    assert figure.texts[0].get_text() == "Same model, same data: plain and other"


def test_a_figure_without_its_runs_ends_in_one_sentence(
    pair: Path, capsys: pytest.CaptureFixture[str]
):
    options = ["--dataset", "toy", "--methods", "plain"]
    assert figures.main([str(pair), str(pair), *options, "none"]) == 1
    assert "One finished variant of none on toy is needed, 0 found" in capsys.readouterr().err
    extra = write(pair, identity="fedcba987654").path
    assert figures.main([str(pair), str(pair), *options, "other"]) == 1
    assert "2 found" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        figures.main([str(pair), str(pair), "--mark", "x", "y"])
    shutil.rmtree(extra)
    for run in find_runs(pair):
        (run / "metrics.jsonl").write_text("")
    with pytest.raises(figures.Unfit, match="plain recorded no kl"):
        figures.collapse(load_cells([pair]), "toy", ["plain", "other"])
