"""The gradient's signal and noise against models whose gradients are known in closed form."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from benchmark.api import Draw, LatentModel
from benchmark.compose import UserError
from benchmark.diagnosis import gradients
from benchmark.diagnosis.gradients import GROUPS, Moments
from benchmark.models import GaussianVAE, LSTMDecoder, LSTMEncoder
from benchmark.models.gaussian import LanguageModel
from benchmark.models.stochastic import Generator, Inference, StochasticLSTM
from benchmark.noise import Noise
from tests.test_evaluate import normal, number, numbered

CPU = torch.device("cpu")


def streamed(draws: np.ndarray, batch_size: int = 1) -> dict:
    """`Moments.found` of gradients [n, 2, P]."""
    moments = Moments([nn.Parameter(torch.zeros(draws.shape[2], dtype=torch.float64))])
    for place, pair in enumerate(torch.from_numpy(draws)):
        moments.add(place, *pair)
    return moments.found(batch_size)


def simulated(rng, n, mean, between, sampling):
    """Gradients [n, 2, P] with these variances of each of the P numbers."""
    centre = mean + rng.normal(size=(n, 1, len(mean))) * np.sqrt(between)
    return centre + rng.normal(size=(n, 2, len(mean))) * np.sqrt(sampling)


def by_hand(draws):
    """Signal, between and sampling from all pairs of sentences."""
    n, centres = len(draws), draws.mean(1)
    pairs = [centres[i] @ centres[j] for i in range(n) for j in range(n) if i != j]
    signal = np.mean(pairs)
    between = np.mean([one @ other for one, other in draws]) - signal
    return signal, between, draws.var(1, ddof=1).sum(1).mean()


def test_streamed_sums_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    draws = simulated(rng, 34, np.array([0.5, -1.0, 0.0]), np.array([1, 2, 3]), np.array([4, 1, 1]))
    found = streamed(draws, batch_size=8)
    signal, between, sampling = by_hand(draws)
    names = ("signal", "between", "sampling")
    assert [found[name] for name in names] == pytest.approx([signal, between, sampling], rel=1e-12)
    assert found["snr"] == pytest.approx(signal / (between + sampling), rel=1e-12)
    assert found["snr_batch"] == pytest.approx(8 * found["snr"], rel=1e-12)
    ratios = []
    for group in range(GROUPS):
        left = by_hand(draws[np.arange(34) % GROUPS != group])
        ratios.append(left[0] / (left[1] + left[2]))
    jackknife = math.sqrt((GROUPS - 1) * np.var(ratios))
    assert found["snr_error"] == pytest.approx(jackknife, rel=1e-9)


@pytest.mark.parametrize("size", [0.0, 0.6])
def test_all_parts_are_unbiased(size):
    """Also of no signal, where |mean g|^2 would be the noise's."""
    rng, n, repeats = np.random.default_rng(1), 40, 300
    mean, between, sampling = np.full(5, size), np.full(5, 0.3), np.arange(1.0, 6.0)
    samples = [simulated(rng, n, mean, between, sampling) for _ in range(repeats)]
    found = [streamed(draws) for draws in samples]
    truth = {"signal": mean @ mean, "between": between.sum(), "sampling": sampling.sum()}
    for name, exact in truth.items():
        values = np.array([f[name] for f in found])
        assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(repeats), name
    plain = np.mean([np.square(draws.mean((0, 1))).sum() for draws in samples])
    excess = truth["between"] / n + truth["sampling"] / (2 * n)
    assert plain - truth["signal"] == pytest.approx(excess, rel=0.15)
    # the error is that of one estimate; where there is no signal it is too large, never too small
    spread = np.std([f["snr"] for f in found])
    told = math.sqrt(np.mean([f["snr_error"] ** 2 for f in found]))
    assert 0.85 < told / spread < (1.2 if size else 1.8)


class Linear(LatentModel):
    """y ~ N(0, S), one number a sentence; q(z|y) = N(a y + b, e^s), p(y|z) = N(w z, V). sampled:
    the KL is that of the code that was drawn."""

    units = 1

    def __init__(self, y, a, b, s, w, v, sampled=False):
        super().__init__()
        code = torch.tensor([a, b, s], dtype=torch.float64)
        loading = torch.tensor([w], dtype=torch.float64)
        self.encoder = nn.ParameterList([code])
        self.decoder = nn.ParameterList([loading])
        self.y, self.v, self.sampled = torch.as_tensor(y), torch.tensor(v), sampled

    def draw(self, batch, k=1):
        a, b, s = self.encoder[0]
        mean, scale = (a * self.y[number(batch)] + b)[:, None, None], (s / 2).exp()
        z = mean + scale * batch.normal(k, 1).double()
        log_pz = normal(z, torch.zeros(()), torch.ones(()))
        log_qz = normal(z, mean, scale**2)
        kl = (0.5 * (mean**2 + scale**2 - s - 1))[:, 0]
        if self.sampled:
            kl = (log_qz - log_pz).mean(1, keepdim=True)
        return Draw(z, self.log_px(batch, z), log_pz, log_qz, kl)

    def log_px(self, batch, z):
        return normal(self.y[number(batch)][:, None, None], self.decoder[0] * z, self.v)

    def parts(self):
        return {"encoder": self.encoder, "decoder": self.decoder}


@pytest.mark.parametrize("sampled", [False, True])
def test_a_linear_gaussian_model(sampled):
    n, data, a, b, s, w, v = 700, 1.5, 0.3, 0.4, -0.5, 0.8, 0.7
    y = np.random.default_rng(3).normal(size=n) * math.sqrt(data)
    found = gradients.noise(
        Linear(y, a, b, s, w, v, sampled), numbered(n, (3,), "train"), np.arange(n), 16, CPU
    )
    # Rec: -w/v (y - w z) (y, 1, t e/2), z = a y + b + t e; y - w z = k y - w b - w t e
    t, k, c = math.exp(s / 2), 1 - w * a, (w / v) ** 2
    drawn = (data + 1) * w**2 * t**2 + t**2 / 4 * (k**2 * data + w**2 * b**2 + 2 * w**2 * t**2)
    rec = {
        "signal": c * ((k * data) ** 2 + (w * b) ** 2 + (w * t**2 / 2) ** 2),
        "between": c * (2 * k**2 * data**2 + w**2 * b**2 * data + k**2 * data),
        "sampling": c * drawn,
    }
    # KL: (m y, m, (t^2 - 1)/2), m = a y + b; sampled: (z y, z, z t e/2 - 1/2), of the same mean
    drawn = (data + 1) * t**2 + t**2 / 4 * (a**2 * data + b**2 + 2 * t**2)
    kl = {
        "signal": (a * data) ** 2 + b**2 + (t**2 - 1) ** 2 / 4,
        "between": 2 * a**2 * data**2 + b**2 * data + a**2 * data,
        "sampling": drawn if sampled else 0.0,
    }
    for cost, exact in (("rec", rec), ("kl", kl)):
        part = found[cost]
        for name, value in exact.items():
            assert part[name] == pytest.approx(value, rel=0.2), (cost, name)
        ratio = exact["signal"] / (exact["between"] + exact["sampling"])
        assert abs(part["snr"] - ratio) < 4 * part["snr_error"] < ratio, cost
        assert part["snr_batch"] == 16 * part["snr"]
    if not sampled:
        assert found["kl"]["sampling"] == 0


def words(lengths=(4, 5, 6, 7)):
    """12 sentences of so many words."""
    return numbered(12, lengths, "train")


def vae():
    torch.manual_seed(0)
    sizes = {"vocab_size": 200, "embedding": 3, "hidden": 5, "latent": 2, "init": 0.5}
    return GaussianVAE(LSTMEncoder(**sizes), LSTMDecoder(**sizes, dropout=0.5))


def stochastic():
    torch.manual_seed(0)
    like = LSTMDecoder(vocab_size=200, embedding=3, hidden=5, latent=2, dropout=0.5)
    generator = Generator(like, mlp=4, units=2, sees_history=False)
    return StochasticLSTM(Inference(200, 3, 5, 4, 2), generator, 2)


@pytest.mark.parametrize("make", [vae, stochastic])
def test_a_sentence_alone_has_the_gradient_that_it_has_in_a_batch(make):
    """And of a code with steps, whose KL hangs on what was drawn, a noise of that, too."""
    model, rows = make().eval(), np.arange(12)
    split = words((5,)) if make is stochastic else words()  # with its length its noise changes
    weights = [w for part in gradients.inference_parts(model).values() for w in part.parameters()]
    assert {id(w) for w in weights} == {id(w) for w in model.parts()["encoder"].parameters()}
    alone = [[*gradients.gradients(model, split, row, weights, CPU)] for row in rows.tolist()]
    for draw in (0, 1):
        noise = Noise("train", torch.as_tensor(rows), draw)
        batch = model.draw(split.batch(rows).but(noise=noise))
        for place, cost in enumerate((-batch.log_px.sum(), batch.kl.sum())):
            whole = torch.autograd.grad(
                cost, weights, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            summed = torch.stack([sentence[draw][place] for sentence in alone]).sum(0)
            torch.testing.assert_close(summed, torch.cat([w.flatten() for w in whole]))
            assert summed.abs().max() > 0.01
    found = gradients.noise(model, split, rows, 4, CPU)
    assert (found["kl"]["sampling"] > 0) == (make is stochastic)
    assert found["rec"]["sampling"] > 0


def test_nothing_is_left_behind():
    model, state = vae().eval(), torch.get_rng_state()
    gradients.noise(model, words(), np.arange(12), 4, CPU)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state) and not model.training


def test_a_posterior_that_is_the_prior_has_no_ratio():
    model = vae().eval()
    nn.init.zeros_(model.parts()["encoder"].get_parameter("head.weight"))
    kl = gradients.noise(model, words(), np.arange(12), 4, CPU)["kl"]
    assert kl == {"signal": 0, "between": 0, "sampling": 0} | dict.fromkeys(
        ("snr", "snr_error", "snr_batch")
    )


def test_what_cannot_be_measured_is_refused():
    lm = LanguageModel(LSTMDecoder(vocab_size=200, embedding=3, hidden=5, latent=0, dropout=0.0))
    with pytest.raises(UserError, match="infers nothing"):
        gradients.noise(lm, words(), np.arange(12), 4, CPU)
    with pytest.raises(UserError, match=f"{GROUPS} sentences or more, not of 3"):
        gradients.noise(vae(), words(), np.arange(3), 4, CPU)
