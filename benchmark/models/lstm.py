"""LSTM encoder and decoder of the sentence VAE of He et al. (ICLR 2019), with their sizes,
initialisation and dropout."""

import torch
from torch import Tensor, nn

from benchmark.api import Batch
from benchmark.models.likelihood import token_log_likelihood
from benchmark.models.recurrent import LSTM
from benchmark.models.writing import State, Writing


def initialise(module: nn.Module, bound: float | None, embedding_bound: float) -> None:
    """U(-embedding_bound, embedding_bound) for embeddings, U(-bound, bound) for all else, the
    LSTM's biases included; He et al. have 0.1 and 0.01. Without a bound all of it is PyTorch's."""
    if bound is None:
        for part in module.children():
            part.reset_parameters()  # type: ignore[operator]
        return
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
        init: float | None = 0.01,
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

    def last_state(self, batch: Batch) -> Tensor:
        """[B, H], behind each sentence's own end."""
        states, _ = self.lstm(self.embed(batch.source))  # [B, S, H]
        last = (batch.source_lengths - 1)[:, None, None].expand(-1, 1, states.shape[-1])
        return states.gather(1, last)[:, 0]

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), [B, D] each."""
        mean, log_variance = self.head(self.last_state(batch)).float().chunk(2, dim=-1)
        return mean, log_variance


class LSTMDecoder(nn.Module):
    """p(x|z): an LSTM that is fed z beside every token.

    With one code a sentence it starts from a state made of it, c_0 = W z and h_0 = tanh(c_0);
    without a code (latent = 0, a language model) and with a code for each step (stepwise: the one
    fed beside the token before x_t is z_t) from zero.
    """

    memory: int | None = None  # words that it sees; None: all

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
        states = self.states(batch, z).transpose(0, 1)  # [T, B K, H], as an LSTM leaves them
        shape = len(states), *z.shape[:2]
        targets = batch.targets.t()[..., None].expand(shape)
        scores = token_log_likelihood(states.flatten(0, 1), self.output.weight, targets.flatten())
        return (scores.view(shape) * batch.mask.t()[..., None]).sum(0)

    def predictions(self, batch: Batch, z: Tensor) -> Tensor:
        """[B, K, T, V], log p of every word at every step, for codes as in `log_px`."""
        logits = self.output(self.states(batch, z)).float()  # [B K, T, V]
        return logits.log_softmax(-1).view(*z.shape[:2], *logits.shape[1:])

    def states(self, batch: Batch, z: Tensor) -> Tensor:
        """[B K, T, H], what the words are predicted from under codes as in `log_px`."""
        k, z = z.shape[1], z.flatten(0, 1)
        inputs = batch.inputs
        if self.training:  # each code has dropout's masks of its own
            inputs = inputs.repeat_interleave(k, dim=0)
        return self.step(inputs, z, self.start(z))[0]

    def writing(self, z: Tensor) -> Writing:
        """Sentences about to be written from codes [N, D], or [N, T, D] for T words at most."""
        h, c = self.start(z)
        return Writing((h[0], c[0], z), self._next)

    def _next(self, t: int, words: Tensor, state: State) -> tuple[Tensor, State]:
        h, c, z = state
        code = z if z.dim() == 2 else z[:, t : t + 1]
        states, (h, c) = self.step(words[:, None], code, (h[None], c[None]))
        return self.output(states[:, 0]), (h[0], c[0], z)

    def generate(self, z: Tensor, *, max_length: int, temperature: float) -> Tensor:
        """[N, <= max_length] tokens decoded from codes [N, D] or [N, max_length, D], sampled at a
        temperature or greedy at temperature 0; behind `</s>` stands PAD."""
        return self.writing(z).draw(max_length, temperature)
