"""A VAE whose code must tell which words there are, whatever their order."""

import torch
from torch import Tensor, nn

from benchmark.api import Batch, Draw
from benchmark.models.gaussian import GaussianVAE
from benchmark.models.lstm import LSTMDecoder, initialise
from benchmark.models.together import Together


class BagOfWords(nn.Module):
    """p(w|z), one distribution for every place of the sentence: a softmax behind one hidden layer
    of tanh (Zhao, Zhao and Eskenazi, ACL 2017)."""

    def __init__(self, like: LSTMDecoder, hidden: int):
        super().__init__()
        self.init = like.init
        self.hidden = nn.Linear(like.latent, hidden)
        self.output = nn.Linear(hidden, like.embed.num_embeddings)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        initialise(self, *self.init)

    def cost(self, batch: Batch, z: Tensor) -> Tensor:
        """[B], -sum_t log p(x_t|z) over all predicted tokens, `</s>` included, in the mean over
        codes z [B, K, D]."""
        log_p = self.output(torch.tanh(self.hidden(z))).float().log_softmax(-1)  # [B, K, V]
        # Counts meet each word once, where a lookup's gradient would add up words that recur in
        # no fixed order on a GPU.
        counts = log_p.new_zeros(len(batch), log_p.shape[-1])
        counts.scatter_add_(1, batch.targets, batch.mask.to(counts.dtype))
        return -(counts[:, None] * log_p).sum(-1).mean(1)


class BagVAE(GaussianVAE):
    """The VAE with a bag of words beside its decoder, which training alone knows of: there a draw's
    `aux` holds `bag`, see `BagOfWords.cost`."""

    def __init__(self, encoder: nn.Module, decoder: LSTMDecoder, hidden: int):
        super().__init__(encoder, decoder)
        self.bag = BagOfWords(decoder, hidden)

    def parts(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "decoder": Together([self.decoder, self.bag])}

    def draw(self, batch: Batch, k: int = 1) -> Draw:
        draw = super().draw(batch, k)
        if self.training:
            assert draw.z is not None
            draw.aux = {"bag": self.bag.cost(batch, draw.z)}
        return draw
