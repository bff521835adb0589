"""The control of every method: the inference network reads another sentence than is scored.

A method less its placebo is what information bought; the placebo less a language model is what
regularisation and optimisation did.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark.api import UNK, Batch
from benchmark.data.corpus import Split


def partners(lengths: Tensor, keys: Tensor) -> Tensor:
    """[N], for each sentence another one of the same length, and for one that is alone of its
    length itself. lengths: [N]; keys: [N] in [0, 1), whose order decides. Every sentence is one
    sentence's partner: within a length they stand in one cycle. Does not wait for the device."""
    places = torch.arange(len(lengths), device=lengths.device)
    order = torch.argsort(lengths + keys.double())
    ranked = lengths[order]
    begins = torch.ones_like(ranked, dtype=torch.bool)
    begins[1:] = ranked[1:] != ranked[:-1]
    first = torch.where(begins, places, 0).cummax(0).values
    following = torch.where(begins.roll(-1), first, places + 1)  # the last's is the first
    return torch.empty_like(order).scatter_(0, order, order[following])


def misread(batch: Batch, other: Batch, alone: Tensor) -> Batch:
    """The batch with the sources of `other`, of the same lengths; where `alone` [B] its own, with
    every word blotted out: what is left tells the length, which every partner tells too."""
    blotted = batch.source.clamp(max=UNK)
    return batch.but(
        source=torch.where(alone[:, None], blotted, other.source),
        source_lengths=other.source_lengths,
    )


def shuffled(batch: Batch) -> Batch:
    """The batch with its sources exchanged within each length: in training, anew at every step,
    so that no pair can be learnt by heart."""
    lengths = batch.source_lengths
    partner = partners(lengths, torch.rand(len(batch), device=lengths.device))
    own = torch.arange(len(batch), device=lengths.device)
    return misread(batch, batch.but(source=batch.source[partner]), partner == own)


class Misread:
    """A split in which each sentence has a fixed partner of its length to be inferred from: for
    evaluation, where no result may depend on how sentences are batched."""

    def __init__(self, split: Split) -> None:
        self.split, self.name = split, split.name
        keys = torch.rand(len(split), generator=torch.Generator().manual_seed(0))
        self.partner = partners(torch.from_numpy(split.lengths), keys).numpy()

    @property
    def lengths(self) -> NDArray[np.integer]:
        return self.split.lengths

    @property
    def labels(self) -> NDArray[np.integer] | None:
        """The sentences' own, not those of their partners."""
        return self.split.labels

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, indices: Sequence[int] | NDArray[np.integer]) -> Batch:
        """These sentences, padded to the longest of them, on the CPU."""
        partner = self.partner[np.asarray(indices)]
        alone = torch.from_numpy(partner == np.asarray(indices))
        return misread(self.split.batch(indices), self.split.batch(partner), alone)
