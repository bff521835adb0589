"""Planted: losses averaged over tokens, which changes the KL's weight (the contract's tests,
2026)."""

from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor

from benchmark.api import Batch, Draw, Recipe, Task, register
from benchmark.objectives import rate


class By(Enum):
    sentence = "sentence"
    batch = "batch"
    task = "task"
    none = "none"


@register("averages_tokens")
@dataclass
class AveragesTokens:
    """Rec is in nats a token, the KL in nats a sentence."""

    by: By = field(default=By.sentence, metadata={"other": By.batch})
    """Each sentence by its own length, all by the batch's tokens, or by the data's mean;
    or a sum over all sentences."""

    def recipe(self, task: Task) -> Recipe:
        def objective(draw: Draw, batch: Batch, t: int) -> Tensor:
            nats = -draw.log_px.mean(1)
            if self.by is By.sentence:
                return (nats / batch.target_lengths).mean() + rate(draw)
            if self.by is By.batch:
                return nats.sum() / batch.mask.sum() + rate(draw)
            if self.by is By.none:
                return nats.sum() + draw.kl.sum()
            return nats.mean() / task.mean_length + rate(draw)

        return Recipe(model=task.model(), objective=objective)
