"""What each remedy promises; every test fails if its slot is put back to the default."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark.api import Batch, Draw
from benchmark.compose import find_method
from benchmark.objectives import linear_ramp, negative_elbo
from benchmark.task import CellTask

TASK = CellTask(
    vocab_size=20,
    mean_length=6.0,
    max_length=9,
    n_train=100,
    batch_size=10,
    steps_per_epoch=10,
    steps=100,
    embedding=4,
    hidden=6,
    latent=3,
    dropout=0.0,
    init=0.1,
    init_embedding=0.1,
)


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


def test_the_vae_leaves_every_slot_but_the_model_alone():
    plain = recipe("vae")
    assert plain.but(model=None) == type(plain)()


def test_the_language_model_has_no_encoder():
    assert set(recipe("lm").model.parts()) == {"decoder"}


# -- KL annealing ---------------------------------------------------------------------------------


@given(length=st.floats(0.5, 1e4), start=st.floats(0, 1), t=st.integers(0, 20000))
def test_the_ramp_stays_between_its_ends_and_never_falls(length, start, t):
    now, later = linear_ramp(t, length, start), linear_ramp(t + 1, length, start)
    assert start - 1e-12 <= now <= later <= 1
    assert linear_ramp(0, length, start) == pytest.approx(start)
    if t >= length:
        assert now == 1


@pytest.mark.parametrize(("t", "weight"), [(0, 0.1), (10, 0.325), (20, 0.55), (40, 1.0), (99, 1.0)])
def test_annealing_weighs_the_rate_at_listed_steps(t, weight):
    draw, batch = any_draw()
    objective = recipe("kl_annealing", start=0.1, ramp=0.4).objective
    rec, kl = -draw.log_px.mean(), draw.kl.sum(-1).mean()
    assert float(objective(draw, batch, t)) == pytest.approx(float(rec + weight * kl), rel=1e-6)


def test_annealing_is_a_function_of_the_step_alone():
    draw, batch = any_draw()
    objective = recipe("kl_annealing").objective
    trail = [float(objective(draw, batch, t)) for t in range(100)]
    assert [float(objective(draw, batch, t)) for t in reversed(range(100))] == trail[::-1]
    assert all(a < b for a, b in itertools.pairwise(trail[:41]))
    assert len(set(trail[40:])) == 1


def test_no_checkpoint_of_the_ramp_is_eligible():
    assert recipe("kl_annealing", ramp=0.3).select_after == 0.3


@pytest.mark.parametrize("fields", [{"start": -0.1}, {"start": 1.5}, {"ramp": 0.0}, {"ramp": 1.5}])
def test_annealing_refuses_what_is_no_schedule(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        recipe("kl_annealing", **fields)
