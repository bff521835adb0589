"""A cell that is cut off, wherever and however often, ends with the bits of one that was not."""

import hashlib
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark import evaluate, record
from benchmark.api import EOS, PAD, Batch, Draw, Phase, Phases, Recipe, Step
from benchmark.compose import CONFIGS
from benchmark.config import Budget, Evaluation, Halving, Optimiser
from benchmark.evaluate import Report, Stopped
from benchmark.grid import Cell
from benchmark.models import GaussianVAE, LSTMDecoder, LSTMEncoder
from benchmark.objectives import rate, reconstruction
from benchmark.record import RunDirectory
from benchmark.task import CellTask
from benchmark.tensors import read_tensors
from benchmark.train import LAST, Trainer
from tests import cells
from tests.cells import SMALL, Killed, differences, found, lines, plain, result, run, stop_when


@pytest.fixture(autouse=True)
def one_thread():
    with cells.one_thread():
        yield


@pytest.fixture(scope="module")
def uncut(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A cell that nothing cut off; other cells beside its folder share its data."""
    folder = tmp_path_factory.mktemp("cells") / "uncut"
    assert run(folder) == 0
    return folder.parent, result(folder)


# -- a trainer all of whose state is alive ---------------------------------------------------------

STEPS, EPOCH = 20, 5
ELSEWHERE = {"split", "batches", "budget", "device", "autocast", "validate", "directory", "metrics"}
ELSEWHERE |= {"phases"}
"""What a trainer holds that is no state of training; `seconds` alone may differ."""


class Sentences:
    """20 random sentences of 5 predicted tokens."""

    name = "train"
    lengths = np.full(20, 5)

    def __init__(self) -> None:
        self.targets = torch.randint(4, 12, (20, 5), generator=torch.Generator().manual_seed(1))
        self.targets[:, -1] = EOS

    def __len__(self) -> int:
        return 20

    def batch(self, rows: np.ndarray) -> Batch:
        targets = self.targets[rows]
        start = torch.ones(len(rows), 1, dtype=torch.long)
        source = torch.cat([start, targets], 1)
        lengths = torch.full((len(rows),), 5)
        return Batch(targets, source[:, :-1].clone(), source, lengths, lengths + 1)


class Dual(nn.Module):
    """An objective with a dual variable, which is trained, and a moving mean, which is not."""

    def __init__(self) -> None:
        super().__init__()
        self.price = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, draw: Draw, batch: Batch, t: int) -> Tensor:
        excess = rate(draw) - 0.5
        self.mean = 0.9 * self.mean + 0.1 * excess.detach()
        return reconstruction(draw) + self.price * (excess + self.mean) + 0.01 * self.price**2


class Blank(nn.Module):
    """A corruption that blanks more and more, at random."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("share", torch.zeros(()))

    def forward(self, batch: Batch, t: int) -> Batch:
        self.share = self.share + 0.01
        gone = torch.rand(batch.inputs.shape) < self.share
        return batch.but(inputs=batch.inputs.masked_fill(gone, PAD))


class Aggressive(nn.Module):
    """A step with inner updates on other batches, as long as validation, when last heard of,
    says so; it starts the encoder anew once."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inner", torch.tensor(2))

    def forward(self, run: Trainer) -> dict[str, Tensor]:
        heard = run.fresh("valid/mi_batch32")
        if heard is not None:
            self.inner = torch.tensor(round(heard * 10) % 3)
        if run.t == 7:
            run.reset("encoder")
        for _ in range(int(self.inner)):
            run.descend(run.loss(run.another()), "encoder", clip="moved")
        loss = run.loss(run.next())
        run.descend(loss)
        return {"loss": loss.detach(), "inner": self.inner.float()}


class Encoder(LSTMEncoder):
    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)


def score(model: nn.Module, t: int) -> float:
    """A number that hangs on every weight's every bit; the third epoch is worse than the second,
    so that the rate is halved and the second's weights are loaded."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.numpy().tobytes())
    return {5: 0.8, 10: 0.4, 15: 0.9}.get(t, 0.5) + int(digest.hexdigest()[:8], 16) / 2**40


def stages() -> Step:
    """The second begins within an epoch."""
    first = Phase(0.35, select="rec")
    return Phases(STEPS, first, Phase(0.65, Aggressive(), reset=("decoder",)))


@dataclass
class Bench:
    """A folder in which trainers of one kind succeed one another."""

    directory: RunDirectory
    optimiser: Optimiser = Optimiser.adam
    every: int | None = 4
    stop_in_validation: int | None = None  # the step at which the next validation is cut off
    step: Callable[[], Step] = Aggressive
    most: int = 9  # times that the learning rate is halved

    def trainer(self) -> Trainer:
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"vocab_size": 12, "embedding": 3, "hidden": 4, "latent": 2}
        model = GaussianVAE(Encoder(**sizes), LSTMDecoder(**sizes, dropout=0.3))
        recipe = Recipe(model, Dual(), Blank(), self.step(), select_after=0.2)
        task = CellTask(12, 5.0, 5, 20, 4, EPOCH, STEPS, 3, 4, 2, 0.3, 0.1, 0.1)
        budget = Budget(
            **{"name": "tiny", "steps": STEPS, "batch_size": 4, "optimiser": self.optimiser},
            **{"learning_rate": 0.05, "clip": 1.0, "select": "nll"},
            halving=Halving(patience=1, first_epoch=1, most=self.most),
            evaluation=Evaluation(every=self.every),
        )

        def validate() -> Report:
            if self.stop_in_validation == made.t:
                self.stop_in_validation = None
                raise Stopped
            found = score(model, made.t)
            scores = dict.fromkeys(("nll", "neg_elbo", "rec", "mi_batch32"), found)
            scores |= {"latent": "global", "nll_samples": 1, "nll_sentences": 1, "mi_n": 1}
            return Report(summary=scores, units={"kl": np.array([found])})

        made = Trainer(
            recipe,
            task,
            budget,
            Sentences(),  # type: ignore[arg-type]
            list(np.arange(20).reshape(EPOCH, 4)),
            seed=0,
            device=torch.device("cpu"),
            autocast=nullcontext,
            validate=validate,
            directory=self.directory,
            metrics=self.directory.metrics(),
        )
        made.log_every = 5
        return made

    def go_on(self, until: Callable[[int], bool] = lambda t: False) -> Trainer:
        """A new trainer goes on from what is on disk, up to where it is asked to stop."""
        made = self.trainer()
        made.resume()
        finished = made.train(STEPS, lambda: until(made.t), math.inf)
        assert finished == (not until(made.t)) or self.every
        if finished:
            made.save()
        return made


@pytest.fixture
def bench(tmp_path: Path):
    """Makes benches; their leases end with the test."""
    with ExitStack() as leases:

        def make(name: str, **fields: Any) -> Bench:
            made = Cell("d", "m", "m", 0, hashlib.sha256(name.encode()).hexdigest()[:12])
            directory = RunDirectory(made.path(tmp_path))
            directory.create(made, "")
            leases.enter_context(directory.lease())
            return Bench(directory, **fields)

        yield make


def everything(trainer: Trainer) -> dict[str, Any]:
    """All that a trainer holds and has written: a field that somebody adds is compared too."""
    held = {key: value for key, value in vars(trainer).items() if key not in ELSEWHERE}
    held.pop("seconds")
    path = trainer.directory.path
    best = path / f"checkpoints/best-{trainer.best_step}.pt"
    return plain(held) | {
        "torch": torch.get_rng_state(),
        "lines": lines(path),
        "best weights": read_tensors(best),
        "files": sorted(p.name for p in path.rglob("*") if "lease" not in p.name),
    }


@pytest.fixture
def quick(monkeypatch):
    """Spares a thousand small files the wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def straight(quick, bench) -> dict[str, Any]:
    """What training holds that nothing cut off."""
    made = bench("straight").go_on()
    assert made.schedule is not None and made.schedule.decays and made.best_step
    assert made._asked and made.count["batches"] > STEPS, "some state is idle: no test of it"
    return everything(made)


def test_a_stop_at_every_step_changes_nothing(straight, bench):
    for stop in range(STEPS):
        made = bench(f"at {stop}")
        assert made.go_on(lambda t, stop=stop: t == stop).t == stop
        assert differences(everything(made.go_on()), straight) == [], f"stopped at step {stop}"


def test_a_stop_at_every_step_of_a_training_in_stages_changes_nothing(quick, bench):
    whole = everything(bench("stages", step=stages).go_on())
    for stop in range(STEPS):
        made = bench(f"stages at {stop}", step=stages)
        assert made.go_on(lambda t, stop=stop: t == stop).t == stop
        assert differences(everything(made.go_on()), whole) == [], f"stopped at step {stop}"
    for stop in range(1, STEPS):
        made = bench(f"stages dead at {stop}", step=stages)
        with pytest.raises(Killed):
            made.go_on(die_at(stop))
        assert differences(everything(made.go_on()), whole) == [], f"died at step {stop}"


@pytest.mark.parametrize("optimiser", list(Optimiser), ids=str)
def test_a_stop_after_each_step_changes_nothing(quick, bench, optimiser):
    made = bench("each", optimiser=optimiser)
    for stop in range(STEPS):
        made.go_on(lambda t, stop=stop: t == stop)
    whole = bench("whole", optimiser=optimiser)
    assert differences(everything(made.go_on()), everything(whole.go_on())) == []


def test_a_checkpoint_of_a_program_whose_updates_were_not_fused_is_gone_on_from(straight, bench):
    made = bench("older")
    made.go_on(lambda t: t == 7)
    path = made.directory.path / LAST
    saved = read_tensors(path)
    for optimiser in saved["trainer"]["optimisers"].values():
        for group in optimiser["param_groups"]:
            group["fused"] = None
    torch.save(saved, path)
    assert differences(everything(made.go_on()), straight) == []


def test_the_selected_weights_are_the_models_alone(quick, bench):
    """A phase that a step has left for good is not entered again when a decay reloads them."""
    made = bench("reloaded").go_on()
    made.step.inner.fill_(99)
    for parameter in made.model.parameters():
        nn.init.zeros_(parameter)
    made.load_best()
    best = read_tensors(made.directory.path / f"checkpoints/best-{made.best_step}.pt")
    assert made.step.inner == 99
    assert differences(plain(made.model.state_dict()), plain(best)) == []


def test_the_learning_rate_rule_waits_until_a_checkpoint_is_eligible(quick, bench):
    """A ramp raises the loss by design: decays within it would end training before its end, with
    nothing selected."""
    made = bench("ramp").trainer()
    made.select_after = STEPS
    made.train(STEPS, lambda: False, math.inf)
    assert made.t == STEPS and made.best_step == STEPS
    assert made.schedule is not None and made.schedule.decays == 0
    without = bench("no ramp").go_on()  # there the same losses do decay
    assert without.schedule is not None and without.schedule.decays > 0


def die_at(step: int) -> Callable[[int], bool]:
    def die(t: int) -> bool:
        if t == step:
            raise Killed
        return False

    return die


def test_a_death_at_every_step_changes_nothing(straight, bench):
    for stop in range(1, STEPS):
        made = bench(f"dead at {stop}")

        with pytest.raises(Killed):
            made.go_on(die_at(stop))
        assert differences(everything(made.go_on()), straight) == [], f"died at step {stop}"


def test_a_validation_that_is_stopped_is_owed(straight, bench):
    """Also at an epoch's end, where no step before it is done again."""
    for stop in (4, 5, 10, 16, STEPS):
        made = bench(f"validation {stop}", stop_in_validation=stop)
        assert made.go_on().t == stop
        resumed = made.trainer()
        assert resumed.resume() and resumed.t == stop
        assert differences(everything(made.go_on()), straight) == [], f"stopped at step {stop}"


def test_old_weights_go_and_those_that_are_referred_to_stay(straight, bench):
    """Also those of the checkpoint before the last, which may be needed."""
    for step, steps in ((6, {5}), (11, {5, 10}), (19, {10})):
        made = bench(f"weights {step}")
        with pytest.raises(Killed):
            made.go_on(die_at(step))
        checkpoints = made.directory.path / "checkpoints"
        assert {path.name for path in checkpoints.glob("best-*")} == {
            f"best-{step}.pt" for step in steps
        }
        (checkpoints / "last.pt").write_bytes(b"")
        assert made.trainer().resume() == (step > 6)
        assert differences(everything(made.go_on()), straight) == []


# -- a whole cell, in this process -----------------------------------------------------------------


def test_a_term_in_training_saves_at_the_next_step(uncut, monkeypatch):
    folder, expected = uncut[0] / "term", uncut[1]
    asked = iter(range(10**9))
    stop_when(monkeypatch, lambda: next(asked) == 17)
    assert run(folder) == 143
    path, known = found(folder)
    assert known["status"] == "interrupted" and known["reason"] is None
    assert known["cost"]["lost_seconds"] == 0
    assert read_tensors(path / "checkpoints/last.pt")["trainer"]["t"] == known["cost"]["steps"]
    assert run(folder) == 0
    assert differences(result(folder), expected) == []
    assert found(folder)[1]["cost"]["lost_seconds"] == 0


def test_what_an_evaluation_has_finished_is_not_done_again(uncut, monkeypatch, caplog):
    folder, twin = uncut[0] / "evaluation", uncut[0] / "twin"
    computed: list[tuple[str, int]] = []
    weigh = evaluate._log_weights

    def log_weights(look, rows, *more):
        found = weigh(look, rows, *more)
        computed.append((look.split.name, int(rows[0])))
        return found

    monkeypatch.setattr(evaluate, "_log_weights", log_weights)
    monkeypatch.setattr(evaluate, "TOKENS", {"cpu": 40 * 17 * 7})  # seven sentences at a time
    assert run(twin) == 0
    computed.clear()
    testing = lambda: sum(name == "test" for name, _ in computed)  # noqa: E731
    stop_when(monkeypatch, lambda: testing() == 4)
    assert run(folder) == 143
    assert found(folder)[1]["status"] == "interrupted"
    before = [row for name, row in computed if name == "test"]
    computed.clear()
    assert run(folder) == 0
    after = [row for name, row in computed if name == "test"]
    assert len(before) == 4 and len(after) == 5 and not {*before} & {*after}
    assert not any(name == "valid" for name, _ in computed)
    assert differences(result(folder), result(twin)) == []
    # that batches have another size changes no more than rounding
    of_uncut, mine = (r["summary"]["test"] for r in (uncut[1], result(folder)))
    assert mine["nll"] == pytest.approx(of_uncut["nll"], rel=1e-5)


@pytest.mark.parametrize("change", ["weights", "damage"])
def test_finished_sentences_of_other_weights_are_not_used(uncut, monkeypatch, change, caplog):
    folder, expected = uncut[0] / change, uncut[1]
    stop_when(monkeypatch, lambda: (found(folder)[0] / "checkpoints/best.pt").exists())
    assert run(folder, "save_every=0") == 143
    path = found(folder)[0] / "checkpoints/evaluation.pt"
    kept = read_tensors(path)
    wrong = {"nll": torch.zeros(60), "ess": torch.zeros(60), "nll_half": torch.zeros(60)}
    poison = {f"test/40/{i}-{j}": wrong for i in range(60) for j in range(60)}
    if change == "weights":
        torch.save({"key": "f" * 64 + kept["key"][64:], "finished": poison}, path)
    else:
        path.write_bytes(path.read_bytes()[:-30])
    assert run(folder) == 0
    assert differences(result(folder), expected) == []
    assert ("evaluated again" in caplog.text) == (change == "damage")


def test_a_stopped_cell_goes_on_to_the_same_end(uncut):
    folder, expected = uncut[0] / "stopped", uncut[1]
    for epochs, steps in ((0.35, 7), (1, 20), (1.75, 35)):
        often = epochs == 1  # only then is there half an evaluation to leave behind
        assert run(folder, f"stop_after={epochs}", f"save_every={0 if often else 300}") == 0
        path, known = found(folder)
        assert known["status"] == "stopped" and known["cost"]["steps"] == steps
        assert known["summary"]["test"]["nll"] > 0 and (path / "checkpoints/best.pt").exists()
        assert not (path / "checkpoints/evaluation.pt").exists()
    assert run(folder) == 0
    assert differences(result(folder), expected) == []
    assert found(folder)[1]["cost"]["lost_seconds"] == 0


def test_seconds_that_are_done_again_are_told_and_add_up(uncut, monkeypatch):
    """By the trainer's own clock: the times of files, which another clock may set, tell nothing."""
    folder, expected = uncut[0] / "lost", uncut[1]
    advance = Trainer._advance
    lost = []
    for death in (29, 39):

        def die(self, death=death):
            advance(self)
            if self.t == death:
                raise Killed

        monkeypatch.setattr(Trainer, "_advance", die)
        with pytest.raises(Killed):
            run(folder)
        path, known = found(folder)
        assert known["status"] == "running"
        seconds = [line["seconds"] for line in record.read_metrics(path / "metrics.jsonl")]
        saved = read_tensors(path / "checkpoints/last.pt")["trainer"]
        assert saved["t"] == 20
        lost.append(max(seconds) - saved["seconds"])
        for number, file in enumerate(path.rglob("*")):
            os.utime(file, (number * 10**8, number * 10**8))
    assert found(folder)[1]["cost"]["lost_seconds"] == pytest.approx(lost[0])
    monkeypatch.setattr(Trainer, "_advance", advance)
    assert run(folder) == 0
    assert found(folder)[1]["cost"]["lost_seconds"] == pytest.approx(sum(lost))
    assert min(lost) > 0
    assert differences(result(folder), expected) == []


# -- a whole cell, in a process that is killed -----------------------------------------------------

KILLED = ["budget.steps=60", "budget.evaluation.nll_samples=2000", "save_every=0"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Any]:
    """What nothing killed, and in another process."""
    folder = tmp_path_factory.mktemp("whole") / "uncut"
    assert run(folder, *KILLED) == 0
    return result(folder)


PHASES = ("preparation", "training", "saving", "evaluation")


def start(folder: Path, data: Path, *words: str) -> subprocess.Popen:
    places = [f"results_dir={folder / 'results'}", f"data_dir={data}"]
    return subprocess.Popen(
        [sys.executable, "-m", "benchmark.run", *SMALL, *KILLED, *places, *words],
        cwd=folder.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def phase_of(folder: Path, begun: int) -> str:
    """In which phase a process died, by what it left; begun: bytes of the log before it."""
    runs = list(folder.glob("results/*/*/*/s*"))
    if not runs:
        return "preparation"
    if list(runs[0].glob("checkpoints/.*.tmp")):
        return "saving"
    log = (runs[0] / "log.txt").read_text()[begun:] if (runs[0] / "log.txt").exists() else ""
    if "evaluating" in log:
        return "evaluation"
    return "training" if "training from" in log else "preparation"


def kill_in(phase: str, folder: Path, data: Path, random: random.Random, *words: str) -> str | None:
    """Start the cell, kill it at a random instant after `phase` has begun, and tell the phase in
    which it died; None if it had ended."""
    logs = list(folder.glob("results/*/*/*/s*/log.txt"))
    begun = logs[0].stat().st_size if logs else 0
    process = start(folder, data, *words)
    with process:
        while process.poll() is None:
            log = next(folder.glob("results/*/*/*/s*/log.txt"), None)
            text = log.read_text()[begun:] if log else ""
            if phase == "preparation":
                time.sleep(random.uniform(0.1, 2.5))
                break
            if phase == "training" and "training from" in text:
                time.sleep(random.uniform(0, 0.3))
                break
            if phase == "evaluation" and "evaluating" in text:
                time.sleep(random.uniform(0, 1.0))
                break
            if phase == "saving" and log and list(log.parent.glob("checkpoints/.*.tmp")):
                time.sleep(random.uniform(0, 0.002))
                break
            time.sleep(0.0005)
        ended = process.poll() is not None
        process.kill()
    return None if ended else phase_of(folder, begun)


@pytest.mark.parametrize(
    "kills", [pytest.param(4), pytest.param(20, marks=[pytest.mark.soak, pytest.mark.timeout(900)])]
)
def test_kills_at_random_instants_change_nothing(tmp_path: Path, whole, kills: int):
    data = tmp_path / "data"
    chance = random.Random(kills)
    fallen: Counter[str] = Counter()
    for phase in PHASES:
        for _ in range(kills // len(PHASES)):
            died = kill_in(phase, tmp_path / "cut", data, chance)
            assert died is not None, f"the cell ended before a kill in {phase}"
            fallen[died] += 1
            for directory, _ in record.scan(tmp_path / "cut/results"):
                assert not [p for p in record.validate(directory.path) if "damaged" in p]
    process = start(tmp_path / "cut", data)
    assert process.communicate()[1] and process.returncode == 0
    print(f"{kills} kills: {dict(fallen)}")
    assert sum(fallen.values()) == kills and len(fallen) >= 3
    assert differences(result(tmp_path / "cut"), whole) == []


METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))


@pytest.mark.soak
@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_on_after_a_kill(tmp_path: Path, name: str):
    words = [f"method={name}", "save_every=0"]
    assert run(tmp_path / "uncut", *KILLED, *words) == 0
    for phase in ("training", "training", "saving"):
        died = kill_in(phase, tmp_path / "cut", tmp_path / "data", random.Random(name), *words)
        assert died is not None, f"the cell ended before a kill in {phase}"
    process = start(tmp_path / "cut", tmp_path / "data", *words)
    assert process.communicate()[1] and process.returncode == 0
    assert differences(result(tmp_path / "cut"), result(tmp_path / "uncut")) == []


def until_told(process: subprocess.Popen, words: str) -> None:
    assert process.stderr is not None
    while words not in (line := process.stderr.readline()):
        assert line, f"it ended before it said {words!r}"


def test_signals_save_and_tell(tmp_path: Path, whole):
    """INT in training, TERM in evaluation, INT twice; then to the end."""
    folder, data = tmp_path / "cut", tmp_path / "data"
    for number, sign in ((signal.SIGINT, "training from"), (signal.SIGTERM, "evaluating")):
        process = start(folder, data)
        until_told(process, sign)
        process.send_signal(number)
        told = process.communicate(timeout=60)[1]
        assert process.returncode == 128 + number and found(folder)[1]["status"] == "interrupted"
        assert "the same command goes on from here" in told and "Traceback" not in told
    process = start(folder, data)
    until_told(process, "evaluating")
    process.send_signal(signal.SIGINT)
    until_told(process, "once more to stop at once")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130)
    process = start(folder, data)
    assert process.communicate()[1] and process.returncode == 0
    assert found(folder)[1]["cost"]["lost_seconds"] == 0
    assert differences(result(folder), whole) == []


def test_a_term_in_preparation_leaves_nothing_half_prepared(tmp_path: Path):
    process = start(tmp_path / "cut", tmp_path / "data", "dataset.sentences.train=400000")
    while not list(tmp_path.glob("data/.*")):
        assert process.poll() is None
        time.sleep(0.001)
    process.terminate()
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and told == "ended by SIGTERM before training began\n"
    assert not list(tmp_path.glob("data/.*")) and not list(tmp_path.glob("cut/**/run.json"))
