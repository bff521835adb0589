"""Planted: state that is not checkpointed (the contract's tests, 2026)."""

from dataclasses import dataclass

from torch import Tensor

from benchmark.api import Recipe, Run, Task, register


class Step:
    def __init__(self) -> None:
        self.steps = 0  # in this process

    def __call__(self, run: Run) -> dict[str, Tensor]:
        self.steps += 1
        loss = run.loss(run.next())
        run.descend(min(1.0, self.steps / 50) * loss)
        return {"loss": loss.detach()}


@register("forgets_state")
@dataclass
class ForgetsState:
    """A warm-up that starts over when the run is resumed."""

    def recipe(self, task: Task) -> Recipe:
        return Recipe(model=task.model(), step=Step())
