"""beta-VAE: a constant weight of the rate, or a constant rate."""

from dataclasses import dataclass, field

from torch import Tensor

from benchmark.api import Batch, Draw, Recipe, Task, register
from benchmark.objectives import linear_ramp, rate, reconstruction


@register("beta_vae")
@dataclass
class BetaVAE:
    """Rec + beta KL (Higgins et al., ICLR 2017), or Rec + weight |KL - C| with the batch's mean KL
    and C on its way to `target` (Burgess et al. 2018; Prokhorov et al., WNGT 2019, for text)."""

    beta: float | None = field(default=0.4, metadata={"other": 0.8})
    """Weight of the rate; 0.2 to 0.8 in He et al. (2019), and 0 is an auto-encoder whose code is
    noisy. None if `target` is set."""

    target: float | None = field(default=None, metadata={"other": 2.5})
    """Nats in total that the rate is drawn to, in place of `beta`."""

    weight: float | None = field(default=None, metadata={"other": 3.0})
    """Of the distance from the target: 1 in Prokhorov et al., 1000 for the images of Burgess et
    al. None where there is no target."""

    ramp: float | None = field(default=None, metadata={"other": 0.35})
    """Share of the steps over which C rises from 0 to the target; 0 has it there from the start.
    None where there is no target."""

    def __post_init__(self) -> None:
        if (self.beta is None) == (self.target is None):
            raise ValueError(
                "set one of method.beta (a weight) and method.target (nats in total), "
                "and the other to null"
            )
        if (self.beta or self.target or 0.0) < 0:
            raise ValueError("method.beta and method.target must not be negative")
        if not (self.target is None) == (self.weight is None) == (self.ramp is None):
            raise ValueError(
                "method.weight and method.ramp belong to method.target: set both with it, "
                "and with method.beta both to null"
            )
        if self.weight is not None and not self.weight > 0:
            raise ValueError(f"method.weight must be above 0, not {self.weight}")
        if self.ramp is not None and not 0 <= self.ramp <= 1:
            raise ValueError(
                f"method.ramp is a share of the steps between 0 and 1, not {self.ramp}"
            )

    def recipe(self, task: Task) -> Recipe:
        if self.beta is None:
            return self._at_a_rate(task)
        beta = self.beta

        def objective(draw: Draw, batch: Batch, t: int) -> Tensor:
            return reconstruction(draw) + beta * rate(draw)

        # At beta = 0 the negative ELBO would keep one of the first epochs: nothing holds the rate.
        return Recipe(objective=objective, select=beta)

    def _at_a_rate(self, task: Task) -> Recipe:
        target, weight, ramp = self.target, self.weight, self.ramp
        assert target is not None and weight is not None and ramp is not None

        def objective(draw: Draw, batch: Batch, t: int) -> Tensor:
            distance = rate(draw) - target * linear_ramp(t, ramp * task.steps)
            return reconstruction(draw) + weight * distance.abs()

        return Recipe(objective=objective, select_after=ramp)
