"""Sentences written word by word, by any model that says what may follow the words so far."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmark.api import BOS, EOS, PAD, Batch

State = tuple[Tensor, ...]
"""What is kept of N sentences begun, their codes included, [N, ...] each."""


@dataclass(frozen=True)
class Writing:
    """N sentences about to be written.

    start: their state before the first word. step(t, words, state): the words [N] read before
    word t, counted from 0, are followed by others with these logits [N, V]; the state after.
    Neither PAD nor `<s>` is ever written, and behind `</s>` stands PAD.
    """

    start: State
    step: Callable[[int, Tensor, State], tuple[Tensor, State]]

    @torch.no_grad()
    def draw(self, max_length: int, temperature: float) -> Tensor:
        """[N, <= max_length] tokens, sampled at a temperature, or the likeliest word at each step
        at temperature 0."""
        state, n, device = self.start, len(self.start[0]), self.start[0].device
        words = torch.full((n,), BOS, device=device)
        done, written = torch.zeros_like(words, dtype=torch.bool), []
        for t in range(max_length):
            logits, state = self.step(t, words, state)
            logits = _writable(logits.float())
            if temperature > 0:
                words = torch.multinomial(F.softmax(logits / temperature, dim=-1), 1)[:, 0]
            else:
                words = logits.argmax(dim=-1)
            words = words.masked_fill(done, PAD)
            done = done | (words == EOS)
            written.append(words)
            if done.all():
                break
        return torch.stack(written, 1)

    @torch.no_grad()
    def search(self, max_length: int, beams: int) -> Tensor:
        """[N, <= max_length] tokens, each sentence's likeliest that a beam search finds.

        At every step the `beams` likeliest hypotheses stay, whether ended or not, by their whole
        log-probability: no length is favoured or made up for. An ended one that leads has won, for
        no other's can rise. At the limit ended ones come before those that it cuts off.
        """
        n, device = len(self.start[0]), self.start[0].device
        state = tuple(part.repeat_interleave(beams, 0) for part in self.start)
        words = torch.full((n * beams,), BOS, device=device)
        ended = torch.zeros(n, beams, dtype=torch.bool, device=device)
        score = torch.full((n, beams), -torch.inf, device=device)
        score[:, 0] = 0  # the others would only repeat it
        texts = torch.empty(n, beams, 0, dtype=torch.long, device=device)
        first = torch.arange(n, device=device)[:, None] * beams
        for t in range(max_length):
            logits, state = self.step(t, words, state)
            likely = _writable(F.log_softmax(logits.float(), -1)).view(n, beams, -1)
            likely = likely.masked_fill(ended[..., None], -torch.inf)
            likely[..., PAD] = torch.where(ended, 0.0, -torch.inf)
            vocabulary = likely.shape[-1]
            score, place = (score[..., None] + likely).flatten(1).topk(beams)  # in falling order
            parent, words = place // vocabulary, place % vocabulary
            texts = torch.cat([texts.take_along_dim(parent[..., None], 1), words[..., None]], -1)
            ended = ended.gather(1, parent) | (words == EOS)
            if ended[:, 0].all():
                break
            state = tuple(part[(first + parent).flatten()] for part in state)
            words = words.flatten()
        best = score.masked_fill(~ended, -torch.inf).argmax(1)  # the first where none has ended
        return texts[torch.arange(n, device=device), best]


def _writable(scores: Tensor) -> Tensor:
    """With -inf for what is no word to be written."""
    for nothing in (PAD, BOS):
        scores[..., nothing] = -torch.inf
    return scores


@runtime_checkable
class Rewriter(Protocol):
    """A model whose reconstructions may also be sampled and searched for."""

    def rewriting(self, batch: Batch, max_length: int) -> Writing:
        """The batch's sentences, about to be written from their posteriors' means."""
        ...
