"""How fast the harness is, on this machine: `python -m tests.speed` (`make speed`).

Each work is done twice, by the field's reference code (tests/textbook.py, and for the stochastic
LSTM tests/textbook_zforcing.py) and by the harness, on the same batches and weights, in turn in
one process on one thread. A ratio is the median over the repeats of the textbook's time by ours:
of processor time on a CPU, so that a busy machine costs it no truth, of the clock on a GPU. The
share of the peak is the work's matrix products alone against the fastest product measured here.
Both sides run with the process as the harness sets it up, memory kept and denormal numbers off.
"""

import argparse
import ctypes
import gc
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from benchmark import evaluate
from benchmark.api import BOS, EOS, SPECIALS, Batch, Recipe, Run
from benchmark.cell import forget_peak_memory, peak_memory, prepare_torch
from benchmark.compose import CONFIGS
from benchmark.config import Batching, Budget, Dataset, Optimiser, schema
from benchmark.data.batches import cut
from benchmark.data.corpus import Corpus
from benchmark.data.prepare import prepare
from benchmark.evaluate import Effort
from benchmark.models import (
    GaussianVAE,
    Generator,
    Inference,
    LSTMDecoder,
    LSTMEncoder,
    StochasticLSTM,
)
from benchmark.train import Trainer
from tests import textbook
from tests.test_parity import NAMES, copy_weights
from tests.test_zforcing import counterpart
from tests.textbook_zforcing import TextbookZForcing

BATCH, CLIP, SAMPLES = 32, 5.0, 500
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shape:
    """The sizes at which the papers train on a data set; `mean` tokens a sentence."""

    embedding: int
    hidden: int
    vocabulary: int
    mean: int
    latent: int = 32

    def lstm(self, codes: int = 0) -> int:
        """Floating-point operations of one token's way through an LSTM."""
        return 2 * 4 * self.hidden * (self.embedding + codes + self.hidden)

    @property
    def decoder(self) -> int:
        return self.lstm(self.latent) + 2 * self.hidden * self.vocabulary

    @property
    def encoder(self) -> int:
        return self.lstm()


SHAPES = {
    "snli": Shape(256, 512, 10_000, 10),
    "ptb": Shape(512, 1024, 10_000, 21),
    "yahoo": Shape(512, 1024, 20_000, 80),
}


@dataclass
class Work:
    """The same work, twice. tokens and flops are of one run of either."""

    textbook: Callable[[], Any]
    ours: Callable[[], Any]
    tokens: int
    flops: float


class Sentences:
    """A split held in memory: random sentences, `size` of each of these lengths."""

    name = "train"

    def __init__(self, lengths: list[int], size: int, vocabulary: int):
        rng = np.random.default_rng(0)
        self.lengths = np.repeat(lengths, size)
        self.rows: list[Tensor] = []
        for n in self.lengths:
            words = rng.integers(len(SPECIALS), vocabulary, n - 1)
            self.rows.append(torch.tensor([BOS, *words, EOS]))

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray) -> Batch:
        rows = self.stack(indices)  # of one length
        lengths = torch.full((len(rows),), rows.shape[1])
        return Batch(rows[:, 1:], rows[:, :-1].clone(), rows, lengths - 1, lengths)

    def stack(self, indices: np.ndarray) -> Tensor:
        """[B, L], what the textbook is given."""
        return torch.stack([self.rows[i] for i in indices])

    def cut(self) -> list[np.ndarray]:
        return list(np.arange(len(self)).reshape(-1, BATCH))


def lengths_around(mean: int, quick: bool) -> list[int]:
    return [mean] if quick else [round(mean * part) for part in (0.5, 0.8, 1.1, 1.6)]


def pair(shape: Shape, device: torch.device) -> tuple[textbook.TextbookVAE, GaussianVAE]:
    """Both models with the same weights, such as training ends with: gates at work, and a
    posterior that is neither the prior nor a point."""
    torch.manual_seed(0)
    sizes = (shape.vocabulary, shape.embedding, shape.hidden, shape.latent)
    theirs = textbook.TextbookVAE(*sizes, dropout=0.5)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.05)
    names = ("vocab_size", "embedding", "hidden", "latent")
    named = dict(zip(names, sizes, strict=True))
    ours = GaussianVAE(LSTMEncoder(**named), LSTMDecoder(**named, dropout=0.5))
    copy_weights(theirs, ours, NAMES)
    return theirs.to(device), ours.to(device)


def autocast(device: torch.device, precision: str):
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


# -- the works ------------------------------------------------------------------------------------


def moves_the_encoder(run: Run) -> dict[str, Tensor]:
    """He et al.'s inner step: the encoder alone is moved, and the norm of all is clipped."""
    loss = run.loss(run.next())
    run.descend(loss, "encoder")
    return {"loss": loss.detach()}


def training(
    shape: Shape, device: torch.device, precision: str, quick: bool, inner: bool = False
) -> Work:
    """Steps of training: SGD, clipped; `inner`: of an aggressively trained encoder."""
    theirs, ours = pair(shape, device)
    split = Sentences(lengths_around(shape.mean, quick or shape.mean > 50), BATCH, shape.vocabulary)
    xs = [split.stack(rows).to(device) for rows in split.cut()]
    optimiser = torch.optim.SGD((theirs.encoder if inner else theirs).parameters(), lr=1e-3)

    def reference() -> None:
        for x in xs:
            theirs.zero_grad()
            textbook.train_step(
                theirs, optimiser, x, torch.randn(len(x), shape.latent, device=device)
            )

    trainer = Trainer(
        Recipe(model=ours, step=moves_the_encoder if inner else None),
        SimpleNamespace(steps=10**9, steps_per_epoch=len(xs)),  # type: ignore[arg-type]
        Budget(batch_size=BATCH, optimiser=Optimiser.sgd, learning_rate=1e-3, clip=CLIP),
        split,  # type: ignore[arg-type]
        split.cut(),
        seed=0,
        device=device,
        autocast=partial(autocast, device, precision),
        validate=None,  # type: ignore[arg-type]
        directory=None,  # type: ignore[arg-type]
        metrics=SimpleNamespace(add=lambda *values, **more: None),  # type: ignore[arg-type]
    )

    def harness() -> None:
        for _ in xs:
            trainer._advance()

    tokens = int(split.lengths.sum())
    return Work(reference, harness, tokens, 3.0 * tokens * (shape.encoder + shape.decoder))


def forcing(shape: Shape, device: torch.device, precision: str, quick: bool) -> Work:
    """Steps of training the stochastic LSTM with all its costs: SGD, clipped. The textbook's is a
    plain loop over the steps, the output layer in it; the released code has that behind it."""
    torch.manual_seed(0)
    vocabulary, embedding, hidden = shape.vocabulary, shape.embedding, shape.hidden
    units, mlp, rates = hidden // 16, 512, (0.2, 0.005, 1.0)
    theirs = TextbookZForcing(vocabulary, embedding, hidden, mlp, units, sees_history=False)
    like = LSTMDecoder(
        vocab_size=vocabulary, embedding=embedding, hidden=hidden, latent=0, dropout=0.0
    )
    ours = StochasticLSTM(
        Inference(vocabulary, embedding, hidden, mlp, units),
        Generator(like, mlp, units, sees_history=False),
        units,
    )
    copy_weights(theirs, ours, {name: counterpart(name) for name, _ in theirs.named_parameters()})
    split = Sentences([shape.mean], BATCH, vocabulary)
    rows = np.arange(BATCH)
    x, batch = split.stack(rows).to(device), split.batch(rows).to(device)

    def textbook_loss() -> Tensor:
        eps = torch.randn(BATCH, shape.mean, units, device=device)
        return theirs.loss(x, eps, *rates)[0].mean()

    def harness_loss() -> Tensor:
        with autocast(device, precision):
            draw, (kl, auxiliary, backward) = ours.draw(batch), rates
            costs = auxiliary * draw.aux["auxiliary"] + backward * draw.aux["backward"]
            return -draw.log_px.mean() + kl * draw.kl.sum(-1).mean() + costs.mean()

    def step(model: torch.nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
        model.to(device)
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)

        def update() -> None:
            optimiser.zero_grad()
            loss().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()

        return update

    gaussians = 2 * mlp * (2 * hidden + hidden + units + 4 * units + 2 * hidden)
    lstms = shape.lstm() + shape.lstm(units)
    flops = 3.0 * batch.targets.numel() * (gaussians + lstms + 4 * hidden * vocabulary)
    return Work(step(theirs, textbook_loss), step(ours, harness_loss), batch.targets.numel(), flops)


def look_at(model: GaussianVAE, split: Sentences, device: torch.device) -> evaluate._Look:
    model.eval()
    return evaluate._Look(model, split, device, lambda: False, evaluate.Report())


def evaluating(
    shape: Shape,
    device: torch.device,
    precision: str,
    quick: bool,
    encoder_alone: bool = False,
    batches: int = 4,
) -> Work:
    """The bound, KL, mutual information and active units of some hundred sentences; or the last
    two alone, as a method asks for them that watches its inference network."""
    theirs, ours = pair(shape, device)
    theirs.eval()
    lengths = lengths_around(shape.mean, quick)
    split = Sentences(lengths, batches * BATCH, shape.vocabulary)
    xs = [split.stack(rows).to(device) for rows in split.cut()]
    noise = [torch.randn(len(x), shape.latent, device=device) for x in xs]

    def reference() -> None:
        if not encoder_alone:
            textbook.bound(theirs, xs, noise)
        textbook.mutual_information(theirs, xs, noise)
        textbook.active_units(theirs, xs)

    effort = Effort(1, 1, None, 2, 2, gain_sentences=0)

    @torch.no_grad()
    def harness() -> None:
        look = look_at(ours, split, device)
        whole = encoded(look) if encoder_alone else evaluate._whole_split(look, effort)
        evaluate._information(look, whole)

    tokens = int(split.lengths.sum())
    flops = shape.encoder + (0 if encoder_alone else shape.decoder)
    return Work(reference, harness, tokens, float(tokens * flops))


def encoded(look: evaluate._Look) -> evaluate._Whole:
    """Codes and moments of a split whose sentences stand in the order of their lengths."""
    moments, codes = evaluate.Moments(), []
    for length, rows in evaluate.by_length(look.split, look.rows):
        for part, batch in look.batches(rows, look.room(length)):
            batch = look.encoded(part, batch)
            mean, variance = look.model.posterior(batch)
            moments.add(mean, variance)
            codes.append(mean + variance.sqrt() * batch.normal(1, mean.shape[1])[:, 0])
    moments.fetch()
    return evaluate._Whole(np.empty(0), torch.cat(codes), None)


def importance_weighting(
    shape: Shape, device: torch.device, precision: str, quick: bool, samples: int = SAMPLES
) -> Work:
    """The importance-weighted NLL."""
    theirs, ours = pair(shape, device)
    theirs.eval()
    lengths = [shape.mean] if quick or shape.mean > 50 else [shape.mean // 2, 3 * shape.mean // 2]
    split = Sentences(lengths, 1, shape.vocabulary)
    xs = [split.stack(np.array([i])).to(device) for i in range(len(split))]
    noise = [torch.randn(samples, shape.latent, device=device) for _ in xs]

    def reference() -> None:
        for x, eps in zip(xs, noise, strict=True):
            textbook.iwae_nll(theirs, x, eps)

    effort = Effort(1, samples, None, 2, 2)
    whole = evaluate._Whole(np.zeros(len(split)), None, None)

    @torch.no_grad()
    def harness() -> None:
        look = look_at(ours, split, device)
        look.report.sentences["nll"] = np.zeros(len(split))
        look.report.summary["rec"] = 0.0
        evaluate._importance_weighted(look, whole, effort, {})

    tokens = samples * int(split.lengths.sum())
    recurrent, softmax = 8 * shape.hidden**2, 2 * shape.hidden * shape.vocabulary
    return Work(reference, harness, tokens, float(tokens * (recurrent + softmax)))


def write_text(folder: Path, sentences: int) -> Any:
    """A data set of random words with frequencies as in a language, as configured from a folder."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(10_000)])
    folder.mkdir()
    for name, n in (("train", sentences), ("valid", 10), ("test", 10)):
        with open(folder / f"{name}.txt", "w") as file:
            for length in 1 + rng.poisson(9, n):
                print(*words[rng.zipf(1.3, length) % len(words)], file=file)
    text = OmegaConf.load(CONFIGS / "dataset" / "text.yaml")
    return OmegaConf.merge(schema(Dataset), text, {"path": str(folder)})


def loading(folder: Path, sentences: int = 100_000) -> Work:
    """An epoch's batches, from what lies on the disk: a text file that is split and looked up word
    by word, or the folder that `python -m benchmark.data` has prepared once."""
    text = folder / "text"
    prepared = prepare(write_text(text, sentences), folder)
    ids = {word: i for i, word in enumerate(Corpus(prepared).vocabulary)}

    def reference() -> int:
        rows = textbook.read(text / "train.txt", ids)
        return sum(x.numel() for x in textbook.equal_length_batches(rows, BATCH))

    def harness() -> int:
        split = Corpus(prepared).train
        batches = cut(split.lengths, BATCH, Batching.exact)
        return sum(split.batch(rows).source.numel() for rows in batches)

    tokens = int(Corpus(prepared).train.lengths.sum())
    assert reference() == harness() == tokens + sentences
    return Work(reference, harness, tokens, 0.0)


# -- measuring ------------------------------------------------------------------------------------


def clock(device: torch.device) -> float:
    """Seconds: of this process on a CPU, of the wall on a GPU, whose work is waited for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def timed(do: Callable[[], Any], device: torch.device) -> float:
    began = clock(device)
    do()
    return clock(device) - began


def peak_of_products(device: torch.device, precision: str) -> float:
    """FLOP/s of the fastest of some matrix products."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for n in (1024, 2048) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        timed(lambda: a @ b, device)  # noqa: B023
        best = max(best, *(2 * n**3 / timed(lambda: a @ b, device) for _ in range(3)))  # noqa: B023
    return best


def highest(do: Callable[[], Any], device: torch.device) -> float | None:
    """MB that a run adds to what the process holds."""
    gc.collect()
    if device.type == "cuda":
        held = torch.cuda.memory_allocated(device) / 2**20
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what is kept for later would hide what is used
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        held = pages * resource.getpagesize() / 2**20
    forget_peak_memory(device)
    do()
    peak = peak_memory(device)
    return None if peak is None else peak - held


def measure(work: Work, device: torch.device, repeats: int, peak: float) -> dict[str, Any]:
    work.textbook(), work.ours()
    times: list[tuple[float, float]] = []
    for turn in range(repeats):
        both = (work.textbook, work.ours)
        in_turn = both if turn % 2 else both[::-1]
        took = [timed(do, device) for do in in_turn]
        times.append((took[0], took[1]) if turn % 2 else (took[1], took[0]))
    ours = statistics.median(mine for _, mine in times)
    return {
        "ratio": statistics.median(theirs / mine for theirs, mine in times),
        "tokens_per_second": work.tokens / ours,
        "share_of_peak": work.flops / ours / peak if work.flops else None,
        "memory_mb": highest(work.ours, device),
        "textbook_memory_mb": highest(work.textbook, device),
    }


def steps_by_the_clock(shape: Shape, threads: int, together: Barrier, found: SimpleQueue) -> None:
    """In a process of its own: the seconds of 20 steps, begun at once by all processes."""
    prepare_torch(OmegaConf.create({"threads": threads, "seed": 0}), CPU)
    work = training(shape, CPU, "fp32", True)
    work.ours()
    together.wait()
    began = time.perf_counter()
    for _ in range(20):
        work.ours()
    found.put(time.perf_counter() - began)


def cells_side_by_side(shape: Shape, repeats: int) -> float:
    """How much more is trained by one cell a core than by a single cell with as many threads."""
    spawn, cores = get_context("spawn"), os.cpu_count() or 1

    def seconds(processes: int, threads: int) -> float:
        together, found = spawn.Barrier(processes), spawn.SimpleQueue()
        arguments = (shape, threads, together, found)
        cells = [spawn.Process(target=steps_by_the_clock, args=arguments) for _ in range(processes)]
        for each in cells:
            each.start()
        took = [found.get() for _ in cells]
        for each in cells:
            each.join()
        return max(took) / processes

    return statistics.median(seconds(1, cores) / seconds(cores, 1) for _ in range(repeats))


Make = Callable[..., Work]

WORKS: dict[str, tuple[Make, tuple[str, ...]]] = {
    "train": (training, ("snli", "ptb", "yahoo")),
    "aggressive inner step": (partial(training, inner=True), ("snli", "ptb")),
    "train stochastic LSTM": (forcing, ("snli", "ptb")),
    "evaluation pass": (evaluating, ("snli", "ptb")),
    "MI and AU": (partial(evaluating, encoder_alone=True), ("snli", "ptb")),
    "IWAE, K=500": (importance_weighting, ("snli", "ptb", "yahoo")),
}
TRAINED = ("train", "aggressive inner step", "train stochastic LSTM")
QUICK = ("snli",)


def table(lines: list[dict[str, Any]]) -> str:
    """The lines in columns."""

    def cell_of(value: Any) -> str:
        if value is None:
            return "-"
        if isinstance(value, float):
            return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
        return str(value)

    rows = [list(lines[0])] + [[cell_of(value) for value in line.values()] for line in lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    padded = ("  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in padded)


def works(
    device: torch.device, precisions: list[str], quick: bool
) -> Iterator[tuple[str, str, Any]]:
    """(name, precision, how to make it) of every line of the table."""
    for name, (make, shapes) in WORKS.items():
        for shape in (s for s in shapes if not quick or s in QUICK):
            for precision in precisions if name in TRAINED else ["fp32"]:  # a result is always that
                make_it = partial(make, SHAPES[shape], device, precision, quick)
                yield f"{name}, {shape}", precision, make_it


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest shape alone, minutes")
    parser.add_argument("--json", action="store_true", help="lines of JSON in place of a table")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument(
        "--cells", action="store_true", help="one cell a core against one on all, alone"
    )
    parser.add_argument("--only", default="", help="works whose name has this in it")
    asked = parser.parse_args(arguments)
    if asked.cells:
        for name in QUICK if asked.quick else ("snli", "ptb"):
            print(f"{name}: {cells_side_by_side(SHAPES[name], asked.repeats):.2f}", flush=True)
        return
    device = torch.device(asked.device)
    prepare_torch(OmegaConf.create({"threads": 1, "seed": 0}), device)
    every = {"fp32", *asked.precision}
    peaks = {precision: peak_of_products(device, precision) for precision in sorted(every)}
    lines = []
    with TemporaryDirectory() as folder:
        lines_to_be = [*works(device, asked.precision, asked.quick)]
        lines_to_be.append(("load and batch 100,000", "-", partial(loading, Path(folder))))
        for name, precision, make in lines_to_be:
            if asked.only not in name:
                continue
            found = measure(make(), device, asked.repeats, peaks.get(precision, 0.0))
            lines.append({"work": name, "precision": precision} | found)
            print(
                json.dumps(lines[-1]) if asked.json else f"{name}: {found['ratio']:.2f}", flush=True
            )
    if not asked.json:
        for precision, peak in peaks.items():
            print(f"fastest {precision} product: {peak / 1e9:,.0f} GFLOP/s")
        print(table(lines))


if __name__ == "__main__":
    main()
