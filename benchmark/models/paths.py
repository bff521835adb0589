"""A VAE beside an auto-encoder: two ways through one encoder, the second without noise."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmark.api import Batch, Draw
from benchmark.models.gaussian import GaussianVAE
from benchmark.models.lstm import LSTMDecoder, LSTMEncoder, initialise
from benchmark.models.together import Together


class TwoHeadedEncoder(nn.Module):
    """q(z|x) by the configured encoder, and on the same last state a second head: a code c(x)
    without noise."""

    def __init__(self, encoder: LSTMEncoder):
        super().__init__()
        self.encoder = encoder
        self.plain = nn.Linear(encoder.lstm.hidden_size, encoder.latent, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        initialise(self, *self.encoder.init)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), [B, D] each."""
        return self.encoder(batch)

    def both(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, log variance and c(x), [B, D] each."""
        state = self.encoder.last_state(batch)
        mean, log_variance = self.encoder.head(state).float().chunk(2, dim=-1)
        return mean, log_variance, self.plain(state).float()


class TwoPathVAE(GaussianVAE):
    """p(x|z) under q(z|x), and p'(x|c) by a decoder of its own from the code c(x). Training alone
    knows the second path.

    There a draw's `aux` holds: plain, -log p'(x|c(x)); apart, `apart` of the squared distance
    between the cells that the two decoders start from, W z and W' c(x), the second held fixed.
    """

    encoder: TwoHeadedEncoder

    def __init__(
        self,
        encoder: TwoHeadedEncoder,
        decoder: LSTMDecoder,
        plain: LSTMDecoder,
        apart: Callable[[Tensor], Tensor],
    ):
        super().__init__(encoder, decoder)
        self.plain, self.apart = plain, apart

    def parts(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "decoder": Together([self.decoder, self.plain])}

    def draw(self, batch: Batch, k: int = 1) -> Draw:
        if not self.training:
            return super().draw(batch, k)
        mean, log_variance, code = self.encoder.both(batch)
        draw = super().draw(batch.but(encoded=(mean, log_variance)), k)
        assert draw.z is not None
        _, begun = self.decoder.start(draw.z.flatten(0, 1))
        with torch.no_grad():
            _, led = self.plain.start(code)
        cells = begun.float().view(len(batch), k, -1)
        squares = (cells - led[0].float()[:, None]).square().sum(-1)  # [B, K]
        draw.aux = {
            "plain": -self.plain.log_px(batch, code[:, None])[:, 0],
            "apart": self.apart(squares).mean(1),
        }
        return draw
