"""A VAE whose inference network says something of the code after every word that it reads."""

from enum import Enum

import torch
from torch import Tensor, nn

from benchmark.api import Batch, Draw
from benchmark.models.gaussian import GaussianVAE, kl_to_standard
from benchmark.models.lstm import LSTMDecoder, LSTMEncoder


class Pool(Enum):
    """What a sentence's code is of its steps' codes z_1 ... z_S, which are independent given the
    sentence, so that their mean and sum are Gaussian too."""

    last = "last"
    mean = "mean"
    sum = "sum"


class StepwiseEncoder(nn.Module):
    """q(z_t | x_1 ... x_t) after every word read, `<s>` and `</s>` included, by the configured
    encoder's LSTM and head; and q(z|x) of the code that they are pooled into."""

    def __init__(self, encoder: LSTMEncoder, pool: Pool):
        super().__init__()
        self.encoder, self.pool = encoder, pool

    def reset_parameters(self) -> None:
        self.encoder.reset_parameters()

    def steps(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and log variance of every z_t, [B, S, D] each."""
        states, _ = self.encoder.lstm(self.encoder.embed(batch.source))
        mean, log_variance = self.encoder.head(states).float().chunk(2, dim=-1)
        return mean, log_variance

    def pooled(self, batch: Batch, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), [B, D] each, from those of the steps."""
        lengths = batch.source_lengths[:, None]  # [B, 1]
        if self.pool is Pool.last:
            last = (lengths - 1)[..., None].expand(-1, 1, mean.shape[-1])
            return mean.gather(1, last)[:, 0], log_variance.gather(1, last)[:, 0]
        behind = (torch.arange(mean.shape[1], device=mean.device) >= lengths)[..., None]
        mean = mean.masked_fill(behind, 0).sum(1)
        log_variance = log_variance.masked_fill(behind, -torch.inf).logsumexp(1)
        if self.pool is Pool.sum:
            return mean, log_variance
        return mean / lengths, log_variance - 2 * lengths.log()

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), [B, D] each."""
        return self.pooled(batch, *self.steps(batch))


class StepwiseVAE(GaussianVAE):
    """The VAE whose code is pooled from its inference network's steps. Its `kl` is that of the
    pooled code; in training a draw's `aux` holds `steps`: KL(q(z_t | x_1 ... x_t) || N(0, I)), in
    the mean over the last `share` of the sentence's steps, at least one."""

    encoder: StepwiseEncoder

    def __init__(self, encoder: StepwiseEncoder, decoder: LSTMDecoder, share: float):
        super().__init__(encoder, decoder)
        self.share = share

    def draw(self, batch: Batch, k: int = 1) -> Draw:
        if not self.training:
            return super().draw(batch, k)
        mean, log_variance = self.encoder.steps(batch)
        encoded = self.encoder.pooled(batch, mean, log_variance)
        each = kl_to_standard(mean, log_variance).sum(-1)  # [B, S]
        lengths = batch.source_lengths[:, None]
        counted = (self.share * lengths).round().clamp(min=1)
        place = torch.arange(each.shape[1], device=each.device)
        late = (place >= lengths - counted) & (place < lengths)
        draw = super().draw(batch.but(encoded=encoded), k)
        draw.aux = {"steps": each.masked_fill(~late, 0).sum(1) / counted[:, 0]}
        return draw
