"""The evaluator against models whose likelihood and information are known exactly."""

import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from benchmark import evaluate as evaluator
from benchmark.api import BOS, EOS, PAD, Batch, Draw, LatentModel
from benchmark.config import Evaluation
from benchmark.data.synthetic import Plane
from benchmark.estimators import log_mean_exp
from benchmark.evaluate import Effort, Stopped, evaluate
from benchmark.models.gaussian import GaussianVAE, LanguageModel
from benchmark.models.lstm import LSTMDecoder, LSTMEncoder
from benchmark.noise import Noise
from benchmark.record import SUMMARY, TRUTH

CHEAP = Effort(
    elbo_samples=1, nll_samples=4, nll_sentences=20, read_candidates=8, read_sentences=20
)


class Sentences:
    """A split in memory. padding: columns of padding behind the longest sentence."""

    def __init__(self, sentences, name="test", padding=0):
        self.name, self.padding = name, padding
        self.sentences = [list(sentence) for sentence in sentences]
        self.lengths = np.array([len(sentence) + 1 for sentence in sentences])

    def __len__(self):
        return len(self.sentences)

    def batch(self, indices):
        lengths = self.lengths[indices]
        targets = torch.full((len(indices), lengths.max() + self.padding), PAD)
        for row, i in enumerate(indices):
            targets[row, : lengths[row]] = torch.tensor([*self.sentences[i], EOS])
        start = torch.full((len(indices), 1), BOS)
        inputs = torch.cat([start, targets[:, :-1]], 1)
        return Batch(
            targets=targets,
            inputs=inputs.masked_fill(inputs == EOS, PAD),
            source=torch.cat([start, targets], 1),
            target_lengths=torch.tensor(lengths),
            source_lengths=torch.tensor(lengths + 1),
        )


def numbered(n, lengths=(3,), name="test"):
    """n sentences whose first two words spell their number."""
    return Sentences(
        [[4 + i // 100, 4 + i % 100, *[4] * (lengths[i % len(lengths)] - 3)] for i in range(n)],
        name,
    )


def number(batch):
    return (batch.source[:, 1] - 4) * 100 + batch.source[:, 2] - 4


class Known(LatentModel):
    """Posteriors N(mean, variance) [N, U] from a table, prior N(0, I), and log p(x|z) from a
    function of (sentence numbers [B], z [B, K, U])."""

    def __init__(self, mean, variance, log_px):
        super().__init__()
        self.mean, self.variance = (torch.as_tensor(np.array(v)) for v in (mean, variance))
        self.score = log_px
        self.units = self.mean.shape[1]

    def moments(self, batch):
        rows = number(batch)
        return self.mean[rows], self.variance[rows]

    def draw(self, batch, k=1):
        mean, variance = self.moments(batch)
        z = mean[:, None] + variance.sqrt()[:, None] * batch.normal(k, self.units)
        return Draw(
            z=z,
            log_px=self.log_px(batch, z),
            log_pz=normal(z, torch.zeros(()), torch.ones(())),
            log_qz=normal(z, mean[:, None], variance[:, None]),
            kl=0.5 * (mean**2 + variance - variance.log() - 1),
        )

    def log_px(self, batch, z):
        return self.score(number(batch), z)

    def prior_codes(self, batch, k=1):
        return batch.normal(k, self.units)

    def posterior(self, batch):
        return self.moments(batch)

    def log_q(self, z, batch):
        mean, variance = self.moments(batch)
        return normal(z[:, None], mean, variance)

    def sample(self, n, *, max_length, temperature=1.0):
        raise NotImplementedError

    def reconstruct(self, batch, *, max_length):
        raise NotImplementedError

    def parts(self):
        return {}


def normal(x, mean, variance):
    return -0.5 * ((x - mean) ** 2 / variance + (2 * math.pi * variance).log()).sum(-1)


def linear_gaussian(n, loading, noise, seed=0, shift=0.0, widen=1.0):
    """A model and the exact -log p(x) [n] of n draws from it: y_d ~ N(loading z_d, noise), z_d ~
    N(0, 1). The posterior handed to the model is the true one, its mean shifted by `shift` and its
    standard deviation multiplied by `widen`."""
    rng = np.random.default_rng(seed)
    loading = np.asarray(loading, float)
    y = rng.normal(size=(n, len(loading))) * np.sqrt(loading**2 + noise)
    variance = noise / (loading**2 + noise)
    mean = np.tile(variance * loading / noise, (n, 1)) * y
    exact = 0.5 * (y**2 / (loading**2 + noise) + np.log(2 * np.pi * (loading**2 + noise))).sum(1)
    observed, weight = torch.as_tensor(y), torch.as_tensor(loading)

    def log_px(rows, z):
        return normal(observed[rows][:, None], weight * z, torch.tensor(noise))

    return Known(mean + shift, np.tile(widen**2 * variance, (n, 1)), log_px), exact


def reads_nothing(rows, z):
    return -10.0 - rows[:, None] - 0 * z.sum(-1)


def information(loading, noise):
    """I(x; z) of the linear-Gaussian model, in nats."""
    return 0.5 * np.log1p(np.square(loading) / noise).sum()


# ------------------------------------------------------------------------------------- likelihood


def test_exact_posterior_gives_the_exact_likelihood_whatever_the_samples():
    model, exact = linear_gaussian(300, [1.0, 2.0, 0.5], noise=0.3)
    for samples in (1, 7):
        effort = Effort(2, samples, None, 8, 20)
        report = evaluate(model, numbered(300), effort, exact_nll=exact, truth_mi=1.5)
        np.testing.assert_allclose(report.sentences["nll"], exact, atol=1e-5)
        assert report.summary["nll"] == pytest.approx(exact.mean(), abs=1e-5)
        assert report.summary["ess"] == pytest.approx(1, abs=1e-5)
        assert report.summary["nll_gap"] == pytest.approx(0, abs=1e-5)
        assert report.summary["truth_mi"] == 1.5
    assert report.summary["elbo_gap"] == pytest.approx(0, abs=0.1)
    assert report.summary["nll_se"] == pytest.approx(exact.std(ddof=1) / math.sqrt(300))
    assert report.summary["nll_half"] == pytest.approx(exact.mean(), abs=1e-5)


def test_importance_weighted_likelihood_is_within_its_error_and_below_the_elbo():
    model, exact = linear_gaussian(2_000, [1.0, 1.5], noise=0.5, shift=0.3, widen=1.3)
    effort = Effort(10, 400, 500, 8, 20)
    report = evaluate(model, numbered(2_000), effort, exact_nll=exact)
    summary, found = report.summary, report.sentences["nll"]
    inside = ~np.isnan(found)
    assert inside.sum() == summary["nll_sentences"] == 500
    gap = (found - exact)[inside]
    assert abs(gap.mean()) < 4 * gap.std() / math.sqrt(500)
    # the ELBO of all sentences takes the choice of the subset out
    neg_elbo = report.sentences["neg_elbo"]
    share = np.cov(neg_elbo[inside], found[inside])[0, 1] / neg_elbo.var(ddof=1)
    assert 0.5 < share < 1
    expected = found[inside].mean() + share * (neg_elbo.mean() - neg_elbo[inside].mean())
    assert summary["nll"] == pytest.approx(expected, abs=1e-9)
    assert abs(expected - found[inside].mean()) > 0.005 > abs(gap.mean())
    assert summary["nll"] < summary["nll_half"] + 0.01 < summary["neg_elbo"]
    assert summary["elbo_gap"] == pytest.approx(
        float(gap_of(shift=0.3, widen=1.3, noise=0.5, loading=[1.0, 1.5])), abs=0.05
    )
    assert 0.3 < summary["ess"] < 0.95
    assert summary["khat_bad"] < 0.05


def same_numbers(found, expected, tolerance):
    words = {"latent", "verdict"}
    assert {key: found[key] for key in words} == {key: expected[key] for key in words}
    numbers = [
        {k: v for k, v in summary.items() if k not in words} for summary in (found, expected)
    ]
    assert numbers[0] == pytest.approx(numbers[1], abs=tolerance, rel=tolerance)


def gap_of(shift, widen, noise, loading):
    """KL(q || posterior) of a shifted and widened exact posterior."""
    precision = 1 + np.square(loading) / noise
    return 0.5 * (shift**2 * precision + widen**2 - 1 - 2 * math.log(widen)).sum()


def test_narrow_posterior_is_caught_by_its_weights():
    model, _ = linear_gaussian(200, [1.0] * 4, noise=0.5, widen=0.4)
    report = evaluate(model, numbered(200), Effort(1, 500, None, 8, 20))
    assert report.summary["khat_bad"] > 0.8
    assert report.summary["ess"] < 0.1


def test_average_over_subsets_of_one_set_of_draws_grows_with_their_size():
    model, _ = linear_gaussian(50, [1.0, 1.0], noise=0.2, widen=1.5)
    draw = model.draw(numbered(50).batch(np.arange(50)), 7)
    weights = (draw.log_px + draw.log_pz - draw.log_qz).numpy()
    averages = [
        np.mean([log_mean_exp(weights[:, list(s)]) for s in itertools.combinations(range(7), k)])
        for k in range(1, 8)
    ]
    assert (np.diff(averages) > 0).all()


def test_samples_drawn_in_slices_are_the_samples_drawn_at_once(monkeypatch):
    model, _ = linear_gaussian(60, [1.0, 2.0], noise=0.3, widen=1.4)
    split, effort = numbered(60, lengths=(3, 4, 6)), Effort(5, 33, 40, 8, 20)
    whole = evaluate(model, split, effort)
    monkeypatch.setitem(evaluator.TOKENS, "cpu", 30)
    sliced = evaluate(model, split, effort)
    same_numbers(sliced.summary, whole.summary, 1e-9)


def test_half_of_the_samples_is_what_half_the_effort_finds():
    model, _ = linear_gaussian(60, [1.0, 2.0], noise=0.3, widen=1.6)
    whole = evaluate(model, numbered(60), Effort(2, 40, 30, 8, 20)).summary
    half = evaluate(model, numbered(60), Effort(2, 20, 30, 8, 20)).summary
    assert whole["nll_half"] == pytest.approx(half["nll"])
    assert whole["nll_half"] != pytest.approx(whole["nll"], abs=1e-5)


def test_another_prior_is_reported_beside_the_models_own():
    model, _ = linear_gaussian(100, [1.0], noise=0.3)

    class TwoPriors(Known):
        def draw(self, batch, k=1):
            draw = super().draw(batch, k)
            draw.log_pz_alt = {"wide": draw.log_pz - 0.25}
            return draw

    model.__class__ = TwoPriors
    summary = evaluate(model, numbered(100), CHEAP).summary
    assert summary["nll@wide"] == pytest.approx(summary["nll"] + 0.25)


def test_perplexity_counts_the_end_and_not_the_start():
    class Unigram(LatentModel):
        latent = "none"
        parts = sample = reconstruct = None

        def draw(self, batch, k=1):
            cost = torch.where(batch.target_lengths == 2, 3.0, 7.0)[:, None].expand(-1, k)
            return Draw(None, -cost, 0 * cost, 0 * cost, torch.empty(len(batch), 0))

        def log_px(self, batch, z):
            raise NotImplementedError

    report = evaluate(Unigram(), Sentences([[5], [6, 7, 8]]), CHEAP)
    assert report.summary["ppl"] == pytest.approx(math.exp((3 + 7) / (2 + 4)))
    assert report.summary["nll"] == report.summary["neg_elbo"] == 5
    assert report.summary["verdict"] == "none"
    empty = {key for key, value in report.summary.items() if value is None}
    assert {"kl", "mi", "au", "z_gain", "i_read", "nll_samples", "khat_bad"} <= empty
    assert empty == report.notes.keys()
    assert report.temperature is None


# ------------------------------------------------------------------------------------ information


def mean_information(key, nats, n, repeats):
    """The mean estimate over data sets of n sentences whose I(x; z) is `nats`."""
    effort = Effort(1, 1, 1, 2, 1)
    found = []
    for seed in range(repeats):
        model, _ = linear_gaussian(n, [1.0], noise=1 / math.expm1(2 * nats), seed=seed)
        found.append(evaluate(model, numbered(n, name=f"{seed}"), effort).summary[key])
    return np.mean(found), np.std(found) / math.sqrt(repeats)


@pytest.mark.parametrize(
    ("key", "nats", "n", "repeats", "expected"),
    [
        ("mi", 1, 32, 300, 0.944),
        ("mi", 1, 512, 40, 0.997),
        ("mi", 3, 32, 300, 2.561),
        ("mi", 3, 512, 40, 2.963),
        ("mi", 6, 32, 100, 3.401),
        ("mi", 6, 512, 40, 5.455),
        ("mi_loo", 1, 32, 300, 1.082),
        ("mi_loo", 1, 512, 40, 1.006),
        ("mi_loo", 3, 512, 40, 3.18),
        ("mi_batch32", 1, 32, 300, 0.944),
        ("mi_batch32", 3, 32, 300, 2.561),
        ("mi_batch32", 3, 512, 20, 2.561),
    ],
)
def test_information_of_gaussian_posteriors_has_the_known_bias(key, nats, n, repeats, expected):
    found, error = mean_information(key, nats, n, repeats)
    assert found == pytest.approx(expected, abs=4 * error + 0.003)
    assert error < 0.06


def test_information_is_that_of_the_mixtures_written_out():
    n = 20
    model, _ = linear_gaussian(n, [1.0, 2.0], noise=2.0)
    split = numbered(n)
    batch = split.batch(np.arange(n)).but(noise=Noise("test", torch.arange(n)))
    log_q = model.log_q(model.draw(batch).z[:, 0], batch).numpy()  # [code, sentence]
    own = np.diag(log_q)
    others = np.array([np.delete(row, i) for i, row in enumerate(log_q)])
    entropy = 0.5 * np.log(2 * math.pi * math.e * model.variance[0].numpy()).sum()
    summary = evaluate(model, split, CHEAP).summary
    assert summary["mi"] == pytest.approx((own - log_mean_exp(log_q)).mean())
    assert summary["mi_loo"] == pytest.approx((own - log_mean_exp(others)).mean())
    assert summary["mi_batch32"] == pytest.approx((-entropy - log_mean_exp(log_q)).mean())


@pytest.mark.parametrize("n", [2, 31, 100])
def test_information_never_exceeds_the_log_of_the_sentences(n):
    model, _ = linear_gaussian(n, [1.0, 1.0], noise=1e-8)
    summary = evaluate(model, numbered(n), CHEAP).summary
    assert summary["mi"] <= math.log(n)
    assert summary["mi"] == pytest.approx(math.log(n))
    assert summary["mi_n"] == n
    assert summary["mi_loo"] is None


def test_batch_information_is_cut_into_batches_of_one_length():
    model, _ = linear_gaussian(60, [1.0, 1.0], noise=1e-8)
    # 20 sentences of each length: every mixture has 20 of them, and none has 32
    summary = evaluate(model, numbered(60, lengths=(3, 4, 5)), CHEAP).summary
    assert summary["mi_batch32"] == pytest.approx(math.log(20), abs=0.5)
    # without a Gaussian's moments the own density is sampled too: an exact bound
    model.posterior = lambda batch: None
    summary = evaluate(model, numbered(60, lengths=(3, 4, 5)), CHEAP).summary
    assert summary["mi_batch32"] == pytest.approx(math.log(20), abs=1e-9)
    assert summary["au"] is None


def test_large_split_is_mixed_over_a_fixed_part(monkeypatch):
    monkeypatch.setattr(evaluator, "MI_MOST", 50)
    model, _ = linear_gaussian(200, [1.0], noise=1e-8)
    summary = evaluate(model, numbered(200), CHEAP).summary
    assert summary["mi_n"] == 50
    assert summary["mi"] == pytest.approx(math.log(50))


def test_active_units_are_those_whose_mean_varies_by_a_hundredth():
    n = 400
    unit = np.random.default_rng(0).normal(size=(n, 4))
    unit = (unit - unit.mean(0)) / unit.std(0, ddof=1)
    mean = unit * np.sqrt([0.0099, 0.0101, 1.0, 0.0]) + np.array([5.0, 0, 0, 30])
    report = evaluate(Known(mean, np.full((n, 4), 0.3), reads_nothing), numbered(n), CHEAP)
    assert report.summary["au"] == 2
    assert report.summary["units"] == 4
    expected = [0.0099, 0.0101, 1, 0]
    np.testing.assert_allclose(report.units["variance_of_mean"], expected, atol=1e-9)
    np.testing.assert_allclose(report.units["mean_of_variance"], [0.3] * 4)
    kl = 0.5 * (mean**2 + 0.3 - math.log(0.3) - 1)
    np.testing.assert_allclose(report.units["kl"], kl.mean(0))
    np.testing.assert_allclose(report.sentences["kl"], kl.sum(1))


# ---------------------------------------------------------------------------------------- reading


def test_decoder_that_reads_nothing_gains_nothing():
    n = 100
    mean = np.random.default_rng(0).normal(size=(n, 2))
    model = Known(mean, np.full((n, 2), 0.1), reads_nothing)
    report = evaluate(model, numbered(n), CHEAP)
    assert report.summary["kl"] > 0.5
    assert report.summary["z_gain"] == 0
    assert report.summary["z_gain_n"] == n
    assert report.summary["i_read"] == pytest.approx(0, abs=1e-12)
    assert report.summary["verdict"] == "idle"


@pytest.mark.parametrize("noise", [2.0, 0.3, 1e-4])
def test_what_is_read_is_at_most_what_there_is_and_what_can_be_told_apart(noise):
    loading = [1.0, 1.0]
    model, _ = linear_gaussian(1_000, loading, noise)
    effort = Effort(1, 1, 1, 64, 1_000)
    summary = evaluate(model, numbered(1_000), effort, temperature=1.0).summary
    truth = information(loading, noise)
    assert summary["i_read"] <= math.log(64)
    assert summary["i_read"] - 3 * summary["i_read_se"] < truth
    # with the exact posterior the decoder is the best critic: what is missing is the cap's doing
    assert summary["i_read"] > 0.85 * min(truth, math.log(64))
    assert summary["verdict"] == "read"


def test_temperature_rescues_the_bound_of_a_posterior_that_is_too_wide():
    # the rates are chosen so that I_q is 2.5 nats and the decoder's own score bounds nothing
    loading, noise, widen = [1.0] * 4, 0.02, 4.2
    valid, _ = linear_gaussian(2_000, loading, noise, seed=1, widen=widen)
    test, _ = linear_gaussian(2_000, loading, noise, seed=2, widen=widen)
    precision = 1 + 1 / noise
    mean_variance = 1 - 1 / precision
    truth = 4 * 0.5 * math.log1p(mean_variance / (widen**2 / precision))
    assert truth == pytest.approx(2.5, abs=0.25)
    effort = Effort(1, 1, 1, 64, 1_000)
    plain = evaluate(test, numbered(2_000), effort, temperature=1.0)
    fitted = evaluate(valid, numbered(2_000, name="valid"), effort)
    tempered = evaluate(test, numbered(2_000), effort, temperature=fitted.temperature)
    assert plain.summary["i_read"] < -1
    assert truth - 0.6 < tempered.summary["i_read"] < truth
    assert tempered.temperature == fitted.temperature > 1


def test_partners_have_the_same_length_and_nobody_is_his_own():
    # a code is its owner's number, and scores 1 where that is the sentence it is asked for
    lengths = (3, 4, 5)
    n = 31
    split = numbered(n, lengths)
    owner = np.arange(n)[:, None].astype(float)
    length_of = torch.tensor(split.lengths)

    def log_px(rows, z):
        of = z[..., 0].round().long()
        if z.shape[1] == 1:  # not i_read's candidates
            assert (length_of[of] == length_of[rows][:, None]).all()
        return (of == rows[:, None]).double()

    model = Known(owner, np.full((n, 1), 1e-9), log_px)
    summary = evaluate(model, split, CHEAP).summary
    assert summary["z_gain"] == 1
    assert summary["z_gain_se"] == 0
    alone = Sentences([*split.sentences, [4, 4 + 31, 4, 4, 4, 4, 4]])
    model = Known(np.arange(n + 1)[:, None].astype(float), np.full((n + 1, 1), 1e-9), log_px)
    length_of = torch.tensor(alone.lengths)
    assert evaluate(model, alone, CHEAP).summary["z_gain_n"] == n


# ------------------------------------------------------------------------- other kinds of latents


class Steps(LatentModel):
    """A code for each token, N(mean, 0.1): channel 0's mean is the token's, channel 1's the
    step's, and the decoder reads channel 0."""

    latent = "sequence"
    units = 2
    why_no_log_q = "its posterior is a path"
    sample = reconstruct = parts = None

    def posterior(self, batch):
        step = torch.arange(batch.targets.shape[1]).expand_as(batch.targets)
        word = batch.source[:, 1:] % 7
        mean = torch.stack([word, step], -1).double() * batch.mask[..., None]
        return mean, torch.full_like(mean, 0.1), batch.mask

    def draw(self, batch, k=1):
        mean, variance, mask = self.posterior(batch)
        z = mean[:, None] + variance.sqrt()[:, None] * batch.normal(k, *mean.shape[1:])
        real = mask[:, None, :, None]
        kl = 0.5 * (mean**2 + variance - variance.log() - 1) * mask[..., None]
        return Draw(
            z=z,
            log_px=self.log_px(batch, z),
            log_pz=(real * -0.5 * (z**2 + math.log(2 * math.pi))).sum((-1, -2)),
            log_qz=(real * -0.5 * ((z - mean[:, None]) ** 2 / 0.1 + math.log(0.2 * math.pi))).sum(
                (-1, -2)
            ),
            kl=kl.sum(1),
        )

    def log_px(self, batch, z):
        word = (batch.targets % 7).double()[:, None]
        return -((z[..., 0] - word) ** 2 * batch.mask[:, None]).sum(-1)


def words(n, lengths, seed=0, name="test", padding=0):
    rng = np.random.default_rng(seed)
    return Sentences([rng.integers(4, 30, rng.choice(lengths)) for _ in range(n)], name, padding)


def test_code_for_each_step_is_measured_over_real_steps():
    split = words(200, (2, 5, 9))
    report = evaluate(Steps(), split, Effort(2, 30, 50, 64, 100))
    summary = report.summary
    assert summary["au"] == 1  # a mean that moves with the step alone is no signal
    assert report.units["variance_of_mean"][1] == pytest.approx(0, abs=1e-9)
    flat = np.concatenate([(np.array([*s, EOS]) % 7) for s in split.sentences])
    assert 0.5 * flat.var() < report.units["variance_of_mean"][0] <= flat.var()
    np.testing.assert_allclose(report.units["mean_of_variance"], 0.1)
    padded = evaluate(Steps(), words(200, (2, 5, 9), padding=4), CHEAP)
    for name, values in padded.units.items():
        np.testing.assert_allclose(values, report.units[name], atol=1e-12)
    assert summary["mi"] is summary["mi_batch32"] is None
    assert report.notes["mi"] == "its posterior is a path"
    assert summary["z_gain"] > 5
    assert 2 < summary["i_read"] <= math.log(64)


def test_sentence_with_few_of_its_length_is_compared_with_those_there_are():
    split = Sentences([[5, 6], [7, 8], [9, 10], [5, 6, 7, 8]])
    summary = evaluate(Steps(), split, Effort(1, 2, None, 64, 100), temperature=0.01).summary
    assert summary["i_read"] == pytest.approx(math.log(3))  # of three; the fourth is left out
    assert summary["z_gain_n"] == 3


def test_codes_without_densities_keep_what_can_be_measured():
    drawn = set()

    class Implicit(Known):
        latent = "implicit"
        why_no_log_q = "the posterior is a point"

        def draw(self, batch, k=1):
            drawn.add(k)
            draw = super().draw(batch, k)
            nothing = torch.full_like(draw.log_px, math.nan)
            return Draw(draw.z, draw.log_px, nothing, nothing, torch.full_like(draw.kl, math.nan))

        def log_q(self, z, batch):
            return None

    model, _ = linear_gaussian(100, [1.0, 1.0], noise=0.1)
    model.__class__ = Implicit
    report = evaluate(model, numbered(100), Effort(2, 30, 50, 16, 100), exact_nll=np.ones(100))
    empty = {key for key, value in report.summary.items() if value is None}
    assert empty == report.notes.keys()
    lost = {"neg_elbo", "kl", "ppl", "mi", "mi_n", "mi_loo", "mi_batch32", "nll_gap", "elbo_gap"}
    lost |= {"nll", "nll_se", "nll_samples", "nll_sentences", "nll_half", "ess", "khat_bad"}
    assert empty == lost
    assert report.summary["verdict"] == "read"
    assert drawn == {2}  # no time goes into weights that there are none of


def test_diverged_model_shows_as_not_a_number_rather_than_as_without_meaning():
    model, _ = linear_gaussian(30, [1.0], noise=0.1)
    model.mean[:] = math.nan
    report = evaluate(model, numbered(30), Effort(2, 30, 20, 8, 20))
    assert math.isnan(report.summary["neg_elbo"])
    assert math.isnan(report.summary["nll"])
    assert math.isnan(report.summary["i_read"])
    assert report.summary["verdict"] == "unclear"
    assert not {"nll", "neg_elbo", "kl"} & report.notes.keys()


def test_single_sentence_and_empty_split():
    model, _ = linear_gaussian(1, [1.0], noise=0.1)
    report = evaluate(model, numbered(1), CHEAP)
    empty = {key for key, value in report.summary.items() if value is None}
    assert empty == report.notes.keys()
    assert {"mi", "z_gain", "i_read", "nll_se"} <= empty
    one_read = evaluate(linear_gaussian(9, [1.0], 0.1)[0], numbered(9), Effort(1, 1, 1, 4, 1))
    assert {"nll_se", "i_read_se"} <= one_read.notes.keys()
    without = LanguageModel(
        LSTMDecoder(vocab_size=30, embedding=8, hidden=8, latent=0, dropout=0.5)
    )
    assert "nll_se" in evaluate(without, words(1, (3,)), CHEAP).notes
    with pytest.raises(ValueError, match="no sentence"):
        evaluate(model, numbered(0), CHEAP)


@pytest.mark.parametrize(
    ("kl", "read", "error", "verdict"),
    [
        (0.04, 3.0, 0.1, "collapsed"),
        (2.0, 0.01, 0.01, "idle"),
        (2.0, 0.5, 0.1, "read"),
        (2.0, 0.1, 0.1, "unclear"),
        (2.0, None, None, "unclear"),
        (None, 0.5, 0.1, "read"),
    ],
)
def test_verdict(kl, read, error, verdict):
    summary = {"latent": "global", "kl": kl, "i_read": read, "i_read_se": error}
    assert evaluator._verdict(summary) == verdict


def test_an_encoder_is_asked_once_for_each_sentence_whatever_parts_it_has():
    """A part that is not there stays away; one as long as its sentence is told again."""
    split, asked = numbered(5, lengths=(3, 4)), []

    class Encoding(Known):
        def encode(self, batch):
            asked.append(len(batch))
            return None, number(batch).double(), batch.source[:, :length].double()

    model = Encoding(np.zeros((5, 1)), np.ones((5, 1)), reads_nothing)
    look = evaluator._Look(model, split, torch.device("cpu"), lambda: False, evaluator.Report())
    for rows, length, expected in [
        ([4, 0], 2, [2]),
        ([2], 2, [2, 1]),
        ([0, 2, 4], 2, [2, 1]),
        ([3, 1], 3, [2, 1, 2]),
        ([3, 1], 3, [2, 1, 2, 2]),
    ]:
        batch = split.batch(np.array(rows))
        found = look.encoded(np.array(rows), batch).encoded
        assert found is not None and found[0] is None
        told = number(batch).double(), batch.source[:, :length].double()
        torch.testing.assert_close(found[1:], told)
        assert asked == expected


# ------------------------------------------------------------------ as many samples as it takes


def weighed(samples, widen, n=150):
    """The report at so many samples, and each sentence's error."""
    model, exact = linear_gaussian(n, [1.0, 0.6], 0.5, widen=widen)
    report = evaluate(model, numbered(n, (3, 5)), Effort(1, samples, None, 8, 20))
    return report, report.sentences["nll"] - exact


def test_a_sentence_whose_weights_are_equal_takes_the_fewest_samples():
    report, errors = weighed("auto", widen=1.0)  # q is the true posterior
    assert report.summary["nll_samples"] == evaluator.LEVELS[0]
    assert np.abs(errors).max() < 1e-4
    assert report.estimators["nll"] == "iwae K=32-500 for an error of 0.05 n=150"


@pytest.mark.parametrize("widen", [0.7, 0.85, 1.2, 1.4])  # narrower and wider than the truth
def test_as_many_samples_as_a_sentence_needs_without_a_bias(widen):
    n = 1_500
    report, errors = weighed("auto", widen, n)
    _, at_most = weighed(evaluator.MOST, widen, n)
    assert 2 * evaluator.LEVELS[0] < report.summary["nll_samples"] < evaluator.MOST
    more = errors - at_most
    # an importance-weighted bound lies above by half its variance, whatever the number of samples
    allowed = evaluator.TOLERANCE**2 / 2 + 3 * more.std() / math.sqrt(n)
    assert abs(more.mean()) < allowed
    assert more.std() < 1.5 * evaluator.TOLERANCE
    few = np.std(weighed(evaluator.LEVELS[0], widen, n)[1])
    assert few > 1.2 * np.std(errors)


def test_a_sentence_with_a_heavy_tail_takes_the_most_samples_and_the_same():
    report, errors = weighed("auto", widen=0.4)
    fixed, same = weighed(evaluator.MOST, widen=0.4)
    assert report.summary["nll_samples"] > 0.9 * evaluator.MOST
    assert fixed.summary["nll_samples"] == evaluator.MOST
    assert np.mean(np.abs(errors - same) < 1e-5) > 0.85


def test_where_every_sentence_takes_the_most_samples_all_is_as_with_a_fixed_number():
    model, _ = linear_gaussian(150, [1.0] * 8, 0.5, widen=0.6)
    auto, fixed = (
        evaluate(model, numbered(150), Effort(1, samples, None, 8, 20)).summary
        for samples in ("auto", evaluator.MOST)
    )
    assert auto == fixed and 0.5 < fixed["khat_bad"] < 0.9


@pytest.mark.parametrize("widen", [0.4, 0.6, 0.7, 0.9])
def test_as_many_tails_are_bad_as_where_every_sentence_takes_the_most_samples(widen):
    """The weights' tail has the shape 1 - widen^2: .7 is at .55. Of 32 weights alone about .06 of
    the sentences are bad at .9, where the shape is .19."""
    auto, fixed = (weighed(samples, widen, 1_000)[0] for samples in ("auto", evaluator.MOST))
    assert auto.summary["khat_bad"] == pytest.approx(fixed.summary["khat_bad"], abs=0.025)
    assert (fixed.summary["khat_bad"] > 0.4) == (widen < 0.55)
    assert auto.estimators["khat_bad"] == "pareto K=96-500 with the pilot's n=1000"
    assert fixed.estimators["khat_bad"] == "pareto K=500 n=1000"


def test_a_further_prior_has_a_say_in_the_number_of_samples(monkeypatch):
    model, _ = linear_gaussian(60, [1.0, 0.6], 0.5)
    draw = model.draw

    def with_another(batch, k=1):
        found = draw(batch, k)
        return replace(found, log_pz_alt={"wild": found.log_pz + 2.5 * found.z[..., 0]})

    monkeypatch.setattr(model, "draw", with_another)
    report = evaluate(model, numbered(60, (3, 5)), Effort(1, "auto", None, 8, 20))
    assert report.summary["nll_samples"] > 200


# ------------------------------------------------------------------------------------ the real VAE


def lstm_vae(vocab_size=30, latent=2, hidden=24, seed=0):
    torch.manual_seed(seed)
    sizes = {"vocab_size": vocab_size, "embedding": 16, "hidden": hidden, "latent": latent}
    model = GaussianVAE(LSTMEncoder(**sizes), LSTMDecoder(**sizes, dropout=0.5))
    for parameter in model.parameters():  # away from the near-zero start: posteriors that differ
        nn.init.normal_(parameter, std=0.3)
    return model


def test_every_metric_of_the_record_is_there():
    report = evaluate(lstm_vae(), words(80, (3, 6)), Effort.final(Evaluation(nll_samples=30)))
    assert report.summary.keys() == SUMMARY.keys() - TRUTH
    assert not report.notes
    cheap = evaluate(lstm_vae(), words(80, (3, 6)), Effort.validation(Evaluation()))
    assert cheap.summary.keys() == report.summary.keys()
    assert cheap.notes.keys() == {"khat_bad"}  # 16 weights have no tail
    without = LanguageModel(
        LSTMDecoder(vocab_size=30, embedding=8, hidden=8, latent=0, dropout=0.5)
    )
    assert evaluate(without, words(80, (3, 6)), CHEAP).summary.keys() == report.summary.keys()


def test_evaluation_changes_no_weight_no_mode_and_no_random_state():
    class Careless(GaussianVAE):
        def draw(self, batch, k=1):
            torch.rand(1), np.random.rand(), random.random()
            return super().draw(batch, k)

    model = lstm_vae()
    model.__class__ = Careless
    model.extra = nn.BatchNorm1d(3)
    model.train()
    model.decoder.lstm.eval()

    def state():
        weights = {name: value.numpy().tobytes() for name, value in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        grads = [parameter.grad is None for parameter in model.parameters()]
        numpy = np.random.get_state()[1].tobytes()
        return weights, modes, grads, torch.get_rng_state().tolist(), numpy, random.getstate()

    before = state()
    evaluate(model, words(40, (3, 6)), CHEAP)
    assert state() == before
    with pytest.raises(Stopped):
        evaluate(model, words(40, (3, 6)), CHEAP, stop_requested=lambda: True)
    assert state() == before


def test_stopped_evaluation_goes_on_where_it_was_and_ends_alike(monkeypatch):
    monkeypatch.setitem(evaluator.TOKENS, "cpu", 200)
    model, split, effort = lstm_vae(), words(60, (2, 5, 8)), Effort(1, 30, None, 8, 20)
    whole = evaluate(model, split, effort)
    finished = {}

    def go_on(questions):
        asked = itertools.count()
        return evaluate(
            model,
            split,
            effort,
            finished=finished,
            stop_requested=lambda: next(asked) == questions,
        )

    kept = [0]
    for questions in (40, 60):
        with pytest.raises(Stopped):
            go_on(questions)
        kept.append(len(finished))
    assert kept[0] < kept[1] < kept[2]
    report = go_on(None)
    assert report.summary == whole.summary
    np.testing.assert_array_equal(report.sentences["nll"], whole.sentences["nll"])
    monkeypatch.setattr(evaluator, "_log_weights", None)  # nothing is left to weigh
    assert evaluate(model, split, effort, finished=finished).summary == whole.summary


def test_results_depend_neither_on_padding_nor_on_batches_nor_on_the_state_of_generators(
    monkeypatch,
):
    model, effort = lstm_vae(), Effort(3, 40, 30, 16, 30)
    plain = evaluate(model, words(90, (2, 5, 8)), effort)
    torch.manual_seed(99)
    np.random.seed(99)
    again = evaluate(model, words(90, (2, 5, 8)), effort)
    assert again.summary == plain.summary
    padded = evaluate(model, words(90, (2, 5, 8), padding=4), effort)
    monkeypatch.setitem(evaluator.TOKENS, "cpu", 100)
    small = evaluate(model, words(90, (2, 5, 8)), effort)
    for other in (padded, small):
        same_numbers(other.summary, plain.summary, 1e-5)
        for name in ("neg_elbo", "nll", "kl"):
            np.testing.assert_allclose(
                other.sentences[name], plain.sentences[name], rtol=1e-5, atol=1e-5
            )
    assert evaluate(model, words(90, (2, 5, 8), name="valid"), effort).summary != plain.summary


def test_subset_is_the_splits_own_and_nested():
    split = words(90, (2, 5))
    small, large = evaluator.subset(split, "nll", 20), evaluator.subset(split, "nll", 50)
    assert set(small) < set(large)
    assert len(evaluator.subset(split, "nll", None)) == 90
    assert (evaluator.subset(split, "nll", 200) == np.arange(90)).all()
    assert set(small) != set(evaluator.subset(words(90, (2, 5), name="valid"), "nll", 20))


@pytest.fixture(scope="module")
def plane():
    """Sentences of the plane, and a VAE with two dimensions that has learnt to use them."""
    truth = Plane(words=50, length=20, scale=1.0, seed=0)
    ids, _ = truth.sample(8_000, stream=0)
    split = Sentences(ids.tolist())
    model = lstm_vae(vocab_size=54, latent=2, hidden=32)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    rng = np.random.default_rng(0)
    for step in range(300):
        batch = split.batch(rng.integers(0, len(split), 64))
        draw = model.draw(batch)
        weight = 0.3 if step < 150 else 1.0
        loss = (weight * draw.kl.sum(1) - draw.log_px[:, 0]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model, Sentences(truth.sample(60, stream=2)[0].tolist())


def test_importance_weights_agree_with_quadrature_on_the_models_own_plane(plane):
    model, split = plane
    report = evaluate(model, split, Effort(10, 500, None, 16, 50))
    axis = torch.arange(-5, 5.01, 0.2)
    grid = torch.cartesian_prod(axis, axis)
    log_weight = normal(grid, torch.zeros(2), torch.ones(2)) + 2 * math.log(0.2)
    exact = []
    model.eval()
    with torch.no_grad():
        for i in range(len(split)):
            log_px = model.log_px(split.batch(np.array([i])), grid[None])[0]
            exact.append(-torch.logsumexp((log_px + log_weight).double(), 0).item())
    assert report.summary["kl"] > 1
    gap = report.sentences["nll"] - np.array(exact)
    assert abs(gap.mean()) < 0.05
    assert report.summary["neg_elbo"] > np.mean(exact) + 0.05
