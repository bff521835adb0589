"""What differs between runs, and is it real? `python -m benchmark.compare RUN RUN [RUN ...]`

A RUN is a run directory, or the beginning of its path if no other run's begins so. The others are
held against the first: where configurations, data and code differ; what was measured, and where
the sentences are the same, the paired difference with its 95 % interval; what it cost; and the
validation over training, at the steps that all have. Flags:
  --out FILE    draw the validation, too, every step of each run: .svg, .png or .pdf
  --json        print one JSON object instead
"""

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from glob import escape, glob
from pathlib import Path
from typing import NoReturn

from benchmark import compose
from benchmark.compose import UserError
from benchmark.run import told

FORMATS = (".svg", ".png", ".pdf")
LETTERS = "ABCDEFGHIJKL"  # as many as there are colours


def order(arguments: Sequence[str]) -> Namespace:
    """The command line's `runs`, `out` and `json`. Raises UserError."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true")

    def error(message: str) -> NoReturn:
        raise UserError(f"{message}; --help tells what there is.")

    parser.error = error  # argparse's own would print its usage too
    asked = parser.parse_intermixed_args(arguments)
    if asked.out is not None and asked.out.suffix not in FORMATS:
        error(f"--out is followed by a file that ends in {', '.join(FORMATS)}")
    if not 2 <= len(asked.runs) <= len(LETTERS):
        error(f"name 2 to {len(LETTERS)} runs, not {len(asked.runs)}")
    return asked


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    if not arguments or {"-h", "--help"} & {*arguments}:
        sys.stdout.write(f"{__doc__}\n")
        return 0 if arguments else 2
    return told(lambda: compare(order(arguments)))


def compare(asked: Namespace) -> int:
    """Read, compare, tell and draw; returns the exit status. Raises UserError."""
    from rich.console import Console

    from benchmark.comparison.differences import comparison
    from benchmark.comparison.runs import read
    from benchmark.comparison.tables import show

    if asked.out is not None:
        compose.writable("--out", str(asked.out.parent))
    sides = [read(find(run), letter) for run, letter in zip(asked.runs, LETTERS, strict=False)]
    found = comparison(sides)
    if asked.json:
        sys.stdout.write(json.dumps(found, indent=2, allow_nan=False) + "\n")
    else:
        # in a file or a pipe nothing is too wide
        show(found, Console(highlight=False, width=None if sys.stdout.isatty() else 500))
    if asked.out is not None:
        from benchmark.comparison.figure import write

        write(asked.out, sides)
    return 0


def find(word: str) -> Path:
    """The run directory that a word of the command line means. Raises UserError."""
    name = Path(word).name
    is_seed = name[:1] == "s" and name[1:].isdigit()  # s1 is not the beginning of s10
    start = escape(word.rstrip("/")) + ("" if is_seed or os.path.exists(word) else "*")
    within = [f"{start}/{'*/' * depth}run.json" for depth in range(5)]  # of results/, the last
    found = sorted(Path(file).parent for pattern in within for file in glob(pattern))
    if not found:
        run = "results/DATASET/METHOD/ID/sSEED"
        raise UserError(f"{word} is no run directory, and none lies below: name one, {run}.")
    if len(found) > 1:
        raise UserError(f"{word} names {len(found)} runs: name one of them, as {found[0]}.")
    return found[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
