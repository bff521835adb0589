"""Want no more of some cells: `python -m slurm.cancel [results_dir=DIR] CELL ... | all`.

A cell is named as slurm.status --json names it, or by a beginning: yelp, yelp/vae. What runs saves
and ends; one that has begun in a job with others that are wanted runs to its end.
Nothing submits these cells again but slurm.submit with only=cancelled. Imports no torch.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmark import compose
from benchmark.compose import UserError
from slurm import queue
from slurm.cluster import Executor
from slurm.grid import Standing, look
from slurm.job import end
from slurm.ledger import Ledger
from slurm.runner import OPEN


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    if not arguments or {"-h", "--help"} & {*arguments}:
        sys.stdout.write(f"{__doc__}\n")
        return 0 if arguments else 2
    places = [word for word in arguments if word.startswith("results_dir=")]
    results = Path(places[-1].removeprefix("results_dir=") if places else "results").absolute()
    try:
        names = [word for word in arguments if word not in places]
        chosen = choose(look(results), names)
        refused = cancel(results, chosen, everything="all" in names)
    except UserError as error:
        sys.stderr.write(compose.sentence(error) + "\n")
        return 1
    sys.stdout.write(f"{len(chosen)} cells cancelled\n")
    if refused:
        sys.stderr.write(f"scancel: {refused}\n")
    return int(refused is not None)


def choose(standings: Sequence[Standing], names: Sequence[str]) -> list[Standing]:
    """The cells, not at their end, that these names mean. Raises UserError for a name of none."""
    known = {standing.cell: standing for standing in standings}
    chosen = {}
    for name in names:
        found = [
            cell for cell in known if name == "all" or f"{cell}/".startswith(f"{name.rstrip('/')}/")
        ]
        if not found:
            raise UserError(f"there is no cell {name!r}; {compose.nearest(name, known)}.")
        chosen |= {cell: known[cell] for cell in found if known[cell].state in OPEN}
    return list(chosen.values())


def cancel(results: Path, standings: Sequence[Standing], *, everything: bool = False) -> str | None:
    """Write the will down, then tell the scheduler, of jobs none of whose cells is still wanted
    and, with `everything`, of those that build the leaderboard; returns what it says against it. A
    job is known by its name: numbers are given out again. The local runner, and jobs with other
    cells, read the ledger; the cells of one that was killed are told themselves."""
    cells = {standing.cell for standing in standings}
    if not cells and not everything:
        return None
    ledger = Ledger(results)
    if cells:
        ledger.cancelled(sorted(cells))
        end(results, cells)
    attempts, histories = ledger.read()
    answer = queue.ask()
    if answer is None:
        here = any(a.cluster["executor"] == Executor.slurm.value for a in attempts.values())
        return "the queue does not answer; cancel again when it does" if here else None
    states = {standing.cell: standing.state for standing in look(results)}
    jobs = []
    for attempt in attempts.values():
        attempt.job = attempt.job or answer.named(attempt.token)
        for i, members in enumerate(attempt.jobs):
            entry = answer.entries.get(attempt.element(i) or "")
            wanted = [c for c in members if states.get(c) in OPEN and not histories[c].cancelled]
            meant = cells & {*members} if members else everything
            if entry and entry.name == attempt.token and not wanted and meant:
                jobs.append(entry.job)
    return queue.cancel(jobs) if jobs else None


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    sys.exit(main(sys.argv[1:]))
