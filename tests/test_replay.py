"""A run trained again is the run, whatever is measured on its way; and its branches begin there."""

import copy
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmark.cell import Restored, restore
from benchmark.compose import UserError
from benchmark.diagnosis import gradients, interventions
from benchmark.diagnosis import replay as module
from benchmark.diagnosis.interventions import CONTROL, MEASURES, alive, average, cause, warm
from benchmark.diagnosis.replay import again, by_step, replay, spaced, train
from tests import cells
from tests.cells import differences, found, lines, run

AT = 20  # an epoch of the small cell, of 50 steps


@pytest.fixture(autouse=True)
def one_thread():
    with cells.one_thread():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished run in which everything that a replay must meet moves: a ramp, dropout, a rate
    that is halved, validations within an epoch."""
    place = tmp_path_factory.mktemp("cells") / "small"
    with cells.one_thread():
        assert run(place) == 0
    return found(place)[0]


@pytest.fixture
def small(folder) -> Restored:
    return restore(folder)


@pytest.fixture
def trails(monkeypatch) -> list[list[dict]]:
    """What every replayed cell has written by its end, without seconds."""
    seen = []

    @contextmanager
    def watched(run, start=None):
        with again(run, start) as cell:
            yield cell
            seen.append(lines(cell.directory.path))

    monkeypatch.setattr(module, "again", watched)
    return seen


def meddle(model, step):
    """A probe that draws random numbers, sets modes and asks for gradients."""
    torch.rand(7)
    np.random.rand(7)
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return {"weight": next(model.parameters()).sum().item(), "step": step}


def nothing(model, step):
    return {}


@pytest.mark.parametrize("probe", [nothing, meddle], ids=lambda probe: probe.__name__)
def test_a_replay_is_the_run_to_the_bit(probe, small, folder, trails):
    told = replay(small, {"probe": probe}, [0, 3, 7, 20, 33, 50])
    original = [line for line in lines(folder) if line["split"] != "test"]
    assert differences(trails, [original]) == [] and len(original) > 100
    assert told["exact"] is True and told["steps"] == [0, 3, 7, 20, 33, 50]
    if probe is meddle:
        assert told["probe"]["step"] == told["steps"] and len({*told["probe"]["weight"]}) == 6


def test_gradients_along_a_run(small, folder, trails):
    told = replay(small, {"gradients": gradients.probe(small, 10)})
    assert told["steps"] == spaced(50) and told["exact"] is True
    assert differences(trails, [[v for v in lines(folder) if v["split"] != "test"]]) == []
    for cost in ("rec", "kl"):
        columns = told["gradients"][cost]
        assert {len(column) for column in columns.values()} == {len(told["steps"])}
        np.testing.assert_allclose(columns["snr_batch"], 16 * np.array(columns["snr"]))


def test_a_replay_that_is_another_run_says_so(small):
    with torch.no_grad():
        next(small.model.parameters()).view(-1)[0] += 1e-6
    assert replay(small, {})["exact"] is False
    assert replay(small, {}, [3])["exact"] is None  # it did not get to what was selected


def test_the_steps_are_the_runs_own(small):
    assert spaced(2_500) == [1, 2, 4, 8, 17, 35, 71, 145, 296, 603, 1228, 2500]
    assert spaced(3) == [1, 2, 3]
    for steps in ([], [-1], [51]):
        with pytest.raises(UserError, match="steps 0 to 50"):
            replay(small, {}, steps)


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> Path:
    """A run in stages, of which the schedule ended the first before its time."""
    place = tmp_path_factory.mktemp("cells") / "cut"
    halving = "budget.halving={patience: 1, first_epoch: 0, most: 1}"
    words = ("method=pretrain_free_bits", "method.pretrain=0.8", "method.reset_decoder=false")
    with cells.one_thread():
        assert run(place, *words, halving, "budget.steps=200", "budget.learning_rate=0.5") == 0
    return found(place)[0]


def test_a_replay_leaves_out_what_the_run_left_out(cut, trails):
    known = restore(cut)
    cost = known.record["cost"]
    left_out = cost["reached"] - cost["steps"]
    assert left_out > 0 and known.record["selected_step"] > 160
    first = 160 - left_out  # where the first stage ended
    told = replay(known, {"nothing": nothing}, [1, first + 1, 160, 161, cost["reached"]])
    assert told["steps"] == [1, 160, 161, cost["reached"]] and told["exact"] is True
    assert differences(trails, [[v for v in lines(cut) if v["split"] != "test"]]) == []


def test_a_new_decoder_outlives_the_beginning_of_a_stage(cut):
    known, met = restore(cut), []

    def watched(trainer):
        step = trainer.step
        trainer.step = lambda run: met.append(copy.deepcopy(run.model.state_dict())) or step(run)

    with again(known) as trunk:
        train(trunk, 160)
        trunk.trainer.save()
        for name in (CONTROL, "reset"):
            with again(known, trunk.directory.path) as cell:
                watched(cell.trainer)
                interventions.changes(5)[name](cell.trainer)
                train(cell, 161)
    kept, new = met
    assert {name.partition(".")[0] for name in kept if not kept[name].equal(new[name])} == {
        "decoder"
    }


def test_values_are_listed_by_step():
    values = [{"a": 1, "b": {"c": [1]}}, {"a": 2, "b": {"c": [2]}}]
    assert by_step(values) == {"a": [1, 2], "b": {"c": [[1], [2]]}}


# -- interventions --------------------------------------------------------------------------------


def test_a_branch_begins_where_the_trunk_was_saved(small):
    with again(small) as trunk:
        train(trunk, 15)
        trunk.trainer.save()
        with again(small, trunk.directory.path) as cell:
            assert differences(cell.trainer.state(), trunk.trainer.state()) == []
            assert lines(cell.directory.path) == lines(trunk.directory.path)
        assert cell.trainer.t == 15 and cell.directory.path != trunk.directory.path


def test_the_unchanged_branch_is_the_run(small, folder):
    told = interventions.interventions(small, at=0.3, share=0.5, updates=3)
    assert (told["at"], told["steps"], told["updates"]) == (15, 25, 3)
    assert [*told["branches"]] == [CONTROL, *interventions.CAUSES]
    at_end = {v["metric"]: v["value"] for v in lines(folder) if v["step"] == 40}
    ends = told["branches"]
    control = {name: ends[CONTROL][name] for name in MEASURES}
    assert control == {name: at_end[name] for name in MEASURES}
    assert len({end["neg_elbo"] for end in ends.values()}) == len(ends)  # each does something
    assert told["cause"] == "none of these" and not any(end["alive"] for end in ends.values())


@pytest.mark.parametrize("others", [False, True])
def test_a_loss_is_the_mean_of_eight(others, small):
    """On fresh draws for the step's own batch, or on seven other batches besides."""
    with again(small) as cell:
        trainer, met, losses = cell.trainer, [], []
        trainer.objective = lambda draw, batch, t: losses.append(draw.log_px.mean()) or losses[-1]
        own = trainer.loss

        def loss(batch):
            met.append(batch)
            return own(batch)

        trainer.loss = loss

        def step(run):
            assert run.t == trainer.t and run.history is trainer.history
            value = run.loss(run.next())
            torch.testing.assert_close(value, torch.stack(losses).mean())
            run.descend(value)
            return {"loss": value.detach()}

        trainer.step = step
        average(trainer, others)
        trainer._advance()
        assert len({*losses}) == 8, "the draws are the same"
        assert len({id(batch) for batch in met}) == (8 if others else 1)
        assert met[0].targets.equal(
            small.corpus.train.batch(small.batches[trainer._turn(0)]).targets
        )
        assert trainer.count["batches"] == (8 if others else 1) and trainer.count["backwards"] == 1


def test_the_encoder_warms_up_alone_and_once(small):
    with again(small) as cell:
        trainer, step, seen = cell.trainer, cell.trainer.step, []

        def watched(run):
            seen.append(copy.deepcopy(run.model.state_dict()))
            return step(run)

        train(cell, 3)
        before = copy.deepcopy(trainer.model.state_dict())
        trainer.step = watched
        warm(trainer, 5)
        train(cell, 6)
        moved = {name.partition(".")[0] for name in before if not seen[0][name].equal(before[name])}
        assert moved == {"encoder"} and len(seen) == 3
        assert trainer.count["backwards"] == 3 + 5 + 3


def test_a_branch_that_diverges_ends_no_other(small, folder):
    def ruin(trainer):
        for parameter in trainer.model.parameters():
            nn.init.constant_(parameter, float("nan"))

    with again(small) as trunk:
        train(trunk, AT)
        trunk.trainer.save()
        end = interventions.branch(small, trunk.directory.path, ruin, 40, 0.05)
    assert end == dict.fromkeys(MEASURES) | {"alive": False}


LIVES = [
    ({CONTROL, "samples"}, "not collapsed"),
    (set(), "none of these"),
    ({"batch"}, "minibatch noise"),
    ({"samples", "batch"}, "sampling noise"),  # which larger batches lower as well
    ({"samples"}, "sampling noise"),
    ({"warm", "reset"}, "weak signal and lag"),
    ({"batch", "reset"}, "minibatch noise and lag"),
]


@pytest.mark.parametrize(("living", "told"), LIVES)
def test_the_cause_is_what_rescues(living, told):
    lives = {name: name in living for name in (CONTROL, *interventions.CAUSES)}
    assert cause(lives) == told


ENDS = [
    ((2.0, 5.0, 0.3), True),
    ((2.0, 0.01, 0.3), False),  # a floor's rate
    ((2.0, 0.3, 0.2), False),  # within two standard errors of none
    ((0.01, 0.3, 0.01), False),  # more than the rate allows
    ((2.0, None, None), True),
    ((float("nan"), 0.3, 0.01), False),
]


@pytest.mark.parametrize(("end", "lives"), ENDS)
def test_a_code_lives_that_is_read(end, lives):
    assert alive(dict(zip(("kl", "z_gain", "z_gain_se"), end, strict=True)), 0.05) == lives


def test_a_model_without_a_code_is_refused(tmp_path, folder):
    place = folder.parents[3].parent / "lm"
    assert run(place, "method=lm", "budget.steps=3") == 0
    lm = restore(found(place)[0])
    with pytest.raises(UserError, match="infers nothing"):
        interventions.interventions(lm)
    with pytest.raises(UserError, match="infers nothing"):
        replay(lm, {"gradients": gradients.probe(lm, 10)})


def test_shares_are_shares(small):
    wrongs: list[dict] = [{"at": 1.0}, {"share": 0.0}, {"updates": 0}]
    for wrong in wrongs:
        with pytest.raises(UserError, match="shares of the run's steps"):
            interventions.interventions(small, **wrong)
