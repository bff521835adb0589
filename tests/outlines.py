"""An encoder from elsewhere, as `method.encoder=tests.outlines:bag` names it."""

import torch
from torch import Tensor, nn

from benchmark.api import Batch, Task


class Bag(nn.Module):
    """The mean of the words' random vectors; dropout that must never show."""

    def __init__(self, words: int, width: int):
        super().__init__()
        self.embed, self.dropout = nn.Embedding(words, width), nn.Dropout(0.5)

    def forward(self, batch: Batch) -> Tensor:
        seen = torch.arange(batch.source.shape[1], device=batch.source.device)
        mask = (seen < batch.source_lengths[:, None]).float()[..., None]
        words = self.dropout(self.embed(batch.source))
        return (words * mask).sum(1) / mask.sum(1)


def bag(task: Task) -> nn.Module:
    return Bag(task.vocab_size, 5)


def flat(task: Task) -> nn.Module:
    """Makes a number of a batch, which is no encoder."""
    return nn.Sequential(Bag(task.vocab_size, 5), nn.Flatten(0))
