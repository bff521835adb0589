"""The models and the token likelihood against independent computations."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from benchmark.api import BOS, EOS, PAD, Batch
from benchmark.models import (
    GaussianVAE,
    LanguageModel,
    LSTMDecoder,
    LSTMEncoder,
    gaussian_log_density,
    kl_to_standard,
    likelihood,
    standard_log_density,
    token_log_likelihood,
)
from benchmark.noise import Noise

VOCAB = 11


def make_batch(lengths: list[int], seed: int = 0) -> Batch:
    """Random sentences of so many words each, padded."""
    rng = torch.Generator().manual_seed(seed)
    source = torch.zeros(len(lengths), max(lengths) + 2, dtype=torch.long)
    for row, words in zip(source, lengths, strict=True):
        row[0] = BOS
        row[1 : words + 1] = torch.randint(4, VOCAB, (words,), generator=rng)
        row[words + 1] = EOS
    inputs = source[:, :-1].masked_fill(source[:, :-1] == EOS, PAD)
    steps = torch.tensor(lengths) + 1
    return Batch(source[:, 1:], inputs, source, steps, steps + 1)


def make_vae(seed: int = 0, latent: int = 3) -> GaussianVAE:
    torch.manual_seed(seed)
    sizes = dict(
        vocab_size=VOCAB, embedding=5, hidden=7, latent=latent, init=0.8, init_embedding=1.0
    )
    return GaussianVAE(LSTMEncoder(**sizes), LSTMDecoder(**sizes, dropout=0.0))


# -- the token likelihood -----------------------------------------------------------------------


def scores(slab: int, kept: int, hidden, weight, targets, upstream):
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    value = token_log_likelihood(hidden, weight, targets, slab, kept)
    return value.detach(), *torch.autograd.grad((value * upstream).sum(), (hidden, weight))


@pytest.mark.parametrize("cached", [0, 13 * 7, 10**9])
def test_slabs_change_neither_likelihood_nor_gradient(monkeypatch, cached):
    torch.manual_seed(0)
    monkeypatch.setattr(likelihood, "CACHED", cached)
    hidden, weight = 5 * torch.randn(50, 6), 5 * torch.randn(13, 6)  # some tokens are certain
    targets, upstream = torch.randint(0, 13, (50,)), torch.randn(50)
    h, w = hidden.double().requires_grad_(), weight.double().requires_grad_()
    by_hand = torch.log_softmax(h @ w.T, -1)[range(50), targets]
    exact = by_hand.detach(), *torch.autograd.grad((by_hand * upstream).sum(), (h, w))
    for slab, kept in product((13, 40, 13 * 49, 10**9), (0, 10**9)):
        found = scores(slab, kept, hidden, weight, targets, upstream)
        for a, b in zip(found, exact, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-4)
        with torch.no_grad():  # by another path
            value = token_log_likelihood(hidden, weight, targets, slab, kept)
        torch.testing.assert_close(value.double(), exact[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("grad", "kept"), [(True, 0), (True, 2000), (False, 0)])
def test_no_more_logits_than_a_slab_are_computed_at_once(monkeypatch, grad, kept):
    seen = []
    real = F.linear

    def watched(hidden, weight):
        logits = real(hidden, weight)
        seen.append(logits.numel())
        return logits

    monkeypatch.setattr(likelihood.F, "linear", watched)
    hidden = torch.randn(100, 4, requires_grad=grad)
    with torch.set_grad_enabled(grad):
        value = token_log_likelihood(
            hidden, torch.randn(20, 4), torch.zeros(100).long(), slab=200, kept=kept
        )
    assert max(seen) == 200 and sum(seen) == 2000
    if grad and kept == 0:
        value.sum().backward()
        assert max(seen) == 200 and sum(seen) == 4000  # each slab once more


def test_the_likelihood_can_be_differentiated_twice():
    torch.manual_seed(0)
    hidden = torch.randn(6, 3, dtype=torch.double, requires_grad=True)
    weight = torch.randn(5, 3, dtype=torch.double, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 3, 4, 0])

    # in single precision inside, hence the tolerance
    def total(h, w):
        return torch.log_softmax(h @ w.T, -1)[range(6), targets].sum()

    for slab in (10**6, 10):  # PyTorch's own, and ours
        value = token_log_likelihood(hidden, weight, targets, slab=slab).sum()
        (first,) = torch.autograd.grad(value, hidden, create_graph=True)
        second = torch.autograd.grad(first.square().sum(), weight)[0]
        (first,) = torch.autograd.grad(total(hidden, weight), hidden, create_graph=True)
        expected = torch.autograd.grad(first.square().sum(), weight)[0]
        torch.testing.assert_close(second, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_gradients_are_the_same_bits_whatever_threads_do(two_threads):
    """Frequent words meet in many tokens: threads must not add to one row as each comes along."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(1024, 256), torch.randn(2000, 256, requires_grad=True)
    targets = (torch.rand(1024) ** 6 * 2000).long()  # most are among the first of the words
    value = token_log_likelihood(hidden, weight, targets)
    assert value.grad_fn is not None and "_TokenLogLikelihood" in value.grad_fn.name()

    def gradient():
        return torch.autograd.grad(value, weight, torch.ones(1024), retain_graph=True)[0]

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(40))


# -- Gaussians ----------------------------------------------------------------------------------


def test_densities_and_kl_agree_with_torch_distributions():
    torch.manual_seed(1)
    mean, log_variance, z = torch.randn(3, 40, 5)
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    p = torch.distributions.Normal(torch.zeros(5), torch.ones(5))
    torch.testing.assert_close(gaussian_log_density(z, mean, log_variance), q.log_prob(z).sum(-1))
    torch.testing.assert_close(standard_log_density(z), p.log_prob(z).sum(-1))
    expected = torch.distributions.kl_divergence(q, p)
    torch.testing.assert_close(kl_to_standard(mean, log_variance), expected)
    assert (kl_to_standard(torch.zeros(3), torch.zeros(3)) == 0).all()


def test_every_code_is_scored_under_every_posterior():
    model, batch = make_vae(), make_batch([3, 5, 2, 9])
    z = torch.randn(6, 3)
    mean, log_variance = (value.detach() for value in model.encoder(batch))
    got = model.log_q(z, batch).detach()
    for n in range(6):
        for b in range(4):
            expected = gaussian_log_density(z[n], mean[b], log_variance[b])
            assert float(got[n, b]) == pytest.approx(float(expected), rel=1e-5)


def test_scoring_codes_survives_a_tiny_posterior_variance():
    """The expanded square would lose all digits in float32 at a standard deviation of 1e-4."""
    model, batch = make_vae(), make_batch([4])
    mean = torch.tensor([[3.0, -2.0, 1.0]])
    log_variance = torch.full((1, 3), 2 * math.log(1e-4))
    model.encoder.forward = lambda batch: (mean, log_variance)
    z = mean + 2e-4
    scale = math.exp(float(log_variance[0, 0]) / 2)
    offsets = (z.double() - mean.double()).flatten().tolist()
    expected = sum(stats.norm.logpdf(offset, scale=scale) for offset in offsets)
    assert float(model.log_q(z, batch)) == pytest.approx(expected, abs=1e-5)


# -- the VAE ------------------------------------------------------------------------------------


def test_a_draw_is_what_its_parts_say():
    model, batch = make_vae(), make_batch([3, 5, 2, 9])
    batch = batch.but(noise=Noise("test", torch.arange(4)))
    draw = model.draw(batch, k=3)
    mean, log_variance = model.encoder(batch)
    noise = Noise("test", torch.arange(4)).normal(3, 3)
    torch.testing.assert_close(draw.z, mean[:, None] + (log_variance / 2).exp()[:, None] * noise)
    torch.testing.assert_close(draw.log_px, model.log_px(batch, draw.z))
    torch.testing.assert_close(draw.log_px[:, 1:2], model.log_px(batch, draw.z[:, 1:2]))
    assert draw.kl.shape == (4, 3)


def test_kl_is_the_mean_of_log_q_less_log_p():
    model, batch = make_vae(), make_batch([3, 5])
    draw = model.draw(batch.but(noise=Noise("test", torch.arange(2))), k=20000)
    ratio = draw.log_qz - draw.log_pz
    error = ratio.std(-1) / math.sqrt(ratio.shape[1])
    assert ((ratio.mean(-1) - draw.kl.sum(-1)).abs() < 4 * error).all()


def test_every_word_of_the_vocabulary_is_embedded_and_learns():
    """The released code's padding_idx=-1 freezes the last word's decoder embedding."""
    model = make_vae()
    batch = make_batch([4])
    batch = batch.but(inputs=torch.full_like(batch.inputs, VOCAB - 1))
    (-model.draw(batch).log_px.sum()).backward()
    assert model.decoder.embed.weight.grad[VOCAB - 1].abs().sum() > 0


def test_initial_weights_are_those_of_the_paper():
    decoder = LSTMDecoder(vocab_size=500, embedding=30, hidden=40, latent=4, dropout=0.5)
    for name, parameter in decoder.named_parameters():
        bound = 0.1 if name == "embed.weight" else 0.01
        assert parameter.abs().max() <= bound, name
        share = stats.kstest(parameter.detach().flatten().numpy(), "uniform", (-bound, 2 * bound))
        assert share.pvalue > 1e-4, name
    assert all("bias" not in name or "lstm" in name for name, _ in decoder.named_parameters())


def test_the_decoder_reads_z_in_its_initial_state_and_at_every_step():
    model, batch = make_vae(), make_batch([6])
    z = torch.randn(1, 1, 3)
    there = model.log_px(batch, z)
    with torch.no_grad():
        model.decoder.initial.weight.zero_()
    without_start = model.log_px(batch, z)
    assert not torch.allclose(there, without_start)
    assert not torch.allclose(without_start, model.log_px(batch, -z))
    with torch.no_grad():  # the LSTM's columns for z
        model.decoder.lstm.weight_ih_l0[:, 5:].zero_()
    torch.testing.assert_close(model.log_px(batch, z), model.log_px(batch, -z))


# -- generation ---------------------------------------------------------------------------------


def test_greedy_decoding_takes_the_likeliest_word_at_each_step():
    model = make_vae(seed=3)
    z = torch.randn(8, 3)
    written = model.decode(z, max_length=12)
    for row, code in zip(written, z, strict=True):
        length = int((row == EOS).nonzero()[0]) + 1 if (row == EOS).any() else len(row)
        prefix = [BOS]
        for token in row[:length]:
            states, _ = model.decoder.step(
                torch.tensor([prefix]), code[None], model.decoder.start(code[None])
            )
            logits = model.decoder.output(states[0, -1]).detach()
            logits[[PAD, BOS]] = -math.inf
            assert int(logits.argmax()) == int(token)
            prefix.append(int(token))
        assert (row[length:] == PAD).all()


def test_samples_follow_the_model():
    """First words drawn at a temperature against the softmax they are drawn from."""
    model = make_vae(seed=4)
    torch.manual_seed(0)
    z = torch.randn(1, 3).expand(20000, -1)
    first = model.decode(z, max_length=1, temperature=0.7)[:, 0]
    start = model.decoder.start(z[:1])
    states, _ = model.decoder.step(torch.full((1, 1), BOS), z[:1], start)
    logits = model.decoder.output(states[0, 0]).detach() / 0.7
    logits[[PAD, BOS]] = -math.inf
    expected = 20000 * torch.softmax(logits, -1).numpy()
    counts = np.bincount(first.numpy(), minlength=VOCAB)
    kept = expected > 0
    assert counts[~kept].sum() == 0
    assert (
        stats.chisquare(counts[kept], expected[kept] * 20000 / expected[kept].sum()).pvalue > 1e-4
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_but_padding_follows_the_end(temperature):
    model = make_vae(seed=5)
    torch.manual_seed(0)
    written = model.decode(torch.randn(200, 3), max_length=30, temperature=temperature)
    ended = (written == EOS).cumsum(1) - (written == EOS).long() > 0
    assert (written[ended] == PAD).all() and (written[~ended] != PAD).all()
    assert (written != BOS).all()


# -- the language model -------------------------------------------------------------------------


def test_the_language_model_is_the_decoder_with_nothing_from_z():
    torch.manual_seed(0)
    decoder = LSTMDecoder(vocab_size=VOCAB, embedding=5, hidden=7, latent=0, dropout=0.0, init=0.8)
    model, batch = LanguageModel(decoder), make_batch([3, 5, 2])
    draw = model.draw(batch, k=4)
    assert draw.z is None and draw.kl.shape == (3, 0) and model.units == 0
    assert (draw.log_pz == 0).all() and (draw.log_qz == 0).all()
    states, _ = decoder.lstm(decoder.embed(batch.inputs))  # PyTorch's own zero state
    logits = torch.log_softmax(decoder.output(states), -1)
    by_token = logits.gather(-1, batch.targets[..., None])[..., 0] * batch.mask
    torch.testing.assert_close(draw.log_px, by_token.sum(-1)[:, None].expand(-1, 4))


# -- noise --------------------------------------------------------------------------------------


def test_noise_is_normal_and_independent():
    noise = Noise("test", torch.arange(400))
    x = noise.normal(50, 4).double()
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 1e-4
    second = noise.normal(50, 4).double()  # another call, another stream
    columns = torch.cat([x, second], -1).reshape(-1, 8)
    off = torch.corrcoef(columns.T) - torch.eye(8)
    assert off.abs().max() < 5 / math.sqrt(len(columns))
    neighbours = torch.corrcoef(torch.stack([x[:-1].flatten(), x[1:].flatten()]))[0, 1]
    assert abs(neighbours) < 5 / math.sqrt(x.numel())


def test_noise_depends_on_split_sentence_and_sample_alone():
    together = Noise("test", torch.tensor([5, 7, 9])).normal(6, 3)
    alone = Noise("test", torch.tensor([7])).normal(6, 3)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=0)
    slices = [Noise("test", torch.tensor([7]), first=k).normal(2, 3) for k in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(slices, 1), alone, rtol=0, atol=0)
    assert not torch.equal(Noise("valid", torch.tensor([7])).normal(6, 3), alone)
    assert not torch.equal(Noise("test", torch.tensor([8])).normal(6, 3), alone)


def test_noise_leaves_torch_random_state_alone():
    before = torch.get_rng_state()
    Noise("test", torch.arange(3)).normal(2, 3)
    assert torch.equal(before, torch.get_rng_state())
