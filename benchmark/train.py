"""Training of one cell: the verbs a step may use, the budget, the learning-rate schedule, the
selection of a checkpoint, and a state from which training goes on exactly."""

import logging
import math
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.api import Batch, Phase, Phases, Recipe, joint_step
from benchmark.config import Budget, Halving, Optimiser
from benchmark.data.batches import order
from benchmark.data.corpus import Split
from benchmark.data.prefetch import Ahead
from benchmark.evaluate import Report, Stopped
from benchmark.objectives import negative_elbo
from benchmark.placebo import shuffled
from benchmark.record import Metrics, RunDirectory
from benchmark.task import CellTask
from benchmark.tensors import Damaged, dump, out_of_memory, read_tensors, write_tensors

log = logging.getLogger(__name__)

Scores = dict[str, float | None]
"""What validation measured, by the names of the record's summary."""

Progress = Callable[[int, int], None]
"""Told after each outer step: (steps done, steps of the budget)."""


LAST, PREVIOUS = "checkpoints/last.pt", "checkpoints/previous.pt"


class Diverged(RuntimeError):
    """The loss or a validation score is not a finite number."""


class Unfit(RuntimeError):
    """A checkpoint is whole, but of another model or another program."""


class HalvingSchedule:
    """He et al.'s learning-rate rule: two separate bests, one that says what is reloaded (kept by
    the trainer's selection) and this one, which is reset at each decay."""

    def __init__(self, rule: Halving):
        self.rule = rule
        self.best, self.not_improved, self.decays = math.inf, 0, 0

    def decay_after(self, loss: float, epoch: int) -> bool:
        """Whether to halve the rate and reload, told the loss after `epoch` (counted from 0)."""
        if loss <= self.best:
            self.best, self.not_improved = loss, 0
            return False
        self.not_improved += 1
        if self.not_improved < self.rule.patience or epoch < self.rule.first_epoch:
            return False
        self.best, self.not_improved = loss, 0
        self.decays += 1
        return True

    @property
    def ended(self) -> bool:
        return self.decays >= self.rule.most


class Trainer:
    """A `Run`: one recipe trained on one data set under one budget.

    Everything that training depends on is in `state()`; batch order is a pure function of
    (seed, epoch), so that a run cut off anywhere ends with the same bits.
    """

    log_every = 100

    def __init__(
        self,
        recipe: Recipe,
        task: CellTask,
        budget: Budget,
        split: Split,
        batches: list[np.ndarray],
        *,
        seed: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        validate: Callable[[], Report],
        directory: RunDirectory,
        metrics: Metrics,
        placebo: bool = False,
    ):
        self.model = (task.model() if recipe.model is None else recipe.model).to(device)
        self.objective = recipe.objective or negative_elbo
        self.corrupt = recipe.corrupt
        self.step = recipe.step or joint_step
        staged = isinstance(self.step, Phases)
        self.phases = self.step.phases if staged else (Phase(1.0, self.step),)
        self.ends = self.step.ends if staged else [task.steps]
        self.selection = budget.select if recipe.select is None else recipe.select
        self.select_after = math.ceil(recipe.select_after * task.steps - 1e-9)  # a share's rounding
        self.budget, self.steps, self.steps_per_epoch = budget, task.steps, task.steps_per_epoch
        self.split, self.batches = split, batches
        self.seed, self.device, self.autocast = seed, device, autocast
        self.placebo = placebo
        self.validate, self.directory, self.metrics = validate, directory, metrics

        # Slots may be modules: their parameters and buffers live and train like the model's.
        slots = {"objective": self.objective, "corrupt": self.corrupt, "step": self.step}
        self.modules = {"model": self.model} | {
            name: slot.to(device) for name, slot in slots.items() if isinstance(slot, nn.Module)
        }
        self.parts = self.model.parts() | {
            name: module
            for name, module in self.modules.items()
            if name != "model" and any(True for _ in module.parameters())
        }
        self._check_parts()
        self.rate = budget.learning_rate
        self.optimisers = {name: self._optimiser(part) for name, part in self.parts.items()}
        self.schedule = HalvingSchedule(budget.halving) if budget.halving else None

        self.t = 0
        self.stage = 0  # in which the newest step was
        self.history: list[Scores] = []
        self.units: list[dict[str, Tensor]] = []  # of each validation, every unit's measures
        self.best_step: int | None = None
        self.best_score = math.inf
        self.ended = False  # the schedule has ended training before the budget
        # passed: steps of a stage that its schedule left out
        self.count = {"batches": 0, "backwards": 0, "tokens": 0, "passed": 0}
        self.seconds = 0.0  # of training alone
        self._asked: dict[str, int] = {}
        self._validated = 0  # the newest step after which no validation is owed any more
        self._saved_best: int | None = None  # to which the newest checkpoint on disk refers
        self._others = torch.Generator().manual_seed(seed)
        # On a CPU a batch is made (0.1 ms) before a thread has woken, on the core the step needs.
        self.prefetch = device.type == "cuda"
        self._ahead = Ahead(self._read)
        self._batch: Batch | None = None
        self._logs: dict[str, Tensor] = {}
        self._logged = 0

    # -- the verbs of a step ------------------------------------------------------------------

    def next(self) -> Batch:
        if self._batch is None:
            self._batch = self._fetch(self._turn(self.t), self._ahead.take)
            if self.prefetch and self.t + 1 < self.steps:
                self._ahead.begin(self._turn(self.t + 1))
        return self._batch

    def another(self) -> Batch:
        turn = torch.randint(len(self.batches), (), generator=self._others)
        return self._fetch(int(turn), self._read)

    def loss(self, batch: Batch) -> Tensor:
        with self.autocast():
            return self.objective(self.model.draw(batch), batch, self.t)

    def descend(self, loss: Tensor, *parts: str, clip: str = "all") -> None:
        assert clip in ("all", "moved"), f"clip is 'all' or 'moved', not {clip!r}"
        moved = parts or tuple(self.parts)
        for part in self.parts.values():
            part.zero_grad(set_to_none=True)
        loss.backward()
        self.count["backwards"] += 1
        clipped = self.parts if clip == "all" else moved
        grads = [p.grad for name in clipped for p in self.parts[name].parameters()]
        norm = nn.utils.get_total_norm([grad for grad in grads if grad is not None])
        divisor = ((norm + 1e-6) / self.budget.clip).clamp(min=1)
        for name in moved:
            # PyTorch's fused optimisers divide the gradient by this as they read it
            self.optimisers[name].grad_scale = divisor  # type: ignore[attr-defined]
            self.optimisers[name].step()

    def reset(self, *parts: str) -> None:
        for name in parts:
            self.parts[name].reset_parameters()  # type: ignore[operator]
            self.optimisers[name] = self._optimiser(self.parts[name])

    def fresh(self, metric: str) -> float | None:
        if not self.history or self._asked.get(metric) == len(self.history):
            return None
        self._asked[metric] = len(self.history)
        return self.history[-1].get(metric.removeprefix("valid/"))

    # -- the loop -----------------------------------------------------------------------------

    def train(
        self,
        until: int,
        stop_requested: Callable[[], bool],
        save_every: float,
        progress: Progress = lambda t, steps: None,
    ) -> bool:
        """Train up to `until` outer steps, or as far as the schedule goes; True if it got there,
        False, and saved, if it was asked to stop. `save_every` is in seconds."""
        saved = time.monotonic()
        with closing(self._ahead):
            while self._owes_validation or (self.t < until and not self.ended):
                try:
                    if stop_requested():
                        raise Stopped
                    if self._owes_validation:
                        self._validate()
                        due = self._at_epoch
                    else:
                        self._advance()
                        progress(self.t, self.steps)
                        due = False
                except Stopped:  # also by a validation, which is then owed: no step is done again
                    self.save()
                    return False
                if due or time.monotonic() - saved > save_every:
                    self.save()
                    saved = time.monotonic()
        return True

    def _advance(self) -> None:
        began = time.monotonic()
        if self.t == self.ends[self.stage]:
            self._enter(self.stage + 1)
        self.model.train()
        logs = self.step(self)
        self.t += 1
        self._batch = None
        self._accumulate(logs)
        if self.t % self.log_every == 0 or self._at_epoch:
            self._report()  # reads the device, so the clock includes the work queued there
        self.seconds += time.monotonic() - began

    @property
    def select(self) -> str | float:
        """What picks this stage's checkpoint."""
        own = self.phases[self.stage].select
        return self.selection if own is None else own

    @property
    def _at_epoch(self) -> bool:
        """Whether an epoch, or a stage, has just ended."""
        return self.t % self.steps_per_epoch == 0 or self.t in self.ends

    @property
    def _owes_validation(self) -> bool:
        every = self.budget.evaluation.every
        due = self._at_epoch or (every is not None and self.t % every == 0)
        return due and self._validated < self.t

    def _validate(self) -> None:
        report = self.validate()
        self.record("valid", report.numbers, report.estimators)
        self._tell(report)
        if self._at_epoch:
            self._judge(report)
        self._validated = self.t

    def _judge(self, report: Report) -> None:
        """What an epoch's validation decides: the selection, the learning rate, divergence."""
        scores, last = report.numbers, self.stage == len(self.phases) - 1
        self.history.append(scores)
        units = {name: torch.from_numpy(column) for name, column in report.units.items()}
        self.units.append(units | {"step": torch.tensor(self.t)})
        score, loss = self._score(scores), self._loss(scores)
        if loss is None or not math.isfinite(loss) or not math.isfinite(score):
            raise Diverged(f"the validation loss is not finite after {self.t} steps")
        # Within a ramp the loss rises by design: no checkpoint is eligible, none to be reloaded.
        # Where it ends in a later stage, those before have none.
        if self.t < self.select_after and (last or self.select_after < self.ends[self.stage]):
            return
        if score < self.best_score:
            self.best_score, self.best_step = score, self.t
            write_tensors(self.directory, self._best_name(self.t), self.model.state_dict())
        if self.schedule is not None:
            began = [0, *self.ends][self.stage]
            epoch = (self.t - began) // self.steps_per_epoch - 1
            if self.schedule.decay_after(loss, epoch):
                self.rate *= 0.5
                self.load_best()
                self.optimisers = {name: self._optimiser(part) for name, part in self.parts.items()}
                self.ended = self.schedule.ended
        if self.ended and not last:
            self.count["passed"] += self.ends[self.stage] - self.t
            self.t, self.ended = self.ends[self.stage], False

    def _score(self, scores: Scores) -> float:
        """What the selection compares."""
        if self.select == "last":
            return -self.t
        if isinstance(self.select, str):
            score = scores[self.select]
        else:
            rec, kl = scores["rec"], scores["kl"]
            score = None if rec is None or kl is None else rec + self.select * kl
        if score is None:
            raise ValueError(f"the model has no {self.select} to select a checkpoint by")
        return score

    def _loss(self, scores: Scores) -> float | None:
        """What the learning rate follows: the negative ELBO, or what of it the selection looks at
        (Li et al. 2019); an implicit prior has none."""
        if self.select == "rec" or not isinstance(self.select, str):
            return self._score(scores)
        return scores["rec"] if scores["neg_elbo"] is None else scores["neg_elbo"]

    def _enter(self, stage: int) -> None:
        """Begin a stage of training where the one before has led; with its first step, so that
        until then there is something to be evaluated."""
        self.load_best()
        self.stage, self.best_step, self.best_score = stage, None, math.inf
        self.rate = self.budget.learning_rate
        self.schedule = HalvingSchedule(self.budget.halving) if self.budget.halving else None
        self.optimisers = {name: self._optimiser(part) for name, part in self.parts.items()}
        self.reset(*self.phases[stage].reset)

    def _tell(self, report: Report) -> None:
        found = {name: report.numbers.get(name) for name in ("nll", "neg_elbo", "kl", "i_read")}
        log.info(
            "step %d of %d: %s; %.0f tokens/s",
            *(self.t, self.steps),
            ", ".join(f"{name} {value:.2f}" for name, value in found.items() if value is not None),
            self.count["tokens"] / max(self.seconds, 1e-9),
        )

    def _accumulate(self, logs: dict[str, Tensor]) -> None:
        for name, value in logs.items():
            self._logs[name] = self._logs[name] + value if name in self._logs else value
        self._logged += 1

    def _report(self) -> None:
        if not self._logged:
            return
        means = {name: float(total) / self._logged for name, total in self._logs.items()}
        self._logs, self._logged = {}, 0
        self.record("train", means)
        if not math.isfinite(means["loss"]):
            raise Diverged(f"the training loss is not finite by step {self.t}")

    def record(
        self,
        split: str,
        values: Scores,
        estimators: dict[str, str] | None = None,
        step: int | None = None,
    ) -> None:
        """Append to metrics.jsonl, as of now or of another step."""
        self.metrics.add(
            self.t if step is None else step,
            split,
            values,
            estimators=estimators,
            seconds=self.seconds,
            batches=self.count["batches"],
            backwards=self.count["backwards"],
        )

    def _turn(self, t: int) -> int:
        """Which of the batches is that of step `t`."""
        epoch, place = divmod(t, self.steps_per_epoch)
        return int(order(len(self.batches), self.seed, epoch)[place])

    def _read(self, turn: int) -> Batch:
        """A batch on the CPU, from where it may be copied to the device; in whatever thread."""
        batch = self.split.batch(self.batches[turn])
        return batch.pin() if self.device.type == "cuda" else batch

    def _fetch(self, turn: int, read: Callable[[int], Batch]) -> Batch:
        self.count["batches"] += 1
        self.count["tokens"] += int(self.split.lengths[self.batches[turn]].sum())
        # The copy is queued on the step's own stream: none of its kernels comes before it, and
        # torch does not reuse pinned memory before the copies out of it are done.
        batch = read(turn).to(self.device, non_blocking=True)
        if self.placebo:
            batch = shuffled(batch)
        return self.corrupt(batch, self.t) if self.corrupt else batch

    def _optimiser(self, part: nn.Module) -> torch.optim.Optimizer:
        kind = torch.optim.Adam if self.budget.optimiser is Optimiser.adam else torch.optim.SGD
        return kind(part.parameters(), lr=self.rate, fused=True)

    def _check_parts(self) -> None:
        """Every parameter is stepped by one optimiser, and by one only."""
        stepped = [id(p) for part in self.parts.values() for p in part.parameters()]
        owned = {id(p): name for m in self.modules.values() for name, p in m.named_parameters()}
        assert len(stepped) == len(set(stepped)), "two parts share a parameter"
        forgotten = [name for key, name in owned.items() if key not in set(stepped)]
        assert not forgotten, f"no part holds {', '.join(forgotten)}"

    # -- state --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that training depends on, in types that `torch.load(weights_only=True)` accepts."""
        return {
            "t": self.t,
            "stage": self.stage,
            "weights": self.weights(),
            "optimisers": {name: o.state_dict() for name, o in self.optimisers.items()},
            "rate": self.rate,
            "schedule": None
            if self.schedule is None
            else [self.schedule.best, self.schedule.not_improved, self.schedule.decays],
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device)
            if self.device.type == "cuda"
            else None,
            "others": self._others.get_state(),
            "history": self.history,
            "units": self.units,
            "asked": self._asked,
            "validated": self._validated,
            "best": [self.best_step, self.best_score],
            "ended": self.ended,
            "count": self.count,
            "seconds": self.seconds,
            "logs": self._logs,
            "logged": self._logged,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.t, self._validated = state["t"], state["validated"]
        begun = bisect_right if self._validated == self.t else bisect_left
        older = begun(self.ends[:-1], self.t)  # a program that entered a stage by a validation
        self.stage = state.get("stage", older)
        self._load_weights(state["weights"])
        for name, optimiser in self.optimisers.items():
            saved = state["optimisers"][name]
            groups = [group | {"fused": True, "foreach": None} for group in saved["param_groups"]]
            optimiser.load_state_dict(saved | {"param_groups": groups})  # also of an older program
        self.rate = state["rate"]
        if self.schedule is not None:
            (self.schedule.best, self.schedule.not_improved, self.schedule.decays) = state[
                "schedule"
            ]
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)
        self._others.set_state(state["others"])
        self.history, self._asked = state["history"], state["asked"]
        self.units = state["units"]
        self.best_step, self.best_score = state["best"]
        self.ended, self.seconds = state["ended"], state["seconds"]
        self.count |= state["count"]
        self._logs = {name: value.to(self.device) for name, value in state["logs"].items()}
        self._logged = state["logged"]

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Of the model and of every slot that is a module."""
        return {name: module.state_dict() for name, module in self.modules.items()}

    def _load_weights(self, weights: dict[str, dict[str, Tensor]]) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(weights[name])

    @staticmethod
    def _best_name(t: int) -> str:
        return f"checkpoints/best-{t}.pt"

    def save(self) -> None:
        """Write the checkpoint `last`; the one before it stays as `previous`, and of the selected
        weights those to which one of the two refers."""
        last = self.directory.path / LAST
        saved = {"trainer": self.state(), "metrics": self.metrics.offset}
        with self.directory.replacing(LAST) as path:
            dump(saved, path)
            self.directory.check()
            if last.exists():
                last.replace(self.directory.path / PREVIOUS)
        keep = {self._best_name(step) for step in (self.best_step, self._saved_best) if step}
        for best in last.parent.glob("best-*.pt"):
            if f"checkpoints/{best.name}" not in keep:
                best.unlink()
        self._saved_best = self.best_step

    def resume(self) -> bool:
        """Go on from the newest checkpoint that is whole, with the selected weights and the
        metrics that belong to it; False if there is none.

        Raises Unfit if it is of another model.
        """
        last, previous = (self.directory.path / name for name in (LAST, PREVIOUS))
        found = [path for path in (last, previous) if path.exists()]
        for path in found:
            try:
                saved = read_tensors(path)
                if not isinstance(saved, dict) or not {"trainer", "metrics"} <= saved.keys():
                    raise Damaged("it holds no state of training")
                best = saved["trainer"]["best"][0]
                if best is not None:
                    read_tensors(self.directory.path / self._best_name(best))
                self.metrics.cut(saved["metrics"])
            except (Damaged, FileNotFoundError, ValueError, LookupError, TypeError) as error:
                log.warning("%s is passed over: %s", path, error)
                continue
            self.directory.check()
            path.replace(last)  # the next save must not put a damaged one in its place
            try:
                self.load_state(saved["trainer"])
            except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
                if out_of_memory(error):
                    raise
                raise Unfit(
                    f"{last} does not fit this program; remove {last.parent} to start over "
                    f"({type(error).__name__}: {' '.join(str(error).split())[:300]})"
                ) from error
            self._saved_best = self.best_step
            return True
        self.forget()
        if found:
            log.warning("no checkpoint is left to go on from: training starts over")
        return False

    def forget(self) -> None:
        """Remove every checkpoint and metric."""
        self.metrics.cut(0)
        for path in (self.directory.path / LAST).parent.glob("*"):
            path.unlink()

    def load_best(self) -> int:
        """Put the selected checkpoint's weights into the model and return its step; where none was
        eligible yet, the weights stay as they are. The slots' own state is never put back: a
        method that has left a phase for good does not re-enter it."""
        if self.best_step is None:
            return self.t
        path = self.directory.path / self._best_name(self.best_step)
        self.model.load_state_dict(read_tensors(path, self.device))
        return self.best_step
