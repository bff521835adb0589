"""Prepare a data set once, where the network is: `python -m benchmark.data dataset=yelp`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmark import compose
from benchmark.data import vocabulary
from benchmark.data.errors import DataError
from benchmark.data.prepare import prepare, read_about


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.data",
        description="Prepare data sets under data_dir; one that is prepared already stays.",
    )
    names = ", ".join(sorted(path.stem for path in (compose.CONFIGS / "dataset").glob("*.yaml")))
    parser.add_argument(
        "override",
        nargs="*",
        help="dataset=NAME[,NAME...], dataset.path=FOLDER, dataset.KEY=VALUE, data_dir=FOLDER; "
        f"names: {names}",
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    words, unknown = parser.parse_known_args(arguments)
    try:
        if unknown:
            raise compose.UserError(f"{unknown[0]} is no option; --help tells what there is")
        with compose.hydra_ready():
            return max(prepare_one(cell) for cell in compose.sweep(words.override))
    except compose.UserError as error:
        return refuse(error)


def prepare_one(words: list[str]) -> int:
    """Prepare the data set that these words choose; returns the exit status."""
    try:
        config = compose.harness(compose.compose(words)[0])
        folder = prepare(config.dataset, compose.writable("data_dir", config.data_dir))
    except (compose.UserError, DataError) as error:
        return refuse(error)
    sys.stdout.write(summary(folder))
    return 0


def refuse(problem: Exception) -> int:
    sys.stderr.write(compose.sentence(problem) + "\n")
    return 1


def summary(folder: Path) -> str:
    """A prepared folder in a few lines."""
    about = read_about(folder)
    lines = [about["name"]]
    for split, counts in about["splits"].items():
        lengths = np.diff(np.load(folder / f"{split}.offsets.npy", mmap_mode="r")) + 1
        lines.append(
            f"  {split:<10} {counts['sentences']:>9,} sentences, {lengths.mean():.1f} tokens each "
            f"with </s> (longest {lengths.max():,}), {counts['unknown'] / counts['words']:.2%} "
            "unknown"
        )
    words = len(vocabulary.read(folder / "vocabulary.txt"))
    facts: dict[str, Any] = {"vocabulary": f"{words:,} with {len(vocabulary.SPECIALS)} specials"}
    if passed_over := about.get("passed_over"):
        facts["passed over"] = ", ".join(f"{n:,} {why}" for why, n in passed_over.items())
    if truth := about["truth"]:
        facts["I(x; z)"] = f"{truth['mi']:.3f} nats, s.e. {truth['mi_se']:.3f}"
    facts |= {"hash": about["hash"], "folder": folder}
    return "\n".join([*lines, *(f"  {key:<10} {value}" for key, value in facts.items())]) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
