"""The leaderboard: `python -m leaderboard [results ...]` prints a table a data set and writes them,
with all that may be said of them, as a page (index.html), RESULTS.md, table.tex, figures and
results.parquet."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m leaderboard",
        description="Print what the runs of a results folder measured: a table a data set, a row "
        "a variant (a method and its changed fields), means over seeds; below it every run that "
        "is not finished or cannot be trusted, with the reason.",
    )
    parser.add_argument(
        "results",
        nargs="*",
        default=["results"],
        help="folders that benchmark.run wrote to, several are merged (default: results)",
    )
    parser.add_argument(
        "--out",
        help="folder for index.html, RESULTS.md, table.tex, figures/ and results.parquet, every "
        "measurement of every run (default: `leaderboard` in the first results folder)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; list what is damaged, stale, failed or unfinished; exit 1 if there is",
    )
    parser.add_argument(
        "--public",
        action="store_true",
        help="copy what may be published of the finished runs to OUT/runs, announce the others "
        "there as queued, and make all of the runs that are there: without host, user and "
        "folders, and without the text of data sets whose licence does not let it be passed on",
    )
    given = parser.parse_args(arguments)
    folders = [Path(name) for name in given.results]
    from leaderboard.load import check, load_cells  # --help need not wait for pandas
    from leaderboard.public import publish
    from leaderboard.terminal import show
    from leaderboard.write import write

    for folder in folders:
        if not folder.is_dir():
            what = "no folder" if folder.exists() else "not there"
            return _refuse(f"{folder} is {what}: name the results_dir of benchmark.run.")
    cells = load_cells(folders)
    if cells.empty:
        return _refuse(
            f"{', '.join(map(str, folders))} holds no runs (DATASET/METHOD/ID/sSEED): "
            "start one with `python -m benchmark.run`, or name another folder."
        )
    if given.check:
        found = check(cells)
        sys.stdout.write("".join(f"{line}\n" for line in [*found, f"{len(cells)} runs checked"]))
        return int(bool(found))
    out = Path(given.out) if given.out else folders[0] / "leaderboard"
    try:
        if given.public:
            publish(cells, out / "runs")
            cells = load_cells([out / "runs"])
        written = write(cells, out)
    except OSError as error:
        return _refuse(f"{out} cannot be written to ({error.strerror}); choose another with --out.")
    # in a file or a pipe nothing is too wide
    show(cells, Console() if sys.stdout.isatty() else Console(width=500))
    sys.stdout.write(f"Written: {written[0]} and {len(written) - 1} files beside it\n")
    return 0


def _refuse(why: str) -> int:
    print(why, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
