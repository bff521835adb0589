"""BN-VAE: normalise posterior means over the batch, so that they must differ."""

from dataclasses import dataclass, field

from benchmark.api import Recipe, Task, register
from benchmark.models import GaussianVAE, NormalisedEncoder, scale_of_rate


@register("bn_vae")
@dataclass
class BNVAE:
    """Zhu et al. (ACL 2020): batch normalisation of mu with a fixed scale gamma and a trained
    shift, and the plain ELBO. Over a training batch E KL >= 0.5 gamma^2 sum_d v_d / (v_d + epsilon)
    or about 0.5 D gamma^2, v_d the variance of what is normalised. The floor is a rate: the encoder
    must vary, but nobody must read it."""

    gamma: float | None = field(default=0.6, metadata={"other": 0.3})
    """Standard deviation of every unit's mean over a batch; Zhu et al. have 0.6 and 0.7 (from
    memory). None if `target` is set."""

    target: float | None = field(default=None, metadata={"other": 4.0})
    """The floor in nats in total, in place of gamma = sqrt(2 target / D)."""

    epsilon: float = field(default=1e-12, metadata={"other": 1e-2})
    """Added to the variance that is divided by, and a way out of the floor: at PyTorch's own 1e-5,
    as released, training may shrink what is normalised until no floor is left."""

    torch_init: bool = field(default=False, metadata={"other": True})
    """Whether the encoder begins as PyTorch's own modules do, as released, and not as the model's:
    what is normalised then varies far more at first."""

    def __post_init__(self) -> None:
        if (self.gamma is None) == (self.target is None):
            raise ValueError("set one of method.gamma and method.target, and the other to null")
        if not (self.gamma or self.target or 0.0) > 0:
            raise ValueError("method.gamma and method.target must be above 0")
        if not self.epsilon > 0:
            raise ValueError(f"method.epsilon is above 0, not {self.epsilon}")

    def recipe(self, task: Task) -> Recipe:
        gamma = self.gamma
        if gamma is None:
            assert self.target is not None
            gamma = scale_of_rate(self.target, task.latent)
        plain = task.encoder(init=None) if self.torch_init else task.encoder()
        encoder = NormalisedEncoder(plain, gamma, epsilon=self.epsilon)
        return Recipe(model=GaussianVAE(encoder, task.decoder()))
