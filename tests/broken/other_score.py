"""Planted: a score of codes handed in that is not the draw's (the contract's tests, 2026)."""

from dataclasses import dataclass

from benchmark.api import Batch, Draw, Recipe, Task, register
from benchmark.models import GaussianVAE


class Flattering(GaussianVAE):
    def draw(self, batch: Batch, k: int = 1) -> Draw:
        draw = super().draw(batch, k)
        draw.log_px = draw.log_px + 1
        draw.log_qz = draw.log_qz.squeeze(-1)
        return draw


@register("other_score")
@dataclass
class OtherScore:
    """The draw is a nat better than the decoder, and one shape is not as documented."""

    def recipe(self, task: Task) -> Recipe:
        return Recipe(model=Flattering(task.encoder(), task.decoder()))
