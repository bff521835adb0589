"""Where every cell of a results folder stands: by its own record, the ledger and the queue.

A cell is done only if its record says so. Whatever else there is to say is decided in this order:
its record's end (failed, diverged), the queue (pending, held, running), the user's will
(cancelled), the local runner, and only if none of them has it is it lost.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark import record
from benchmark.record import RESULT_VERSION
from slurm import queue
from slurm.cluster import Executor
from slurm.ledger import Attempt, History, Ledger, Progress
from slurm.queue import Queue

ENDS = ("failed", "diverged", "timeout")
GAP = 5.0  # s between the two answers of the queue without which nothing is repaired


@dataclass(frozen=True)
class Standing:
    """One cell. state: done, stale, failed, diverged, damaged (its run.json cannot be read),
    cancelled, pending, held, running, lost (no job has it, and it is not at its end), unknown (the
    queue does not answer), missing (never submitted)."""

    cell: str
    state: str
    record: dict[str, Any]
    reason: str | None = None
    jobs: tuple[str, ...] = ()

    @property
    def variant(self) -> str:
        return self.record["cell"]["variant"]

    @property
    def dataset(self) -> str:
        return self.record["cell"]["dataset"]


def look(results: Path, *, only: Iterable[str] | None = None) -> list[Standing]:
    """Every cell's standing, or that of some. The queue is asked before the records are read: what
    ends in between is done, not lost."""
    _, histories = Ledger(results).read()
    answer = queue.ask() if _asks(histories.values()) else Queue({})
    pooled = pool_lives(results)
    wanted = None if only is None else set(only)
    found = []
    for file in sorted(results.glob("*/*/*/s*/run.json")):
        cell = file.parent.relative_to(results).as_posix()
        if wanted is not None and cell not in wanted:
            continue
        try:
            known = record.RunDirectory(file.parent).read()
        except ValueError as error:
            found.append(Standing(cell, "damaged", _by_place(cell), str(error)))
            continue
        if known is not None:
            found.append(
                _stand(results, cell, known, histories.get(cell, History()), answer, pooled)
            )
    return found


def _by_place(cell: str) -> dict[str, Any]:
    """What a cell's place tells of it, where its record tells nothing."""
    dataset, method, _, seed = cell.split("/")
    number = int(seed[1:]) if seed[1:].isdecimal() else None
    about = {"dataset": dataset, "method": method, "variant": method, "seed": number}
    return {"cell": about, "provenance": {}}


def lost(results: Path) -> list[Standing]:
    """The cells that two looks, some seconds apart, both find lost."""
    first = {standing.cell for standing in look(results) if standing.state == "lost"}
    if not first:
        return []
    time.sleep(GAP)
    return [standing for standing in look(results, only=first) if standing.state == "lost"]


def _asks(histories: Iterable[History]) -> bool:
    """Whether the scheduler has anything to tell of these."""
    return any(
        attempt.cluster["executor"] == Executor.slurm.value
        for history in histories
        for attempt, _, _ in history.attempts
    )


def _stand(
    results: Path,
    cell: str,
    known: dict[str, Any],
    history: History,
    answer: Queue | None,
    pooled: bool,
) -> Standing:
    taken = [(_job(a, i, answer), a.token) for a, i, _ in history.attempts]
    jobs = tuple(job for job, _ in taken if job)
    status, reason = known["status"], known["reason"]

    def standing(state: str, why: str | None = reason) -> Standing:
        return Standing(cell, state, known, why, jobs)

    if status == "done":
        old = known["provenance"].get("result_version") != RESULT_VERSION
        return standing("stale" if old else "done")
    if status in ENDS:  # also while its job runs others; submitted again, it reads "queued"
        return standing("diverged" if status == "diverged" else "failed")
    # a controller that lost its memory gives numbers out again, but not names
    found = [(answer.entries.get(job or ""), token) for job, token in taken] if answer else []
    entries = [entry for entry, token in found if entry and entry.name == token]
    if any(not entry.pending for entry in entries):
        return standing("running")
    if entries and not history.cancelled:
        held = all(entry.held for entry in entries)
        return standing("held" if held else "pending", entries[-1].reason)
    if status == "running" and record.held(results / cell):
        return standing("running")  # by hand, or in a job that the queue has forgotten
    if history.cancelled:
        return standing("cancelled")
    if not history.attempts:
        return standing("missing")
    attempt, _, _ = history.attempts[-1]
    if attempt.refused:
        return standing("lost", attempt.refused)
    executor = Executor(attempt.cluster["executor"])
    if executor is Executor.local and pooled:
        return standing("running" if status == "running" else "pending")
    if executor is Executor.slurm and answer is None:
        return standing("unknown", "squeue does not answer")
    return standing("lost")


def _job(attempt: Attempt, i: int, answer: Queue | None) -> str | None:
    """The queue's name of an attempt's job, also where its submitter died before it knew."""
    if attempt.job is None and answer and not attempt.refused:
        attempt.job = answer.named(attempt.token)
    return attempt.element(i)


def pool_lives(results: Path) -> bool:
    """Whether the local runner is at work."""
    return record.held(results / ".slurm" / "pool")


def progress(path: Path) -> Progress:
    """How far a cell has come, cheaply: the newest step on record and what is evaluated."""
    step = 0
    try:
        with (path / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            for line in file.read().split(b"\n")[1:]:
                if line.startswith(b'{"step": '):
                    step = int(line[9:].partition(b",")[0])
    except (OSError, ValueError):
        pass
    try:
        evaluated = (path / "checkpoints" / "evaluation.pt").stat().st_size
    except OSError:
        evaluated = 0
    return step, evaluated
