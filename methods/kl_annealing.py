"""KL annealing: charge for the code only once the decoder has had time to use it."""

from dataclasses import dataclass, field

from torch import Tensor

from benchmark.api import Batch, Draw, Recipe, Task, register
from benchmark.objectives import linear_ramp, rate, reconstruction


@register("kl_annealing")
@dataclass
class KLAnnealing:
    """Rec + beta_t KL with beta_t rising linearly to 1 (Bowman et al., CoNLL 2016)."""

    start: float = field(default=0.0, metadata={"other": 0.5})
    """beta at step 0: 0 in Li et al. (2019), 0.1 in He et al. (2019)."""

    ramp: float = field(default=0.4, metadata={"other": 0.8})
    """Share of all steps after which beta is 1; He et al.'s ten epochs of their schedule."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1:
            raise ValueError(f"method.start is a weight between 0 and 1, not {self.start}")
        if not 0 < self.ramp <= 1:
            raise ValueError(
                f"method.ramp is a share of the steps, above 0 and up to 1, not {self.ramp}"
            )

    def recipe(self, task: Task) -> Recipe:
        length = self.ramp * task.steps

        def objective(draw: Draw, batch: Batch, t: int) -> Tensor:
            return reconstruction(draw) + linear_ramp(t, length, self.start) * rate(draw)

        # A checkpoint from within the ramp was trained to another objective.
        return Recipe(model=task.model(), objective=objective, select_after=self.ramp)
