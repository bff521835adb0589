"""Want no more of some cells: `python -m slurm.cancel [results_dir=DIR] CELL ... | all`.

A cell is named as slurm.status --json names it, or by a beginning: yelp, yelp/vae. What runs saves
and ends; nothing submits these cells again but slurm.submit. Imports no torch.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmark import compose
from benchmark.compose import UserError
from slurm import queue
from slurm.grid import Standing, look
from slurm.ledger import Ledger

OPEN = {"pending", "held", "running", "lost", "unknown"}


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    if not arguments or {"-h", "--help"} & {*arguments}:
        sys.stdout.write(f"{__doc__}\n")
        return 0 if arguments else 2
    places = [word for word in arguments if word.startswith("results_dir=")]
    results = Path(places[-1].removeprefix("results_dir=") if places else "results").absolute()
    try:
        chosen = choose(look(results), [word for word in arguments if word not in places])
        refused = cancel(results, chosen)
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


def cancel(results: Path, standings: Sequence[Standing]) -> str | None:
    """Write the will down, then tell the scheduler, of jobs all of whose cells are meant; returns
    what it says against it. The local runner reads the ledger."""
    cells = {standing.cell for standing in standings}
    if not cells:
        return None
    ledger = Ledger(results)
    ledger.cancelled(sorted(cells))
    attempts, histories = ledger.read()
    jobs = []
    for attempt in attempts.values():
        for i, members in enumerate(attempt.jobs):
            wanted = [c for c in members if c in histories and not histories[c].cancelled]
            job = attempt.element(i)
            if job and not wanted and cells & {*members}:
                jobs.append(job)
    return queue.cancel(jobs) if jobs else None


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    sys.exit(main(sys.argv[1:]))
