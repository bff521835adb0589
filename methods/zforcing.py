"""Z-Forcing: a stochastic LSTM whose codes are forced to tell of what comes later."""

from dataclasses import dataclass, field

from torch import Tensor

from benchmark.api import Batch, Draw, Recipe, Task, register
from benchmark.models import Generator, Inference, LSTMDecoder, StochasticLSTM
from benchmark.objectives import linear_ramp, rate, reconstruction


@register("zforcing")
@dataclass
class ZForcing:
    """Rec + w_t KL + a_t aux + b L_bwd (Goyal et al., NeurIPS 2017): aux is -log p(b_t | z_t) with
    b_t held fixed, L_bwd the backward LSTM's own language model."""

    kl_start: float = field(default=0.2, metadata={"other": 1.0})
    """w at step 0; it rises to 1. Released: 0.2."""

    auxiliary_start: float = field(default=0.005, metadata={"other": 0.05})
    """a at step 0. The paper's text experiment has 0, 0.0025 and 0.005 (from memory)."""

    auxiliary_end: float = field(default=0.005, metadata={"other": 0.0})
    """a from the ramp's end on. With both weights 0 there is no auxiliary part at all: this is
    Z-Forcing's own control."""

    ramp: float = field(default=0.4, metadata={"other": 0.8})
    """Share of the steps over which w and a move; released: 5e-5 a step."""

    backward: float = field(default=1.0, metadata={"other": 0.1})
    """b, while the auxiliary part is on."""

    sees_history: bool = field(default=False, metadata={"other": True})
    """Whether p(b_t | z_t) also sees h_{t-1}; the paper's does not."""

    units: int | None = field(default=None, metadata={"other": 2})
    """Dimensions of z_t; None: those configured for the model. 256 released, for speech."""

    mlp: int | None = field(default=None, metadata={"other": 5})
    """Hidden units of the three Gaussians; None: half of the LSTM's, as released (512 of 1024)."""

    def __post_init__(self) -> None:
        weights = (self.kl_start, self.auxiliary_start, self.auxiliary_end, self.backward)
        if min(weights) < 0:
            raise ValueError("the weights of method=zforcing must not be negative")
        if not 0 < self.ramp <= 1:
            raise ValueError(f"method.ramp is a share of the steps up to 1, not {self.ramp}")
        if any(size is not None and size < 1 for size in (self.units, self.mlp)):
            raise ValueError("method.units and method.mlp are at least 1")

    def recipe(self, task: Task) -> Recipe:
        like: LSTMDecoder = task.decoder(latent=0)
        hidden, units = like.lstm.hidden_size, self.units or task.latent
        mlp = self.mlp or max(1, hidden // 2)
        embedding, length = like.embed.embedding_dim, self.ramp * task.steps
        model = StochasticLSTM(
            Inference(task.vocab_size, embedding, hidden, mlp, units),
            Generator(like, mlp, units, self.sees_history),
            units,
        )
        forced = self.auxiliary_start > 0 or self.auxiliary_end > 0

        def objective(draw: Draw, batch: Batch, t: int) -> Tensor:
            risen = linear_ramp(t, length)
            loss = reconstruction(draw) + linear_ramp(t, length, self.kl_start) * rate(draw)
            if not forced:
                return loss
            weight = self.auxiliary_start + risen * (self.auxiliary_end - self.auxiliary_start)
            backward = self.backward * draw.aux["backward"].mean()
            return loss + weight * draw.aux["auxiliary"].mean() + backward

        return Recipe(model=model, objective=objective, select_after=self.ramp)
