"""Planted: a step that takes two updates of the decoder (the contract's tests, 2026)."""

from dataclasses import dataclass

from torch import Tensor

from benchmark.api import Recipe, Run, Task, register


def step(run: Run) -> dict[str, Tensor]:
    run.descend(run.loss(run.another()))
    loss = run.loss(run.next())
    run.descend(loss)
    return {"loss": loss.detach()}


@register("two_decoder_updates")
@dataclass
class TwoDecoderUpdates:
    """It trains twice as long as the others and says that it is better."""

    def recipe(self, task: Task) -> Recipe:
        return Recipe(model=task.model(), step=step)
