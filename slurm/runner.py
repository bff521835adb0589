"""Bring a grid to its end: look, resubmit what is lost, again; imports no torch.

Running it twice at once is harmless: one process at a time may submit, and a cell that two jobs
have is run by the one that holds its lease.
"""

import logging
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmark import record
from benchmark.compose import UserError
from slurm import grid
from slurm.cluster import restore
from slurm.grid import ENDS, Standing, look, progress
from slurm.job import FULL
from slurm.launch import Refused, launch, submitting
from slurm.ledger import Ledger

log = logging.getLogger(__name__)

OPEN = {"pending", "held", "running", "lost", "unknown"}
PAUSE = 10.0  # s between two looks


def repair(results: Path, cells: Sequence[str] | None = None) -> list[str]:
    """Resubmit what is lost, each cell as it was submitted last; returns those cells. One that was
    lost too often without progress is recorded as failed, with the reason. Raises record.Busy while
    another process submits, Refused, and UserError where the scheduler is away."""
    gone = [s.cell for s in grid.lost(results) if cells is None or s.cell in set(cells)]
    if not gone:
        return []
    refused: UserError | None = None
    again: list[str] = []
    with submitting(results):
        # somebody may have submitted them before the right was ours
        gone = [s.cell for s in look(results, only=gone) if s.state == "lost"]
        attempts, histories = Ledger(results).read()
        groups: dict[str, list[str]] = defaultdict(list)
        hopeless = []
        for cell in gone:
            attempt, *_ = histories[cell].attempts[-1]
            fruitless = histories[cell].fruitless(progress(results / cell))
            if fruitless >= attempt.cluster["attempts"]:
                hopeless.append((cell, fruitless))
            else:
                groups[attempt.token].append(cell)
        for token, members in groups.items():
            # each in a job of its own: one that kills its job is not to take others with it
            cluster = replace(restore(attempts[token].cluster), group=1, pack=1)
            try:
                launch(results, members, cluster, repair=True)
                again += members
            except UserError as error:
                refused = error
    for cell, fruitless in hopeless:
        give_up(results / cell, f"{fruitless} jobs in a row were lost without a step of progress")
    if refused is not None:
        raise refused
    return again


def give_up(path: Path, reason: str) -> None:
    """Record that a cell's jobs do not get on, unless one did meanwhile, or is at it. Raises
    OSError where that cannot be written."""
    directory = record.RunDirectory(path)
    try:
        with directory.lease():
            known = directory.read()
            if known is not None and known["status"] not in (*ENDS, "done"):
                directory.write(status="failed", reason=reason)
    except record.Busy as error:
        log.warning("%s", error)


def wait(
    results: Path, cells: Sequence[str], begin: Callable[[], object], pause: float = PAUSE
) -> int:
    """Until every one of these cells is at its end, resubmitting what is lost; returns the exit
    status: 1 if one failed. begin submits what is missing: runs by hand that were cut off. Held
    jobs are told once; only a person can let them go. A full disk is waited for. Raises Refused."""
    told: set[str] = set()
    said = ""
    while True:
        try:
            standings = look(results, only=cells)
            if (line := tally(standings)) != said:
                said = line
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
            for standing in standings:
                if standing.state == "held" and standing.cell not in told:
                    told.add(standing.cell)
                    log.warning(
                        "%s is held (%s): scontrol release %s, or python -m slurm.cancel %s",
                        *(standing.cell, standing.reason, standing.jobs[-1], standing.cell),
                    )
            states = {standing.state for standing in standings}
            if not states & {*OPEN, "missing"}:
                ended = [standing for standing in standings if standing.state in ("done", "stale")]
                return int(len(ended) < len({*cells}))
            if "lost" in states:
                repair(results, cells)
            if "missing" in states:
                begin()
        except record.Busy as error:
            log.info("%s", error)
        except Refused:
            raise
        except UserError as error:  # the scheduler is away, and may be back
            log.warning("%s", error)
        except OSError as error:  # also of the log that this writes
            if error.errno not in FULL:
                raise
            log.warning("%s; waiting for room", error)
        time.sleep(pause)


def tally(standings: Sequence[Standing]) -> str:
    """How many cells stand where, in a line."""
    count: dict[str, int] = defaultdict(int)
    for standing in standings:
        count[standing.state] += 1
    return ", ".join(f"{n} {state}" for state, n in sorted(count.items()))
