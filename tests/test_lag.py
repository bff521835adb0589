"""The climb and the plane against models whose true posterior is known exactly."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from benchmark import evaluate
from benchmark.compose import UserError
from benchmark.diagnosis import plane_figures
from benchmark.diagnosis.lag import lag, verdict
from benchmark.diagnosis.plane import points, truths
from benchmark.evaluate import subset
from benchmark.models.gaussian import GaussianVAE
from benchmark.models.lstm import LSTMDecoder, LSTMEncoder
from tests.test_evaluate import Known, gap_of, linear_gaussian, normal, numbered, reads_nothing

CPU = torch.device("cpu")
DEVICES = [CPU, *[torch.device("cuda")] * torch.cuda.is_available()]
LOADING, NOISE = np.array([1.0, 2.0, 0.5]), 0.3


def close(told, exact, slack):
    """Whether [mean, standard error] is `exact` but for three errors and a bias."""
    return abs(told[0] - exact) < 3 * told[1] + slack


def kl_of_truth(mean, loading=LOADING):
    """[n], KL(p(z|x) || N(0, I)) of posteriors with these means."""
    variance = NOISE / (loading**2 + NOISE)
    return 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum(1)


def lagging(n, loading=LOADING):
    """The linear-Gaussian model whose encoder says the prior; its true posterior means."""
    model, exact = linear_gaussian(n, loading, NOISE)
    mean = model.mean.numpy().copy()
    model.mean, model.variance = torch.zeros_like(model.mean), torch.ones_like(model.variance)
    return model, mean, exact


# -- the climb ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "widen", "told"),
    [(0.5, 1.0, "encoder errs"), (0.0, 2.0, "encoder lags"), (0.4, 0.6, "encoder errs")],
)
def test_a_handicapped_encoder_gains_what_it_lacks(shift, widen, told):
    model, _ = linear_gaussian(120, LOADING, NOISE, shift=shift, widen=widen)
    found = lag(model, numbered(120, (3, 5)), CPU)
    lacks = gap_of(shift, widen, NOISE, LOADING)
    early, late = found["encoder"]["elbo"][1:]
    assert close(late, lacks, 0.02) and late[1] < 0.1 * lacks
    assert early[0] < late[0] + 0.02
    assert close(found["posterior"]["importance"]["gap"], lacks, 0.01)
    assert close(found["basins"], 0, 0.02)
    chosen = subset(numbered(120), "lag", 100)
    truth = kl_of_truth(model.mean.numpy()[chosen] - shift).mean()
    for start in ("encoder", "prior"):
        assert found[start]["kl"][-1] == pytest.approx(truth, abs=0.08)
    assert found["verdict"] == told
    json.dumps(found)


def test_an_encoder_that_says_the_prior_lags():
    model, mean, _ = lagging(120)
    found = lag(model, numbered(120), CPU, 120)
    truth = kl_of_truth(mean)
    assert found["encoder"]["kl"][0] == 0 and found["prior"]["elbo"][0] == [0, 0]
    assert found["encoder"]["rise"][-1][0] == pytest.approx(truth.mean(), abs=0.08)
    assert sum(found["encoder"]["units"]) == pytest.approx(truth.mean(), abs=0.08)
    assert found["verdict"] == "encoder lags"
    precision = 1 + LOADING**2 / NOISE  # KL(N(0, I) || the true posterior)
    lacks = 0.5 * (precision + mean**2 * precision - 1 - np.log(precision)).sum(1)
    assert found["encoder"]["elbo"][-1][0] == pytest.approx(lacks.mean(), rel=0.05)
    weighted = found["posterior"]["importance"]
    assert weighted["trusted"] and 300 < weighted["ess"] < 1000
    assert weighted["truth"][0] == pytest.approx(truth.mean(), abs=0.03)
    assert weighted["gap"][0] == pytest.approx(lacks.mean(), rel=0.05)
    assert found["posterior"]["quadrature"] is None


def test_an_exact_encoder_is_in_step():
    model, _ = linear_gaussian(100, LOADING, NOISE)
    found = lag(model, numbered(100), CPU)
    assert found["verdict"] == "in step"
    mean, error = found["encoder"]["elbo"][-1]
    assert -0.03 < mean < 2 * error  # it cannot gain, and is not made to seem to
    assert found["posterior"]["importance"]["gap"] == pytest.approx([0, 0], abs=0.02)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_a_decoder_that_reads_nothing_offers_nothing(shift):
    n = 40
    model = Known(np.full((n, 2), shift), np.ones((n, 2)), reads_nothing)
    found = lag(model, numbered(n), CPU, n)
    assert found["verdict"] == "decoder offers nothing to encode"
    # less a rate that is paid for nothing
    assert found["encoder"]["elbo"][-1] == pytest.approx([shift**2, 0], abs=1e-3)
    assert found["prior"]["kl"][-1] == pytest.approx(0, abs=1e-6)
    assert found["posterior"]["quadrature"]["truth"] == pytest.approx([0, 0], abs=1e-6)


WIDTH, PLACES, WEIGHTS = 0.3, np.array([-3.0, 1.0]), np.array([0.1, 0.9])
EACH = np.log(WEIGHTS) + stats.norm.logpdf(PLACES, 0, math.sqrt(1 + WIDTH**2))
"""log of the part of p(x) that comes from each mode."""


def two_modes(n):
    """p(x|z) has a lesser mode, where the encoder is, and a larger one nearer to the prior."""
    spread = torch.tensor([WIDTH**2])

    def log_px(rows, z):
        modes = zip(WEIGHTS, PLACES, strict=True)
        return torch.stack([math.log(w) + normal(z, at, spread) for w, at in modes]).logsumexp(0)

    return Known(np.full((n, 1), PLACES[0]), np.full((n, 1), WIDTH**2), log_px)


def test_the_prior_climbs_into_a_better_basin():
    found = lag(two_modes(40), numbered(40), CPU, 40)
    assert found["basins"][0] == pytest.approx(EACH[1] - EACH[0], abs=0.05)
    assert found["encoder"]["elbo"][-1][0] < 1 and found["encoder"]["kl"][-1] > 4
    assert found["prior"]["elbo"][-1][0] > 5
    # samples of both basins see what the grid sees
    truth = found["posterior"]["quadrature"]["truth"][0]
    assert found["posterior"]["importance"]["truth"][0] == pytest.approx(truth, abs=0.03)


def test_verdicts_ask_for_a_rise_beyond_its_error():
    def found(elbo, rise, kl, prior_elbo=(0.0, 0.01), prior_rise=(0.0, 0.01)):
        return {
            "encoder": {"elbo": [elbo], "rise": [rise], "kl": [kl]},
            "prior": {"elbo": [prior_elbo], "rise": [prior_rise], "kl": [kl]},
        }

    assert verdict(found((0.3, 0.1), (0.2, 0.05), 0.2)) == "encoder lags"
    assert verdict(found((0.3, 0.2), (0.2, 0.05), 0.2)) == "in step"
    assert verdict(found((0.3, 0.1), (0.2, 0.15), 0.2)) == "encoder errs"
    assert verdict(found((0.3, 0.1), (0.2, 0.05), 2.0)) == "in step"
    assert verdict(found((0.3, 0.1), (0.2, 0.05), 2.0), share=0.05) == "encoder lags"
    assert verdict(found((0.3, 0.1), (0.2, 0.05), 0.2), least=0.35) == (
        "decoder offers nothing to encode"
    )
    assert verdict(found((0.0, 0.1), (0.0, 0.1), 2.0, (1.0, 0.1), (1.5, 0.1))) == "encoder lags"


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_the_decoder_stays_frozen_and_batches_do_not_matter(device, monkeypatch):
    torch.manual_seed(0)
    sizes = {"vocab_size": 110, "embedding": 6, "hidden": 8, "latent": 2, "init": 0.5}
    model = GaussianVAE(LSTMEncoder(**sizes), LSTMDecoder(**sizes, dropout=0.5)).to(device).eval()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    split = numbered(12, (3, 5))
    found = lag(model, split, device, 12, steps=(2, 4), samples=50)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    seen = points(model, split, device, 12)
    monkeypatch.setitem(evaluate.TOKENS, device.type, 100)
    again = lag(model, split, device, 12, steps=(2, 4), samples=50)
    for start in ("encoder", "prior"):
        np.testing.assert_allclose(again[start]["elbo"], found[start]["elbo"], atol=1e-4)
    one, other = (f["posterior"]["importance"]["truth"] for f in (found, again))
    assert one == pytest.approx(other, abs=1e-4)
    few = points(model, split, device, 12)
    np.testing.assert_allclose(few["truth"], seen["truth"], atol=1e-4)


# -- the plane ------------------------------------------------------------------------------------


@pytest.mark.parametrize("loading", [[1.5], [0.05], [40.0], [1.0, 2.0], [30.0, 0.5]])
def test_the_grid_finds_the_true_posterior(loading):
    loading = np.array(loading)
    model, mean, exact = lagging(60, loading)
    found = truths(model, numbered(60), np.arange(60), CPU)
    assert found.resolved.all()
    np.testing.assert_allclose(found.mean, mean, atol=1e-5)
    np.testing.assert_allclose(found.log_px, -exact, atol=1e-5)
    np.testing.assert_allclose(found.rate, kl_of_truth(mean, loading), atol=1e-5)


def test_the_grid_weighs_two_modes():
    model = two_modes(3)
    found = truths(model, numbered(3), np.arange(3), CPU)
    # each mode shrinks towards 0 under the prior
    weight = np.exp(EACH - np.logaddexp(*EACH))
    np.testing.assert_allclose(found.mean, weight @ PLACES / (1 + WIDTH**2), atol=1e-5)
    np.testing.assert_allclose(found.log_px, np.logaddexp(*EACH), atol=1e-5)


@pytest.mark.parametrize(("place", "width"), [(0.013, 1e-7), (60.0, 0.1), (37.0, 1.0)])
def test_a_posterior_beyond_the_grid_is_not_resolved(place, width):
    model = Known(
        np.zeros((2, 1)),
        np.ones((2, 1)),
        lambda rows, z: normal(z, place, torch.tensor([width**2])),
    )
    assert not truths(model, numbered(2), np.arange(2), CPU).resolved.any()


def test_a_sharp_neighbour_changes_nothing():
    variance = torch.tensor([0.5, 1e-4])

    def log_px(rows, z):
        return normal(z, 0.7, variance[rows][:, None, None])

    model = Known(np.zeros((2, 1)), np.ones((2, 1)), log_px)
    both, alone = (truths(model, numbered(2), np.arange(n), CPU) for n in (2, 1))
    assert both.resolved.all()
    assert torch.equal(both.mean[:1], alone.mean) and torch.equal(both.rate[:1], alone.rate)


def test_points_are_the_two_means_of_the_same_sentences():
    model, mean, _ = lagging(50, np.array([1.0, 2.0]))
    model.mean = torch.as_tensor(0.5 * mean)
    split = numbered(50, (5, 3))
    found = points(model, split, CPU, 30)
    assert np.shape(found["truth"]) == np.shape(found["encoder"]) == (30, 2)
    np.testing.assert_allclose(found["encoder"], 0.5 * np.array(found["truth"]), atol=1e-5)
    assert found["unresolved"] == 0
    rows = subset(split, "plane", 30)
    assert found["rate"]["truth"] == pytest.approx(
        kl_of_truth(mean, np.array([1.0, 2.0]))[rows].mean(), abs=1e-5
    )
    assert found["rate"]["encoder"] == pytest.approx(0.125 * (mean[rows] ** 2).sum(1).mean())
    json.dumps(found)


class Elsewhere(Known):
    """Its prior is another than it should be."""

    def draw(self, batch, k=1):
        draw = super().draw(batch, k)
        draw.log_pz = draw.log_pz - 1
        return draw


class Secret(Known):
    def posterior(self, batch):
        return None


@pytest.mark.parametrize(
    ("kind", "units", "told"),
    [
        (Elsewhere, 1, "prior is not N"),
        (Secret, 1, "no mean and variance"),
        (Known, 3, "a plane has one or two dimensions; this code has 3"),
    ],
)
def test_what_is_no_gaussian_plane_is_refused(kind, units, told):
    model = kind(np.zeros((4, units)), np.ones((4, units)), reads_nothing)
    with pytest.raises(UserError, match=told):
        points(model, numbered(4), CPU)
    if units == 1:
        with pytest.raises(UserError, match=told):
            lag(model, numbered(4), CPU)
    model.latent = "sequence"
    with pytest.raises(UserError, match="'sequence'"):
        points(model, numbered(4), CPU)


# -- the figures ----------------------------------------------------------------------------------


def trail(units, steps=7, seed=0):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(2, steps, 30, units)) * np.arange(steps)[:, None, None]
    plane = {"truth": means[0].tolist(), "encoder": means[1].tolist()}
    return {"steps": [10 * step for step in range(steps)], "plane": plane}


@pytest.mark.parametrize("units", [1, 2])
def test_panels_are_drawn_alike(units):
    trails = {"vae": trail(units), "<b>": trail(units, seed=1)}
    text = plane_figures.panels(trails)
    assert text == plane_figures.panels(trails) and text.startswith("<svg")
    assert "step 0<" in text and "step 60<" in text and "&lt;b&gt;" in text
    assert ("unit 1" in text) == (units == 2)
    assert text.count(">step ") == 10 and "mean of q(z|x)" in text
    assert plane_figures.panels({"": trail(units, 1)}).count(">step ") == 1


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_an_animation_has_a_frame_for_each_step(suffix, tmp_path):
    trails = {"vae": trail(1, 4), "other": trail(2, 4)}
    paths = [tmp_path / f"{i}.{suffix}" for i in range(2)]
    for path in paths:
        plane_figures.animate(trails, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with Image.open(paths[0]) as image:
        assert image.n_frames == 4
    with pytest.raises(ValueError, match="the same steps"):
        plane_figures.animate({"vae": trail(1, 4), "other": trail(1, 5)}, paths[0])
