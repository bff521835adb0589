"""delta-VAE with one code a sentence: a posterior family that keeps away from the prior."""

import math
from dataclasses import dataclass, field

import torch
from scipy.special import lambertw
from torch import Tensor, nn

from benchmark.api import Batch, Recipe, Task, register
from benchmark.models import GaussianVAE, LSTMEncoder

MOST = 40.0  # nats a unit, with which the smaller variance is 1e-35


def deviations(delta: float) -> tuple[float, float]:
    """The two standard deviations at which KL(N(0, sigma^2) || N(0, 1)) is `delta` nats: the
    roots s = sigma^2 of log s - s + 1 + 2 delta = 0, by Lambert's W. Raises ValueError where one is
    too small for a number."""
    if delta > MOST:
        raise ValueError(
            f"a committed rate of {delta:g} nats a unit is too large: {MOST:g} at most"
        )
    x = -math.exp(-(1 + 2 * delta))
    return tuple(math.sqrt(-lambertw(x, branch).real) for branch in (0, -1))  # type: ignore


class FlooredEncoder(nn.Module):
    """q(z|x) with KL(q || N(0, 1)) >= delta in every unit and for every x and all parameters.

    sigma lies between the `deviations`, and mu^2 makes up for what is missing there:
    mu = sqrt(2 delta + 1 + log sigma^2 - sigma^2 + max(0, mu_phi)). The paper prints mu without
    the root; then the floor would not hold.
    """

    def __init__(self, encoder: LSTMEncoder, delta: float):
        super().__init__()
        self.encoder, self.delta = encoder, delta
        self.low, self.high = deviations(delta)

    def reset_parameters(self) -> None:
        self.encoder.reset_parameters()

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), [B, D] each."""
        raw_mean, raw_deviation = self.encoder(batch)
        deviation = self.low + (self.high - self.low) * torch.sigmoid(raw_deviation)
        log_variance = 2 * deviation.log()
        # At both ends the missing part is 0, which rounding may take below.
        missing = (2 * self.delta + 1 + log_variance - deviation.square()).clamp(min=0)
        return (missing + raw_mean.relu() + 1e-6).sqrt(), log_variance


@register("delta_vae")
@dataclass
class DeltaVAE:
    """Razavi et al. (ICLR 2019), the independent form: the ELBO is the plain one, and its KL
    cannot fall below delta nats a unit. The floor is a rate, not information: it may be paid by
    one mean for all sentences."""

    delta: float | None = field(default=0.15, metadata={"other": 0.5})
    """Committed rate, nats a unit; 0.15 in two re-implementations, 0.1 in Zhu et al. (2020). None
    if `target` is set."""

    target: float | None = field(default=None, metadata={"other": 4.0})
    """Committed rate in total, nats, shared equally by the units, in place of `delta`."""

    def __post_init__(self) -> None:
        if (self.delta is None) == (self.target is None):
            raise ValueError(
                "set one of method.delta (nats a unit) and method.target (nats in total), and the "
                "other to null"
            )
        if not (self.delta or self.target or 0.0) > 0:
            raise ValueError("method.delta and method.target are rates above 0 nats")

    def recipe(self, task: Task) -> Recipe:
        delta = self.delta
        if delta is None:
            assert self.target is not None
            delta = self.target / task.latent
        return Recipe(model=GaussianVAE(FlooredEncoder(task.encoder(), delta), task.decoder()))
