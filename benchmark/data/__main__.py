"""Prepare a data set once, where the network is: `python -m benchmark.data dataset=yelp`."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from benchmark.compose import CONFIGS, HYDRA_ERRORS, explain
from benchmark.config import Dataset
from benchmark.data import vocabulary
from benchmark.data.errors import DataError
from benchmark.data.prepare import prepare, read_about


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.data",
        description="Prepare a data set under data_dir; one that is prepared already stays.",
    )
    names = ", ".join(sorted(path.stem for path in (CONFIGS / "dataset").glob("*.yaml")))
    parser.add_argument(
        "override",
        nargs="*",
        help="dataset=NAME, dataset.path=FOLDER, dataset.KEY=VALUE, data_dir=FOLDER; "
        f"names: {names}",
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = compose("config", parser.parse_args(arguments).override)
        dataset = OmegaConf.merge(OmegaConf.structured(Dataset), config.dataset)
        folder = prepare(dataset, Path(config.data_dir))
    except DataError as error:
        raise SystemExit(str(error)) from None
    except HYDRA_ERRORS as error:
        raise SystemExit(explain(error)) from None
    sys.stdout.write(summary(folder))


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
    main(sys.argv[1:])
