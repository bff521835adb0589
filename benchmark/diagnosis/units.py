"""What each latent unit carries, what of it is read, and how stable it is."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.api import UNK, Batch, Draw, LatentModel
from benchmark.compose import UserError
from benchmark.config import Diagnosis
from benchmark.diagnosis import parts
from benchmark.diagnosis.parts import Parts
from benchmark.diagnosis.replay import Probe
from benchmark.diagnosis.sentences import Mean, batches, codes, noisy, pairs, room
from benchmark.estimators import Array
from benchmark.evaluate import Moments, Rows, SplitLike, by_length, spread_and_noise, subset

NOISE = (0.0, 0.25, 0.5, 1.0)  # of the posterior's own, in the counterfactual
READ = ("read", "alone", "shared")  # what the decoder has of a unit
NUISANCES = ("dropout", "tokens")
MOST = 2_000  # sentences whose mixtures tell a unit's information


def rate(
    model: LatentModel, split: SplitLike, device: torch.device, delta: float
) -> tuple[Parts, Array | None, Array]:
    """The parts of each unit's rate; its information, [D], None of a code with steps and where the
    posterior's means are not the codes' own; and the epsilon, [D], see `parts.epsilon`, from which
    on it has collapsed. This and the mismatch are NaN where units share one rate. Raises UserError
    where the model has no posteriors."""
    moments, own_means = Moments(), True
    rates = np.empty((len(split), model.units))
    found = np.empty((3, len(split), model.units)) if model.latent == "global" else None
    for length, rows in by_length(split, np.arange(len(split))):
        for part, batch in batches(split, rows, room(device, length), device):
            posterior = model.posterior(batch)
            if posterior is None:
                raise UserError("the posterior of this model has no mean and variance.")
            moments.add(*posterior)
            draw = model.draw(noisy(batch, split, part))
            rates[part] = draw.kl.double().cpu().numpy()
            own_means = own_means and drawn_about(posterior, draw)
            if found is not None and own_means:
                assert draw.z is not None
                for column, value in zip(found, (*posterior[:2], draw.z[:, 0]), strict=True):
                    column[part] = value.double().cpu().numpy()
    sums = moments.fetch()
    assert sums is not None
    told = None
    if found is not None and own_means:
        mean, variance, code = found[:, subset(split, "mi", MOST)]
        told = parts.information(code, mean, variance)
    split_up, epsilon = parts.parts(sums, rates.mean(0)), parts.epsilon(rates, delta)
    if not model.own_rates:
        unknown = np.full(model.units, np.nan)
        return replace(split_up, mismatch=unknown), told, unknown
    return split_up, told, epsilon


def read_out(
    model: LatentModel, split: SplitLike, rows: Rows, device: torch.device
) -> tuple[dict[str, Array], dict[str, float] | None]:
    """What the decoder has of one unit alone, at all of its steps, over the sentences that have
    another one of their length, a partner: means and standard errors [D].

    read, read_error: what log p(x|z) loses when the unit, and no other, is the partner's. alone,
    alone_error: what the partner's code gains when the unit, and no other, is the sentence's own.
    shared, shared_error: by how much that is more than what is lost, as it is where others say the
    same. And the distortion by the share of noise that is left in z, None where the posterior's
    means are not the codes' own. Raises UserError where no sentence has a partner."""
    sums = {name: Mean() for name in READ}
    damped: list[Tensor] = []
    own_means = True
    for length, same in pairs(split, rows, "units"):
        code = codes(model, split, same, device)
        before = code.roll(1, 0)
        unit = torch.eye(model.units, dtype=torch.bool, device=device)
        unit = unit.view(len(unit), *[1] * (code.dim() - 2), -1)
        kept = code.new_tensor(NOISE).view(-1, *[1] * (code.dim() - 1))
        size, start = room(device, length * (2 * model.units + len(NOISE))), 0
        drops: list[Tensor] = []
        gains: list[Tensor] = []
        for part, batch in batches(split, same, size, device):
            here = slice(start, start := start + len(part))
            own, other = code[here, None], before[here, None]
            mixed = [own, torch.where(unit, other, own), other, torch.where(unit, own, other)]
            scores = model.log_px(batch, torch.cat(mixed, 1)).double()
            without, only = scores.chunk(2, 1)
            drops.append(without[:, :1] - without[:, 1:])
            gains.append(only[:, 1:] - only[:, :1])
            posterior, draw = model.posterior(batch), model.draw(noisy(batch, split, part))
            own_means = own_means and posterior is not None and drawn_about(posterior, draw)
            if own_means:
                assert posterior is not None
                levels = torch.lerp(posterior[0].to(own.dtype)[:, None], own, kept)
                damped.append(model.log_px(batch, levels).double())
        lost, won = torch.cat(drops), torch.cat(gains)
        for mean, values in zip(sums.values(), (lost, won, won - lost), strict=True):
            mean.add(values)
    distortion = None
    if own_means:
        costs = -torch.cat(damped).mean(0)
        distortion = {str(c): cost for c, cost in zip(NOISE, costs.tolist(), strict=True)}
    columns = {}
    for name, mean in sums.items():
        columns[name], columns[f"{name}_error"], _ = mean.fetch()
    return columns, distortion


def drawn_about(posterior: tuple[Tensor, ...], draw: Draw) -> bool:
    """Whether these are the moments that the codes were drawn with, under the same noise: they may
    be relative to a prior, and then the density of the codes differs."""
    assert draw.z is not None
    z, mean, variance = (value.double() for value in (draw.z[:, 0], *posterior[:2]))
    density = -0.5 * ((2 * math.pi * variance).log() + (z - mean) ** 2 / variance)
    if len(posterior) == 3:
        density = density * posterior[2][..., None]
    told = draw.log_qz[:, 0].double()
    return torch.allclose(density.flatten(1).sum(1), told, rtol=0.01, atol=0.1)


def drift(split: SplitLike, device: torch.device, sentences: int) -> Probe:
    """A probe of training: E (mu_now - mu_before)^2 / 2S, [D], by how much of their variance over
    these sentences a unit's means have moved since the look before; None at the first."""
    rows = subset(split, "drift", sentences)
    before: list[Tensor] = []

    @torch.no_grad()
    def look(model: LatentModel, step: int) -> dict[str, list[float | None] | None]:
        means = []
        for length, same in by_length(split, rows):
            for _, batch in batches(split, same, room(device, length), device):
                posterior = model.posterior(batch)
                if posterior is None:
                    raise UserError("the posterior of this model has no mean and variance.")
                means.append(posterior[0].double())
        now = torch.cat(means)
        before.append(now)
        if len(before) == 1:
            return {"drift": None}
        moved = (now - before.pop(0)).square().mean(0) / (2 * now.var(0, unbiased=False))
        return {"drift": parts.plain(moved.cpu().numpy())}

    return look


# -- what moves a posterior besides the sentence --------------------------------------------------


def reliability(
    model: LatentModel, split: SplitLike, rows: Rows, device: torch.device, at: Diagnosis
) -> dict[str, Array | None]:
    """The share of a unit's variance that is the sentence's, [D], of its mean by the name of the
    nuisance, of its log variance by that name and "_scale": dropout, the masks of the encoder's;
    tokens, a share of the words blotted out. None where a nuisance moves nothing."""
    chance = torch.Generator().manual_seed(0)

    def blotted(batch: Batch) -> Batch:
        hit = torch.rand(batch.source.shape, generator=chance).to(device) < at.blotted
        return batch.but(source=batch.source.masked_fill(hit & (batch.source > UNK), UNK))

    found: dict[str, Array | None] = {}
    with _dropping(model, device):
        found |= _stable(model, split, rows, device, at.draws, "dropout", lambda batch: batch)
    found |= _stable(model, split, rows, device, at.draws, "tokens", blotted)
    return found


@contextmanager
def _dropping(model: LatentModel, device: torch.device) -> Iterator[None]:
    """The model's dropout at work, with masks that are the same every time, and nothing else of
    training: running statistics stay as they are."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        dropout = [module for module in model.modules() if isinstance(module, nn.Dropout)]
        for module in dropout:
            module.train()
        try:
            yield
        finally:
            for module in dropout:
                module.eval()


def _stable(
    model: LatentModel,
    split: SplitLike,
    rows: Rows,
    device: torch.device,
    draws: int,
    name: str,
    disturb: Callable[[Batch], Batch],
) -> dict[str, Array | None]:
    """`reliability` under one nuisance."""
    moments = {name: Moments(), f"{name}_scale": Moments()}
    for length, same in by_length(split, rows):
        for part, batch in batches(split, same, room(device, length), device):
            found = [model.posterior(noisy(disturb(batch), split, part)) for _ in range(draws)]
            means, variances, *mask = zip(*(p for p in found if p is not None), strict=True)
            columns = torch.stack(means).double(), torch.stack(variances).double().log()
            for streamed, values in zip(moments.values(), columns, strict=True):
                streamed.add(values.mean(0), values.var(0), *(m[0] for m in mask))
    shares: dict[str, Array | None] = {}
    for key, streamed in moments.items():
        sums = streamed.fetch()
        assert sums is not None
        between, within = spread_and_noise(sums)
        told = within.any() and len(rows) > 1
        shares[key] = parts.reliability(between, within, draws) if told else None
    return shares
