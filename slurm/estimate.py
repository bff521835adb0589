"""What a grid will cost, before it runs; imports no torch.

A rough model of a cell, operations = 6 x weights x tokens read in training, whose constant is taken
from the cells of these results that are done: of the same method, else of any; else it is guessed.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from benchmark import record
from benchmark.data.errors import DataError
from benchmark.data.prepare import read_about
from benchmark.grid import Cell

RATE = 2e10  # operations a second, of one CPU core
SHARE = 1.5  # of a cell's time, training's being 1: evaluation is half of it again
UNKNOWN = {"sentences": 100_000, "words": 20, "vocabulary": 20_000}


def estimate(results: Path, cells: Sequence[tuple[Cell, DictConfig]]) -> Iterator[str]:
    """Lines that say how long and how large."""
    if not cells:
        return
    speeds: dict[str, list[float]] = defaultdict(list)
    for directory, known in record.scan(results):
        seconds = known["cost"].get("train_seconds")
        stored = directory.path / "config.yaml"
        if known["status"] == "done" and seconds and stored.is_file():
            config = OmegaConf.load(stored)
            assert isinstance(config, DictConfig)
            config.setdefault("data_dir", cells[0][1].data_dir)  # a published one names no folders
            speeds[known["cell"]["method"]].append(operations(config)[0] / seconds)
    found = [speed for method in speeds.values() for speed in method]
    rates = {cell.method: speeds.get(cell.method, found) or [RATE] for cell, _ in cells}
    known = {id(config): operations(config) for config in {id(c): c for _, c in cells}.values()}
    costs = [known[id(config)] for _, config in cells]
    hours = (
        SHARE
        / 3600
        * sum(
            cost[0] / statistics.median(rates[cell.method])
            for (cell, _), cost in zip(cells, costs, strict=True)
        )
    )
    gigabytes = sum(weights for _, weights, _ in costs) * 4 / 2**30
    guessed = sorted(
        {cell.dataset for (cell, _), cost in zip(cells, costs, strict=True) if cost[2]}
    )
    ground = f"from {len(found)} finished cells" if found else "a guess: none has finished yet"
    yield f"about {hours:.3g} hours in all on one core ({ground}; methods differ by tens)"
    yield (
        f"about {gigabytes:.2g} GB of weights when done, "
        f"{8 * gigabytes / len(cells):.2g} GB for each cell while it runs"
    )
    if guessed:
        yield f"not prepared yet, so sizes are guessed: {', '.join(guessed)}"


def operations(config: DictConfig) -> tuple[float, float, bool]:
    """(operations of training, weights, whether the data's size is guessed)."""
    dataset, budget, model = config.dataset, config.budget, config.model
    about = _about(Path(config.data_dir), dataset.name)
    sentences = about.get("sentences") or dataset.sentences.get("train") or UNKNOWN["sentences"]
    words = about.get("words") or (dataset.generator or {}).get("length") or UNKNOWN["words"]
    generated = (dataset.generator or {}).get("words")
    vocabulary = about.get("vocabulary") or dataset.vocabulary or generated or UNKNOWN["vocabulary"]
    embedding = min(model.embedding, budget.max_embedding or model.embedding)
    hidden = min(model.hidden, budget.max_hidden or model.hidden)
    recurrent = 2 * 4 * hidden * (embedding + hidden)
    output = hidden * vocabulary
    seen = budget.steps * budget.batch_size if budget.steps else budget.epochs * sentences
    weights = recurrent + output + 2 * embedding * vocabulary
    return 6.0 * (recurrent + output) * seen * words, weights, not about


@cache
def _about(data_dir: Path, name: str) -> dict[str, float]:
    """The measures of the prepared data, where there is any of this name."""
    for folder in sorted(data_dir.glob(f"{name}-*")):
        try:
            counts = read_about(folder)["splits"]["train"]
            vocabulary = len((folder / "vocabulary.txt").read_bytes().splitlines())
        except (DataError, OSError, LookupError):
            continue
        words = counts["words"] / max(1, counts["sentences"])
        return {"sentences": counts["sentences"], "words": words, "vocabulary": vocabulary}
    return {}
