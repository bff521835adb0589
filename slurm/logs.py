"""What a cell wrote: `python -m slurm.logs CELL [results_dir=DIR]`; imports no torch.

Prints the end of its log, its error if there was one, and the files its jobs wrote.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmark import compose
from benchmark.compose import UserError
from benchmark.record import RunDirectory
from slurm.ledger import History, Ledger

TAIL = 20  # lines


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    places = [word for word in arguments if word.startswith("results_dir=")]
    names = [word for word in arguments if word not in places and not word.startswith("-")]
    if len(names) != 1 or {"-h", "--help"} & {*arguments}:
        sys.stdout.write(f"{__doc__}\n")
        return 0 if {"-h", "--help"} & {*arguments} else 2
    results = Path(places[-1].removeprefix("results_dir=") if places else "results").absolute()
    try:
        text = describe(results, names[0].rstrip("/"))
    except (UserError, ValueError) as error:
        sys.stderr.write(compose.sentence(error) + "\n")
        return 1
    sys.stdout.write(text)
    return 0


def describe(results: Path, cell: str) -> str:
    """All that there is to read of a cell. Raises UserError where there is none."""
    directory = RunDirectory(results / cell)
    known = directory.read()
    if known is None:
        cells = [
            p.parent.relative_to(results).as_posix() for p in results.glob("*/*/*/s*/run.json")
        ]
        raise UserError(f"there is no cell {cell!r} in {results}; {compose.nearest(cell, cells)}.")
    parts = [f"{cell}: {known['status']}{': ' + known['reason'] if known['reason'] else ''}\n"]
    _, histories = Ledger(results).read()
    files = [directory.path / "log.txt", directory.path / "error.txt"]
    for attempt, i, _ in histories.get(cell, History()).attempts:
        if attempt.refused:
            parts.append(f"refused: {attempt.refused}\n")
        elif job := attempt.element(i):
            folder = results / ".slurm" / "jobs" / job.partition("_")[0]
            files += sorted(folder.glob(f"{job}_0_log.*"))
    for file in files:
        if file.is_file():
            lines = file.read_text(errors="replace").splitlines()
            shown = "\n".join(lines[-TAIL:])
            parts.append(f"== {file} ({len(lines)} lines)\n{shown}\n")
    return "".join(parts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
