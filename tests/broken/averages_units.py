"""Planted: a KL averaged over units (the contract's tests, 2026)."""

from dataclasses import dataclass

from torch import Tensor

from benchmark.api import Batch, Draw, Recipe, Task, register
from benchmark.objectives import reconstruction


@register("averages_units")
@dataclass
class AveragesUnits:
    """The more units there are, the less their rate costs."""

    def recipe(self, task: Task) -> Recipe:
        def objective(draw: Draw, batch: Batch, t: int) -> Tensor:
            return reconstruction(draw) + draw.kl.mean()

        return Recipe(model=task.model(), objective=objective)
