"""A grid without a cluster: planned, submitted to this machine, watched, cut off, brought to its
end. What needs SLURM is in test_slurm.py."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from benchmark import compose, record, run
from benchmark.lease import Lease, holder
from slurm import (
    cancel,
    cluster,
    estimate,
    grid,
    job,
    launch,
    logs,
    page,
    pool,
    queue,
    runner,
    status,
    submit,
)
from slurm.cluster import Executor
from slurm.ledger import Attempt, Ledger
from tests import cells
from tests.cells import SMALL, differences, fill, small_file_system

WORDS = [word for word in SMALL if not word.startswith(("method=", "threads="))]


@pytest.fixture(autouse=True)
def one_thread():
    with cells.one_thread():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def words(tmp_path: Path, data: Path) -> list[str]:
    return [*WORDS, f"results_dir={tmp_path / 'results'}", f"data_dir={data}"]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


def submitted(*words: str) -> int:
    return submit.main(list(words))


def states(results: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for standing in grid.look(results):
        found[standing.state] = found.get(standing.state, 0) + 1
    return found


def writer(folder: Path) -> int:
    """The process that writes a folder."""
    return holder(folder)["pid"]


def until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.1)


# Words -------------------------------------------------------------------------------------------


def test_a_grid_is_composed_once_a_variant_and_data_set(words, monkeypatch):
    asked, composed = compose.cell, []
    monkeypatch.setattr(compose, "cell", lambda w: (composed.append(w), asked(w))[1])
    found = submit.plan([*words, "method=vae,free_bits", "seed=range(0,7)"])
    assert len(found) == 14 and len(composed) == 2


def test_grids_of_a_file_are_one_submission(words, tmp_path, results, capsys):
    """In their order, each cell once; what the command line says goes with every grid."""
    file = tmp_path / "grids.txt"
    file.write_text("# telling\nmethod=vae 'seed=range(1,3)'  # two\n\nmethod=lm,vae seed=0,1,2\n")
    asked = submit.order([f"grids={file}", *words, "threads=1"])
    found = [(cell.method, cell.seed) for cell, _ in submit.plan(*asked.grids)]
    assert found == [("vae", 1), ("vae", 2), ("lm", 0), ("lm", 1), ("lm", 2), ("vae", 0)]
    assert {config.threads for _, config in submit.plan(*asked.grids)} == {1}
    file.write_text("method=lm seed=5 budget.clip=3,4\n")
    assert submitted(f"grids={file}", *words, "cluster=inline") == 0
    found = [known for _, known in record.scan(results)]
    assert [known["status"] for known in found] == ["done", "done"]
    for known in found:
        with compose.hydra_ready():
            own = known["provenance"]["submitted"]["words"]
            alone, method = compose.cell(own)
            assert run.make_cell(alone, method, own).id == known["cell"]["id"]
    file.write_text("# nothing\n")
    assert submitted(f"grids={file}", *words, "--dry-run") == 1
    assert "holds no grid" in capsys.readouterr().err


def test_several_files_of_grids_are_read_one_after_another(words, tmp_path):
    for name, method in (("one", "vae"), ("two", "lm")):
        (tmp_path / name).write_text(f"method={method} seed=0\n")
    asked = submit.order([f"grids={tmp_path / name}" for name in ("two", "one")] + words)
    assert [cell.method for cell, _ in submit.plan(*asked.grids)] == ["lm", "vae"]


def test_the_command_lines_words_win_over_a_files(words, tmp_path):
    (tmp_path / "grids").write_text("method=vae threads=2\n")
    ((_, config),) = submit.plan(*submit.order([f"grids={tmp_path / 'grids'}", *words]).grids)
    assert config.threads == 2
    asked = submit.order([*words, "threads=1", f"grids={tmp_path / 'grids'}"])
    ((_, config),) = submit.plan(*asked.grids)
    assert config.threads == 1


def test_a_cell_keeps_the_words_that_first_ask_for_it(words, tmp_path):
    (tmp_path / "grids").write_text("method=vae seed=1 threads=2\nseed=0,1 method=vae threads=1\n")
    first, second = submit.worded(*submit.order([f"grids={tmp_path / 'grids'}", *words]).grids)
    assert first[0].seed == 1 and first[1].threads == 2
    assert first[2] == ["method=vae", "seed=1", "threads=2", *words]
    assert second[2] == ["seed=0", "method=vae", "threads=1", *words]


def test_a_comment_begins_where_a_word_could(tmp_path):
    lines = ["# don't", "  # nor this", "a=/x/a#b c#=1 # it's"]
    lines += ["'#a=1' \"b # c\"#d", "e\\ #f=1 #g", "#"]
    (tmp_path / "grids").write_text("\n".join(lines))
    assert submit.read_grids(str(tmp_path / "grids"), ["s=1"]) == [
        ["a=/x/a#b", "c#=1", "s=1"],
        ["#a=1", "b # c#d", "s=1"],
        ["e #f=1", "s=1"],
    ]


@pytest.mark.parametrize(
    "word",
    [
        *("cluster=local", "cluster.parallel=2", "only=failed", "grids=more", "leaderboard=true"),
        *("--wait", "-m"),
    ],
)
def test_a_grid_has_no_words_of_the_command_line(word, tmp_path, capsys):
    (tmp_path / "grids").write_text(f"# these\nmethod=vae\nmethod=lm {word} seed=0\n")
    assert submitted(f"grids={tmp_path / 'grids'}", "--dry-run") == 1
    error = capsys.readouterr().err
    assert f"grids, line 3: {word} belongs to the command line" in error and error.count("\n") == 1


def test_a_planned_cell_is_the_one_that_benchmark_run_makes(words):
    found = submit.plan([*words, "method=free_bits", "method.floor=0.5", "seed=3,5"])
    with compose.hydra_ready():
        for (cell, config), seed in zip(found, (3, 5), strict=True):
            alone = [*words, "method=free_bits", "method.floor=0.5", f"seed={seed}"]
            made, method = compose.cell(alone)
            assert run.make_cell(made, method, alone) == cell
            assert OmegaConf.create(submit.stored(cell, config)).seed == seed == cell.seed


def test_jobs_may_start_in_another_folder(words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    relative = [w for w in words if not w.startswith("data_dir")]
    (_, config), *_ = submit.plan([*relative, "data_dir=here", "method=vae"])
    assert config.data_dir == str(tmp_path / "here")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("method=vee", "there is no method 'vee'; did you mean 'vae'"),
        ("only=some", "only=some is no choice"),
        ("--wate", "there is no flag --wate"),
        ("cluster=slrm", "there is no cluster 'slrm'; did you mean 'slurm'"),
        ("cluster.tim=3", "did you mean 'cluster.time'"),
        ("cluster.time=0", "cluster.time must be above 0"),
        ("cluster.memory=lots", "cluster.memory must be a number with M or G behind it"),
        ("cluster.classes=[{gpu: 1}]", "no resource 'gpu'; did you mean 'gpus'"),
        ("cluster.group=", "cluster.group= has no value"),
        ("leaderboard=maybe", "cluster.leaderboard must be true or false, not 'maybe'"),
        ("grids=/nowhere", "grids=/nowhere cannot be read"),
        ("stop_after=1", "a grid's cells run to their end"),
        ("seed=", "seed= is an empty sweep"),
        ("method=free_bits method.per=group_batch method.groups=3", "does not divide the 8 units"),
        ("dataset.path=/nowhere dataset=ptb", "/nowhere"),
    ],
)
def test_bad_words_are_refused_and_leave_nothing(wrong, said, words, results, capsys):
    assert (
        submitted(*words, "method=vae", "cluster=inline", *wrong.split(" ", wrong.count("method")))
        == 1
    )
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not list(results.rglob("run.json"))


def test_without_slurm_it_says_so(words, results, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert submitted(*words, "method=vae") == 1
    assert "no SLURM here" in capsys.readouterr().err
    assert states(results) == {"lost": 1}  # laid down; the next submission takes it


def test_a_dry_run_says_what_would_run_and_writes_nothing(words, results, capsys):
    asked = [*words, "method=vae,lm", "seed=0,1,2"]
    assert submitted(*asked, "--dry-run") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "6 cells to run, 0 done"
    assert "vae x synthetic: 3 seeds" in said
    assert any("hours" in line for line in said) and not results.exists()
    assert submitted(*words, "method=lm", "seed=0,1", "cluster=inline") == 0
    capsys.readouterr()
    assert submitted(*asked, "--dry-run") == 0
    said = capsys.readouterr().out
    assert said.endswith("4 cells to run, 2 done\n") and "from 2 finished cells" in said


def test_a_dry_run_needs_no_data(words, capsys):
    assert submitted(*words, "method=vae", "dataset=yelp", "dataset.sentences={}", "--dry-run") == 0
    assert "sizes are guessed: yelp" in capsys.readouterr().out


def test_the_estimate_grows_with_the_work(words):
    with compose.hydra_ready():
        small, large = (
            compose.cell([*words, "method=vae", f"budget.steps={n}"])[0] for n in (50, 500)
        )
    assert estimate.operations(large)[0] == pytest.approx(10 * estimate.operations(small)[0])


def test_the_estimate_knows_how_slow_a_method_was(words, results):
    assert submitted(*words, "method=lm,vae", "cluster=inline") == 0
    for _, known in record.scan(results):  # each by the words that make it alone
        own = known["provenance"]["submitted"]["words"]
        assert own == [*words, f"method={known['cell']['method']}"]
    path = next(results.glob("synthetic/vae/*/s0/run.json"))
    known = json.loads(path.read_text())
    known["cost"]["train_seconds"] = 36_000.0
    path.write_text(json.dumps(known))

    def hours(method: str) -> float:
        cells_ = submit.plan([*words, f"method={method}", "seed=7"])
        return float(next(iter(estimate.estimate(results, cells_))).split()[1])

    assert hours("vae") == pytest.approx(estimate.SHARE * 10)
    assert 0 < hours("lm") < hours("free_bits") < 0.1  # of which nothing is known


def test_the_words_of_a_generator_are_counted(words):
    (_, config), *_ = submit.plan([*words, "method=vae", "data_dir=nowhere"])
    work, _, guessed = estimate.operations(config)
    config.dataset.generator.words *= 2
    assert guessed and work < estimate.operations(config)[0] < 1.5 * work


def test_classes_of_cells_have_their_own_resources():
    found = cluster.load(
        [
            "cluster=slurm",
            "cluster.time=60",
            "cluster.classes=[{dataset: 'y*', memory: 16G}, {method: a*, dataset: yelp, time: 90}]",
        ]
    )
    assert found.executor is Executor.slurm
    assert found.resources("vae", "ptb") == found.resources("a", "ptb")
    assert found.resources("vae", "yelp").memory == "16G"
    assert (found.resources("aa", "yelp").time, found.resources("vae", "yelp").time) == (90, 60)
    assert cluster.restore(json.loads(json.dumps(found.plain()))) == found


# The ledger --------------------------------------------------------------------------------------


def attempt(token: str, cell: str, progress: tuple[int, int], **fields) -> Attempt:
    about = cluster.load([]).plain()
    return Attempt(token, about, [[cell]], {cell: progress}, time=0.0, **fields)


def test_the_ledger_tells_attempts_and_wills(tmp_path):
    ledger = Ledger(tmp_path)
    assert ledger.read() == ({}, {})
    ledger.intend(attempt("a", "x", (0, 0)))
    ledger.submitted("a", "12")
    ledger.cancelled(["x"])
    attempts, histories = ledger.read()
    assert attempts["a"].element(0) == "12" and histories["x"].cancelled
    ledger.intend(attempt("b", "x", (5, 0)))
    ledger.refused("b", "no such partition")
    attempts, histories = ledger.read()
    assert not histories["x"].cancelled and attempts["b"].refused
    assert [a.token for a, _, _ in histories["x"].attempts] == ["a", "b"]


def test_a_torn_line_of_the_ledger_costs_no_other(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.intend(attempt("a", "x", (0, 0)))
    with ledger.path.open("ab") as file:
        file.write(b'{"event": "subm')
    assert list(ledger.read()[0]) == ["a"]
    ledger.submitted("a", "7")
    assert ledger.read()[0]["a"].job == "7"


def test_attempts_without_progress_are_counted_since_the_users_own(tmp_path):
    ledger, here = Ledger(tmp_path), (5, 0)

    def fruitless() -> int:
        return ledger.read()[1]["x"].fruitless(here)

    for n, (progress, repair) in enumerate([(here, False), (here, True), (here, True)]):
        ledger.intend(attempt(str(n), "x", progress, repair=repair))
    assert fruitless() == 3
    ledger.intend(attempt("user", "x", here))
    assert fruitless() == 1
    ledger.intend(attempt("away", "x", here, repair=True))
    ledger.refused("away", "the controller is away")
    assert fruitless() == 1  # nobody ran it
    ledger.intend(attempt("on", "x", (7, 0), repair=True))
    assert fruitless() == 0 and ledger.read()[1]["x"].fruitless((7, 0)) == 1


def test_an_array_elements_name():
    two = Attempt("t", {}, [["x"], ["y"]], {}, 0.0, job="9")
    assert (two.element(0), two.element(1)) == ("9_0", "9_1")
    assert Attempt("t", {}, [["x", "y"]], {}, 0.0, job="9").element(0) == "9"


# Here and now ------------------------------------------------------------------------------------


def test_inline_runs_every_cell_and_one_failure_stops_none(words, results, monkeypatch, capsys):
    from methods.free_bits import FreeBits

    def broken(self, task):
        raise RuntimeError("a bug")

    monkeypatch.setattr(FreeBits, "recipe", broken)
    assert submitted(*words, "method=free_bits,lm", "cluster=inline") == 1
    assert states(results) == {"failed": 1, "done": 1}
    assert submitted(*words, "method=free_bits,lm", "cluster=inline") == 0
    assert "0 cells submitted" in capsys.readouterr().out.splitlines()[-1]
    monkeypatch.undo()
    assert submitted(*words, "method=free_bits,lm", "cluster=inline", "only=failed") == 0
    assert states(results) == {"done": 2}


def test_a_cell_runs_by_what_lies_in_its_folder(words, results, monkeypatch):
    """Neither configs/ nor the command line is read by a job."""
    assert submitted(*words, "method=stack", "cluster=inline", "seed=0", "--dry-run") == 0
    cells_ = submit.plan([*words, "method=stack", "method.of=[free_bits,word_dropout]", "seed=4"])
    submit.prepare(cells_)
    submit.lay_down(results, cells_)
    path = cells_[0][0].path(results)

    def gone(*_, **__):
        raise AssertionError("Hydra was asked")

    monkeypatch.setattr(compose.hydra, "compose", gone)
    assert run.run_stored(path, lambda: False) == "done"
    assert record.validate(path) == []


def test_a_job_with_other_code_says_so(words, results, monkeypatch, caplog):
    made = submit.plan([*words, "method=lm"])
    submit.prepare(made)
    submit.lay_down(results, made)
    path = made[0][0].path(results)
    before = record.RunDirectory(path).read()
    assert before and before["provenance"]["submitted"]["fingerprint"]
    monkeypatch.setattr(record, "fingerprint", lambda *_: "other")
    assert run.run_stored(path, lambda: False) == "done"
    after = record.RunDirectory(path).read()
    assert after and after["provenance"]["fingerprint"] == "other"
    assert after["provenance"]["submitted"] == before["provenance"]["submitted"]
    assert "changed since this cell was submitted" in caplog.text


def test_what_cannot_be_prepared_on_the_node_fails_with_the_reason(words, results):
    made = submit.plan([*words, "method=lm"])
    submit.lay_down(results, made)
    path = made[0][0].path(results)
    stored = OmegaConf.load(path / "config.yaml")
    stored.data_dir = "/proc/self/fd/x"
    OmegaConf.save(stored, path / "config.yaml")
    assert run.run_stored(path, lambda: False) == "failed"
    known = record.RunDirectory(path).read()
    assert known and "cannot be written to" in known["reason"]


def test_a_disk_of_data_without_room_fails_a_cell_with_the_reason(words, results, monkeypatch):
    """Only where the cell's own disk has none is there nothing to do but wait."""

    def no_room(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "/data/train.npy")

    made = submit.plan([*words, "method=lm"])
    submit.lay_down(results, made)
    path = made[0][0].path(results)
    monkeypatch.setattr("benchmark.cell.gather", no_room)
    with monkeypatch.context() as patch:
        patch.setattr(record.RunDirectory, "write", no_room)
        with pytest.raises(OSError, match="No space"):
            run.run_stored(path, lambda: False)
    assert run.run_stored(path, lambda: False) == "failed"
    known = record.RunDirectory(path).read()
    assert known and known["status"] == "failed"
    assert known["reason"] == "/data/train.npy cannot be written: No space left on device"


def test_a_copy_of_the_code_is_whole_or_not_there(tmp_path, monkeypatch):
    copied = launch._snapshot(tmp_path)
    tracked = subprocess.run(
        ["git", "ls-files", "benchmark", "methods", "slurm", "configs"],
        capture_output=True,
        text=True,
        cwd=launch.ROOT,
    )
    for name in tracked.stdout.split():
        assert (copied / name).read_bytes() == (launch.ROOT / name).read_bytes()
    copy, room = shutil.copy2, iter([True] * 20)

    def copy2(source, target):
        if not next(room, False):
            raise OSError(errno.ENOSPC, "no room", str(target))
        copy(source, target)

    monkeypatch.setattr(shutil, "copy2", copy2)
    with pytest.raises(OSError, match="no room") as raised:
        launch._snapshot(tmp_path)
    assert raised.value.errno == errno.ENOSPC  # what who waits waits out
    assert list((tmp_path / ".slurm" / "code").iterdir()) == [copied]


def test_a_stale_result_is_run_again_and_kept(words, results, monkeypatch):
    assert submitted(*words, "method=lm", "cluster=inline") == 0
    monkeypatch.setattr(grid, "RESULT_VERSION", 2)
    assert states(results) == {"stale": 1}
    assert submitted(*words, "method=lm", "cluster=inline") == 0  # only=missing
    monkeypatch.setattr(record, "RESULT_VERSION", 2)
    assert submitted(*words, "method=lm", "cluster=inline", "only=stale") == 0
    assert states(results) == {"done": 1}
    assert len(list((results / ".stale").rglob("run.json"))) == 1


def test_a_damaged_record_is_seen_kept_and_written_anew(words, results, capsys):
    asked = [*words, "method=lm,vae", "cluster=inline"]
    assert submitted(*asked) == 0
    path = next(results.glob("synthetic/lm/*/s0"))
    (path / "run.json").write_text('{"schema_version": 1, "cell"')
    assert states(results) == {"damaged": 1, "done": 1}
    assert status.main([str(results)]) == 1 and "damaged" in capsys.readouterr().out
    assert submitted(*asked) == 0  # only=missing: nothing to do, and no traceback
    assert states(results) == {"damaged": 1, "done": 1}
    assert submitted(*asked, "only=failed") == 0
    assert states(results) == {"done": 2} and record.validate(path) == []
    assert len(list((results / ".stale").rglob("run.json"))) == 1


def test_a_member_of_a_group_that_was_cancelled_is_passed_over(words, results):
    made = submit.plan([*words, "method=lm", "seed=0,1"])
    submit.prepare(made)
    submit.lay_down(results, made)
    first, second = (cell.path("").as_posix() for cell, _ in made)
    Ledger(results).cancelled([first])
    found = job.one_by_one(results, [first, second], lambda: 0)
    assert found == {first: "cancelled", second: "done"}


# The local runner --------------------------------------------------------------------------------


def test_a_local_grid_survives_the_death_of_runner_and_cell(words, results, capsys):
    long = [*words, "budget.steps=150", "save_every=0"]
    assert submitted(*long, "method=lm,free_bits", "seed=0,1", "cluster=local") == 0
    until(lambda: states(results).get("running") == 2)
    running = [s.cell for s in grid.look(results) if s.state == "running"]
    until(lambda: grid.progress(results / running[0])[0] > 0)
    os.kill(writer(results / running[0]), signal.SIGKILL)  # the runner starts it again
    time.sleep(1.0)
    os.kill(writer(results / ".slurm/pool"), signal.SIGKILL)
    until(lambda: not grid.pool_lives(results))
    assert "done" in states(results) or "lost" in states(results)
    assert status.main([str(results), "--repair"]) == 0
    assert submitted(*long, "method=lm,free_bits", "seed=0,1", "cluster=local", "--wait") == 0
    assert states(results) == {"done": 4}
    calm = results.parent / "calm"
    alone = [w for w in long if not w.startswith("results_dir")]
    assert (
        submitted(
            *alone, f"results_dir={calm}", "method=lm,free_bits", "seed=0,1", "cluster=inline"
        )
        == 0
    )
    for standing in grid.look(results):
        assert record.validate(results / standing.cell) == []
        known = record.RunDirectory(calm / standing.cell).read()
        assert known and differences(known["summary"], standing.record["summary"]) == []


def test_a_cancelled_cell_is_not_run_again_unless_the_user_says_so(words, results, capsys):
    long = [*words, "budget.steps=100000", "method=lm", "seed=0,1,2", "cluster=local"]
    assert submitted(*long, "cluster.parallel=1") == 0
    until(lambda: states(results).get("running") == 1)
    assert cancel.main([f"results_dir={results}", "nobody"]) == 1
    assert cancel.main([f"results_dir={results}", "synthetic"]) == 0
    until(lambda: not grid.pool_lives(results))
    assert states(results) == {"cancelled": 3}
    assert runner.repair(results) == []
    assert submitted(*long, "--dry-run") == 0
    assert capsys.readouterr().out.endswith("0 cells to run, 0 done\n")
    assert submitted(*long, "--dry-run", "only=cancelled") == 0
    assert capsys.readouterr().out.endswith("3 cells to run, 0 done\n")


def test_a_second_submitter_waits_for_its_turn(words, results, capsys):
    results.mkdir()
    with Lease(results / ".slurm" / "submit", "other", 30.0, 90.0):
        assert submitted(*words, "method=lm", "cluster=inline") == 1
    assert "is being written by process" in capsys.readouterr().err
    assert submitted(*words, "method=lm", "cluster=inline") == 0


@pytest.mark.parametrize(
    ("stop", "state"),
    [
        (lambda results: pool.command(["--stop", str(results)]), "lost"),
        (lambda results: cancel.main([f"results_dir={results}", "all"]), "cancelled"),
    ],
    ids=["stop", "cancel"],
)
def test_cells_whose_runner_was_killed_can_be_stopped(stop, state, words, results):
    long = [*words, "budget.steps=100000", "budget.halving.patience=1000", "method=lm"]
    assert submitted(*long, "seed=0,1", "cluster=local") == 0
    until(lambda: states(results) == {"running": 2})
    until(lambda: all(record.held(results / s.cell) for s in grid.look(results)))
    os.kill(writer(results / ".slurm/pool"), signal.SIGKILL)
    until(lambda: not grid.pool_lives(results))
    assert len(job.processes("slurm.job", results)) == 2
    assert stop(results) == 0
    until(lambda: not job.processes("slurm.job", results))
    assert states(results) == {state: 2}
    assert {known["status"] for _, known in record.scan(results)} == {"interrupted"}


def test_only_what_a_local_runner_started_is_ended(words, results, monkeypatch):
    """Not the members of a job that packs several, and no other cells than are meant."""
    made = [("mine", "local"), ("other", "local"), ("packed", "slurm")]
    for cell, executor in made:
        tried = attempt(cell, cell, (0, 0))
        tried.cluster["executor"] = executor
        Ledger(results).intend(tried)
    there = {n: [cell] for n, (cell, _) in enumerate(made)} | {7: ["by hand"]}
    monkeypatch.setattr(job, "processes", lambda *_: there)
    ended: list[int] = []
    monkeypatch.setattr(job, "terminate", ended.append)
    job.end(results, {"mine", "packed"})
    assert ended == [0]
    job.end(results)
    assert ended == [0, 0, 1]


def test_processes_are_told_apart_by_results_and_by_module(tmp_path, monkeypatch):
    """Whatever they call the folder, and whatever Python is told before the module."""
    (tmp_path / "other").mkdir()
    (tmp_path / "probe.py").write_text("import time; time.sleep(60)")
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to("mine")
    asked = {
        "mine": ["-m", "probe", "mine", "a", "b"],
        "absolute": ["-m", "probe", str(tmp_path / "mine")],
        "linked": ["-X", "utf8", "-m", "probe", "link"],
        "elsewhere": ["-m", "probe", "other"],
        "gone": ["-m", "probe", "nowhere"],
        "bare": ["-m", "probe"],
        "file": ["probe.py", "mine"],
    }
    started = {
        name: subprocess.Popen([sys.executable, *words], cwd=tmp_path)
        for name, words in asked.items()
    }
    try:
        found = job.processes("probe", tmp_path / "mine")
        wanted = {"mine": ["a", "b"], "absolute": [], "linked": []}
        assert found == {started[name].pid: more for name, more in wanted.items()}
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        assert job.processes("probe", tmp_path / "mine") == {}
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def test_no_process_is_stopped_here_for_a_runner_elsewhere(words, results, capsys):
    """Its number may be anybody's on this machine."""
    folder = results / ".slurm" / "pool"
    folder.mkdir(parents=True)
    Ledger(results).cancelled([])
    with subprocess.Popen(["sleep", "60"]) as anybody:
        about = {"host": "elsewhere", "boot": "another", "namespace": "pid:[1]", "uid": 0}
        lease = {**about, "pid": anybody.pid, "start": 1, "lease": "a", "released": 0}
        (folder / ".lease.1").write_text(json.dumps(lease))
        (folder / "pid").write_text(str(anybody.pid))  # as older code left it
        assert pool.command(["--stop", str(results)]) == 1
        said = capsys.readouterr().err
        assert "on elsewhere" in said and "stop it there" in said and said.count("\n") == 1
        assert anybody.poll() is None
        anybody.kill()


@pytest.mark.parametrize("stopped_again", [False, True])
def test_what_is_submitted_while_a_stopped_runner_saves_is_run(stopped_again, words, results):
    """By a runner that waits for the first one's end, unless that, too, is stopped."""
    long = [*words, "budget.steps=400", "method=lm", "cluster=local"]
    assert submitted(*long, "seed=0") == 0 and submitted(*long, "seed=1") == 0
    until(lambda: states(results) == {"running": 2})
    until(lambda: len(job.processes("slurm.pool", results)) == 1)  # the first has read all
    cells_ = list(job.processes("slurm.job", results))
    for process in cells_:
        os.kill(process, signal.SIGSTOP)  # they take long to save
    try:
        pool.stop(results)
        assert submitted(*words, "method=lm", "seed=2,3", "cluster=local") == 0
        time.sleep(12.0)
        assert len(job.processes("slurm.pool", results)) == 2
        if stopped_again:
            pool.stop(results)
    finally:
        for process in cells_:
            os.kill(process, signal.SIGCONT)
    left = {"lost": 4} if stopped_again else {"done": 4}
    until(lambda: not job.processes("slurm.pool", results))
    assert states(results) == left and not job.processes("slurm.job", results)


# A full disk -------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(results) -> Iterator[Path]:
    """A file system of 12 MB, for the results."""
    with small_file_system(results):
        yield results


def test_a_local_grid_waits_for_room_on_the_disk(words, results, small_disk):
    """A cell that cannot take its lease ends neither the runner nor who waits, nor is it given
    up."""
    asked = [*words, "method=lm", "budget.steps=1500", "cluster=local", "cluster.attempts=1"]
    command = [sys.executable, "-m", "slurm.submit", *asked, "--wait"]
    waits = subprocess.Popen(command)
    try:
        until(lambda: any(grid.progress(results / s.cell)[0] for s in grid.look(results)))
        (standing,) = grid.look(results)
        os.kill(writer(results / standing.cell), signal.SIGSTOP)  # it writes no more
        ballast = fill(results, 0)
        os.kill(writer(results / standing.cell), signal.SIGKILL)
        for _ in range(75):
            time.sleep(0.2)
            assert grid.pool_lives(results) and waits.poll() is None
        ballast.unlink()
        assert waits.wait(120) == 0
    finally:
        waits.kill()
        waits.wait()
    assert states(results) == {"done": 1} and len(Ledger(results).read()[0]) == 1
    until(lambda: not grid.pool_lives(results))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_cell_waits_for_room(number, monkeypatch, tmp_path):
    answers: list[object] = [OSError(number, "no room"), OSError(number, "no room"), "done"]

    def run_stored(*_):
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(job, "run_stored", run_stored)
    monkeypatch.setattr(job, "BUSY", 0.0)
    assert job.one_by_one(tmp_path, ["x"], lambda: 0) == {"x": "done"}
    answers.append(OSError(number, "no room"))
    stops = iter([0, 1])
    monkeypatch.setattr(job, "BUSY", 1.0)
    assert job.one_by_one(tmp_path, ["x"], lambda: next(stops)) == {"x": "interrupted"}


def test_a_cell_that_ends_at_once_rests_and_is_given_up_when_there_is_room(
    words, results, monkeypatch
):
    made = submit.plan([*words, "method=lm"])
    submit.lay_down(results, made)
    tried = attempt("t", made[0][0].path("").as_posix(), (0, 0))
    tried.cluster |= {"executor": "local", "attempts": 2}
    Ledger(results).intend(tried)
    begun: list[float] = []

    def start(*_) -> subprocess.Popen:
        begun.append(time.monotonic())
        return subprocess.Popen(["false"])

    refusals = [OSError(errno.ENOSPC, "no room")]

    def give_up(*words) -> None:
        if refusals:
            raise refusals.pop()
        runner.give_up(*words)

    monkeypatch.setattr(pool, "PAUSE", 1.0)
    monkeypatch.setattr(pool, "start", start)
    monkeypatch.setattr(pool, "give_up", give_up)
    pool.Pool(results).run(lambda: 0)
    assert states(results) == {"failed": 1}
    assert "3 runs in a row" in str(grid.look(results)[0].reason)
    assert len(begun) == 3 and min(b - a for a, b in pairwise(begun)) >= 1.0


def test_a_runner_that_stops_leaves_what_is_new_to_who_waits(words, results, monkeypatch):
    """Said to be read, it would be nobody's: the second runner would end."""
    made = submit.plan([*words, "method=lm"])
    submit.lay_down(results, made)
    tried = attempt("t", made[0][0].path("").as_posix(), (0, 0))
    tried.cluster |= {"executor": "local"}
    Ledger(results).intend(tried)
    (results / ".slurm/pool").mkdir()  # the lease's
    monkeypatch.setattr(pool, "start", lambda *_: subprocess.Popen(["true"]))
    stops = iter([0, 1, 1])  # the signal comes while it reads
    pool.Pool(results).run(lambda: next(stops))
    assert pool._has_read(results) < Ledger(results).path.stat().st_size
    stops = iter([0, 0, 1])
    pool.Pool(results).run(lambda: next(stops))
    assert pool._has_read(results) == Ledger(results).path.stat().st_size


def test_a_local_runner_begins_when_there_is_room(results, monkeypatch):
    Ledger(results).cancelled([])
    blows, acquire = [OSError(errno.ENOSPC, "no room")], Lease.acquire

    def strike(self) -> None:
        if blows:
            raise blows.pop()
        acquire(self)

    ran = []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(Lease, "acquire", strike)
    monkeypatch.setattr(pool, "PAUSE", 0.0)
    monkeypatch.setattr(pool.Pool, "run", lambda self, _: ran.append(1))
    assert pool.main(results) == 0 and ran == [1]


def test_who_waits_outlasts_a_disk_without_room_for_what_it_says(words, results, monkeypatch):
    assert submitted(*words, "method=lm", "cluster=inline") == 0
    names = [standing.cell for standing in grid.look(results)]
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        ended = runner.wait(results, names, lambda: None, pause=0.0)
    assert ended == 0  # and only to close the file was an error


# Runs by hand, which are waited for ---------------------------------------------------------------


def begun_by_hand(results: Path, words: list[str]) -> ExitStack:
    """A run of the only cell of these words that would stop on the way; closed, it is cut off."""
    ((cell, config),) = submit.plan(words)
    config.stop_after = 1
    submit.lay_down(results, [(cell, config)])
    directory, lasts = record.RunDirectory(cell.path(results)), ExitStack()
    lasts.enter_context(directory.lease())
    directory.write(status="running")
    return lasts


@pytest.fixture
def cut_off(words, results, monkeypatch) -> list[str]:
    """Words whose cell a run by hand is at until somebody waits. Jobs run here and now."""
    asked = [*words, "method=lm"]
    by_hand = begun_by_hand(results, asked)

    def wait(*arguments) -> int:
        by_hand.close()
        return runner.wait(*arguments, pause=0.1)

    def here(results: Path, cells: list[str], _: cluster.Cluster, **__) -> None:
        launch.launch(results, cells, cluster.load(["cluster=inline"]))

    monkeypatch.setattr(submit, "wait", wait)
    monkeypatch.setattr(submit, "launch", here)
    return [*asked, "cluster=local", "--wait"]


def test_who_waits_runs_what_a_run_by_hand_left(words, results, monkeypatch):
    asked = [*words, "method=lm"]
    by_hand = begun_by_hand(results, asked)

    def wait(*arguments) -> int:
        threading.Timer(1.0, by_hand.close).start()
        return runner.wait(*arguments, pause=0.5)

    monkeypatch.setattr(submit, "wait", wait)
    assert submitted(*asked, "cluster=local", "--wait") == 0
    assert states(results) == {"done": 1}


def test_who_waits_runs_nothing_that_another_has_submitted(cut_off, words, results, monkeypatch):
    """Between the look and the right to submit."""
    alone = [*words, "method=lm", "cluster=inline"]
    rights = iter([lambda: None, lambda: submitted(*alone)])

    @contextmanager
    def too_late(results: Path):
        next(rights, lambda: None)()
        with launch.submitting(results):
            yield

    monkeypatch.setattr(submit, "submitting", too_late)
    assert submitted(*cut_off) == 0
    assert states(results) == {"done": 1} and len(Ledger(results).read()[0]) == 1


@pytest.mark.parametrize(
    ("struck", "status", "said"),
    [
        (record.Busy("another process submits"), 0, ""),
        (compose.UserError("SLURM does not answer."), 0, ""),
        (OSError(errno.ENOSPC, "No space left on device"), 0, ""),
        (launch.Refused("SLURM refuses the job."), 1, "SLURM refuses the job.\n"),
        (KeyboardInterrupt(), 130, "the same command waits for it again\n"),
    ],
)
def test_what_strikes_who_takes_over_a_run_by_hand(
    struck, status, said, cut_off, results, monkeypatch, capsys
):
    """Another submitter, a scheduler that is away and a full disk are waited for. What ends the
    command leaves the right to submit to the next one."""
    here, blows = submit.launch, [struck]

    def strike(results: Path, cells: list[str], *arguments, **more) -> None:
        if cells and blows:
            raise blows.pop()
        here(results, cells, *arguments, **more)

    monkeypatch.setattr(submit, "launch", strike)
    assert submitted(*cut_off) == status and not blows
    assert capsys.readouterr().err.endswith(said)
    assert states(results) == {"missing" if status else "done": 1}
    assert submitted(*cut_off) == 0 and states(results) == {"done": 1}


# The leaderboard ---------------------------------------------------------------------------------


def runs_done(results: Path) -> str:
    """What the leaderboard says, or nothing while there is none."""
    page = results / "leaderboard" / "RESULTS.md"
    return (
        page.read_text().partition(" runs are done")[0].rpartition("\n")[2] if page.exists() else ""
    )


def test_a_sweep_ends_in_its_leaderboard(words, results, capsys):
    asked = [*words, "method=lm", "cluster=inline"]
    assert submitted(*asked) == 0 and runs_done(results) == ""
    assert submitted(*asked, "seed=0,1", "leaderboard=true") == 0
    assert runs_done(results) == "2 of 2"
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"leaderboard: {results / 'leaderboard'}/")
    assert status.main([str(results)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == said
    (results / "leaderboard" / "index.html").touch()
    assert "index.html, built 20" in str(page.told(results))


def test_what_ends_in_no_leaderboard_has_lost_no_cell(words, results, caplog, capsys):
    results.mkdir()
    (results / "leaderboard").write_text("in the way")
    assert submitted(*words, "method=lm", "cluster=inline", "leaderboard=true") == 0
    assert states(results) == {"done": 1} and "leaderboard:" not in capsys.readouterr().out
    assert "the leaderboard was not built (" in caplog.text
    assert "cannot be written to" in caplog.text


def test_the_local_runner_builds_the_leaderboard_when_nothing_is_left(words, results):
    asked = [*words, "method=lm", "cluster=local"]
    assert submitted(*asked, "leaderboard=true") == 0
    until(lambda: runs_done(results))
    assert runs_done(results) == "1 of 1"
    until(lambda: not grid.pool_lives(results))
    (results / "leaderboard" / "RESULTS.md").unlink()
    assert submitted(*asked, "leaderboard=true") == 0  # nothing is missing but this
    until(lambda: runs_done(results) == "1 of 1")


def test_who_waits_for_the_local_runner_builds_the_leaderboard(words, results, monkeypatch):
    monkeypatch.setattr(submit, "wait", lambda *words: runner.wait(*words, pause=0.5))
    built = []
    monkeypatch.setattr(page, "build", lambda results: not built.append(results))
    monkeypatch.setattr(page, "told", lambda results: "here")
    asked = [*words, "method=lm", "cluster=local", "leaderboard=true", "--wait"]
    assert submitted(*asked) == 0 and built == [results]
    until(lambda: not grid.pool_lives(results))
    assert runs_done(results) == ""  # the runner was not asked


def test_the_local_runner_can_be_stopped(words, results):
    long = [*words, "method=lm", "budget.steps=100000", "cluster=local", "leaderboard=true"]
    pool.stop(results)  # there is none
    assert submitted(*long) == 0
    until(lambda: states(results).get("running") == 1)
    pool.stop(results)
    until(lambda: not grid.pool_lives(results))
    assert states(results) == {"lost": 1} and runs_done(results) == ""


def test_what_is_submitted_after_a_stop_is_run(words, results, capsys):
    """For a stop ends when all has been saved, not while the cells still count as running."""
    long = [*words, "method=lm", "budget.steps=400", "cluster=local"]
    assert submitted(*long) == 0
    until(lambda: states(results).get("running") == 1)
    (cell,) = job.processes("slurm.job", results)
    os.kill(cell, signal.SIGSTOP)  # it takes long to save
    stopping = subprocess.Popen([sys.executable, "-m", "slurm.pool", "--stop", str(results)])
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            stopping.wait(5)
    finally:
        os.kill(cell, signal.SIGCONT)
    assert stopping.wait(60) == 0
    capsys.readouterr()
    assert submitted(*long) == 0
    assert capsys.readouterr().out == "1 cells submitted (local)\n"
    until(lambda: not grid.pool_lives(results))
    assert states(results) == {"done": 1}


def test_who_waits_for_a_stop_may_leave(results, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    Ledger(results).cancelled([])
    monkeypatch.setattr(pool, "await_end", interrupted)
    assert pool.command(["--stop", str(results)]) == 130
    assert "end when they have saved" in capsys.readouterr().err


def test_published_runs_tell_how_long_others_take(words, results, capsys):
    """They name no folders, nor have they weights."""
    from leaderboard.load import load_cells
    from leaderboard.public import publish, restore

    assert submitted(*words, "method=lm", "cluster=inline") == 0
    publish(load_cells([results]), results.parent / "public")
    shutil.rmtree(results)
    restore(results.parent / "public", results)
    capsys.readouterr()
    assert submitted(*words, "method=lm", "seed=0,1", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "from 1 finished cells" in said and said.endswith("1 cells to run, 1 done\n")


# What there is to see ----------------------------------------------------------------------------


def test_status_and_logs_tell_where_things_stand(words, results, capsys):
    assert submitted(*words, "method=lm,vae", "seed=0,1", "cluster=inline") == 0
    (failed, *_), _ = submit.plan([*words, "method=lm,vae"])
    directory = record.RunDirectory(failed.path(results))
    with directory.lease():
        directory.write(status="failed", reason="out of memory: 3 GB")
    capsys.readouterr()
    assert status.main([str(results)]) == 1
    said = capsys.readouterr().out
    assert "1/2 done, 1 failed: out of memory" in said and "2/2 done" in said
    assert f"python -m slurm.logs {failed.path('').as_posix()}" in said
    assert status.main([str(results), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert {entry["state"] for entry in told} == {"done", "failed"}
    assert logs.main([failed.path("").as_posix(), f"results_dir={results}"]) == 0
    assert "out of memory: 3 GB" in (text := capsys.readouterr().out) and "log.txt" in text
    assert logs.main(["synthetic/lm/x/s0", f"results_dir={results}"]) == 1
    assert "did you mean" in capsys.readouterr().err
    assert status.main([str(results / "nowhere")]) == 2


def test_help_and_status_import_no_torch():
    for module in ("submit", "status", "cancel", "logs"):
        code = f"import sys, slurm.{module} as m; m.main(['--help'])"
        code += "; sys.exit('torch' in sys.modules)"
        assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["--help"], 0, "python -m slurm.pool RESULTS"),
        ([], 2, "python -m slurm.pool RESULTS"),
        (["nowhere"], 1, "nothing was submitted to nowhere"),
        (["--stop", "nowhere"], 1, "nothing was submitted to nowhere"),
    ],
)
def test_the_local_runner_makes_nothing_of_what_it_is_not_told(
    words, status, told, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert pool.command(words) == status
    out, err = capsys.readouterr()
    assert told in out + err and not list(tmp_path.iterdir())


def test_a_cell_that_never_gets_on_is_given_up(words, results, monkeypatch):
    """After so many jobs, and not before."""
    made = submit.plan([*words, "method=lm"])
    submit.lay_down(results, made)
    cell, ledger, launched = made[0][0].path("").as_posix(), Ledger(results), []
    monkeypatch.setattr(grid, "GAP", 0.0)
    monkeypatch.setattr(queue, "ask", lambda: queue.Queue({}))
    monkeypatch.setattr(runner, "launch", lambda *words, **_: launched.append(words[1]))
    for n in range(3):
        tried = attempt(f"t{n}", cell, (0, 0), repair=n > 0)
        tried.cluster["attempts"] = 3
        ledger.intend(tried)
        ledger.submitted(tried.token, str(n))
        assert runner.repair(results) == ([cell] if n < 2 else [])
    assert launched == [[cell], [cell]] and states(results) == {"failed": 1}
    assert "3 jobs in a row" in str(grid.look(results)[0].reason)


def test_a_done_cell_is_never_given_up_nor_trained_again(words, results, monkeypatch):
    """Whatever was read before somebody else, who held the lease, was done with it."""
    assert submitted(*words, "method=lm", "cluster=inline") == 0
    ((directory, before),) = record.scan(results)
    runner.give_up(directory.path, "too late")
    assert directory.read() == before
    stale = before | {"status": "running"}
    read = record.RunDirectory.read
    answers = iter([stale])
    monkeypatch.setattr(record.RunDirectory, "read", lambda self: next(answers, None) or read(self))
    assert run.run_stored(directory.path, lambda: False) == "done"
    monkeypatch.undo()
    assert directory.read() == before


def test_two_looks_decide_what_is_lost(monkeypatch, tmp_path):
    here = grid.Standing("a/b/c/s0", "lost", {})
    looks = iter([[here], [here]])
    monkeypatch.setattr(grid, "GAP", 0.0)
    monkeypatch.setattr(grid, "look", lambda *_, **__: next(looks))
    assert grid.lost(tmp_path) == [here]
    done = grid.Standing("a/b/c/s0", "done", {})
    looks = iter([[here], [done]])
    assert grid.lost(tmp_path) == []


def test_a_job_is_known_by_its_name_and_not_by_its_number(words, results, monkeypatch):
    made = submit.plan([*words, "method=lm"])
    submit.lay_down(results, made)
    cell = made[0][0].path("").as_posix()
    ledger = Ledger(results)
    ledger.intend(attempt("mine", cell, (0, 0)))
    ledger.submitted("mine", "7")
    for name, state in (("mine", "running"), ("another", "lost")):
        answer = queue.Queue({"7": queue.Entry("7", "RUNNING", "None", name)})
        monkeypatch.setattr(queue, "ask", lambda answer=answer: answer)
        assert states(results) == {state: 1}


@pytest.mark.parametrize(
    ("state", "reason", "held"),
    [
        ("PENDING", "Priority", False),
        ("PENDING", "JobHeldUser", True),
        ("PENDING", "PartitionTimeLimit", True),
        ("REQUEUE_HOLD", "None", True),
        ("RUNNING", "None", False),
    ],
)
def test_what_can_never_start_is_held(state, reason, held):
    assert queue.Entry("1", state, reason, "n").held == held


def test_a_failed_cell_may_be_given_another_configuration(words, results):
    """Of the same cell: another place for the data, say."""
    bad = [word for word in words if not word.startswith("data_dir")]
    made = submit.plan([*words, "method=lm"])
    submit.lay_down(results, made)
    path = made[0][0].path(results)
    stored = OmegaConf.load(path / "config.yaml")
    stored.data_dir = "/proc/self/fd/x"
    OmegaConf.save(stored, path / "config.yaml")
    assert run.run_stored(path, lambda: False) == "failed"
    assert submitted(*bad, words[-1], "method=lm", "cluster=inline", "only=failed") == 0
    assert states(results) == {"done": 1}


def test_a_dry_run_refuses_what_a_submission_would(words, capsys):
    asked = [*words, "method=stack", "method.of=[free_bits,kl_annealing]", "--dry-run"]
    assert submitted(*asked) == 1
    assert "both edit the slot" in capsys.readouterr().err
