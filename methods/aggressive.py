"""Aggressive encoder training: let the encoder catch up before each step of the decoder."""

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from benchmark.api import Batch, Recipe, Run, Task, register


class AggressiveStep(nn.Module):
    """He et al. (ICLR 2019), Algorithm 1, with the stopping rule of their released code.

    While aggressive, the encoder alone is updated until its loss stops falling, and then the
    decoder alone once. The phase ends for good when an epoch has lowered the mutual information
    that validation measures; from then on both move together.
    """

    def __init__(self, window: int, updates: int):
        super().__init__()
        self.window, self.updates = window, updates
        self.aggressive = True
        self.information = 0.0  # nats, at the last validation

    def get_extra_state(self) -> dict[str, Any]:
        return {"aggressive": self.aggressive, "information": self.information}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.aggressive, self.information = state["aggressive"], state["information"]

    def forward(self, run: Run) -> dict[str, Tensor]:
        information = run.fresh("valid/mi_batch32")
        if self.aggressive and information is not None:
            self.aggressive = information >= self.information
            self.information = information
        batch = run.next()
        inner = self.catch_up(run, batch) if self.aggressive else 0
        loss = run.loss(batch)
        run.descend(loss, *(["decoder"] if self.aggressive else []))
        return {"loss": loss.detach(), "inner_updates": loss.new_full((), inner)}

    def catch_up(self, run: Run, batch: Batch) -> int:
        """Update the encoder until the loss per token, averaged over a window of updates, is
        above the window's before; returns the number of updates."""
        before = math.inf
        for update in range(1, self.updates + 1):
            loss = run.loss(batch)
            run.descend(loss, "encoder")
            if update % self.window == 1 or self.window == 1:
                total, tokens = 0.0, 0.0
            total = total + loss.detach() * len(batch)
            tokens = tokens + batch.target_lengths.sum()
            if update % self.window == 0:
                now = float(total / tokens)  # the one place where the device is waited for
                if now > before:
                    break
                before = now
            batch = run.another()
        return update


@register("aggressive")
@dataclass
class Aggressive:
    """The lagging encoder's remedy: many encoder steps a decoder step, as long as it helps."""

    window: int = field(default=15, metadata={"other": 2})
    """Encoder updates between two looks at whether the loss still falls."""

    updates: int = field(default=99, metadata={"other": 3})
    """At most so many encoder updates a step; 99 in the released code."""

    def __post_init__(self) -> None:
        if self.window < 1 or self.updates < 1:
            raise ValueError("method.window and method.updates are at least 1")

    def recipe(self, task: Task) -> Recipe:
        return Recipe(step=AggressiveStep(self.window, self.updates))
