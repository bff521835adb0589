"""Planted: a KL that disagrees with its samples (the contract's tests, 2026)."""

from dataclasses import dataclass

from benchmark.api import Batch, Draw, Recipe, Task, register
from benchmark.models import GaussianVAE


class Wrong(GaussianVAE):
    def draw(self, batch: Batch, k: int = 1) -> Draw:
        draw = super().draw(batch, k)
        mean, log_variance = self.encoder(batch)
        # the entropy's share is charged twice
        draw.kl = 0.5 * (mean.square() + log_variance.exp() - 2 * log_variance - 1)
        return draw


@register("wrong_kl")
@dataclass
class WrongKL:
    """The closed form was copied with a slip."""

    def recipe(self, task: Task) -> Recipe:
        return Recipe(model=Wrong(task.encoder(), task.decoder()))
