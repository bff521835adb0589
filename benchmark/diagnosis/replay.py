"""A finished run trained again from its configuration and its seed, to measure on the way what
nobody kept.

On the same machine with the same code the replay goes through the run's own bits; `exact` says
whether it did. It costs the run's training and validations once more.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmark.api import LatentModel
from benchmark.cell import LiveCell, Restored
from benchmark.compose import UserError
from benchmark.evaluate import untouched
from benchmark.record import RunDirectory

Probe = Callable[[LatentModel, int], dict[str, Any]]
"""What a model, in evaluation mode, shows after so many outer steps; alters neither its weights
nor their `grad`. Dicts may be nested, and have the same keys at every step."""


@contextmanager
def again(run: Restored, start: Path | None = None) -> Iterator[LiveCell]:
    """The run's cell in a temporary folder: untrained, or as it was saved in the folder `start`."""
    with TemporaryDirectory() as place, (directory := RunDirectory(place)).lease():
        if start is not None:
            shutil.copytree(start / "checkpoints", directory.path / "checkpoints")
            shutil.copy(start / "metrics.jsonl", directory.path)
        cell = LiveCell(
            directory, run.config, run.corpus, run.device, lambda: False, lambda t, steps: None
        )
        if start is not None:
            cell.trainer.resume()
        yield cell


def train(cell: LiveCell, until: int) -> None:
    """Train the cell up to so many outer steps; on disk only at an epoch's end."""
    cell.trainer.train(until, lambda: False, math.inf)


def replay(
    run: Restored, probes: Mapping[str, Probe], steps: Sequence[int] | None = None
) -> dict[str, Any]:
    """{"steps": [...], "exact": ..., and by each probe's name its values, a list each}.

    steps: at which the probes are called; by default `spaced` over all that the run has done. One
    that the run's schedule left out is left out here.
    exact: whether the replay met the run's selected weights to the bit; None if it did not get
    there. Raises UserError for steps that the run never did.
    """
    done = reached(run)
    chosen = spaced(done) if steps is None else sorted({*steps})
    if not chosen or chosen[0] < 0 or chosen[-1] > done:
        raise UserError(f"the run has steps 0 to {done} to look at, not {chosen}.")
    selected = run.record["selected_step"]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in probes}
    exact, met = None, []
    with again(run) as cell:
        for step in sorted({*chosen, min(selected, chosen[-1])}):
            train(cell, step)
            if cell.trainer.t != step:
                continue
            if step == selected:
                exact = same(cell.model, run.model)
            if step in chosen:
                met.append(step)
                for name, probe in probes.items():
                    with untouched(cell.model, run.device):
                        found[name].append(probe(cell.model, step))
    return {"steps": met, "exact": exact} | {k: by_step(values) for k, values in found.items()}


def reached(run: Restored) -> int:
    """The step to which a run was trained, with those that its schedule left out."""
    cost = run.record["cost"]
    return cost.get("reached", cost["steps"])  # older records left nothing out


def spaced(steps: int, most: int = 12) -> list[int]:
    """At most so many outer steps from the first to the last, spaced geometrically: a unit that
    dies does it early."""
    return np.unique(np.geomspace(1, steps, most).round().astype(int)).tolist()


def by_step(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One dict of lists from a list of dicts, nested alike."""
    return {
        key: by_step([values[key] for values in found])
        if isinstance(first, Mapping)
        else [values[key] for values in found]
        for key, first in found[0].items()
    }


def same(model: LatentModel, other: LatentModel) -> bool:
    """Whether two models have the same weights, to the bit."""
    others = other.state_dict()
    return all(
        torch.equal(value, others[name]) if isinstance(value, torch.Tensor) else True
        for name, value in model.state_dict().items()
    )
