"""A VAE whose posteriors are refined: what the encoder says of a sentence is where gradient steps
on the sentence's own ELBO begin (Kim et al., ICML 2018)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum

import torch
from torch import Tensor, nn

from benchmark.api import Batch, Draw
from benchmark.models.gaussian import GaussianVAE, kl_to_standard
from benchmark.models.lstm import LSTMDecoder

Gaussian = tuple[Tensor, Tensor]
"""Mean and log variance of q(z|x), [B, D] each."""


class Teacher(Enum):
    """What an encoder learns from where its word is refined: the cost of the refined posterior,
    through the steps that led there; the cost of its own word; or how far that is from the refined
    posterior, KL(q_0 || q_K) with q_K held fixed."""

    refined_cost = "refined_cost"
    own_cost = "own_cost"
    refined_posterior = "refined_posterior"


class RefinedVAE(GaussianVAE):
    """q(z|x) is what `steps` of gradient descent with momentum on -ELBO(x), from the encoder's mean
    and log variance on, make of them:

        v <- momentum v - clipped gradient,  (mean, log variance) <- (mean, log variance) + rate v

    Each step has a sample and, in training, dropout of its own, and scores the sentence in
    `source`. The gradient is clipped by its norm over the units, in means and log variances apart.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: LSTMDecoder,
        *,
        steps: int,
        rate: float,
        momentum: float,
        clip: float,
        teacher: Teacher = Teacher.refined_cost,
    ):
        super().__init__(encoder, decoder)
        self.steps, self.rate, self.momentum, self.clip = steps, rate, momentum, clip
        self.teacher = teacher
        self.weight = 1.0  # of the KL in what training's steps descend

    def unrefined(self) -> GaussianVAE:
        """The VAE that takes the encoder at its word, of the same parts: where refining begins."""
        return GaussianVAE(self.encoder, self.decoder).train(self.training)

    def encode(self, batch: Batch) -> Gaussian:
        """Mean and log variance of the refined q(z|x), [B, D] each."""
        return self.refine(batch, self.encoder(batch))

    def draw(self, batch: Batch, k: int = 1) -> Draw:
        """In training by another teacher than the refined cost, aux["encoder"] is what the encoder
        learns from; it moves nothing else, and nothing else moves the encoder."""
        if not self.training or self.teacher is Teacher.refined_cost:
            return super().draw(batch, k)
        start = self.encoder(batch)
        refined = self.refine(batch, start)
        draw = super().draw(batch.but(encoded=refined), k)
        if self.teacher is Teacher.own_cost:
            with frozen(self.decoder):
                cost = self.cost(reread(batch), *start)
        else:
            cost = kl_between(start, refined).sum(-1)
        draw.aux = {"encoder": cost}
        return draw

    def refine(self, batch: Batch, start: Gaussian) -> Gaussian:
        """The posteriors to which the steps lead. Differentiable in their start and in the decoder
        where the refined cost teaches, else without gradient."""
        through = torch.is_grad_enabled() and self.teacher is Teacher.refined_cost
        sentences = reread(batch)
        mean, log_variance = start
        pace = [torch.zeros_like(part) for part in start]
        with self._stepping(through, mean.device.type):
            for _ in range(self.steps):
                if not (through and mean.requires_grad):
                    mean, log_variance = (x.detach().requires_grad_() for x in (mean, log_variance))
                cost = self.cost(sentences, mean, log_variance).sum()
                found = torch.autograd.grad(cost, (mean, log_variance), create_graph=through)
                pace = [
                    self.momentum * v - clipped(gradient, self.clip)
                    for v, gradient in zip(pace, found, strict=True)
                ]
                mean, log_variance = mean + self.rate * pace[0], log_variance + self.rate * pace[1]
        return (mean, log_variance) if through else (mean.detach(), log_variance.detach())

    def cost(self, sentences: Batch, mean: Tensor, log_variance: Tensor) -> Tensor:
        """[B], Rec + KL, or as training weighs it, by one sample."""
        z = mean + (0.5 * log_variance).exp() * sentences.normal(1, self.units)[:, 0]
        weight = self.weight if self.training else 1.0
        rate = kl_to_standard(mean, log_variance).sum(-1)
        return weight * rate - self.log_px(sentences, z[:, None])[:, 0]

    @contextmanager
    def _stepping(self, through: bool, device: str) -> Iterator[None]:
        """Gradients in whatever surroundings: an evaluation's, or those of narrow numbers."""
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            if torch.is_autocast_enabled(device):  # the LSTM in bf16 is differentiated once at most
                stack.enter_context(torch.autocast(device, enabled=False))
            if through or not self.training:  # where cuDNN's LSTM has no gradient
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            if not through:
                stack.enter_context(frozen(self.decoder))
            yield


def reread(batch: Batch) -> Batch:
    """The sentences that `source` holds, in all roles, whatever the decoder is to predict; with
    noise apart from that of the codes to be drawn."""
    return batch.but(
        targets=batch.source[:, 1:],
        inputs=batch.source[:, :-1],  # of one with padding, `</s>` too: behind all that is scored
        target_lengths=batch.source_lengths - 1,
        noise=batch.noise and batch.noise.apart("refining"),
    )


def clipped(gradient: Tensor, most: float) -> Tensor:
    """Each row [B, D], no longer than `most`."""
    return gradient * (most / (gradient.norm(dim=-1, keepdim=True) + 1e-6)).clamp(max=1)


def kl_between(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p), one value a unit, in nats."""
    difference = q[1] - p[1]
    return 0.5 * ((q[0] - p[0]).square() * (-p[1]).exp() + difference.exp() - difference - 1)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, none of its parameters asks for a gradient, so that none is computed."""
    asked = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in asked:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_()
