"""Codes without densities: a sentence's is a function of it, others a generator makes of noise; and
the game in which a critic has the generator learn how sentences' codes are distributed."""

import math
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmark.api import BOS, EOS, Batch, Draw, Task
from benchmark.models.decoding import DecodingModel
from benchmark.models.lstm import LSTMDecoder
from benchmark.models.writing import Writing


class ImplicitAutoencoder(DecodingModel):
    """p(x|z) around z = e(x), and sentences anew from z = G(u), u ~ N(0, I); no likelihood.

    encoder(batch) -> [B, D], brought to a root mean square of 1, so that noise on codes has a
    meaning; decoder as a `GaussianVAE`'s; generator(u [..., D]) -> [..., D]. In training, and only
    there, a code that is decoded carries isotropic Gaussian noise of standard deviation `noise`.
    critic(z [N, D]) -> [N, 1] is for training alone.
    """

    latent = "implicit"
    why_no_log_q = "a code is a function of its sentence and has no density"

    def __init__(
        self,
        encoder: nn.Module,
        decoder: LSTMDecoder,
        generator: nn.Module,
        critic: nn.Module | None = None,
        *,
        noise: float,
    ):
        super().__init__(encoder, decoder, decoder.latent)
        self.generator, self.critic, self.noise = generator, critic, noise

    def parts(self) -> dict[str, nn.Module]:
        parts = dict(self.named_children())
        return {name: part for name, part in parts.items() if any(True for _ in part.parameters())}

    def encode(self, batch: Batch) -> tuple[Tensor]:
        """[B, D], the sentences' codes, without noise."""
        return (math.sqrt(self.units) * F.normalize(self.encoder(batch).float(), dim=-1),)

    def draw(self, batch: Batch, k: int = 1) -> Draw:
        (code,) = self.encoded(batch)
        z = code[:, None].expand(-1, k, -1)
        if self.training:
            z = z + self.noise * batch.normal(k, self.units)
        nothing = torch.full_like(z[..., 0], torch.nan)
        kl = torch.full_like(code, torch.nan)
        return Draw(z, self.log_px(batch, z), log_pz=nothing, log_qz=nothing, kl=kl)

    def prior_codes(self, batch: Batch, k: int = 1) -> Tensor:
        return self.generator(batch.normal(k, self.units))

    def sample(self, n: int, *, max_length: int, temperature: float = 1.0) -> Tensor:
        u = torch.randn(n, self.units, device=self.decoder.output.weight.device)
        return self.decode(self.generator(u), max_length=max_length, temperature=temperature)

    def rewriting(self, batch: Batch, max_length: int) -> Writing:
        return self.decoder.writing(*self.encode(batch))


class Frozen(nn.Module):
    """An encoder from elsewhere that never learns: without gradients, and always in evaluation
    mode. module(batch) -> [B, width]."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module.requires_grad_(False).eval()
        start, end, one = torch.tensor([[BOS]]), torch.tensor([[EOS]]), torch.tensor([1])
        nothing = Batch(end, start, torch.cat([start, end], 1), one, one + 1)
        if (shape := self.module(nothing).shape)[:-1] != (1,):
            raise ValueError(f"an encoder makes [B, E] of a batch, this one {list(shape)} of one")
        self.width: int = shape[-1]

    @classmethod
    def found(cls, path: str, task: Task) -> "Frozen":
        """By the factory at a path package.module:factory, a function of the task. Raises
        ValueError where there is none."""
        module, _, name = path.partition(":")
        try:
            factory = getattr(import_module(module), name)
            made = factory(task)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path!r} is not package.module:factory of an encoder: {error}"
            ) from error
        if not isinstance(made, nn.Module):
            raise ValueError(f"{path!r} makes a {type(made).__name__}, no torch.nn.Module")
        return cls(made)

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)

    def forward(self, batch: Batch) -> Tensor:
        return self.module(batch)


class GaussianCodes(nn.Module):
    """A generator that needs no critic: N(mean, diag variance) of the codes that it was shown, and
    N(0, I) until then."""

    def __init__(self, codes: int):
        super().__init__()
        self.sums: Tensor  # [3, D]: how many, their sum, their sum of squares
        self.register_buffer("sums", torch.zeros(3, codes, dtype=torch.float64))

    def show(self, codes: Tensor) -> None:
        """Fit to these [N, D] as well."""
        codes = codes.double()
        self.sums += torch.stack([torch.ones_like(codes), codes, codes.square()]).sum(1)

    def forward(self, u: Tensor) -> Tensor:
        count, total, square = self.sums
        mean = total / count.clamp(min=1)
        variance = torch.where(count > 0, square / count.clamp(min=1) - mean.square(), 1)
        return (mean + variance.clamp(min=0).sqrt() * u).to(u.dtype)


def perceptron(inputs: int, hidden: int, outputs: int, bias: bool = True) -> nn.Sequential:
    """Two hidden layers of leaky ReLU; bias: that of the outputs, of which a critic learns nothing,
    since only differences of its scores count."""
    return nn.Sequential(
        *(nn.Linear(inputs, hidden), nn.LeakyReLU(0.2)),
        *(nn.Linear(hidden, hidden), nn.LeakyReLU(0.2)),
        nn.Linear(hidden, outputs, bias=bias),
    )


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, made: Tensor) -> Tensor:
    """E (|grad f(z)| - 1)^2 at points z uniform on the lines between the pairs of real and made
    codes [N, D] (Gulrajani et al., NeurIPS 2017), a scalar."""
    z = torch.lerp(real, made, torch.rand_like(real[:, :1])).detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(z).sum(), z, create_graph=True)
    return (slope.norm(dim=1) - 1).square().mean()


def critic_loss(
    critic: Callable[[Tensor], Tensor], real: Tensor, made: Tensor, penalty: float
) -> tuple[Tensor, Tensor]:
    """E f(made) - E f(real) + penalty E (|grad f| - 1)^2, what a critic f of codes [N, D] lowers
    (Gulrajani et al., NeurIPS 2017); and without the penalty, where its negative estimates the
    Wasserstein distance that the generator lowers."""
    apart = critic(made).mean() - critic(real).mean()
    return apart + penalty * gradient_penalty(critic, real, made), apart
