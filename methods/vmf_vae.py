"""vMF-VAE: codes on a sphere, whose rate is a constant that no training can lower."""

from dataclasses import dataclass, field

from benchmark.api import Recipe, Task, register
from benchmark.models import DirectionEncoder, SphericalVAE, vmf_concentration


@register("vmf_vae")
@dataclass
class VMFVAE:
    """Xu and Durrett (EMNLP 2018): von Mises-Fisher posteriors of one fixed concentration around
    the direction that the encoder says, a uniform prior on the sphere, and the plain ELBO."""

    kappa: float | None = field(default=13.0, metadata={"other": 60.0})
    """Concentration of every posterior. None if `target` is set."""

    target: float | None = field(default=None, metadata={"other": 4.0})
    """The rate of every sentence in nats, in place of the kappa that has it."""

    def __post_init__(self) -> None:
        if (self.kappa is None) == (self.target is None):
            raise ValueError("set one of method.kappa and method.target, and the other to null")
        if not (self.kappa or self.target or 0.0) > 0:
            raise ValueError("method.kappa and method.target must be above 0")

    def recipe(self, task: Task) -> Recipe:
        kappa = self.kappa
        if kappa is None:
            assert self.target is not None
            kappa = vmf_concentration(self.target, task.latent)
        model = SphericalVAE(DirectionEncoder(task.encoder()), task.decoder(), kappa)
        return Recipe(model=model)
