"""Why a latent unit died: closed forms on the moments of its posteriors, and what they mean.

A unit's posterior is N(mu(x), sigma^2(x)), its prior N(0, 1); N sentences, D units; nats. The rate
R = E KL falls into three parts, each at least 0 (with 1/N variances exactly so):

    S = Var_x mu, N = E_x sigma^2                   signal and noise
    C = 1/2 ln(1 + S/N)                             capacity of the means
    H = 1/2 (ln N - E_x ln sigma^2)                 what sits in the variances
    G = KL(N(E mu, S + N) || N(0, 1))               mismatch of the aggregate with the prior

U = C + H is an upper bound on I(x; z), for a Gaussian has the most entropy at a given variance;
J = U - I is how far from Gaussian the aggregate is. S is the statistic behind active units (Burda
et al. 2016).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmark.estimators import Array, log_mean_exp


@dataclass(frozen=True)
class Thresholds:
    """From where a quantity counts."""

    signal: float = 0.01  # of S: Burda et al.'s for an active unit
    information: float = 0.05  # nats, of U and G; of I the half
    read: float = 0.05  # nats a sentence, of the read-out

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"the threshold {name} must be above 0, not {value}")


@dataclass(frozen=True)
class Parts:
    """[D] each: of the rate, see the module."""

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


def parts(mean: Array, variance: Array) -> Parts:
    """The rate's parts from the posteriors' moments, [N, D] each."""
    mean, variance = np.asarray(mean, float), np.asarray(variance, float)
    centre, signal, noise = mean.mean(0), mean.var(0), variance.mean(0)
    total, logs = signal + noise, np.log(variance).mean(0)
    return Parts(
        signal=signal,
        noise=noise,
        rate=0.5 * (total + centre**2 - 1 - logs),
        capacity=0.5 * np.log1p(signal / noise),
        heterogeneity=0.5 * (np.log(noise) - logs),
        mismatch=0.5 * (total + centre**2 - 1 - np.log(total)),
    )


def information(codes: Array, mean: Array, variance: Array) -> Array:
    """[D], I(x; z_d) under q: a code's density under its own posterior over that under the mixture
    of all N, own included, hence at most ln N. codes, mean, variance: [N, D]; costs N^2 D."""
    found = np.empty(codes.shape[1])
    for d, (z, m, v) in enumerate(zip(codes.T, mean.T, variance.T, strict=True)):
        density = -0.5 * ((z[:, None] - m) ** 2 / v + np.log(2 * math.pi * v))  # [N codes, N]
        found[d] = (density.diagonal() - log_mean_exp(density)).mean()
    return found


def verdicts(found: Parts, told: Array, read: Array, at: Thresholds) -> list[str]:
    """Of each unit one of

    active    written and read
    weak      the posterior is nearly the same for all x
    noisy     its means move, and their noise drowns them
    unread    written, and the decoder does not use it
    outliers  a few sentences make all of its signal

    told: [D], I; read: [D], the read-out, nats a sentence.
    """

    def of(signal: float, bound: float, told: float, read: float) -> str:
        if bound < at.information:
            return "weak" if signal < at.signal else "noisy"
        if read < at.read:
            return "unread"
        return "active" if told >= at.information / 2 else "outliers"

    return [of(*unit) for unit in zip(found.signal, found.bound, told, read, strict=True)]


def flags(found: Parts, at: Thresholds) -> list[list[str]]:
    """Of each unit, besides: `off prior`, where the rate pays for an aggregate that is not the
    prior rather than for information; `low scale`, where active units would overlook it."""
    off: NDArray[np.bool_] = (found.mismatch >= at.information) & (
        (found.bound < at.information) | (found.mismatch > found.bound)
    )
    low = (found.signal < at.signal) & (found.bound >= at.information)
    return [
        ["off prior"] * bool(o) + ["low scale"] * bool(small)
        for o, small in zip(off, low, strict=True)
    ]
