"""The language model: the same decoder without a code, the reference row of every paper."""

from dataclasses import dataclass

from benchmark.api import Recipe, Task, register
from benchmark.models import LanguageModel


@register("lm")
@dataclass
class LM:
    """The decoder of He et al. (2019) with no z and a zero initial state."""

    def recipe(self, task: Task) -> Recipe:
        return Recipe(model=LanguageModel(task.decoder(latent=0)))
