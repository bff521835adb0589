"""Where a sentence's signal is lost on its way into the code: linear probes at three places.

A ridge regression is fitted to the validation split and read on the test split: of the encoder's
last state, of the posterior's means, of one code a sentence. What the state tells and the means do
not is lost in the head; what the means tell and the codes do not, to the posterior's noise. A probe
knows no scale, so means that are far too small for their noise may tell all the same.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.api import LatentModel
from benchmark.compose import UserError
from benchmark.diagnosis.sentences import batches, room
from benchmark.diagnosis.words import PLACES
from benchmark.estimators import Array
from benchmark.evaluate import Rows, SplitLike, by_length, subset

MOST = 2_000  # sentences of a split
PENALTIES = 10.0 ** np.arange(-6, 4)  # a sentence, of features of variance 1


def probes(
    model: LatentModel, valid: SplitLike, test: SplitLike, device: torch.device
) -> dict[str, dict[str, list[float] | None]]:
    """The share of each target's variance that a linear probe at each place explains, R^2 and its
    standard error; None of a place that the model lacks. Targets are the sentence's length and, a
    column a class, its label, where they differ. Raises UserError where there is nothing to ask.
    """
    if model.latent == "sequence":
        raise UserError("a probe reads one code a sentence.")
    splits = [(split, subset(split, "probe", MOST)) for split in (valid, test)]
    known = _targets(splits)
    if not known:
        raise UserError("the sentences have neither labels nor lengths that differ.")
    x, at = (_features(model, split, rows, device) for split, rows in splits)
    return {
        name: {p: explained(x[p], y, at[p], seen) if p in x else None for p in PLACES}
        for name, (y, seen) in known.items()
    }


def _targets(splits: Sequence[tuple[SplitLike, Rows]]) -> dict[str, tuple[Array, ...]]:
    """[n, columns] of the sentences of each split, by name, of what differs in all of them."""
    lengths = [np.asarray(split.lengths)[rows, None].astype(float) for split, rows in splits]
    found = {"length": lengths}
    labels = [each[rows] for split, rows in splits if (each := _labels(split)) is not None]
    if len(labels) == len(splits):
        classes = np.unique(np.concatenate(labels))
        found["label"] = [(each[:, None] == classes).astype(float) for each in labels]
    differ = {name: all(np.ptp(y, 0).any() for y in ys) for name, ys in found.items()}
    return {name: tuple(ys) for name, ys in found.items() if differ[name]}


def _labels(split: SplitLike) -> np.ndarray | None:
    """[N], where a split's sentences have labels."""
    return getattr(split, "labels", None)


def _features(
    model: LatentModel, split: SplitLike, rows: Rows, device: torch.device
) -> dict[str, Array]:
    """[n, columns] at each place that the model has."""
    encoder: Any = next((m for m in model.modules() if hasattr(m, "last_state")), None)
    seen: dict[str, list[Tensor]] = {name: [] for name in PLACES}
    order: list[Rows] = []
    for length, same in by_length(split, rows):
        for part, batch in batches(split, same, room(device, length), device):
            posterior, code = model.posterior(batch), model.draw(batch).z
            assert code is not None
            seen["code"].append(code[:, 0].double())
            if posterior is not None:
                seen["mean"].append(posterior[0].double())
            if encoder is not None:
                seen["state"].append(encoder.last_state(batch).double())
            order.append(part)
    back = np.searchsorted(rows, np.concatenate(order))  # rows rise
    found = {}
    for name, parts in seen.items():
        if parts:
            found[name] = np.empty((len(rows), parts[0].shape[-1]))
            found[name][back] = torch.cat(parts).cpu().numpy()
    return found


def explained(x: Array, y: Array, at: Array, seen: Array) -> list[float]:
    """R^2 and its standard error, by the delta method, of a ridge regression of y [n, C] on the
    standardised features x [n, F], for `seen` [m, C] at features `at` [m, F]. The penalty is the
    one that predicts each of the n best from the others."""
    middle, scale = x.mean(0), x.std(0)
    x, at = ((features - middle) / np.where(scale > 0, scale, 1) for features in (x, at))
    off, n = y.mean(0), len(x)
    left, size, right = np.linalg.svd(x, full_matrices=False)
    along = left.T @ (y - off)

    def missed(penalty: float) -> float:
        """By the regression without the sentence itself (Allen 1974)."""
        kept = size**2 / (size**2 + n * penalty)
        leverage = (left**2 * kept).sum(1) + 1 / n
        left_over = y - off - left @ (kept[:, None] * along)
        return float(((left_over / (1 - leverage)[:, None]) ** 2).sum())

    penalty = min(PENALTIES, key=missed)
    slopes = right.T @ ((size / (size**2 + n * penalty))[:, None] * along)
    error = ((seen - off - at @ slopes) ** 2).sum(1)
    spread = ((seen - seen.mean(0)) ** 2).sum(1)
    share = error.mean() / spread.mean()
    deviation = (error - share * spread).std(ddof=1) / np.sqrt(len(seen)) / spread.mean()
    return [float(1 - share), float(deviation)]
