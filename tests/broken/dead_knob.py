"""Planted: a hyper-parameter that nothing reads (the contract's tests, 2026)."""

from dataclasses import dataclass, field

from torch import Tensor

from benchmark.api import Batch, Draw, Recipe, Task, register
from benchmark.objectives import rate, reconstruction


@register("dead_knob")
@dataclass
class DeadKnob:
    """A floor under the rate that was forgotten in the objective."""

    floor: float = field(default=0.5, metadata={"other": 2.0})
    """Nats in total that are free."""

    weight: float = field(default=0.5, metadata={"other": 1.0})
    """Of the rate; this one works."""

    def recipe(self, task: Task) -> Recipe:
        def objective(draw: Draw, batch: Batch, t: int) -> Tensor:
            return reconstruction(draw) + self.weight * rate(draw)

        return Recipe(model=task.model(), objective=objective)
