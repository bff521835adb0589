"""Z-Forcing (Goyal et al. 2017), as one would write it on a blackboard: a loop over the steps.

Like `tests.textbook` it shares no line with the harness, draws no noise itself and is a baseline of
speed: sentences of equal length, `nn.LSTMCell`, every network once a step, full logits, fp32. (The
released code has one thing more behind the loop than this: the forward output layer.)

B sentences of L ids each, `<s>` and `</s>` included, so T = L - 1 tokens are predicted; V words,
U latent units. Costs are in nats per sentence, summed over steps and units.

Goyal et al., "Z-Forcing: training stochastic recurrent networks", NeurIPS 2017, and its released
code.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Gaussian(nn.Module):
    """Mean and log-variance by one hidden layer: leaky, clipped to +-3; outputs clipped to +-8."""

    def __init__(self, inputs: int, hidden: int, units: int):
        super().__init__()
        self.inner = nn.Linear(inputs, hidden)
        self.outer = nn.Linear(hidden, 2 * units)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.leaky_relu(self.inner(features), 1 / 3).clamp(-3, 3)
        mean, log_variance = self.outer(hidden).clamp(-8, 8).chunk(2, dim=-1)
        return mean, log_variance


def log_normal(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(z; mean, diag exp log_variance), summed over the last dimension."""
    square = (z - mean) ** 2 / log_variance.exp()
    return -0.5 * (math.log(2 * math.pi) + log_variance + square).sum(-1)


class TextbookZForcing(nn.Module):
    """p(z_t | h_{t-1}), h_t = LSTM([W z_t, e(x_t)], h_{t-1}), p(x_{t+1} | h_t), the posterior
    q(z_t | h_{t-1}, b_t) and the auxiliary p(b_t | z_t) or p(b_t | h_{t-1}, z_t)."""

    def __init__(
        self, vocab: int, embedding: int, hidden: int, mlp: int, units: int, sees_history: bool
    ):
        super().__init__()
        self.sees_history = sees_history
        self.embedding = nn.Embedding(vocab, embedding)
        self.reader = nn.LSTM(embedding, hidden, batch_first=True)
        self.reader_output = nn.Linear(hidden, vocab, bias=False)
        self.prior = Gaussian(hidden, mlp, units)
        self.posterior = Gaussian(2 * hidden, mlp, units)
        self.auxiliary = Gaussian(hidden + units if sees_history else units, mlp, hidden)
        self.code = nn.Linear(units, embedding)
        self.cell = nn.LSTMCell(2 * embedding, hidden)
        self.output = nn.Linear(hidden, vocab, bias=False)

    def loss(
        self,
        x: Tensor,
        eps: Tensor,
        kl_weight: float = 1.0,
        auxiliary_weight: float = 1.0,
        backward_weight: float = 1.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum and its parts, [B] each, of sentences x [B, L] with noise eps [B, T, U]:
        rec, kl, auxiliary, backward; beside them log_pz and log_qz of the codes drawn."""
        read, predicted = x[:, :-1], x[:, 1:]
        words = self.embedding(read)  # [B, T, E]
        b, _ = self.reader(self.embedding(predicted.flip(1)))
        b = b.flip(1)  # b_t has read x_{t+1} and all that follows
        backward = F.cross_entropy(self.reader_output(b).mT, read, reduction="none").sum(1)

        h = c = words.new_zeros(len(x), self.cell.hidden_size)
        rec = kl = auxiliary = log_pz = log_qz = 0.0
        for t in range(read.shape[1]):
            p_mean, p_log = self.prior(h)
            q_mean, q_log = self.posterior(torch.cat([h, b[:, t]], dim=-1))
            z = q_mean + (0.5 * q_log).exp() * eps[:, t]
            square = (q_mean - p_mean) ** 2 / p_log.exp()
            kl = kl + 0.5 * (p_log - q_log + (q_log - p_log).exp() + square - 1).sum(-1)
            log_pz = log_pz + log_normal(z, p_mean, p_log)
            log_qz = log_qz + log_normal(z, q_mean, q_log)
            mean, log_variance = self.auxiliary(
                torch.cat([h, z], dim=-1) if self.sees_history else z
            )
            auxiliary = auxiliary - log_normal(b[:, t].detach(), torch.tanh(mean), log_variance)
            h, c = self.cell(torch.cat([self.code(z), words[:, t]], dim=-1), (h, c))
            rec = rec + F.cross_entropy(self.output(h), predicted[:, t], reduction="none")
        parts = {"rec": rec, "kl": kl, "auxiliary": auxiliary, "backward": backward}
        loss = rec + kl_weight * kl + auxiliary_weight * auxiliary + backward_weight * backward
        return loss, parts | {"log_pz": log_pz, "log_qz": log_qz}
