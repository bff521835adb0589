"""Sentences as a diagnosis meets them: with an evaluation's own noise, partners of their length."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmark.api import Batch, LatentModel
from benchmark.compose import UserError
from benchmark.estimators import Array
from benchmark.evaluate import TOKENS, Rows, SplitLike, by_length, generator
from benchmark.noise import Noise


def noisy(batch: Batch, split: SplitLike, rows: Rows, stream: str = "") -> Batch:
    """The batch of these rows about to draw an evaluation's own noise, or another stream's."""
    sentence = torch.as_tensor(rows, device=batch.targets.device)
    return batch.but(noise=Noise(split.name + stream, sentence))


def room(device: torch.device, tokens: int) -> int:
    """How many of something that costs so many tokens go through the decoder at once."""
    return max(1, TOKENS[device.type] // tokens)


def batches(
    split: SplitLike, rows: Rows, size: int, device: torch.device
) -> Iterator[tuple[Rows, Batch]]:
    """Rows and their batches on the device, `size` at a time, about to draw their noise."""
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        batch = split.batch(part)
        if device.type == "cuda":
            batch = batch.pin()
        yield part, noisy(batch.to(device, non_blocking=True), split, part)


def codes(model: LatentModel, split: SplitLike, rows: Rows, device: torch.device) -> Tensor:
    """[n, ...], sample 0 of each of these sentences, which are all of one length."""
    drawn = []
    size = room(device, int(np.asarray(split.lengths)[rows[0]]))
    for _, batch in batches(split, rows, size, device):
        z = model.draw(batch).z
        assert z is not None
        drawn.append(z[:, 0])
    return torch.cat(drawn)


def pairs(split: SplitLike, rows: Rows, purpose: str) -> Iterator[tuple[int, Rows]]:
    """(tokens, rows of that length), for each length that two of them have, in random order: a
    sentence's partner stands before it, the first one's at the end. Raises UserError if no two
    sentences have one length."""
    shuffle = generator(split.name, purpose)
    found = [(t, shuffle.permutation(same)) for t, same in by_length(split, rows) if len(same) > 1]
    if not found:
        raise UserError(f"no two of {len(rows)} sentences have one length: take more of them.")
    yield from found


class Mean:
    """Streamed means over sentences of what each loses with its partner's code, by column, and
    their standard errors. Every code is used twice, as a sentence's own and as its follower's, so
    that neighbours in a cycle of `pairs` lose together."""

    def __init__(self) -> None:
        self.cycles: list[tuple[int, Tensor]] = []  # its sentences; [3, W]

    def add(self, values: Tensor) -> None:
        """[n, W] of a whole cycle, in its order; narrower ones lack the last columns."""
        values = values.double()
        near = (values * values.roll(1, 0)).sum(0) / (2 if len(values) == 2 else 1)
        sums = torch.stack([values.sum(0), values.square().sum(0), near])
        self.cycles.append((len(values), sums))

    def fetch(self) -> tuple[Array, Array, Array]:
        """Mean, standard error (NaN of one sentence) and number of sentences, [W] each."""
        width = max(sums.shape[1] for _, sums in self.cycles)
        n, total = np.zeros(width), np.zeros((len(self.cycles), 3, width))
        sizes = np.zeros((len(self.cycles), width))
        for size, found, (count, sums) in zip(sizes, total, self.cycles, strict=True):
            size[: sums.shape[1]] = count
            found[:, : sums.shape[1]] = sums.cpu().numpy()
        n = sizes.sum(0)
        mean = total[:, 0].sum(0) / n
        pairs = np.where(sizes == 2, 0.5, 1.0)
        centre = sizes * mean**2 - 2 * mean * total[:, 0]  # what centring takes off each sum
        square = np.maximum((total[:, 1] + centre).sum(0), 0)
        near = np.maximum((total[:, 2] + pairs * centre).sum(0), 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            error = np.sqrt((square + 2 * near) / (n * (n - 1)))
        return mean, np.where(n > 1, error, np.nan), n
