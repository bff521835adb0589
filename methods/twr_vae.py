"""TWR-VAE: charge for what the encoder says at every step, in the mean over the steps."""

from dataclasses import dataclass, field

from torch import Tensor

from benchmark.api import Batch, Draw, Recipe, Task, register
from benchmark.models import Pool, StepwiseEncoder, StepwiseVAE
from benchmark.objectives import reconstruction


@register("twr_vae")
@dataclass
class TWRVAE:
    """Rec + mean_t KL(q(z_t | x_1 ... x_t) || N(0, I)) over the encoder's steps (Li et al., COLING
    2020). No bound on -log p(x): the code's own KL is charged as one of the steps', or not at all;
    what is reported is the true one."""

    code: Pool = field(default=Pool.last, metadata={"other": Pool.mean})
    """The decoder's code: the last step's, or all steps' mean or sum."""

    share: float = field(default=1.0, metadata={"other": 0.5})
    """Share of the sentence's last steps that are charged; theirs are 1, 0.75, 0.5, 0.25 and one
    step alone, which with the last step's code is the plain VAE."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"method.share is above 0 and at most 1, not {self.share}")

    def recipe(self, task: Task) -> Recipe:
        def objective(draw: Draw, batch: Batch, t: int) -> Tensor:
            return reconstruction(draw) + draw.aux["steps"].mean()

        encoder = StepwiseEncoder(task.encoder(), self.code)
        return Recipe(model=StepwiseVAE(encoder, task.decoder(), self.share), objective=objective)
