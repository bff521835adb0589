"""Planted: a step that throws Python's dice (the contract's tests, 2026)."""

import random
from dataclasses import dataclass

from torch import Tensor

from benchmark.api import Recipe, Run, Task, register


def step(run: Run) -> dict[str, Tensor]:
    loss = run.loss(run.next())
    run.descend(loss * random.uniform(0.5, 1.5))
    return {"loss": loss.detach()}


@register("unrepeatable_step")
@dataclass
class UnrepeatableStep:
    """The harness seeds torch and saves its random state, and no other."""

    def recipe(self, task: Task) -> Recipe:
        return Recipe(model=task.model(), step=step)
