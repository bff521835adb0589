"""The run directory under kills, rivals, torn lines and wrong content."""

import errno
import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmark import lease, record
from benchmark.grid import Cell
from benchmark.record import Busy, LeaseLost, Metrics, RunDirectory, read_metrics, validate

fresh = multiprocessing.get_context("forkserver")  # children without this process's threads
fresh.set_forkserver_preload(["pytest", "benchmark.grid"])

CELL = Cell("d", "m", "m target=8", 0, "0123456789ab")
SOON = {"beat": 0.05, "stale": 0.5}
LATE = {"beat": 30.0, "stale": 60.0}
SUMMARY = {key: 1.0 for key in record.SUMMARY if key not in record.TRUTH} | {
    "verdict": "read",
    "latent": "global",
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(CELL.path(tmp_path))
    made.create(CELL, "seed: 0\n")
    return made


def fill(run: RunDirectory) -> None:
    """Every artefact that a done cell needs."""
    run.save_npz("units.npz", kl=np.zeros(2))
    run.save_npz("sentences.npz", nll=np.zeros(2))
    run.save_text("samples.jsonl", "")
    run.metrics()


# -- what is written -------------------------------------------------------------------------------


def test_a_second_create_keeps_the_first(run: RunDirectory):
    RunDirectory(run.path).create(CELL, "seed: 1\n")
    assert (run.path / "config.yaml").read_text() == "seed: 0\n"
    assert run.read()["status"] == "queued"
    assert {path.name for path in run.path.iterdir()} == {"config.yaml", "run.json"}


def test_there_may_be_no_record(tmp_path: Path):
    assert RunDirectory(tmp_path / "none").read() is None
    with RunDirectory(tmp_path).lease(), pytest.raises(LeaseLost):
        RunDirectory(tmp_path).write(status="running")


def test_done_needs_everything(run: RunDirectory):
    with run.lease():
        with pytest.raises(ValueError, match=r"summary has no valid.*units.npz is missing"):
            run.write(status="done")
        run.write(summary={"valid": SUMMARY, "test": SUMMARY})
        for name in record.ARTEFACTS:
            fill(run)
            (run.path / "config.yaml").touch()
            (run.path / name).unlink()
            with pytest.raises(ValueError, match=f"{name} is missing"):
                run.write(status="done")
        (run.path / name).touch()
        assert run.read()["status"] == "queued"
        run.write(status="done")
    assert run.read()["status"] == "done" and validate(run.path) == []
    (run.path / "metrics.jsonl").write_text('torn\n{"step": 1}\n')
    assert "line 1 is damaged" in validate(run.path)[0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_what_is_not_finite_becomes_null_with_a_note(run: RunDirectory, value: float):
    with run.lease():
        run.write(summary={"test": SUMMARY | {"nll": value}}, cost={"steps": value})
    found = run.read()
    assert found["summary"]["test"]["nll"] is None and found["cost"]["steps"] is None
    assert found["notes"] == {
        "test/nll": f"the value was {float(value)}",
        "cost/steps": f"the value was {float(value)}",
    }


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"status": "finished"}, "status is 'finished'"),
        ({"colour": 1}, "no field colour"),
        ({"summary": {"train": SUMMARY}}, "summary/train"),
        ({"summary": {"test": SUMMARY | {"nnl": 1.0}}}, "unknown nnl"),
        ({"summary": {"test": SUMMARY | {"mi": None}}}, "test/mi is null and no note"),
        ({"summary": {"test": {"nll": 1.0}}}, "test/kl is null and no note"),
        ({"summary": {"test": SUMMARY | {"au": "3"}}}, "test/au cannot be '3'"),
        ({"summary": {"test": SUMMARY | {"au": True}}}, "test/au cannot be True"),
        ({"summary": {"test": SUMMARY | {"verdict": "fine"}}}, "test/verdict cannot be 'fine'"),
        ({"status": "stopped"}, "summary has no test"),
    ],
)
def test_what_breaks_the_schema_is_not_written(run: RunDirectory, changes: dict, problem: str):
    before = (run.path / "run.json").read_bytes()
    with run.lease(), pytest.raises(ValueError, match=problem):
        run.write(**changes)
    assert (run.path / "run.json").read_bytes() == before


def test_a_note_answers_for_one_split_or_both(run: RunDirectory):
    summary = SUMMARY | {"mi": None, "nll@auxiliary": 2.0}
    with run.lease():
        run.write(summary={"test": summary}, notes={"test/mi": "none"})
        run.write(summary={"test": summary, "valid": summary}, notes={"mi": "none"})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        *[("", "no JSON"), ("{", "no JSON"), ("[]", "no JSON object"), ("[" * 100_000, "no JSON")],
        *[('{"a": NaN}', "NaN"), ("{}", "schema_version"), ('{"schema_version": 2}', "reads 1")],
        *[('{"schema_version": 1}', "cell lacks"), ("\x00" * 99, "no JSON")],
    ],
)
def test_damage_is_told_in_words(run: RunDirectory, text: str, problem: str):
    (run.path / "run.json").write_text(text)
    assert problem in validate(run.path)[0]
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        run.read()


def test_a_strangers_record_names_no_other_place(run: RunDirectory):
    text = (run.path / "run.json").read_text()
    (run.path / "run.json").write_text(text.replace('"m"', '"../m"'))
    assert "names" in validate(run.path)[0]


def test_a_copied_folder_is_no_second_result(run: RunDirectory):
    copy = RunDirectory(run.path.parent / "s1")
    copy.path.mkdir()
    (copy.path / "run.json").write_bytes((run.path / "run.json").read_bytes())
    assert "holds the record of d/m/0123456789ab/s0" in validate(copy.path)[0]


def test_scan_passes_over_junk(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for seed in (1, 0, 2):
        cell = Cell("d", "m", "m", seed, "0" * 12)
        RunDirectory(cell.path(tmp_path)).create(cell, "")
    (Cell("d", "m", "m", 2, "0" * 12).path(tmp_path) / "run.json").write_text("{")
    (tmp_path / "leaderboard").mkdir()
    (tmp_path / "a/b/c/s9/run.json").mkdir(parents=True)
    (tmp_path / "d/junk").write_text("")
    assert [found["cell"]["seed"] for _, found in record.scan(tmp_path)] == [0, 1]
    assert "is damaged" in caplog.text
    assert list(record.scan(tmp_path / "none")) == []


def test_a_failed_write_changes_and_leaves_nothing(run: RunDirectory):
    with run.lease():
        run.save_json("diagnosis.json", {"a": math.nan, "b": [1]})
        assert json.loads((run.path / "diagnosis.json").read_text()) == {"a": None, "b": [1]}
        with pytest.raises(ValueError, match="pickle"):
            run.save_npz("units.npz", kl=np.array([object()]))
        with pytest.raises(ZeroDivisionError), run.replacing("diagnosis.json") as temporary:
            temporary.write_text("half")
            _ = 1 / 0
        assert "half" not in (run.path / "diagnosis.json").read_text()
        assert not list(run.path.glob(".*.tmp"))


def test_clean_spares_its_own(run: RunDirectory):
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints/.last.pt.deadbeef0000.tmp").touch()
    with run.lease(), run.replacing("checkpoints/last.pt") as mine:
        mine.write_text("x")
        run.clean()
        assert [path.name for path in mine.parent.iterdir()] == [mine.name]


# -- metrics ---------------------------------------------------------------------------------------


def add(metrics: Metrics, step: int, **values: float) -> None:
    metrics.add(step, "train", values, seconds=0.5, batches=step, backwards=step)


def test_metrics_go_on_where_the_checkpoint_was(run: RunDirectory):
    with run.lease():
        metrics = run.metrics()
        add(metrics, 1, loss=2.0, kl=math.nan)
        kept = metrics.offset
        add(metrics, 2, loss=1.0)
        again = run.metrics()
        again.cut(kept)
        add(again, 3, loss=0.5)
        lines = read_metrics(run.path / "metrics.jsonl")
        assert [(line["step"], line["value"]) for line in lines] == [(1, 2.0), (1, None), (3, 0.5)]
        assert lines[1] == {
            **{"step": 1, "split": "train", "metric": "kl", "value": None, "estimator": None},
            **{"seconds": 0.5, "batches": 1, "backwards": 1},
        }
        with pytest.raises(ValueError, match="fewer than"):
            run.metrics().cut(10_000)
    with pytest.raises(LeaseLost):
        add(run.metrics(), 4, loss=1.0)


@pytest.mark.parametrize("torn", ['{"step": 2', '{"step": 2}', "\x00" * 50, "{"])
def test_a_torn_last_line_is_ignored_and_cut(run: RunDirectory, torn: str):
    path = run.path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + torn)
    assert read_metrics(path) == [{"step": 1}]
    with run.lease():
        add(run.metrics(), 2, loss=1.0)
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize("damaged", ['{"step": 2', "", "7", '{"value": NaN}', "\x00"])
def test_another_damaged_line_is_told(tmp_path: Path, damaged: str):
    (tmp_path / "m").write_text(f'{{"step": 1}}\n{damaged}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match="line 2 is damaged"):
        read_metrics(tmp_path / "m")


# -- kills -----------------------------------------------------------------------------------------


def write_for_ever(path: Path, acknowledged) -> None:
    run = RunDirectory(path)
    with run.lease(**LATE):
        run.clean()
        metrics = run.metrics()
        while True:
            n = acknowledged.value + 1
            run.write(reason=str(n), cost={"steps": n, "ballast": list(range(5000))})
            add(metrics, n, loss=1.0, kl=2.0)
            acknowledged.value = n


def test_a_kill_at_any_instant_leaves_the_old_record_or_the_new(run: RunDirectory):
    acknowledged = fresh.Value("q", 0, lock=False)
    wait = random.Random(0)
    torn = 0
    for kills in range(500):
        if kills >= 25 and torn:
            break  # some kill fell into a write
        before = acknowledged.value
        child = fresh.Process(target=write_for_ever, args=(run.path, acknowledged))
        child.start()
        while acknowledged.value < before + 2:  # a dead holder's lease held none of them up
            assert child.is_alive()
            time.sleep(0.001)
        time.sleep(wait.uniform(0, 0.03))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        found = run.read()
        assert int(found["reason"]) == found["cost"]["steps"]
        assert found["cost"]["steps"] - acknowledged.value in (0, 1)
        torn += len(list(run.path.glob(".run.json.*.tmp")))
        steps = {line["step"] for line in read_metrics(run.path / "metrics.jsonl")}
        assert {*range(1, acknowledged.value + 1)} <= steps
    assert torn, "no kill fell into a write: the test has lost its edge"
    with run.lease(**LATE):
        run.clean()
    assert not list(run.path.glob(".*.tmp"))


# -- the lease -------------------------------------------------------------------------------------


HOLD = """
import sys, time
from pathlib import Path
from benchmark.lease import Lease
Lease(Path(sys.argv[1]), "deadbeef0000", 30.0, 60.0).acquire()
print("held", flush=True)
time.sleep(1000)
"""


def test_a_dead_process_is_succeeded_at_once(tmp_path: Path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "held\n"
        child.kill()
        # dead but not reaped: a zombie, which still has a number and a start time
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        started = time.monotonic()
        with RunDirectory(tmp_path).lease(**LATE):
            assert time.monotonic() - started < 5


def test_a_higher_number_is_the_lease_in_force(run: RunDirectory):
    with run.lease(**SOON) as held:
        (run.path / ".lease.9").touch()  # a successor that has not yet removed the older ones
        with pytest.raises(LeaseLost):
            held.check()


def test_a_reused_process_number_is_another_process(tmp_path: Path):
    ours = lease.Lease(tmp_path, "a", **LATE)
    ours._process["start"] -= 1
    ours.acquire()
    with RunDirectory(tmp_path).lease(**LATE) as taken, pytest.raises(LeaseLost):
        taken.check()
        ours.check()


def test_a_live_holder_is_left_alone(run: RunDirectory, caplog: pytest.LogCaptureFixture):
    with run.lease(**SOON) as held:
        os.utime(next(run.path.glob(".lease.*")), (0, 0))  # as by a clock that jumped
        with pytest.raises(Busy, match=f"process {os.getpid()} on "):
            RunDirectory(run.path).lease(**LATE).acquire()  # at once: this machine sees it live
        held.check()
    with RunDirectory(run.path).lease(**LATE):
        assert not caplog.text  # one that was released is free at once
    assert len(list(run.path.glob(".lease.*"))) == 1


def test_a_disk_too_full_to_note_a_release_locks_nobody_out(run: RunDirectory, monkeypatch):
    """Copy-on-write file systems have no room to write even in place."""

    def no_room(*_) -> int:
        raise OSError(errno.ENOSPC, "no room")

    ours = run.lease(**LATE)
    ours.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", no_room)
        ours.release()
    assert not lease.holder(run.path)["released"] and not lease.held(run.path)
    with run.lease(**LATE) as again:  # of the same attempt
        again.check()
        assert lease.held(run.path)
        with pytest.raises(Busy):
            RunDirectory(run.path).lease(**LATE).acquire()


@pytest.mark.parametrize("key", ["host", "boot", "namespace", "uid"])
def test_of_another_machine_only_the_beat_tells(
    run: RunDirectory, key: str, caplog: pytest.LogCaptureFixture
):
    far = run.lease(beat=0.05, stale=0.5)
    far._process |= {"pid": 2**30, key: "elsewhere"}
    far.acquire()
    with pytest.raises(Busy):
        RunDirectory(run.path).lease(**SOON).acquire()
    assert "waiting up to 0.5 s" in caplog.text
    far.release()


def test_who_stops_beating_loses_the_lease(run: RunDirectory):
    far = run.lease(beat=1000.0, stale=0.5)
    far._process["host"] = "elsewhere"
    with far:
        run.write(status="running")
        metrics = run.metrics()
        started = time.monotonic()
        successor = RunDirectory(run.path)
        with successor.lease(**SOON):
            assert time.monotonic() - started >= 0.5
            for write in (
                lambda: run.write(status="failed"),
                lambda: run.save_text("log.txt", ""),
                lambda: add(metrics, 1, loss=1.0),
                run.clean,
            ):
                with pytest.raises(LeaseLost):
                    write()
            far.release()  # and even this harms no successor
            successor.write(reason="mine")
    assert run.read()["status"] == "running" and run.read()["reason"] == "mine"


def test_a_lease_of_junk_is_waited_for(run: RunDirectory):
    (run.path / ".lease.7").write_text("[")
    (run.path / ".lease.old").write_text("")
    with run.lease(**SOON):
        run.write(status="running")
    assert [path.name for path in run.path.glob(".lease.*[0-9]")] == [".lease.8"]


def test_a_slow_taker_never_harms_who_came_meanwhile(run: RunDirectory, monkeypatch):
    """It found lease 1 to be over; before it acts, 2 has come and gone, and 3 is in force."""
    run.lease(**SOON).__enter__().release()
    third = RunDirectory(run.path)
    judge = lease.Lease._succeeds

    def slowly(self, number):
        monkeypatch.setattr(lease.Lease, "_succeeds", judge)
        RunDirectory(run.path).lease(**SOON).__enter__().release()
        third.lease(**SOON).acquire()
        return True

    monkeypatch.setattr(lease.Lease, "_succeeds", slowly)
    with pytest.raises(Busy):
        RunDirectory(run.path).lease(**SOON).acquire()
    third.check()
    third._lease.release()


def race(folder: Path, rounds: int, barrier, winners) -> None:
    for turn in range(rounds):
        mine = lease.Lease(folder / str(turn), f"{os.getpid():012x}", beat=0.05, stale=3.0)
        barrier.wait(60)
        try:
            mine.acquire()
            mine.check()
            with winners.get_lock():
                winners[turn] += 1
        except Busy:
            pass
        barrier.wait(60)  # the winner holds on until all have tried
        mine.release()


def test_of_many_takers_one_wins(tmp_path: Path):
    """Of a directory without a lease, with a released one, a dead process's, a silent host's."""
    rounds, takers = 32, 3
    for turn in range(rounds):
        (tmp_path / str(turn)).mkdir()
        left = lease.Lease(tmp_path / str(turn), "a", **LATE)
        if turn % 4 == 1:
            left.__enter__().release()
        elif turn % 4 == 2 or turn == 3:
            left._process |= {"start": 1} if turn != 3 else {"host": "elsewhere"}
            left.acquire()
    barrier, winners = fresh.Barrier(takers), fresh.Array("i", rounds)
    children = [
        fresh.Process(target=race, args=(tmp_path, rounds, barrier, winners)) for _ in range(takers)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert list(winners) == [1] * rounds


# -- provenance ------------------------------------------------------------------------------------


def test_provenance_needs_no_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    found = record.provenance()
    assert found["versions"]["numpy"] == np.__version__ and found["started_at"].endswith("+00:00")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    without = record.provenance()
    assert without["commit"] is None and without["dirty"] is None and without["slurm_job"] == "17"
    json.dumps(without, allow_nan=False)


def test_a_copy_of_the_code_has_no_commit(tmp_path: Path):
    """Also within a checkout, whose commit may be another by then."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    folder = tmp_path / "benchmark"
    folder.mkdir()
    (folder / "record.py").write_text(Path(record.__file__).read_text())
    (folder / "__init__.py").touch()
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    ask = [sys.executable, "-c", "from benchmark.record import _git; print(_git()['commit'])"]
    there = {"cwd": tmp_path, "text": True, "env": os.environ | {"PYTHONPATH": str(tmp_path)}}
    assert subprocess.check_output(ask, **there).strip() == "None"
    subprocess.run([*git, "add", "."], check=True)
    assert len(subprocess.check_output(ask, **there).strip()) == 40


def test_the_fingerprint_follows_the_code(tmp_path: Path):
    method = tmp_path / "method.py"
    method.write_text("a = 1\n")
    before = record.fingerprint([method])
    assert before == record.fingerprint([method]) != record.fingerprint()
    method.write_text("a = 2\n")
    assert record.fingerprint([method]) != before
