"""KL annealing: charge for the code only once the decoder has had time to use it."""

import math
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor

from benchmark.api import Batch, Draw, Recipe, Task, register
from benchmark.objectives import rate, reconstruction


class Shape(Enum):
    linear = "linear"
    sigmoid = "sigmoid"


@register("kl_annealing")
@dataclass
class KLAnnealing:
    """Rec + beta_t KL (Bowman et al., CoNLL 2016), beta_t a function of the step alone.

    Training is cut into `cycles`. In each, beta stays at `start` for a share `zero` of the cycle,
    rises over a share `ramp`, and is 1 for the rest. One cycle is Bowman et al.'s annealing,
    several are Fu et al.'s (NAACL 2019), a zero share is Li et al.'s (EMNLP 2020).
    """

    shape: Shape = field(default=Shape.linear, metadata={"other": Shape.sigmoid})
    """How beta rises: linear, or sigmoid as in Bowman et al."""

    start: float = field(default=0.0, metadata={"other": 0.5})
    """beta before the rise: 0 in Li et al. (2019), 0.1 in He et al. (2019)."""

    ramp: float = field(default=0.4, metadata={"other": 0.8})
    """Share of a cycle that the rise takes; 0.5 in Fu et al."""

    zero: float = field(default=0.0, metadata={"other": 0.2})
    """Share of a cycle before the rise; 0.5 in Optimus (Li et al. 2020)."""

    cycles: int = field(default=1, metadata={"other": 2})
    """Number of cycles; 4 in Fu et al."""

    steepness: float | None = field(default=None, metadata={"other": 20.0})
    """Of the sigmoid: beta = sigmoid(steepness (v - 1/2)) at the share v of the rise; 10 in
    Shao et al. (ICML 2020). None where the shape is linear."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1:
            raise ValueError(f"method.start is a weight between 0 and 1, not {self.start}")
        if not (self.ramp > 0 and self.zero >= 0 and self.zero + self.ramp <= 1):
            raise ValueError(
                "method.zero and method.ramp are shares of a cycle, the ramp above 0 and both "
                f"together up to 1, not {self.zero} and {self.ramp}"
            )
        if self.cycles < 1:
            raise ValueError(f"method.cycles is at least 1, not {self.cycles}")
        if (self.steepness is None) == (self.shape is Shape.sigmoid):
            raise ValueError("method.steepness belongs to method.shape=sigmoid and to no other")

    def weight(self, t: int, steps: int) -> float:
        """beta at outer step t of `steps`; exactly `start` at the first step of each cycle."""
        cycle = t * self.cycles // steps
        began = -(-cycle * steps // self.cycles)  # the first whole step of the cycle
        risen = ((t - began) * self.cycles / steps - self.zero) / self.ramp
        if risen <= 0:
            return self.start
        if risen >= 1:
            return 1.0
        if self.steepness is not None:
            risen = 1 / (1 + math.exp(-self.steepness * (risen - 0.5)))
        return self.start + (1 - self.start) * risen

    def recipe(self, task: Task) -> Recipe:
        def objective(draw: Draw, batch: Batch, t: int) -> Tensor:
            return reconstruction(draw) + self.weight(t, task.steps) * rate(draw)

        # A checkpoint from within a ramp was trained to another objective.
        last_rise = (self.cycles - 1 + self.zero + self.ramp) / self.cycles
        return Recipe(objective=objective, select_after=last_rise)
