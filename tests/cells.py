"""A small but whole cell, run in this process, and comparison to the bit."""

import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark import cell, record
from benchmark.run import main
from benchmark.task import CellTask
from benchmark.tensors import read_tensors

SMALL = [
    *["threads=1", "budget=smoke", "method=kl_annealing", "model.dropout=0.3"],
    *["dataset.sentences.train=320", "dataset.sentences.valid=60", "dataset.sentences.test=60"],
    *["budget.evaluation.every=7", "budget.halving={patience: 1, first_epoch: 0, most: 9}"],
    *["budget.steps=50", "budget.evaluation.nll_samples=40", "budget.learning_rate=0.02"],
]
TASK = CellTask(  # of which a recipe can be made without data
    vocab_size=20,
    mean_length=6.0,
    max_length=9,
    n_train=100,
    batch_size=10,
    steps_per_epoch=10,
    steps=100,
    embedding=4,
    hidden=6,
    latent=3,
    dropout=0.0,
    init=0.1,
    init_embedding=0.1,
)


@contextmanager
def one_thread() -> Iterator[None]:
    """And, afterwards, torch as it was before a cell set it for its process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def spent_by_children() -> float:
    """Seconds of processor time of all processes that have ended: a busy machine adds none."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def small_file_system(folder: Path) -> Iterator[None]:
    """12 MB of memory as a disk, at a folder that it makes."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a full disk needs the right to mount one: {error}")
    try:
        yield
    finally:  # at once, whoever still has a file open there
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Fill a disk up to so many bytes."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        free = os.statvfs(folder)
        file.truncate(0)
        file.write(bytes(max(0, free.f_bavail * free.f_frsize - leave)))
    return ballast


class Killed(BaseException):
    """The process is gone: nothing more is saved."""


def run(folder: Path, *words: str) -> int:
    """`python -m benchmark.run` in this process; gives its exit status."""
    places = [f"results_dir={folder / 'results'}", f"data_dir={folder.parent / 'data'}"]
    with pytest.raises(SystemExit) as ended:
        main([*SMALL, *places, *words])
    return int(ended.value.code or 0)


def found(folder: Path) -> tuple[Path, dict]:
    """The one cell's run directory and record."""
    ((directory, known),) = record.scan(folder / "results")
    return directory.path, known


def result(folder: Path) -> dict[str, Any]:
    """All of a done cell's results but what depends on the clock and the machine."""
    path, known = found(folder)
    assert known["status"] == "done" and record.validate(path) == []
    assert not list(path.rglob(".*.tmp"))
    assert [file.name for file in (path / "checkpoints").iterdir()] == ["best.pt"]
    clocks = ("train_seconds", "lost_seconds", "tokens_per_second", "peak_memory_mb")
    kept = {key: known[key] for key in ("cell", "selected_step", "summary", "notes", "reason")}
    arrays = {
        name: {key: array.copy() for key, array in np.load(path / name).items()}
        for name in ("units.npz", "sentences.npz")
    }
    return kept | arrays | {
        "cost": {key: value for key, value in known["cost"].items() if key not in clocks},
        "lines": lines(path),
        "samples": (path / "samples.jsonl").read_text(),
        "weights": plain(read_tensors(path / "checkpoints/best.pt")),
    }  # fmt: skip


def stop_when(monkeypatch, condition: Callable[[], bool]) -> None:
    """Send this process a TERM once, the first time that the trainer or the evaluator asks while
    `condition` holds."""
    sent = False
    asked = cell.run_cell

    def run_cell(directory, config, corpus, device, stop_requested, progress):
        def ask() -> bool:
            nonlocal sent
            if not sent and condition():
                sent = True
                os.kill(os.getpid(), signal.SIGTERM)
            return stop_requested()

        return asked(directory, config, corpus, device, ask, progress)

    monkeypatch.setattr(cell, "run_cell", run_cell)


def plain(value: Any) -> Any:
    """`value` as containers and tensors, from where two may be compared."""
    if isinstance(value, Tensor | np.ndarray):  # which have a __dict__, an empty one
        return value
    if isinstance(value, nn.Module | torch.optim.Optimizer):
        return plain(value.state_dict())
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "__dict__") and not callable(value):
        return plain(vars(value))
    return value


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two values differ, to the bit."""
    if type(a) is not type(b):
        return [where]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [where]
        return [d for key in a for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list):
        if len(a) != len(b):
            return [where]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in
                differences(x, y, f"{where}/{i}")]  # fmt: skip
    if isinstance(a, Tensor | np.ndarray):
        same = a.dtype == b.dtype and a.shape == b.shape
        return [] if same and np.asarray(a).tobytes() == np.asarray(b).tobytes() else [where]
    return [] if a == b or callable(a) or repr(a) == repr(b) == "nan" else [where]


def lines(directory: Path) -> list[dict]:
    """metrics.jsonl without its seconds."""
    found = record.read_metrics(directory / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]
