"""One configuration of a method, tried on a few sentences: small trainers, what each of their
steps leaves behind bit by bit, and comparisons whose results are words."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from benchmark.api import SPECIALS, Batch, Draw, LatentModel
from benchmark.cell import choose_device, make_task
from benchmark.compose import build, find_method
from benchmark.config import Dataset, Tokens
from benchmark.data import synthetic
from benchmark.data.corpus import Corpus, load
from benchmark.data.prepare import prepare
from benchmark.evaluate import Effort, Report, evaluate
from benchmark.noise import Noise
from benchmark.record import RunDirectory
from benchmark.train import Trainer

SENTENCES = {"train": 48, "valid": 12, "test": 6}
WORDS = (9, 4, 6)  # in the first sentence, the second, the third, the fourth as the first, ...
EFFORT = Effort(1, 4, 6, 3, 6)  # of a validation
TOLERANCE = 1e-4  # of two ways to compute one score in float32, relative and in nats

Moment = dict[str, bytes]
"""What there is to see after a step, bit by bit: logs, weights, buffers, scores, the selection."""


class Skip(Exception):
    """The promise has no meaning here; the text says why."""


class Subject:
    """One configuration of a method, and the means to try it."""

    def __init__(self, config: DictConfig, folder: Path):
        self.config = config
        self.cls = find_method(config.method.name)
        self.values = {key: value for key, value in config.method.items() if key != "name"}
        self.device = choose_device(config)
        self.corpus = write_corpus(folder)
        self.task, self.batches = make_task(config, self.corpus)
        self.directory = RunDirectory(folder / "run")
        self.directory.path.mkdir()

    def trainer(self, seed: int = 0, **changes: Any) -> Trainer:
        """A new trainer of a new recipe, with some of the method's fields changed. Raises
        ValueError where the method refuses them."""

        def validate() -> Report:
            return evaluate(trainer.model, self.corpus.valid, EFFORT, device=self.device)

        torch.manual_seed(seed)
        trainer = Trainer(
            build(self.cls, self.values | changes).recipe(self.task),
            self.task,
            self.config.budget,
            self.corpus.train,
            self.batches,
            seed=seed,
            device=self.device,
            autocast=nullcontext,
            validate=validate,
            directory=self.directory,
            metrics=self.directory.metrics(),
        )
        return trainer

    @cached_property
    def trained(self) -> tuple[Trainer, list[Moment]]:
        """A trainer at its budget's end and its trail: moment t is that after t steps."""
        with torch.enable_grad():  # whoever asks first
            trainer = self.trainer()
            return trainer, list(trail(trainer))

    @property
    def reference(self) -> list[Moment]:
        return self.trained[1]

    @cached_property
    def wobble(self) -> str | None:
        """Where two runs of one seed differ."""
        return first_difference(self.reference, trail(self.trainer()))

    def need_repeatable(self) -> None:
        """Skip what compares trails if no two are alike."""
        if self.wobble:
            raise Skip("two runs of one seed differ already")

    def models(self) -> Iterator[tuple[str, LatentModel]]:
        """The model new and trained, in evaluation mode, and a word for which it is."""
        yield "before training", self.trainer().model.eval()
        yield "after training", self.model

    @property
    def model(self) -> LatentModel:
        """The trained model, in evaluation mode."""
        return self.trained[0].model.eval()

    def batch(self, rows: Sequence[int] = range(6)) -> Batch:
        """Validation sentences, of several lengths; every draw meets the same noise."""
        batch = self.corpus.valid.batch(rows).to(self.device)
        return batch.but(noise=SteadyNoise("valid", torch.tensor(rows, device=self.device)))


class SteadyNoise(Noise):
    """Noise that for a code of many steps does not depend on how many they are, as padding adds
    some."""

    def normal(self, k: int, *shape: int) -> Tensor:
        if len(shape) < 2:
            return super().normal(k, *shape)
        return super().normal(k, 4 * max(WORDS), *shape[1:])[:, :, : shape[0]]


@contextmanager
def subject(config: DictConfig) -> Iterator[Subject]:
    """The subject of a checked configuration, in a temporary directory."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="check-")))
        found = Subject(config, folder)
        stack.enter_context(found.directory.lease())
        yield found


def write_corpus(folder: Path) -> Corpus:
    """A few sentences of several lengths, from tables of word pairs."""
    rules = {"kind": "tables", "tables": 2, "words": 9, "length": max(WORDS), "scale": 2.0}
    truth = synthetic.build(rules | {"seed": 0})
    for stream, (split, n) in enumerate(SENTENCES.items()):
        ids, _ = truth.sample(n, stream)
        lengths = itertools.cycle(WORDS)
        lines = [" ".join(map(str, row[:length])) for row, length in zip(ids, lengths)]  # noqa: B905
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    dataset = Dataset(name="tiny", path=str(folder), tokens=Tokens.split)
    return load(prepare(dataset, folder / "data"))


def moment(trainer: Trainer, logs: dict[str, Tensor]) -> Moment:
    """What there is to see of a trainer now."""
    seen: dict[str, Any] = dict(logs)
    for slot, module in trainer.modules.items():
        seen |= {f"{slot}.{name}": value for name, value in module.state_dict().items()}
    for name, score in (trainer.history[-1] if trainer.history else {}).items():
        seen[f"valid/{name}"] = score
    seen["selection"] = trainer.select, trainer.select_after, trainer.best_step
    return {name: _bits(value) for name, value in seen.items()}


def _bits(value: Any) -> bytes:
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy().tobytes()
    return repr(value).encode()


def trail(trainer: Trainer) -> Iterator[Moment]:
    """The moment before training and that after each step, up to the budget's end."""
    step, logs = trainer.step, {}

    def remember(run: Any) -> dict[str, Tensor]:
        logs.update(step(run))
        return dict(logs)

    trainer.step = remember
    yield moment(trainer, logs)
    while trainer.t < trainer.steps and not trainer.ended:
        logs.clear()
        trainer.train(trainer.t + 1, lambda: False, save_every=math.inf)
        yield moment(trainer, logs)


def first_difference(one: Iterable[Moment], other: Iterable[Moment], start: int = 0) -> str | None:
    """What first differs between two trails that begin at step `start`."""
    for t, (a, b) in enumerate(itertools.zip_longest(one, other, fillvalue={}), start):
        for name in a | b:
            if a.get(name) != b.get(name):
                return f"`{name}` differs at step {t}"
    return None


def gap(one: Tensor | None, other: Tensor | None, tolerance: float = TOLERANCE) -> str | None:
    """How two computations of one thing differ, or None where they agree."""
    if one is None or other is None:
        return None if one is other else "is None in one of the two"
    if one.shape != other.shape:
        return f"has the shape {list(one.shape)} or {list(other.shape)}"
    if torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True):
        return None
    return f"differs by {float((one - other).detach().abs().max()):.2g}"


def scores(draw: Draw) -> dict[str, Tensor]:
    """All that a draw says of each sentence, by name."""
    plain = {name: getattr(draw, name) for name in ("log_px", "log_pz", "log_qz", "kl")}
    aux = {f"aux[{name}]": value for name, value in draw.aux.items()}
    return plain | aux | {f"log_pz_alt[{name}]": v for name, v in draw.log_pz_alt.items()}


def reworded(batch: Batch, role: str, vocab_size: int) -> Batch:
    """The batch with other words, but the same special tokens, in one of its roles."""
    ids, first = getattr(batch, role), len(SPECIALS)
    other = (ids - first + 1) % (vocab_size - first) + first
    return batch.but(**{role: torch.where(ids < first, ids, other)})
