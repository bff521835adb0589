"""Planted: sentences that go on behind their end (the contract's tests, 2026)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.api import EOS, PAD, Recipe, Task, register
from benchmark.models import GaussianVAE


class Endless(GaussianVAE):
    def decode(self, z: Tensor, *, max_length: int, temperature: float = 0.0) -> Tensor:
        ids = super().decode(z, max_length=max_length, temperature=temperature)
        return torch.where(ids == PAD, EOS, ids)


@register("writes_on")
@dataclass
class WritesOn:
    """Behind `</s>` stand more of them."""

    def recipe(self, task: Task) -> Recipe:
        return Recipe(model=Endless(task.encoder(), task.decoder()))
