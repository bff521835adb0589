"""Sentences as a diagnosis meets them: with an evaluation's own noise, partners of their length."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmark.api import Batch, LatentModel
from benchmark.compose import UserError
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
