"""Minimum desired rate: a Lagrange multiplier that grows until the rate is reached."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmark.api import Batch, Draw, Recipe, Task, register
from benchmark.objectives import rate, reconstruction


def ascending(x: Tensor) -> Tensor:
    """x itself, with its gradient reversed: what descends the loss climbs by it."""
    return 2 * x.detach() - x


class Lagrangian(nn.Module):
    """Rec + KL + u (target - KL), which the model descends and the multiplier u = |w| climbs."""

    def __init__(self, target: float, start: float):
        super().__init__()
        self.target, self.w = target, nn.Parameter(torch.tensor(start))

    def forward(self, draw: Draw, batch: Batch, t: int) -> Tensor:
        kl = rate(draw)
        return reconstruction(draw) + kl + ascending(self.w.abs()) * (self.target - kl)


@register("mdr")
@dataclass
class MDR:
    """min over the model, max over u >= 0 of -ELBO + u (target - KL) (Pelsmaeker and Aziz, ACL
    2020), with the batch's mean KL: its weight is 1 - u, a reward while u is above 1."""

    target: float = field(default=4.0, metadata={"other": 0.5})
    """The least rate, nats in total."""

    start: float = field(default=0.5, metadata={"other": 0.9})
    """u to begin with; 1.01 in the released code, so that at first a rate is rewarded whether or
    not it tells anything."""

    def __post_init__(self) -> None:
        if not self.target > 0:
            raise ValueError(f"method.target is a rate above 0 nats, not {self.target}")
        if not self.start > 0:  # |w| has no slope at 0
            raise ValueError(f"method.start must be above 0, not {self.start}: 0 never moves")

    def recipe(self, task: Task) -> Recipe:
        return Recipe(objective=Lagrangian(self.target, self.start))
