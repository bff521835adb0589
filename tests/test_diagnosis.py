"""The diagnosis against models of which it is known why their units died."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from benchmark import diagnose, diagnosis
from benchmark.cell import restore
from benchmark.diagnosis import Thresholds, information, parts, verdicts
from benchmark.placebo import Misread
from tests.cells import found as found_run
from tests.cells import run
from tests.test_evaluate import Known, linear_gaussian, normal, numbered

CPU = torch.device("cpu")


def gaussians(n=400, d=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * rng.uniform(0, 3, d), np.exp(rng.normal(size=(n, d)))


def test_the_rate_is_the_sum_of_three_parts_none_below_zero():
    mean, variance = gaussians()
    found = parts(mean, variance)
    by_hand = 0.5 * (mean**2 + variance - np.log(variance) - 1).mean(0)
    np.testing.assert_allclose(found.rate, by_hand, rtol=1e-12)
    total = found.capacity + found.heterogeneity + found.mismatch
    np.testing.assert_allclose(total, found.rate, rtol=0, atol=1e-10)
    for part in (found.capacity, found.heterogeneity, found.mismatch):
        assert (part > 0).all()


def test_a_unit_that_tells_two_kinds_of_sentence_apart():
    """The information of a mixture of two posteriors by quadrature, below its Gaussian bound."""
    n, spread = 1_500, 0.3
    kinds = np.arange(n) % 2
    mean, variance = (2.0 * kinds - 1)[:, None], np.full((n, 1), spread**2)
    codes = mean + spread * np.random.default_rng(0).normal(size=(n, 1))

    def mixture(z):
        return 0.5 * (stats.norm.pdf(z, -1, spread) + stats.norm.pdf(z, 1, spread))

    entropy = integrate.quad(lambda z: -mixture(z) * math.log(mixture(z)), -4, 4)[0]
    exact = entropy - 0.5 * math.log(2 * math.pi * math.e * spread**2)
    (told,) = information(codes, mean, variance)
    assert told == pytest.approx(exact, abs=0.01) and exact == pytest.approx(math.log(2), abs=0.01)
    assert parts(mean, variance).bound[0] > told + 0.4  # what is not Gaussian in the aggregate


def test_a_gaussian_unit_tells_its_capacity():
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=(2_000, 1)), np.full((2_000, 1), 0.25)
    codes = mean + 0.5 * rng.normal(size=mean.shape)
    found = parts(mean, variance)
    assert found.heterogeneity[0] == pytest.approx(0, abs=1e-12)
    assert information(codes, mean, variance)[0] == pytest.approx(0.5 * math.log(5), abs=0.05)
    assert found.capacity[0] == pytest.approx(0.5 * math.log(5), abs=0.05)


# S, U, I, read-out and what it is called, at the default thresholds
CASES = [
    ((0.001, 0.01, 0.01, 0.0), "weak"),
    ((0.02, 0.01, 0.01, 9.0), "noisy"),
    ((0.5, 0.4, 0.4, 0.01), "unread"),
    ((0.5, 0.4, 0.4, 0.5), "active"),
    ((0.9, 0.32, 0.008, 0.5), "outliers"),
]


@pytest.mark.parametrize(("unit", "verdict"), CASES)
def test_verdicts(unit, verdict):
    signal, bound, told, read = (np.array([value]) for value in unit)
    nothing = np.zeros(1)
    found = diagnosis.Parts(signal, nothing, nothing, bound, nothing, nothing)
    assert verdicts(found, told, read, Thresholds()) == [verdict]


def test_one_wild_sentence_makes_an_outlier():
    mean = np.zeros((1_000, 1))
    mean[0] = 30
    variance, rng = np.ones_like(mean), np.random.default_rng(0)
    found = parts(mean, variance)
    told = information(mean + rng.normal(size=mean.shape), mean, variance)
    assert found.bound[0] == pytest.approx(0.32, abs=0.01)
    assert told[0] == pytest.approx(0.008, abs=0.005)
    assert verdicts(found, told, np.ones(1), Thresholds()) == ["outliers"]


# -- whole models ---------------------------------------------------------------------------------


def test_the_optimal_linear_vae():
    """Lucas et al. 2019: p(x|z) = N(W z, s^2). At the optimum a unit's rate is 1/2 ln(l / s^2), l
    the data's variance along it, and all of it is capacity."""
    loading, noise = np.array([2.0, 1.0, 0.5, 0.0]), 0.5
    model, _ = linear_gaussian(2_000, loading, noise)
    found = diagnose.diagnose(model, numbered(2_000, (3, 5)), CPU)
    eigenvalue = loading**2 + noise
    rate = 0.5 * np.log(eigenvalue / noise)
    np.testing.assert_allclose(found.parts.signal, 1 - noise / eigenvalue, atol=0.05)
    np.testing.assert_allclose(found.parts.noise, noise / eigenvalue, atol=1e-6)
    np.testing.assert_allclose(found.parts.capacity, rate, atol=0.05)
    np.testing.assert_allclose(found.parts.heterogeneity, 0, atol=1e-6)
    np.testing.assert_allclose(found.parts.mismatch, 0, atol=0.01)
    np.testing.assert_allclose(found.information, rate, atol=0.06)
    assert found.verdicts == ["active"] * 3 + ["weak"]
    assert found.flags == [[]] * 4
    # -log p(x|z) is quadratic in z: the noise costs N w^2 / (2 s^2) a unit
    costs = (noise / eigenvalue * loading**2 / (2 * noise)).sum()
    assert found.distortion[1.0] - found.distortion[0.0] == pytest.approx(costs, rel=0.1)
    # y - w z has variance s^2 at one's own code and s^2 + 2 w^2 at another's
    rise = loading**2 / noise
    assert (np.abs(found.read - rise) < 3 * found.read_error + 1e-6).all()
    assert (found.read_error[:3] < 0.2 * rise[:3]).all()


def test_a_constant_a_noisy_an_unread_and_a_shifted_unit():
    n, rng = 600, np.random.default_rng(0)
    signal = rng.normal(size=n)
    moved = np.stack([0 * signal, 0.2 * signal, signal, 0 * signal + 1, signal], 1)
    variance = np.tile([1.0, 1.0, 0.2, 1.0, 0.1], (n, 1))
    told = torch.as_tensor(signal)

    def log_px(rows, z):  # the decoder reads the last unit alone
        return normal(z[..., 4:], told[rows][:, None, None], torch.tensor(0.2))

    found = diagnose.diagnose(Known(moved, variance, log_px), numbered(n, (3, 5)), CPU, n)
    assert found.verdicts == ["weak", "noisy", "unread", "weak", "active"]
    assert found.flags == [[], [], [], ["off prior"], []]
    assert found.read[:4] == pytest.approx([0] * 4) and found.read[4] > 1
    said = diagnose.paragraph(found)
    assert "1 is unread" in said and "2 are too weak" in said and "Unit 4 carries" in said
    assert "1 of them has an aggregate off the prior: 0.50 nats of rate" in said
    lines = diagnose.table(found).splitlines()
    assert len(lines) == 6 and lines[-1].endswith(("weak", "off prior"))


# -- the command ----------------------------------------------------------------------------------


def test_a_run_is_diagnosed(tmp_path, capsys):
    assert run(tmp_path / "cell") == 0
    path, known = found_run(tmp_path / "cell")
    before = (path / "run.json").read_bytes()
    capsys.readouterr()
    assert diagnose.main([str(path), "sentences=40"]) == 0
    out = capsys.readouterr().out
    assert "verdict" in out and "Of 8 units" in out
    record = json.loads((path / "diagnosis.json").read_text())
    assert (path / "run.json").read_bytes() == before
    assert sum(record["units"]["rate"]) == pytest.approx(known["summary"]["test"]["kl"], rel=1e-4)
    assert record["distortion_by_noise"].keys() == {"0.0", "0.25", "0.5", "1.0"}
    assert set(record["verdicts"]) == {"weak"} and len(record["flags"]) == 8
    # with no threshold to speak of, no unit is weak
    assert diagnose.main([str(path), "information=1e-9", "signal=1e-9", "read=1e-9"]) == 0
    assert "weak" not in json.loads((path / "diagnosis.json").read_text())["verdicts"]


def test_a_placebo_is_diagnosed_on_what_it_read(tmp_path):
    assert run(tmp_path / "cell", "placebo=true") == 0
    path, known = found_run(tmp_path / "cell")
    assert diagnose.main([str(path), "sentences=40"]) == 0
    rate = sum(json.loads((path / "diagnosis.json").read_text())["units"]["rate"])
    assert rate == pytest.approx(known["summary"]["test"]["kl"], rel=1e-4)
    model, split, _ = restore(path)
    assert isinstance(split, Misread) and not model.training


@pytest.mark.parametrize("words", [["method=lm"], ["method=temporal_delta_vae"]])
def test_a_run_without_one_code_a_sentence_is_refused(words, tmp_path, capsys):
    assert run(tmp_path / "cell", *words) == 0
    path, _ = found_run(tmp_path / "cell")
    assert diagnose.main([str(path)]) == 1
    assert "a diagnosis is of one code a sentence" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{}", "sentence=4"], "did you mean 'sentences'"),
        (["{}", "sentences=1"], "sentences must be at least 2, not 1"),
        (["{}", "signal=x"], "signal=x: could not convert"),
        (["{}", "read=-1"], "the threshold read must be above 0"),
        (["{}", "{}"], "name one run directory"),
        (["{}"], "is no run with a selected checkpoint"),
    ],
)
def test_a_wrong_word_is_told(words, told, tmp_path, capsys):
    assert diagnose.main([word.format(tmp_path) for word in words]) == 1
    assert told in capsys.readouterr().err and not list(tmp_path.iterdir())
