"""LSTM encoder and decoder of the sentence VAE of He et al. (ICLR 2019), with their sizes,
initialisation and dropout."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmark.api import BOS, EOS, PAD, Batch
from benchmark.models.likelihood import token_log_likelihood
from benchmark.models.recurrent import LSTM


def initialise(module: nn.Module, bound: float, embedding_bound: float) -> None:
    """U(-embedding_bound, embedding_bound) for embeddings, U(-bound, bound) for all else, the
    LSTM's biases included; He et al. have 0.1 and 0.01."""
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    for parameter in module.parameters():
        limit = embedding_bound if id(parameter) in embeddings else bound
        nn.init.uniform_(parameter, -limit, limit)


class Dropout(nn.Dropout):
    """`nn.Dropout`, but its masks on a CPU, uniform numbers compared, cost a fraction."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or not self.training or not 0 < self.p < 1:
            return super().forward(input)
        return input * torch.rand_like(input).ge_(self.p).div_(1 - self.p)


class LSTMEncoder(nn.Module):
    """q(z|x): the last state of an LSTM over the whole sentence, `<s>` and `</s>` included, and a
    linear head without bias."""

    def __init__(
        self,
        *,
        vocab_size: int,
        embedding: int,
        hidden: int,
        latent: int,
        init: float = 0.01,
        init_embedding: float = 0.1,
    ):
        super().__init__()
        self.latent, self.init = latent, (init, init_embedding)
        self.embed = nn.Embedding(vocab_size, embedding)
        self.lstm = LSTM(embedding, hidden)
        self.head = nn.Linear(hidden, 2 * latent, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        initialise(self, *self.init)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), [B, D] each."""
        states, _ = self.lstm(self.embed(batch.source))  # [B, S, H]
        last = (batch.source_lengths - 1)[:, None, None].expand(-1, 1, states.shape[-1])
        mean, log_variance = self.head(states.gather(1, last)[:, 0]).float().chunk(2, dim=-1)
        return mean, log_variance


class LSTMDecoder(nn.Module):
    """p(x|z): an LSTM that is fed z beside every token.

    With one code a sentence it starts from a state made of it, c_0 = W z and h_0 = tanh(c_0);
    without a code (latent = 0, a language model) and with a code for each step (stepwise: the one
    fed beside the token before x_t is z_t) from zero.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        embedding: int,
        hidden: int,
        latent: int,
        dropout: float,
        stepwise: bool = False,
        init: float = 0.01,
        init_embedding: float = 0.1,
    ):
        super().__init__()
        self.latent, self.init = latent, (init, init_embedding)
        self.embed = nn.Embedding(vocab_size, embedding)
        self.dropout = Dropout(dropout)
        self.lstm = LSTM(embedding, hidden, latent)
        from_code = latent > 0 and not stepwise
        self.initial = nn.Linear(latent, hidden, bias=False) if from_code else None
        self.output = nn.Linear(hidden, vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        initialise(self, *self.init)

    def start(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The LSTM's state before the first token, for codes [N, ...]."""
        if self.initial is None:
            zero = z.new_zeros(1, len(z), self.lstm.hidden_size)
            return zero, zero
        cell = self.initial(z)[None]
        return torch.tanh(cell), cell

    def step(
        self, tokens: Tensor, z: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """States [N, T, H] after reading tokens [B, T] beside codes [N, D] or [N, T, D], N / B of
        them for each sentence; the LSTM's state."""
        states, state = self.lstm(self.dropout(self.embed(tokens)), state, z)
        return self.dropout(states), state

    def log_px(self, batch: Batch, z: Tensor) -> Tensor:
        """[B, K], log p(x|z) of each sentence under each of its codes, z [B, K, D] or
        [B, K, T, D]."""
        (b, k), t = z.shape[:2], batch.targets.shape[1]
        z = z.flatten(0, 1)
        inputs = batch.inputs
        if self.training:  # each code has dropout's masks of its own
            inputs = inputs.repeat_interleave(k, dim=0)
        states, _ = self.step(inputs, z, self.start(z))
        states = states.transpose(0, 1).flatten(0, 1)  # [T B K, H], as an LSTM leaves them
        targets = batch.targets.t()[..., None].expand(t, b, k)
        scores = token_log_likelihood(states, self.output.weight, targets.flatten())
        return (scores.view(t, b, k) * batch.mask.t()[..., None]).sum(0)

    @torch.no_grad()
    def generate(self, z: Tensor, *, max_length: int, temperature: float) -> Tensor:
        """[N, <= max_length] tokens decoded from codes [N, D] or [N, max_length, D], sampled at a
        temperature or greedy at temperature 0; behind `</s>` stands PAD."""
        token = torch.full((len(z), 1), BOS, device=z.device)
        state, done, written = self.start(z), torch.zeros_like(token, dtype=torch.bool), []
        for t in range(max_length):
            code = z if z.dim() == 2 else z[:, t : t + 1]
            states, state = self.step(token, code, state)
            logits = self.output(states[:, 0]).float()
            logits[:, [PAD, BOS]] = -torch.inf
            if temperature > 0:
                token = torch.multinomial(F.softmax(logits / temperature, dim=-1), 1)
            else:
                token = logits.argmax(dim=-1, keepdim=True)
            token = token.masked_fill(done, PAD)
            done = done | (token == EOS)
            written.append(token)
            if done.all():
                break
        return torch.cat(written, dim=1)
