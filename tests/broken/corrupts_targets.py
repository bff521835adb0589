"""Planted: word dropout that hides words from the loss as well (the contract's tests, 2026)."""

from dataclasses import dataclass

import torch

from benchmark.api import UNK, Batch, Recipe, Task, register


@register("corrupts_targets")
@dataclass
class CorruptsTargets:
    """A third of the words become unknown, where they are fed and where they are predicted."""

    def recipe(self, task: Task) -> Recipe:
        def corrupt(batch: Batch, t: int) -> Batch:
            hidden = (torch.rand(batch.inputs.shape) < 1 / 3) & (batch.targets > UNK)
            return batch.but(
                inputs=batch.inputs.masked_fill(hidden, UNK),
                targets=batch.targets.masked_fill(hidden, UNK),
            )

        return Recipe(model=task.model(), corrupt=corrupt)
