"""The plain VAE: all four slots at their defaults. It is what collapses."""

from dataclasses import dataclass

from benchmark.api import Recipe, Task, register


@register("vae")
@dataclass
class VAE:
    """Kingma and Welling (ICLR 2014); for sentences Bowman et al. (CoNLL 2016)."""

    def recipe(self, task: Task) -> Recipe:
        return Recipe()
