"""Coupled-VAE: an auto-encoder on the same encoder leads the decoder's use of the code."""

from dataclasses import dataclass, field
from enum import Enum
from functools import partial

from torch import Tensor

from benchmark.api import Batch, Draw, Recipe, Task, register
from benchmark.models import TwoHeadedEncoder, TwoPathVAE, inverse_multiquadrics
from benchmark.objectives import linear_ramp, rate, reconstruction


class Distance(Enum):
    """Of two initial states d apart: imq, sum_s d^2 / (2Ds + d^2) over seven s; euclidean, d^2."""

    imq = "imq"
    euclidean = "euclidean"


def apart(squares: Tensor, distance: Distance, units: int) -> Tensor:
    """The distance of what is so far apart, squared; 0 at 0."""
    if distance is Distance.euclidean:
        return squares
    return inverse_multiquadrics(squares.new_zeros(()), units) - inverse_multiquadrics(
        squares, units
    )


@register("coupled_vae")
@dataclass
class CoupledVAE:
    """Rec + beta_t KL + path Rec' + weight E_q d(W z, W' c) (Wu, Wang and Wang, ACL 2020): Rec' is
    that of an auto-encoder with the same encoder, a code c without noise and a decoder of its own,
    whose initial state, held fixed, leads the decoder's. It is dropped after training."""

    weight: float = field(default=0.1, metadata={"other": 10.0})
    """Of the distance between the initial states; 0.1 released, and 10 in places."""

    path: float = field(default=1.0, metadata={"other": 0.1})
    """Of the auto-encoder's reconstruction; 1 as released."""

    distance: Distance = field(default=Distance.imq, metadata={"other": Distance.euclidean})
    """Between the initial states; imq, or euclidean as they have for one of their data sets."""

    ramp: float = field(default=0.4, metadata={"other": 0.8})
    """Share of the steps over which beta rises from 0 to 1, as all of theirs do; 0 charges in full
    from the start."""

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and self.path >= 0):
            raise ValueError("method.weight and method.path must not be negative")
        if not 0 <= self.ramp <= 1:
            raise ValueError(
                f"method.ramp is a share of the steps between 0 and 1, not {self.ramp}"
            )

    def recipe(self, task: Task) -> Recipe:
        length = self.ramp * task.steps

        def objective(draw: Draw, batch: Batch, t: int) -> Tensor:
            charged = reconstruction(draw) + linear_ramp(t, length) * rate(draw)
            coupled = self.path * draw.aux["plain"] + self.weight * draw.aux["apart"]
            return charged + coupled.mean()

        model = TwoPathVAE(
            TwoHeadedEncoder(task.encoder()),
            task.decoder(),
            task.decoder(),
            partial(apart, distance=self.distance, units=task.latent),
        )
        return Recipe(model=model, objective=objective, select_after=self.ramp)
