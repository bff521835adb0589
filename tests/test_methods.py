"""What each remedy promises; every test fails if its slot is put back to the default."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from benchmark import compose
from benchmark.api import BOS, EOS, PAD, UNK, Batch, Draw, Phases, Recipe
from benchmark.compose import find_method
from benchmark.models import kl_to_ar1, kl_to_standard
from benchmark.objectives import Per, floored_rate, negative_elbo
from methods.aggressive import AggressiveStep
from methods.delta_vae import FlooredEncoder, deviations
from methods.kl_annealing import Shape
from methods.temporal_delta_vae import committed_rate, correlation
from tests.cells import TASK


def recipe(name: str, **fields):
    return find_method(name)(**fields).recipe(TASK)


def any_draw() -> tuple[Draw, Batch]:
    torch.manual_seed(0)
    zero = torch.zeros(5, 2)
    draw = Draw(z=None, log_px=-torch.rand(5, 2) * 9, log_pz=zero, log_qz=zero, kl=torch.rand(5, 3))
    ids = torch.ones(5, 4, dtype=torch.long)
    return draw, Batch(ids, ids, ids, torch.full((5,), 4), torch.full((5,), 4))


def test_the_negative_elbo_sums_over_units_and_averages_over_sentences_and_samples():
    draw, batch = any_draw()
    by_hand = sum(float(-draw.log_px[n].mean() + draw.kl[n].sum()) for n in range(5)) / 5
    assert float(negative_elbo(draw, batch, t=3)) == pytest.approx(by_hand, rel=1e-6)


# -- the plain VAE and the language model ---------------------------------------------------------


def test_the_vae_leaves_every_slot_alone():
    assert recipe("vae") == Recipe()


def test_the_language_model_has_no_encoder():
    assert set(recipe("lm").model.parts()) == {"decoder"}


def test_the_matched_language_model_is_the_smallest_that_has_the_vaes_parameters():
    def size(module):
        return sum(p.numel() for p in module.parameters())

    matched, vae = recipe("lm_matched").model, TASK.model()
    hidden = matched.decoder.lstm.hidden_size
    assert size(TASK.decoder(latent=0, hidden=hidden - 1)) < size(vae) <= size(matched)
    assert hidden > TASK.hidden and set(matched.parts()) == {"decoder"}
    assert all(p.device.type == "cpu" for p in matched.parameters())


# -- KL annealing ---------------------------------------------------------------------------------


def annealing(**fields):
    return find_method("kl_annealing")(**fields)


shapes = st.one_of(
    st.just({}), st.floats(1, 30).map(lambda s: {"shape": Shape.sigmoid, "steepness": s})
)


@given(
    steps=st.integers(1, 500),
    start=st.floats(0, 1),
    cycles=st.integers(1, 6),
    ramp=st.floats(0.05, 0.6),
    zero=st.floats(0, 0.4),
    shape=shapes,
)
def test_beta_stays_in_its_range_and_falls_only_where_a_cycle_begins(
    steps, start, cycles, ramp, zero, shape
):
    method = annealing(start=start, cycles=cycles, ramp=ramp, zero=zero, **shape)
    trail = [method.weight(t, steps) for t in range(steps)]
    assert all(start - 1e-12 <= beta <= 1 for beta in trail)
    begins = {math.ceil(c * steps / cycles) for c in range(cycles)}
    for t in range(1, steps):
        if t in begins:
            assert trail[t] == start
        else:
            assert trail[t] >= trail[t - 1] - 1e-12


@pytest.mark.parametrize(("t", "weight"), [(0, 0.1), (10, 0.325), (20, 0.55), (40, 1.0), (99, 1.0)])
def test_annealing_weighs_the_rate_at_listed_steps(t, weight):
    draw, batch = any_draw()
    objective = recipe("kl_annealing", start=0.1, ramp=0.4).objective
    rec, kl = -draw.log_px.mean(), draw.kl.sum(-1).mean()
    assert float(objective(draw, batch, t)) == pytest.approx(float(rec + weight * kl), rel=1e-6)


def test_cycles_are_those_of_fu_et_al():
    """tau = (t mod P) / P, beta = tau / R up to R and 1 from there; P = 25, M = 4, R = 0.5."""
    method = annealing(cycles=4, ramp=0.5)
    trail = [method.weight(t, 100) for t in range(100)]
    assert trail == pytest.approx([min(1, (t % 25) / 25 / 0.5) for t in range(100)])
    assert [t for t, beta in enumerate(trail) if beta == 0] == [0, 25, 50, 75]
    assert sum(beta == 1 for beta in trail) == 4 * 12  # (1 - R) P, in whole steps
    assert recipe("kl_annealing", cycles=4, ramp=0.5).select_after == 0.875


def test_every_cycle_begins_at_zero_though_its_length_is_no_whole_number():
    trail = [annealing(cycles=3).weight(t, 100) for t in range(100)]
    assert [t for t, beta in enumerate(trail) if beta == 0] == [0, 34, 67]


def test_zero_then_ramp():
    trail = [annealing(zero=0.5, ramp=0.25).weight(t, 100) for t in range(100)]
    assert trail[:51] == [0] * 51 and trail[62] == pytest.approx(0.48) and trail[75:] == [1] * 25


def test_the_sigmoid_is_that_of_shao_et_al():
    """sigmoid((t - S/2) / (S/10)) for t < S, else 1."""
    method = annealing(shape=Shape.sigmoid, steepness=10.0, ramp=0.4)
    for t in range(1, 100):
        expected = 1 / (1 + math.exp(-(t - 20) / 4)) if t < 40 else 1
        assert method.weight(t, 100) == pytest.approx(expected)


def test_no_checkpoint_of_the_ramp_is_eligible():
    assert recipe("kl_annealing", ramp=0.3).select_after == 0.3
    assert recipe("kl_annealing", ramp=0.25, zero=0.5).select_after == 0.75


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"start": -0.1}, "start"),
        ({"start": 1.5}, "start"),
        ({"ramp": 0.0}, "ramp"),
        ({"ramp": 0.8, "zero": 0.3}, "zero"),
        ({"cycles": 0}, "cycles"),
        ({"steepness": 3.0}, "steepness"),
        ({"shape": Shape.sigmoid}, "steepness"),
    ],
)
def test_annealing_refuses_what_is_no_schedule(fields, word):
    with pytest.raises(ValueError, match=word):
        recipe("kl_annealing", **fields)


# -- word dropout ---------------------------------------------------------------------------------


def sentences() -> Batch:
    ids = torch.randint(4, 20, (200, 12), generator=torch.Generator().manual_seed(0))
    source = torch.cat([torch.full((200, 1), BOS), ids, torch.full((200, 1), EOS)], 1)
    inputs = source[:, :-1].clone()
    inputs[:50, 9:] = PAD
    length = torch.full((200,), 13)
    return Batch(source[:, 1:], inputs, source, length, length + 1)


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_word_dropout_hides_that_share_of_the_words_and_nothing_else(p):
    torch.manual_seed(0)
    batch = sentences()
    hidden = recipe("word_dropout", rate=p).corrupt(batch, 0)
    fixed = (batch.inputs == BOS) | (batch.inputs == PAD)
    assert torch.equal(hidden.inputs[fixed], batch.inputs[fixed])
    words = hidden.inputs[~fixed]
    assert ((words == UNK) | (words == batch.inputs[~fixed])).all()
    n = len(words)
    error = math.sqrt(p * (1 - p) / n)
    assert abs(float((words == UNK).double().mean()) - p) <= 4 * error
    assert hidden.targets is batch.targets and hidden.source is batch.source
    if p < 1:
        again = recipe("word_dropout", rate=p).corrupt(batch, 0)
        assert not torch.equal(again.inputs, hidden.inputs)  # a fresh mask each step


def test_word_dropout_at_rate_zero_is_the_plain_vae():
    assert recipe("word_dropout", rate=0.0).corrupt is None


# -- free bits ------------------------------------------------------------------------------------

rates = st.integers(0, 2**32 - 1).map(
    lambda seed: torch.rand(6, 4, generator=torch.Generator().manual_seed(seed)) * 2
)


@given(kl=rates, target=st.floats(0.1, 8))
def test_free_bits_are_what_a_loop_over_sentences_and_units_says(kl, target):
    n, u = kl.shape
    k, floor = kl.double().numpy(), target / u
    expected = {
        Per.unit_sentence: sum(max(floor, k[i, d]) for i in range(n) for d in range(u)) / n,
        Per.unit_batch: sum(max(floor, k[:, d].mean()) for d in range(u)),
        Per.total_sentence: sum(max(target, k[i].sum()) for i in range(n)) / n,
        Per.total_batch: max(target, k.sum(1).mean()),
        Per.group_batch: sum(
            max(target / 2, k[:, 2 * j : 2 * j + 2].sum(1).mean()) for j in range(2)
        ),
    }
    for per, value in expected.items():
        groups = 2 if per is Per.group_batch else None
        charged = float(floored_rate(kl, target, per, groups))
        assert charged == pytest.approx(value, rel=1e-5)
        assert charged >= target * (1 - 1e-6)


@given(kl=rates, target=st.floats(0.1, 8))
def test_the_gradient_is_that_of_the_released_mask(kl, target):
    """The released code multiplies by 1[k > floor] and leaves the constant out."""
    kl = kl.requires_grad_()
    charged = floored_rate(kl, target, Per.unit_sentence)
    (gradient,) = torch.autograd.grad(charged, kl)
    masked = (kl * (kl > target / 4)).sum(-1).mean()
    torch.testing.assert_close(gradient, torch.autograd.grad(masked, kl)[0])


def test_at_the_floor_itself_the_rate_is_free():
    kl = torch.full((3, 4), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(floored_rate(kl, 2.0, Per.unit_sentence), kl)
    assert (gradient == 0).all()


@given(kl=rates, target=st.floats(0.1, 8))
def test_the_maximum_of_a_mean_is_at_most_the_mean_of_maxima(kl, target):
    batch = float(floored_rate(kl, target, Per.unit_batch))
    sentence = float(floored_rate(kl, target, Per.unit_sentence))
    assert batch <= sentence * (1 + 1e-6)


def test_without_a_floor_free_bits_is_the_negative_elbo():
    draw, batch = any_draw()
    for per in (Per.unit_batch, Per.unit_sentence, Per.total_batch, Per.total_sentence):
        objective = recipe("free_bits", floor=0.0, per=per).objective
        assert float(objective(draw, batch, 5)) == pytest.approx(
            float(negative_elbo(draw, batch, 5)), rel=1e-6
        )


def test_a_target_is_a_floor_shared_by_the_units():
    draw, batch = any_draw()
    shared = recipe("free_bits", floor=None, target=1.5).objective
    each = recipe("free_bits", floor=0.5).objective  # three units
    assert float(shared(draw, batch, 0)) == pytest.approx(float(each(draw, batch, 0)))


def test_free_bits_may_be_annealed():
    draw, batch = any_draw()
    annealed = recipe("free_bits", ramp=0.5).objective
    assert float(annealed(draw, batch, 0)) == pytest.approx(float(-draw.log_px.mean()))
    full = recipe("free_bits").objective
    assert float(annealed(draw, batch, 50)) == pytest.approx(float(full(draw, batch, 0)))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"target": 3.0}, "floor"),
        ({"floor": None}, "target"),
        ({"floor": -1.0}, "negative"),
        ({"groups": 2}, "groups"),
        ({"per": Per.group_batch}, "groups"),
        ({"per": Per.group_batch, "groups": 2}, "divide"),
        ({"ramp": 2.0}, "ramp"),
    ],
)
def test_free_bits_refuses_what_has_no_meaning(fields, word):
    with pytest.raises(ValueError, match=word):
        recipe("free_bits", **fields)


# -- delta-VAE ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delta", "low", "high"),
    [
        (0.05, 0.785377, 1.231349),
        (0.10, 0.702310, 1.331259),
        (0.15, 0.641181, 1.409343),
        (0.25, 0.549281, 1.535473),
        (0.5, 0.398239, 1.773751),
        (1.0, 0.229061, 2.122555),
    ],
)
def test_the_interval_of_deviations(delta, low, high):
    assert deviations(delta) == pytest.approx((low, high), abs=5e-7)
    for sigma in deviations(delta):  # there the variance alone costs delta
        assert 0.5 * (sigma**2 - math.log(sigma**2) - 1) == pytest.approx(delta)


class Heads(torch.nn.Module):
    """An encoder whose two heads say whatever they are told."""

    def __init__(self, mean, deviation):
        super().__init__()
        self.heads = mean, deviation

    def forward(self, batch):
        return self.heads


@given(delta=st.floats(0.01, 3), scale=st.floats(0.01, 60), seed=st.integers(0, 2**31))
def test_no_parameters_take_the_rate_below_its_floor(delta, scale, seed):
    """Over 100 examples of 128 draws each."""
    rng = torch.Generator().manual_seed(seed)
    heads = torch.randn(2, 32, 4, generator=rng) * scale
    encoder = FlooredEncoder(Heads(*heads), delta)
    assert float(kl_to_standard(*encoder(None)).min()) >= delta * (1 - 1e-5) - 1e-6


def test_the_floor_is_reached():
    """At sigma = 1 the mean's square is 2 delta, and nothing is paid above the floor."""
    low, high = deviations(0.15)
    logit = math.log((1 - low) / (high - 1))
    encoder = FlooredEncoder(Heads(torch.full((1, 1), -5.0), torch.full((1, 1), logit)), 0.15)
    mean, log_variance = encoder(None)
    assert float(mean) == pytest.approx(math.sqrt(0.3), abs=1e-5)
    assert float(kl_to_standard(mean, log_variance)) == pytest.approx(0.15, abs=1e-5)


def test_the_floor_is_the_models_own():
    torch.manual_seed(0)
    batch = sentences()
    with torch.no_grad():
        assert recipe("delta_vae", delta=0.3).model.draw(batch).kl.min() >= 0.3 * (1 - 1e-5)
        assert TASK.model().draw(batch).kl.max() < 0.01


# -- aggressive encoder training ------------------------------------------------------------------


class ScriptedRun:
    """A `Run` whose losses and validations are told in advance; it notes what was stepped."""

    def __init__(self, losses, information=()):
        self.losses, self.information = iter(losses), iter(information)
        self.moved, self.batches = [], []

    def fresh(self, metric):
        assert metric == "valid/mi_batch32"
        return next(self.information, None)

    def _batch(self, name):
        self.batches.append(name)
        return sentences()

    def next(self):
        return self._batch("next")

    def another(self):
        return self._batch("another")

    def loss(self, batch):
        return torch.tensor(float(next(self.losses)))

    def descend(self, loss, *parts, clip="all"):
        assert clip == "all"  # by the joint norm, also where the encoder alone moves
        self.moved.append(parts)


def test_the_encoder_stops_when_a_window_is_worse_than_the_one_before():
    """Windows of three: 9 + 8 + 7, then 6 + 5 + 4 falls, then 7 + 4 + 5 rises and ends it."""
    run = ScriptedRun([9, 8, 7, 6, 5, 4, 7, 4, 5, 1])
    logs = recipe("aggressive", window=3).step(run)
    assert run.moved == [("encoder",)] * 9 + [("decoder",)]
    assert float(logs["inner_updates"]) == 9 and float(logs["loss"]) == 1
    assert run.batches == ["next", *["another"] * 8]  # the first on the step's own batch


def test_there_are_at_most_so_many_inner_updates():
    run = ScriptedRun(range(1000, 0, -1))
    recipe("aggressive").step(run)
    assert run.moved == [("encoder",)] * 99 + [("decoder",)]


def test_the_phase_ends_for_good_when_information_falls():
    step = recipe("aggressive", window=1, updates=1).step
    run = ScriptedRun([1.0] * 100, [None, 0.5, 0.9, 0.8, 2.0, 3.0])
    for _ in range(6):
        step(run)
    inner, both = [("encoder",), ("decoder",)], [()]
    assert run.moved == inner * 3 + both * 3
    assert not step.aggressive


def test_a_first_estimate_below_zero_ends_the_phase():
    step = recipe("aggressive", window=1, updates=1).step
    run = ScriptedRun([1.0] * 9, [-0.01])
    step(run)
    assert run.moved == [()]


def test_the_phase_is_part_of_the_state():
    step = recipe("aggressive").step
    step.aggressive, step.information = False, 1.25
    other = recipe("aggressive").step
    other.load_state_dict(step.state_dict())
    assert (other.aggressive, other.information) == (False, 1.25)


# -- the temporal delta-VAE -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "alpha", "rate"),
    [
        (1, 0.9, 0.0),
        (2, 0.5, 0.143841),
        (3, 0.9, 1.127029),
        (10, 0.95, 3.736627),
        (20, 0.99, 8.106844),
        (64, 0.5, 7.061291),
        (5, -0.7, 0.934836),
        (10, 0.5, 1.036415),
        (20, 0.9, 6.170307),
    ],
)
def test_the_committed_rate(steps, alpha, rate):
    assert committed_rate(steps, alpha) == pytest.approx(rate, abs=5e-7)


@pytest.mark.parametrize(
    ("steps", "target", "alpha"),
    [(10, 0.1, 0.149713), (20, 0.1, 0.102840), (20, 0.25, 0.163177), (80, 0.1, 0.050347)],
)
def test_the_correlation_for_a_target_rate(steps, target, alpha):
    assert correlation(steps, target) == pytest.approx(alpha, abs=5e-7)


def ar1_kl_by_full_covariance(mean, log_variance, alpha):
    """KL between two n-dimensional Gaussians, the prior's covariance alpha^|s - t|."""
    n = len(mean)
    prior = alpha ** (torch.arange(n)[:, None] - torch.arange(n)).abs().double()
    p = torch.distributions.MultivariateNormal(torch.zeros(n).double(), prior)
    q = torch.distributions.MultivariateNormal(mean, torch.diag(log_variance.exp()))
    return float(torch.distributions.kl_divergence(q, p))


@given(
    n=st.integers(1, 12),
    alpha=st.floats(-0.95, 0.95),
    seed=st.integers(0, 2**31),
    pads=st.integers(0, 3),
)
def test_the_kl_to_an_ar1_prior_is_exact_and_never_below_the_committed_rate(n, alpha, seed, pads):
    rng = torch.Generator().manual_seed(seed)
    mean, log_variance = torch.randn(2, 1, n + pads, 1, dtype=torch.double, generator=rng)
    mask = torch.arange(n + pads)[None] < n
    alphas = torch.tensor([alpha], dtype=torch.double)
    kl = float(kl_to_ar1(mean, log_variance, alphas, mask))
    expected = ar1_kl_by_full_covariance(mean[0, :n, 0], log_variance[0, :n, 0], alpha)
    assert kl == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert kl >= committed_rate(n, alpha) - 1e-9


def test_the_committed_rate_is_attained():
    n, alpha = 7, 0.8
    inner = (1 - alpha**2) / (1 + alpha**2)
    variance = torch.tensor([1 - alpha**2, *[inner] * (n - 2), 1 - alpha**2], dtype=torch.double)
    kl = kl_to_ar1(
        torch.zeros(1, n, 1).double(),
        variance.log()[None, :, None],
        torch.tensor([alpha], dtype=torch.double),
        torch.ones(1, n).bool(),
    )
    assert float(kl) == pytest.approx(committed_rate(n, alpha), rel=1e-9)


def test_no_factorised_posterior_of_ten_thousand_goes_below_the_floor():
    rng = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 10000, 20, 1, generator=rng).double()
    scale = torch.rand(10000, 1, 1, generator=rng).double() * 3
    for alpha in (0.1, 0.5, 0.9, 0.99):
        kl = kl_to_ar1(
            mean * scale,
            log_variance * scale,
            torch.tensor([alpha]).double(),
            torch.ones(1, 20).bool(),
        )
        assert float(kl.min()) >= committed_rate(20, alpha) - 1e-9


def temporal(**fields):
    torch.manual_seed(0)
    model = recipe("temporal_delta_vae", **fields).model
    for parameter in model.parameters():  # away from the tiny start, so that everything shows
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def test_the_encoder_is_anti_causal():
    """A change of x_j moves the codes up to step j and none behind it, at any padding."""
    encoder, batch = temporal().encoder, sentences()
    source = batch.source.clone()
    source[:, 6] = 4 + (source[:, 6] - 3) % 16  # x_6, the target of place 5
    with torch.no_grad():
        moved = encoder(batch)[0] != encoder(batch.but(source=source))[0]
    assert moved[:, :6].any(-1).all() and not moved[:, 6:].any()


def test_padding_changes_no_code():
    encoder, batch = temporal().encoder, sentences()
    wider = batch.but(source=torch.nn.functional.pad(batch.source, (0, 4)))
    with torch.no_grad():
        torch.testing.assert_close(encoder(wider)[0][:, :13], encoder(batch)[0])


def test_the_decoder_reads_codes_up_to_its_own_step_only():
    model, batch = temporal(), sentences()
    z = torch.randn(200, 1, 13, 2)
    later = z.clone()
    later[:, :, 7] += 1
    with torch.no_grad():
        states = [
            model.decoder.step(batch.inputs, c[:, 0], model.decoder.start(c[:, 0]))[0]
            for c in (z, later)
        ]
    moved = (states[0] != states[1]).any(-1)
    assert not moved[:, :7].any() and moved[:, 7].all()


def test_the_temporal_rate_is_the_mean_of_log_q_less_log_p():
    model, batch = temporal(alpha=[0.5, 0.9]), sentences()
    short = batch.but(
        **{
            name: getattr(batch, name)[:2]
            for name in ("targets", "inputs", "source", "target_lengths", "source_lengths")
        }
    )
    with torch.no_grad():
        draw = model.draw(short, k=20000)
    ratio = (draw.log_qz - draw.log_pz).double()
    error = ratio.std(-1) / math.sqrt(20000)
    assert ((ratio.mean(-1) - draw.kl.sum(-1)).abs() < 4.5 * error).all()


def test_the_auxiliary_prior_moves_nothing_else_and_is_scored_in_evaluation():
    model, batch = temporal(auxiliary=0.1), sentences()
    model.auxiliary_cost(batch).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert moved and all(name.startswith("auxiliary") for name in moved)
    assert not model.draw(batch).log_pz_alt
    assert model.eval().draw(batch, k=3).log_pz_alt["auxiliary"].shape == (200, 3)


def test_the_auxiliary_prior_is_fitted_after_all_else():
    made = recipe("temporal_delta_vae", auxiliary=0.3)
    step = made.step
    assert isinstance(step, Phases) and step.ends == [70, 100]
    assert [phase.select for phase in step.phases] == [None, "last"]
    for t, moved in (
        (0, {"encoder", "decoder"}),
        (69, {"encoder", "decoder"}),
        (70, {"auxiliary"}),
    ):
        run = Parts(made.model, t)
        step(run)
        assert run.moved == moved
    without = recipe("temporal_delta_vae")
    assert without.step is None and "auxiliary" not in without.model.parts()
    assert not without.model.eval().draw(sentences()).log_pz_alt


class Parts:
    """A run that remembers which parts of its model a step has gradients for, and steps."""

    def __init__(self, model, t: int):
        self.model, self.t = model.train(), t

    def next(self) -> Batch:
        return sentences()

    def loss(self, batch: Batch) -> torch.Tensor:
        return negative_elbo(self.model.draw(batch), batch, self.t)

    def descend(self, loss: torch.Tensor, *parts: str, clip: str = "all") -> None:
        self.model.zero_grad()
        loss.backward()
        moved = {name for name, p in self.model.named_parameters() if p.grad is not None}
        self.moved = {name.split(".")[0] for name in moved}
        assert not parts or self.moved == {*parts}


def test_samples_come_from_a_stationary_process():
    model, seen = temporal(alpha=[0.5, 0.95]), []
    model.decode = lambda z, **_: seen.append(z)
    torch.manual_seed(0)
    model.sample(20000, max_length=30)
    z = seen[0]
    assert (z.var(0) - 1).abs().max() < 5 * math.sqrt(2 / 20000)
    neighbours = (z[:, 1:] * z[:, :-1]).mean((0, 1))
    torch.testing.assert_close(neighbours, model.alpha, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"alpha": None}, "target"),
        ({"target": 1.0}, "alpha"),
        ({"channels": 2}, "channels"),
        ({"alpha": [1.0]}, "correlations"),
        ({"alpha": []}, "correlations"),
        ({"alpha": None, "target": -1.0, "channels": 2}, "above 0"),
        ({"auxiliary": 1.0}, "share"),
        ({"alpha": None, "target": 60.0, "channels": 2}, "raise method.channels"),
    ],
)
def test_the_temporal_form_refuses_what_has_no_meaning(fields, word):
    with pytest.raises(ValueError, match=word):
        recipe("temporal_delta_vae", **fields)


def test_a_target_is_reached_at_the_mean_length():
    model = recipe("temporal_delta_vae", alpha=None, target=1.0, channels=2).model
    total = sum(committed_rate(TASK.mean_length, a) for a in model.alpha.tolist())
    assert total == pytest.approx(1.0, rel=1e-5)


def test_the_example_in_the_readme_is_the_file():
    root = Path(__file__).parent.parent
    assert (root / "methods/word_dropout.py").read_text() in (root / "README.md").read_text()


# -- stack ----------------------------------------------------------------------------------------


def stacked(*words: str) -> tuple[Any, Recipe]:
    """The configuration and the recipe of several methods in one."""
    with compose.hydra_ready():
        config = compose.typed(compose.compose(["method=stack", *words])[0])
    fields = {key: value for key, value in config.method.items() if key != "name"}
    return config.method, compose.build(find_method("stack"), fields).recipe(TASK)


def test_a_stack_has_the_slots_of_its_parts():
    _, whole = stacked("method.parts.free_bits.floor=0.5", "method.parts.aggressive.window=3")
    draw, batch = any_draw()
    alone = recipe("free_bits", floor=0.5)
    assert float(whole.objective(draw, batch, 9)) == float(alone.objective(draw, batch, 9))
    assert isinstance(whole.step, AggressiveStep)
    assert (whole.step.window, whole.step.updates) == (3, 99)
    ids = torch.randint(4, 20, (6, 9))
    sentences = Batch(ids, ids, ids, torch.full((6,), 9), torch.full((6,), 9))
    torch.manual_seed(0)
    hidden = whole.corrupt(sentences, 0).inputs
    torch.manual_seed(0)
    assert torch.equal(hidden, recipe("word_dropout").corrupt(sentences, 0).inputs)
    assert not torch.equal(hidden, ids)
    assert whole.model is None


def test_of_two_ramps_in_a_stack_the_longer_decides_what_is_eligible():
    _, whole = stacked("method.of=[kl_annealing,delta_vae]")
    assert whole.select_after == recipe("kl_annealing").select_after > 0
    assert whole.model is not None


@pytest.mark.parametrize(
    ("of", "slot"),
    [
        ("kl_annealing,free_bits", "objective"),
        ("delta_vae,zforcing", "model"),
        ("aggressive,temporal_delta_vae", "step"),
        ("word_dropout,word_dropout", "corrupt"),
    ],
)
def test_two_methods_for_one_slot_are_named(of, slot):
    first, second = of.split(",")
    with pytest.raises(ValueError, match=f"{first} and {second} both edit the slot '{slot}'"):
        stacked(f"method.of=[{of}]")


def test_parts_are_configs_with_their_papers_fields():
    words = ["method.of=[cyclical_annealing,word_dropout]"]
    ours = stacked(*words)[0].parts
    assert (ours.cyclical_annealing.name, ours.cyclical_annealing.cycles) == ("kl_annealing", 4)
    free, paper = "method.of=[free_bits]", "budget=paper"
    assert stacked(free)[0].parts.free_bits.ramp == 0.0
    assert stacked(free, paper)[0].parts.free_bits.ramp == 0.1
    said = stacked(free, paper, "method.parts.free_bits.ramp=0.2")[0].parts.free_bits
    assert said.ramp == 0.2


def test_a_stack_that_was_written_down_is_read_without_configs():
    config, _ = stacked("method.parts.free_bits.floor=0.5")
    with compose.hydra_ready():
        again, _ = compose.compose(["method=stack"])
    OmegaConf.set_struct(again, False)
    again = OmegaConf.merge(again, {"method": config})
    assert compose.typed(again).method == config
