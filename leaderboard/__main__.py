"""The leaderboard: `python -m leaderboard [results ...]` prints a table a data set."""

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
    folders = [Path(name) for name in parser.parse_args(arguments).results]
    from leaderboard.load import load_cells  # --help need not wait for pandas
    from leaderboard.terminal import show

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
    # in a file or a pipe nothing is too wide
    show(cells, Console() if sys.stdout.isatty() else Console(width=500))
    return 0


def _refuse(why: str) -> int:
    print(why, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
