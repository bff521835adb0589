"""The LSTM sentence VAE of He et al. 2019, as one would write it on a blackboard.

An implementation that shares no line with the harness: what both agree on is unlikely to be wrong
in both. It is also the baseline of speed, so it does the field's work in the field's way: batches
of equal length, `nn.LSTM` in fp32, full logits, the data encoded four times in an evaluation,
importance-weighted likelihood sentence by sentence. It draws nothing itself: all noise is handed
in.

B sentences of L ids each, `<s>` and `</s>` included, so T = L - 1 tokens are predicted; V words,
D latent dimensions, K samples. Costs are in nats per sentence, summed over tokens or dimensions.

He et al., "Lagging inference networks and posterior collapse in variational autoencoders", ICLR
2019, and its released code; Bowman et al., "Generating sentences from a continuous space", 2016.
"""

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

LOG_2_PI = math.log(2 * math.pi)


def initialise(module: nn.Module) -> None:
    """He et al.'s start: embeddings from U(-0.1, 0.1), all else, biases too, U(-0.01, 0.01)."""
    for name, parameter in module.named_parameters():
        bound = 0.1 if "embedding" in name else 0.01
        nn.init.uniform_(parameter, -bound, bound)


class Encoder(nn.Module):
    """q(z|x): the last state of an LSTM over the whole sentence, then a linear map."""

    def __init__(self, vocab: int, embedding: int, hidden: int, latent: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab, embedding)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.linear = nn.Linear(hidden, 2 * latent, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, [B, D] each, of sentences x [B, L]."""
        _, (h, _) = self.lstm(self.embedding(x))  # h [1, B, H]
        mean, log_variance = self.linear(h[0]).chunk(2, dim=-1)
        return mean, log_variance


class Decoder(nn.Module):
    """p(x|z): an LSTM that is fed z in its initial state and at every step.

    With latent = 0 it is the language model of the same size, started from zeros.
    """

    def __init__(self, vocab: int, embedding: int, hidden: int, latent: int, dropout: float):
        super().__init__()
        self.embedding = nn.Embedding(vocab, embedding)
        self.lstm = nn.LSTM(embedding + latent, hidden, batch_first=True)
        self.initial = nn.Linear(latent, hidden, bias=False) if latent else None
        self.output = nn.Linear(hidden, vocab, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """[B], log p(x|z) of sentences x [B, L] under codes z [B, D]."""
        read, predicted = x[:, :-1], x[:, 1:]
        inputs = self.dropout(self.embedding(read))  # [B, T, E]
        state = None  # nn.LSTM's word for zeros
        if self.initial is not None:
            inputs = torch.cat([inputs, z[:, None].expand(-1, read.shape[1], -1)], dim=-1)
            c = self.initial(z)[None]  # [1, B, H]
            state = (torch.tanh(c), c)
        outputs, _ = self.lstm(inputs, state)
        log_p = torch.log_softmax(self.output(self.dropout(outputs)), dim=-1)  # [B, T, V]
        return log_p.gather(-1, predicted[..., None])[..., 0].sum(-1)


class TextbookLM(nn.Module):
    """The decoder without z: the papers' language model."""

    def __init__(self, vocab: int, embedding: int, hidden: int, dropout: float):
        super().__init__()
        self.decoder = Decoder(vocab, embedding, hidden, 0, dropout)
        initialise(self)

    def loss(self, x: Tensor) -> Tensor:
        """[B], -log p(x)."""
        return -self.decoder(x)


class TextbookVAE(nn.Module):
    """Encoder, decoder and a standard normal prior."""

    def __init__(self, vocab: int, embedding: int, hidden: int, latent: int, dropout: float):
        super().__init__()
        self.encoder = Encoder(vocab, embedding, hidden, latent)
        self.decoder = Decoder(vocab, embedding, hidden, latent, dropout)
        initialise(self)

    def loss(self, x: Tensor, eps: Tensor, kl_weight: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """(rec + kl_weight * kl, rec, kl), [B] each, at one code a sentence; eps [B, D]."""
        mean, log_variance = self.encoder(x)
        z = mean + (0.5 * log_variance).exp() * eps
        rec = -self.decoder(x, z)
        kl = 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum(-1)
        return rec + kl_weight * kl, rec, kl


def train_step(
    model: TextbookVAE,
    optimiser: torch.optim.Optimizer,
    x: Tensor,
    eps: Tensor,
    kl_weight: float = 1.0,
    clip: float = 5.0,
) -> float:
    """One update on the batch's mean loss, which is returned; the gradient is clipped by the norm
    of all parameters together. (He et al.'s two SGD optimisers make the same update as one.)"""
    optimiser.zero_grad()
    loss = model.loss(x, eps, kl_weight)[0].mean()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimiser.step()
    return loss.item()


def log_normal(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(z; mean, diag exp log_variance), summed over the last dimension."""
    square = (z - mean) ** 2 / log_variance.exp()
    return -0.5 * (LOG_2_PI + log_variance + square).sum(-1)


@torch.no_grad()
def bound(
    model: TextbookVAE, batches: Iterable[Tensor], noise: Iterable[Tensor]
) -> dict[str, float]:
    """Negative ELBO, reconstruction and KL, means over sentences; noise [B, D] per batch."""
    total_rec = total_kl = 0.0
    sentences = 0
    for x, eps in zip(batches, noise, strict=True):
        _, rec, kl = model.loss(x, eps)
        total_rec += rec.sum().item()
        total_kl += kl.sum().item()
        sentences += len(x)
    rec, kl = total_rec / sentences, total_kl / sentences
    return {"neg_elbo": rec + kl, "rec": rec, "kl": kl}


@torch.no_grad()
def mutual_information(
    model: TextbookVAE, batches: Iterable[Tensor], noise: Iterable[Tensor]
) -> float:
    """He et al.'s I_q(x; z): E log q(z|x), analytic, less the log of the mixture of the batch's
    own posteriors at one code per sentence; batches count by their sizes. noise [B, D] each."""
    total, sentences = 0.0, 0
    for x, eps in zip(batches, noise, strict=True):
        mean, log_variance = model.encoder(x)
        neg_entropy = -0.5 * (LOG_2_PI + 1 + log_variance).sum(-1)  # [B]
        z = mean + (0.5 * log_variance).exp() * eps
        each = log_normal(z[:, None], mean[None], log_variance[None])  # [B codes, B posteriors]
        log_qz = torch.logsumexp(each, dim=1) - math.log(len(x))
        total += (neg_entropy - log_qz).sum().item()
        sentences += len(x)
    return total / sentences


@torch.no_grad()
def active_units(
    model: TextbookVAE, batches: list[Tensor], threshold: float = 0.01
) -> tuple[int, Tensor]:
    """How many posterior means vary by at least `threshold` over the data, and the (unbiased)
    variances [D]. Burda et al. 2016. One pass for their mean, one for their variance."""
    sentences = sum(len(x) for x in batches)
    centre = sum(model.encoder(x)[0].sum(0) for x in batches) / sentences
    square = sum(((model.encoder(x)[0] - centre) ** 2).sum(0) for x in batches)
    variance = square / (sentences - 1)
    return int((variance >= threshold).sum()), variance


@torch.no_grad()
def iwae_nll(model: TextbookVAE, x: Tensor, noise: Tensor, chunk: int = 100) -> float:
    """-log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x) of one sentence x [1, L], noise [K, D]; Burda et
    al. 2016. As many copies of the sentence as codes are decoded at a time, `chunk` at most."""
    mean, log_variance = model.encoder(x)
    log_weights = []
    for eps in noise.split(chunk):
        z = mean + (0.5 * log_variance).exp() * eps
        log_px = model.decoder(x.expand(len(z), -1), z)
        log_pz = log_normal(z, torch.zeros_like(mean), torch.zeros_like(mean))
        log_weights.append(log_px + log_pz - log_normal(z, mean, log_variance))
    return math.log(len(noise)) - torch.logsumexp(torch.cat(log_weights), dim=0).item()


def read(path: Path, ids: dict[str, int], unknown: int = 3) -> list[list[int]]:
    """The sentences of a text file, one a line, as ids: `<s>` 1 and `</s>` 2 included."""
    with open(path) as lines:
        return [[1, *(ids.get(word, unknown) for word in line.split()), 2] for line in lines]


def equal_length_batches(sentences: list[list[int]], size: int) -> list[Tensor]:
    """[B, L] each, of sentences of one length, B at most `size`."""
    by_length: dict[int, list[list[int]]] = {}
    for row in sentences:
        by_length.setdefault(len(row), []).append(row)
    return [
        torch.tensor(rows[i : i + size])
        for _, rows in sorted(by_length.items())
        for i in range(0, len(rows), size)
    ]


def perplexity(nlls: list[float], sentences: list[Tensor]) -> float:
    """exp of nats per predicted token; `</s>` is predicted, `<s>` is not. Sentences [1, L]."""
    return math.exp(math.fsum(nlls) / sum(x.shape[1] - 1 for x in sentences))
