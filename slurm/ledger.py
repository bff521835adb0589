"""What was tried: an append-only log of submissions, results/.slurm/ledger.jsonl; imports no torch.

A submission is written down twice, as an intent before the scheduler is asked and with the job's
number after; a death in between leaves an intent whose token is the job's name, by which the queue
knows it. Cells are named by their run directories, relative to the results.
"""

import errno
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Progress = tuple[int, int]
"""How far a cell had come: the newest step on record, and bytes of its unfinished evaluation."""


@dataclass
class Attempt:
    """One submission: jobs[i] are the cells of the i-th job, which run in that order."""

    token: str
    cluster: dict[str, Any]
    jobs: list[list[str]]
    progress: dict[str, Progress]  # of each cell when it was submitted
    time: float  # s since 1970
    repair: bool = False  # resubmitted because it was lost, not because the user said so
    job: str | None = None  # the scheduler's number, or the array's
    refused: str | None = None

    def element(self, i: int) -> str | None:
        """The queue's name of the i-th job."""
        if self.job is None:
            return None
        return f"{self.job}_{i}" if len(self.jobs) > 1 else self.job


@dataclass
class History:
    """What the ledger tells of one cell."""

    attempts: list[tuple[Attempt, int, Progress]] = field(default_factory=list)
    """Oldest first, each with the job's place in it and how far the cell had come before."""
    cancelled: bool = False  # since the newest attempt

    @property
    def executor(self) -> str | None:
        """What it was submitted to last."""
        return self.attempts[-1][0].cluster["executor"] if self.attempts else None

    def fruitless(self, progress: Progress) -> int:
        """How many of the newest attempts, since the user's own, began where the cell still is."""
        count = 0
        for attempt, _, before in reversed(self.attempts):
            if before != progress:
                break
            count += attempt.refused is None
            if not attempt.repair:
                break
        return count


class Ledger:
    """The log of one results folder. Lines are appended whole; a torn last one is passed over."""

    def __init__(self, results: Path) -> None:
        self.path = results / ".slurm" / "ledger.jsonl"

    def intend(self, attempt: Attempt) -> None:
        """Before the scheduler is asked."""
        fields = ("token", "cluster", "jobs", "progress", "time", "repair")
        self._append(event="intent", **{name: getattr(attempt, name) for name in fields})

    def submitted(self, token: str, job: str) -> None:
        """The scheduler took it."""
        self._append(event="submitted", token=token, job=job)

    def refused(self, token: str, reason: str) -> None:
        """The scheduler did not take it."""
        self._append(event="refused", token=token, reason=reason)

    def cancelled(self, cells: Sequence[str]) -> None:
        """The user wants no more of these; written before the scheduler is told."""
        self._append(event="cancelled", cells=list(cells))

    def read(self) -> tuple[dict[str, Attempt], dict[str, History]]:
        """Every attempt by its token, and every cell's history."""
        attempts: dict[str, Attempt] = {}
        cells: dict[str, History] = {}
        for line in self._lines():
            match line:
                case {"event": "intent", **rest}:
                    rest["progress"] = {cell: tuple(p) for cell, p in rest["progress"].items()}
                    attempt = attempts[rest["token"]] = Attempt(**rest)
                    for i, job in enumerate(attempt.jobs):
                        for cell in job:
                            history = cells.setdefault(cell, History())
                            history.attempts.append((attempt, i, attempt.progress[cell]))
                            history.cancelled = False
                case {"event": "submitted", "token": token, "job": job} if token in attempts:
                    attempts[token].job = job
                case {"event": "refused", "token": token, "reason": reason} if token in attempts:
                    attempts[token].refused = reason
                case {"event": "cancelled", "cells": names}:
                    for cell in names:
                        cells.setdefault(cell, History()).cancelled = True
        return attempts, cells

    def _lines(self) -> list[dict[str, Any]]:
        try:
            whole = self.path.read_bytes().rpartition(b"\n")[0]
        except FileNotFoundError:
            return []
        lines = []
        for text in whole.split(b"\n"):
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue  # torn by a death; what it told is told by the queue
        return lines

    def _append(self, **line: Any) -> None:
        """One write, on disk before this returns; a line that somebody tore is ended first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = (json.dumps(line) + "\n").encode()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                text = b"\n" + text
            if os.write(descriptor, text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def now() -> float:
    """Seconds since 1970, for people to read; nothing is decided by it."""
    return round(time.time(), 3)
