"""Why a latent unit died: closed forms on the moments of its posteriors, and what they mean.

A unit's posterior is N(mu(x), sigma^2(x)), its prior N(0, 1); N sentences, D units; nats a
sentence. The rate R = E KL falls into three parts, each at least 0 (with 1/N variances exactly so):

    S = Var_x mu, N = E_x sigma^2                   signal and noise
    C = 1/2 ln(1 + S/N)                             capacity of the means
    H = 1/2 (ln N - E_x ln sigma^2)                 what sits in the variances
    G = KL(N(E mu, S + N) || N(0, 1))               mismatch of the aggregate with the prior

U = C + H is an upper bound on I(x; z), for a Gaussian has the most entropy at a given variance;
J = U - I is how far from Gaussian the aggregate is. S is the statistic behind active units (Burda
et al. 2016).

A channel with a code for each step has these at every step, over the sentences that reach it, and
their sum is taken. What is left of the rate takes the place of G: a posterior relative to a prior
that follows its history leaves G's sum; another's may be below 0, for its steps share information.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmark.config import Diagnosis
from benchmark.estimators import Array, log_mean_exp


@dataclass(frozen=True)
class Parts:
    """[D] each: of the rate, see the module. Signal and noise are means over steps."""

    signal: Array
    noise: Array
    rate: Array
    capacity: Array
    heterogeneity: Array
    mismatch: Array

    @property
    def bound(self) -> Array:
        """U = C + H."""
        return self.capacity + self.heterogeneity


def parts(sums: Array, rate: Array) -> Parts:
    """The rate's parts from the posteriors' moments, see `evaluate.Moments`, and the rate [D].

    sums: [5, T, D], at each step over the sentences that reach it: their number, and the sums of
    mean, squared mean, variance and log variance. A global code has one step.
    """
    mean, square, noise, logs = sums[1:] / np.maximum(sums[0], 1)  # [T, D] each
    noise = np.where(sums[0] > 0, noise, 1)  # of a step that no sentence reaches
    signal = np.maximum(square - mean**2, 0)
    reached = sums[0] / sums[0, 0]  # the share of the sentences
    capacity = (reached * 0.5 * np.log1p(signal / noise)).sum(0)
    heterogeneity = (reached * 0.5 * (np.log(noise) - logs)).sum(0)
    return Parts(
        signal=np.average(signal, axis=0, weights=sums[0]),
        noise=np.average(noise, axis=0, weights=sums[0]),
        rate=rate,
        capacity=capacity,
        heterogeneity=heterogeneity,
        mismatch=rate - capacity - heterogeneity,
    )


def information(codes: Array, mean: Array, variance: Array) -> Array:
    """[D], I(x; z_d) under q: a code's density under its own posterior over that under the mixture
    of all N, own included, hence at most ln N. codes, mean, variance: [N, D]; costs N^2 D."""
    found = np.empty(codes.shape[1])
    for d, (z, m, v) in enumerate(zip(codes.T, mean.T, variance.T, strict=True)):
        density = -0.5 * ((z[:, None] - m) ** 2 / v + np.log(2 * math.pi * v))  # [N codes, N]
        found[d] = (density.diagonal() - log_mean_exp(density)).mean()
    return found


def epsilon(rates: Array, delta: float) -> Array:
    """[D], from which epsilon on a unit is (epsilon, delta)-collapsed, that is its KL below epsilon
    for at least a share 1 - delta of the sentences (Lucas et al. 2019); rates: [N, D], that KL."""
    return np.quantile(rates, 1 - delta, axis=0, method="inverted_cdf")


def verdicts(
    found: Parts, at: Diagnosis, told: Array | None, read: Array, read_error: Array
) -> list[str]:
    """Of each unit one of

    active     written and read
    weak       the posterior is nearly the same for all x
    noisy      its means move, and their noise drowns them
    unread     written, and the decoder does not use it
    undecided  written; too few sentences say whether it is used: two standard errors span it
    outliers   a few sentences make all of its signal

    told: [D], I, or None where it is not known; read, read_error: [D], the read-out.
    """

    def of(signal: float, bound: float, told: float, read: float, error: float) -> str:
        if bound < at.information:
            return "weak" if signal < at.signal else "noisy"
        if read + 2 * error < at.read:
            return "unread"
        if not read - 2 * error >= at.read:
            return "undecided"
        return "active" if told >= at.information / 2 else "outliers"

    told = np.full_like(read, np.inf) if told is None else told
    units = zip(found.signal, found.bound, told, read, read_error, strict=True)
    return [of(*unit) for unit in units]


def flags(
    found: Parts, at: Diagnosis, reliability: Array, decoder: Mapping[str, Array]
) -> list[list[str]]:
    """Of each unit, besides: `off prior`, where the rate pays for an aggregate that is not the
    prior rather than for information; `low scale`, where active units would overlook it;
    `unstable`, where what moves its mean is not the sentence; `redundant`, where the decoder has
    something of it alone, and more than it would miss, both by two standard errors, and would not
    for certain miss it: others say the same. reliability: [D], the least of those that there are,
    or NaN; decoder: of `units.read_out`."""
    written = found.bound >= at.information
    missed, gained, more = (
        decoder[name] - 2 * decoder[f"{name}_error"] for name in ("read", "alone", "shared")
    )
    flagged = {
        "off prior": (found.mismatch >= at.information) & (found.mismatch > found.bound),
        "low scale": (found.signal < at.signal) & written,
        "unstable": (reliability < at.reliability) & ((found.signal >= at.signal) | written),
        "redundant": written & (gained >= at.read) & (more > 0) & ~(missed >= at.read),
    }
    return [[name for name, units in flagged.items() if units[d]] for d in range(len(found.signal))]


def reliability(between: Array, within: Array, draws: int) -> Array:
    """[D], the intra-class correlation B / (B + W): the share of a quantity's variance that is the
    sentence's. between: [D], the variance over sentences of its mean over `draws` draws of a
    nuisance, which holds W / draws itself; within: [D], W. NaN where nothing moves at all."""
    own = np.maximum(between - within / draws, 0)
    with np.errstate(invalid="ignore"):
        return own / (own + within)


def plain(column: Array | None) -> list[float | None] | None:
    """For JSON, which has no NaN."""
    if column is None:
        return None
    return [float(value) if np.isfinite(value) else None for value in column]
