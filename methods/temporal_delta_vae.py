"""delta-VAE with a code for each token: an AR(1) prior that no factorised posterior can match."""

import math
from dataclasses import dataclass, field

from torch import Tensor

from benchmark.api import Phase, Phases, Recipe, Run, Task, register
from benchmark.models import AntiCausalEncoder, TemporalVAE


def committed_rate(steps: float, alpha: float) -> float:
    """The least KL of a factorised posterior to an AR(1) prior, nats a channel (Razavi et al.):
    0.5 ((n - 2) ln(1 + alpha^2) - ln(1 - alpha^2)) for n >= 2 steps, 0 for one."""
    if steps < 2:
        return 0.0
    return 0.5 * ((steps - 2) * math.log1p(alpha**2) - math.log1p(-(alpha**2)))


def correlation(steps: float, target: float) -> float:
    """The alpha in (0, 1) whose committed rate over `steps` is `target` nats, by bisection. Raises
    ValueError where it would be all but 1."""
    low, high = 0.0, 1 - 1e-5
    if committed_rate(steps, high) < target:
        most = committed_rate(steps, high)
        raise ValueError(
            f"a code of {steps:.3g} steps is committed to {most:.3g} nats a channel at most, not "
            f"{target:.3g}; lower method.target or raise method.channels"
        )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if committed_rate(steps, middle) < target else (low, middle)
    return low


def fit(run: Run) -> dict[str, Tensor]:
    """One step of the auxiliary prior; it moves nothing else."""
    model = run.model
    assert isinstance(model, TemporalVAE)
    cost = model.auxiliary_cost(run.next())
    run.descend(cost, "auxiliary", clip="moved")
    return {"loss": cost.detach()}


@register("temporal_delta_vae")
@dataclass
class TemporalDelta:
    """Razavi et al. (ICLR 2019), the temporal form; their text experiment has one code a token,
    two channels, alpha 0.2 and 0.4 (from memory)."""

    alpha: list[float] | None = field(
        default_factory=lambda: [0.2, 0.4], metadata={"other": [0.5, 0.9]}
    )
    """Correlation of neighbouring codes, one a channel. None if `target` is set."""

    target: float | None = field(default=None, metadata={"other": 2.0})
    """Committed rate in nats at the mean length, shared by `channels` channels of one alpha."""

    channels: int | None = field(default=None, metadata={"other": 3})
    """Number of channels where `target` is set; None otherwise."""

    auxiliary: float = field(default=0.0, metadata={"other": 0.5})
    """Share of the steps that fit the auxiliary prior, after all others; 0: there is none."""

    def __post_init__(self) -> None:
        if (self.alpha is None) == (self.target is None):
            raise ValueError("set one of method.alpha and method.target, and the other to null")
        if (self.target is None) != (self.channels is None):
            raise ValueError("method.channels belongs to method.target and to nothing else")
        if self.alpha is not None and not (self.alpha and all(abs(a) < 1 for a in self.alpha)):
            raise ValueError(f"method.alpha are correlations between -1 and 1, not {self.alpha}")
        if self.target is not None and not (self.target > 0 and (self.channels or 0) > 0):
            raise ValueError("method.target and method.channels must be above 0")
        if not 0 <= self.auxiliary < 1:
            raise ValueError(
                f"method.auxiliary is a share of the steps from 0 to below 1, not {self.auxiliary}"
            )

    def recipe(self, task: Task) -> Recipe:
        alpha = self.alpha
        if alpha is None:
            assert self.target is not None and self.channels is not None
            alpha = [correlation(task.mean_length, self.target / self.channels)] * self.channels
        units = len(alpha)
        model = TemporalVAE(
            AntiCausalEncoder(task.encoder(latent=units)),
            task.decoder(latent=units, stepwise=True),
            alpha,
            auxiliary=self.auxiliary > 0,
        )
        if self.auxiliary == 0:
            return Recipe(model=model)
        stages = Phase(1 - self.auxiliary), Phase(self.auxiliary, fit, select="last")
        return Recipe(model=model, step=Phases(task.steps, *stages))
