"""Where the encoder thinks that a code is, and where it is: the plane of He et al. (ICLR 2019).

The true posterior p(z|x), proportional to p(x|z) p(z), of a code of one or two dimensions is a sum
over a grid. Its mean is the truth, that of q(z|x) what the encoder makes of it. Where all truths
lie at 0 the decoder has dropped the code (model collapse); where the truths differ and q's means
lie at 0, the encoder lags (inference collapse). B sentences, D dimensions, G points a side; nats.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmark.api import Batch, LatentModel
from benchmark.compose import UserError
from benchmark.diagnosis.sentences import batches, room
from benchmark.evaluate import Rows, SplitLike, by_length, subset
from benchmark.models.gaussian import gaussian_log_density, kl_to_standard, standard_log_density

GRIDS = {1: (20.0, 401), 2: (8.0, 41)}  # by D: half a side and points; of He et al. the first
MOST_UNITS = max(GRIDS)
LOOKS = 3  # at a sentence, each in the box that holds what the one before found
FLOOR = -20.0  # log density below its peak from which a point is no part of that
EDGE = math.log(1e-6)  # share of the posterior at the outermost points, at most
AGREE = 0.01  # nats, and units of z: how near every other point must come to all


class Truth(NamedTuple):
    """p(z|x) of B sentences, by quadrature. log_px, rate and resolved: [B]."""

    mean: Tensor  # [B, D]
    log_px: Tensor
    rate: Tensor  # KL(p(z|x) || p(z))
    resolved: Tensor  # whether the grid is fine and wide enough


@torch.no_grad()
def points(
    model: LatentModel, split: SplitLike, device: torch.device, sentences: int = 500
) -> dict[str, Any]:
    """The two means of some sentences, `truth` and `encoder` [n, D], and the mean rates
    KL(p(z|x) || p(z)) and KL(q(z|x) || p(z)), of a model in evaluation mode. unresolved: sentences
    whose true posterior the grid may miss. Raises UserError."""
    require_gaussian(model, split, device)
    if model.units > MOST_UNITS:
        raise UserError(f"a plane has one or two dimensions; this code has {model.units}.")
    rows = subset(split, "plane", sentences)
    found = truths(model, split, rows, device)
    mean, variance = (
        torch.cat(column)
        for column in zip(
            *(moments(model, batch) for batch in few(split, rows, device, 1)), strict=True
        )
    )
    rate = kl_to_standard(mean, variance.log()).sum(-1)
    return {
        "truth": found.mean.tolist(),
        "encoder": mean.tolist(),
        "rate": {"truth": float(found.rate.mean()), "encoder": float(rate.mean())},
        "unresolved": int((~found.resolved).sum()),
    }


def truths(model: LatentModel, split: SplitLike, rows: Rows, device: torch.device) -> Truth:
    """Of these sentences, the shortest first."""
    size = GRIDS[model.units][1] ** model.units
    parts = [truth(model, batch) for batch in few(split, rows, device, size)]
    return Truth(*(torch.cat(column) for column in zip(*parts, strict=True)))


def truth(model: LatentModel, batch: Batch) -> Truth:
    """The true posteriors of the batch, prior N(0, I).

    The first grid is [-20, 20] at steps of 0.1 (He et al. 2019), or [-8, 8] at steps of 0.4 on
    each of two sides. A sentence that it does not resolve is given another of as many points, in
    the box of those whose density is within e^-20 of the peak. A grid resolves if every other point
    alone gives the same p(x) and mean, and if next to nothing lies at its edge.
    """
    half, count = GRIDS[model.units]
    lowest = torch.full((len(batch), model.units), -half, device=batch.targets.device).double()
    highest, index = -lowest, torch.arange(count, device=lowest.device)
    nodes = torch.cartesian_prod(*[index] * model.units).view(-1, model.units)  # [G^D, D]
    outer = ((nodes == 0) | (nodes == count - 1)).any(1)
    even = (nodes % 2 == 0).all(1)
    for _ in range(LOOKS):
        step = (highest - lowest) / (count - 1)  # [B, D]
        z = lowest[:, None] + nodes * step[:, None]  # [B, G^D, D]
        likelihood = score(model, batch, z)
        density = likelihood + standard_log_density(z) + step.log().sum(-1, keepdim=True)
        log_px, mean = integrate(density, z)
        halved, mean_of_half = integrate(density[:, even], z[:, even])
        fine = (halved + model.units * math.log(2) - log_px).abs() < AGREE
        fine &= ((mean_of_half - mean).abs() < AGREE).all(1)
        fine &= density[:, outer].logsumexp(1) - log_px < EDGE
        if fine.all():
            break
        inside = (density > density.amax(1, keepdim=True) + FLOOR)[..., None]
        low = z.masked_fill(~inside, math.inf).amin(1) - 2 * step
        high = z.masked_fill(~inside, -math.inf).amax(1) + 2 * step
        lowest = torch.where(fine[:, None], lowest, low)
        highest = torch.where(fine[:, None], highest, high)
    # a point without density has no part in the mean, though its likelihood be -inf
    weight = (density - log_px[:, None]).exp()
    rate = torch.where(weight > 0, weight * likelihood, 0).sum(1) - log_px
    return Truth(mean, log_px, rate, fine)


def integrate(density: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the sum [B] and mean [B, D] of log densities [B, G] at points [B, G, D]."""
    log_sum = density.logsumexp(1)
    return log_sum, ((density - log_sum[:, None]).exp()[..., None] * z).sum(1)


def score(model: LatentModel, batch: Batch, z: Tensor) -> Tensor:
    """[B, K] in float64, `log_px` of codes [B, K, D] few enough at a time."""
    size = room(batch.targets.device, batch.targets.numel())
    dtype = next((p.dtype for p in model.parameters()), z.dtype)
    return torch.cat(
        [model.log_px(batch, part.to(dtype)).double() for part in z.split(size, dim=1)], dim=1
    )


# -- what all that looks at one Gaussian code a sentence needs ----------------------------------


def few(split: SplitLike, rows: Rows, device: torch.device, codes: int) -> Iterator[Batch]:
    """Batches of one length each, the shortest first, that the decoder scores at once under so many
    codes a sentence."""
    for length, same in by_length(split, rows):
        for _, batch in batches(split, same, room(device, length * codes), device):
            yield batch


def moments(model: LatentModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(z|x), [B, D] each."""
    found = model.posterior(batch)
    assert found is not None and len(found) == 2
    return found


def require_gaussian(model: LatentModel, split: SplitLike, device: torch.device) -> None:
    """Raises UserError unless p(z) = N(0, I) and q(z|x) is a Gaussian of known moments."""
    if model.latent != "global":
        raise UserError(
            f"this is measured of one code a sentence; the model's is {model.latent!r}."
        )
    _, batch = next(batches(split, subset(split, "plane", 1), 1, device))
    draw, found = model.draw(batch), model.posterior(batch)
    if found is None:
        raise UserError("the posterior of this model has no mean and variance.")
    z, (mean, variance) = draw.z, (value[:, None] for value in found[:2])
    assert z is not None
    for said, normal, whose in (
        (draw.log_pz, standard_log_density(z), "prior is not N(0, I)"),
        (draw.log_qz, gaussian_log_density(z, mean, variance.log()), "posterior is not Gaussian"),
    ):
        if not torch.allclose(said, normal.to(said.dtype), rtol=1e-3, atol=1e-3):
            raise UserError(f"this is measured of Gaussian codes; this model's {whose}.")
