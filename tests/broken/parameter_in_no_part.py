"""Planted: a parameter that no optimiser steps (the contract's tests, 2026)."""

from dataclasses import dataclass

import torch
from torch import nn

from benchmark.api import Batch, Draw, Recipe, Task, register
from benchmark.models import GaussianVAE


class Scaled(GaussianVAE):
    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__(encoder, decoder)
        self.scale = nn.Parameter(torch.ones(()))

    def draw(self, batch: Batch, k: int = 1) -> Draw:
        draw = super().draw(batch, k)
        draw.aux = {"scale": self.scale.expand(len(batch))}
        return draw


@register("parameter_in_no_part")
@dataclass
class ParameterInNoPart:
    """The model's scale is in neither encoder nor decoder."""

    def recipe(self, task: Task) -> Recipe:
        return Recipe(model=Scaled(task.encoder(), task.decoder()))
