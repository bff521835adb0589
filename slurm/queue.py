"""What the scheduler has alive: one `squeue`, and no guesses; imports no torch.

Only a successful answer tells anything: a cell is in a job that the queue names, or it is not.
Neither sacct nor submitit's idea of a job's state is asked: sites run without accounting, rows of
cancelled array elements are wrong, and a requeued job may read NODE_FAIL while it runs again.
"""

import os
import subprocess
from dataclasses import dataclass

PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED"}
HELD = {"REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
NEVER = {
    *("PartitionTimeLimit", "PartitionNodeLimit", "DependencyNeverSatisfied", "BadConstraints"),
    *("InvalidAccount", "InvalidQOS", "AccountNotAllowed", "QOSNotAllowed"),
}
"""Reasons for which a job waits for ever."""


@dataclass(frozen=True)
class Entry:
    """A job, or an array's element."""

    job: str
    state: str
    reason: str
    name: str

    @property
    def pending(self) -> bool:
        return self.state in PENDING | HELD

    @property
    def held(self) -> bool:
        """Whether nobody but a person will let it start."""
        reason = "held" in self.reason.lower() or self.reason in NEVER
        return self.state in HELD or (self.pending and reason)


@dataclass(frozen=True)
class Queue:
    """One answer, by the job's number."""

    entries: dict[str, Entry]

    def named(self, name: str) -> str | None:
        """The number of the job, or the array, of this name."""
        found = [entry.job for entry in self.entries.values() if entry.name == name]
        return found[0].partition("_")[0] if found else None


def ask(timeout: float = 60.0) -> Queue | None:
    """The user's jobs; None where the scheduler does not answer."""
    # -r has a line for each pending element of an array, too
    # and -a those in partitions that are hidden; a filter in the environment would hide some
    command = ["squeue", "-a", "-r", "-h", "-u", str(os.getuid()), "-o", "%i|%T|%r|%j"]
    plain = {key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")}
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=plain)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode != 0:
        return None
    entries = {}
    for line in answer.stdout.splitlines():
        parts = line.split("|", 3)
        if len(parts) == 4 and parts[1] != "REVOKED":  # which runs in another cluster
            entries[parts[0]] = Entry(*parts)
    return Queue(entries)


def cancel(jobs: list[str]) -> str | None:
    """Cancel jobs; returns what the scheduler says against it."""
    for start in range(0, len(jobs), 500):
        command = ["scancel", *jobs[start : start + 500]]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
            return " ".join(answer.stderr.split())
    return None


def largest_array() -> int:
    """Elements that one array may have; the default of SLURM where it does not say."""
    try:
        command = ["scontrol", "show", "config"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return 1000
    for line in answer.stdout.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize" and value.strip().isdecimal():
            return max(1, int(value) - 1)
    return 1000
