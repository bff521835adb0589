"""Planted: an encoder whose last state is that behind the padding (the contract's tests, 2026)."""

from dataclasses import dataclass

from torch import Tensor

from benchmark.api import Batch, Recipe, Task, register
from benchmark.models import GaussianVAE, LSTMEncoder


class Last(LSTMEncoder):
    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        states, _ = self.lstm(self.embed(batch.source))
        mean, log_variance = self.head(states[:, -1]).chunk(2, dim=-1)
        return mean, log_variance


@register("reads_padding")
@dataclass
class ReadsPadding:
    """Nothing shows while all sentences of a batch have one length."""

    def recipe(self, task: Task) -> Recipe:
        encoder = task.encoder()
        encoder.__class__ = Last
        return Recipe(model=GaussianVAE(encoder, task.decoder()))
