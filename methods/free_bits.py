"""Free bits: charge only for the rate above a floor."""

from dataclasses import dataclass, field

from torch import Tensor

from benchmark.api import Batch, Draw, Recipe, Task, register
from benchmark.objectives import Per, floored_rate, linear_ramp, reconstruction


@register("free_bits")
@dataclass
class FreeBits:
    """Rec + beta_t sum max(floor, KL): below its floor a unit's rate is free (Kingma et al.,
    NeurIPS 2016; Li et al., EMNLP 2019)."""

    floor: float | None = field(default=0.25, metadata={"other": 0.05})
    """Nats a unit; Li et al.'s recipe is 8 nats for 32 units. None if `target` is set."""

    target: float | None = field(default=None, metadata={"other": 4.0})
    """Nats in total, shared equally by the units (or groups), in place of `floor`."""

    per: Per = field(default=Per.unit_sentence, metadata={"other": Per.total_batch})
    """What has a floor: unit_sentence is Li et al.'s "fb 2", total_sentence their "fb 1",
    total_batch their "fb 3"; unit_batch and group_batch are Kingma et al.'s."""

    groups: int | None = field(default=None, metadata={"other": 2})
    """Groups of neighbouring units under group_batch; None otherwise."""

    ramp: float = field(default=0.0, metadata={"other": 0.8})
    """Share of the steps over which beta rises from 0 to 1; 0 charges in full from the start."""

    def __post_init__(self) -> None:
        if (self.floor is None) == (self.target is None):
            raise ValueError(
                "set one of method.floor (nats a unit) and method.target (nats in total), "
                "and the other to null"
            )
        if (self.floor or self.target or 0.0) < 0:
            raise ValueError("method.floor and method.target must not be negative")
        if (self.groups is None) == (self.per is Per.group_batch):
            raise ValueError("method.groups belongs to method.per=group_batch and to no other")
        if not 0 <= self.ramp <= 1:
            raise ValueError(
                f"method.ramp is a share of the steps between 0 and 1, not {self.ramp}"
            )

    def recipe(self, task: Task) -> Recipe:
        units, length = task.latent, self.ramp * task.steps
        if self.groups is not None and (self.groups < 1 or units % self.groups):
            raise ValueError(f"method.groups={self.groups} does not divide the {units} units")
        target = self.target
        if target is None:
            assert self.floor is not None
            target = self.floor * units

        def objective(draw: Draw, batch: Batch, t: int) -> Tensor:
            charged = floored_rate(draw.kl, target, self.per, self.groups)
            return reconstruction(draw) + linear_ramp(t, length) * charged

        return Recipe(objective=objective, select_after=self.ramp)
