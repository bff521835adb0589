"""What would have kept the code alive: a cause of collapse is what rescues when it is taken away.

A finished run is trained again up to an early step, and from there on for the same number of steps
in several ways, the first of which changes nothing:

    samples   every loss is the mean of 8, on fresh draws for its batch    sampling noise / 8
    batch     every loss is the mean of 8, on 7 batches besides its own    both noises / 8
    warm      the encoder first moves alone, the decoder held still        a stronger signal
    reset     the decoder first forgets all that it has learned            no lag of the encoder

The noises are the parts of the gradient's variance (`gradients`): of its draws given the sentences,
and of the sentences. As larger batches lower both, they tell of the second only where samples do
not rescue; and with Adam less noise means longer steps, too. A warm start strengthens the signal:
the encoder learns to say what the decoder, as it is, can read. After a reset the encoder is ahead
of a decoder that cannot do without the code yet.

A branch is rescued if at its end the code is read and the control's is not. That is the story of
one seed, each branch of which was trained once.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmark.api import Batch, Run
from benchmark.cell import Restored
from benchmark.compose import UserError
from benchmark.diagnosis.gradients import DECODER, inference_parts
from benchmark.diagnosis.replay import again, reached, train
from benchmark.train import Diverged, Trainer

log = logging.getLogger(__name__)

TIMES = 8
CONTROL = "unchanged"
CAUSES = {
    "samples": "sampling noise",
    "batch": "minibatch noise",
    "warm": "weak signal",
    "reset": "lag",
}
MEASURES = ("kl", "mi", "z_gain", "z_gain_se", "neg_elbo")

Change = Callable[[Trainer], None]


class Averaged:
    """A run each of whose losses is the mean of several: on fresh draws for its batch (and masks of
    dropout), or on other batches besides. What keeps state in the loss is moved on by each."""

    def __init__(self, run: Run, others: bool):
        self.run, self.others = run, others

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)

    def loss(self, batch: Batch) -> Tensor:
        total = self.run.loss(batch)
        for _ in range(TIMES - 1):
            total = total + self.run.loss(self.run.another() if self.others else batch)
        return total / TIMES


def average(trainer: Trainer, others: bool) -> None:
    """From here on the method's own step meets averaged losses."""
    step: Any = trainer.step
    trainer.step = lambda run: step(Averaged(run, others))


def warm(trainer: Trainer, updates: int) -> None:
    """Before its next step the encoder moves alone so many times."""
    step: Any = trainer.step
    at = trainer.t

    def warmed(run: Run) -> dict[str, Tensor]:
        if run.t == at:
            for _ in range(updates):
                run.descend(run.loss(run.another()), *inference_parts(run.model))
        return step(run)

    trainer.step = warmed


def reset(trainer: Trainer) -> None:
    """Its next step meets an untrained decoder, also where that step begins a stage."""
    step: Any = trainer.step
    at = trainer.t

    def untaught(run: Run) -> dict[str, Tensor]:
        if run.t == at:
            run.reset(DECODER)
        return step(run)

    trainer.step = untaught


def changes(updates: int) -> dict[str, Change]:
    """What is done to a trainer where its branch begins."""
    return {
        CONTROL: lambda trainer: None,
        "samples": partial(average, others=False),
        "batch": partial(average, others=True),
        "warm": partial(warm, updates=updates),
        "reset": reset,
    }


def interventions(
    run: Restored, at: float = 0.1, share: float = 0.3, updates: int = 250, read: float = 0.05
) -> dict[str, Any]:
    """{"at", "steps", "updates", "branches": {name: {MEASURES..., "alive"}}, "cause"}, measured on
    validation as an epoch's end is.

    at: share of the run's steps after which the branches begin; share: that each of them takes;
    updates: of the warm start's encoder; read: nats a sentence from which a code is read. Costs
    about 19 times a branch's training, for two of them average 8 losses, which are held in memory
    at once. Raises UserError for a model that infers nothing.
    """
    if not (0 <= at < 1 and 0 < share <= 1 and updates >= 1):
        raise UserError("at and share are shares of the run's steps, and updates at least 1.")
    if not inference_parts(run.model):
        raise UserError("this model infers nothing: it has no code to keep alive.")
    done = reached(run)
    start = min(round(at * done), done - 1)
    until = min(start + max(1, round(share * done)), done)
    chosen = changes(updates)
    if not hasattr(run.model.parts().get(DECODER), "reset_parameters"):
        del chosen["reset"]  # of a model that cannot
    branches = {}
    with again(run) as trunk:
        train(trunk, start)
        trunk.trainer.save()
        for name, change in chosen.items():
            branches[name] = branch(run, trunk.directory.path, change, until, read)
            log.info("%s: %s", name, branches[name])
    found = cause({name: end["alive"] for name, end in branches.items()})
    taken = {"at": start, "steps": until - start, "updates": updates}
    return taken | {"branches": branches, "cause": found}


def branch(run: Restored, saved: Path, change: Change, until: int, read: float) -> dict[str, Any]:
    """The end of a branch that begins as was saved; nulls if it diverged."""
    with again(run, saved) as cell:
        change(cell.trainer)
        try:
            train(cell, until)
        except Diverged:
            return dict.fromkeys(MEASURES) | {"alive": False}
        end = cell.validate().numbers
    return {name: end[name] for name in MEASURES} | {"alive": alive(end, read)}


def alive(end: Mapping[str, float | None], read: float) -> bool:
    """Whether a code has a rate, and beyond two standard errors is read: a rate alone may be a
    floor's. A measure that has no meaning for a model is no objection."""
    kl, gain, error = (end[name] for name in ("kl", "z_gain", "z_gain_se"))
    return (kl is None or kl >= read) and (gain is None or gain >= max(read, 2 * (error or 0)))


def cause(lives: Mapping[str, bool]) -> str:
    """In words, what was taken away where the code lived."""
    if lives[CONTROL]:
        return "not collapsed"
    rescued = [name for name in CAUSES if lives.get(name)]
    if "samples" in rescued:
        rescued = [name for name in rescued if name != "batch"]  # it averages draws, too
    return " and ".join(CAUSES[name] for name in rescued) or "none of these"
