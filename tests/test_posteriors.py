"""Posteriors that cannot reach the prior (normalised means, floored variances, points of a sphere),
and the decoder with a second way in for the code."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import quad
from scipy.special import iv, loggamma

from benchmark.models import (
    ForgetfulDecoder,
    GaussianVAE,
    LSTMDecoder,
    LSTMEncoder,
    SkipDecoder,
    kl_to_standard,
    scale_of_rate,
    vmf_concentration,
)
from benchmark.models.normalised import EPSILON, MeanNorm
from benchmark.models.spherical import log_area, polar_angles, resultant_length, vmf_kl, vmf_peak
from benchmark.noise import Noise
from methods.bn_vae import BNVAE
from methods.du_vae import DUVAE, UncertainEncoder
from methods.vmf_vae import VMFVAE
from tests.test_methods import TASK, Heads, recipe, sentences

FLOOR = 1 / (2 * math.pi * math.e)


def loud(module):
    """Weights far from the tiny start, so that everything shows."""
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if "norm." not in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return module


# -- means normalised over the batch --------------------------------------------------------------


@pytest.mark.parametrize(
    ("gamma", "floor"),
    [(0.4, 2.56), (0.5, 4.0), (0.6, 5.76), (0.7, 7.84), (0.9, 12.96), (1.2, 23.04)],
)
def test_the_floors_at_32_units(gamma, floor):
    assert scale_of_rate(floor, 32) == pytest.approx(gamma)
    torch.manual_seed(0)
    mean = MeanNorm(32, gamma)(torch.randn(64, 32)).detach()
    kl = kl_to_standard(mean, torch.zeros(64, 32))
    assert float(kl.sum(1).mean()) == pytest.approx(floor, rel=1e-4)  # sigma = 1 reaches it


@given(
    gamma=st.floats(0.05, 3),
    sentences=st.integers(2, 40),
    power=st.floats(-6, 2),
    shift=st.floats(-2, 2),
    epsilon=st.sampled_from([EPSILON, 1e-5]),
    seed=st.integers(0, 2**31),
)
def test_no_parameters_take_a_batchs_rate_below_the_floor(
    gamma, sentences, power, shift, epsilon, seed
):
    """0.5 sum_d gamma^2 v_d / (v_d + epsilon), v_d the batch's variance."""
    rng = torch.Generator().manual_seed(seed)
    raw, log_variance = torch.randn(2, sentences, 4, generator=rng, dtype=torch.double)
    raw *= 10**power
    norm = MeanNorm(4, gamma, epsilon=epsilon).double()
    torch.nn.init.constant_(norm.shift, shift)
    mean, v = norm(raw).detach(), raw.numpy().var(0)
    squares = gamma**2 * v / (v + epsilon)
    np.testing.assert_allclose(mean.square().mean(0), squares + shift**2, rtol=1e-6)
    kl = kl_to_standard(mean, 3 * log_variance)
    assert float(kl.sum(1).mean()) >= 0.5 * squares.sum() * (1 - 1e-9)


@torch.no_grad()
def test_the_floor_is_the_models_own():
    """From the start, when means are tiny; but not with an epsilon above their variance."""
    batch, bound = sentences(), 0.5 * 3 * 0.81

    def rate(**fields):
        torch.manual_seed(0)
        task = replace(TASK, init=0.01, embedding=256, hidden=256)  # He et al.'s, on a small text
        model = BNVAE(gamma=0.9, **fields).recipe(task).model
        assert model.encoder.encoder(batch)[0].var(0).max() < 1e-7
        return float(model.draw(batch).kl.sum(1).mean())

    assert rate() >= bound * (1 - 1e-3)
    assert rate(epsilon=1e-5) < bound / 100
    assert float(TASK.model().draw(batch).kl.sum(1).mean()) < 0.01


@torch.no_grad()
@pytest.mark.parametrize("cls", [BNVAE, DUVAE])
def test_as_released_the_encoder_begins_with_a_floor(cls):
    """PyTorch's own initialisation: epsilon = 1e-5 is far below the variance of new means."""
    task = replace(TASK, init=0.01, embedding=256, hidden=256)
    for torch_init in (False, True):
        torch.manual_seed(0)
        model = cls(torch_init=torch_init).recipe(task).model
        (encoder,) = (m for m in model.modules() if isinstance(m, LSTMEncoder))
        for _ in range(2):
            bounds = [weight.abs().max() for weight in encoder.lstm.parameters()]
            limit = 256**-0.5 if torch_init else 0.01
            assert all(0.9 * limit < bound <= limit for bound in bounds)
            if torch_init:
                assert encoder.embed.weight.std() == pytest.approx(1, abs=0.1)  # N(0, 1)
                assert encoder(sentences())[0].var(0).max() > 1e-4
            model.encoder.reset_parameters()
        assert max(weight.abs().max() for weight in model.decoder.lstm.parameters()) <= 0.01


def test_a_target_is_the_floor():
    assert recipe("bn_vae", gamma=None, target=1.5).model.encoder.norm.gamma == pytest.approx(1.0)
    assert recipe("du_vae", gamma=None, target=6.0).model.encoder.encoder.norm.gamma == 2.0


def test_the_scales_are_not_trained_or_their_direction_is():
    for name, expected in (("bn_vae", {"shift"}), ("du_vae", {"shift", "direction"})):
        (norm,) = (m for m in recipe(name).model.modules() if isinstance(m, MeanNorm))
        assert {key for key, p in norm.named_parameters() if p.requires_grad} == expected


@torch.no_grad()
def test_evaluation_has_the_running_statistics():
    """After many batches they are the population's, whatever stands in the batch at hand."""
    torch.manual_seed(0)
    norm = MeanNorm(2, 0.5)
    for _ in range(100):
        norm(3 + 2 * torch.randn(400, 2))
    norm.eval()
    torch.testing.assert_close(norm(torch.full((1, 2), 3.0)), torch.zeros(1, 2), atol=0.05, rtol=0)
    torch.testing.assert_close(
        norm(torch.full((7, 2), 5.0)), torch.full((7, 2), 0.5), atol=0.05, rtol=0
    )


@torch.no_grad()
def test_a_training_batch_of_one_sentence_is_normalised_as_in_evaluation():
    torch.manual_seed(0)
    norm = MeanNorm(3, 0.5)
    norm(torch.randn(50, 3) + 1)
    before, alone = {k: v.clone() for k, v in norm.state_dict().items()}, torch.randn(1, 3)
    trained = norm(alone)
    assert all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())
    torch.testing.assert_close(trained, norm.eval()(alone), rtol=0, atol=0)
    assert recipe("bn_vae").model.train().draw(few([0])).kl.isfinite().all()


def few(rows):
    batch = sentences()
    fields = ("targets", "inputs", "source", "target_lengths", "source_lengths")
    return batch.but(**{name: getattr(batch, name)[rows] for name in fields})


@torch.no_grad()
def test_running_statistics_travel_with_the_weights():
    model = loud(recipe("bn_vae").model)
    for _ in range(20):
        model.draw(sentences())
    other = recipe("bn_vae").model
    other.load_state_dict(model.state_dict())
    (mean, _), (copied, _) = (m.eval().posterior(sentences()) for m in (model, other))
    assert torch.equal(mean, copied)
    model.encoder.reset_parameters()
    assert (model.encoder.norm.running_variance == 1).all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["bn_vae", "du_vae", "vmf_vae"])
def test_what_is_known_of_a_sentence_need_not_be_inferred_again(name):
    model = loud(recipe(name).model)
    model.draw(sentences())
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rows, numbers = [3, 60, 61], torch.tensor([3, 60, 61])
    known = tuple(part[rows] for part in model.encode(sentences()))
    draws = [
        model.draw(batch.but(noise=Noise("test", numbers)), 3)
        for batch in (few(rows), few(rows).but(encoded=known))
    ]
    for score in ("z", "log_px", "log_qz", "kl"):
        torch.testing.assert_close(getattr(draws[0], score), getattr(draws[1], score))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@given(seed=st.integers(0, 2**31), gamma=st.floats(0.1, 2))
def test_the_scales_have_their_root_mean_square_whatever_their_direction(seed, gamma):
    rng = torch.Generator().manual_seed(seed)
    norm = MeanNorm(6, gamma, train_direction=True)
    norm.direction.data.copy_(torch.randn(6, generator=rng) * 100)
    spread = norm(torch.randn(50, 6, generator=rng)).detach().var(0, unbiased=False)
    assert float(spread.mean()) == pytest.approx(gamma**2, rel=1e-3)
    weight = norm.direction.square().detach()
    torch.testing.assert_close(spread / spread.sum(), weight / weight.sum(), rtol=1e-3, atol=1e-6)


# -- variances with a floor -----------------------------------------------------------------------


def uncertain(log_variance, drop=0.2, annealed=True):
    encoder = UncertainEncoder(Heads(torch.zeros_like(log_variance), log_variance), FLOOR, drop)
    encoder.annealed.fill_(annealed)
    return encoder


def test_variances_are_above_their_floor_once_beta_is_one():
    torch.manual_seed(0)
    log_variance = 3 * torch.randn(400, 20) - 4
    _, untouched = uncertain(log_variance, annealed=False)(None)
    assert torch.equal(untouched, log_variance)
    _, floored = uncertain(log_variance).eval()(None)
    torch.testing.assert_close(floored.exp(), FLOOR + log_variance.exp())
    _, dropped = uncertain(log_variance).train()(None)
    at_floor = (dropped.exp() - FLOOR).abs() < 1e-7
    torch.testing.assert_close(
        dropped.exp()[~at_floor], FLOOR + log_variance.exp()[~at_floor] / 0.8, rtol=1e-4, atol=1e-5
    )
    visible = log_variance > -10
    assert abs(float(at_floor[visible].float().mean()) - 0.2) < 4 * math.sqrt(0.16 / visible.sum())
    assert 0.5 * (math.log(2 * math.pi * math.e) + math.log(FLOOR)) == pytest.approx(0, abs=1e-12)


@torch.no_grad()
def test_codes_and_rate_have_the_dropped_variance():
    model, batch = loud(recipe("du_vae", ramp=0.0).model), few(list(range(5)))
    torch.manual_seed(3)
    mean, log_variance = model.encoder(batch)  # the dropout's mask is the first that is drawn
    torch.manual_seed(3)
    draw = model.draw(batch, 5000)
    assert ((log_variance.exp() - FLOOR).abs() < 1e-6).any()
    torch.testing.assert_close(draw.kl, kl_to_standard(mean, log_variance))
    torch.testing.assert_close(draw.z.var(1), log_variance.exp(), rtol=0.12, atol=0)


class Once:
    """A `Run` at step t whose loss is told."""

    def __init__(self, t):
        self.t = t

    def next(self):
        return None

    def loss(self, batch):
        return torch.tensor(1.0)

    def descend(self, loss, *parts):
        assert not parts


@given(ramp=st.floats(0, 1), steps=st.integers(1, 400))
def test_the_floor_comes_with_the_first_checkpoint_that_is_eligible(ramp, steps):
    """The model does not know the step: it is told, after each, whether beta is 1 in the next."""
    found = DUVAE(ramp=ramp).recipe(replace(TASK, steps=steps))
    encoder = found.model.encoder
    eligible = math.ceil(found.select_after * steps - 1e-9)
    length = round(ramp * steps)
    assert bool(encoder.annealed) == (length == 0)
    for t in {0, max(length - 2, 0), max(length - 1, 0), max(eligible - 1, 0)}:
        found.step(Once(t))
        assert bool(encoder.annealed) == (t + 1 >= length)
    if eligible > 0:
        found.step(Once(eligible - 1))
        assert bool(encoder.annealed)
    assert "annealed" in encoder.state_dict()


@pytest.mark.parametrize(("t", "beta"), [(0, 0.0), (10, 0.25), (39, 0.975), (40, 1.0), (99, 1.0)])
def test_the_rate_is_annealed(t, beta):
    found = recipe("du_vae", ramp=0.4)
    draw = found.model.draw(sentences())
    expected = -draw.log_px.mean() + beta * draw.kl.sum(1).mean()
    torch.testing.assert_close(found.objective(draw, sentences(), t), expected)


# -- a second way into the decoder ----------------------------------------------------------------

SIZES: dict[str, Any] = {"vocab_size": 20, "embedding": 4, "hidden": 6, "latent": 3}


def skipping():
    return loud(SkipDecoder(LSTMDecoder(**SIZES, dropout=0.0))).eval()


@torch.no_grad()
def test_without_its_weights_the_skip_decoder_is_the_plain_one():
    decoder, plain, batch = skipping(), LSTMDecoder(**SIZES, dropout=0.0).eval(), few([0, 60])
    plain.load_state_dict({k: v for k, v in decoder.state_dict().items() if k != "skip.weight"})
    z = torch.randn(2, 5, 3)
    assert not torch.allclose(decoder.log_px(batch, z), plain.log_px(batch, z))
    decoder.skip.weight.zero_()
    assert torch.equal(decoder.log_px(batch, z), plain.log_px(batch, z))
    assert torch.equal(decoder.predictions(batch, z), plain.predictions(batch, z))
    written = [d.generate(z[0], max_length=9, temperature=0.0) for d in (decoder, plain)]
    assert torch.equal(*written)


@torch.no_grad()
def test_the_code_reaches_every_word_behind_the_lstm():
    decoder, plain, batch = skipping(), LSTMDecoder(**SIZES, dropout=0.0).eval(), few([0, 60])
    decoder.lstm.get_parameter("weight_ih_l0")[:, 4:].zero_()
    assert decoder.initial is not None
    decoder.initial.weight.zero_()
    plain.load_state_dict({k: v for k, v in decoder.state_dict().items() if k != "skip.weight"})
    one, other = torch.randn(2, 2, 1, 3)
    assert torch.equal(plain.predictions(batch, one), plain.predictions(batch, other))
    moved = decoder.predictions(batch, one) - decoder.predictions(batch, other)
    assert (moved.abs().amax(-1) > 1e-3).all()
    states, _ = decoder.lstm(decoder.embed(batch.inputs), None, one[:, 0])
    by_hand = (states + one @ decoder.skip.weight.T) @ decoder.output.weight.T
    torch.testing.assert_close(decoder.predictions(batch, one)[:, 0], by_hand.log_softmax(-1))


@torch.no_grad()
def test_what_the_skip_decoder_writes_is_what_it_scores_highest():
    decoder, z = skipping(), torch.randn(5, 3)
    written = decoder.generate(z, max_length=13, temperature=0.0)
    written = torch.nn.functional.pad(written, (0, 13 - written.shape[1]))
    inputs = torch.cat([torch.ones(5, 1, dtype=torch.long), written[:, :-1]], 1)
    told = decoder.predictions(few(list(range(5))).but(inputs=inputs), z[:, None])[:, 0]
    told[..., :2] = -torch.inf
    alive = (written != 0) & (written.roll(1, 1) != 2)
    assert (told.argmax(-1) == written)[alive].all()


def test_the_skip_vae_begins_as_the_plain_vae_of_its_seed():
    torch.manual_seed(0)
    plain = TASK.model().state_dict()
    torch.manual_seed(0)
    ours = recipe("skip_vae").model.state_dict()
    assert ours.keys() - plain.keys() == {"decoder.skip.weight"}
    assert all(torch.equal(ours[name], value) for name, value in plain.items())


def test_the_skip_decoder_refuses_a_short_memory():
    with pytest.raises(ValueError, match=r"drop model\.memory"):
        SkipDecoder(ForgetfulDecoder(memory=2, dropout=0.0, **SIZES))


# -- codes on a sphere ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kappa", "kl"),
    [(13, 2.172591), (25, 5.755404), (50, 12.253369), (100, 20.758528), (200, 30.373301)],
)
def test_the_rates_of_a_sphere_in_32_dimensions(kappa, kl):
    assert vmf_kl(kappa, 32) == pytest.approx(kl, abs=5e-7)
    assert vmf_concentration(kl, 32) == pytest.approx(kappa, rel=1e-6)

    def released(d):  # the form that is in use, of a sphere with two dimensions more
        ratio = iv(d / 2 + 1, kappa) / iv(d / 2, kappa)
        scale = d / 2 * np.log(kappa) - np.log(iv(d / 2, kappa))
        return kappa * ratio + scale - loggamma(d / 2 + 1).real - d / 2 * np.log(2)

    assert released(30) == pytest.approx(kl, abs=5e-7)
    assert abs(released(32) / kl - 1) > 0.004


@pytest.mark.parametrize("units", [2, 3, 8, 50])
@pytest.mark.parametrize("kappa", [0.1, 2.0, 40.0, 900.0])
def test_density_rate_and_length_are_the_integrals(units, kappa):
    """Over the angle, and by scipy's distribution."""

    def moment(power):
        return quad(
            lambda a: (
                np.sin(a) ** (units - 2) * np.exp(kappa * (np.cos(a) - 1)) * np.cos(a) ** power
            ),
            *(0, np.pi),
            points=[min(3.0, 5 / math.sqrt(kappa))],
            epsabs=0,
            epsrel=1e-12,
        )[0]

    flat = quad(lambda a: np.sin(a) ** (units - 2), 0, np.pi)[0]
    assert vmf_peak(kappa, units) == pytest.approx(math.log(flat / moment(0)), abs=1e-9)
    assert resultant_length(kappa, units) == pytest.approx(moment(1) / moment(0), rel=1e-9)
    theirs = stats.vonmises_fisher(np.eye(units)[0], kappa)
    assert vmf_kl(kappa, units) == pytest.approx(log_area(units) - theirs.entropy(), abs=1e-9)


def test_without_concentration_there_is_no_rate():
    for units in (2, 8, 32):
        assert vmf_kl(1e-4, units) == pytest.approx(1e-8 / (2 * units), abs=1e-12)
    assert math.isfinite(vmf_kl(1e8, 32)) and vmf_kl(1e8, 32) > 100  # nothing overflows


@pytest.mark.parametrize(("units", "rate"), [(2, 0.5), (2, 8.0), (8, 4.0), (32, 8.0), (200, 1.0)])
def test_a_rate_has_its_concentration(units, rate):
    assert vmf_kl(vmf_concentration(rate, units), units) == pytest.approx(rate, rel=1e-9)


def test_extremes_are_refused():
    for kappa, units in ((1e-3, 200), (1e30, 8)):
        with pytest.raises(ValueError, match=f"too extreme .* in {units} dimensions"):
            vmf_kl(kappa, units)


numbers = np.linspace(-9, 9, 1 << 14)


@pytest.mark.parametrize("kappa", [0.01, 3.0, 100.0, 1e5])
def test_the_angles_in_three_dimensions_are_those_of_the_closed_form(kappa):
    """P(cos a <= w) = (exp(kappa w) - exp(-kappa)) / (exp(kappa) - exp(-kappa)), in both
    tails to a small part of the angle's own spread."""
    upper = stats.norm.sf(numbers)
    exact = np.log(upper + stats.norm.cdf(numbers) * np.exp(-2 * kappa)) / kappa
    angle = np.arccos((1 + exact).clip(-1, 1))
    spread = min(1.0, 1 / math.sqrt(kappa))
    # an arc cosine near 1 and the closed form near -1 lose digits, which the table does not
    told = (exact < -1e-6) & (exact > -2 + 1e-9)
    assert told.mean() > 0.5
    difference = np.abs(polar_angles(kappa, 3).numpy() - angle)[told]
    assert difference.max() < 3e-5 * spread + 1e-8


@pytest.mark.parametrize("kappa", [0.5, 20.0, 1e4])
def test_the_angles_on_a_circle_are_those_of_von_mises(kappa):
    angle = polar_angles(kappa, 2).numpy()[::97]
    rank = 2 * stats.vonmises(kappa).cdf(angle) - 1
    np.testing.assert_allclose(rank, stats.norm.cdf(numbers[::97]), atol=1e-7)


@pytest.mark.parametrize(("units", "kappa"), [(2, 1.0), (5, 30.0), (32, 13.0), (32, 400.0)])
def test_angles_are_those_of_rejection_sampling(units, kappa):
    model = sphere(units, kappa)
    torch.manual_seed(0)
    cosine = model.angle(torch.randn(40000)).cos().double().numpy()
    theirs = stats.vonmises_fisher(np.eye(units)[0], kappa).rvs(40000, random_state=1)[:, 0]
    _, chance = stats.ks_2samp(cosine, theirs)
    assert float(chance) > 1e-3  # type: ignore[arg-type]
    error = cosine.std() / math.sqrt(len(cosine))
    assert abs(cosine.mean() - resultant_length(kappa, units)) < 4 * error


def sphere(units=3, kappa=20.0):
    return loud(VMFVAE(kappa=kappa).recipe(replace(TASK, latent=units)).model).eval()


@torch.no_grad()
@pytest.mark.parametrize(("units", "kappa"), [(2, 3.0), (3, 20.0), (8, 13.0)])
def test_codes_have_the_density_and_the_moments_that_are_told(units, kappa):
    model, batch = sphere(units, kappa), few([0, 3, 60])
    draw = model.draw(batch.but(noise=Noise("test", torch.arange(3))), 20000)
    torch.testing.assert_close(draw.z.norm(dim=-1), torch.ones(3, 20000))
    (direction,) = model.encode(batch)
    assert draw.kl.shape == (3, units)
    for i in range(3):
        # scipy wants a mean direction of length 1 to its own precision
        exact = direction[i].double().numpy() / np.linalg.norm(direction[i].double())
        theirs = stats.vonmises_fisher(exact, kappa)
        z = draw.z[i, :50].double()
        z /= z.norm(dim=-1, keepdim=True)
        expected = torch.from_numpy(theirs.logpdf(z.numpy())).float()
        torch.testing.assert_close(draw.log_qz[i, :50], expected, rtol=1e-4, atol=1e-4)
        told = model.log_q(draw.z[i, :50], batch)[:, i].float()
        torch.testing.assert_close(told, expected, rtol=1e-4, atol=1e-4)
        assert float(draw.kl[i].sum()) == pytest.approx(
            log_area(units) - theirs.entropy(), rel=1e-5
        )
    assert float(draw.log_pz[0, 0]) == pytest.approx(-log_area(units), rel=1e-6)
    mean, variance = model.posterior(batch)
    whitened = math.sqrt(units) * draw.z
    errors = (whitened.var(1) / 20000).sqrt()
    assert ((whitened.mean(1) - mean).abs() < 5 * errors).all()
    torch.testing.assert_close(whitened.var(1), variance, rtol=0.08, atol=1e-3)


def test_codes_move_with_their_mean_direction():
    """The gradient of z is that of the rotation, by finite differences; none is the angle's."""
    model, batch = sphere(), few([0])
    noisy = batch.but(noise=Noise("test", torch.zeros(1, dtype=torch.long)))
    direction = torch.nn.functional.normalize(torch.randn(1, 3), dim=-1)
    along = torch.randn(3)

    def height(vector):
        mean = torch.nn.functional.normalize(vector, dim=-1)
        fresh = noisy.but(noise=Noise("test", torch.zeros(1, dtype=torch.long)), encoded=(mean,))
        return (model.draw(fresh).z * along).sum()

    vector = direction.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(height(vector), vector)
    for d in range(3):
        step = 5e-3 * torch.eye(3)[d]
        slope = float(height(direction + step) - height(direction - step)) / 1e-2
        assert float(gradient[0, d]) == pytest.approx(slope, abs=2e-3)


@torch.no_grad()
def test_a_prior_code_is_uniform_on_the_sphere():
    model, batch = sphere(4), few([0])
    z = model.prior_codes(batch.but(noise=Noise("test", torch.zeros(1, dtype=torch.long))), 20000)[
        0
    ]
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(20000))
    assert z.mean(0).abs().max() < 5 / math.sqrt(4 * 20000)
    torch.testing.assert_close(z.T @ z / 20000, torch.eye(4) / 4, atol=0.01, rtol=0)


def test_the_rate_of_a_sphere_is_no_parameters_doing():
    torch.manual_seed(0)
    model, batch = recipe("vmf_vae", kappa=None, target=4.0).model, sentences()
    for scale in (0.0, 1.0, 10.0):
        for parameter in model.encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.1 + scale)
        draw = model.draw(batch)
        torch.testing.assert_close(draw.kl.sum(1), torch.full((200,), 4.0))
        assert not draw.kl.requires_grad and draw.z.requires_grad
    assert isinstance(TASK.model(), GaussianVAE)  # whose rate is next to nothing, see above


def test_a_sphere_has_two_dimensions():
    with pytest.raises(ValueError, match=r"model\.latent=2"):
        VMFVAE().recipe(replace(TASK, latent=1))


@pytest.mark.parametrize(
    ("name", "fields", "word"),
    [
        ("bn_vae", {"gamma": None}, "gamma"),
        ("bn_vae", {"target": 3.0}, "target"),
        ("bn_vae", {"gamma": -0.1}, "above 0"),
        ("bn_vae", {"epsilon": 0.0}, "epsilon"),
        ("du_vae", {"gamma": None}, "gamma"),
        ("du_vae", {"gamma": 0.0}, "above 0"),
        ("du_vae", {"alpha": 0.0}, "alpha"),
        ("du_vae", {"drop": 1.0}, "drop"),
        ("du_vae", {"ramp": 1.1}, "ramp"),
        ("vmf_vae", {"kappa": None}, "kappa"),
        ("vmf_vae", {"target": 1.0}, "target"),
        ("vmf_vae", {"kappa": None, "target": 0.0}, "above 0"),
    ],
)
def test_refused_is_what_has_no_meaning(name, fields, word):
    with pytest.raises(ValueError, match=word):
        recipe(name, **fields)
