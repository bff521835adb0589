"""The local runner: `python -m slurm.pool RESULTS`, which slurm.submit cluster=local starts, and
`python -m slurm.pool --stop RESULTS`, which has its cells save, ends it and waits for that.

Keeps at most cluster.parallel cells alive, each a process with one thread, until no cell that was
submitted to it is left; then it builds the leaderboard, if it was asked for. What was stopped goes
on with slurm.status --repair, or with the same submission. A second runner waits until the first
has read what was submitted, or has ended: one that was stopped reads no more.
"""

import logging
import math
import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from pathlib import Path

from benchmark import record
from benchmark.compose import UserError, sentence
from benchmark.lease import Busy, Lease, held, holder
from benchmark.run import stop_signals
from slurm.cluster import Cluster, Executor, restore
from slurm.grid import progress
from slurm.job import FULL, SIGNALS, end, processes, start, terminate
from slurm.ledger import Ledger, Progress
from slurm.page import build
from slurm.runner import give_up

log = logging.getLogger(__name__)

ENDED = {"done", "failed", "diverged", "timeout"}
TICK = 0.2  # s
PAUSE = 10.0  # s before what has just failed is tried again


class Pool:
    """The cells that are alive, and which come next."""

    def __init__(self, results: Path):
        self.results, self.ledger = results, Ledger(results)
        self.alive: dict[str, subprocess.Popen] = {}
        self.began: dict[str, Progress] = {}
        self.fruitless: Counter[str] = Counter()
        self.rests: dict[str, float] = {}  # until when, of those that ended without getting on
        self.size = self.built = -1  # of the ledger when it was read, and for which there is a page
        self.told = -1  # for which others know that it was read
        self.cells: list[str] = []  # that were submitted to this runner, in order
        self.leaderboard = False
        self.cluster = Cluster()

    def plan(self) -> None:
        """Read the ledger anew where it has grown; the newest submission says how many at once."""
        size = self.ledger.path.stat().st_size
        if size == self.size:
            return
        attempts, histories = self.ledger.read()
        mine = [a for a in attempts.values() if a.cluster["executor"] == Executor.local.value]
        tokens = {attempt.token for attempt in mine}
        self.size, self.cluster = size, restore(mine[-1].cluster) if mine else Cluster()
        self.leaderboard = any(attempt.cluster.get("leaderboard") for attempt in mine)
        self.cells = [
            cell
            for cell, history in histories.items()
            if not history.cancelled and history.attempts[-1][0].token in tokens
        ]

    def run(self, stopped: Callable[[], int]) -> None:
        """Until nothing is left, or a signal comes."""
        while not stopped():
            self.plan()
            if self.told != self.size and not stopped():  # what is new is left to who waits
                self.tell()
            self.reap()
            resting = False
            for cell in self.cells:
                if len(self.alive) >= self.cluster.parallel:
                    break
                if cell in self.alive or not self.open(cell):
                    continue
                if time.monotonic() < self.rests.get(cell, 0.0):
                    resting = True
                    continue
                self.began[cell] = progress(self.results / cell)
                self.alive[cell] = start(self.results, cell)
            for cell in set(self.alive) - set(self.cells):
                self.alive[cell].terminate()  # cancelled
            if not self.alive and not resting:
                if self.built == self.size or not self.leaderboard:
                    return
                self.built = self.size
                build(self.results)  # and look once more: cells may have been submitted meanwhile
                continue
            time.sleep(TICK)
        for process in self.alive.values():
            process.terminate()
        for process in self.alive.values():
            process.wait()

    def tell(self) -> None:
        """Let others know how much of the ledger this runner has read."""
        with suppress(OSError):  # it is tried again
            _told(self.results).write_text(str(self.size))
            self.told = self.size

    def open(self, cell: str) -> bool:
        """Whether a cell is not at its end."""
        try:
            known = record.RunDirectory(self.results / cell).read()
        except ValueError as error:
            log.warning("%s", error)
            return False
        return known is not None and known["status"] not in ENDED

    def reap(self) -> None:
        """Let go of what has ended; what ended without getting on is counted, and rests a while."""
        for cell, process in list(self.alive.items()):
            if process.poll() is None:
                continue
            del self.alive[cell]
            if self.open(cell):
                log.warning("%s ended with %s before it was done", cell, process.returncode)
                moved = progress(self.results / cell) != self.began[cell]
                n = self.fruitless[cell] = 0 if moved else self.fruitless[cell] + 1
                if not moved:
                    self.rests[cell] = time.monotonic() + PAUSE
                if n >= self.cluster.attempts:
                    self.give_up(cell, f"{n} runs in a row ended without a step")

    def give_up(self, cell: str, reason: str) -> None:
        """Record that a cell does not get on; without room for that the cell is run again, and
        given up when that, too, has ended."""
        try:
            give_up(self.results / cell, reason)
            del self.fruitless[cell]
        except OSError as error:
            if error.errno not in FULL:
                raise
            log.warning("%s", error)


def _told(results: Path) -> Path:
    """The file that says how many bytes of the ledger a runner has read."""
    return results / ".slurm" / "pool" / "read"


def _has_read(results: Path) -> int:
    """How many bytes of the ledger some runner has read, as far as it could say."""
    try:
        return int(_told(results).read_text())
    except (OSError, ValueError):
        return -1


def stop(results: Path) -> set[int]:
    """Have the runner at work on these results, those that wait for its end, and their cells save
    and end, also cells whose runner was killed. Returns the processes that were told. Raises
    UserError where the runner is elsewhere."""
    folder = results / ".slurm" / "pool"
    owner = holder(folder)
    told = {number for number, words in processes("slurm.pool", results).items() if not words}
    for number in told:
        terminate(number)
    if owner and held(folder, stale=-math.inf):  # by this machine's own process table
        terminate(owner["pid"])
    elif held(folder):
        raise UserError(
            f"the runner of {results} is process {owner.get('pid')} on {owner.get('host')}, which "
            "is not seen from here; stop it there, as the user who started it."
        )
    return told | end(results)


def await_end(results: Path, told: Set[int]) -> None:
    """Until none of these runners and cells is at work any more: what is submitted then is run."""
    while told & (processes("slurm.pool", results).keys() | processes("slurm.job", results).keys()):
        time.sleep(TICK)


def main(results: Path) -> int:
    """Run what was submitted there."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, stream=sys.stderr)
    os.environ["OMP_NUM_THREADS"] = "1"
    folder, size = results / ".slurm" / "pool", Ledger(results).path.stat().st_size
    while True:
        try:
            lease = Lease(folder, uuid.uuid4().hex[:12], beat=30.0, stale=90.0)
            with lease, stop_signals(SIGNALS, impatient=False) as stopped:
                Pool(results).run(stopped)
            return 0
        except Busy:
            time.sleep(TICK)  # it may be about to end, and not see what is new
            if _has_read(results) >= size:
                log.info("another local runner is at work on %s", results)
                return 0
        except OSError as error:
            if error.errno not in FULL:
                raise
            log.warning("%s; waiting for room", error)
            time.sleep(PAUSE)


def command(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    words = [word for word in arguments if word != "--stop"]
    if len(words) != 1 or words[0].startswith("-"):
        sys.stdout.write(f"{__doc__}\n")
        return 0 if words in (["-h"], ["--help"]) else 2
    results = Path(words[0])
    if not Ledger(results).path.exists():
        sys.stderr.write(f"nothing was submitted to {results}; slurm.submit does.\n")
        return 1
    if "--stop" in arguments:
        try:
            await_end(results, stop(results))
        except UserError as error:
            sys.stderr.write(f"{sentence(error)}\n")
            return 1
        except KeyboardInterrupt:
            sys.stderr.write("the runner and its cells were told, and end when they have saved\n")
            return 130
        return 0
    return main(results)


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
