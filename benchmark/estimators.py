"""Estimators on scores that are already there: numpy in, numpy out, float64, no model.

Rows are sentences (n of N), columns samples or candidates (K). Everything is in nats.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Array = NDArray[np.float64]


def log_sum_exp(values: Array) -> Array:
    """log of the sum of exponentials over the last axis; NaN where a value is."""
    with np.errstate(invalid="ignore"):
        return np.logaddexp.reduce(values, axis=-1)


def log_mean_exp(log_weights: Array) -> Array:
    """[n], log of the mean weight of each row of [n, K]: the importance-weighted bound of Burda et
    al. (2016)."""
    return log_sum_exp(log_weights) - math.log(log_weights.shape[1])


def log_mean_exp_error(log_weights: Array) -> Array:
    """[n], the standard error of `log_mean_exp`, by the delta method: that of the mean weight as a
    share of it. NaN for one sample."""
    samples = log_weights.shape[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = 1 / effective_share(log_weights) - 1  # the weights' variance over their mean^2
        return np.sqrt(np.maximum(spread, 0) / np.float64(samples - 1))


def effective_share(log_weights: Array) -> Array:
    """[n] in [1/K, 1], the effective sample size 1 / sum w^2 of the normalised weights, over K."""
    log_sum = log_sum_exp(log_weights)
    return np.exp(2 * log_sum - log_sum_exp(2 * log_weights)) / log_weights.shape[1]


def pareto_tail(samples: int) -> int:
    """How many of the largest weights count as the tail (Vehtari et al. 2024)."""
    return math.ceil(min(0.2 * samples, 3 * math.sqrt(samples)))


def pareto_shape(log_weights: Array) -> Array:
    """[n], the shape k-hat of a generalised Pareto tail fitted to each row's largest weights.

    Above 0.7 the importance-weighted estimate cannot be trusted (Vehtari et al. 2024, "Pareto
    smoothed importance sampling"). The fit is drawn to 0.5 by ten pseudo-samples, as there. A row
    whose tail is constant has no tail: -inf. Needs a tail of 5, so K > 20.
    """
    tail = pareto_tail(log_weights.shape[1])
    if tail < 5:
        raise ValueError(f"{log_weights.shape[1]} samples are too few for the shape of a tail")
    weights = np.sort(np.exp(log_weights - log_weights.max(axis=1, keepdims=True)), axis=1)
    excess = weights[:, -tail:] - weights[:, -tail - 1, None]
    shape = np.full(len(excess), -np.inf)
    some = excess[:, -1] > 1e-9  # of the largest weight; less is rounding
    shape[some] = (tail * fit_generalised_pareto(excess[some]) + 10 * 0.5) / (tail + 10)
    return shape


def fit_generalised_pareto(excess: Array) -> Array:
    """[n], the shape k (heavy tails positive) of each row of [n, M], M excesses in rising order.

    The quasi-Bayesian estimator of Zhang and Stephens (2009, "A new and efficient estimation
    method for the generalized Pareto distribution"): theta = -k/sigma is averaged over a grid by
    its profile likelihood, and k follows from theta.
    """
    m = excess.shape[1]
    points = 30 + math.isqrt(m)
    # ties at the cut-off leave zeros below the quartile; the floor keeps the grid finite
    quartile = np.maximum(excess[:, int(m / 4 + 0.5) - 1], 1e-12 * excess[:, -1])
    step = 1 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))
    theta = 1 / excess[:, -1:] + step / (3 * quartile[:, None])  # [n, points]
    k = np.log1p(-theta[:, :, None] * excess[:, None, :]).mean(axis=2)
    profile = m * (np.log(-theta / k) - k - 1)
    weight = np.exp(profile - log_sum_exp(profile)[:, None])
    theta = (weight * theta).sum(axis=1, keepdims=True)
    return np.log1p(-theta * excess).mean(axis=1)


def controlled_mean(
    everywhere: Array, chosen: NDArray[np.intp], values: Array
) -> tuple[float, float]:
    """The mean over N sentences of a quantity known on n of them, and its standard error.

    everywhere: [N], a cheap control e, known for all; chosen: [n] rows; values: [n], the dear
    quantity there. The estimate is mean_n(r) + c mean_N(e) with r = values - c e, the rows having
    been chosen at random. Here c = cov_n(e, values) / var_N(e), within [0, 1]: near 1 where the
    control follows the values, near 0 where it is wild anywhere and would add its own noise, as one
    sample's ELBO is of a model whose weights have heavy tails. Where n = N it is mean(values)
    whatever c is. Its variance over sentences is var(r)/n + (c^2 var(e) + 2 c cov(r, e))/N, which
    is var(values)/N where n = N. NaN for one row.
    """
    control = everywhere[chosen]
    if len(chosen) < 2:
        return float(everywhere.mean() - (control - values).mean()), math.nan
    spread = float(everywhere.var(ddof=1))
    share = float(np.cov(control, values)[0, 1]) / spread if spread > 0 else 0.0
    share = min(max(share, 0.0), 1.0)
    rest = values - share * control
    estimate = float(rest.mean() + share * everywhere.mean())
    together = share**2 * spread + 2 * share * np.cov(rest, control)[0, 1]
    variance = rest.var(ddof=1) / len(chosen) + together / len(everywhere)
    return estimate, math.sqrt(max(float(variance), 0.0))


def mean_and_error(values: Array) -> tuple[float, float]:
    """Mean and its standard error over independent rows; the error is NaN for one row."""
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)


def info_nce(scores: Array, temperature: float = 1.0) -> Array:
    """[n], l_0/tau - log(mean_k exp(l_k/tau)) of each row of scores [n, K], one's own score first.

    With l_k = log p(x|z_k) its mean is a lower bound on I(x; z) for any fixed temperature (van den
    Oord et al. 2018), and each row is at most ln K. A candidate that does not exist is -inf, and K
    is then the row's own. At an infinite temperature every row is 0.
    """
    if math.isinf(temperature):
        return np.zeros(len(scores))
    candidates = (scores != -np.inf).sum(axis=1)
    scaled = scores / temperature
    return scaled[:, 0] - log_sum_exp(scaled) + np.log(candidates)


def fit_temperature(scores: Array) -> float:
    """The temperature at which the mean of `info_nce` is largest; infinite if that is not above 0.

    The mean is concave in 1/tau, so the search cannot end in a lesser maximum. A bound fitted on
    the very rows it is computed on is slightly optimistic: fit on validation, report on test.
    """
    found = minimize_scalar(
        lambda log_tau: -info_nce(scores, math.exp(log_tau)).mean(),
        bounds=(math.log(1e-2), math.log(1e4)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return math.inf if found.fun >= 0 else math.exp(found.x)
