"""What a model writes: from its prior, of sentences that it has read, and between two of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmark.api import EOS, PAD, Batch, LatentModel
from benchmark.evaluate import TOKENS, Rows, SplitLike
from benchmark.models import Rewriter
from benchmark.models.likelihood import SLAB
from benchmark.noise import Noise

MOST = 4096  # sentences written at once from the prior, fewer where the vocabulary is large


@dataclass(frozen=True)
class Rule:
    """How words are chosen: sampling at a temperature, a beam search, or greedy, the likeliest
    word at each step."""

    rule: str
    temperature: float | None = None
    beams: int | None = None


GREEDY = Rule("greedy")


@dataclass(frozen=True)
class Text:
    """One sentence: its words' ids, and whether `</s>` was written behind them."""

    ids: list[int]
    ended: bool = True


@dataclass(frozen=True)
class Author:
    """A model that writes, at most so many tokens a sentence, of so many words that there are.
    Every call starts from the seed."""

    model: LatentModel
    device: torch.device
    vocabulary: int
    max_length: int
    seed: int

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Random numbers from the seed on, and no gradient; afterwards they are as before."""
        forked = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(forked), torch.no_grad():
            torch.manual_seed(self.seed)
            yield

    def prior(self, n: int, by: Rule) -> list[Text]:
        """n sentences; two rules meet the same codes first."""
        most, texts = max(1, min(MOST, SLAB // self.vocabulary)), []
        with self.seeded():
            while len(texts) < n:
                some = min(most, n - len(texts))
                ids = self.model.sample(
                    some, max_length=self.max_length, temperature=by.temperature or 0.0
                )
                texts += _texts(ids)
        return texts

    def reconstructions(self, split: SplitLike, rows: Rows, by: Rule) -> list[Text]:
        """Of these sentences, from their posteriors' means. Unless it is done greedily, the model
        must be a `Rewriter`."""
        texts: dict[int, Text] = {}
        room = self.room(by.beams or 1)
        ordered = rows[np.argsort(split.lengths[rows], kind="stable")]  # hardly any padding
        with self.seeded():
            for start in range(0, len(rows), room):
                part = ordered[start : start + room]
                batch = self.batch(split, part)
                texts.update(zip(part.tolist(), _texts(self.rewritten(batch, by)), strict=True))
        return [texts[row] for row in rows.tolist()]

    def rewritten(self, batch: Batch, by: Rule) -> Tensor:
        if by == GREEDY:
            return self.model.reconstruct(batch, max_length=self.max_length)
        assert isinstance(self.model, Rewriter)
        writing = self.model.rewriting(batch, self.max_length)
        if by.beams is not None:
            return writing.search(self.max_length, by.beams)
        return writing.draw(self.max_length, by.temperature or 0.0)

    def paths(self, split: SplitLike, rows: Rows, steps: int) -> list[list[Text]]:
        """Greedily from so many codes along the straight line between those of each two of these
        sentences, drawn from their posteriors; both ends are among them."""
        with self.seeded():
            z = self.model.draw(self.batch(split, rows)).z
            assert z is not None
            first, last = z[0::2, 0, None], z[1::2, 0, None]  # [P, 1, ...]
            weights = torch.linspace(0, 1, steps, device=self.device)
            lines = torch.lerp(first, last, weights.view(-1, *[1] * (first.dim() - 2)))
            texts: list[Text] = []
            for codes in lines.flatten(0, 1).split(self.room()):
                texts += _texts(self.model.decode(codes, max_length=self.max_length))
        return [texts[start : start + steps] for start in range(0, len(texts), steps)]

    def room(self, copies: int = 1) -> int:
        """How many sentences are written at once, each in so many copies."""
        return max(1, TOKENS[self.device.type] // (self.max_length * copies))

    def batch(self, split: SplitLike, rows: Rows) -> Batch:
        """These sentences on the device, about to draw an evaluation's own noise."""
        batch = split.batch(rows).to(self.device)
        return batch.but(noise=Noise(split.name, torch.as_tensor(rows, device=self.device)))


def _texts(written: Tensor) -> list[Text]:
    """From tokens [N, T] as models write them."""
    return [
        Text(row[: row.index(EOS)]) if EOS in row else Text([i for i in row if i != PAD], False)
        for row in written.tolist()
    ]
