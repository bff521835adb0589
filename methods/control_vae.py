"""ControlVAE: a feedback controller sets the weight of the rate."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmark.api import Batch, Draw, Recipe, Task, register
from benchmark.objectives import rate, reconstruction


class Controller(nn.Module):
    """Rec + beta KL, beta a proportional and an integral answer to how far the KL of the batches
    before was from the target."""

    integral: Tensor
    output: Tensor

    def __init__(self, target: float, kp: float, ki: float):
        super().__init__()
        self.target, self.kp, self.ki = target, kp, ki
        self.register_buffer("integral", torch.tensor(0.0))
        self.register_buffer("output", torch.tensor(0.0))  # beta before it is clipped

    def forward(self, draw: Draw, batch: Batch, t: int) -> Tensor:
        kl = rate(draw)
        loss = reconstruction(draw) + self.output.clamp(0, 1) * kl
        self.observe(kl.detach())
        return loss

    def observe(self, kl: Tensor) -> None:
        """Answer the KL of a batch, a scalar."""
        error = self.target - kl
        # An output out of range is not driven out further. The released test can never be true,
        # and to freeze whatever the direction would leave the output there for ever.
        outwards = ((self.output < 0) & (error > 0)) | ((self.output > 1) & (error < 0))
        self.integral = self.integral - self.ki * error.where(~outwards, 0.0)
        self.output = self.kp * torch.sigmoid(-error) + self.integral


@register("control_vae")
@dataclass
class ControlVAE:
    """Shao et al. (ICML 2020): beta = Kp / (1 + exp(e)) - Ki sum e, clipped to [0, 1], with the
    error e = target - KL of the batch's mean KL."""

    target: float = field(default=4.0, metadata={"other": 0.5})
    """The set point, nats in total."""

    kp: float = field(default=0.01, metadata={"other": 0.1})
    """Gain of the proportional term, which is between 0 and Kp; 0.01 for text in Shao et al."""

    ki: float = field(default=0.001, metadata={"other": 0.01})
    """Gain of the integral term, in each step and nat; 0.0001 for text in Shao et al."""

    def __post_init__(self) -> None:
        if not self.target > 0:
            raise ValueError(f"method.target is a rate above 0 nats, not {self.target}")
        if not self.kp >= 0:
            raise ValueError(f"method.kp must not be negative, but it is {self.kp}")
        if not self.ki > 0:
            raise ValueError(f"method.ki must be above 0, not {self.ki}: it alone finds the weight")

    def recipe(self, task: Task) -> Recipe:
        return Recipe(objective=Controller(self.target, self.kp, self.ki))
