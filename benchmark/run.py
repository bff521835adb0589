"""Train, evaluate and record one cell: `python -m benchmark.run method=vae dataset=synthetic`.

A done cell returns at once, one that was cut off goes on. With -m several cells run one after
another, and the failure of one stops none.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from benchmark import compose, record
from benchmark.data.errors import DataError
from benchmark.grid import Cell, identity

log = logging.getLogger(__name__)

FAILURE = 1
_exits: list[int] = []  # of the cells of this process


def make_cell(config: DictConfig, method: str, overridden: list[str]) -> Cell:
    """The cell that a checked configuration is; `method` names its config, `overridden` are the
    command line's words."""
    changed = [word.removeprefix("method.") for word in overridden if word.startswith("method.")]
    return Cell(
        dataset=config.dataset.name,
        method=method,
        variant=" ".join([method, *sorted(changed)]),
        seed=config.seed,
        id=identity(config, compose.defaults(config.method.name)),
    )


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """While it lasts, TERM and INT are remembered, not obeyed: the function that it gives returns
    the signal's number, or 0. The same signal again ends the process."""
    received = 0

    def remember(number: int, frame: Any) -> None:
        nonlocal received
        received = number
        signal.signal(number, signal.SIG_DFL)
        log.warning("stopping at the next step; once more to stop at once")

    old = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress line on a terminal; nothing elsewhere, where the log's lines do."""
    if not sys.stderr.isatty():
        yield lambda t, steps: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda t, steps: bar.update(task, completed=t, total=steps)


def run_one(config: DictConfig, method: str, overridden: list[str]) -> int:
    """Run one checked cell; returns the exit status."""
    results = Path(config.results_dir)
    cell = make_cell(config, method, overridden)
    directory = record.RunDirectory(cell.path(results))
    known = directory.read()
    if known is not None and known["status"] == "done":
        _say(f"{cell.key} is done already.\n{_line(known)}\nrecord: {directory.path}")
        return 0

    from benchmark import cell as cells
    from benchmark.data.corpus import load
    from benchmark.data.prepare import prepare

    device = cells.choose_device(config)
    corpus = load(prepare(config.dataset, Path(config.data_dir)))
    directory.create(cell, OmegaConf.to_yaml(config))
    with stop_signals() as stopped, progress_bar(cell.variant) as progress:
        status = cells.run_cell(
            directory, config, corpus, device, lambda: bool(stopped()), progress
        )
        received = stopped()
    done = directory.read()
    assert done is not None
    if status in ("done", "stopped"):
        _say(f"{cell.key}: {status}.\n{_line(done)}\nrecord: {directory.path}")
        return 0
    if status == "interrupted":
        log.warning("%s: saved; the same command goes on from here", cell.key)
        return 128 + received
    log.error("%s: %s: %s (see %s)", cell.key, status, done["reason"], directory.path)
    return FAILURE


def _line(known: dict[str, Any]) -> str:
    test = known["summary"]["test"]
    shown = ("nll", "neg_elbo", "rec", "kl", "mi", "au", "ppl", "z_gain", "i_read", "nll_gap")
    values = [f"{name} {test[name]:.4g}" for name in shown if test.get(name) is not None]
    return f"test: {', '.join(values)}; verdict: {test['verdict']}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@hydra.main(version_base="1.3", config_path=str(compose.CONFIGS), config_name="config")
def _hydra_main(composed: DictConfig) -> None:
    chosen = HydraConfig.get()
    overridden = list(chosen.overrides.task)
    try:
        keys = [word.split("=")[0].lstrip("+~") for word in overridden]
        config = compose.typed(composed, keys)
        _exits.append(run_one(config, chosen.runtime.choices["method"], overridden))
    except (compose.UserError, DataError, record.Busy, record.LeaseLost) as error:
        log.error("%s", error)
        _exits.append(FAILURE)


def main() -> None:
    """The command."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("benchmark").setLevel(logging.INFO)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, where they become one sentence
    # cuBLAS is reproducible only with a workspace of its own, set before it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        _hydra_main()
    except compose.HYDRA_ERRORS as error:
        log.error("%s", compose.explain(error))
        sys.exit(2)
    sys.exit(max(_exits, default=0))


if __name__ == "__main__":
    main()
