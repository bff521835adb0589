"""DU-VAE: posterior means that must differ, and posterior variances that must not shrink."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmark.api import Batch, Draw, Recipe, Run, Task, register
from benchmark.models import GaussianVAE, NormalisedEncoder, scale_of_rate
from benchmark.objectives import linear_ramp, rate, reconstruction


class UncertainEncoder(nn.Module):
    """q(z|x) of another encoder whose variances have a floor, once `annealed`: they become
    floor + s, where in training s, what the encoder says, is dropped with probability `drop`."""

    def __init__(self, encoder: nn.Module, floor: float, drop: float):
        super().__init__()
        self.encoder, self.floor = encoder, floor
        self.dropout = nn.Dropout(drop)
        self.annealed: Tensor
        self.register_buffer("annealed", torch.tensor(False))

    def reset_parameters(self) -> None:
        self.encoder.reset_parameters()  # type: ignore[operator]

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), [B, D] each."""
        mean, log_variance = self.encoder(batch)
        floored = (self.floor + self.dropout(log_variance.exp())).log()
        return mean, torch.where(self.annealed, floored, log_variance)


@register("du_vae")
@dataclass
class DUVAE:
    """Shen et al. (WWW 2021): batch normalisation of mu whose scales have a fixed root mean square
    gamma; the ELBO with an annealed KL; and once beta is 1, in evaluation too, variances of at
    least alpha / (2 pi e), with dropout on what is above that in training."""

    gamma: float | None = field(default=0.5, metadata={"other": 1.0})
    """Root mean square of the scales over units; 0.5 in the released recipe. None if `target` is
    set."""

    target: float | None = field(default=None, metadata={"other": 4.0})
    """The floor of the rate in nats in total, in place of gamma = sqrt(2 target / D)."""

    alpha: float = field(default=1.0, metadata={"other": 4.0})
    """A unit's entropy is at least 0.5 ln alpha nats: 1 in the released recipe."""

    drop: float = field(default=0.2, metadata={"other": 0.5})
    """Share of variances that are at their floor in a training step; 0.2 in the released recipe."""

    ramp: float = field(default=0.4, metadata={"other": 0.0})
    """Share of the steps over which beta rises from 0 to 1; 10 of 100 epochs in the released
    recipe."""

    torch_init: bool = field(default=False, metadata={"other": True})
    """Whether the encoder begins as PyTorch's own modules do, as released, and not as the model's.
    """

    def __post_init__(self) -> None:
        if (self.gamma is None) == (self.target is None):
            raise ValueError("set one of method.gamma and method.target, and the other to null")
        if not (self.gamma or self.target or 0.0) > 0:
            raise ValueError("method.gamma and method.target must be above 0")
        if not self.alpha > 0:
            raise ValueError(f"method.alpha is above 0, not {self.alpha}")
        if not 0 <= self.drop < 1:
            raise ValueError(f"method.drop is a probability below 1, not {self.drop}")
        if not 0 <= self.ramp <= 1:
            raise ValueError(
                f"method.ramp is a share of the steps between 0 and 1, not {self.ramp}"
            )

    def recipe(self, task: Task) -> Recipe:
        gamma, length = self.gamma, round(self.ramp * task.steps)
        if gamma is None:
            assert self.target is not None
            gamma = scale_of_rate(self.target, task.latent)
        plain = task.encoder(init=None) if self.torch_init else task.encoder()
        diverse = NormalisedEncoder(plain, gamma, train_direction=True)
        encoder = UncertainEncoder(diverse, self.alpha / (2 * math.pi * math.e), self.drop)
        encoder.annealed.fill_(length == 0)

        def objective(draw: Draw, batch: Batch, t: int) -> Tensor:
            return reconstruction(draw) + linear_ramp(t, length) * rate(draw)

        def step(run: Run) -> dict[str, Tensor]:
            """A joint step; then the encoder is told whether beta is 1 from here on."""
            loss = run.loss(run.next())
            run.descend(loss)
            encoder.annealed.fill_(run.t + 1 >= length)
            return {"loss": loss.detach()}

        return Recipe(
            model=GaussianVAE(encoder, task.decoder()),
            objective=objective,
            step=step,
            select_after=self.ramp,
        )
