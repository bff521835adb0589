"""Posterior means normalised over the batch, so that they cannot all be the same."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmark.api import Batch
from benchmark.models.lstm import LSTMEncoder

EPSILON = 1e-12  # far below the variance of a new encoder's means; PyTorch's 1e-5 is above it
MOMENTUM = 0.1  # of the running statistics, as PyTorch has it


def scale_of_rate(rate: float, units: int) -> float:
    """The gamma whose floor, 0.5 D gamma^2, is a rate in nats."""
    return math.sqrt(2 * rate / units)


class MeanNorm(nn.Module):
    """Batch normalisation of means [B, D] whose scales have the root mean square gamma over units:
    they are all gamma, or their direction alone is trained. The shifts are trained.

    Over a training batch in which unit d has the variance v_d, its mean square is then
    scale_d^2 v_d / (v_d + epsilon) + shift_d^2. In evaluation running statistics take the batch's
    place; so they do for a training batch of a single sentence, which has no variance, and which
    leaves them as they are.
    """

    def __init__(
        self,
        units: int,
        gamma: float,
        *,
        train_direction: bool = False,
        epsilon: float = EPSILON,
    ):
        super().__init__()
        self.gamma, self.epsilon = gamma, epsilon
        self.direction = nn.Parameter(torch.empty(units), requires_grad=train_direction)
        self.shift = nn.Parameter(torch.empty(units))
        self.running_mean: Tensor
        self.running_variance: Tensor
        self.register_buffer("running_mean", torch.empty(units))
        self.register_buffer("running_variance", torch.empty(units))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for zero in (self.shift, self.running_mean):
            zero.zero_()
        for one in (self.direction, self.running_variance):
            one.fill_(1)

    def forward(self, means: Tensor) -> Tensor:
        scale = self.gamma * self.direction / self.direction.square().mean().sqrt()
        return F.batch_norm(
            means,
            self.running_mean,
            self.running_variance,
            scale,
            self.shift,
            training=self.training and len(means) > 1,
            momentum=MOMENTUM,
            eps=self.epsilon,
        )


class NormalisedEncoder(nn.Module):
    """q(z|x) of another encoder, its means normalised by a `MeanNorm` of these options; its
    variances are left alone."""

    def __init__(self, encoder: LSTMEncoder, gamma: float, **options: Any):
        super().__init__()
        self.encoder, self.norm = encoder, MeanNorm(encoder.latent, gamma, **options)

    def reset_parameters(self) -> None:
        self.encoder.reset_parameters()
        self.norm.reset_parameters()

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), [B, D] each."""
        mean, log_variance = self.encoder(batch)
        return self.norm(mean), log_variance
