"""Does the encoder lag, or has the decoder nothing to offer?

The decoder is frozen, and each sentence's own q = N(mu, sigma^2) climbs its ELBO, once from what
the encoder says (its gain is the SVI gap, a lower bound on the cost of amortisation: Kim et al.
2018, Cremer et al. 2018) and once from the prior. If the ELBO rises and the KL with it, there was
something to encode and the encoder missed it (He et al. 2019); if the KL stays at 0 from both
starts, there was not. B sentences, D units, K samples; nats a sentence.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.api import Batch, LatentModel
from benchmark.diagnosis.plane import MOST_UNITS, few, moments, require_gaussian, score, truths
from benchmark.estimators import Array, effective_share, log_mean_exp, mean_and_error, pareto_shape
from benchmark.evaluate import BAD_SHAPE, NOTHING, Rows, SplitLike, subset
from benchmark.models.gaussian import gaussian_log_density, kl_to_standard, standard_log_density
from benchmark.models.refined import frozen

STARTS = ("encoder", "prior")
RATE, BETAS = 0.2, (0.8, 0.95)  # of Adam, whose rate falls linearly to 0
SAMPLES = 8  # of a step, in antithetic pairs
FRESH = 64  # on which the ELBO is measured, the same wherever it is: no step has seen them
BACKWARD = 4  # what a backward pass takes of memory, in forward passes
WIDER = 1.2  # than the refined q, in standard deviations, is what importance samples are drawn from
TRUSTED = 0.05  # share of sentences, at most, whose importance weights have too heavy a tail
Gaussians = tuple[Tensor, Tensor]
"""Mean and log variance of q from both `STARTS`, [B, 2, D] each."""


@torch.no_grad()
def lag(
    model: LatentModel,
    split: SplitLike,
    device: torch.device,
    sentences: int = 100,
    *,
    steps: Sequence[int] = (20, 100),
    samples: int = 1000,
    least: float = NOTHING,
    share: float = 0.25,
) -> dict[str, Any]:
    """The section, of a model in evaluation mode. Raises UserError.

    encoder, prior: by start, at 0 and at each of `steps`, in rising order and along one path, the
    `kl` and, less what the encoder had, the `elbo` and the `rise` of the KL, [mean, standard error]
    of paired differences; `units`, the mean rise of each unit's KL at the end. basins: by how much
    the ELBO of the prior's path ends above that of the encoder's; below 0 it may only not have
    arrived. least and share: see `verdict`.

    posterior: of p(z|x), `truth`, KL(p(z|x) || p(z)) = E log p(x|z) - log p(x). importance: by so
    many weighted samples, half of them from each path's end; gap, log p(x) less the encoder's ELBO;
    ess, the median effective sample size; bad, the share of sentences whose weights have a Pareto k
    above 0.7, and trusted, whether these are few. Samples know of no mode that neither path has
    met; quadrature, of one or two units alone, does.
    """
    require_gaussian(model, split, device)
    rows = subset(split, "lag", sentences)
    elbo, kl, weighed = climbed(model, split, rows, device, steps, samples)
    found: dict[str, Any] = {"sentences": len(rows), "steps": [0, *steps]}
    found["climb"] = {"optimiser": "adam", "rate": RATE, "samples": SAMPLES, "fresh": FRESH}
    for start, its_elbo, its_kl in zip(STARTS, elbo, kl, strict=True):
        total = its_kl.sum(-1)
        found[start] = {
            "kl": total.mean(1).tolist(),
            "elbo": [_told(now - elbo[0, 0]) for now in its_elbo],
            "rise": [_told(now - kl[0, 0].sum(-1)) for now in total],
            "units": (its_kl[-1] - kl[0, 0]).mean(0).tolist(),
        }
    found["basins"] = _told(elbo[1, -1] - elbo[0, -1])
    true_kl, log_px, effective, shape = weighed
    bad = float((shape > BAD_SHAPE).mean())
    weighted = {
        "truth": _told(true_kl),
        "gap": _told(log_px - elbo[0, 0]),
        "samples": samples,
        "ess": samples * float(np.median(effective)),
        "bad": bad,
        "trusted": bad <= TRUSTED,
    }
    by_grid = quadrature(model, split, rows, device)
    found["posterior"] = {"importance": weighted, "quadrature": by_grid}
    return found | {"verdict": verdict(found, least, share)}


def verdict(found: dict[str, Any], least: float = NOTHING, share: float = 0.25) -> str:
    """One of

    encoder lags   from one start the ELBO rises above the encoder's, and the KL by a share of what
                   it reaches, or more
    decoder offers nothing to encode   not so, and from neither start the KL reaches `least` nats
    encoder errs   the ELBO rises by that share of the KL, which itself does not: the code is off
                   rather than missing
    in step        else

    where a rise is one of `least` nats or more, and of two standard errors.
    """

    def rises(difference: list[float], most: float) -> bool:
        mean, error = difference
        return mean > max(least, most) and mean > 2 * error

    ends = [[found[start][key][-1] for key in ("elbo", "rise", "kl")] for start in STARTS]
    if any(rises(elbo, 0) and rises(rise, share * kl) for elbo, rise, kl in ends):
        return "encoder lags"
    if all(kl < least for _, _, kl in ends):
        return "decoder offers nothing to encode"
    return "encoder errs" if any(rises(elbo, share * kl) for elbo, _, kl in ends) else "in step"


def quadrature(
    model: LatentModel, split: SplitLike, rows: Rows, device: torch.device
) -> dict[str, Any] | None:
    """KL(p(z|x) || p(z)) by a grid; None beyond two units."""
    if model.units > MOST_UNITS:
        return None
    known = truths(model, split, rows, device)
    unresolved = int((~known.resolved).sum())
    return {"truth": _told(known.rate.cpu().numpy()), "unresolved": unresolved}


def _told(values: Array) -> list[float]:
    return list(mean_and_error(values))


# -- the climb ------------------------------------------------------------------------------------


def climbed(
    model: LatentModel,
    split: SplitLike,
    rows: Rows,
    device: torch.device,
    steps: Sequence[int],
    samples: int,
) -> tuple[Array, Array, Array]:
    """ELBO [2, 1 + steps, n] and KL [2, 1 + steps, n, D] from both `STARTS`, before the first step
    and after each of `steps`; and [4, n], see `weigh`."""
    elbo, kl, weighed = [], [], []
    with frozen(model):
        for batch in few(split, rows, device, BACKWARD * len(STARTS) * SAMPLES):
            fresh = batch.normal(FRESH, model.units)
            path = [*climb(model, batch, steps)]
            scores = [measure(model, batch, q, fresh) for q in path]
            for found, column in zip((elbo, kl), zip(*scores, strict=True), strict=True):
                found.append(torch.stack(column).double().cpu().numpy())
            weighed.append(weigh(model, batch, path[-1], samples))
    elbo, kl = (np.moveaxis(np.concatenate(found, 1), 2, 0) for found in (elbo, kl))
    return elbo, kl, np.concatenate(weighed, 1)


def climb(model: LatentModel, batch: Batch, steps: Sequence[int]) -> Iterator[Gaussians]:
    """q at the start and after each of `steps`; all noise is the sentences' own."""
    encoder, variance = moments(model, batch)
    mean = torch.stack([encoder, torch.zeros_like(encoder)], 1).requires_grad_()
    log_variance = torch.stack([variance.log(), torch.zeros_like(variance)], 1).requires_grad_()
    moved, last = [mean, log_variance], max(steps)
    ascent = torch.optim.Adam(moved, lr=RATE, betas=BETAS, maximize=True)
    yield mean.detach().clone(), log_variance.detach().clone()
    for step in range(1, last + 1):
        ascent.param_groups[0]["lr"] = RATE * (1 - (step - 1) / last)
        half = batch.normal(SAMPLES // 2, model.units)
        # cuDNN gives no gradient of an LSTM in evaluation mode
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            z = codes((mean, log_variance), torch.cat([half, -half], 1))
            likelihood = model.log_px(batch, z.flatten(1, 2)).view(z.shape[:3]).mean(2)
            total = likelihood.sum() - kl_to_standard(mean, log_variance).sum()
            mean.grad, log_variance.grad = torch.autograd.grad(total, moved)
        ascent.step()
        if step in steps:
            yield mean.detach().clone(), log_variance.detach().clone()


def codes(q: Gaussians, noise: Tensor) -> Tensor:
    """[B, 2, K, D] from noise [B, K, D]."""
    mean, log_variance = (value[:, :, None] for value in q)
    return mean + (0.5 * log_variance).exp() * noise[:, None].to(mean.dtype)


def measure(model: LatentModel, batch: Batch, q: Gaussians, noise: Tensor) -> tuple[Tensor, Tensor]:
    """ELBO [B, 2] and KL [B, 2, D]."""
    z, kl = codes(q, noise), kl_to_standard(*q)
    likelihood = score(model, batch, z.flatten(1, 2)).view(z.shape[:3]).mean(2)
    return likelihood - kl.sum(-1), kl


def weigh(model: LatentModel, batch: Batch, q: Gaussians, samples: int) -> Array:
    """[4, B]: KL(p(z|x) || p(z)), log p(x), and the effective share and Pareto shape of the weights
    of samples from the mixture of both q, widened: too narrow a one would miss the tails."""
    mean, log_variance = q[0], q[1] + 2 * math.log(WIDER)
    z = codes((mean, log_variance), batch.normal(samples // 2, model.units)).flatten(1, 2)
    each = gaussian_log_density(z[:, :, None], mean[:, None], log_variance[:, None])  # [B, K, 2]
    likelihood = score(model, batch, z)
    weights = likelihood + standard_log_density(z) - each.logsumexp(-1) + math.log(len(STARTS))
    posterior = weights.softmax(1)
    log_weights = weights.cpu().numpy()
    log_px = log_mean_exp(log_weights)
    true_kl = (posterior * likelihood).sum(1).cpu().numpy() - log_px
    return np.stack([true_kl, log_px, effective_share(log_weights), pareto_shape(log_weights)])
