"""The local runner: `python -m slurm.pool RESULTS`, which slurm.submit cluster=local starts, and
`python -m slurm.pool --stop RESULTS`, which has its cells save and ends it.

Keeps at most cluster.parallel cells alive, each a process with one thread, until no cell that was
submitted to it is left; then it builds the leaderboard, if it was asked for. What was stopped goes
on with slurm.status --repair, or with the same submission.
"""

import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmark import record
from benchmark.lease import Busy, Lease
from benchmark.run import stop_signals
from slurm.cluster import Cluster, Executor, restore
from slurm.grid import progress
from slurm.job import SIGNALS, start
from slurm.ledger import Ledger, Progress
from slurm.page import build
from slurm.runner import give_up

log = logging.getLogger(__name__)

ENDED = {"done", "failed", "diverged", "timeout"}
TICK = 0.2  # s


class Pool:
    """The cells that are alive, and which come next."""

    def __init__(self, results: Path):
        self.results, self.ledger = results, Ledger(results)
        self.alive: dict[str, subprocess.Popen] = {}
        self.began: dict[str, Progress] = {}
        self.fruitless: Counter[str] = Counter()
        self.size = self.built = -1  # of the ledger when it was read, and for which there is a page
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
            self.reap()
            for cell in self.cells:
                if len(self.alive) >= self.cluster.parallel:
                    break
                if cell not in self.alive and self.open(cell):
                    self.began[cell] = progress(self.results / cell)
                    self.alive[cell] = start(self.results, cell)
            for cell in set(self.alive) - set(self.cells):
                self.alive[cell].terminate()  # cancelled
            if not self.alive:
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

    def open(self, cell: str) -> bool:
        """Whether a cell is not at its end."""
        try:
            known = record.RunDirectory(self.results / cell).read()
        except ValueError as error:
            log.warning("%s", error)
            return False
        return known is not None and known["status"] not in ENDED

    def reap(self) -> None:
        """Let go of what has ended; count what ended without getting on."""
        for cell, process in list(self.alive.items()):
            if process.poll() is None:
                continue
            del self.alive[cell]
            if self.open(cell):
                log.warning("%s ended with %s before it was done", cell, process.returncode)
                moved = progress(self.results / cell) != self.began[cell]
                self.fruitless[cell] = 0 if moved else self.fruitless[cell] + 1
                if self.fruitless[cell] >= self.cluster.attempts:
                    n = self.fruitless.pop(cell)
                    give_up(self.results / cell, f"{n} runs in a row ended without a step")


def stop(results: Path) -> None:
    """Tell the runner at work on these results, if there is one."""
    folder = results / ".slurm" / "pool"
    if record.held(folder):
        os.kill(int((folder / "pid").read_text()), signal.SIGTERM)


def main(results: Path) -> int:
    """Run what was submitted there."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, stream=sys.stderr)
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = results / ".slurm" / "pool"
    for _ in range(10):
        try:
            lease = Lease(folder, uuid.uuid4().hex[:12], beat=30.0, stale=90.0)
            with lease, stop_signals(SIGNALS, impatient=False) as stopped:
                (folder / "pid").write_text(str(os.getpid()))
                Pool(results).run(stopped)
            return 0
        except Busy:
            time.sleep(1.0)  # it may be about to end, and not have seen what is new
    log.info("another local runner is at work on %s", results)
    return 0


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
        stop(results)
        return 0
    return main(results)


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
