"""What goes wrong around a cell ends in one sentence, or goes on to the result of an undisturbed
one; run.json is whole in between, and the same command goes on once the cause is gone."""

import errno
import logging
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark import record
from benchmark.cell import CHECKPOINTS_OWN
from benchmark.lease import Lease
from benchmark.record import RunDirectory
from benchmark.tensors import Damaged, read_tensors
from benchmark.train import Trainer
from tests import cells
from tests.cells import (
    SMALL,
    differences,
    fill,
    found,
    result,
    run,
    small_file_system,
    stop_when,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with cells.one_thread():
        yield


@pytest.fixture(scope="module")
def uncut(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """The folder of all cells, and the result of one that nothing disturbs."""
    folder = tmp_path_factory.mktemp("cells") / "uncut"
    assert run(folder) == 0
    return folder.parent, result(folder)


@pytest.fixture(scope="module")
def stopped_at_35(uncut) -> Path:
    """A cell that was interrupted at step 35: its `last` is of there, its `previous` of step 20."""
    folder = uncut[0] / "interrupted"
    with pytest.MonkeyPatch.context() as patch:
        advance, steps = Trainer._advance, []
        patch.setattr(Trainer, "_advance", lambda self: steps.append(1) or advance(self))
        stop_when(patch, lambda: len(steps) == 35)
        assert run(folder) == 143
    checkpoints = found(folder)[0] / "checkpoints"
    saved = [read_tensors(checkpoints / name)["trainer"] for name in ("last.pt", "previous.pt")]
    assert [state["t"] for state in saved] == [35, 20]
    return folder


@pytest.fixture
def interrupted(stopped_at_35, tmp_path) -> Path:
    """A copy of it, to be damaged, beside the same data."""
    folder = stopped_at_35.parent / tmp_path.name
    shutil.copytree(stopped_at_35, folder)
    return folder


@pytest.fixture
def warnings(caplog) -> Callable[[], str]:
    """All that was warned of: the sentences."""
    return lambda: " | ".join(
        r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING
    )


def at_step(monkeypatch, step: int, act: Callable[[Trainer], None]) -> None:
    """Have something happen, once, in place of the training step that follows `step`."""
    advance = Trainer._advance
    acted = []

    def advance_or_act(self):
        if self.t == step and not acted:
            acted.append(1)
            act(self)
        advance(self)

    monkeypatch.setattr(Trainer, "_advance", advance_or_act)


# -- checkpoints -----------------------------------------------------------------------------------


class Malicious:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def malicious_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Malicious(path.parent / "executed"), protocol=2))


def malicious_checkpoint(path: Path) -> None:
    torch.save({"trainer": Malicious(path.parent / "executed"), "metrics": 0}, path)


def flip(path: Path) -> None:
    """One byte of a weight, which torch itself would load without a word."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def hole(path: Path) -> None:
    """The length is right, the content never came: what a power cut leaves."""
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2] + bytes(size - size // 2))


def program(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(path))


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: os.truncate(path, path.stat().st_size * 2 // 3),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a hole": hole,
    "a flipped byte": flip,
    "garbage": lambda path: path.write_bytes(os.urandom(5000)),
    "another file": lambda path: path.write_text("# notes\n"),
    "a malicious pickle": malicious_pickle,
    "a malicious checkpoint": malicious_checkpoint,
    "a tensor": lambda path: torch.save(torch.zeros(3), path),
    "an empty state": lambda path: torch.save({}, path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(uncut, interrupted, damage, warnings):
    path = found(interrupted)[0] / "checkpoints"
    DAMAGE[damage](path / "last.pt")
    assert run(interrupted) == 0
    assert "last.pt is passed over" in warnings() and "starts over" not in warnings()
    assert warnings().count("\n") == 0 and "torch.load" not in warnings()
    assert not (path / "executed").exists()
    assert differences(result(interrupted), uncut[1]) == []
    assert found(interrupted)[1]["cost"]["lost_seconds"] > 0


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_no_program_is_loaded_as_tensors(tmp_path: Path):
    program(tmp_path / "program.pt")
    with pytest.raises(Damaged, match="is damaged"):
        read_tensors(tmp_path / "program.pt")


@pytest.mark.parametrize("broken", ["last and previous", "the selected weights", "all"])
def test_without_a_whole_checkpoint_training_starts_over(uncut, interrupted, broken, warnings):
    path = found(interrupted)[0] / "checkpoints"
    names = {
        "last and previous": ["last.pt", "previous.pt"],
        "the selected weights": [file.name for file in path.glob("best-*.pt")],
        "all": [file.name for file in path.iterdir()],
    }
    for name in names[broken]:
        flip(path / name)
    assert run(interrupted) == 0
    assert "no checkpoint is left to go on from: training starts over" in warnings()
    assert differences(result(interrupted), uncut[1]) == []


def test_a_damaged_one_never_takes_a_good_ones_place(uncut, interrupted, monkeypatch):
    """Damage to `last`, then death in the middle of the next save."""
    path = found(interrupted)[0] / "checkpoints"
    flip(path / "last.pt")
    replace = os.replace

    def die(source, target):
        if Path(target).name == "last.pt":
            raise cells.Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(cells.Killed):
            run(interrupted)
    assert read_tensors(path / "previous.pt")["trainer"]["t"] == 20
    assert run(interrupted) == 0
    assert differences(result(interrupted), uncut[1]) == []


def test_what_cannot_be_read_just_now_is_not_thrown_away(uncut, interrupted, monkeypatch, warnings):
    read = Path.read_bytes

    def fail(self):
        if self.name == "last.pt":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return read(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        assert run(interrupted) == 1
    path, known = found(interrupted)
    assert known["status"] == "failed" and known["reason"].endswith("last.pt: Input/output error")
    assert read_tensors(path / "checkpoints/last.pt")["trainer"]["t"] == 35
    assert run(interrupted) == 0
    assert differences(result(interrupted), uncut[1]) == []


def test_a_checkpoint_of_another_model_is_refused(interrupted, warnings):
    path = found(interrupted)[0] / "checkpoints/last.pt"
    saved = read_tensors(path)
    saved["trainer"]["weights"]["model"].popitem()
    torch.save(saved, path)
    assert run(interrupted) == 1
    reason = found(interrupted)[1]["reason"]
    assert "does not fit this program; remove" in reason and "\n" not in reason
    assert not (found(interrupted)[0] / "error.txt").exists()


def test_other_data_or_code_is_noticed(uncut, interrupted, warnings, stopped_at_35, tmp_path):
    directory = RunDirectory(found(interrupted)[0])
    with directory.lease():
        about = directory.read()["provenance"]
        directory.write(provenance=about | {"fingerprint": "0" * 64})
    assert run(interrupted) == 0
    assert "the code has changed since" in warnings()
    assert found(interrupted)[1]["provenance"]["earlier_fingerprints"] == ["0" * 64]

    other = stopped_at_35.parent / f"{tmp_path.name}-data"
    shutil.copytree(stopped_at_35, other)
    directory = RunDirectory(found(other)[0])
    with directory.lease():
        directory.write(provenance=about | {"data_hash": "0" * 64})
    assert run(other) == 0
    assert "the data has changed since: training starts over" in warnings()
    assert differences(result(other), uncut[1]) == []


@pytest.mark.parametrize(
    ("what", "where"),
    [
        ("data_hash", "benchmark.cell.make_recipe"),
        ("data_hash", "benchmark.train.Trainer.forget"),
        ("fingerprint", "benchmark.cell.make_recipe"),
        ("fingerprint", "benchmark.train.Trainer.resume"),
    ],
)
def test_a_death_before_the_checkpoint_is_read_hides_no_change(
    uncut, interrupted, warnings, monkeypatch, what, where
):
    """What a checkpoint was made with stays in the record until it is gone on from, or dropped."""
    directory = RunDirectory(found(interrupted)[0])
    with directory.lease():
        about = directory.read()["provenance"]
        former = about | {what: "0" * 64, "earlier_fingerprints": ["1" * 64]}
        directory.write(provenance=former)
    with monkeypatch.context() as patch:
        patch.setattr(where, lambda *_: 1 / 0)
        assert run(interrupted) == 1
    kept = found(interrupted)[1]["provenance"]
    assert {key: kept[key] for key in CHECKPOINTS_OWN} == {
        key: former[key] for key in CHECKPOINTS_OWN
    }
    assert run(interrupted) == 0
    known = found(interrupted)[1]["provenance"]
    assert known[what] == about[what]
    if what == "data_hash":  # nothing of the checkpoint is left, nor of who made it
        assert "the data has changed since" in warnings()
        assert "earlier_fingerprints" not in known
    else:
        assert "the code has changed since" in warnings()
        assert known["earlier_fingerprints"] == ["0" * 64, "1" * 64]
    assert differences(result(interrupted), uncut[1]) == []


# -- metrics ---------------------------------------------------------------------------------------


def test_a_torn_line_behind_the_checkpoint_is_cut(uncut, interrupted, warnings):
    with (found(interrupted)[0] / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 36, "spl')
    assert run(interrupted) == 0
    assert not warnings()
    assert differences(result(interrupted), uncut[1]) == []


@pytest.mark.parametrize(
    ("damage", "starts_over"),
    [
        (lambda content: content[:-5], False),  # a torn line before it
        (lambda content: content[: content.rindex(b"\n", 0, -1) + 1], False),  # one less
        (lambda content: content[: len(content) // 3], True),
        (lambda content: b"", True),
        (lambda content: content[:50] + bytes(40) + content[90:], True),
    ],
    ids=["torn", "shorter", "much shorter", "empty", "zeros"],
)
def test_metrics_that_a_checkpoint_misses_are_made_again(
    uncut, interrupted, damage, starts_over, warnings
):
    path = found(interrupted)[0] / "metrics.jsonl"
    path.write_bytes(damage(path.read_bytes()))
    assert run(interrupted) == 0
    assert "last.pt is passed over: " in warnings() and "metrics.jsonl" in warnings()
    assert ("starts over" in warnings()) == starts_over
    assert differences(result(interrupted), uncut[1]) == []


# -- the method ------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_as_diverged(uncut, monkeypatch, warnings):
    folder = uncut[0] / "diverged"

    def poison(trainer):
        with torch.no_grad():
            next(trainer.model.parameters()).fill_(torch.nan)

    at_step(monkeypatch, 25, poison)
    assert run(folder, "save_every=0") == 1
    path, known = found(folder)
    assert known["status"] == "diverged"
    assert known["reason"] == "the training loss is not finite by step 40"
    assert not (path / "error.txt").exists()
    weights = read_tensors(path / "checkpoints/best-20.pt")
    assert all(value.isfinite().all() for value in weights.values())
    began = time.monotonic()
    assert run(folder) == 1
    assert time.monotonic() - began < 2
    assert f"has diverged: {known['reason']}; remove {path} to run it again" in warnings()
    assert found(folder) == (path, known)


def test_a_validation_that_is_not_finite_ends_as_diverged(uncut, monkeypatch):
    """Weights that only the epoch's last step has spoilt are not selected."""
    folder = uncut[0] / "diverged late"
    advance = Trainer._advance

    def poison(self):
        advance(self)
        if self.t == 40:
            with torch.no_grad():
                next(self.model.parameters()).fill_(torch.nan)

    monkeypatch.setattr(Trainer, "_advance", poison)
    assert run(folder) == 1
    path, known = found(folder)
    assert known["status"] == "diverged"
    assert known["reason"] == "the validation loss is not finite after 40 steps"
    assert not (path / "checkpoints/best-40.pt").exists()


def test_a_huge_learning_rate_diverges(uncut):
    folder = uncut[0] / "huge"
    assert run(folder, "budget.learning_rate=1e30", "budget.optimiser=sgd") == 1
    assert found(folder)[1]["status"] == "diverged"


def ask_for_too_much(trainer: Trainer) -> None:
    torch.empty(10**15)


def out_of_host_memory(trainer: Trainer) -> None:
    raise MemoryError


def out_of_device_memory(trainer: Trainer) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nGPU 0 has less.")


@pytest.mark.parametrize("act", [ask_for_too_much, out_of_host_memory, out_of_device_memory])
def test_out_of_memory_is_told(uncut, monkeypatch, act):
    folder = uncut[0] / act.__name__
    at_step(monkeypatch, 25, act)
    assert run(folder) == 1
    _, known = found(folder)
    assert known["status"] == "failed" and known["reason"].startswith("out of memory")
    assert "\n" not in known["reason"]
    assert run(folder) == 0
    assert differences(result(folder), uncut[1]) == []


def test_a_bug_in_a_method_is_told_and_kept(uncut, monkeypatch, warnings):
    folder = uncut[0] / "bug"

    def bug(trainer):
        raise ZeroDivisionError("division by zero\nand more")

    at_step(monkeypatch, 25, bug)
    assert run(folder) == 1
    path, known = found(folder)
    assert known["status"] == "failed" and known["reason"] == "ZeroDivisionError: division by zero"
    assert "failed: ZeroDivisionError: division by zero (see " in warnings()
    assert "in bug" in (path / "error.txt").read_text()
    assert run(folder) == 0
    assert not (path / "error.txt").exists() and found(folder)[1]["reason"] is None
    assert differences(result(folder), uncut[1]) == []


# -- the disk --------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(uncut, tmp_path) -> Iterator[Path]:
    """A file system of 12 MB."""
    folder = uncut[0] / f"{tmp_path.name}-disk"
    with small_file_system(folder):
        yield folder


FULL = {
    # what is left when it fills: enough for the record, too little for a checkpoint; nothing
    "checkpoint": (200_000, "No space left on device"),
    "metrics": (0, None),
}


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk(uncut, small_disk, monkeypatch, what, caplog, capsys):
    leave, reason = FULL[what]
    ballast: list[Path] = []
    at_step(monkeypatch, 25, lambda trainer: ballast.append(fill(small_disk, leave)))
    assert run(small_disk) == 1
    told = caplog.text + capsys.readouterr().err
    assert "No space left on device" in told and "Traceback" not in told
    path, known = found(small_disk)
    if reason is None:
        assert known["status"] == "running"  # as it was: there is no room for another
    else:
        assert known["status"] == "failed" and known["reason"].endswith(reason)
        assert str(path / "checkpoints") in known["reason"]
    assert not list(path.rglob(".*.tmp"))
    ballast[0].unlink()
    assert run(small_disk) == 0
    assert differences(result(small_disk), uncut[1]) == []


def test_a_disk_that_is_full_at_the_start_or_at_the_end(uncut, small_disk, monkeypatch, capsys):
    ballast = fill(small_disk, 0)
    assert run(small_disk) == 1
    assert "No space left on device" in capsys.readouterr().err
    ballast.unlink()
    save = RunDirectory.save_json
    ballasts: list[Path] = []

    def fill_before_done(self, name, value):
        if name == "run.json" and value["status"] == "done" and not ballasts:
            ballasts.append(fill(small_disk, 0))
        save(self, name, value)

    monkeypatch.setattr(RunDirectory, "save_json", fill_before_done)
    assert run(small_disk) == 1
    assert found(small_disk)[1]["status"] == "running"
    ballasts[0].unlink()
    assert run(small_disk) == 0
    assert differences(result(small_disk), uncut[1]) == []


def test_a_disk_that_cannot_be_written(uncut, small_disk, capsys):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert run(small_disk) == 1
    told = capsys.readouterr().err
    assert str(small_disk) in told and told.count("\n") == 1 and "Traceback" not in told


# -- rivals and clocks -----------------------------------------------------------------------------


def test_a_second_writer_is_refused(interrupted, capsys):
    path, _ = found(interrupted)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with RunDirectory(path).lease() as held:
        began = time.monotonic()
        assert run(interrupted) == 1
        assert time.monotonic() - began < 5
        held.check()
        told = capsys.readouterr().err
        assert f"is being written by process {os.getpid()}" in told and "Traceback" not in told
        for file, content in before.items():
            assert "lease" in file.name or file.read_bytes() == content


def test_a_lease_that_is_lost_ends_the_first_writer(uncut, interrupted, monkeypatch, capsys):
    path = found(interrupted)[0]
    at_step(monkeypatch, 37, lambda trainer: (path / ".lease.999").touch())
    assert run(interrupted) == 1
    assert "was taken over by another process; this one stops" in capsys.readouterr().err
    assert found(interrupted)[1]["status"] == "running"
    assert read_tensors(path / "checkpoints/last.pt")["trainer"]["t"] == 35
    (path / ".lease.999").unlink()
    assert run(interrupted) == 0
    assert differences(result(interrupted), uncut[1]) == []


def test_a_stale_lease_is_taken_over(uncut, interrupted, monkeypatch, warnings):
    """Of a process on another machine, which beats no more."""
    monkeypatch.setattr(RunDirectory.lease, "__defaults__", (0.05, 0.5))
    path = found(interrupted)[0]
    dead = Lease(path, "deadbeef0000", beat=1000.0, stale=0.5)
    dead._process["host"] = "elsewhere"
    dead.acquire()
    assert run(interrupted) == 0
    assert "on elsewhere; waiting up to 0.5 s for a sign of life" in warnings()
    assert differences(result(interrupted), uncut[1]) == []


def test_a_clock_that_jumps_changes_nothing(uncut, monkeypatch):
    folder = uncut[0] / "clock"
    now, jumps = time.time, iter(range(10**9))
    at_step(monkeypatch, 25, lambda trainer: (_ for _ in ()).throw(cells.Killed()))
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + (-1) ** next(jumps) * 86_400 * next(jumps))
        with pytest.raises(cells.Killed):
            run(folder)
        assert run(folder) == 0
    cost = found(folder)[1]["cost"]
    assert 0 < cost["lost_seconds"] < 60 and 0 < cost["train_seconds"] < 60
    assert differences(result(folder), uncut[1]) == []


# -- what is over ----------------------------------------------------------------------------------


def test_a_done_cell_loads_no_trainer_and_no_data(uncut, tmp_path):
    folder, _ = uncut
    code = (
        "import sys, benchmark.run as run\n"
        "try:\n    run.main(sys.argv[1:])\n"
        "finally:\n    print({'benchmark.train', 'benchmark.data.prepare'} & {*sys.modules})"
    )
    places = [f"results_dir={folder / 'uncut/results'}", f"data_dir={tmp_path / 'none'}"]
    command = [sys.executable, "-c", code, *SMALL, *places]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "is done already" in ended.stdout and ended.stdout.endswith("set()\n")
    assert not (tmp_path / "none").exists()


def test_a_damaged_record_is_told(interrupted, uncut, capsys):
    path = found(interrupted)[0] / "run.json"
    os.truncate(path, 100)
    assert run(interrupted) == 1
    told = capsys.readouterr().err
    assert f"{path} is damaged" in told and told.count("\n") == 1
    path.unlink()
    assert run(interrupted) == 0
    assert differences(result(interrupted), uncut[1]) == []
    assert record.validate(path.parent) == []
