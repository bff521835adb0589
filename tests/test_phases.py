"""Training in stages: what begins anew with each of them, and what picks its checkpoint."""

import math
from typing import Any

import pytest
import torch

from benchmark.api import Phase, Phases, joint_step
from benchmark.evaluate import Report
from benchmark.tensors import read_tensors
from benchmark.train import Trainer
from tests.test_resume import EPOCH, STEPS, bench, quick  # noqa: F401  (fixtures)

pytestmark = pytest.mark.usefixtures("quick")


def told(trainer: Trainer, scores: dict[int, dict[str, float]]) -> Trainer:
    """The trainer, whose validations after those steps say so."""

    def validate() -> Report:
        said = dict.fromkeys(("nll", "neg_elbo", "rec", "mi_batch32"), 1.0) | {"kl": 0.0}
        said |= {"latent": "global", "nll_samples": 1, "nll_sentences": 1, "mi_n": 1}
        return Report(summary=said | scores.get(trainer.t, {}), units={})

    trainer.validate = validate
    return trainer


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def go(trainer: Trainer, until: int) -> None:
    trainer.train(until, lambda: False, math.inf)


def test_each_stage_takes_its_own_steps(bench):  # noqa: F811
    taken: list[tuple[str, int]] = []

    def step(name: str) -> Any:
        def taking(run: Any) -> dict[str, torch.Tensor]:
            taken.append((name, run.t))
            return joint_step(run)

        return taking

    phases = Phases(STEPS, Phase(0.3, step("a")), Phase(0.2, step("b")), Phase(0.5, step("c")))
    go(bench("steps", step=lambda: phases).trainer(), STEPS)
    assert "".join(name for name, _ in taken) == 6 * "a" + 4 * "b" + 10 * "c"
    assert [t for _, t in taken] == [*range(STEPS)]


def idle(run: Any) -> dict[str, torch.Tensor]:
    """A step that moves nothing."""
    return {"loss": torch.zeros(())}


def test_the_next_stage_starts_from_the_selected_checkpoint_with_parts_anew(bench):  # noqa: F811
    """The first stage is best after 5 steps by Rec, its last epoch the best by the ELBO."""
    phases = Phases(STEPS, Phase(0.5, select="rec"), Phase(0.5, idle, reset=("decoder",)))
    made = bench("reset", step=lambda: phases).trainer()
    told(made, {5: {"rec": 0.5}, 10: {"rec": 0.9, "neg_elbo": 0.1, "nll": 0.1}})
    go(made, EPOCH)
    best = weights(made)
    assert made.best_step == EPOCH
    go(made, 9)
    made.rate = 0.01  # as if a decay had been
    trained = weights(made)
    go(made, 11)
    for name, value in weights(made).items():
        assert torch.equal(value, best[name]) != name.startswith("decoder"), name
        assert not torch.equal(value, trained[name]), name
    assert made.best_step is None and made.best_score == math.inf
    assert made.rate == made.budget.learning_rate
    assert not any(optimiser.state for optimiser in made.optimisers.values())
    assert {group["lr"] for o in made.optimisers.values() for group in o.param_groups} == {0.05}
    go(made, STEPS)
    assert made.best_step == 15  # a tie of the second stage's own scores: the first stays
    kept = read_tensors(made.directory.path / "checkpoints/best-15.pt")
    assert kept.keys() == best.keys()


def test_what_is_stopped_where_a_stage_ends_is_evaluated_as_that_stage_left_it(bench):  # noqa: F811
    phases = Phases(STEPS, Phase(0.5, select="rec"), Phase(0.5, reset=("decoder",)))
    made = bench("stopped", step=lambda: phases).trainer()
    told(made, {5: {"rec": 0.5}, 10: {"rec": 0.9}})
    go(made, EPOCH)
    best = weights(made)
    go(made, 10)
    assert made.load_best() == EPOCH
    assert all(torch.equal(value, best[name]) for name, value in weights(made).items())


def test_a_stage_that_the_schedule_ends_leaves_its_other_steps_out(bench):  # noqa: F811
    taken: list[int] = []

    def counted(run: Any) -> dict[str, torch.Tensor]:
        taken.append(run.t)
        return joint_step(run)

    phases = Phases(STEPS, Phase(0.75, counted), Phase(0.25, counted))
    made = bench("early", step=lambda: phases, most=1).trainer()
    told(made, {5: {"neg_elbo": 0.5}, 10: {"neg_elbo": 0.9}})
    go(made, STEPS)
    assert taken == [*range(10), *range(15, 20)]
    assert made.t == STEPS and made.best_step == STEPS and made.count["backwards"] == 15
    assert made.count["passed"] == 5


def test_no_ramp_of_the_last_stage_holds_up_the_first(bench):  # noqa: F811
    made = bench("ramp", step=lambda: Phases(STEPS, Phase(0.5), Phase(0.5))).trainer()
    made.select_after = 16
    go(made, EPOCH)
    assert made.best_step == EPOCH
    go(made, 15)
    assert made.best_step is None
    go(made, STEPS)
    assert made.best_step == STEPS


def test_a_ramp_within_a_stage_holds_up_its_selection(bench):  # noqa: F811
    made = bench("early ramp", step=lambda: Phases(STEPS, Phase(0.5), Phase(0.5))).trainer()
    made.select_after = 8
    go(made, EPOCH)
    assert made.best_step is None
    go(made, 10)
    assert made.best_step == 10


@pytest.mark.parametrize("weight, best", [(0.0, 5), (0.5, 10), (1, 15)])
def test_a_number_selects_by_rec_and_so_much_of_the_rate(bench, weight, best):  # noqa: F811
    made = bench(f"number {weight}", most=99).trainer()
    made.selection = weight
    told(
        made,
        {
            5: {"rec": 1.0, "kl": 9.0},
            10: {"rec": 2.0, "kl": 4.0},
            15: {"rec": 3.5, "kl": 2.0},
            20: {"rec": 9.0, "kl": 0.0},
        },
    )
    go(made, STEPS)
    assert made.best_step == best


@pytest.mark.parametrize(
    "steps, shares, word",
    [(20, (0.5, 0.6), "make up 1"), (20, (1.2, -0.2), "make up 1"), (3, (0.1, 0.9), "too few")],
)
def test_stages_are_refused_that_share_no_training(steps, shares, word):
    with pytest.raises(ValueError, match=word):
        Phases(steps, *map(Phase, shares))


def test_a_checkpoint_without_its_stage_is_of_the_stage_that_its_step_tells(bench):  # noqa: F811
    """It is of a program that entered a stage by the validation before it."""
    phases = Phases(STEPS, Phase(0.5), Phase(0.5))
    for t, validated, stage in ((9, 5, 0), (10, 5, 0), (10, 10, 1), (11, 10, 1)):
        made = bench(f"older {t} {validated}", step=lambda: phases).trainer()
        state = made.state() | {"t": t, "validated": validated}
        del state["stage"]
        made.load_state(state)
        assert made.stage == stage
