"""An auto-encoder first, then free bits: what each stage optimises, keeps and forgets."""

import pytest
import torch
from torch import Tensor

from benchmark.api import Batch, Draw, Phases, Recipe
from benchmark.compose import find_method
from benchmark.objectives import Per, linear_ramp
from tests.cells import TASK


def recipe(**fields) -> Recipe:
    return find_method("pretrain_free_bits")(**fields).recipe(TASK)


def any_draw() -> tuple[Draw, Batch]:
    torch.manual_seed(0)
    zero, kl = torch.zeros(5, 1), 2 * torch.rand(5, 3)
    draw = Draw(z=None, log_px=-torch.rand(5, 1), log_pz=zero, log_qz=zero, kl=kl.requires_grad_())
    ids = torch.ones(5, 4, dtype=torch.long)
    return draw, Batch(ids, ids, ids, torch.full((5,), 4), torch.full((5,), 4))


def loss(made: Recipe, t: int) -> Tensor:
    assert made.objective is not None
    return made.objective(*any_draw(), t)


def test_the_first_stage_is_an_auto_encoder():
    made, (draw, _) = recipe(pretrain=0.4), any_draw()
    for t in (0, 39):
        assert float(loss(made, t).detach()) == pytest.approx(-float(draw.log_px.mean()))
    assert isinstance(made.step, Phases) and made.step.ends == [40, 100]
    first, second = made.step.phases
    assert (first.select, first.reset) == ("rec", ())
    assert (second.select, second.reset) == (None, ("decoder",))


@pytest.mark.parametrize("t", [40, 43, 46, 52, 99])
def test_the_second_charges_for_what_is_above_the_floor_as_beta_rises(t):
    made, (draw, _) = recipe(pretrain=0.4, floor=1.0, ramp=0.2), any_draw()
    by_hand = 0.0
    for n in range(5):
        above = sum(max(1.0, float(draw.kl[n, d].detach())) for d in range(3))
        by_hand += (-float(draw.log_px[n].detach()) + min(1.0, (t - 40) / 12) * above) / 5
    assert float(loss(made, t).detach()) == pytest.approx(by_hand, rel=1e-6)


def test_a_target_is_a_floor_shared_by_the_units():
    by_floor, by_target = recipe(floor=0.5), recipe(floor=None, target=1.5)
    assert torch.equal(loss(by_floor, 99), loss(by_target, 99))


def test_below_its_floor_a_unit_has_no_gradient_and_above_beta():
    made, (draw, batch) = recipe(pretrain=0.4, floor=1.0, ramp=0.2), any_draw()
    assert made.objective is not None
    made.objective(draw, batch, 46).backward()
    below = draw.kl.detach() < 1
    assert below.any() and not below.all()
    assert draw.kl.grad is not None and torch.all(draw.kl.grad[below] == 0)
    assert torch.allclose(draw.kl.grad[~below], torch.tensor(linear_ramp(6, 12) / 5))


def test_a_checkpoint_counts_from_the_ramps_end_on():
    assert recipe(pretrain=0.4, ramp=0.5).select_after == pytest.approx(0.7)
    assert recipe(pretrain=0.4, ramp=0.0).select_after == pytest.approx(0.4)


def test_the_decoder_may_be_kept():
    made = recipe(reset_decoder=False)
    assert isinstance(made.step, Phases) and made.step.phases[1].reset == ()


@pytest.mark.parametrize(
    "fields, word",
    [
        ({"pretrain": 0.0}, "method=free_bits"),
        ({"pretrain": 1.0}, "between 0 and 1"),
        ({"floor": -1.0}, "negative"),
        ({"target": 2.0}, "set one of"),
        ({"per": Per.group_batch}, "group_batch"),
        ({"ramp": 1.5}, "second stage"),
        ({"pretrain": 0.001}, "too few"),
    ],
)
def test_what_has_no_meaning_is_refused(fields, word):
    with pytest.raises(ValueError, match=word):
        recipe(**fields)
