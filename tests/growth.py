"""How time and memory grow with what is put in: `python -m tests.growth` (`make growth`).

One thing grows at a time. The exponent is the slope between the last two sizes in a log-log plot:
1 is linear, 0 does not depend on it. Memory is what the work adds to the process at its highest.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import OmegaConf

from benchmark.cell import prepare_torch
from benchmark.config import Batching
from benchmark.data.batches import cut
from benchmark.data.corpus import Corpus
from benchmark.data.prepare import prepare
from tests import speed
from tests.speed import BATCH, CPU, Shape, highest, table, timed

SMALL = Shape(embedding=128, hidden=256, vocabulary=5_000, mean=20)


def preparing(folder: Path, sentences: int) -> Callable[[], Any]:
    """From a text file to ids, in a folder of its own each time."""
    dataset, turns = speed.write_text(folder / f"text{sentences}", sentences), count()
    return lambda: prepare(dataset, folder / f"prepared{sentences}-{next(turns)}")


def reading(folder: Path, sentences: int) -> Callable[[], Any]:
    """An epoch's batches, from ids."""
    split = Corpus(preparing(folder, sentences)()).train

    def epoch() -> None:
        for rows in cut(split.lengths, BATCH, Batching.exact):
            split.batch(rows)

    return epoch


def ours(make: Callable[..., speed.Work], **changes: int) -> Callable[[], Any]:
    """What the harness does of a work of `tests.speed`, its shape or options changed."""
    sizes = {name: changes.pop(name) for name in list(changes) if hasattr(SMALL, name)}
    return make(replace(SMALL, **sizes), CPU, "fp32", True, **changes).ours


def works(folder: Path) -> list[tuple[str, str, Sequence[int], Callable[[int], Callable]]]:
    """(work, what grows, its sizes, how to make the work at one of them)."""
    step, weigh = partial(ours, speed.training), partial(ours, speed.importance_weighting)
    encode = partial(ours, speed.evaluating, encoder_alone=True, mean=5)
    many = (10_000, 100_000, 1_000_000)
    return [
        ("prepare", "sentences", many, partial(preparing, folder / "prepare")),
        ("read an epoch", "sentences", many, partial(reading, folder / "read")),
        ("train step", "tokens", (20, 80, 320), lambda n: step(mean=n)),
        ("train step", "vocabulary", (5_000, 20_000, 80_000), lambda n: step(vocabulary=n)),
        ("train step", "latent", (16, 64, 256), lambda n: step(latent=n)),
        ("IWAE", "samples", (100, 500, 2_500), lambda n: weigh(samples=n)),
        ("IWAE", "tokens", (20, 80, 320), lambda n: weigh(mean=n)),
        ("IWAE", "vocabulary", (5_000, 20_000, 80_000), lambda n: weigh(vocabulary=n)),
        ("IWAE", "latent", (16, 64, 256), lambda n: weigh(latent=n)),
        ("MI and AU", "batches of 32", (32, 128, 512), lambda n: encode(batches=n)),
    ]


def main() -> None:
    prepare_torch(OmegaConf.create({"threads": 1, "seed": 0}), CPU)
    lines = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "prepare").mkdir(), (folder / "read").mkdir()
        for work, grows, sizes, make in works(folder):
            seconds, memory = [], []
            for size in sizes:
                do = make(size)
                first = timed(do, CPU)
                again = 3 if first < 5 else 0
                seconds.append(min([timed(do, CPU) for _ in range(again)] or [first]))
                memory.append(highest(do, CPU) or math.nan)
            ratio = math.log(sizes[-1] / sizes[-2])
            lines.append(
                {"work": work, "grows": grows, "sizes": ", ".join(f"{n:,}" for n in sizes)}
                | {"seconds": ", ".join(f"{s:.3g}" for s in seconds)}
                | {"exponent": math.log(seconds[-1] / seconds[-2]) / ratio}
                | {"MB": ", ".join(f"{m:.3g}" for m in memory)}
                | {"of memory": math.log(max(memory[-1], 1) / max(memory[-2], 1)) / ratio}
            )
            print(*lines[-1].values(), sep="  ", flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
