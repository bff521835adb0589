"""The language model widened to the VAE's number of parameters, so that size is no excuse."""

from dataclasses import dataclass

import torch

from benchmark.api import Recipe, Task, register
from benchmark.models import LanguageModel


@register("lm_matched")
@dataclass
class LMMatched:
    """`lm` with the least hidden size at which it has as many parameters as the configured VAE,
    its encoder included. This suite's own control."""

    def recipe(self, task: Task) -> Recipe:
        with torch.device("meta"):  # sizes alone, no memory and no random numbers
            wanted = sum(p.numel() for p in task.model().parameters())

            def enough(hidden: int) -> bool:
                decoder = task.decoder(latent=0, hidden=hidden)
                return sum(p.numel() for p in decoder.parameters()) >= wanted

            low, high = 0, 1  # enough(high) and not enough(low), once found
            while not enough(high):
                low, high = high, 2 * high
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if enough(middle) else (middle, high)
        return Recipe(model=LanguageModel(task.decoder(latent=0, hidden=high)))
