"""InfoVAE with MMD: hold the codes of all sentences together to the prior, not each by itself."""

from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from benchmark.api import Batch, Draw, Recipe, Task, register
from benchmark.models import gaussian_kernel, inverse_multiquadrics, squared_mmd
from benchmark.objectives import rate, reconstruction


class Kernel(Enum):
    """Of two codes d apart: rbf, exp(-d^2 / D); imq, sum_s 2Ds / (2Ds + d^2) over seven s."""

    rbf = "rbf"
    imq = "imq"


KERNELS = {Kernel.rbf: gaussian_kernel, Kernel.imq: inverse_multiquadrics}


def aggregate_distance(z: Tensor, kernel: Kernel) -> Tensor:
    """Unbiased estimate of MMD^2(q(z) || N(0, I)) from codes z [B, K, D] and as many fresh ones of
    the prior, a scalar. Codes of one sentence are no sample of q(z): the K are averaged over."""
    if z.dim() != 3:
        raise ValueError("method=mmd_vae compares one code a sentence with N(0, I)")
    codes = z.transpose(0, 1)  # [K, B, D]
    return squared_mmd(codes, torch.randn_like(codes), KERNELS[kernel]).mean()


@register("mmd_vae")
@dataclass
class MMDVAE:
    """Rec + (1 - alpha) KL + (alpha + lambda - 1) MMD^2(q(z) || p(z)) (Zhao, Song and Ermon, AAAI
    2019). With alpha = 1, their MMD-VAE, no sentence's own rate is charged, and nothing keeps
    sigma from shrinking."""

    alpha: float = field(default=1.0, metadata={"other": 0.5})
    """Weight taken from the KL; 1 leaves none of it, 0 with weight=1 is the plain VAE."""

    weight: float = field(default=10.0, metadata={"other": 100.0})
    """lambda, nats a sentence for an MMD^2 of 1. With imq 10 in the text WAE that Wu et al. (ACL
    2020) release; what works lies in a narrow range, which moves with data and kernel."""

    kernel: Kernel = field(default=Kernel.imq, metadata={"other": Kernel.rbf})
    """imq (Tolstikhin et al., ICLR 2018) or rbf (Zhao et al.)."""

    def __post_init__(self) -> None:
        if not self.alpha <= 1:
            raise ValueError(f"method.alpha is at most 1, else the KL is paid for: {self.alpha}")
        if not self.alpha + self.weight >= 1:
            raise ValueError(
                "method.alpha and method.weight together are at least 1, else the MMD "
                f"is paid for: {self.alpha} and {self.weight}"
            )

    def recipe(self, task: Task) -> Recipe:
        def objective(draw: Draw, batch: Batch, t: int) -> Tensor:
            loss = reconstruction(draw) + (1 - self.alpha) * rate(draw)
            if len(batch) < 2:  # of one code no pairs can be made
                return loss
            assert draw.z is not None
            distance = aggregate_distance(draw.z, self.kernel)
            return loss + (self.alpha + self.weight - 1) * distance

        return Recipe(objective=objective)
