"""The estimators against distributions whose answer is known."""

import math

import numpy as np
import pytest
from scipy.stats import genpareto

from benchmark import estimators


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.7, 1.2])
def test_generalised_pareto_fit_finds_the_shape(shape):
    excess = genpareto.rvs(shape, scale=3.0, size=(40, 2_000), random_state=0)
    found = estimators.fit_generalised_pareto(np.sort(excess, axis=1))
    assert found.mean() == pytest.approx(shape, abs=0.02)
    assert found.std() < 0.06


@pytest.mark.parametrize(("shape", "bad"), [(0.3, False), (1.2, True)])
def test_pareto_shape_tells_weights_with_and_without_variance(shape, bad):
    # exp(k E) with E exponential is Pareto with tail index 1/k
    log_weights = shape * np.random.default_rng(0).exponential(size=(200, 4_000))
    found = estimators.pareto_shape(log_weights)
    assert found.mean() == pytest.approx(shape, abs=0.08)
    assert np.mean((found > 0.7) == bad) > 0.95
    shifted = estimators.pareto_shape(log_weights + 5_000)  # log weights have no natural zero
    np.testing.assert_allclose(shifted, found, rtol=1e-6)


def test_pareto_shape_of_a_constant_tail_is_none_and_of_a_short_one_refused():
    assert (estimators.pareto_shape(np.zeros((3, 100))) == -np.inf).all()
    assert estimators.pareto_tail(20) == 4
    assert estimators.pareto_tail(21) == 5
    with pytest.raises(ValueError, match="too few"):
        estimators.pareto_shape(np.zeros((3, 20)))


def test_error_of_a_log_mean_is_its_spread_over_repetitions():
    log_weights = 0.7 * np.random.default_rng(0).normal(size=(4_000, 200))
    found = estimators.log_mean_exp_error(log_weights)
    # a log-normal weight's variance over its squared mean is e^(s^2) - 1
    exact = math.sqrt((math.exp(0.7**2) - 1) / 200)
    assert found.mean() == pytest.approx(exact, rel=0.03)
    assert estimators.log_mean_exp(log_weights).std() == pytest.approx(exact, rel=0.03)
    assert (estimators.log_mean_exp_error(np.ones((2, 7))) < 1e-7).all()
    assert np.isnan(estimators.log_mean_exp_error(np.ones((2, 1)))).all()


def test_effective_share_of_equal_and_of_single_weights():
    log_weights = np.array([[3.0, 3.0, 3.0, 3.0], [0.0, -1e4, -1e4, -1e4], [0.0, 0.0, -1e4, -1e4]])
    np.testing.assert_allclose(estimators.effective_share(log_weights), [1, 1 / 4, 1 / 2])


def test_log_mean_exp_neither_overflows_nor_underflows():
    found = estimators.log_mean_exp(np.array([[-5_000.0, -5_000.0 + math.log(3)], [1e4, 1e4]]))
    np.testing.assert_allclose(found, [-5_000 + math.log(2), 1e4])


def simulated(rng, total=300, some=40):
    """Sentences with a shared difficulty, an ELBO gap that grows with it, and a random subset."""
    difficulty = rng.normal(100, 10, total)
    gap = rng.gamma(4, 0.5, total) + 0.02 * (difficulty - 100)
    chosen = np.sort(rng.permutation(total)[:some])
    return difficulty + gap, chosen, difficulty[chosen]


def test_controlled_mean_is_unbiased_calibrated_and_beats_the_subset_mean():
    rng = np.random.default_rng(0)
    estimates, errors, subset_means = [], [], []
    for _ in range(2_000):
        neg_elbo, chosen, nll = simulated(rng)
        estimate, error = estimators.controlled_mean(neg_elbo, chosen, nll)
        estimates.append(estimate)
        errors.append(error)
        subset_means.append(nll.mean())
    spread = np.std(estimates)
    assert np.mean(estimates) == pytest.approx(100, abs=4 * spread / math.sqrt(2_000))
    assert np.mean(np.square(errors)) == pytest.approx(spread**2, rel=0.1)
    assert spread < 0.5 * np.std(subset_means)


def test_a_wild_control_is_not_followed():
    """Five sentences in ten thousand whose one-sample ELBO is off by 20,000 nats, though their
    importance-weighted NLL is not: with a coefficient of 1 the estimate's spread is about 20."""
    rng = np.random.default_rng(0)
    estimates = []
    for _ in range(300):
        nll = rng.normal(100, 5, 10_000)
        neg_elbo = nll + rng.exponential(1, 10_000)
        neg_elbo[rng.choice(10_000, 5, replace=False)] += 20_000
        chosen = np.sort(rng.choice(10_000, 500, replace=False))
        estimates.append(estimators.controlled_mean(neg_elbo, chosen, nll[chosen])[0])
    assert np.std(estimates) < 0.3  # the subset's own mean has 0.22
    assert abs(np.mean(estimates) - 100) < 0.1


def test_controlled_mean_of_everything_is_the_mean():
    neg_elbo, everyone, nll = simulated(np.random.default_rng(1), 50, 50)
    estimate, error = estimators.controlled_mean(neg_elbo, everyone, nll)
    assert estimate == pytest.approx(nll.mean())
    assert error == pytest.approx(nll.std(ddof=1) / math.sqrt(50))
    assert math.isnan(estimators.controlled_mean(neg_elbo, everyone[:1], nll[:1])[1])


def test_info_nce_is_at_most_the_log_of_the_candidates_that_exist():
    scores = np.array([[0.0, -900.0, -900.0, -900.0], [0.0, -900.0, -np.inf, -np.inf], [0.0] * 4])
    np.testing.assert_allclose(estimators.info_nce(scores), [math.log(4), math.log(2), 0])
    assert (estimators.info_nce(scores, math.inf) == 0).all()


def test_fitted_temperature_is_the_best_and_never_worse_than_not_reading():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(500, 16)) * 30
    scores[:, 0] += 40
    best = estimators.info_nce(scores, estimators.fit_temperature(scores)).mean()
    others = [estimators.info_nce(scores, tau).mean() for tau in np.geomspace(0.02, 5_000, 60)]
    assert best >= max(others) - 1e-6
    assert best > 0 > estimators.info_nce(scores).mean()
    scores[:, 0] -= 80  # one's own code is now worse than any other
    assert estimators.fit_temperature(scores) == math.inf
