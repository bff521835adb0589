"""Auto-encoder first: free bits for a VAE whose encoder has learnt what a decoder can use."""

from dataclasses import dataclass, field

from torch import Tensor

from benchmark.api import Batch, Draw, Phase, Phases, Recipe, Task, register
from benchmark.objectives import Per, floored_rate, linear_ramp, reconstruction


@register("pretrain_free_bits")
@dataclass
class PretrainFreeBits:
    """Li et al. (EMNLP 2019): Rec alone; then, with that encoder and a new decoder,
    Rec + beta_t sum max(floor, KL)."""

    pretrain: float = field(default=0.3, metadata={"other": 0.5})
    """Share of the steps that train the auto-encoder; its checkpoint is the best by Rec."""

    floor: float | None = field(default=0.25, metadata={"other": 0.05})
    """Nats a unit; the released recipe is 8 nats for 32 units. None if `target` is set."""

    target: float | None = field(default=None, metadata={"other": 4.0})
    """Nats in total, shared equally by the units, in place of `floor`."""

    per: Per = field(default=Per.unit_sentence, metadata={"other": Per.total_batch})
    """What has a floor; unit_sentence is their "fb 2", total_sentence "fb 1"."""

    ramp: float = field(default=0.1, metadata={"other": 0.6})
    """Share of the second stage's steps over which beta rises from 0 to 1."""

    reset_decoder: bool = field(default=True, metadata={"other": False})
    """Whether the second stage starts with a new decoder, as released."""

    def __post_init__(self) -> None:
        if not 0 < self.pretrain < 1:
            raise ValueError(
                f"method.pretrain is a share of the steps between 0 and 1, not {self.pretrain}; "
                "without it this is method=free_bits"
            )
        if (self.floor is None) == (self.target is None):
            raise ValueError(
                "set one of method.floor (nats a unit) and method.target (nats in total), "
                "and the other to null"
            )
        if (self.floor or self.target or 0.0) < 0:
            raise ValueError("method.floor and method.target must not be negative")
        if self.per is Per.group_batch:
            raise ValueError("method.per=group_batch is no floor of this method; see free_bits")
        if not 0 <= self.ramp <= 1:
            raise ValueError(
                f"method.ramp is a share of the second stage between 0 and 1, not {self.ramp}"
            )

    def recipe(self, task: Task) -> Recipe:
        new = ("decoder",) if self.reset_decoder else ()
        phases = Phases(
            task.steps, Phase(self.pretrain, select="rec"), Phase(1 - self.pretrain, reset=new)
        )
        began = phases.ends[0]
        target = self.target
        if target is None:
            assert self.floor is not None
            target = self.floor * task.latent
        length = self.ramp * (task.steps - began)

        def objective(draw: Draw, batch: Batch, t: int) -> Tensor:
            if t < began:
                return reconstruction(draw)
            weight = linear_ramp(t - began, length)
            return reconstruction(draw) + weight * floored_rate(draw.kl, target, self.per)

        annealed = (began + length) / task.steps
        return Recipe(objective=objective, step=phases, select_after=annealed)
