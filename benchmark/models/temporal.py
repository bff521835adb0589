"""A VAE with a code for each token: an AR(1) prior in each channel and a factorised posterior
(Razavi et al., ICLR 2019)."""

import torch
from torch import Tensor, nn

from benchmark.api import Batch, Draw
from benchmark.models.decoding import DecodingModel
from benchmark.models.gaussian import gaussian_log_density
from benchmark.models.lstm import LSTMDecoder, LSTMEncoder, initialise
from benchmark.models.recurrent import LSTM
from benchmark.models.writing import Writing


def kl_to_ar1(mean: Tensor, log_variance: Tensor, alpha: Tensor, mask: Tensor) -> Tensor:
    """KL(prod_t N(mu_t, sigma_t^2) || AR(1)), exact, [B, U] nats: the expectation over z_{t-1} is
    taken analytically. mean, log_variance: [B, T, U]; alpha: [U]; mask: [B, T]."""
    v = 1 - alpha**2
    variance = log_variance.exp()
    first = variance[:, 0] - log_variance[:, 0] - 1 + mean[:, 0] ** 2
    drift = (mean[:, 1:] - alpha * mean[:, :-1]) ** 2 + alpha**2 * variance[:, :-1]
    rest = variance[:, 1:] / v - log_variance[:, 1:] + v.log() - 1 + drift / v
    return 0.5 * (first + (rest * mask[:, 1:, None]).sum(1))


class AntiCausalEncoder(nn.Module):
    """q(z_t | x_t, ..., x_T): the configured encoder's LSTM, reading backwards from the
    sentence's own end, with its head at every step."""

    def __init__(self, encoder: LSTMEncoder):
        super().__init__()
        self.init = encoder.init
        self.embed, self.lstm, self.head = encoder.embed, encoder.lstm, encoder.head

    def reset_parameters(self) -> None:
        initialise(self, *self.init)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and log variance, [B, T, U] each, of the steps that predict x_1 ... x_T."""
        words = batch.source[:, 1:]  # without <s>
        places = torch.arange(words.shape[1], device=words.device)
        last = batch.source_lengths[:, None] - 2
        turned = (last - places) % words.shape[1]  # its own inverse on the sentence
        states, _ = self.lstm(self.embed(words.gather(1, turned)))
        states = states.gather(1, turned[..., None].expand_as(states))
        mean, log_variance = self.head(states).float().chunk(2, dim=-1)
        return mean, log_variance


class AuxiliaryPrior(nn.Module):
    """p_aux(z), an LSTM over the steps with Gaussian outputs: what the codes really follow."""

    def __init__(self, units: int, hidden: int):
        super().__init__()
        self.lstm = LSTM(units, hidden)
        self.head = nn.Linear(hidden, 2 * units)

    def reset_parameters(self) -> None:
        self.lstm.reset_parameters()
        self.head.reset_parameters()

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        """[B, K], the log density of codes z [B, K, T, U] over the steps of mask [B, T]."""
        before = torch.cat([torch.zeros_like(z[..., :1, :]), z[..., :-1, :]], -2)
        states, _ = self.lstm(before.flatten(0, 1))
        mean, log_variance = self.head(states).float().view(*z.shape[:-1], -1).chunk(2, -1)
        return (gaussian_log_density(z, mean, log_variance) * mask[:, None]).sum(-1)


class TemporalVAE(DecodingModel):
    """p(z) an AR(1) process in each channel, q(z|x) factorised over steps, z_t fed at step t; with
    an auxiliary prior, by which codes are scored too in evaluation."""

    latent = "sequence"
    why_no_log_q = "codes of sentences of other lengths have no density under the posterior"

    def __init__(
        self,
        encoder: AntiCausalEncoder,
        decoder: LSTMDecoder,
        alpha: list[float],
        *,
        auxiliary: bool = True,
    ):
        super().__init__(encoder, decoder, len(alpha))
        self.auxiliary = AuxiliaryPrior(self.units, hidden=64) if auxiliary else None
        self.alpha: Tensor
        self.register_buffer("alpha", torch.tensor(alpha))

    def parts(self) -> dict[str, nn.Module]:
        parts = super().parts()
        return parts if self.auxiliary is None else parts | {"auxiliary": self.auxiliary}

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), [B, T, U] each."""
        return self.encoder(batch)

    def draw(self, batch: Batch, k: int = 1) -> Draw:
        mean, log_variance = self.encoded(batch)
        mask = batch.mask[:, None]  # [B, 1, T]
        noise = batch.normal(k, *mean.shape[1:])
        z = mean[:, None] + (0.5 * log_variance).exp()[:, None] * noise  # [B, K, T, U]
        log_qz = gaussian_log_density(z, mean[:, None], log_variance[:, None])
        other = None if self.training else self.auxiliary
        return Draw(
            z=z,
            log_px=self.log_px(batch, z),
            log_pz=(self.prior_log_density(z) * mask).sum(-1),
            log_qz=(log_qz * mask).sum(-1),
            kl=kl_to_ar1(mean, log_variance, self.alpha, batch.mask),
            log_pz_alt={} if other is None else {"auxiliary": other(z, batch.mask)},
        )

    def auxiliary_cost(self, batch: Batch) -> Tensor:
        """-log p_aux of one code a sentence, nats; it moves neither encoder nor decoder."""
        assert self.auxiliary is not None
        with torch.no_grad():
            mean, log_variance = self.encoder(batch)
            noise = batch.normal(1, *mean.shape[1:])
            z = mean[:, None] + (0.5 * log_variance).exp()[:, None] * noise
        return -self.auxiliary(z, batch.mask).mean()

    def prior_log_density(self, z: Tensor) -> Tensor:
        """[B, K, T], log p(z_t | z_{t-1}), summed over channels."""
        mean = torch.cat([torch.zeros_like(z[..., :1, :]), self.alpha * z[..., :-1, :]], -2)
        log_variance = torch.log1p(-(self.alpha**2)).expand_as(z).clone()
        log_variance[..., 0, :] = 0
        return gaussian_log_density(z, mean, log_variance)

    def process(self, z: Tensor) -> Tensor:
        """The AR(1) process that independent noise [..., T, U] drives, in its place."""
        scale = (1 - self.alpha**2).sqrt()
        for t in range(1, z.shape[-2]):
            z[..., t, :] = self.alpha * z[..., t - 1, :] + scale * z[..., t, :]
        return z

    def prior_codes(self, batch: Batch, k: int = 1) -> Tensor:
        return self.process(batch.normal(k, batch.targets.shape[1], self.units))

    def posterior(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoded(batch)
        return mean, log_variance.exp(), batch.mask

    def sample(self, n: int, *, max_length: int, temperature: float = 1.0) -> Tensor:
        """From the AR(1) prior."""
        z = self.process(torch.randn(n, max_length, self.units, device=self.alpha.device))
        return self.decode(z, max_length=max_length, temperature=temperature)

    def rewriting(self, batch: Batch, max_length: int) -> Writing:
        """From posterior means; beyond the sentence's length the codes are zero."""
        mean, _ = self.encoder(batch)
        mean = mean.masked_fill(~batch.mask[..., None], 0)[:, :max_length]
        missing = max_length - mean.shape[1]
        return self.decoder.writing(nn.functional.pad(mean, (0, 0, 0, missing)))
