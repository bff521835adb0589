"""Posteriors refined by gradient steps, and gradients through those steps, against the same written
out step by step, finite differences and models whose posterior is known."""

import copy
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from benchmark.api import Batch
from benchmark.compose import find_method
from benchmark.evaluate import Effort, evaluate
from benchmark.models import LSTMDecoder, RefinedVAE, Teacher, kl_to_standard, likelihood
from benchmark.models import lstm as lstm_module
from benchmark.models.refined import clipped, kl_between, reread
from benchmark.noise import Noise
from benchmark.objectives import negative_elbo
from tests.test_evaluate import Sentences
from tests.test_methods import TASK
from tests.test_models import VOCAB, make_batch

LOOSE: dict[str, Any] = {"clip": 1e9}  # that clips nothing
TIGHT: dict[str, Any] = {"clip": 0.5, "rate": 0.3}  # that clips about half


class WordsEncoder(nn.Module):
    """Mean and log variance from the words' embeddings, in the precision of its weights."""

    def __init__(self, latent: int):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 2 * latent)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.embed(batch.source).mean(1).chunk(2, -1)
        return mean, log_variance


def make(dropout: float = 0.0, latent: int = 2, **settings: Any) -> RefinedVAE:
    torch.manual_seed(0)
    decoder = LSTMDecoder(
        vocab_size=VOCAB, embedding=3, hidden=4, latent=latent, dropout=dropout, init=0.8
    )
    usual: dict[str, Any] = {"steps": 3, "rate": 0.2, "momentum": 0.5, "clip": 1e9}
    return RefinedVAE(WordsEncoder(latent), decoder, **usual | settings)


def noisy(batch: Batch, first: int = 0) -> Batch:
    return batch.but(noise=Noise("test", torch.arange(len(batch)), first))


def loss_of(model: RefinedVAE, batch: Batch) -> Tensor:
    """The training loss, a function of the weights alone."""
    torch.manual_seed(0)  # for dropout
    return negative_elbo(model.draw(noisy(batch)), batch, 0)


@pytest.fixture
def double(monkeypatch):
    """Likelihoods in double precision, where the model's own are in single."""

    def scores(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return (hidden @ weight.t()).log_softmax(-1).gather(1, targets[:, None])[:, 0]

    monkeypatch.setattr(lstm_module, "token_log_likelihood", scores)


# -- the gradient through the steps ----------------------------------------------------------------


@pytest.mark.parametrize("settings", [LOOSE, TIGHT], ids=["unclipped", "clipped"])
def test_the_gradient_is_that_of_the_whole_refined_loss(settings, double):
    """By central differences, each weight in a random direction; with dropout, whose masks stay."""
    model, batch = make(dropout=0.3, **settings).double().train(), make_batch([3, 5, 5])
    weights = dict(model.named_parameters())
    found = torch.autograd.grad(loss_of(model, batch), list(weights.values()))
    for (name, weight), gradient in zip(weights.items(), found, strict=True):
        direction, size, ends = torch.randn_like(weight), 1e-5, list[float]()
        for sign in (1, -1):
            weight.data.add_(sign * size * direction)
            ends.append(float(loss_of(model, batch).detach()))
            weight.data.sub_(sign * size * direction)
        numeric = (ends[0] - ends[1]) / (2 * size)
        assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=1e-6), name


def test_the_gradient_is_that_of_the_papers_backward_pass(double):
    """Kim et al.'s Algorithm 2, with Hessian-vector products by differences of gradients."""
    model, batch, rate, momentum = make(steps=4).double(), make_batch([3, 5, 5]), 0.2, 0.5
    q = torch.cat(model.encoder(batch), 1).detach()
    eps = Noise("test", torch.arange(3)).apart("refining")
    draws = [eps.normal(1, 2)[:, 0].double() for _ in range(4)]
    weights = list(model.decoder.parameters())

    def cost(q: Tensor, eps: Tensor) -> Tensor:
        mean, log_variance = q.chunk(2, 1)
        z = mean + (0.5 * log_variance).exp() * eps
        return (
            kl_to_standard(mean, log_variance).sum(1) - model.log_px(batch, z[:, None])[:, 0]
        ).sum()

    def slopes(q: Tensor, eps: Tensor) -> list[Tensor]:
        q = q.clone().requires_grad_()
        return [*torch.autograd.grad(cost(q, eps), [q, *weights])]

    pace, path = torch.zeros_like(q), []
    for eps in draws:
        path.append(q)
        pace = momentum * pace - slopes(q, eps)[0]
        q = q + rate * pace
    last = Noise("test", torch.arange(3)).normal(1, 2)[:, 0].double()
    of_q, *of_weights = (slope / 3 for slope in slopes(q, last))  # a mean over sentences
    of_pace, size = torch.zeros_like(q), 1e-5
    for q, eps in zip(reversed(path), reversed(draws), strict=True):
        of_pace = of_pace + rate * of_q
        ends = zip(slopes(q + size * of_pace, eps), slopes(q - size * of_pace, eps), strict=True)
        by_q, *by_weights = ((one - other) / (2 * size) for one, other in ends)
        of_q = of_q - by_q
        of_weights = [w - product for w, product in zip(of_weights, by_weights, strict=True)]
        of_pace = momentum * of_pace
    expected = torch.autograd.grad(
        torch.cat(model.encoder(batch), 1), [*model.encoder.parameters()], of_q
    )

    found = torch.autograd.grad(loss_of(model, batch), [*model.encoder.parameters(), *weights])
    for one, other in zip(found, [*expected, *of_weights], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("cached", [0, likelihood.CACHED])
def test_in_single_precision_the_gradient_is_the_same(cached, monkeypatch):
    """That of the libraries' LSTM and of the likelihood in slabs, which have other second
    derivatives than the plain ones in double precision."""
    model, batch = make(), make_batch([3, 5, 5])
    twin = copy.deepcopy(model).double()
    monkeypatch.setattr(likelihood, "CACHED", cached)
    found = torch.autograd.grad(loss_of(model, batch), [*model.parameters()])
    expected = torch.autograd.grad(loss_of(twin, batch), [*twin.parameters()])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-3, atol=1e-5)


def test_gradients_do_go_through_the_steps():
    model, batch = make(rate=0.5), make_batch([3, 5, 5])
    with torch.no_grad():
        refined = model.encode(noisy(batch))
    loss = loss_of(model, batch)
    found = torch.autograd.grad(loss, [*model.encoder.parameters(), model.decoder.output.weight])
    held = negative_elbo(model.draw(noisy(batch).but(encoded=refined)), batch, 0)
    assert float(held.detach()) == pytest.approx(float(loss.detach()), rel=1e-6)
    (without,) = torch.autograd.grad(held, model.decoder.output.weight)
    assert found[0].abs().max() > 1e-3 and (found[1] - without).abs().max() > 1e-3


# -- the steps ------------------------------------------------------------------------------------


class Target(nn.Module):
    """p(x|z) = N(y; z, 1/2) in each unit, y the sentence's first word less 6: p(z|x) is
    N(2 y / 3, 1/3)."""

    latent = 1

    def log_px(self, batch: Batch, z: Tensor) -> Tensor:
        y = (batch.targets[:, :1, None] - 6.0).to(z.dtype)
        return Normal(z, math.sqrt(0.5)).log_prob(y).sum(-1)


class Said(nn.Module):
    """An encoder that says the same of all sentences."""

    def __init__(self, mean: float, log_variance: float):
        super().__init__()
        self.said = nn.Parameter(torch.tensor([mean, log_variance]))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        said = self.said.expand(len(batch), 2)
        return said[:, :1], said[:, 1:]


def targeted(log_variance: float = 0.1, **settings: Any) -> RefinedVAE:
    usual: dict[str, Any] = {"steps": 3, "rate": 0.2, "momentum": 0.5, "clip": 1e9}
    decoder: Any = Target()
    return RefinedVAE(Said(0.3, log_variance), decoder, **usual | settings)


@pytest.mark.parametrize("clip", [1e9, 0.4])
def test_the_steps_are_gradient_descent_with_momentum(clip):
    """Written out for one sentence and one unit, where a clipped gradient has the length `clip`."""
    batch = noisy(make_batch([3, 5, 5, 2]))
    with torch.no_grad():
        mean, log_variance = targeted(clip=clip).encode(batch)
    assert batch.noise is not None and batch.noise.calls == 0
    stream = batch.noise.apart("refining")
    draws = [stream.normal(1, 1)[:, 0, 0].numpy() for _ in range(3)]
    for n, y in enumerate(batch.targets[:, 0].numpy() - 6.0):
        m, v, pace = 0.3, 0.1, np.zeros(2)
        for eps in draws:
            deviation = math.exp(v / 2)
            slope = 2 * (m + deviation * eps[n] - y)
            gradient = np.array(
                [m + slope, 0.5 * (math.exp(v) - 1) + slope * 0.5 * deviation * eps[n]]
            )
            pace = 0.5 * pace - np.clip(gradient, -clip, clip)
            m, v = np.array([m, v]) + 0.2 * pace
        assert (float(mean[n]), float(log_variance[n])) == pytest.approx((m, v), abs=1e-5)


def test_many_steps_lead_to_the_true_posterior():
    batch = noisy(make_batch([3] * 400))
    with torch.no_grad():
        mean, log_variance = targeted(steps=400, rate=0.01).encode(batch)
    truth = (batch.targets[:, :1] - 6) * 2 / 3
    assert float((mean - truth).mean()) == pytest.approx(0, abs=0.05)
    assert float(log_variance.mean()) == pytest.approx(math.log(1 / 3), abs=0.1)


def test_a_gradient_is_clipped_for_each_sentence_and_turned_for_none():
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    expected = torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(clipped(rows, 1.0), expected)


def test_a_clipped_sentence_is_refined_alone():
    model, batch = make(**TIGHT).eval(), noisy(make_batch([5, 5, 3]))
    with torch.no_grad():
        together = model.encode(batch)
        for i in range(3):
            part = {f: getattr(batch, f)[i : i + 1] for f in ("targets", "inputs", "source")}
            alone = batch.but(
                **part,
                target_lengths=batch.target_lengths[i : i + 1],
                source_lengths=batch.source_lengths[i : i + 1],
                noise=Noise("test", torch.tensor([i])),
            )
            # the embeddings' mean is that over the padding too
            for one, other in zip(model.encode(alone), together, strict=True):
                torch.testing.assert_close(one[0], other[i], rtol=1e-4, atol=1e-5)


def test_what_is_refined_on_is_the_sentence_in_source():
    model, batch = make(), make_batch([3, 6, 1])
    z = torch.randn(3, 4, 2)
    other = make_batch([6, 6, 6], seed=1)
    misled = batch.but(
        targets=other.targets, inputs=other.inputs, target_lengths=other.target_lengths
    )
    again = reread(misled)
    torch.testing.assert_close(model.log_px(again, z), model.log_px(batch, z))
    assert torch.equal(again.targets, batch.targets)
    assert torch.equal(again.target_lengths, batch.target_lengths)
    for one, two in zip(model.encode(noisy(misled)), model.encode(noisy(batch)), strict=True):
        assert torch.equal(one, two)


# -- surroundings ---------------------------------------------------------------------------------


def watched(model: RefinedVAE, look: Callable[[], Any]) -> list[Any]:
    """What is to be seen whenever a step scores a sentence."""
    seen, score = [], model.decoder.log_px

    def log_px(batch: Batch, z: Tensor) -> Tensor:
        seen.append(look())
        return score(batch, z)

    model.decoder.log_px = log_px  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("teacher", Teacher)
@pytest.mark.parametrize("training", [True, False])
def test_cudnn_has_no_part_where_its_lstm_has_no_gradient(teacher, training):
    model = make(teacher=teacher).train(training)
    seen = watched(model, lambda: torch.backends.cudnn.enabled)
    model.encode(make_batch([3, 5]))
    assert seen == [training and teacher is not Teacher.refined_cost] * 3


@pytest.mark.parametrize("teacher", Teacher)
def test_weights_have_gradients_in_the_steps_only_where_these_are_trained_through(teacher):
    model = make(teacher=teacher)
    seen = watched(model, lambda: [p.requires_grad for p in model.decoder.parameters()])
    mean, log_variance = model.encode(make_batch([3, 5]))
    through = teacher is Teacher.refined_cost
    assert seen == [[through] * len([*model.decoder.parameters()])] * 3
    assert mean.requires_grad == log_variance.requires_grad == through
    assert all(p.requires_grad for p in model.parameters())


def test_the_steps_are_in_single_precision_where_all_else_is_in_bf16():
    model, batch = make(), make_batch([3, 5])
    seen = watched(model, lambda: torch.is_autocast_enabled("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        negative_elbo(model.draw(batch), batch, 0).backward()
    assert seen == [False] * 3 + [True]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_evaluation_refines_though_it_wants_no_gradient():
    model, batch = make(steps=20, rate=0.05).eval(), noisy(make_batch([3, 5, 5, 4]))
    with torch.no_grad():
        refined, start = (m.draw(noisy(batch), 500) for m in (model, model.unrefined()))
    gain = (refined.log_px.mean(1) - refined.kl.sum(1)) - (start.log_px.mean(1) - start.kl.sum(1))
    assert gain.mean() > 0.1 and not refined.log_px.requires_grad
    assert all(p.grad is None for p in model.parameters())
    for one, other in zip(model.posterior(batch), (refined, start), strict=False):
        assert one.shape == (4, 2) and other.kl.shape == (4, 2)


def test_sentences_are_written_from_refined_means():
    model, batch = make(rate=0.5).eval(), noisy(make_batch([3, 5]))
    with torch.no_grad():
        mean, _ = model.encode(batch)
        torch.testing.assert_close(model.rewriting(batch, 6).start[-1], mean)
        assert torch.equal(model.reconstruct(batch, max_length=6), model.decode(mean, max_length=6))


# -- noise ----------------------------------------------------------------------------------------


def test_noise_set_apart_is_other_noise_whatever_the_sample():
    noise = Noise("test", torch.arange(400), first=7)
    apart = noise.apart("refining").normal(50, 2)
    assert torch.equal(Noise("test", torch.arange(400)).apart("refining").normal(50, 2), apart)
    assert not torch.equal(noise.apart("else").normal(50, 2), apart)
    own = Noise("test", torch.arange(400)).normal(50, 2)
    pairs = torch.stack([apart.flatten(), own.flatten()])
    assert abs(torch.corrcoef(pairs)[0, 1]) < 5 / math.sqrt(apart.numel())
    assert torch.equal(noise.normal(1, 2), Noise("test", torch.arange(400), 7).normal(1, 2))


def test_codes_have_the_noise_that_they_have_in_every_model():
    model, batch = make().eval(), make_batch([3, 5])
    with torch.no_grad():
        mean, log_variance = model.encode(noisy(batch))
        z = model.draw(noisy(batch), 4).z
    expected = Noise("test", torch.arange(2)).normal(4, 2)
    assert z is not None
    torch.testing.assert_close((z - mean[:, None]) / (0.5 * log_variance).exp()[:, None], expected)


def test_importance_weights_are_unbiased():
    """Their mean is p(x), though one long step makes posteriors of their own noise: were this the
    codes' noise too, these would come from another distribution than they are weighed by."""
    n = 20000
    model = targeted(steps=1, rate=0.2, momentum=0.0, log_variance=1.0).eval()
    with torch.no_grad():
        batch = noisy(make_batch([1] * n))
        draw = model.draw(batch.but(encoded=model.encode(batch)))
    y = batch.targets[:, 0] - 6.0
    exact = Normal(0.0, math.sqrt(1.5)).log_prob(y)
    weights = ((draw.log_px + draw.log_pz - draw.log_qz)[:, 0] - exact).double().exp()
    error = float(weights.std()) / math.sqrt(n)
    assert error < 0.02 and float(weights.mean()) == pytest.approx(1, abs=4 * error)


def test_a_sentence_is_refined_once_in_an_evaluation():
    model = make().eval()
    split = Sentences([[4 + i % 5] * (3 + i % 2) for i in range(24)])
    refined, refine = [], model.refine
    model.refine = lambda batch, start: refined.append(len(batch)) or refine(batch, start)
    report = evaluate(model, split, Effort(2, 8, None, 4, 10))
    assert sum(refined) == 24
    start = evaluate(model.unrefined(), split, Effort(2, 8, None, 4, 10))
    assert report.summary["neg_elbo"] < start.summary["neg_elbo"]


# -- who teaches the encoder -----------------------------------------------------------------------


def gradients(loss: Tensor, model: RefinedVAE) -> Sequence[Tensor]:
    wanted = [*model.encoder.parameters(), *model.decoder.parameters()]
    return torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("teacher", [Teacher.own_cost, Teacher.refined_posterior])
def test_an_encoder_learns_from_its_teacher_and_the_decoder_from_the_refined_cost(teacher):
    model, batch = make(teacher=teacher), make_batch([3, 5, 5])
    draw = model.draw(noisy(batch))
    lesson = gradients(draw.aux["encoder"].mean(), model)
    rest = gradients(negative_elbo(draw, batch, 0), model)
    assert lesson[0].abs().max() > 1e-3 and all((g == 0).all() for g in lesson[1:])
    assert (rest[0] == 0).all() and all(g.abs().max() > 0 for g in rest[1:])
    start = model.encoder(batch)
    if teacher is Teacher.refined_posterior:
        q, p = (Normal(m, (0.5 * v).exp()) for m, v in (start, model.refine(noisy(batch), start)))
        expected = kl_divergence(q, p).sum(1)
        torch.testing.assert_close(draw.aux["encoder"], expected)
    else:
        eps = Noise("test", torch.arange(3)).apart("refining").normal(1, 2)
        z = start[0][:, None] + (0.5 * start[1]).exp()[:, None] * eps
        expected = kl_to_standard(*start).sum(1) - model.log_px(batch, z)[:, 0]
        torch.testing.assert_close(draw.aux["encoder"], expected)
    torch.testing.assert_close(lesson[0], gradients(expected.mean(), model)[0])


def test_the_distance_of_two_gaussians():
    torch.manual_seed(0)
    q, p = ((torch.randn(5, 3), torch.randn(5, 3)) for _ in range(2))
    expected = kl_divergence(*(Normal(m, (0.5 * v).exp()) for m, v in (q, p)))
    torch.testing.assert_close(kl_between(q, p), expected)


# -- the method -----------------------------------------------------------------------------------


def recipe(**fields: Any):
    return find_method("sa_vae")(**fields).recipe(TASK)


class Watched:
    """A run that keeps the weight of the KL that each step's loss was computed with."""

    def __init__(self, model: RefinedVAE, t: int):
        self.model, self.t, self.weights = model, t, list[float]()

    def next(self) -> None:
        return None

    def loss(self, batch: Any) -> Tensor:
        self.weights.append(self.model.weight)
        return torch.zeros(())

    def descend(self, loss: Tensor) -> None:
        pass


@pytest.mark.parametrize(("t", "beta"), [(0, 0.1), (20, 0.55), (40, 1.0), (99, 1.0)])
def test_the_rate_is_annealed_in_the_loss_and_in_its_steps(t, beta):
    made = recipe(ramp=0.4)
    run = Watched(made.model, t)
    made.step(run)
    assert run.weights == [pytest.approx(beta)]
    draw = SimpleNamespace(log_px=torch.tensor([[-3.0]]), kl=torch.tensor([[2.0, 1.0]]), aux={})
    assert float(made.objective(draw, None, t)) == pytest.approx(3 + 3 * beta)
    lesson = SimpleNamespace(**vars(draw) | {"aux": {"encoder": torch.tensor([5.0])}})
    assert float(made.objective(lesson, None, t)) == pytest.approx(8 + 3 * beta)
    assert made.select_after == 0.4


def test_the_weight_is_that_of_the_steps_in_training_alone():
    model, batch = targeted(), make_batch([3, 5])
    q = torch.tensor([[0.5], [1.0]]), torch.tensor([[0.2], [-1.0]])
    kl = kl_to_standard(*q).sum(1)
    for training, weight in ((True, 0.25), (False, 1.0)):
        model.train(training).weight = 1.0
        full = model.cost(noisy(batch), *q)
        model.weight = 0.25
        torch.testing.assert_close(model.cost(noisy(batch), *q), full - (1 - weight) * kl)


def test_unannealed_and_trained_through_it_leaves_all_but_the_model_alone():
    made = recipe(ramp=0.0)
    assert made.model is not None and made.objective is made.step is None
    assert made.select_after == 0.0
    assert recipe(ramp=0.0, teacher=Teacher.own_cost).objective is not None


def test_the_settings_are_those_of_the_released_code_for_a_batch_of_32_like_sentences():
    """Theirs: a rate of 1 on the mean of the batch, and its gradient no longer than 5."""
    model = recipe(svi_steps=1, momentum=0.0).model
    for size in (0.1, 1.0, 100.0):
        gradient = torch.full((32, 3), size)
        mean = gradient / 32
        theirs = mean * min(1, 5 / float(mean.norm()))
        torch.testing.assert_close(
            model.rate * clipped(gradient, model.clip), theirs, rtol=1e-3, atol=0
        )


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"svi_steps": 0}, "svi_steps"),
        ({"svi_rate": 0.0}, "svi_rate"),
        ({"clip": 0.0}, "clip"),
        ({"momentum": 1.0}, "momentum"),
        ({"ramp": 1.5}, "ramp"),
    ],
)
def test_it_refuses_what_is_no_descent(fields, word):
    with pytest.raises(ValueError, match=word):
        recipe(**fields)
