"""GECO: a Lagrange multiplier that grows until sentences are reconstructed well enough."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmark.api import Batch, Draw, Recipe, Task, register
from benchmark.objectives import rate, reconstruction

LEAST, MOST = 0.01, 100.0  # of lambda, which else runs away from a tolerance out of reach
MEMORY = 0.99  # of the average of Rec + KL; the shorter it is, the lower noise takes the minimum


def averaged(before: Tensor, value: Tensor, momentum: float) -> Tensor:
    """A moving average that begins with its first value; NaN is none."""
    value = value.detach()
    return torch.where(before.isnan(), value, momentum * before + (1 - momentum) * value)


class Constrained(nn.Module):
    """KL + lambda (Rec - tolerance), where lambda grows while Rec, averaged over some batches, is
    above the tolerance, and falls while it is below."""

    multiplier: Tensor
    violation: Tensor
    cost: Tensor
    lowest: Tensor

    def __init__(self, kappa: float | None, gain: float | None, momentum: float, speed: float):
        super().__init__()
        self.kappa, self.gain, self.momentum, self.speed = kappa, gain, momentum, speed
        self.register_buffer("multiplier", torch.tensor(1.0))
        self.register_buffer("violation", torch.tensor(torch.nan))  # nats a sentence, averaged
        self.register_buffer("cost", torch.tensor(torch.nan))  # Rec + KL, nats a token, averaged
        self.register_buffer("lowest", torch.tensor(torch.inf))  # value of `cost` so far

    def forward(self, draw: Draw, batch: Batch, t: int) -> Tensor:
        rec, kl = reconstruction(draw), rate(draw)
        tokens = batch.target_lengths.float().mean()
        if self.gain is None:
            assert self.kappa is not None
            excess = rec - self.kappa * tokens
        else:
            self.cost = averaged(self.cost, (rec + kl) / tokens, MEMORY)
            self.lowest = torch.minimum(self.lowest, self.cost)
            excess = rec - (self.lowest * tokens - self.gain)
        loss = kl + self.multiplier * excess
        self.violation = averaged(self.violation, excess, self.momentum)
        growth = (self.speed * self.violation).exp()
        self.multiplier = (self.multiplier * growth).clamp(LEAST, MOST)
        return loss


@register("geco")
@dataclass
class GECO:
    """min KL subject to Rec <= tolerance (Rezende and Viola, 2018): KL + lambda (Rec - tolerance),
    with lambda multiplied by exp(speed x the average of Rec - tolerance) after each batch.

    A tolerance that suits one data set means nothing on another. `gain` sets it by what training
    finds: so many nats below the lowest Rec + KL that the model has come to.
    """

    gain: float | None = field(default=4.0, metadata={"other": 1.0})
    """Nats in total by which Rec is to be below the lowest Rec + KL so far, a moving average by the
    token. None if `kappa` is set."""

    kappa: float | None = field(default=None, metadata={"other": 1.0})
    """The tolerance itself, nats a token, in place of `gain`."""

    momentum: float = field(default=0.9, metadata={"other": 0.5})
    """Of the violation's moving average over batches; 0.99 in Rezende and Viola."""

    speed: float = field(default=0.002, metadata={"other": 0.02})
    """Growth of log lambda in each step and nat of violation."""

    def __post_init__(self) -> None:
        if (self.gain is None) == (self.kappa is None):
            raise ValueError(
                "set one of method.gain (nats in total below the negative ELBO) and method.kappa "
                "(nats a token), and the other to null"
            )
        if (self.gain or self.kappa or 0.0) < 0:
            raise ValueError("method.gain and method.kappa must not be negative")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"method.momentum is a share from 0 to below 1, not {self.momentum}")
        if not self.speed > 0:
            raise ValueError(f"method.speed must be above 0, not {self.speed}")

    def recipe(self, task: Task) -> Recipe:
        return Recipe(objective=Constrained(self.kappa, self.gain, self.momentum, self.speed))
