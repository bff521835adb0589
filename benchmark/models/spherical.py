"""The VAE whose codes lie on the unit sphere: von Mises-Fisher posteriors of one concentration, and
the uniform prior (Xu and Durrett, EMNLP 2018; Davidson et al., UAI 2018).

With mean direction m, concentration kappa, nu = D/2 - 1 and p the uniform density,

    log q(z) = log p + peak - kappa (1 - m'z)       peak = -ln[Gamma(D/2) (2/kappa)^nu I_nu(kappa)]
    KL(q || p) = peak - kappa (1 - A)               A = E m'z = I_{D/2}(kappa) / I_nu(kappa)

where peak has I_nu(kappa) scaled by exp(-kappa), so that nothing overflows.
"""

import math

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit, ive, ndtri
from torch import Tensor, nn
from torch.nn import functional as F

from benchmark.api import Batch, Draw
from benchmark.models.decoding import DecodingModel
from benchmark.models.lstm import LSTMDecoder, LSTMEncoder
from benchmark.models.writing import Writing

PLACES, REACH = 1 << 14, 9.0  # of the table of angles; no float32 normal number is beyond
POINTS, DEPTH = 1 << 16, 60.0  # of the integral behind it, and nats below its peak that count


def log_area(units: int) -> float:
    """ln |S^{D-1}|, the area of the unit sphere in D dimensions."""
    return math.log(2) + units / 2 * math.log(math.pi) - math.lgamma(units / 2)


def scaled_bessel(order: float, kappa: float) -> float:
    """exp(-kappa) I_order(kappa). Raises ValueError where float64 does not hold it."""
    value = float(ive(order, kappa))
    if not value > 0:
        raise ValueError(
            f"kappa={kappa:g} is too extreme to be computed with in {2 * int(order) + 2} dimensions"
        )
    return value


def vmf_peak(kappa: float, units: int) -> float:
    """The log density at the mean direction, relative to the uniform one."""
    order = units / 2 - 1
    scaled = math.log(scaled_bessel(order, kappa))
    return -(math.lgamma(units / 2) + order * math.log(2 / kappa) + scaled)


def resultant_length(kappa: float, units: int) -> float:
    """A = E m'z, the length of the mean."""
    return scaled_bessel(units / 2, kappa) / scaled_bessel(units / 2 - 1, kappa)


def vmf_kl(kappa: float, units: int) -> float:
    """KL to the uniform density, nats."""
    return vmf_peak(kappa, units) - kappa * (1 - resultant_length(kappa, units))


def vmf_concentration(rate: float, units: int) -> float:
    """The kappa at which the KL is `rate` nats. Raises ValueError where that cannot be computed."""
    low = math.sqrt(2 * units * rate)  # KL <= kappa^2 / 2D, since A is concave and A'(0) = 1/D
    high = 2 * low
    while vmf_kl(high, units) < rate:
        high *= 2
    return brentq(lambda kappa: vmf_kl(kappa, units) - rate, low, high, rtol=1e-12)  # type: ignore


def polar_angles(kappa: float, units: int) -> Tensor:
    """[PLACES] float64, the angle between code and mean direction that has the rank of a standard
    normal number, for numbers evenly spaced from -REACH to REACH.

    The angle's density, sin^{D-2}(a) exp(kappa cos(a)), is integrated over the logit of a / pi,
    where it is smooth and falls at both ends, and from each end, so that both tails are exact.
    """
    low, high = -2 * DEPTH, 2 * DEPTH
    for _ in range(4):  # each look is closer, until the density fills the grid
        logit = np.linspace(low, high, POINTS)
        near, far = expit(-np.abs(logit)), expit(np.abs(logit))
        angle = np.pi * expit(logit)
        log_density = (units - 2) * np.log(np.sin(np.pi * near)) + np.log(near * far)
        log_density -= 2 * kappa * np.sin(angle / 2) ** 2
        (seen,) = np.nonzero(log_density > log_density.max() - DEPTH)
        low, high = logit[max(seen[0] - 1, 0)], logit[min(seen[-1] + 1, POINTS - 1)]
    density = np.exp(log_density - log_density.max())
    cells = density[1:] + density[:-1]
    below = np.concatenate([[0.0], cells.cumsum()])
    above = np.concatenate([cells[::-1].cumsum()[::-1], [0.0]])
    rank = np.minimum(below, above) / cells.sum()
    normal = np.where(below < above, 1, -1) * ndtri(rank).clip(min=-2 * REACH)
    return torch.from_numpy(np.interp(np.linspace(-REACH, REACH, PLACES), normal, angle))


def tangent(free: Tensor, mean: Tensor) -> Tensor:
    """Of each vector the direction of what is orthogonal to `mean`, whose length is 1; uniform on
    that sphere where the vectors are standard normal."""
    for _ in range(2):  # where next to nothing is left, it is mostly rounding
        free = F.normalize(free - (free * mean).sum(-1, keepdim=True) * mean, dim=-1)
    return free


class DirectionEncoder(nn.Module):
    """The mean direction of q(z|x): the configured encoder with a head for a mean alone, whose
    length is 1."""

    def __init__(self, encoder: LSTMEncoder):
        super().__init__()
        encoder.head = nn.Linear(encoder.head.in_features, encoder.latent, bias=False)
        encoder.reset_parameters()
        self.encoder = encoder

    def reset_parameters(self) -> None:
        self.encoder.reset_parameters()

    def forward(self, batch: Batch) -> Tensor:
        """[B, D]."""
        return F.normalize(self.encoder.head(self.encoder.last_state(batch)).float(), dim=-1)


class SphericalVAE(DecodingModel):
    """p(z) uniform on the unit sphere, q(z|x) a von Mises-Fisher density of fixed concentration.

    z = cos(a) m + sin(a) t: the angle a by its inverse distribution function, read off a table, t
    a uniform direction orthogonal to m. So a code is a smooth function of its normal numbers, and
    nothing is rejected (Wood 1994 samples the cosine by rejection). The KL is one constant, which
    the units share equally: no unit has a rate of its own.
    """

    latent = "global"
    own_rates = False

    def __init__(self, encoder: DirectionEncoder, decoder: LSTMDecoder, kappa: float):
        super().__init__(encoder, decoder, decoder.latent)
        if decoder.latent < 2:
            raise ValueError(
                f"a sphere has 2 dimensions at least; set model.latent=2 or more, "
                f"not {decoder.latent}"
            )
        self.kappa = kappa
        self.length = resultant_length(kappa, self.units)
        self.kl = vmf_kl(kappa, self.units)
        self.log_prior = -log_area(self.units)
        self.log_peak = self.log_prior + vmf_peak(kappa, self.units)
        self.angles: Tensor
        self.register_buffer("angles", polar_angles(kappa, self.units), persistent=False)

    def encode(self, batch: Batch) -> tuple[Tensor]:
        """The mean direction of q(z|x), [B, D]."""
        return (self.encoder(batch),)

    def angle(self, normal: Tensor) -> Tensor:
        """The angles of the ranks of normal numbers, any shape."""
        place = ((normal.double() + REACH) * ((PLACES - 1) / (2 * REACH))).clamp(0, PLACES - 1)
        left = place.long().clamp(max=PLACES - 2)
        return torch.lerp(self.angles[left], self.angles[left + 1], place - left).float()

    def draw(self, batch: Batch, k: int = 1) -> Draw:
        (mean,) = self.encoded(batch)
        mean = mean[:, None]  # [B, 1, D]
        normal = batch.normal(k, 1 + self.units)
        angle, free = self.angle(normal[..., :1]), normal[..., 1:]
        z = angle.cos() * mean + angle.sin() * tangent(free, mean)  # [B, K, D]
        # 1 - m'z is half the squared distance, whose rounding a large kappa magnifies less
        log_qz = self.log_peak - 0.5 * self.kappa * (z - mean).square().sum(-1)
        return Draw(
            z=z,
            log_px=self.log_px(batch, z),
            log_pz=torch.full_like(log_qz, self.log_prior),
            log_qz=log_qz,
            kl=z.new_full((len(z), self.units), self.kl / self.units),
        )

    def prior_codes(self, batch: Batch, k: int = 1) -> Tensor:
        return F.normalize(batch.normal(k, self.units), dim=-1)

    def posterior(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """In units of the prior's standard deviation, which is 1/sqrt(D) in each coordinate."""
        (mean,) = self.encoded(batch)
        across = self.length / self.kappa  # the variance orthogonal to the mean direction
        along = 1 - self.length**2 - (self.units - 1) * across
        variance = across + (along - across) * mean.square()
        return math.sqrt(self.units) * self.length * mean, self.units * variance

    def log_q(self, z: Tensor, batch: Batch) -> Tensor:
        (mean,) = self.encoded(batch)
        z, mean = z.double(), mean.double()
        squares = z.square().sum(-1)[:, None] + mean.square().sum(-1)
        return self.log_peak - 0.5 * self.kappa * (squares - 2 * z @ mean.mT)

    def sample(self, n: int, *, max_length: int, temperature: float = 1.0) -> Tensor:
        z = torch.randn(n, self.units, device=self.angles.device)
        return self.decode(F.normalize(z, dim=-1), max_length=max_length, temperature=temperature)

    def rewriting(self, batch: Batch, max_length: int) -> Writing:
        """From mean directions; the means themselves lie inside of the sphere."""
        return self.decoder.writing(self.encoded(batch)[0])
