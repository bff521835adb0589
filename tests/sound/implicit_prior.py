"""Sound: codes without densities, and state in every slot (the contract's tests, 2026)."""

from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor, nn

from benchmark.api import PAD, UNK, Batch, Draw, Recipe, Run, Task, register
from benchmark.models import GaussianVAE
from benchmark.objectives import reconstruction


class Noise(Enum):
    fixed = "fixed"
    decaying = "decaying"


class Outline(GaussianVAE):
    """A code is the encoder's mean and a little noise."""

    latent = "implicit"
    why_no_log_q = "the prior is implicit"
    noise = 0.1

    def draw(self, batch: Batch, k: int = 1) -> Draw:
        mean, _ = self.encoder(batch)
        spread = self.noise if self.training else 0.0
        z = mean[:, None] + spread * batch.normal(k, self.units)
        nothing = z.new_full(z.shape[:2], torch.nan)
        kl = z.new_full((len(batch), self.units), torch.nan)
        return Draw(z, self.log_px(batch, z), log_pz=nothing, log_qz=nothing, kl=kl)

    def posterior(self, batch: Batch) -> None:
        return None

    def log_q(self, z: Tensor, batch: Batch) -> None:
        return None


class Step(nn.Module):
    """The encoder moves twice; the noise shrinks by a counter that is a buffer."""

    def __init__(self, half_life: float | None):
        super().__init__()
        self.half_life = half_life
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, run: Run) -> dict[str, Tensor]:
        self.steps += 1
        if self.half_life is not None:
            run.model.noise = 0.1 * 0.5 ** float(self.steps / self.half_life)
        run.descend(run.loss(run.another()), "encoder", clip="moved")
        loss = run.loss(run.next())
        run.descend(loss)
        return {"loss": loss.detach()}


class Objective(nn.Module):
    """The reconstruction, weighed by what was learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, draw: Draw, batch: Batch, t: int) -> Tensor:
        return self.weight * reconstruction(draw) - self.weight.log()


@register("implicit_prior")
@dataclass
class ImplicitPrior:
    """An auto-encoder that is trained with hidden words."""

    noise: Noise = field(default=Noise.fixed, metadata={"other": Noise.decaying})
    """Whether the code's noise shrinks."""

    half_life: float | None = field(default=None, metadata={"other": 5.0})
    """Steps in which the noise halves; None where it does not."""

    hidden: float = field(default=0.3, metadata={"other": 0.6})
    """Share of the words read that are hidden."""

    def __post_init__(self) -> None:
        if (self.half_life is None) == (self.noise is Noise.decaying):
            raise ValueError("method.half_life belongs to method.noise=decaying and to no other")

    def recipe(self, task: Task) -> Recipe:
        def corrupt(batch: Batch, t: int) -> Batch:
            hidden = torch.rand(batch.source.shape) < self.hidden
            return batch.but(source=batch.source.masked_fill(hidden & (batch.source != PAD), UNK))

        encoder, decoder = task.encoder(), task.decoder()
        encoder.head = nn.Linear(encoder.head.in_features, task.latent, bias=False)
        encoder.forward = lambda batch: (_mean(encoder, batch), None)
        return Recipe(Outline(encoder, decoder), Objective(), corrupt, Step(self.half_life), "rec")


def _mean(encoder: nn.Module, batch: Batch) -> Tensor:
    states, _ = encoder.lstm(encoder.embed(batch.source))
    return encoder.head(states[torch.arange(len(batch)), batch.source_lengths - 1])
