"""The VAE with one Gaussian code a sentence, and the same decoder without a code."""

import math

import torch
from torch import Tensor, nn

from benchmark.api import Batch, Draw, LatentModel
from benchmark.models.decoding import DecodingModel
from benchmark.models.lstm import LSTMDecoder
from benchmark.models.writing import Writing


def gaussian_log_density(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(z; mean, exp(log_variance)), summed over the last dimension."""
    return -0.5 * (
        math.log(2 * math.pi) + log_variance + (z - mean).square() * (-log_variance).exp()
    ).sum(-1)


def standard_log_density(z: Tensor) -> Tensor:
    """log N(z; 0, I), summed over the last dimension."""
    return -0.5 * (math.log(2 * math.pi) + z.square()).sum(-1)


def kl_to_standard(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)), one value a unit, in nats."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1)


class GaussianVAE(DecodingModel):
    """p(z) = N(0, I), q(z|x) = N(mu(x), diag sigma^2(x)), p(x|z) a decoder of any kind.

    encoder(batch) -> mean, log variance [B, D]; decoder.log_px(batch, z [B, K, D]) -> [B, K] and
    decoder.generate(z, max_length, temperature) -> tokens.
    """

    latent = "global"

    def __init__(self, encoder: nn.Module, decoder: LSTMDecoder):
        super().__init__(encoder, decoder, decoder.latent)

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), [B, D] each."""
        return self.encoder(batch)

    def draw(self, batch: Batch, k: int = 1) -> Draw:
        mean, log_variance = self.encoded(batch)
        noise = batch.normal(k, self.units)  # [B, K, D]
        z = mean[:, None] + (0.5 * log_variance).exp()[:, None] * noise
        return Draw(
            z=z,
            log_px=self.log_px(batch, z),
            log_pz=standard_log_density(z),
            log_qz=gaussian_log_density(z, mean[:, None], log_variance[:, None]),
            kl=kl_to_standard(mean, log_variance),
        )

    def prior_codes(self, batch: Batch, k: int = 1) -> Tensor:
        return batch.normal(k, self.units)

    def posterior(self, batch: Batch) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoded(batch)
        return mean, log_variance.exp()

    def log_q(self, z: Tensor, batch: Batch) -> Tensor:
        # The square is expanded into two matrix products, [N, 2D] x [2D, B]; in float64, where the
        # cancellation of its terms costs nothing even for tiny variances.
        mean, log_variance = (value.double() for value in self.encoded(batch))
        z, precision = z.double(), (-log_variance).exp()
        quadratic = (
            torch.cat([z.square(), z], -1) @ torch.cat([precision, -2 * mean * precision], -1).mT
        )
        constant = (mean.square() * precision + log_variance + math.log(2 * math.pi)).sum(-1)
        return -0.5 * (quadratic + constant)

    def sample(self, n: int, *, max_length: int, temperature: float = 1.0) -> Tensor:
        z = torch.randn(n, self.units, device=self.decoder.output.weight.device)
        return self.decode(z, max_length=max_length, temperature=temperature)

    def rewriting(self, batch: Batch, max_length: int) -> Writing:
        return self.decoder.writing(self.encoded(batch)[0])


class LanguageModel(LatentModel):
    """p(x) by a decoder without a code: the reference row of every comparison."""

    latent = "none"

    def __init__(self, decoder: LSTMDecoder):
        super().__init__()
        assert decoder.latent == 0
        self.decoder = decoder

    def parts(self) -> dict[str, nn.Module]:
        return {"decoder": self.decoder}

    def _no_code(self, n: int) -> Tensor:
        return torch.empty(n, 0, device=self.decoder.output.weight.device)

    def draw(self, batch: Batch, k: int = 1) -> Draw:
        log_px = self.log_px(batch, None).expand(-1, k)
        nothing = torch.zeros_like(log_px)
        return Draw(None, log_px, log_pz=nothing, log_qz=nothing, kl=self._no_code(len(batch)))

    def log_px(self, batch: Batch, z: Tensor | None) -> Tensor:
        return self.decoder.log_px(batch, self._no_code(len(batch))[:, None])

    def predictions(self, batch: Batch, z: Tensor | None) -> Tensor:
        return self.decoder.predictions(batch, self._no_code(len(batch))[:, None])

    def sample(self, n: int, *, max_length: int, temperature: float = 1.0) -> Tensor:
        return self.decoder.generate(
            self._no_code(n), max_length=max_length, temperature=temperature
        )

    def reconstruct(self, batch: Batch, *, max_length: int) -> Tensor:
        return self.decoder.generate(
            self._no_code(len(batch)), max_length=max_length, temperature=0.0
        )
