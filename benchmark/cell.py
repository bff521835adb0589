"""One cell, from prepared data to a record: train, select, evaluate, write down."""

import ctypes
import json
import logging
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from benchmark import record
from benchmark.api import EOS, PAD, LatentModel
from benchmark.compose import UserError, build, find_method
from benchmark.config import Evaluation, Precision
from benchmark.data.batches import cut
from benchmark.data.corpus import Corpus, Split
from benchmark.evaluate import Effort, Report, Stopped, evaluate
from benchmark.record import RunDirectory
from benchmark.task import CellTask
from benchmark.train import LAST, Diverged, Progress, Trainer

log = logging.getLogger(__name__)

SAVE_EVERY = 300.0  # s between checkpoints within an epoch
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
SAMPLES = 16  # sentences of each kind in samples.jsonl
SIGNS_OF_LIFE = ("metrics.jsonl", "log.txt")


def choose_device(config: DictConfig) -> torch.device:
    """The device that `device` names. Raises UserError if it is not there, or cannot train in the
    precision asked for."""
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
    if config.precision is Precision.bf16 and device.type == "cpu":
        # oneDNN's backward of a bf16 LSTM is silently wrong from hidden size 1024 on where the
        # processor has AMX.
        raise UserError("precision=bf16 trains on CUDA only; use precision=fp32 on a CPU.")
    return device


def prepare_torch(config: DictConfig, device: torch.device) -> None:
    """Set what a reproducible cell needs of torch, for the whole process."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    _keep_memory()
    # Weights drawn from U(-0.01, 0.01) make gradients so small that the processor's slow path for
    # denormal numbers costs tens of times the arithmetic.
    torch.set_flush_denormal(True)
    torch.manual_seed(config.seed)


def _keep_memory() -> None:
    """Have glibc keep what is freed: to give each step's tensors back to the system and to fault
    them in again costs about a fifth of a step on a CPU."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_MAX, 0)
    except (AttributeError, OSError):
        pass  # another C library


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
    record tells the reason. Raises record.Busy if another process writes the cell.
    """
    with directory.lease(), logging_to(directory.path / "log.txt"):
        directory.clean()
        (directory.path / "error.txt").unlink(missing_ok=True)
        method_file = sys.modules[find_method(config.method.name).__module__].__file__
        about = record.provenance(method_file) | {
            "data_hash": corpus.hash,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        }
        directory.write(status="running", reason=None, provenance=about)
        try:
            outcome = _Cell(directory, config, corpus, device, stop_requested, progress).run()
        except Stopped:
            outcome = {"status": "interrupted"}
        except Diverged as error:
            outcome = {"status": "diverged", "reason": str(error)}
        except (torch.OutOfMemoryError, MemoryError) as error:
            reason = (
                f"out of memory: {str(error).splitlines()[0]}" if str(error) else "out of memory"
            )
            outcome = {"status": "failed", "reason": reason}
        except (record.LeaseLost, UserError):
            raise
        except Exception as error:
            directory.save_text("error.txt", traceback.format_exc())
            outcome = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        directory.write(**outcome)
        if outcome["status"] == "done":
            _keep_only_best(directory.path / "checkpoints")
        return outcome["status"]


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """The harness's log, also appended to a file."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger = logging.getLogger("benchmark")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def _keep_only_best(checkpoints: Path) -> None:
    for best in checkpoints.glob("best-*.pt"):
        best.replace(checkpoints / "best.pt")
    for name in ("last.pt", "previous.pt"):
        (checkpoints / name).unlink(missing_ok=True)


class _Cell:
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
        prepare_torch(config, device)
        self.task, batches = make_task(config, corpus)
        method = config.method
        fields = {key: value for key, value in method.items() if key != "name"}
        recipe = build(find_method(method.name), fields).recipe(self.task)
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
        )

    @property
    def model(self) -> LatentModel:
        return self.trainer.model

    def autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision is Precision.fp32:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def measure(self, split: Split, effort: Effort, temperature: float | None = None) -> Report:
        """The model as it is; always in fp32, whatever it is trained in."""
        return evaluate(
            self.model,
            split,
            effort,
            device=self.device,
            exact_nll=self.corpus.exact_nll(split.name),
            truth_mi=self.corpus.truth_mi,
            temperature=temperature,
            stop_requested=self.stop_requested,
        )

    def validate(self) -> Report:
        return self.measure(self.corpus.valid, Effort.validation(self.evaluation))

    @property
    def evaluation(self) -> Evaluation:
        return self.config.budget.evaluation

    def run(self) -> dict[str, Any]:
        """Train and evaluate; returns what becomes of run.json."""
        trainer, task = self.trainer, self.task
        lost = self.resume()
        until = task.steps
        if self.config.stop_after is not None:
            until = min(until, max(1, round(self.config.stop_after * task.steps_per_epoch)))
        if trainer.t < until and not trainer.ended:
            log.info("training from step %d to %d on %s", trainer.t, until, self.device)
        if not trainer.train(until, self.stop_requested, SAVE_EVERY, self.progress):
            return {"status": "interrupted", "cost": self.cost(lost)}
        trainer.save()
        ended = trainer.ended or trainer.t >= task.steps
        selected = trainer.load_best()
        log.info("evaluating the checkpoint of step %d", selected)
        # The test's effort, but for the importance-weighted bound, which validation has small.
        final = Effort.final(self.evaluation)
        small = Effort.validation(self.evaluation)
        middle = replace(final, nll_samples=small.nll_samples, nll_sentences=small.nll_sentences)
        valid = self.measure(self.corpus.valid, middle)
        test = self.measure(self.corpus.test, final, valid.temperature)
        trainer.record("test", test.numbers, test.estimators, step=selected)
        self.directory.save_npz("units.npz", **self.units(test))
        self.directory.save_npz("sentences.npz", **test.sentences)
        self.directory.save_text("samples.jsonl", self.samples())
        return {
            "status": "done" if ended else "stopped",
            "selected_step": selected,
            "summary": {"valid": valid.summary, "test": test.summary},
            "notes": {
                f"{split}/{name}": reason
                for split, report in (("valid", valid), ("test", test))
                for name, reason in report.notes.items()
            },
            "cost": self.cost(lost),
        }

    def resume(self) -> float:
        """Go on from the newest checkpoint; returns the seconds of work lost so far in the cell's
        life, from a checkpoint to the last sign of life behind it."""
        before = self.directory.read() or {}
        lost = float(before.get("cost", {}).get("lost_seconds") or 0.0)
        files = [path for path in self.directory.path.iterdir() if path.name in SIGNS_OF_LIFE]
        alive = max((path.stat().st_mtime for path in files), default=0.0)
        checkpoint = self.directory.path / LAST
        saved = checkpoint.stat().st_mtime if checkpoint.exists() else alive
        if self.trainer.resume():
            log.info("going on from the checkpoint of step %d", self.trainer.t)
            lost += max(0.0, alive - saved)
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
        peak = (
            torch.cuda.max_memory_allocated(self.device) / 2**20
            if self.device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        )
        return {
            "train_seconds": seconds,
            "lost_seconds": lost,
            "tokens_per_second": count["tokens"] / seconds if seconds else None,
            "steps": self.trainer.t,
            "batches": count["batches"],
            "backwards": count["backwards"],
            "peak_memory_mb": peak,
        }

    @torch.no_grad()
    def samples(self) -> str:
        """samples.jsonl: what the model writes from the prior, of test sentences, and in between
        of pairs of them."""
        model, test = self.model, self.corpus.test
        longest = 2 * int(test.lengths.max())
        lines: list[dict[str, Any]] = []
        with torch.random.fork_rng(range(torch.cuda.device_count())), self.autocast():
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
            if model.latent == "global" and len(test) > 1:
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
