"""What runs in a job: some cells, each by the config.yaml that lies in its folder.

Also a command, `python -m slurm.job RESULTS CELL ...`, of which the local runner and a job that
packs several cells on one device start one for each cell.
"""

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from pathlib import Path

import submitit
from submitit.helpers import Checkpointable, DelayedSubmission

from benchmark import record
from benchmark.run import run_stored, stop_signals
from slurm.cluster import Executor
from slurm.ledger import History, Ledger

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
BUSY = 5.0  # s between two tries at a cell that another process writes, or the disk has no room for
FULL = {errno.ENOSPC, errno.EDQUOT}
"""Errors that say that a disk has no room left; they are waited out."""


class Job(Checkpointable):
    """The cells of one job, one after another or `pack` side by side. A cell that is done returns
    at once, one that was cut off goes on from its checkpoint: to run a job again is always right.

    At its time limit SLURM sends USR2: the cell saves at its next step and submitit's own handler
    puts the job back into the queue. At a pre-emption or a cancellation it sends TERM: the cell
    saves, and what becomes of the job is SLURM's to say.
    """

    def __init__(self, results: Path, cells: Sequence[str], pack: int = 1):
        self.results, self.cells, self.pack = results, list(cells), pack

    def __call__(self) -> dict[str, str]:
        logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
        _forget_torn_result()
        # before torch is imported: it reads this once
        cpus = int(os.environ.get("SLURM_CPUS_PER_TASK") or 1)
        os.environ["OMP_NUM_THREADS"] = str(max(1, cpus // self.pack))
        with stop_signals(SIGNALS, impatient=False) as stopped:
            if self.pack > 1:
                found = side_by_side(self.results, self.cells, self.pack, stopped)
            else:
                found = one_by_one(self.results, self.cells, stopped)
            received = stopped()
        if received == signal.SIGUSR2:
            signal.raise_signal(signal.SIGUSR2)  # submitit's handler, in force again: it requeues
        return found

    def checkpoint(self) -> DelayedSubmission:
        """What a requeued job runs: the same. Everything is saved before this is called."""
        return DelayedSubmission(self)


def one_by_one(results: Path, cells: Sequence[str], stopped: Callable[[], int]) -> dict[str, str]:
    """Run cells, but for those that the user has cancelled meanwhile; returns their statuses. The
    failure of one stops none."""
    found = {}
    for cell in cells:
        if stopped():
            break
        if len(cells) > 1 and _cancelled(results, cell):
            found[cell] = "cancelled"
            continue
        try:
            found[cell] = _when_free(results / cell, stopped)
        except record.LeaseLost as error:
            log.warning("%s", error)
        except Exception:
            log.exception("%s", cell)  # nothing could be recorded; whoever looks finds it here
    return found


def _cancelled(results: Path, cell: str) -> bool:
    """Whether the user wants no more of a cell, whose job has others."""
    return Ledger(results).read()[1].get(cell, History()).cancelled


def _when_free(path: Path, stopped: Callable[[], int]) -> str:
    """Run a cell, once nobody else writes it, as SLURM may think a node dead whose job lives, and
    once there is room on the disk to record it."""
    while True:
        try:
            return run_stored(path, lambda: bool(stopped()))
        except record.Busy as error:
            log.warning("%s", error)
        except OSError as error:
            if error.errno not in FULL:
                raise
            log.warning("%s; waiting for room", error)
        for _ in range(round(BUSY * 10)):
            if stopped():
                return "interrupted"
            time.sleep(0.1)


def side_by_side(
    results: Path, cells: Sequence[str], at_once: int, stopped: Callable[[], int]
) -> dict[str, str]:
    """Run cells in processes of their own, told to save when this one is; returns statuses."""
    waiting, alive = list(cells), dict[str, subprocess.Popen]()
    told = False
    while alive or (waiting and not stopped()):
        while waiting and len(alive) < at_once and not stopped():
            cell = waiting.pop(0)
            if not _cancelled(results, cell):
                alive[cell] = start(results, cell)
        if stopped() and not told:
            told = True
            for process in alive.values():
                process.terminate()
        alive = {cell: process for cell, process in alive.items() if process.poll() is None}
        time.sleep(0.2)
    records = {cell: record.RunDirectory(results / cell).read() for cell in cells}
    return {cell: known["status"] for cell, known in records.items() if known}


def start(results: Path, cell: str) -> subprocess.Popen:
    """A process that runs one cell."""
    command = [sys.executable, "-m", "slurm.job", str(results), cell]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


def processes(module: str, results: Path) -> dict[int, list[str]]:
    """This user's processes `python -m MODULE RESULTS ...` on this machine: their numbers, and
    further words."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):  # it has ended, or is no such process
            if process.stat().st_uid != os.getuid():
                continue
            words = os.fsdecode((process / "cmdline").read_bytes()).split("\0")[:-1]
            place, *more = words[words.index(module) + 1 :]
            if words[words.index(module) - 1] == "-m" and os.path.samefile(
                process / "cwd" / place, results
            ):
                found[int(process.name)] = more
    return found


def end(results: Path, cells: Container[str] | None = None) -> set[int]:
    """Have what a local runner started for these cells, or for all, save and end, whether the
    runner lives or not; on this machine. Returns the processes that were told."""
    _, histories = Ledger(results).read()
    ended = set()
    for number, words in processes("slurm.job", results).items():
        for cell in words:
            # else it is a job's, which packs several
            local = histories.get(cell, History()).executor == Executor.local.value
            if local and (cells is None or cell in cells):
                terminate(number)
                ended.add(number)
    return ended


def terminate(number: int) -> None:
    """Have a process of this machine save and end, if it has not ended."""
    with suppress(ProcessLookupError, PermissionError):  # the number may be another's by now
        os.kill(number, signal.SIGTERM)


def _forget_torn_result() -> None:
    """A death while submitit wrote the result leaves a file over which every later run of the job
    would stumble."""
    try:
        paths = submitit.JobEnvironment().paths
    except RuntimeError:
        return  # no job of submitit's
    for file in (paths.result_pickle, paths.submitted_pickle):
        file.with_name(f"{file.name}.save_tmp").unlink(missing_ok=True)


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status, 0 if it has a status of every cell: also of one that
    was told to save, or has failed."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    with stop_signals(SIGNALS, impatient=False) as stopped:
        found = one_by_one(Path(arguments[0]), arguments[1:], stopped)
    return 0 if len(found) == len(arguments) - 1 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
