"""Word dropout: hide words from the decoder, so that it has to look them up in z."""

from dataclasses import dataclass, field

import torch

from benchmark.api import BOS, PAD, UNK, Batch, Recipe, Task, register


@register("word_dropout")
@dataclass
class WordDropout:
    """Each word fed to the decoder becomes `<unk>` with probability `rate`, anew at each step
    (Bowman et al., CoNLL 2016). Targets and the encoder's view stay whole; evaluation is without.
    """

    rate: float = field(default=0.5, metadata={"other": 0.1})
    """Share of words hidden; 1 is Bowman et al.'s inputless decoder, 0 the plain VAE."""

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"method.rate is a probability, not {self.rate}")

    def recipe(self, task: Task) -> Recipe:
        def corrupt(batch: Batch, t: int) -> Batch:
            hidden = torch.rand(batch.inputs.shape, device=batch.inputs.device) < self.rate
            hidden &= (batch.inputs != BOS) & (batch.inputs != PAD)
            return batch.but(inputs=batch.inputs.masked_fill(hidden, UNK))

        # At rate 0 not even the random stream differs from the plain VAE's.
        return Recipe(corrupt=corrupt if self.rate > 0 else None)
