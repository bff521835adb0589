"""SA-VAE: refine what the encoder says of a sentence by gradient steps, and train through them."""

from dataclasses import dataclass, field

from torch import Tensor

from benchmark.api import Batch, Draw, Recipe, Run, Task, register
from benchmark.models import RefinedVAE, Teacher
from benchmark.objectives import linear_ramp, rate, reconstruction

START = 0.1  # beta at step 0, as released


@register("sa_vae")
@dataclass
class SAVAE:
    """Rec + beta_t KL of the refined posterior (Kim et al., ICML 2018), which is also what the
    refining steps descend."""

    svi_steps: int = field(default=10, metadata={"other": 2})
    """Refining steps of each sentence, in training and evaluation; Kim et al. have 20."""

    svi_rate: float = field(default=0.03125, metadata={"other": 0.1})
    """Of a step, on a sentence's own cost in nats: 1 on the mean of a batch of 32, as released."""

    momentum: float = field(default=0.5, metadata={"other": 0.0})
    """Share of a step's direction that the next one keeps."""

    clip: float = field(default=28.3, metadata={"other": 0.1})
    """Longest gradient of a sentence's means, and of its log variances. 5 for the mean of a batch
    of 32, as released, clips where each of 32 like sentences has 5 * 32 / sqrt(32)."""

    teacher: Teacher = field(default=Teacher.refined_cost, metadata={"other": Teacher.own_cost})
    """What trains the encoder: refined_cost, through the steps (SA-VAE); own_cost, the ELBO of its
    own word ("VAE+SVI"); refined_posterior, KL(q_0 || q_K) with q_K held fixed ("VAE+SVI+KL")."""

    ramp: float = field(default=0.333, metadata={"other": 0.8})
    """Share of the steps over which beta rises from 0.1 to 1; 0 charges in full from the start.
    As released: 9 of 30 epochs."""

    def __post_init__(self) -> None:
        if self.svi_steps < 1:
            raise ValueError(f"method.svi_steps is at least 1, not {self.svi_steps}")
        if not (self.svi_rate > 0 and self.clip > 0):
            raise ValueError("method.svi_rate and method.clip must be above 0")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"method.momentum is from 0 to below 1, not {self.momentum}")
        if not 0 <= self.ramp <= 1:
            raise ValueError(
                f"method.ramp is a share of the steps between 0 and 1, not {self.ramp}"
            )

    def recipe(self, task: Task) -> Recipe:
        model = RefinedVAE(
            task.encoder(),
            task.decoder(),
            steps=self.svi_steps,
            rate=self.svi_rate,
            momentum=self.momentum,
            clip=self.clip,
            teacher=self.teacher,
        )

        def weight(t: int) -> float:
            return linear_ramp(t, self.ramp * task.steps, START)

        def objective(draw: Draw, batch: Batch, t: int) -> Tensor:
            loss = reconstruction(draw) + weight(t) * rate(draw)
            return loss + draw.aux["encoder"].mean() if "encoder" in draw.aux else loss

        def step(run: Run) -> dict[str, Tensor]:
            model.weight = weight(run.t)
            loss = run.loss(run.next())
            run.descend(loss)
            return {"loss": loss.detach()}

        # Slots that would be the plain VAE's stay free for other methods.
        recipe = Recipe(model=model, select_after=self.ramp)
        if self.ramp > 0:
            recipe = recipe.but(step=step)
        if self.ramp > 0 or self.teacher is not Teacher.refined_cost:
            recipe = recipe.but(objective=objective)
        return recipe
