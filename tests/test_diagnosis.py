"""The diagnosis against models of which it is known why their units died."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from benchmark.api import UNK
from benchmark.compose import UserError, find_method, method_names
from benchmark.config import Diagnosis
from benchmark.diagnosis import parts as diagnosis
from benchmark.diagnosis import words as words_of
from benchmark.diagnosis.measure import WHY_NO_INFORMATION, diagnosed
from benchmark.diagnosis.parts import information, verdicts
from benchmark.diagnosis.probes import explained, probes
from benchmark.diagnosis.reading import reading, told_apart
from benchmark.diagnosis.sentences import Mean
from benchmark.diagnosis.units import READ, rate, read_out, reliability
from benchmark.diagnosis.words import PLACES
from benchmark.evaluate import Moments, evaluate
from benchmark.noise import Noise
from tests.test_evaluate import (
    CHEAP,
    Known,
    linear_gaussian,
    normal,
    numbered,
    reads_nothing,
    words,
)
from tests.test_methods import TASK

CPU = torch.device("cpu")
DEFAULT = Diagnosis()


def parts(mean, variance, mask=None):
    """Of posteriors [N, D], or [N, T, D] with a mask [N, T]."""
    streamed = Moments()
    tensors = [torch.as_tensor(value) for value in (mean, variance)]
    for start in range(0, len(mean), 150):  # in batches, which are not to matter
        some = slice(start, start + 150)
        steps = () if mask is None else (torch.as_tensor(mask[some]),)
        streamed.add(*(value[some] for value in tensors), *steps)
    kl = 0.5 * (mean**2 + variance - np.log(variance) - 1)
    kl = kl if mask is None else (kl * mask[..., None]).sum(1)
    return diagnosis.parts(streamed.fetch(), kl.mean(0))


def gaussians(n=400, d=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * rng.uniform(0, 3, d), np.exp(rng.normal(size=(n, d)))


def test_the_rate_is_the_sum_of_three_parts_none_below_zero():
    mean, variance = gaussians()
    found = parts(mean, variance)
    # the mismatch is what the others leave of the rate: here from its own definition
    centre, total = mean.mean(0), mean.var(0) + variance.mean(0)
    gap = 0.5 * (total + centre**2 - 1 - np.log(total))
    np.testing.assert_allclose(found.mismatch, gap, rtol=0, atol=1e-10)
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


# S, U, I, read-out, its error and what it is called, at the default thresholds
CASES = [
    ((0.001, 0.01, 0.01, 0.0, 0.0), "weak"),
    ((0.02, 0.01, 0.01, 9.0, 0.0), "noisy"),
    ((0.5, 0.4, 0.4, 0.01, 0.01), "unread"),
    ((0.5, 0.4, 0.4, 0.01, 0.03), "undecided"),
    ((0.5, 0.4, 0.4, 0.5, 0.3), "undecided"),
    ((0.5, 0.4, 0.4, 0.5, 0.2), "active"),
    ((0.9, 0.32, 0.008, 0.5, 0.1), "outliers"),
]


@pytest.mark.parametrize(("unit", "verdict"), CASES)
def test_verdicts(unit, verdict):
    signal, bound, told, read, error = (np.array([value]) for value in unit)
    nothing = np.zeros(1)
    found = diagnosis.Parts(signal, nothing, nothing, bound, nothing, nothing)
    assert verdicts(found, DEFAULT, told, read, error) == [verdict]


def test_one_wild_sentence_makes_an_outlier():
    mean = np.zeros((1_000, 1))
    mean[0] = 30
    variance, rng = np.ones_like(mean), np.random.default_rng(0)
    found = parts(mean, variance)
    told = information(mean + rng.normal(size=mean.shape), mean, variance)
    assert found.bound[0] == pytest.approx(0.32, abs=0.01)
    assert told[0] == pytest.approx(0.008, abs=0.005)
    assert verdicts(found, DEFAULT, told, np.ones(1), np.zeros(1)) == ["outliers"]


def test_a_channel_with_steps_is_the_sum_of_its_steps():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 5, 700)
    mask = np.arange(4) < lengths[:, None]
    mean = rng.normal(size=(700, 4, 2)) * [0.5, 2] + 3 * np.arange(4)[:, None]
    variance = np.exp(rng.normal(size=(700, 4, 2)))
    found = parts(mean, variance, mask)
    for name in ("capacity", "heterogeneity", "mismatch"):
        alone = [
            getattr(parts(mean[mask[:, t], t], variance[mask[:, t], t]), name) * mask[:, t].mean()
            for t in range(4)
        ]
        np.testing.assert_allclose(getattr(found, name), np.sum(alone, 0), rtol=1e-9)
    # that the mean moves with the step alone is no signal
    assert found.signal == pytest.approx([0.25, 4], rel=0.15)


def test_the_evaluation_tells_the_parts():
    mean, variance = gaussians(300, 3)
    report = evaluate(Known(mean, variance, reads_nothing), numbered(300), CHEAP)
    found = parts(mean, variance)
    np.testing.assert_allclose(report.units["capacity"], found.capacity)
    np.testing.assert_allclose(report.units["heterogeneity"], found.heterogeneity)


def test_reliability_of_a_normal_population():
    """Means N(0, b), nuisances N(0, w): the intra-class correlation is b / (b + w), however many
    draws tell it; one draw's variance in place of b would score pure nuisance 1/2."""
    rng = np.random.default_rng(0)
    for b, w in ((1.0, 0.25), (0.0, 1.0)):
        draws = rng.normal(size=(20_000, 1)) * math.sqrt(b) + rng.normal(
            size=(3, 20_000, 1)
        ) * math.sqrt(w)
        between, within = draws.mean(0).var(0, ddof=1), draws.var(0, ddof=1).mean(0)
        assert diagnosis.reliability(between, within, 3) == pytest.approx(b / (b + w), abs=0.02)


# -- whole models ---------------------------------------------------------------------------------


def test_the_optimal_linear_vae():
    """Lucas et al. 2019: p(x|z) = N(W z, s^2). At the optimum a unit's rate is 1/2 ln(l / s^2), l
    the data's variance along it, and all of it is capacity."""
    loading, noise = np.array([2.0, 1.0, 0.5, 0.0]), 0.5
    model, _ = linear_gaussian(2_000, loading, noise)
    split = numbered(2_000, (3, 5))
    found, told, epsilon = rate(model, split, CPU, DEFAULT.delta)
    eigenvalue = loading**2 + noise
    optimal = 0.5 * np.log(eigenvalue / noise)
    np.testing.assert_allclose(found.signal, 1 - noise / eigenvalue, atol=0.05)
    np.testing.assert_allclose(found.noise, noise / eigenvalue, atol=1e-6)
    np.testing.assert_allclose(found.capacity, optimal, atol=0.05)
    np.testing.assert_allclose(found.heterogeneity, 0, atol=1e-6)
    np.testing.assert_allclose(found.mismatch, 0, atol=0.01)
    np.testing.assert_allclose(told, optimal, atol=0.06)
    columns, distortion = read_out(model, split, np.arange(2_000), CPU)
    read, error = columns["read"], columns["read_error"]
    # all but one in a hundred means lie within 2.576 deviations of 0
    own, moved = noise / eigenvalue, 1 - noise / eigenvalue
    least = 0.5 * (own + 2.576**2 * moved - 1 - np.log(own))
    np.testing.assert_allclose(epsilon, least, rtol=0.2, atol=1e-6)
    # the decoder reads each unit whatever the others are
    np.testing.assert_allclose(columns["alone"], read, rtol=1e-6, atol=1e-9)
    assert verdicts(found, DEFAULT, told, read, error) == ["active"] * 3 + ["weak"]
    assert diagnosis.flags(found, DEFAULT, np.ones(4), columns) == [[]] * 4
    # -log p(x|z) is quadratic in z: the noise costs N w^2 / (2 s^2) a unit
    costs = (noise / eigenvalue * loading**2 / (2 * noise)).sum()
    assert distortion["1.0"] - distortion["0.0"] == pytest.approx(costs, rel=0.1)
    # y - w z has variance s^2 at one's own code and s^2 + 2 w^2 at another's
    rise = loading**2 / noise
    assert (np.abs(read - rise) < 3 * error + 1e-6).all()
    assert (error[:3] < 0.2 * rise[:3]).all()


def test_the_decoder_of_the_linear_vae_reads():
    """The code of another sentence, or of the prior, has the same law here: N(0, 1) against x's own
    posterior; both cost w^2 / s^2. Its codes tell K sentences apart as far as I(x; z)."""
    loading, noise = np.array([1.0, 0.5]), 0.5
    model, _ = linear_gaussian(1_000, loading, noise)
    split = numbered(1_000, (3, 5))
    found, notes = reading(model, split, np.arange(1_000), CPU)
    for name in ("shuffled", "prior"):
        mean, error = found[name]
        assert mean == pytest.approx((loading**2 / noise).sum(), abs=4 * error) and error < 0.3
    assert found["sentences"] == 1_000 and found["by_position"] is None
    assert notes.keys() == {"by_position", "sensitivity", "prefix"}
    # of a Gaussian y - w z over z: Var (y - w z)^2 = 2 w^4 + 4 w^2 y^2, and E y^2 = w^2 + s^2
    square = loading**2
    flat = (2 * square**2 + 4 * square * (square + noise)).sum() / (2 * noise) ** 2
    mean, error = found["flatness"]
    assert mean == pytest.approx(flat, abs=4 * error) and error < 0.1 * flat
    apart = told_apart(model, numbered(1_000, (3, 5), "valid"), split, 1_000, 50, CPU)
    exact = 0.5 * np.log((loading**2 + noise) / noise).sum()
    for name in ("information", "i_read"):
        mean, error = apart[name]
        assert mean < math.log(50) and mean == pytest.approx(exact, abs=0.1), name
    assert abs(apart["unread"][0]) < 0.1 and not apart["saturated"] and apart["candidates"] == 50


def test_flatness_of_a_likelihood_linear_in_the_code_is_its_squared_slope():
    mean, variance = gaussians(2_000, 3)
    model = Known(mean, variance, lambda rows, z: 2 * z[..., 0] - z[..., 1])
    found, _ = reading(model, numbered(2_000), np.arange(2_000), CPU)
    value, error = found["flatness"]
    assert value == pytest.approx(5, abs=4 * error) and error < 0.02 * value


def test_a_decoder_that_ignores_the_code_reads_nothing():
    mean, variance = gaussians(300, 3)
    model = Known(mean, variance, reads_nothing)
    columns, distortion = read_out(model, numbered(300), np.arange(300), CPU)
    assert not np.any([*columns.values()]) and len({*distortion.values()}) == 1
    found, _ = reading(model, numbered(300), np.arange(300), CPU)
    assert found["shuffled"] == found["prior"] == found["flatness"] == [0, 0]
    apart = told_apart(model, numbered(300, name="valid"), numbered(300), 300, 30, CPU)
    assert apart["i_read"] == pytest.approx([0, 0]) and apart["unread"][0] > 1
    assert apart["information"][0] <= math.log(30)


def test_a_constant_a_noisy_an_unread_and_a_shifted_unit():
    n, rng = 600, np.random.default_rng(0)
    signal = rng.normal(size=n)
    moved = np.stack([0 * signal, 0.2 * signal, signal, 0 * signal + 1, signal], 1)
    variance = np.tile([1.0, 1.0, 0.2, 1.0, 0.1], (n, 1))
    told = torch.as_tensor(signal)

    def log_px(rows, z):  # the decoder reads the last unit alone
        return normal(z[..., 4:], told[rows][:, None, None], torch.tensor(0.2))

    found = diagnosed(
        Told(moved, variance, log_px),
        numbered(n, (3, 5), "valid"),
        numbered(n, (3, 5)),
        CPU,
        DEFAULT,
    )
    assert found["verdicts"] == ["weak", "noisy", "unread", "weak", "active"]
    assert found["flags"] == [[], [], [], ["off prior"], []]
    assert found["notes"]["probes/state"] and "probes/mean" not in found["notes"]
    assert found["units"]["read"][:4] == pytest.approx([0] * 4) and found["units"]["read"][4] > 1


def test_what_two_units_say_alike_either_alone_tells():
    """Either unit is enough for the decoder: to lose one costs nothing, to have one is all."""
    signal = np.random.default_rng(0).normal(size=400)
    told = torch.as_tensor(signal)

    def log_px(rows, z):
        return -(z - told[rows][:, None, None]).square().min(-1).values

    model = Told(np.stack([signal, signal], 1), np.full((400, 2), 1e-12), log_px)
    columns, _ = read_out(model, numbered(400, (3, 5)), np.arange(400), CPU)
    np.testing.assert_allclose(columns["read"], 0, atol=1e-4)
    assert (columns["alone"] > 1).all() and (columns["alone_error"] < 0.3).all()
    assert columns["shared"] == pytest.approx(columns["alone"], abs=1e-4)
    assert columns["shared_error"] == pytest.approx(columns["alone_error"], abs=1e-4)
    split = numbered(400, (3, 5))
    loud = Told(np.stack([signal, 0 * signal], 1), np.full((400, 2), 0.1), log_px)
    for tested, flagged in ((model, ["redundant"]), (loud, [])):
        found = diagnosed(tested, numbered(400, (3, 5), "valid"), split, CPU, DEFAULT)
        assert found["flags"][0] == [f for f in found["flags"][0] if f == "off prior"] + flagged


@pytest.mark.parametrize(
    ("bound", "read", "alone", "shared", "flagged"),
    [
        (1.0, (0.0, 0.02), (0.5, 0.1), (0.5, 0.1), True),
        (1.0, (0.28, 0.12), (0.3, 0.12), (0.02, 0.02), False),  # but not missed for certain either
        (1.0, (0.28, 0.12), (0.5, 0.12), (0.22, 0.1), True),
        (1.0, (0.28, 0.12), (0.5, 0.12), (0.22, 0.12), False),
        (1.0, (0.5, 0.1), (0.9, 0.1), (0.4, 0.1), False),  # missed
        (1.0, (0.0, 0.02), (0.24, 0.1), (0.24, 0.1), False),  # next to nothing alone
        (0.01, (0.0, 0.02), (0.5, 0.1), (0.5, 0.1), False),  # not written
    ],
)
def test_redundant_is_what_tells_more_alone_than_is_missed(bound, read, alone, shared, flagged):
    told = {"read": read, "alone": alone, "shared": shared}
    decoder = {name: np.array([value]) for name, (value, _) in told.items()}
    decoder |= {f"{name}_error": np.array([error]) for name, (_, error) in told.items()}
    one, nothing = np.ones(1), np.zeros(1)
    found = diagnosis.Parts(one, one, one, bound * one, nothing, nothing)
    assert diagnosis.flags(found, DEFAULT, one, decoder) == [["redundant"] * flagged]


def test_a_unit_collapses_where_all_but_delta_are_below():
    rates = np.arange(100)[:, None] / 100
    assert diagnosis.epsilon(rates, 0.01) == 0.98 and diagnosis.epsilon(rates, 0.5) == 0.49
    assert diagnosis.epsilon(rates, 0.0) == 0.99
    mean = np.sqrt(2 * rates)  # of variance 1: the KL is the rate
    model = Told(mean, np.ones_like(mean), reads_nothing)
    for delta in (0.01, 0.5):
        _, _, found = rate(model, numbered(100), CPU, delta)
        assert found == pytest.approx(diagnosis.epsilon(rates, delta))


class Told(Known):
    """Knows a sentence by its targets, whatever is blotted out of its source."""

    def rows(self, batch):
        return (batch.targets[:, 0] - 4) * 100 + batch.targets[:, 1] - 4

    def moments(self, batch):
        rows = self.rows(batch)
        return self.mean[rows], self.variance[rows]


class Fickle(Known):
    """Its first unit's mean is the share of words that are blotted out, its second the sentence's
    own number; its third's is dropout."""

    def __init__(self, n):
        super().__init__(np.zeros((n, 3)), np.full((n, 3), 0.1), reads_nothing)
        self.dropout = nn.Dropout(0.5)

    def moments(self, batch):
        blank = (batch.source == UNK).double().mean(1)
        own = batch.targets[:, 0].double() / 10
        dropped = self.dropout(torch.ones(len(batch), dtype=torch.float64))
        mean = torch.stack([blank, own, dropped], 1)
        return mean, torch.full_like(mean, 0.1)


def test_what_moves_a_posterior_besides_the_sentence():
    model = Fickle(400).eval()
    split = numbered(400, (6, 9))
    state = torch.get_rng_state()
    stable = reliability(model, split, np.arange(400), CPU, replace(DEFAULT, blotted=0.3))
    assert torch.equal(state, torch.get_rng_state()) and not model.dropout.training
    assert np.isnan(stable["dropout"][0])  # which nothing moves there: no word is blotted out
    assert stable["dropout"][1] == 1 and stable["dropout"][2] < 0.1
    assert stable["tokens"][0] < 0.2 and stable["tokens"][1] == 1
    assert stable["dropout_scale"] is None
    fixed = Told(np.zeros((9, 1)), np.ones((9, 1)), reads_nothing)
    assert reliability(fixed, numbered(9), np.arange(9), CPU, DEFAULT)["tokens"] is None


# -- probes ---------------------------------------------------------------------------------------


def test_a_probe_explains_what_is_linear():
    """Of y = x w + noise the share |w|^2 / (|w|^2 + s^2), whatever the features' scale; of what has
    nothing to do with x nothing, however many features there are. The error is the spread over
    repetitions."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        x, at = rng.normal(size=(2, 300, 3))
        noise, seen = rng.normal(size=(2, 300, 1))
        weights = np.array([[1.0], [0.5], [0.0]])
        scale = np.array([1e-4, 1.0, 1e4])
        found.append(
            explained(x * scale + 7, x @ weights + noise, at * scale + 7, at @ weights + seen)
        )
    share, error = np.array(found).T
    assert share.mean() == pytest.approx(1.25 / 2.25, abs=0.02)
    assert error.mean() == pytest.approx(share.std(), rel=0.25)
    x, at = rng.normal(size=(2, 300, 200))
    y, seen = rng.normal(size=(2, 300, 4))
    assert explained(x, y, at, seen)[0] == pytest.approx(0, abs=0.06)


class Stated(Told):
    """With an encoder that has a state."""

    def __init__(self, state, mean, variance):
        super().__init__(mean, variance, reads_nothing)
        self.encoder = nn.Module()
        self.encoder.last_state = lambda batch: torch.as_tensor(state)[self.rows(batch)]


def labelled(split, labels):
    split.labels = labels
    return split


@pytest.mark.parametrize(
    ("means", "shares", "said"),
    [
        (0.0, (1, 0, 0), "of that 100% is lost in the head"),
        (1.0, (1, 1, 0.5), "% is lost to the posterior's noise"),
        (3.0, (1, 1, 0.9), ""),
        (0.2, (1, 1, 0.04 / 1.04), "% is lost to the posterior's noise"),
    ],
)
def test_where_a_label_is_lost(means, shares, said):
    """A label of two classes is in the state as it is, in means +- m, and in codes of variance 1
    about them: a linear probe finds m^2 / (m^2 + 1) of it there."""
    n = 2_000
    label = np.random.default_rng(0).integers(0, 2, n)
    side = 2.0 * label - 1
    model = Stated(side[:, None], means * side[:, None], np.ones((n, 1)))
    splits = [labelled(numbered(n, (3, 5), name), 10**12 + label) for name in ("valid", "test")]
    found = probes(model, *splits, CPU)
    assert found.keys() == {"label", "length"}
    assert max(share for share, _ in found["length"].values()) < 0.02
    told = [found["label"][place] for place in PLACES]
    for share, (mean, error) in zip(shares, told, strict=True):
        assert mean == pytest.approx(share, abs=4 * error + 0.01)
    line = words_of.told({"probes": found})["Encoder"]
    assert line.startswith("Of the variance of the label a linear probe finds 100%")
    assert said in line and ("lost" in line) == bool(said)


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (2.0, -2.0), (0.5, 2.0)])
def test_a_probe_is_fitted_on_validation_and_read_on_test(a, b):
    """The label moves the mean by a in validation, by b and about another middle in test: there a
    line fitted to the former by hand misses as much."""
    n = 2_000
    label = np.random.default_rng(0).integers(0, 2, n)
    side, noise = 2.0 * label - 1, np.random.default_rng(1).normal(size=(2, n))
    x, at = a * side + noise[0], 3 + b * side + noise[1]
    valid, test = (labelled(numbered(n, name=name), label) for name in ("valid", "test"))
    model = Stated(np.zeros((n, 1)), x[:, None], np.ones((n, 1)))
    model.moments = lambda batch: (  # which of the two splits it is, the model is told
        torch.as_tensor(x if batch.noise.split == "valid" else at)[model.rows(batch), None],
        torch.ones(len(batch), 1, dtype=torch.double),
    )
    slope, middle = np.polyfit(x, side, 1)
    expected = 1 - np.mean((side - middle - slope * at) ** 2)
    (share, error) = probes(model, valid, test, CPU)["label"]["mean"]
    assert share == pytest.approx(expected, abs=0.01) and error > 0


def test_a_probe_needs_something_to_tell():
    model = Told(np.zeros((50, 1)), np.ones((50, 1)), reads_nothing)
    with pytest.raises(UserError, match="neither labels nor lengths"):
        probes(model, numbered(50, name="valid"), numbered(50), CPU)
    found = probes(model, numbered(50, (3, 5), "valid"), numbered(50, (3, 5)), CPU)
    assert found["length"]["state"] is None and found["length"]["mean"][0] < 0.1


# -- decoders of this suite -----------------------------------------------------------------------


def loud(method="vae"):
    """A method's model with weights large enough for every dependence to show."""
    task = replace(TASK, vocab_size=30)  # of `words`
    model = find_method(method)().recipe(task).model or task.model()
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


@torch.no_grad()
def test_units_that_share_one_rate_have_no_mismatch_of_their_own():
    """An encoder that points one way whatever it reads: an equal share of a constant KL says of no
    unit what it costs."""
    model, split = loud("vmf_vae"), words(60, (3, 6), name="test")
    model.encoder.forward = lambda batch: torch.eye(3)[:1].expand(len(batch), 3)
    found, _, epsilon = rate(model, split, CPU, 0.01)
    assert found.rate.sum() == pytest.approx(model.kl) and found.bound == pytest.approx(0, abs=1e-6)
    assert np.isnan([found.mismatch, epsilon]).all()
    decoder = {f"{name}{end}": np.zeros(3) for name in READ for end in ("", "_error")}
    assert diagnosis.flags(found, DEFAULT, np.ones(3), decoder) == [[]] * 3
    model.own_rates = True
    found, _, epsilon = rate(model, split, CPU, 0.01)
    assert diagnosis.flags(found, DEFAULT, np.ones(3), decoder) == [["off prior"]] * 3


@pytest.mark.parametrize("method", sorted({*method_names()} - {"stack"}))
@torch.no_grad()
def test_who_says_that_units_have_rates_of_their_own(method):
    model = loud(method)
    if model.latent != "none":
        kl = model.draw(words(6, (3, 6), name="test").batch(np.arange(6))).kl
        assert model.own_rates != bool(torch.allclose(kl, kl[:1, :1]))


@pytest.mark.parametrize("method", ["vae", "temporal_delta_vae", "zforcing"])
@torch.no_grad()
def test_what_is_read_by_position_is_what_is_read(method):
    model = loud(method)
    split = words(60, (3, 6), name="test")
    found, notes = reading(model, split, np.arange(60), CPU)
    places = found["by_position"]
    assert notes == {} and places["position"] == [*range(1, 8)]
    total = np.dot(places["gain"], places["sentences"]) / found["sentences"]
    assert total == pytest.approx(found["shuffled"][0], abs=1e-5)
    assert (
        min(places["error"]) > 0 and found["sensitivity"][0] > 0.01 and found["prefix"][0] > 0.001
    )
    again, _ = reading(model, split, np.arange(60), CPU)
    assert again == found


@torch.no_grad()
def test_sensitivity_by_hand():
    """One sentence of each length has no partner; two have each other."""
    model = loud()
    split = words(2, (4,))
    found, _ = reading(model, split, np.arange(2), CPU)
    batch = split.batch(np.arange(2))
    sentence = torch.arange(2)
    own = model.draw(batch.but(noise=Noise("test", sentence))).z[:, 0]
    other = batch.but(noise=Noise("test/prior", sentence)).normal(1, model.units)[:, 0]
    p, q = (model.predictions(batch, z[:, None])[:, 0].double() for z in (own, other))
    by_hand = [
        float(sum(p[i, t].exp() @ (p[i, t] - q[i, t]) for t in range(5)) / 5) for i in range(2)
    ]
    assert found["sensitivity"][0] == pytest.approx(np.mean(by_hand), rel=1e-5)
    drop = model.log_px(batch, own[:, None]) - model.log_px(batch, own.flip(0)[:, None])
    assert found["shuffled"][0] == pytest.approx(float(drop.mean()), rel=1e-5)


@torch.no_grad()
def test_a_decoder_whose_weights_for_the_code_are_zero_is_insensitive():
    model = loud()
    model.decoder.initial.weight.zero_()
    model.decoder.lstm.weight_ih_l0[:, -model.units :].zero_()
    split = words(60, (3, 6))
    found, _ = reading(model, split, np.arange(60), CPU)
    assert found["shuffled"] == found["prior"] == found["sensitivity"] == [0, 0]
    assert found["prefix"][0] > 0.001  # it reads the words
    assert not np.any([*read_out(model, split, np.arange(60), CPU)[0].values()])


@torch.no_grad()
def test_codes_with_a_step_for_each_word():
    split = words(80, (3, 6))
    for method, own_means in (("temporal_delta_vae", True), ("zforcing", False)):
        model = loud(method)
        found, told, _ = rate(model, split, CPU, DEFAULT.delta)
        assert told is None
        kl = evaluate(model, split, CHEAP).units["kl"]
        np.testing.assert_allclose(found.rate, kl, rtol=1e-5)
        columns, distortion = read_out(model, split, np.arange(80), CPU)
        assert {column.shape for column in columns.values()} == {(model.units,)}
        assert (distortion is not None) == own_means
        if not own_means:  # relative to a prior that follows the history every part is above 0
            assert (found.mismatch > -1e-6).all()
        units = diagnosed(model, words(80, (3, 6), name="valid"), split, CPU, DEFAULT)
        assert units["units"]["information"] is None
        assert units["notes"]["units/information"] == WHY_NO_INFORMATION["sequence"]


def test_errors_know_that_every_code_is_used_twice():
    """The spread of the mean over repetitions, against what is told; independent rows would tell
    1 / 1.25 of it."""
    found = []
    for seed in range(150):
        model, _ = linear_gaussian(120, [1.0], 0.5, seed=seed)
        columns, _ = read_out(model, numbered(120, (3, 5), f"test{seed}"), np.arange(120), CPU)
        found.append([columns["read"][0], columns["read_error"][0]])
    mean, error = np.array(found).T
    assert error.mean() == pytest.approx(mean.std(), rel=0.15)


def test_two_partners_are_one_pair():
    streamed = Mean()
    streamed.add(torch.tensor([[1.0], [3.0]]))
    streamed.add(torch.tensor([[2.0], [5.0], [4.0]]))
    mean, error, n = streamed.fetch()
    values = np.array([1, 3, 2, 5, 4.0]) - 3
    pairs = [(0, 1), (2, 3), (3, 4), (4, 2)]  # that share codes
    shared = 2 * sum(values[i] * values[j] for i, j in pairs)
    assert mean == [3] and n == [5]
    assert error[0] ** 2 == pytest.approx((values @ values + max(shared, 0)) / (5 * 4))


def test_means_relative_to_a_prior_tell_no_information():
    class Relative(Known):
        def posterior(self, batch):
            mean, variance = self.moments(batch)
            return mean - 5, variance

    model = Relative(
        np.random.default_rng(0).normal(size=(200, 1)) + 5, np.full((200, 1), 0.2), reads_nothing
    )
    assert rate(model, numbered(200), CPU, DEFAULT.delta)[1] is None
    assert read_out(model, numbered(200), np.arange(200), CPU)[1] is None


def test_without_partners_the_rest_is_told():
    mean, variance = gaussians(5, 2)
    split = numbered(5, (3, 4, 5, 6, 7))
    found = diagnosed(
        Told(mean, variance, reads_nothing), numbered(5, name="valid"), split, CPU, DEFAULT
    )
    assert "take more of them" in found["notes"]["units/read"] and found["units"]["rate"]
    assert found["units"]["read"] == [None, None] and found["reading"]["apart"]["candidates"] == 5
