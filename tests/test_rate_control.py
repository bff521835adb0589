"""Methods that weigh the rate, and those that move its weight until a constraint is met."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark.api import Batch, Draw
from benchmark.compose import find_method
from methods.geco import LEAST, MEMORY, MOST
from methods.mdr import ascending
from tests.cells import TASK

rates = st.lists(st.floats(0, 12), min_size=1, max_size=60)


def recipe(name: str, **fields):
    return find_method(name)(**fields).recipe(TASK)


def scored(rec, kl, tokens: int = 5, sentences: int = 4) -> tuple[Draw, Batch]:
    """A draw whose Rec and KL are two numbers, or two tensors to differentiate by."""
    ones = torch.ones(sentences, 1)
    ids = torch.full((sentences, tokens), 5)
    lengths = torch.full((sentences,), tokens)
    draw = Draw(
        z=None, log_px=-rec * ones, log_pz=ones, log_qz=ones, kl=kl / 2 * ones.expand(-1, 2)
    )
    return draw, Batch(ids, ids, ids, lengths, lengths)


def gradients(objective, rec: float, kl: float, t: int = 0) -> tuple[float, float]:
    """How the objective weighs Rec and KL."""
    at = torch.tensor([rec, kl], requires_grad=True)
    (found,) = torch.autograd.grad(objective(*scored(at[0], at[1]), t), at, materialize_grads=True)
    return float(found[0]), float(found[1])


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("beta_vae", {}),
        ("soft_free_bits", {}),
        ("control_vae", {}),
        ("mdr", {}),
        ("geco", {}),
        ("geco", {"gain": None, "kappa": 2.0}),
    ],
)
def test_a_step_waits_for_no_device(name, fields):
    """On the device `meta` there are no numbers to be read."""
    with torch.device("meta"):
        objective = recipe(name, **fields).objective
        rec, kl = torch.ones((), requires_grad=True), torch.ones((), requires_grad=True)
        objective(*scored(rec, kl), 0).backward()
    assert rec.grad is not None and kl.grad is not None


# -- beta-VAE -------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0, 4.0])
def test_the_rate_is_weighed_by_beta_and_so_is_the_checkpoint(beta):
    made = recipe("beta_vae", beta=beta)
    assert float(made.objective(*scored(30.0, 3.0), 7)) == pytest.approx(30 + beta * 3)
    assert gradients(made.objective, 30.0, 3.0) == pytest.approx((1.0, beta))
    assert made.select == beta and made.select_after == 0.0


def at_rate(target: float, weight: float = 1.0, ramp: float = 0.0):
    return recipe("beta_vae", beta=None, target=target, weight=weight, ramp=ramp)


@pytest.mark.parametrize(("kl", "sign"), [(1.9, -1), (2.1, 1)])
def test_the_rate_is_drawn_to_the_target_from_both_sides(kl, sign):
    objective = at_rate(2.0, weight=3.0).objective
    assert float(objective(*scored(30.0, kl), 0)) == pytest.approx(30 + 3 * abs(kl - 2))
    assert gradients(objective, 30.0, kl) == pytest.approx((1.0, 3.0 * sign))


def test_it_is_the_mean_rate_that_has_a_target():
    """Rates of 0 and 4 are as good as 2 and 2."""
    draw, batch = scored(30.0, 2.0, sentences=2)
    draw.kl = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    assert float(at_rate(2.0).objective(draw, batch, 0)) == pytest.approx(30)


@pytest.mark.parametrize(("t", "height"), [(0, 0.0), (10, 1.0), (20, 2.0), (40, 4.0), (99, 4.0)])
def test_the_target_rises_over_its_ramp(t, height):
    made = at_rate(4.0, ramp=0.4)
    assert float(made.objective(*scored(30.0, 0.0), t)) == pytest.approx(30 + height)
    assert made.select_after == 0.4 and made.select is None


# -- soft free bits -------------------------------------------------------------------------------


def test_gamma_gives_way_below_the_target_rises_above_the_band_and_rests_within():
    objective = recipe("soft_free_bits", target=4.0, increment=0.1).objective
    seen = []
    for kl in (3.9, 1.0, 4.0, 4.1, 4.2, 4.3, 9.0, 9.0):
        before = float(objective.gamma)
        assert gradients(objective, 30.0, kl) == pytest.approx((1.0, before))
        seen.append(float(objective.gamma))
    low, lower = 1 / 1.1, 1 / 1.21
    assert seen == pytest.approx([low, lower, lower, lower, lower, low, 1.0, 1.0])


@given(kls=rates)
def test_gamma_is_what_the_released_code_makes_of_it(kls):
    """Pelsmaeker and Aziz's, which divides and multiplies by 1 + 10 kl_step."""
    increment, gamma = 10 * 0.01, 1.0
    objective = recipe("soft_free_bits", target=4.0, increment=increment).objective
    for kl in kls:
        loss = float(objective(*scored(30.0, kl), 0))
        assert loss == pytest.approx(30 + gamma * kl, rel=1e-3)
        if kl < 4:
            gamma = max(gamma / (1 + increment), 1e-4)
        elif kl > 4.2:
            gamma = min(gamma * (1 + increment), 1.0)
    assert float(objective.gamma) == pytest.approx(gamma, rel=1e-3)


# -- ControlVAE -----------------------------------------------------------------------------------


def controller(target: float = 3.0, kp: float = 0.01, ki: float = 0.0001):
    return recipe("control_vae", target=target, kp=kp, ki=ki).objective


def weight(objective) -> float:
    """What the next batch's KL is weighed by."""
    return gradients(objective, 30.0, 3.0)[1]


def steps_to(objective, kl: float, end: float, most: int) -> int:
    """Batches of one KL until its weight is `end`."""
    for step in range(most):
        if float(objective.output.clamp(0, 1)) == end:
            return step
        objective.observe(torch.tensor(kl))
    raise AssertionError(f"the weight is {float(objective.output)} after {most} steps")


@pytest.mark.parametrize(("kp", "ki"), [(0.01, 0.0001), (0.001, 0.001), (0.01, 0.001), (0.0, 0.3)])
def test_a_constant_error_drives_the_weight_to_its_end_and_one_of_the_other_sign_back(kp, ki):
    """Also where a single increment, ki |e|, is more than the proportional term can undo, and
    however long the weight has been at its end."""
    target, error = 12.0, 10.0
    objective = controller(target=target, kp=kp, ki=ki)
    expected = 1 / (ki * error)
    slack = kp / (ki * error) + 3  # what the proportional term is worth, in steps
    for _ in range(3):
        assert steps_to(objective, target + error, 1.0, int(4 * expected) + 9) <= expected + slack
        for _ in range(100):
            objective.observe(torch.tensor(target + error))
        assert weight(objective) == 1.0
        took = steps_to(objective, target - error, 0.0, int(4 * expected) + 9)
        assert took == pytest.approx(expected, abs=slack)
        for _ in range(100):
            objective.observe(torch.tensor(target - error))
        assert weight(objective) == 0.0


@given(kls=st.lists(st.floats(3.0, 9.0), min_size=1, max_size=60))
def test_within_its_range_the_weight_is_that_of_the_released_code(kls):
    """Which charges a batch by what the batches before have made of the weight."""
    objective, integral, output = controller(kp=0.01, ki=0.001), 0.0, 0.0
    for kl in kls:
        assert float(objective(*scored(30.0, kl), 0)) == pytest.approx(30 + output * kl, rel=1e-5)
        error = 3 - kl
        integral -= 0.001 * error
        output = 0.01 / (1 + math.exp(error)) + integral
    assert float(objective.output) == pytest.approx(output, abs=1e-5)


def test_a_controlled_rate_ends_at_its_set_point():
    """Of a rate that answers its weight as KL = 8 (1 - beta)."""
    objective = controller(target=3.0, ki=0.001)
    for _ in range(3000):
        objective.observe(torch.tensor(8 * (1 - float(objective.output.clamp(0, 1)))))
    assert weight(objective) == pytest.approx(1 - 3 / 8, abs=1e-3)


# -- minimum desired rate -------------------------------------------------------------------------


def test_what_ascends_keeps_its_value():
    x = torch.tensor([0.5, -2.0], requires_grad=True)
    y = (ascending(x) * torch.tensor([3.0, 4.0])).sum()
    assert float(y.detach()) == pytest.approx(-6.5)
    assert torch.equal(torch.autograd.grad(y, x)[0], torch.tensor([-3.0, -4.0]))


@pytest.mark.parametrize("w", [1.01, 0.3, -0.3])
@pytest.mark.parametrize("kl", [1.0, 5.0])
def test_the_model_descends_the_lagrangian_and_its_multiplier_climbs_it(kl, w):
    objective = recipe("mdr", target=4.0, start=0.7).objective
    assert float(objective.w.detach()) == pytest.approx(0.7)
    objective.w.data.fill_(w)
    loss = objective(*scored(30.0, torch.tensor(kl)), 0)
    assert float(loss.detach()) == pytest.approx(30 + kl + abs(w) * (4 - kl), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, objective.w)
    assert float(gradient) == pytest.approx(-math.copysign(1, w) * (4 - kl), rel=1e-6)
    assert gradients(objective, 30.0, kl) == pytest.approx((1.0, 1 - abs(w)))


@pytest.mark.parametrize(("best", "rate", "multiplier"), [(1.0, 2.0, 1.0), (3.0, 3.0, 0.0)])
def test_the_least_rate_is_met_and_a_higher_one_left_alone(best, rate, multiplier):
    """Of a model whose negative ELBO is (KL - best)^2 / 2: where the constraint binds, the
    multiplier is its slope there, and elsewhere 0."""
    objective = recipe("mdr", target=2.0, start=1.01).objective
    kl = torch.tensor(0.1, requires_grad=True)
    optimiser = torch.optim.SGD([kl, *objective.parameters()], lr=0.05)
    for _ in range(600):
        optimiser.zero_grad()
        objective(*scored((kl - best) ** 2 / 2 - kl, kl), 0).backward()
        optimiser.step()
    assert float(kl.detach()) == pytest.approx(rate, abs=0.03)
    assert float(objective.w.detach().abs()) == pytest.approx(multiplier, abs=0.06)


# -- GECO -----------------------------------------------------------------------------------------

batches = st.lists(
    st.tuples(st.floats(1, 60), st.floats(0, 12), st.integers(1, 12)), min_size=1, max_size=60
)


@given(batches=batches, own=st.booleans())
def test_lambda_is_multiplied_by_the_exponential_of_the_averaged_violation(batches, own):
    """`own`: the tolerance is so much below the lowest average of Rec + KL a token."""
    fields = {"gain": 4.0} if own else {"gain": None, "kappa": 2.0}
    objective = recipe("geco", **fields, momentum=0.9, speed=0.02).objective
    cost, lowest, violation, multiplier = None, math.inf, None, 1.0
    for rec, kl, tokens in batches:
        now = (rec + kl) / tokens
        cost = now if cost is None else MEMORY * cost + (1 - MEMORY) * now
        lowest = min(lowest, cost)
        excess = rec - (lowest * tokens - 4 if own else 2.0 * tokens)
        loss = float(objective(*scored(rec, kl, tokens), 0))
        assert loss == pytest.approx(kl + multiplier * excess, rel=1e-3, abs=1e-3)
        violation = excess if violation is None else 0.9 * violation + 0.1 * excess
        multiplier = min(max(multiplier * math.exp(0.02 * violation), LEAST), MOST)
    assert float(objective.multiplier) == pytest.approx(multiplier, rel=1e-3)


def test_geco_weighs_the_reconstruction_alone():
    objective = recipe("geco").objective
    objective.multiplier.fill_(3.0)
    assert gradients(objective, 30.0, 2.0) == pytest.approx((3.0, 1.0))


def test_the_tolerance_is_met_at_the_least_rate():
    """Of a model with Rec = 10 exp(-KL): Rec = 4 at KL = ln 2.5, where its slope is -4 = -1 /
    lambda."""
    objective = recipe("geco", gain=None, kappa=0.8, momentum=0.9, speed=0.01).objective
    kl = torch.tensor(0.1, requires_grad=True)
    optimiser = torch.optim.SGD([kl], lr=0.2)
    for _ in range(1000):
        optimiser.zero_grad()
        objective(*scored(10 * (-kl).exp(), kl, tokens=5), 0).backward()
        optimiser.step()
    assert float(kl.detach()) == pytest.approx(math.log(2.5), abs=0.01)
    assert float(objective.multiplier) == pytest.approx(0.25, abs=0.01)


def test_a_tolerance_out_of_reach_does_not_run_away():
    objective = recipe("geco", gain=None, kappa=0.0, speed=1.0).objective
    for _ in range(20):
        objective(*scored(300.0, 2.0), 0)
    assert float(objective.multiplier) == MOST


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields", "word"),
    [
        ("beta_vae", {"target": 3.0}, "method.beta"),
        ("beta_vae", {"beta": None}, "method.target"),
        ("beta_vae", {"beta": -0.1}, "negative"),
        ("beta_vae", {"weight": 1.0}, "method.weight"),
        ("beta_vae", {"ramp": 0.5}, "method.ramp"),
        ("beta_vae", {"beta": None, "target": 3.0}, "method.weight"),
        ("beta_vae", {"beta": None, "target": 3.0, "weight": 0.0, "ramp": 0.0}, "above 0"),
        ("beta_vae", {"beta": None, "target": 3.0, "weight": 1.0, "ramp": 1.5}, "share"),
        ("soft_free_bits", {"target": 0.0}, "method.target"),
        ("soft_free_bits", {"increment": 0.0}, "method.increment"),
        ("control_vae", {"target": 0.0}, "method.target"),
        ("control_vae", {"kp": -1.0}, "method.kp"),
        ("control_vae", {"ki": 0.0}, "method.ki"),
        ("mdr", {"target": 0.0}, "method.target"),
        ("mdr", {"start": 0.0}, "method.start"),
        ("geco", {"kappa": 2.0}, "method.gain"),
        ("geco", {"gain": None}, "method.kappa"),
        ("geco", {"gain": -1.0}, "negative"),
        ("geco", {"momentum": 1.0}, "method.momentum"),
        ("geco", {"speed": 0.0}, "method.speed"),
    ],
)
def test_what_has_no_meaning_is_refused(name, fields, word):
    with pytest.raises(ValueError, match=word):
        recipe(name, **fields)
