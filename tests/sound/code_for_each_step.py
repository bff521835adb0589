"""Sound: a code for each step, its prior a function of the history (the contract's tests, 2026)."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.api import BOS, EOS, PAD, Batch, Draw, LatentModel, Recipe, Task, register
from benchmark.models import gaussian_log_density

SIZE = 8


class Decoder(nn.Module):
    """The prior of step t reads z_1..t-1 and the words before; the word of step t also z_t."""

    def __init__(self, vocab_size: int, channels: int):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, SIZE)
        self.cell = nn.LSTMCell(SIZE + channels, SIZE)
        self.prior = nn.Linear(SIZE, 2 * channels)
        self.output = nn.Linear(SIZE + channels, vocab_size)


class Steps(LatentModel):
    latent = "sequence"
    why_no_log_q = "codes have as many steps as their sentence"

    def __init__(self, vocab_size: int, channels: int):
        super().__init__()
        self.units, self.decoder = channels, Decoder(vocab_size, channels)
        self.encoder = nn.Sequential(nn.Embedding(vocab_size, SIZE), nn.Linear(SIZE, 2 * channels))

    def parts(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "decoder": self.decoder}

    def walk(self, batch: Batch, k: int, codes: Tensor | None = None) -> dict[str, Tensor]:
        """Step by step, [B, K, T, ...] each: with codes handed in, or drawn."""
        d, (b, steps) = self.decoder, batch.inputs.shape
        state = h, _ = batch.inputs.new_zeros(2, b * k, SIZE).float().unbind()
        words = d.embed(batch.inputs).repeat_interleave(k, 0)
        found = self.encoder(batch.source[:, 1:]).repeat_interleave(k, 0).chunk(2, -1)
        seen: dict[str, list[Tensor]] = {}
        for t in range(steps):
            (m, s), (pm, ps) = (p[:, t] for p in found), d.prior(state[0]).chunk(2, -1)
            if codes is None:
                z = m + (0.5 * s).exp() * batch.normal(k, self.units).flatten(0, 1)
            else:
                z = codes[:, :, t].flatten(0, 1)
            kl = 0.5 * (((m - pm).square() + s.exp()) / ps.exp() + ps - s - 1)
            scores = F.log_softmax(d.output(torch.cat([h, z], -1)), -1)
            step = {"z": z, "kl": kl, "pz": gaussian_log_density(z, pm, ps)}
            step |= {"qz": gaussian_log_density(z, m, s)}
            step |= {"mean": (m - pm) / (0.5 * ps).exp(), "variance": (s - ps).exp()}
            target = batch.targets[:, t].repeat_interleave(k)
            step |= {"px": scores.gather(1, target[:, None])[:, 0]}
            for name, value in step.items():
                seen.setdefault(name, []).append(value.unflatten(0, (b, k)))
            state = h, _ = d.cell(torch.cat([words[:, t], z], -1), state)
        return {name: torch.stack(values, 2) for name, values in seen.items()}

    def draw(self, batch: Batch, k: int = 1) -> Draw:
        seen, mask = self.walk(batch, k), batch.mask[:, None]
        px, pz, qz = ((seen[name] * mask).sum(2) for name in ("px", "pz", "qz"))
        kl = (seen["kl"] * mask[..., None]).sum(2).mean(1)
        return Draw(z=seen["z"], log_px=px, log_pz=pz, log_qz=qz, kl=kl)

    def log_px(self, batch: Batch, z: Tensor | None) -> Tensor:
        assert z is not None
        return (self.walk(batch, z.shape[1], z)["px"] * batch.mask[:, None]).sum(2)

    def posterior(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        seen = self.walk(batch, 1)
        return seen["mean"][:, 0], seen["variance"][:, 0], batch.mask

    @torch.no_grad()
    def sample(self, n: int, *, max_length: int, temperature: float = 1.0) -> Tensor:
        d, token, written = self.decoder, torch.full((n,), BOS), []
        state, done = (torch.zeros(n, SIZE), torch.zeros(n, SIZE)), torch.zeros(n).bool()
        for _ in range(max_length):
            mean, log_variance = d.prior(state[0]).chunk(2, -1)
            z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            logits = d.output(torch.cat([state[0], z], -1)).index_fill(
                1, torch.tensor([PAD, BOS]), -torch.inf
            )
            odds = (logits / max(temperature, 1e-6)).softmax(-1)
            fed, token = token, torch.multinomial(odds, 1)[:, 0]
            state = d.cell(torch.cat([d.embed(fed), z], -1), state)
            written.append(token.masked_fill(done, PAD))
            done |= token == EOS
        return torch.stack(written, 1)

    def reconstruct(self, batch: Batch, *, max_length: int) -> Tensor:
        return self.sample(len(batch), max_length=max_length)


@register("code_for_each_step")
@dataclass
class CodeForEachStep:
    """A code of few channels beside every word."""

    channels: int = field(default=2, metadata={"other": 3})
    """Of each step's code."""

    def recipe(self, task: Task) -> Recipe:
        return Recipe(model=Steps(task.vocab_size, self.channels))
