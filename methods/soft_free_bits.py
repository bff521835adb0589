"""Soft free bits: a weight of the rate that gives way while the rate is too low."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmark.api import Batch, Draw, Recipe, Task, register
from benchmark.objectives import rate, reconstruction

BAND = 0.05  # share of the target by which the rate may exceed it; Chen et al. tried 0.03 to 0.3
LEAST = 1e-4  # to which gamma may fall; in the code of Pelsmaeker and Aziz


class SoftWeight(nn.Module):
    """Rec + gamma KL, with gamma moved a little after each batch, and never above 1."""

    gamma: Tensor

    def __init__(self, target: float, increment: float):
        super().__init__()
        self.low, self.high, self.factor = target, target * (1 + BAND), 1 + increment
        self.register_buffer("gamma", torch.tensor(1.0))

    def forward(self, draw: Draw, batch: Batch, t: int) -> Tensor:
        kl = rate(draw)
        loss = reconstruction(draw) + self.gamma * kl
        direction = (kl > self.high).float() - (kl < self.low).float()
        self.gamma = (self.gamma * self.factor**direction).clamp(LEAST, 1.0)
        return loss


@register("soft_free_bits")
@dataclass
class SoftFreeBits:
    """Rec + gamma KL (Chen et al., ICLR 2017, appendix C): gamma falls while the batch's mean KL is
    below the target, rises towards 1 while it is well above, and rests in between."""

    target: float = field(default=4.0, metadata={"other": 0.5})
    """Nats in total of which at least so many are to be used."""

    increment: float = field(default=0.02, metadata={"other": 0.1})
    """Share by which gamma rises or falls in a step; 0.1 in Chen et al."""

    def __post_init__(self) -> None:
        if not self.target > 0:
            raise ValueError(f"method.target is a rate above 0 nats, not {self.target}")
        if not self.increment > 0:
            raise ValueError(f"method.increment is a share above 0, not {self.increment}")

    def recipe(self, task: Task) -> Recipe:
        return Recipe(objective=SoftWeight(self.target, self.increment))
