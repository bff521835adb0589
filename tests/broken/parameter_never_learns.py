"""Planted: a parameter that no loss ever reaches (the contract's tests, 2026)."""

from dataclasses import dataclass

import torch
from torch import nn

from benchmark.api import Recipe, Task, register


@register("parameter_never_learns")
@dataclass
class ParameterNeverLearns:
    """The decoder has a gate that nothing reads."""

    def recipe(self, task: Task) -> Recipe:
        model = task.model()
        model.decoder.gate = nn.Parameter(torch.ones(3))
        return Recipe(model=model)
