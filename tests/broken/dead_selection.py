"""Planted: a knob that moves the selection of a checkpoint alone (the contract's tests, 2026)."""

from dataclasses import dataclass, field

from benchmark.api import Recipe, Task, register


@register("dead_selection")
@dataclass
class DeadSelection:
    """A ramp that was forgotten in the objective."""

    ramp: float = field(default=0.4, metadata={"other": 0.8})
    """Share of the steps over which the rate's weight rises."""

    def recipe(self, task: Task) -> Recipe:
        return Recipe(select_after=self.ramp)
