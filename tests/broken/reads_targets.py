"""Planted: an encoder that reads what is to be predicted (the contract's tests, 2026)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from benchmark.api import BOS, Batch, Recipe, Task, register
from benchmark.models import GaussianVAE, LSTMEncoder


class Peeking(LSTMEncoder):
    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return super().forward(batch.but(source=F.pad(batch.targets, (1, 0), value=BOS)))


@register("reads_targets")
@dataclass
class ReadsTargets:
    """The targets are the source without `<s>`, so nothing shows until the source is corrupted."""

    def recipe(self, task: Task) -> Recipe:
        encoder = task.encoder()
        encoder.__class__ = Peeking
        return Recipe(model=GaussianVAE(encoder, task.decoder()))
