"""The leaderboard that a sweep ends in, built in a process of its own: whatever becomes of it
becomes of no cell. Imports no torch."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmark.compose import CONFIGS

log = logging.getLogger(__name__)

ROOT = CONFIGS.parent
FILES = ("index.html", "RESULTS.md")
"""What to open of a leaderboard, the best first."""


def environment() -> dict[str, str]:
    """This process's variables, for one that finds this code wherever it starts."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}


def build(results: Path) -> bool:
    """Build the leaderboard of a results folder; returns whether it was built. The log says why
    it was not."""
    command = [sys.executable, "-m", "leaderboard", str(results)]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if ended.returncode != 0:
        last = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        log.warning("the leaderboard was not built (%s): %s", last, " ".join(command[1:]))
    return ended.returncode == 0


def told(results: Path) -> str | None:
    """Where the leaderboard of a results folder is and of when, in a line; None where none is."""
    for path in (results / "leaderboard" / name for name in FILES):
        try:
            built = time.localtime(path.stat().st_mtime)
        except OSError:
            continue
        return f"leaderboard: {path}, built {time.strftime('%Y-%m-%d %H:%M:%S', built)}"
    return None


class Page:
    """The job that builds it; it fails alone."""

    def __init__(self, results: Path):
        self.results = results

    def __call__(self) -> None:
        logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
        if not build(self.results):
            sys.exit(1)
