"""Neural outlines: a decoder of a frozen encoder's codes, and a generator that learns to make such
codes against a critic. Nothing collapses, since nothing is charged for a code."""

from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor, nn

from benchmark.api import Batch, Draw, Phase, Phases, Recipe, Run, Task, register
from benchmark.models import Frozen, GaussianCodes, ImplicitAutoencoder, critic_loss, perceptron
from benchmark.objectives import reconstruction


class Gaussian(Enum):
    """fitted: with the outlines' own mean and variance in each dimension; standard: N(0, I)."""

    fitted = "fitted"
    standard = "standard"


class SideBySide(nn.Module):
    """e(x) [B, 2 D]: both halves of what the configured encoder says of a sentence."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: Batch) -> Tensor:
        return torch.cat(self.encoder(batch), -1)


def objective(draw: Draw, batch: Batch, t: int) -> Tensor:
    return reconstruction(draw)


@torch.no_grad()
def outlines(run: Run, batch: Batch) -> Tensor:
    """[B, E], of which the encoder learns nothing."""
    assert isinstance(run.model, ImplicitAutoencoder)
    return run.model.encode(batch)[0]


def decode(run: Run) -> dict[str, Tensor]:
    """A step of the decoder alone."""
    batch = run.next()
    loss = run.loss(batch.but(encoded=(outlines(run, batch),)))
    run.descend(loss, "decoder", clip="moved")
    return {"loss": loss.detach()}


@register("neural_outlines")
@dataclass
class NeuralOutlines:
    """Subramanian et al. (NeurIPS 2018), in stages: an encoder, whose codes are the outlines; a
    decoder of outlines with noise; and Gulrajani et al.'s (2017) game for a generator of them."""

    encoder: str | None = field(default=None, metadata={"other": "package.module:factory"})
    """Path of a factory: of a task it makes a module, of a batch outlines [B, E], which stays as it
    is. None: one is trained first."""

    pretraining: float | None = field(default=0.4, metadata={"other": 0.6})
    """Share of the steps that train the encoder, in an auto-encoder; None with `encoder`."""

    noise: float = field(default=1.0, metadata={"other": 0.1})
    """Deviation of the noise on outlines in training; their own root mean square is 1."""

    generation: float = field(default=0.2, metadata={"other": 0.3})
    """Share of the steps that train the generator; the decoder has what is left."""

    hidden: int | None = field(default=128, metadata={"other": 9})
    """Units of each of two hidden layers, in generator and critic."""

    penalty: float | None = field(default=10.0, metadata={"other": 0.1})
    """Weight of the gradient penalty; 10 in Gulrajani et al."""

    updates: int | None = field(default=5, metadata={"other": 1})
    """Of the critic before each of the generator; 5 in Gulrajani et al."""

    gaussian: Gaussian | None = field(default=None, metadata={"other": Gaussian.standard})
    """The control: codes by a Gaussian in place of the game, whose three fields are then None."""

    def __post_init__(self) -> None:
        if (self.encoder is None) == (self.pretraining is None):
            raise ValueError("set one of method.encoder and method.pretraining, the other to null")
        first, last = self.pretraining, self.generation
        if (first is not None and first <= 0) or last <= 0 or (first or 0) + last >= 1:
            raise ValueError("method.pretraining and method.generation leave a stage no step")
        if self.noise < 0:
            raise ValueError(f"method.noise is a deviation of 0 or more, not {self.noise}")
        for name, least in (("hidden", 1), ("penalty", 0), ("updates", 1)):
            value = getattr(self, name)
            if (value is None) == (self.gaussian is None):
                raise ValueError(
                    "set method.hidden, method.penalty and method.updates, or method.gaussian "
                    "and all of those to null"
                )
            if value is not None and value < least:
                raise ValueError(f"method.{name} is at least {least}, not {value}")

    def recipe(self, task: Task) -> Recipe:
        stages, left = [], 1 - self.generation
        if self.encoder is None:
            assert self.pretraining is not None
            encoder, width = SideBySide(task.encoder()), 2 * task.latent
            stages, left = [Phase(self.pretraining, select="rec")], left - self.pretraining
        else:
            encoder = Frozen.found(self.encoder, task)
            width = encoder.width
        decoder = task.decoder(latent=width)
        generator, critic, step = GaussianCodes(width), None, self.fit
        if self.gaussian is None:
            assert self.hidden is not None
            with torch.random.fork_rng(devices=[]):  # so the stages before are the control's too
                generator = perceptron(width, self.hidden, width)
                critic, step = perceptron(width, self.hidden, 1, bias=False), self.play
        model = ImplicitAutoencoder(encoder, decoder, generator, critic, noise=self.noise)
        stages.append(Phase(left, decode, select="rec", reset=("decoder",)))
        stages.append(Phase(self.generation, step, select="last"))
        return Recipe(model, objective, step=Phases(task.steps, *stages))

    def play(self, run: Run) -> dict[str, Tensor]:
        """Some steps of the critic and one of the generator."""
        model, batch = run.model, run.next()
        assert isinstance(model, ImplicitAutoencoder) and model.critic is not None
        assert self.penalty is not None and self.updates is not None
        loss = apart = batch.targets.new_zeros(())
        for update in range(self.updates):
            batch = run.another() if update else batch
            with torch.no_grad():
                made = model.prior_codes(batch)[:, 0]
            loss, apart = critic_loss(model.critic, outlines(run, batch), made, self.penalty)
            run.descend(loss, "critic", clip="moved")
        worth = model.critic(model.prior_codes(batch)[:, 0]).mean()
        run.descend(-worth, "generator", clip="moved")
        return {"loss": loss.detach(), "distance": -apart.detach()}

    @torch.no_grad()
    def fit(self, run: Run) -> dict[str, Tensor]:
        """No update: a Gaussian that is to fit the outlines is shown some."""
        batch = run.next()
        real = outlines(run, batch)
        if self.gaussian is Gaussian.fitted:
            run.model.generator.show(real)  # type: ignore[operator]
        return {"loss": run.loss(batch.but(encoded=(real,)))}
