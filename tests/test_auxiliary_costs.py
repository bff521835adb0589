"""Remedies that charge for something besides Rec and KL: their costs against independent
computations, and that no reported score knows of them."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark.api import BOS, EOS, PAD, Batch, Draw
from benchmark.compose import find_method
from benchmark.models import (
    GaussianVAE,
    Pool,
    gaussian_kernel,
    inverse_multiquadrics,
    kl_to_standard,
    squared_mmd,
)
from benchmark.objectives import negative_elbo
from methods.coupled_vae import Distance, apart
from methods.mmd_vae import Kernel
from tests.cells import TASK

WIDE = replace(TASK, init=0.8, init_embedding=0.8)  # near zero wrong formulas agree with right ones
LENGTHS = (3, 7, 1, 4, 7)  # words, without </s>


def recipe(name: str, **fields):
    torch.manual_seed(0)
    return find_method(name)(**fields).recipe(WIDE)


def sentences(lengths=LENGTHS) -> Batch:
    """Random words, each sentence's always the same, with padding up to the longest."""
    wide = torch.zeros(len(lengths), max(lengths) + 2).long()
    words = torch.tensor(lengths)
    batch = Batch(wide[:, 1:].clone(), wide[:, 1:].clone(), wide, words + 1, words + 2)
    for i, length in enumerate(lengths):
        words = torch.randint(4, 20, (length,), generator=torch.Generator().manual_seed(length))
        whole = torch.cat([torch.tensor([BOS]), words, torch.tensor([EOS])])
        batch.source[i, : length + 2] = whole
        batch.inputs[i, : length + 1], batch.targets[i, : length + 1] = whole[:-1], whole[1:]
    return batch


def draw_in_training(model, batch, k=1, seed=1) -> Draw:
    torch.manual_seed(seed)
    return model.train().draw(batch, k)


def codes(draw: Draw) -> torch.Tensor:
    assert draw.z is not None
    return draw.z


def value(scalar: torch.Tensor) -> float:
    return float(scalar.detach())


def gradients(model, loss) -> dict[str, float]:
    """The size of the gradient in each parameter, 0 where there is none."""
    model.zero_grad()
    loss.backward()
    return {
        name: 0.0 if p.grad is None else float(p.grad.abs().max())
        for name, p in model.named_parameters()
    }


def assert_only_the_plain_vae_is_scored(model):
    """In evaluation the model is, bit for bit, a VAE of its encoder and decoder alone."""
    batch, plain = sentences(), GaussianVAE(model.encoder, model.decoder).eval()
    model.eval()
    ours, theirs = [], []
    for found, scored in ((ours, model), (theirs, plain)):
        torch.manual_seed(3)
        draw = scored.draw(batch, 4)
        assert not draw.aux and not draw.log_pz_alt
        found += [draw.z, draw.log_px, draw.log_pz, draw.log_qz, draw.kl]
        found += [scored.sample(5, max_length=6), scored.reconstruct(batch, max_length=6)]
        found += [scored.log_q(codes(draw)[:, 0], batch), scored.predictions(batch, draw.z)]
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


# -- the bag of words -----------------------------------------------------------------------------


def test_the_bag_is_what_a_loop_over_words_says():
    model, batch = recipe("bow_vae").model, sentences()
    draw = draw_in_training(model, batch, k=2)
    hidden, output = model.bag.hidden, model.bag.output
    for i, length in enumerate(LENGTHS):
        total = 0.0
        for k in range(2):
            inner = torch.tanh(hidden.weight @ codes(draw)[i, k] + hidden.bias)
            logits = (output.weight @ inner + output.bias).tolist()
            norm = math.log(sum(math.exp(logit) for logit in logits))
            words = batch.targets[i, : length + 1].tolist()
            assert words[-1] == EOS and PAD not in words
            total += sum(norm - logits[word] for word in words) / 2
        assert value(draw.aux["bag"][i]) == pytest.approx(total, rel=1e-5)


def test_a_bag_that_knows_nothing_of_its_code_pays_the_unigram_cost_at_least():
    """At the words' frequencies it pays that, and no change of the frequencies helps."""
    model, batch = recipe("bow_vae").model, sentences()
    words = batch.targets[batch.mask].tolist()
    counts = Counter(words)
    unigram = -sum(math.log(counts[word] / len(words)) for word in words) / len(LENGTHS)
    with torch.no_grad():
        model.bag.output.weight.zero_()
        frequencies = torch.tensor([counts[word] for word in range(20)])
        model.bag.output.bias.copy_(frequencies.clamp(min=1e-12).log())
    cost = draw_in_training(model, batch).aux["bag"].mean()
    assert value(cost) == pytest.approx(unigram, rel=1e-5)
    assert gradients(model, cost)["bag.output.bias"] < 1e-5


def test_the_bag_is_charged_beside_the_elbo():
    made = recipe("bow_vae", weight=0.5)
    batch = sentences()
    draw = draw_in_training(made.model, batch)
    by_hand = negative_elbo(draw, batch, 0) + 0.5 * draw.aux["bag"].mean()
    assert value(made.objective(draw, batch, 0)) == pytest.approx(value(by_hand))
    assert value(draw.aux["bag"].mean()) > 1
    annealed = recipe("bow_vae", ramp=0.5)
    half = value(annealed.objective(draw, batch, 25))
    whole = value(annealed.objective(draw, batch, 50))
    assert whole - half == pytest.approx(0.5 * value(draw.kl.sum(1).mean()), rel=1e-4)
    assert annealed.select_after == 0.5


def test_no_score_knows_of_the_bag():
    model = recipe("bow_vae").model
    assert_only_the_plain_vae_is_scored(model)
    encoder = {id(p) for p in model.parts()["encoder"].parameters()}
    assert not encoder & {id(p) for p in model.bag.parameters()}  # an encoder's step leaves it


def test_the_bag_is_reset_with_its_decoder():
    model = recipe("bow_vae").model
    before = [p.clone() for p in (model.bag.output.weight, model.decoder.output.weight)]
    kept = model.encoder.head.weight.clone()
    model.parts()["decoder"].reset_parameters()
    after = model.bag.output.weight, model.decoder.output.weight
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(kept, model.encoder.head.weight)


# -- the MMD --------------------------------------------------------------------------------------


def test_the_squared_mmd_is_that_of_a_loop_over_pairs():
    x, y = torch.randn(2, 5, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    y = y[:4] + 1

    def kernel(a, b, name):
        square = sum((i - j) ** 2 for i, j in zip(a.tolist(), b.tolist(), strict=True))
        if name == "rbf":
            return math.exp(-square / 3)
        scales = (0.1, 0.2, 0.5, 1, 2, 5, 10)
        return sum(2 * 3 * s / (2 * 3 * s + square) for s in scales)

    for name, ours in (("rbf", gaussian_kernel), ("imq", inverse_multiquadrics)):
        within_x = sum(kernel(x[i], x[j], name) for i in range(5) for j in range(5) if i != j)
        within_y = sum(kernel(y[i], y[j], name) for i in range(4) for j in range(4) if i != j)
        across = sum(kernel(a, b, name) for a in x for b in y)
        by_hand = within_x / 20 + within_y / 12 - 2 * across / 20
        assert value(squared_mmd(x, y, ours)) == pytest.approx(by_hand, rel=1e-10)


@pytest.mark.parametrize("kernel", [gaussian_kernel, inverse_multiquadrics])
def test_of_two_samples_of_one_distribution_the_mmd_is_zero_in_the_mean(kernel):
    """Not so the plain mean over all pairs, which is biased by 2 (k(0) - E k) / N, here seen."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4000, 6, 4, generator=rng)  # 4000 estimates of 6 points each
    found = squared_mmd(x, y, kernel).double()
    error = value(found.std()) / math.sqrt(len(found))
    assert abs(value(found.mean())) < 4 * error
    assert value(found.min()) < 0
    itself = value(kernel(torch.zeros(()), 4))
    other = value(kernel((x[:, 0] - x[:, 1]).square().sum(-1), 4).mean())
    assert 2 * (itself - other) / 6 > 20 * error


def gaussian_mmd(mean, deviation):
    """MMD^2 of N(mean, deviation^2) [D] to N(0, I) under exp(-d^2 / D): a Gaussian's mean under
    another is a Gaussian, prod_d sqrt(s / (s + v)) exp(-m^2 / (2 (s + v))) with s = D / 2."""
    s = len(mean) / 2

    def similarity(shift, variance):
        return math.prod(
            math.sqrt(s / (s + v)) * math.exp(-(m**2) / (2 * (s + v)))
            for m, v in zip(shift, variance, strict=True)
        )

    zero = [0.0] * len(mean)
    within_q = similarity(zero, [2 * d**2 for d in deviation])
    within_p = similarity(zero, [2.0] * len(mean))
    return within_q + within_p - 2 * similarity(mean, [1 + d**2 for d in deviation])


@pytest.mark.parametrize(
    ("mean", "deviation"),
    [([0.5, -1.0, 0.0], [0.3, 1.0, 2.0]), ([0.0] * 3, [0.0] * 3), ([2.0, 0, 0], [1.0] * 3)],
)
def test_the_mmd_of_two_gaussians_is_that_of_the_closed_form(mean, deviation):
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 500, 40, 3, generator=rng)  # 500 estimates of 40 points each
    x = torch.tensor(mean) + torch.tensor(deviation) * x
    found = squared_mmd(x, y, gaussian_kernel).double()
    error = value(found.std()) / math.sqrt(len(found))
    exact = gaussian_mmd(mean, deviation)
    assert exact > 20 * error
    assert abs(value(found.mean()) - exact) < 4 * error


def mmd(**fields):
    return find_method("mmd_vae")(**fields).recipe(WIDE).objective


def normal(*shape) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def any_draw(z) -> tuple[Draw, Batch]:
    b, k = z.shape[:2]
    ones, ids = torch.ones(b, k), torch.ones(b, 4).long()
    draw = Draw(z, log_px=-3 * ones, log_pz=ones, log_qz=ones, kl=torch.full((b, 3), 0.5))
    return draw, Batch(ids, ids, ids, ids[:, 0], ids[:, 0])


def test_info_vae_weighs_as_its_paper_says():
    z = normal(8, 1, 3) + 1
    draw, batch = any_draw(z)

    def loss(**fields):
        torch.manual_seed(5)
        return value(mmd(**fields)(draw, batch, 0))

    for kernel, measure in ((Kernel.rbf, gaussian_kernel), (Kernel.imq, inverse_multiquadrics)):
        torch.manual_seed(5)
        distance = value(squared_mmd(z[:, 0], torch.randn(1, 8, 3)[0], measure))
        assert distance > 0.05
        for alpha, weight in ((1.0, 100.0), (0.5, 10.0), (-3.0, 4.5)):
            expected = 3 + (1 - alpha) * 1.5 + (alpha + weight - 1) * distance
            found = loss(alpha=alpha, weight=weight, kernel=kernel)
            assert found == pytest.approx(expected, rel=1e-5)
    assert loss(alpha=0.0, weight=1.0) == pytest.approx(value(negative_elbo(draw, batch, 0)))


def test_the_mmd_draws_from_the_prior_anew_and_by_torchs_own_numbers():
    draw, batch = any_draw(normal(8, 1, 3))
    objective, found = mmd(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(value(objective(draw, batch, 0)))
    assert found[0] == found[1] != found[2]
    assert value(objective(draw, batch, 0)) != found[2]


def test_codes_of_one_sentence_are_never_compared_with_each_other():
    """Of 200 codes of each of two sentences, a point each, no pair within a sentence counts."""
    z = torch.zeros(2, 200, 3)
    z[0], z[1] = 10.0, -10.0
    draw, batch = any_draw(z)
    torch.manual_seed(0)
    loss = mmd(weight=1.0, kernel=Kernel.rbf)(draw, batch, 0)
    assert value(loss) - 3 == pytest.approx(gaussian_mmd([1e3] * 3, [0.0] * 3) - 1, abs=0.1)


def test_a_batch_of_one_sentence_has_no_mmd():
    draw, batch = any_draw(normal(1, 1, 3))
    assert value(mmd()(draw, batch, 0)) == 3.0


def test_codes_for_each_step_have_no_mmd_to_a_standard_normal():
    draw, batch = any_draw(normal(4, 1, 5, 3))
    with pytest.raises(ValueError, match="one code a sentence"):
        mmd()(draw, batch, 0)


# -- the auto-encoder beside the VAE --------------------------------------------------------------


def test_the_second_path_is_an_auto_encoder_with_a_decoder_of_its_own():
    model, batch = recipe("coupled_vae").model, sentences()
    draw = draw_in_training(model, batch)
    for i, length in enumerate(LENGTHS):
        one = sentences((length,))
        states, _ = torch.nn.LSTM.forward(
            model.encoder.encoder.lstm, model.encoder.encoder.embed(one.source)
        )
        code = model.encoder.plain.weight @ states[0, -1]
        score = model.plain.log_px(one, code[None, None])
        assert value(draw.aux["plain"][i]) == pytest.approx(-value(score), rel=1e-5)
        begun = model.decoder.initial.weight @ codes(draw)[i, 0]
        led = model.plain.initial.weight @ code
        square = sum((a - b) ** 2 for a, b in zip(begun.tolist(), led.tolist(), strict=True))
        scales = (0.1, 0.2, 0.5, 1, 2, 5, 10)
        distance = sum(square / (2 * 3 * s + square) for s in scales)
        assert value(draw.aux["apart"][i]) == pytest.approx(distance, rel=1e-5)


def test_the_second_path_leads_and_is_not_led():
    model, batch = recipe("coupled_vae").model, sentences()
    apart = gradients(model, draw_in_training(model, batch).aux["apart"].mean())
    moved = {name for name, size in apart.items() if size > 0}
    posterior = {"embed.weight", "head.weight"} | {
        f"lstm.{name}_{kind}_l0" for name in ("weight", "bias") for kind in ("ih", "hh")
    }
    assert moved == {f"encoder.encoder.{name}" for name in posterior} | {"decoder.initial.weight"}
    plain = gradients(model, draw_in_training(model, batch).aux["plain"].mean())
    assert plain["encoder.plain.weight"] > 0 and plain["encoder.encoder.embed.weight"] > 0
    assert plain["encoder.encoder.head.weight"] == 0
    assert not any(size for name, size in plain.items() if name.startswith("decoder"))


def test_the_distance_is_squared_or_that_of_the_kernel():
    squares = torch.tensor([0.0, 6.0, 1e9])
    imq = apart(squares, Distance.imq, 3)
    expected = [0, sum(1 / (1 + s) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10)), 7]
    assert imq.tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(apart(squares, Distance.euclidean, 3), squares)


def test_both_costs_of_the_second_path_are_charged():
    batch = sentences()
    draw = draw_in_training(recipe("coupled_vae").model, batch)
    objective = recipe("coupled_vae", weight=3.0, path=0.5, ramp=0.5).objective
    rec, kl = -draw.log_px.mean(), draw.kl.sum(1).mean()
    by_hand = rec + 0.5 * kl + 0.5 * draw.aux["plain"].mean() + 3 * draw.aux["apart"].mean()
    assert value(objective(draw, batch, 25)) == pytest.approx(value(by_hand), rel=1e-5)
    euclidean = recipe("coupled_vae", distance=Distance.euclidean).model
    assert value(draw_in_training(euclidean, batch).aux["apart"].max()) > value(
        draw.aux["apart"].max()
    )


def test_no_score_knows_of_the_second_path():
    model, batch = recipe("coupled_vae").model, sentences()
    assert_only_the_plain_vae_is_scored(model)
    before = model.draw(batch.but(), 1).kl
    for parameter in (*model.plain.parameters(), *model.encoder.plain.parameters()):
        torch.nn.init.constant_(parameter, torch.nan)
    assert torch.equal(model.draw(batch, 1).kl, before)
    assert model.draw(batch, 2).log_px.isfinite().all()
    assert set(model.parts()) == {"encoder", "decoder"}


def test_the_posterior_is_the_same_in_training_and_evaluation():
    """The shared encoder's two ways to its last state."""
    model, batch = recipe("coupled_vae").model, sentences()
    with torch.no_grad():
        mean, log_variance, _ = model.encoder.both(batch)
    for one, other in zip((mean, log_variance), model.encoder(batch), strict=True):
        torch.testing.assert_close(one, other)


# -- the encoder's every step ---------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.75, 1.0])
def test_the_charge_is_the_mean_over_the_sentences_last_steps(share):
    """By a loop over sentences, each alone, and over its steps."""
    model, batch = recipe("twr_vae", share=share).model, sentences()
    charged = draw_in_training(model, batch).aux["steps"]
    for i, length in enumerate(LENGTHS):
        one = sentences((length,))
        mean, log_variance = model.encoder.steps(one)
        steps = length + 2  # <s> and </s>
        assert mean.shape[1] == steps
        count = max(1, round(share * steps))
        late = range(steps - count, steps)
        kl = sum(value(kl_to_standard(mean[0, t], log_variance[0, t]).sum()) for t in late)
        assert value(charged[i]) == pytest.approx(kl / count, rel=1e-5)
        assert value(draw_in_training(model, one).aux["steps"]) == pytest.approx(
            kl / count, rel=1e-5
        )


def test_a_steps_code_knows_the_words_up_to_it_and_no_later_one():
    model, batch = recipe("twr_vae").model, sentences((7, 7))
    other = batch.source.clone()
    other[:, 4] = 4 + (other[:, 4] - 3) % 16
    with torch.no_grad():
        moved = model.encoder.steps(batch)[0] != model.encoder.steps(batch.but(source=other))[0]
    assert not moved[:, :4].any() and moved[:, 4:].any(-1).all()


@pytest.mark.parametrize("pool", list(Pool))
def test_the_pooled_codes_density_is_that_of_pooled_codes(pool):
    """Moments of z_1 ... z_S drawn each by itself and pooled by hand."""
    model = recipe("twr_vae", code=pool).model
    batch = sentences()
    rng, n = torch.Generator().manual_seed(0), 20000
    with torch.no_grad():
        found_mean, found_log_variance = model.encoder(batch)
        for i, length in enumerate(LENGTHS):
            mean, log_variance = (part[0] for part in model.encoder.steps(sentences((length,))))
            noise = torch.randn(n, *mean.shape, generator=rng)
            drawn = mean + (0.5 * log_variance).exp() * noise  # [N, S, D]
            pooled = {Pool.last: drawn[:, -1], Pool.mean: drawn.mean(1), Pool.sum: drawn.sum(1)}
            z = pooled[pool].double()
            variance = z.var(0)
            assert ((z.mean(0) - found_mean[i]).abs() < 4.5 * (variance / n).sqrt()).all()
            ratio = variance / found_log_variance[i].exp()
            assert ((ratio - 1).abs() < 4.5 * math.sqrt(2 / n)).all()


@given(pool=st.sampled_from(Pool), share=st.sampled_from([0.25, 1.0]))
def test_what_is_reported_is_the_true_rate(pool, share):
    model, batch = recipe("twr_vae", code=pool, share=share).model, sentences()
    training = draw_in_training(model, batch)
    with torch.no_grad():
        draw = model.eval().draw(batch, 1)
        posterior = model.encoder(batch)
    assert not draw.aux
    torch.testing.assert_close(draw.kl, kl_to_standard(*posterior))
    torch.testing.assert_close(draw.kl, training.kl)
    gap = (draw.kl.sum(1) - training.aux["steps"]).abs()
    assert value(gap.max()) > 0.01  # and is not what was charged


def test_the_last_steps_code_and_charge_are_the_plain_vaes():
    """Loss and gradients, at a share of the steps so small that it is the last alone."""
    made, batch = recipe("twr_vae", share=0.01), sentences()
    plain = GaussianVAE(made.model.encoder.encoder, made.model.decoder)
    ours = made.objective(draw_in_training(made.model, batch), batch, 0)
    theirs = negative_elbo(draw_in_training(plain, batch), batch, 0)
    assert value(ours) == pytest.approx(value(theirs), rel=1e-5)
    found = [sorted(gradients(*pair).values()) for pair in ((made.model, ours), (plain, theirs))]
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-6)
    whole = recipe("twr_vae")
    charged = whole.objective(draw_in_training(whole.model, batch), batch, 0)
    assert abs(value(charged) - value(theirs)) > 0.01


# -- what has no meaning --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields", "word"),
    [
        ("bow_vae", {"weight": -1.0}, "weight"),
        ("bow_vae", {"mlp": 0}, "mlp"),
        ("bow_vae", {"ramp": 1.5}, "ramp"),
        ("mmd_vae", {"alpha": 1.5}, "alpha"),
        ("mmd_vae", {"alpha": 0.0, "weight": 0.5}, "together"),
        ("coupled_vae", {"weight": -1.0}, "negative"),
        ("coupled_vae", {"path": -1.0}, "negative"),
        ("coupled_vae", {"ramp": -0.5}, "ramp"),
        ("twr_vae", {"share": 0.0}, "share"),
        ("twr_vae", {"share": 1.5}, "share"),
    ],
)
def test_what_has_no_meaning_is_refused(name, fields, word):
    with pytest.raises(ValueError, match=word):
        recipe(name, **fields)
