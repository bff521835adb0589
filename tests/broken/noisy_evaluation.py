"""Planted: dropout that evaluation does not turn off (the contract's tests, 2026)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.api import Recipe, Task, register


class AlwaysDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


@register("noisy_evaluation")
@dataclass
class NoisyEvaluation:
    """torch.nn.functional.dropout does not know the mode."""

    def recipe(self, task: Task) -> Recipe:
        model = task.model()
        model.decoder.dropout = AlwaysDropout()
        return Recipe(model=model)
