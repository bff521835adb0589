"""Planted: a buffer that evaluation moves (the contract's tests, 2026)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.api import Batch, Recipe, Task, register
from benchmark.models import GaussianVAE, LSTMEncoder


class Counting(LSTMEncoder):
    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self.seen += len(batch)
        return super().forward(batch)


@register("learns_in_evaluation")
@dataclass
class LearnsInEvaluation:
    """The encoder counts the sentences that it has read, whatever the mode."""

    def recipe(self, task: Task) -> Recipe:
        encoder = task.encoder()
        encoder.__class__ = Counting
        encoder.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        return Recipe(model=GaussianVAE(encoder, task.decoder()))
