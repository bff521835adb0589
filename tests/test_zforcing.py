"""Z-Forcing: the model against the textbook's, and what its auxiliary cost may and may not move."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from benchmark.api import BOS, EOS, PAD, Batch, Draw
from benchmark.models.stochastic import Recurrent
from benchmark.noise import Noise
from benchmark.objectives import negative_elbo
from tests.test_methods import recipe, sentences
from tests.textbook_zforcing import TextbookZForcing

WEIGHTS = (0.7, 0.4, 1.3)  # of the rate, the auxiliary cost and the backward language model
FIELDS = ("targets", "inputs", "source", "target_lengths", "source_lengths")


def make_model(**fields):
    torch.manual_seed(0)
    model = recipe("zforcing", **fields).model
    for parameter in model.parameters():  # large enough for every dependence to show
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def some(n: int) -> Batch:
    batch = sentences()
    batch = batch.but(inputs=batch.source[:, :-1])
    return batch.but(**{name: getattr(batch, name)[:n] for name in FIELDS})


# A module of the textbook -> the same module of the harness; layers of a Gaussian are numbered.
MODULES = {
    "embedding": "generator.embed",
    "reader": "inference.lstm",
    "reader_output": "inference.output",
    "prior": "generator.prior",
    "posterior": "inference.posterior",
    "auxiliary": "generator.auxiliary",
    "code": "generator.code",
    "cell": "generator.cell",
    "output": "generator.output",
}


def counterpart(name: str) -> str:
    module, _, rest = name.partition(".")
    return f"{MODULES[module]}.{rest.replace('inner', '0').replace('outer', '1')}"


def by_the_book(model, sees_history: bool) -> TextbookZForcing:
    """The textbook's model with the same weights."""
    theirs = TextbookZForcing(20, embedding=4, hidden=6, mlp=3, units=3, sees_history=sees_history)
    names = {counterpart(name) for name, _ in theirs.named_parameters()}
    assert names == {name for name, _ in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(model.get_parameter(counterpart(name)))
    return theirs


def uneven(lengths: list[int]) -> Batch:
    """Sentences of so many predicted tokens, padded."""
    batch, own = some(len(lengths)), torch.tensor(lengths)
    source, places = batch.source.clone(), torch.arange(14)
    source[places == own[:, None]] = EOS
    source[places > own[:, None]] = PAD
    inputs = source[:, :-1].masked_fill(source[:, :-1] == EOS, PAD)
    return Batch(source[:, 1:], inputs, source, own, own + 1)


@torch.no_grad()
def relative(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape and float(theirs.norm()) > 0
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("sees_history", [False, True])
@pytest.mark.parametrize("k", [1, 3])
def test_a_draw_and_its_gradients_are_the_textbooks(sees_history, k):
    """Every density, the rate, both extra costs and the gradient of all weights; the textbook
    meets the sentences one by one."""
    model, ids = make_model(sees_history=sees_history), torch.arange(5)
    batch = uneven([13, 6, 1, 9, 13]).but(noise=Noise("test", ids))
    draw = model.draw(batch, k)
    kl, auxiliary, backward = WEIGHTS
    loss = -draw.log_px.mean() + kl * draw.kl.sum(-1).mean()
    loss = loss + auxiliary * draw.aux["auxiliary"].mean() + backward * draw.aux["backward"].mean()
    loss.backward()

    theirs, eps = by_the_book(model, sees_history), Noise("test", ids).normal(k, 13, 3)
    rows = zip(batch.source, batch.target_lengths, eps, strict=True)
    each = [theirs.loss(x[: n + 1].expand(k, -1), e[:, :n], *WEIGHTS) for x, n, e in rows]
    wanted = {name: torch.stack([parts[name] for _, parts in each]) for name in each[0][1]}
    expected = torch.stack([value for value, _ in each]).mean()
    expected.backward()

    got = {"rec": -draw.log_px, "log_pz": draw.log_pz, "log_qz": draw.log_qz}
    means = {"kl": draw.kl.sum(-1), **draw.aux}  # over the samples
    found = {name: relative(value, wanted.pop(name)) for name, value in got.items()}
    found |= {name: relative(value, wanted.pop(name).mean(1)) for name, value in means.items()}
    named = [(name, p.grad) for name, p in theirs.named_parameters()]
    assert not wanted and all(gradient.any() for _, gradient in named)
    ours = [model.get_parameter(counterpart(name)).grad.flatten() for name, _ in named]
    found["gradient"] = relative(torch.cat(ours), torch.cat([g.flatten() for _, g in named]))
    found["loss"] = relative(loss, expected)
    assert all(value < 1e-5 for value in found.values()), found


def test_the_textbook_by_distributions_and_gates_written_out():
    """One sentence of two words: the baseline is held to arithmetic of another kind."""
    model = make_model()
    theirs, x, eps = by_the_book(model, False), torch.tensor([[BOS, 7, EOS]]), torch.randn(1, 2, 3)

    def gaussian(net, *features):
        inner = F.leaky_relu(net.inner(torch.cat(features)), 1 / 3).clamp(-3, 3)
        mean, log_variance = net.outer(inner).clamp(-8, 8).chunk(2)
        return Normal(mean, (log_variance / 2).exp())

    def step(cell, weights, value, h, c):
        w_x, w_h, b_x, b_h = (getattr(cell, name) for name in weights)
        i, f, g, o = (w_x @ value + b_x + w_h @ h + b_h).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    with torch.no_grad():
        _, parts = theirs.loss(x, eps)
        embedded, zero = theirs.embedding.weight, torch.zeros(6)
        last = step(theirs.reader, [f"{n}_l0" for n in names], embedded[EOS], zero, zero)
        first = step(theirs.reader, [f"{n}_l0" for n in names], embedded[7], *last)
        h, c, expected = zero, zero, dict.fromkeys(parts, 0.0)
        for t, (word, target, b) in enumerate([(BOS, 7, first[0]), (7, EOS, last[0])]):
            p, q = gaussian(theirs.prior, h), gaussian(theirs.posterior, h, b)
            z = q.mean + q.stddev * eps[0, t]
            forced = gaussian(theirs.auxiliary, z)
            forced = Normal(forced.mean.tanh(), forced.stddev)
            h, c = step(theirs.cell, names, torch.cat([theirs.code(z), embedded[word]]), h, c)
            expected["rec"] -= theirs.output(h).log_softmax(0)[target]
            expected["kl"] += kl_divergence(q, p).sum()
            expected["auxiliary"] -= forced.log_prob(b).sum()
            expected["backward"] -= theirs.reader_output(b).log_softmax(0)[word]
            expected["log_pz"] += p.log_prob(z).sum()
            expected["log_qz"] += q.log_prob(z).sum()
    for name, value in expected.items():
        assert float(parts[name]) == pytest.approx(float(value), rel=1e-5), name


@pytest.mark.parametrize("wanted", ["weight", "given", "h"])
def test_the_recurrence_says_that_it_is_differentiated_once_only(wanted):
    """Else a second derivative would lack what passes through the states."""
    leaves = {"weight": torch.randn(8, 2), "given": torch.randn(1, 3, 8), "h": torch.randn(3, 4, 2)}
    leaf = leaves[wanted].requires_grad_()
    gates = Recurrent(leaves["weight"], leaves["given"], 4)(leaves["h"], 0)
    total = gates.square().sum()
    (once,) = torch.autograd.grad(total, leaf, retain_graph=True)
    assert once.any()
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(total, leaf, create_graph=True)


def test_codes_handed_in_score_as_when_they_were_drawn():
    model, batch = make_model().eval(), some(5)
    with torch.no_grad():
        draw = model.draw(batch, 3)
        torch.testing.assert_close(model.log_px(batch, draw.z), draw.log_px)


def test_words_are_written_by_the_recurrence_that_scores_them():
    """Greedy words from codes handed in are the likeliest at every step of `unroll`."""
    model = make_model().eval()
    z = 5 * torch.randn(20, 9, 3)
    with torch.no_grad():
        words = model.decode(z, max_length=9)
        inputs = torch.cat([torch.full((20, 1), BOS), words[:, :-1]], 1)
        _, _, after = model.unroll(inputs, 1, lambda h, t: z[:, None, t])
        logits = model.generator.output(after[:, 0])
    logits[..., [PAD, BOS]] = -math.inf
    real = words != PAD
    assert real.sum() > 50 and len(words[real].unique()) > 5
    assert torch.equal(logits.argmax(-1)[real], words[real])


def test_the_backward_reader_has_seen_the_target_of_its_step_and_what_follows():
    model, batch = make_model(), some(5)
    source = batch.source.clone()
    source[:, 6] = 4 + (source[:, 6] - 3) % 16  # the target of place 5
    with torch.no_grad():
        moved = model.read(batch) != model.read(batch.but(source=source))
    assert moved[:, :6].any(-1).all() and not moved[:, 6:].any()


def test_the_backward_reader_begins_at_the_sentences_own_end():
    model, batch = make_model(), some(5)
    padded = batch.but(source=torch.nn.functional.pad(batch.source, (0, 4)))
    with torch.no_grad():
        torch.testing.assert_close(model.read(padded)[:, :13], model.read(batch))


def test_no_gradient_flows_from_the_auxiliary_cost_into_its_target():
    """With the posterior deaf to b, the reader could only be reached through the target."""
    model, batch = make_model(), some(5)
    with torch.no_grad():
        model.inference.posterior[0].weight[:, 6:] = 0
    model.draw(batch).aux["auxiliary"].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.inference.lstm.parameters())
    assert model.generator.auxiliary[0].weight.grad.any()
    assert model.inference.posterior[0].weight.grad.any()  # through z it does move the posterior


def test_with_its_weights_off_the_objective_is_the_negative_elbo():
    model, batch = make_model(), some(5)
    draw = model.draw(batch)
    plain = recipe("zforcing", kl_start=1.0, auxiliary_start=0.0, auxiliary_end=0.0).objective
    torch.testing.assert_close(plain(draw, batch, 0), negative_elbo(draw, batch, 0))


@pytest.mark.parametrize(("t", "kl", "forced"), [(0, 0.2, 0.1), (20, 0.6, 0.2), (40, 1, 0.3)])
def test_the_weights_at_listed_steps(t, kl, forced):
    batch = some(5)
    draw = Draw(
        z=None,
        log_px=torch.full((5, 1), -7.0),
        log_pz=torch.zeros(5, 1),
        log_qz=torch.zeros(5, 1),
        kl=torch.full((5, 3), 2.0),
        aux={"auxiliary": torch.full((5,), 11.0), "backward": torch.full((5,), 13.0)},
    )
    objective = recipe("zforcing", auxiliary_start=0.1, auxiliary_end=0.3, backward=0.5).objective
    expected = 7 + kl * 6 + forced * 11 + 0.5 * 13
    assert float(objective(draw, batch, t)) == pytest.approx(expected, rel=1e-6)


def test_the_auxiliary_part_is_no_part_of_an_evaluation():
    assert not make_model().eval().draw(some(2)).aux


def test_a_posterior_equal_to_its_prior_is_white():
    model = make_model()
    with torch.no_grad():
        for ours, prior in zip(model.inference.posterior, model.generator.prior, strict=True):
            ours.weight.zero_()[:, : prior.in_features] = prior.weight  # deaf to b
            ours.bias.copy_(prior.bias)
    draw = model.draw(some(4))
    mean, variance, mask = model.posterior(some(4))
    assert mask.shape == (4, 13)
    torch.testing.assert_close(mean, torch.zeros_like(mean))
    torch.testing.assert_close(variance, torch.ones_like(variance))
    torch.testing.assert_close(draw.kl, torch.zeros_like(draw.kl))


def test_samples_need_the_prior_path_alone():
    model = make_model()
    torch.manual_seed(1)
    before = model.sample(50, max_length=9)
    with torch.no_grad():
        for parameter in model.inference.parameters():
            parameter.fill_(math.nan)
    torch.manual_seed(1)
    assert torch.equal(model.sample(50, max_length=9), before)
    assert (before != BOS).all()
    ended = (before == EOS).cumsum(1) - (before == EOS).long() > 0
    assert ((before == PAD) == ended).all()


def test_recurrent_weights_begin_orthogonal():
    model = recipe("zforcing").model
    for weight in (model.generator.cell.weight_hh, model.inference.lstm.weight_hh_l0):
        for gate in weight.detach().chunk(4):
            torch.testing.assert_close(gate @ gate.T, torch.eye(6), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("fields", "word"),
    [({"backward": -1.0}, "negative"), ({"ramp": 0.0}, "ramp"), ({"units": 0}, "units")],
)
def test_zforcing_refuses_what_has_no_meaning(fields, word):
    with pytest.raises(ValueError, match=word):
        recipe("zforcing", **fields)
