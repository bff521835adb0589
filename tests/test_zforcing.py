"""Z-Forcing: the model step by step, and what its auxiliary cost may and may not move."""

import math

import pytest
import torch
from torch.distributions import Normal

from benchmark.api import BOS, EOS, PAD, Batch, Draw
from benchmark.noise import Noise
from benchmark.objectives import negative_elbo
from tests.test_methods import recipe, sentences

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


def two_layers(net, *features):
    hidden = torch.nn.functional.leaky_relu(
        torch.cat(features, -1) @ net[0].weight.T + net[0].bias, 1 / 3
    ).clamp(-3, 3)
    mean, log_variance = (hidden @ net[1].weight.T + net[1].bias).clamp(-8, 8).chunk(2, -1)
    return Normal(mean, (log_variance / 2).exp())


def lstm_by_hand(cell, x, h, c):
    gates = x @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


@pytest.mark.parametrize("sees_history", [False, True])
def test_a_draw_is_the_model_written_out_step_by_step(sees_history):
    """One sentence, by a loop of its own: every density, the rate and both extra costs."""
    model = make_model(sees_history=sees_history)
    batch = some(1).but(noise=Noise("test", torch.arange(1)))
    with torch.no_grad():
        draw = model.draw(batch)
        g, q = model.generator, model.inference
        eps = Noise("test", torch.arange(1)).normal(1, 13, 3)[0]
        x, y = batch.source[0, :-1], batch.source[0, 1:]
        b, state = [], None
        for t in reversed(range(13)):
            out, state = q.lstm(g.embed(y[t]).view(1, 1, -1), state)
            b.insert(0, out[0])  # [1, H]
        h = c = torch.zeros(1, 6)
        log_px = log_pz = log_qz = auxiliary = backward = 0.0
        kl = torch.zeros(3)
        for t in range(13):
            prior, posterior = two_layers(g.prior, h), two_layers(q.posterior, h, b[t])
            z = posterior.mean + posterior.stddev * eps[:, t]
            features = (h, z) if sees_history else (z,)
            forced = two_layers(g.auxiliary, *features)
            auxiliary -= Normal(forced.mean.tanh(), forced.stddev).log_prob(b[t]).sum()
            backward -= torch.log_softmax(b[t] @ q.output.weight.T, -1)[0, x[t]]
            kl += torch.distributions.kl_divergence(posterior, prior)[0]
            log_pz += prior.log_prob(z).sum()
            log_qz += posterior.log_prob(z).sum()
            word = torch.cat([z @ g.code.weight.T + g.code.bias, g.embed(x[t])[None]], -1)
            h, c = lstm_by_hand(g.cell, word, h, c)
            log_px += torch.log_softmax(h @ g.output.weight.T, -1)[0, y[t]]
    got = (draw.log_px, draw.log_pz, draw.log_qz, draw.aux["auxiliary"], draw.aux["backward"])
    wanted = (log_px, log_pz, log_qz, auxiliary, backward)
    for value, expected in zip(got, wanted, strict=True):
        assert float(value) == pytest.approx(float(expected), rel=1e-4)
    torch.testing.assert_close(draw.kl[0], kl, rtol=1e-4, atol=1e-4)


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
    model.inference.posterior.forward = lambda h, b: model.generator.prior(h)
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
