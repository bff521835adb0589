"""Language models that judge texts: trained by the harness on so many sentences, and no more.

Sizes, batches and learning rate are the data set's, whatever the run's own are that is judged: all
runs on a data set have the same judges.
"""

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmark.api import Recipe
from benchmark.config import Batching, Budget, Dataset, Evaluation, Optimiser
from benchmark.data.batches import cut
from benchmark.data.corpus import Split
from benchmark.estimators import mean_and_error
from benchmark.evaluate import Effort, Report, SplitLike, evaluate
from benchmark.models import LanguageModel
from benchmark.record import RunDirectory
from benchmark.task import CellTask
from benchmark.train import Trainer

EMBEDDING, HIDDEN = 128, 256  # at most: so few sentences need no more, and it is done in minutes
EFFORT = Effort.validation(Evaluation())


@dataclass(frozen=True)
class Judge:
    """A trained language model, as it was at the step that was best on held-out sentences."""

    model: LanguageModel
    device: torch.device
    task: CellTask
    step: int
    seconds: float  # that its training took

    def perplexity(self, split: SplitLike) -> tuple[float | None, float | None]:
        """exp(nats a predicted token), `</s>` counted, and its standard error over sentences, for
        this judge as it is; None where they are beyond any float."""
        report = _report(self.model, split, self.device)
        found = report.summary["ppl"]
        if found is None:
            return None, None
        nll, length = report.sentences["nll"], report.sentences["length"]
        # of a ratio of means, to first order
        _, error = mean_and_error(nll - math.log(found) * length)
        return found, found * error / float(length.mean())


def train(
    text: Split,
    held_out: Split,
    *,
    dataset: Dataset,
    vocabulary: int,
    epochs: int,
    seed: int,
    device: torch.device,
    folder: Path,
) -> Judge:
    """A judge that has read `text`. vocabulary: how many ids there are; folder: for what training
    writes, nobody's run."""
    began, sizes = time.monotonic(), dataset.sizes
    # bucketed: as many steps for any text of so many sentences, whatever their lengths
    batches = cut(text.lengths, dataset.batch_size, Batching.bucketed)
    task = CellTask(
        vocab_size=vocabulary,
        mean_length=float(text.lengths.mean()),
        max_length=int(text.lengths.max()),
        n_train=len(text),
        batch_size=dataset.batch_size,
        steps_per_epoch=len(batches),
        steps=epochs * len(batches),
        embedding=min(sizes.embedding, EMBEDDING),
        hidden=min(sizes.hidden, HIDDEN),
        latent=0,
        dropout=sizes.dropout,
        init=sizes.init,
        init_embedding=sizes.init_embedding,
    )
    budget = Budget(
        name="judge",
        epochs=epochs,
        batch_size=dataset.batch_size,
        optimiser=Optimiser.adam,
        learning_rate=dataset.learning_rate,
        clip=5.0,  # the default budget's
        select="nll",
    )
    directory = RunDirectory(folder)
    forked = [device] if device.type == "cuda" else []
    with directory.lease(), torch.random.fork_rng(forked):
        torch.manual_seed(seed)
        model = LanguageModel(task.decoder())
        trainer = Trainer(
            *(Recipe(model=model), task, budget, text, batches),
            seed=seed,
            device=device,
            autocast=nullcontext,
            validate=lambda: _report(model, held_out, device),
            directory=directory,
            metrics=directory.metrics(),
        )
        trainer.train(task.steps, lambda: False, save_every=math.inf)
        step = trainer.load_best()
    return Judge(model, device, task, step, time.monotonic() - began)


def _report(model: LanguageModel, split: SplitLike, device: torch.device) -> Report:
    return evaluate(model, split, EFFORT, device=device)


def written(folder: Path, name: str, sentences: Sequence[Sequence[int]]) -> Split:
    """Sentences of word ids, without special tokens, as a split; its files are in `folder`."""
    ids = np.concatenate([np.asarray(words, dtype=np.int32) for words in sentences])
    np.save(folder / f"{name}.ids.npy", ids)
    ends = np.cumsum([0, *map(len, sentences)], dtype=np.int64)
    np.save(folder / f"{name}.offsets.npy", ends)
    return Split(folder, name)
