"""The bag-of-words loss: make the code tell the words, whatever their order."""

from dataclasses import dataclass, field

from torch import Tensor

from benchmark.api import Batch, Draw, Recipe, Task, register
from benchmark.models import BagVAE, LSTMDecoder
from benchmark.objectives import linear_ramp, rate, reconstruction


@register("bow_vae")
@dataclass
class BowVAE:
    """Rec + beta_t KL + weight E_q[-sum_t log p(x_t|z)] over all predicted tokens, by a network
    that sees nothing but z (Zhao, Zhao and Eskenazi, ACL 2017). No decoder's history helps it, so a
    collapsed code pays the words' unigram cost; it is no part of any reported likelihood."""

    weight: float = field(default=1.0, metadata={"other": 0.1})
    """Of the bag's cost; 1 as released. 0 is the plain VAE."""

    mlp: int | None = field(default=None, metadata={"other": 5})
    """Hidden units of the bag's network; None: as many as the decoder's LSTM (400 and 400 as
    released)."""

    ramp: float = field(default=0.0, metadata={"other": 0.8})
    """Share of the steps over which beta rises from 0 to 1; 0 charges in full from the start."""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"method.weight must not be negative, as {self.weight} is")
        if self.mlp is not None and self.mlp < 1:
            raise ValueError(f"method.mlp is at least 1, or null, not {self.mlp}")
        if not 0 <= self.ramp <= 1:
            raise ValueError(
                f"method.ramp is a share of the steps between 0 and 1, not {self.ramp}"
            )

    def recipe(self, task: Task) -> Recipe:
        length = self.ramp * task.steps

        def objective(draw: Draw, batch: Batch, t: int) -> Tensor:
            charged = reconstruction(draw) + linear_ramp(t, length) * rate(draw)
            return charged + self.weight * draw.aux["bag"].mean()

        decoder: LSTMDecoder = task.decoder()
        model = BagVAE(task.encoder(), decoder, self.mlp or decoder.lstm.hidden_size)
        return Recipe(model=model, objective=objective, select_after=self.ramp)
