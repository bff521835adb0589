"""One cell, from prepared data to a record: train, select, evaluate, write down."""

import ctypes
import hashlib
import json
import logging
import os
import re
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from benchmark import record
from benchmark.api import EOS, PAD, SLOTS, LatentModel, Recipe
from benchmark.compose import UserError, make_method, method_files, sentence, stored, writable
from benchmark.config import Evaluation, Precision
from benchmark.data.batches import cut
from benchmark.data.corpus import Corpus, Split, load
from benchmark.data.prepare import prepare
from benchmark.evaluate import Effort, Report, SplitLike, Stopped, evaluate
from benchmark.placebo import Misread
from benchmark.record import RunDirectory
from benchmark.task import CellTask
from benchmark.tensors import Damaged, out_of_memory, read_tensors, write_tensors
from benchmark.train import Diverged, Progress, Trainer, Unfit

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
SAMPLES = 16  # sentences of each kind in samples.jsonl
BEST, FINISHED = "checkpoints/best.pt", "checkpoints/evaluation.pt"


def choose_device(config: DictConfig) -> torch.device:
    """The device that `device` names. Raises UserError if it is not there."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device is auto, cpu, cuda or cuda:N, not {name!r}.") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device is auto, cpu, cuda or cuda:N, not {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(f"device={name} is not here: torch sees {found} GPUs; use device=auto.")
    return device


def prepare_torch(config: DictConfig, device: torch.device) -> None:
    """Set what a reproducible cell needs of torch, for the whole process."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if device.type == "cuda":
        # cuBLAS is reproducible only with a workspace of its own, set before it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False  # on by default for an LSTM: fp32 would not be fp32
        torch.backends.cudnn.benchmark = False
    _keep_memory()
    # Weights drawn from U(-0.01, 0.01) make gradients so small that the processor's slow path for
    # denormal numbers costs tens of times the arithmetic.
    torch.set_flush_denormal(True)
    torch.manual_seed(config.seed)


def fast_in_bf16(device: torch.device) -> bool:
    """Whether the device multiplies matrices in bfloat16 itself; of CPUs those with AMX or
    AVX512_BF16 do."""
    if device.type == "cuda":
        return True
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def _keep_memory() -> None:
    """Have glibc keep what is freed: to give each step's tensors back to the system and to fault
    them in again costs about a fifth of a step on a CPU."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_MAX, 0)
    except (AttributeError, OSError):
        pass  # another C library


def forget_peak_memory(device: torch.device) -> None:
    """Measure the peak from here on: several cells may share a process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux alone can
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> float | None:
    """MB at most in use since, evaluation included; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) / 2**10 if found else None


def make_task(config: DictConfig, corpus: Corpus) -> tuple[CellTask, list]:
    """What the method is told, and the training batches."""
    budget, lengths = config.budget, corpus.train.lengths
    batches = cut(lengths, budget.batch_size, config.batching)
    steps = budget.steps or max(1, round(budget.epochs * len(batches)))
    sizes = dict(config.model)
    for name in ("embedding", "hidden"):
        sizes[name] = min(sizes[name], budget[f"max_{name}"] or sizes[name])
    task = CellTask(
        vocab_size=len(corpus.vocabulary),
        mean_length=float(lengths.mean()),
        max_length=int(lengths.max()),
        n_train=len(lengths),
        batch_size=budget.batch_size,
        steps_per_epoch=len(batches),
        steps=steps,
        **sizes,
    )
    return task, batches


def rehearse(config: DictConfig) -> None:
    """Build the recipe for invented data, before any is prepared. Raises UserError where the
    method refuses the sizes, or a placebo; what else goes wrong, goes wrong in the cell."""
    sizes = dict(config.model)
    task = CellTask(
        *(16, 8.0, 16),  # vocabulary; tokens of a sentence, of the longest
        *(1024, config.budget.batch_size, 32, 320),  # sentences, of a batch; steps
        **sizes,
    )
    try:
        with torch.device("meta"):
            recipe = make_method(config.method).recipe(task)
    except ValueError as error:
        raise UserError(sentence(error)) from error
    except Exception:
        return
    if config.placebo and recipe.model is not None and recipe.model.latent == "none":
        raise UserError(
            f"placebo=true means nothing for {config.method.name}, which infers nothing; "
            "leave it out."
        )


def gather(config: DictConfig) -> Corpus:
    """A cell's data, prepared if it is not yet, which may take long: so the rest is tried first.
    Raises UserError and DataError."""
    data = writable("data_dir", config.data_dir)
    rehearse(config)
    return load(prepare(config.dataset, data))


def make_recipe(config: DictConfig, corpus: Corpus) -> tuple[Recipe, CellTask, list]:
    """The method's recipe, what it was told, and the training batches."""
    task, batches = make_task(config, corpus)
    return make_method(config.method).recipe(task), task, batches


def as_met(split: Split, config: DictConfig) -> SplitLike:
    """A split as the cell's model meets it in evaluation: a placebo misreads it."""
    return Misread(split) if config.placebo else split


@dataclass(frozen=True)
class Restored:
    """A finished run: its selected model, in evaluation mode, and what it was made with."""

    model: LatentModel
    config: DictConfig
    corpus: Corpus
    recipe: Recipe  # of this model; modules in its other slots are as new, no weights being kept
    task: CellTask
    batches: list[np.ndarray]  # of training: rows of `corpus.train`
    record: dict[str, Any]  # run.json
    device: torch.device  # where the model and the recipe's modules are

    def split(self, name: str) -> SplitLike:
        """train, valid or test as the model met it; but a placebo met every training sentence
        with ever new partners, which are fixed here."""
        return as_met(getattr(self.corpus, name), self.config)


def restore(folder: Path, device: str | None = None) -> Restored:
    """A finished run's model as it was selected, and all that it was trained and measured with.

    device: in place of the run's own; of one that is not here auto takes the place. Warns if the
    code has changed since. Raises UserError where there is no such run or it cannot be rebuilt,
    and DataError where its data cannot be prepared.
    """
    known, weights = _selected(folder)
    config, about = stored(folder), known["provenance"]
    place = _device(config, device)
    if about.get("fingerprint") != record.fingerprint(method_files(config.method)):
        log.warning("the code has changed since %s was trained: its model may have, too", folder)
    try:
        corpus = gather(config)
    except UserError as error:
        raise UserError(f"{folder / 'config.yaml'}: {error}") from error
    if about.get("data_hash") != corpus.hash:
        raise UserError(f"the data of {folder} is not what it was; put it back, or train it again.")
    prepare_torch(config, place)
    recipe, task, batches = make_recipe(config, corpus)
    model = task.model() if recipe.model is None else recipe.model
    try:
        model.load_state_dict(weights)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"the weights of {folder} are another model's than this code makes; go back to the "
            "code of then, or train it again."
        ) from error
    recipe = recipe.but(model=model.eval())
    for slot in SLOTS:
        if isinstance(module := getattr(recipe, slot), nn.Module):
            module.to(place)
    return Restored(model, config, corpus, recipe, task, batches, known, place)


def _selected(folder: Path) -> tuple[dict[str, Any], Any]:
    """A finished run's record and the weights that it speaks of. Raises UserError."""
    try:
        known = RunDirectory(folder).read()
        if known is None:
            raise ValueError("it has no run.json")
        if known["status"] not in ("done", "stopped"):
            raise ValueError(f"it is {known['status']}")
        return known, read_tensors(folder / BEST)
    except (ValueError, OSError, Damaged) as error:
        why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        raise UserError(
            f"{folder} is no run with a selected checkpoint: {why}; train it, or name another."
        ) from error


def _device(config: DictConfig, asked: str | None) -> torch.device:
    """The device that is asked for, or else the configuration's, or else any."""
    if asked is None:
        try:
            return choose_device(config)
        except UserError:
            log.warning("the run's own device, %s, is not here: auto it is", config.device)
    config.device = asked or "auto"
    return choose_device(config)


def run_cell(
    directory: RunDirectory,
    config: DictConfig,
    corpus: Corpus,
    device: torch.device,
    stop_requested: Callable[[], bool] = lambda: False,
    progress: Progress = lambda t, steps: None,
) -> str:
    """Train, evaluate and record the cell of `directory`, from where it was cut off.

    Returns the status: done, stopped (at `stop_after`), interrupted, diverged or failed; the
    record tells the reason. Whatever it was, called again it goes on from the newest checkpoint.
    Raises record.Busy if another process writes the cell, record.LeaseLost if one took it over,
    and OSError if nothing can be recorded; then run.json stays as it was.
    """
    with directory.lease(), logging_to(directory.path / "log.txt"):
        before = directory.read() or {}
        if before.get("status") in ("done", "diverged"):
            return before["status"]  # by whoever held the lease while this process waited for it
        directory.clean()
        (directory.path / "error.txt").unlink(missing_ok=True)
        about = record.provenance(method_files(config.method)) | {
            "data_hash": corpus.hash,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        }
        if submitted := before.get("provenance", {}).get("submitted"):
            about["submitted"] = submitted
            if submitted["fingerprint"] != about["fingerprint"]:
                log.warning("the code has changed since this cell was submitted")
        was = before.get("provenance", {})  # its checkpoint's, until it is gone on from or dropped
        kept = {key: was[key] for key in CHECKPOINTS_OWN if key in was}
        directory.write(status="running", reason=None, provenance=about | kept)
        try:
            cell = LiveCell(directory, config, corpus, device, stop_requested, progress)
            about |= {"steps": cell.task.steps, "slots": cell.slots}
            outcome = cell.run(before, about)
            directory.write(**outcome)
        except record.LeaseLost:
            raise
        except Exception as error:
            outcome = _failure(error)
            if not isinstance(error, SENTENCES):
                with suppress(OSError):  # a full disk may still have room for the record
                    directory.save_text("error.txt", traceback.format_exc())
            directory.write(**outcome)
        if outcome["status"] in ("done", "stopped"):
            (directory.path / FINISHED).unlink(missing_ok=True)
        if outcome["status"] == "done":
            for path in (directory.path / BEST).parent.iterdir():
                if path.name != Path(BEST).name:
                    path.unlink()
        return outcome["status"]


CHECKPOINTS_OWN = ("data_hash", "fingerprint", "earlier_fingerprints")
"""What of a record's provenance says what its checkpoint was made with."""

SENTENCES = (UserError, Diverged, Damaged, Unfit)
"""Errors that say all there is to say: nobody needs their traceback."""


def _failure(error: Exception) -> dict[str, Any]:
    """What becomes of run.json: the status and the reason, one sentence."""
    if isinstance(error, Diverged):
        return {"status": "diverged", "reason": str(error)}
    first = str(error).partition("\n")[0]
    if out_of_memory(error):
        first = first.rpartition("DefaultCPUAllocator: ")[2]
        reason = f"out of memory: {first}" if first else "out of memory"
    elif isinstance(error, OSError):
        reason = f"{error.filename}: {error.strerror}" if error.filename else first
    elif isinstance(error, SENTENCES):
        reason = first
    else:
        reason = f"{type(error).__name__}: {first}"
    return {"status": "failed", "reason": reason}


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """The harness's log, also appended to a file."""
    handler = logging.FileHandler(path)
    # a full disk is told once, by whatever cannot be saved, and not by a traceback for each line
    handler.handleError = lambda record: None
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger = logging.getLogger("benchmark")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


class _Finished(dict[str, dict[str, np.ndarray]]):
    """What an evaluation that is under way has finished, by `evaluate`'s keys; on disk now and
    then. weights: the file of those it belongs to, and to no others."""

    def __init__(self, directory: RunDirectory, weights: str, rest: str, every: float):
        super().__init__()
        with (directory.path / weights).open("rb") as file:
            self.key = f"{hashlib.file_digest(file, 'sha256').hexdigest()} {rest}"
        self.directory, self.every, self.saved = directory, every, time.monotonic()
        try:
            found = read_tensors(directory.path / FINISHED)
            if found["key"] == self.key:
                for name, scores in found["finished"].items():
                    self[name] = {score: value.numpy() for score, value in scores.items()}
        except FileNotFoundError:
            pass
        except (Damaged, LookupError, TypeError, AttributeError) as error:
            log.warning("finished sentences are evaluated again: %s", error)
            self.clear()

    def save(self) -> None:
        tensors = {
            name: {score: torch.from_numpy(value) for score, value in scores.items()}
            for name, scores in self.items()
        }
        write_tensors(self.directory, FINISHED, {"key": self.key, "finished": tensors})
        self.saved = time.monotonic()

    def save_now_and_then(self) -> None:
        if time.monotonic() - self.saved > self.every:
            self.save()


class LiveCell:
    """The parts of one running cell."""

    def __init__(
        self,
        directory: RunDirectory,
        config: DictConfig,
        corpus: Corpus,
        device: torch.device,
        stop_requested: Callable[[], bool],
        progress: Progress,
    ):
        self.directory, self.config, self.corpus, self.device = directory, config, corpus, device
        self.stop_requested, self.progress = stop_requested, progress
        self.finished: _Finished | None = None
        forget_peak_memory(device)
        prepare_torch(config, device)
        if config.precision is Precision.bf16 and not fast_in_bf16(device):
            log.warning(
                "this processor has neither AMX nor AVX512_BF16: it trains in bf16 as asked, but "
                "slower than in fp32"
            )
        recipe, self.task, batches = make_recipe(config, corpus)
        self.slots = [slot for slot in SLOTS if getattr(recipe, slot) is not None]
        self.trainer = Trainer(
            recipe,
            self.task,
            config.budget,
            corpus.train,
            batches,
            seed=config.seed,
            device=device,
            autocast=self.autocast,
            validate=self.validate,
            directory=directory,
            metrics=directory.metrics(),
            placebo=config.placebo,
        )
        self.valid, self.test = (as_met(split, config) for split in (corpus.valid, corpus.test))

    @property
    def model(self) -> LatentModel:
        return self.trainer.model

    def autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision is Precision.fp32:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def measure(self, split: SplitLike, effort: Effort, temperature: float | None = None) -> Report:
        """The model as it is; always in fp32, whatever it is trained in."""
        return evaluate(
            self.model,
            split,
            effort,
            device=self.device,
            exact_nll=self.corpus.exact_nll(split.name),
            truth_mi=self.corpus.truth_mi,
            temperature=temperature,
            finished=self.finished,
            stop_requested=self.ask,
        )

    def ask(self) -> bool:
        """Between batches of an evaluation: whether to stop."""
        if self.finished is not None:
            self.finished.save_now_and_then()
        return self.stop_requested()

    def validate(self) -> Report:
        return self.measure(self.valid, Effort.validation(self.evaluation))

    @property
    def evaluation(self) -> Evaluation:
        return self.config.budget.evaluation

    def run(self, before: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
        """Train and evaluate, told the record as it was and the provenance as it is; returns what
        becomes of run.json."""
        trainer, task = self.trainer, self.task
        lost = self.resume(before, about)
        until = task.steps
        if self.config.stop_after is not None:
            until = min(until, max(1, round(self.config.stop_after * task.steps_per_epoch)))
        if trainer.t < until and not trainer.ended:
            log.info("training from step %d to %d on %s", trainer.t, until, self.device)
        every = self.config.save_every
        if not trainer.train(until, self.stop_requested, every, self.progress):
            return {"status": "interrupted", "cost": self.cost(lost)}
        trainer.save()
        ended = trainer.ended or trainer.t >= task.steps
        selected = trainer.load_best()
        write_tensors(self.directory, BEST, self.model.state_dict())
        log.info("evaluating the checkpoint of step %d", selected)
        how = f"{self.evaluation} {self.device.type} {about['fingerprint']}"
        self.finished = _Finished(self.directory, BEST, how, every)
        try:
            found = self.evaluate(selected)
        except Stopped:
            self.finished.save()
            return {"status": "interrupted", "cost": self.cost(lost)}
        return found | {"status": "done" if ended else "stopped", "cost": self.cost(lost)}

    def evaluate(self, selected: int) -> dict[str, Any]:
        """Measure the selected weights and write down all but run.json, of which it returns the
        fields. Raises Stopped."""
        # The test's effort, but for the importance-weighted bound, which validation has small.
        final = Effort.final(self.evaluation)
        small = Effort.validation(self.evaluation)
        middle = replace(final, nll_samples=small.nll_samples, nll_sentences=small.nll_sentences)
        valid = self.measure(self.valid, middle)
        test = self.measure(self.test, final, valid.temperature)
        self.trainer.record("test", test.numbers, test.estimators, step=selected)
        self.directory.save_npz("units.npz", **self.units(test))
        self.directory.save_npz("sentences.npz", **test.sentences)
        self.directory.save_text("samples.jsonl", self.samples())
        return {
            "selected_step": selected,
            "summary": {"valid": valid.summary, "test": test.summary},
            "notes": {
                f"{split}/{name}": reason
                for split, report in (("valid", valid), ("test", test))
                for name, reason in report.notes.items()
            },
        }

    def resume(self, before: dict[str, Any], about: dict[str, Any]) -> float:
        """Go on from the newest checkpoint, and only then say so in the record; returns the seconds
        of training that the cell has had to do again in its life. The lines behind the checkpoint
        tell, by the trainer's own clock: after a clean stop there are none."""
        trainer, cost, was = self.trainer, before.get("cost", {}), before.get("provenance", {})
        reached = trainer.metrics.seconds
        if was.get("data_hash", self.corpus.hash) != self.corpus.hash:
            log.warning("the data has changed since: training starts over")
            trainer.forget()
        elif trainer.resume():
            log.info("going on from the checkpoint of step %d", trainer.t)
            earlier = {*was.get("earlier_fingerprints", ()), was.get("fingerprint")}
            if earlier := sorted(earlier - {None, about["fingerprint"]}):
                log.warning("the code has changed since: this result will be of several versions")
                about = about | {"earlier_fingerprints": earlier}
        lost = float(cost.get("lost_seconds") or 0.0) + max(0.0, reached - trainer.seconds)
        self.directory.write(provenance=about, cost=cost | {"lost_seconds": lost})
        return lost

    def units(self, test: Report) -> dict[str, np.ndarray]:
        """units.npz: each unit's measures, at the validations ([times, U]) and on test ([U])."""
        trail = self.trainer.units
        over_time = {
            name: torch.stack([report[name] for report in trail]).numpy()
            for name in (trail[0] if trail else ())
        }
        return over_time | {f"test_{name}": column for name, column in test.units.items()}

    def cost(self, lost: float) -> dict[str, float | int | None]:
        count, seconds = self.trainer.count, self.trainer.seconds
        return {
            "train_seconds": seconds,
            "lost_seconds": lost,
            "tokens_per_second": count["tokens"] / seconds if seconds else None,
            "steps": self.trainer.t - count["passed"],
            "reached": self.trainer.t,  # the step, which counts those that a schedule left out
            "batches": count["batches"],
            "backwards": count["backwards"],
            "peak_memory_mb": peak_memory(self.device),
        }

    @torch.no_grad()
    def samples(self) -> str:
        """samples.jsonl: what the model writes from the prior, of test sentences, and in between
        of pairs of them."""
        model, test = self.model, self.test
        longest = 2 * int(test.lengths.max())
        lines: list[dict[str, Any]] = []
        with (
            torch.random.fork_rng([self.device] if self.device.type == "cuda" else []),
            self.autocast(),
        ):
            torch.manual_seed(0)
            model.eval()
            for ids in model.sample(SAMPLES, max_length=longest):
                lines.append({"kind": "prior", "source": None, "text": self.text(ids)})
            if model.latent != "none":
                batch = test.batch(np.arange(min(SAMPLES, len(test)))).to(self.device)
                written = model.reconstruct(batch, max_length=longest)
                for source, ids in zip(batch.targets, written, strict=True):
                    lines.append(
                        {
                            "kind": "reconstruction",
                            "source": self.text(source),
                            "text": self.text(ids),
                        }
                    )
            decodes = type(model).decode is not LatentModel.decode
            if model.latent in ("global", "implicit") and decodes and len(test) > 1:
                batch = test.batch(np.arange(2)).to(self.device)
                z = model.draw(batch).z
                assert z is not None
                weight = torch.linspace(0, 1, 7, device=self.device)[:, None]
                path = torch.lerp(z[0, 0], z[1, 0], weight)
                ends = [self.text(ids) for ids in batch.targets]
                for ids in model.decode(path, max_length=longest):
                    lines.append({"kind": "interpolation", "source": ends, "text": self.text(ids)})
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def text(self, ids: Tensor) -> str:
        words = [self.corpus.vocabulary[i] for i in ids.tolist() if i not in (PAD, EOS)]
        return " ".join(words)
