"""Bring a grid to its end: look, resubmit what is lost, again; imports no torch.

Running it twice at once is harmless: one process at a time may submit, and a cell that two jobs
have is run by the one that holds its lease.
"""

import logging
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmark import record
from benchmark.compose import UserError
from slurm import grid
from slurm.cluster import restore
from slurm.grid import Standing, look, progress
from slurm.launch import Refused, launch, submitting
from slurm.ledger import Ledger

log = logging.getLogger(__name__)

OPEN = {"pending", "held", "running", "lost", "unknown", "missing"}
PAUSE = 10.0  # s between two looks


def repair(results: Path, cells: Sequence[str] | None = None) -> list[str]:
    """Resubmit what is lost, each cell as it was submitted last; returns those cells. One that was
    lost too often without progress is recorded as failed, with the reason. Raises record.Busy while
    another process submits, Refused, and UserError where the scheduler is away."""
    gone = [s.cell for s in grid.lost(results) if cells is None or s.cell in set(cells)]
    if not gone:
        return []
    with submitting(results):
        # somebody may have submitted them before the right was ours
        gone = [s.cell for s in look(results, only=gone) if s.state == "lost"]
        attempts, histories = Ledger(results).read()
        groups: dict[str, list[str]] = defaultdict(list)
        for cell in gone:
            attempt, *_ = histories[cell].attempts[-1]
            fruitless = histories[cell].fruitless(progress(results / cell))
            if fruitless >= attempt.cluster["attempts"]:
                give_up(results / cell, fruitless, attempt.refused)
            else:
                groups[attempt.token].append(cell)
        for token, members in groups.items():
            launch(results, members, restore(attempts[token].cluster), repair=True)
    return [cell for members in groups.values() for cell in members]


def give_up(path: Path, fruitless: int, refused: str | None) -> None:
    """Record that a cell's jobs do not get on."""
    directory = record.RunDirectory(path)
    why = f": {refused}" if refused else ""
    with directory.lease():
        directory.write(
            status="failed",
            reason=f"{fruitless} jobs in a row were lost without a step of progress{why}",
        )


def wait(results: Path, cells: Sequence[str], pause: float = PAUSE) -> int:
    """Until every one of these cells is at its end, resubmitting what is lost; returns the exit
    status: 1 if one failed. Held jobs are told once; only a person can let them go."""
    told: set[str] = set()
    said = ""
    while True:
        standings = look(results, only=cells)
        if (line := tally(standings)) != said:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
            said = line
        for standing in standings:
            if standing.state == "held" and standing.cell not in told:
                told.add(standing.cell)
                log.warning(
                    "%s is held (%s): scontrol release %s, or python -m slurm.cancel %s",
                    *(standing.cell, standing.reason, standing.jobs[-1], standing.cell),
                )
        if not any(standing.state in OPEN for standing in standings):
            return int(any(standing.state not in ("done", "stale") for standing in standings))
        if any(standing.state == "lost" for standing in standings):
            try:
                repair(results, cells)
            except record.Busy as error:
                log.info("%s", error)
            except Refused:
                raise
            except UserError as error:  # the scheduler is away, and may be back
                log.warning("%s", error)
        time.sleep(pause)


def tally(standings: Sequence[Standing]) -> str:
    """How many cells stand where, in a line."""
    count: dict[str, int] = defaultdict(int)
    for standing in standings:
        count[standing.state] += 1
    return ", ".join(f"{n} {state}" for state, n in sorted(count.items()))
