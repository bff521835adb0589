"""Train, evaluate and record one cell: `python -m benchmark.run method=vae dataset=synthetic`.

A done cell returns at once; one that was cut off, was stopped or failed goes on from its newest
checkpoint. One that diverged would diverge again: it says so at once, until its folder is removed.
With -m several cells run one after another, and the failure of one stops none; TERM and INT end
them all.
"""

import errno
import logging
import os
import signal
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from benchmark import compose, record
from benchmark.data.errors import DataError
from benchmark.grid import Cell, identity

log = logging.getLogger(__name__)

FAILURE = 1
# errors of the operating system that are the machine's, not the program's
OF_THE_PLACE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG),
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO),
}


def make_cell(config: DictConfig, method: str, overridden: list[str]) -> Cell:
    """The cell that a checked configuration is; `method` names its config, `overridden` are the
    command line's words."""
    words = [word.lstrip("+~") for word in overridden]
    said = [word for word in words if word.startswith(("method.", "rate="))]
    changed = [word.removeprefix("method.") for word in said]
    placebo = ["placebo"] if config.placebo else []
    return Cell(
        dataset=config.dataset.name,
        method=method,
        variant=" ".join([method, *sorted(changed), *placebo]),
        seed=config.seed,
        id=identity(config, compose.defaults(config.method)),
    )


@contextmanager
def stop_signals(
    numbers: Sequence[int] = (signal.SIGTERM, signal.SIGINT), *, impatient: bool = True
) -> Iterator[Callable[[], int]]:
    """While it lasts, these signals are remembered, not obeyed: the function that it gives returns
    the newest one's number, or 0. To the impatient the same signal again ends the process."""
    received = 0

    def remember(number: int, frame: Any) -> None:
        nonlocal received
        if received != signal.SIGUSR2:  # a time limit's, which asks for more than to stop
            received = number
        if impatient:
            signal.signal(number, signal.SIG_DFL)
        more = "; once more to stop at once" if impatient else ""
        log.warning("stopping at the next step%s", more)

    old = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield lambda: received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def end_at_once(number: int, frame: Any) -> None:
    """What TERM and INT do before there is anything to save: what is half prepared is removed."""
    log.warning("ended by %s before training began", signal.Signals(number).name)
    sys.exit(128 + number)


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
        with _log_above_the_bar():
            yield lambda t, steps: bar.update(task, completed=t, total=steps)


@contextmanager
def _log_above_the_bar() -> Iterator[None]:
    """Let the log write to the stderr of now, which the bar has put in the old one's place."""
    handlers = [h for h in logging.getLogger().handlers if type(h) is logging.StreamHandler]
    old = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, old, strict=True):
            if stream is not None:  # None: it was the same
                handler.setStream(stream)


def planned(words: Sequence[str]) -> Iterator[tuple[Cell, DictConfig]]:
    """The cells that these words make, each with its configuration, which is composed once for a
    variant and a data set: seeds share it, and its own seed is the first one's. Raises UserError;
    to be called while `hydra_ready`."""
    composed: dict[tuple[str, ...], tuple[Cell, DictConfig]] = {}
    for cell in compose.sweep(words):
        rest = tuple(word for word in cell if not word.startswith("seed="))
        seeds = [word.removeprefix("seed=") for word in cell if word.startswith("seed=")]
        plain = all(seed.isdecimal() and len(seed) < 19 for seed in seeds)
        odd = any("${" in word for word in cell) or any("seed=" in word for word in rest)
        if plain and not odd and rest in composed:
            first, config = composed[rest]
            yield replace(first, seed=int(seeds[-1]) if seeds else 0), config
        else:
            config, method = compose.cell(cell)
            composed[rest] = make_cell(config, method, cell), config
            yield composed[rest]


def run_stored(path: Path, stop_requested: Callable[[], bool]) -> str:
    """Run the cell whose folder was laid down before, by the configuration that lies there; returns
    its status. Raises record.Busy while another process writes it."""
    directory = record.RunDirectory(path)
    known = directory.read()
    assert known is not None, f"{path} holds no cell"
    if known["status"] in ("done", "diverged", "failed"):  # what is to run again reads "queued"
        return known["status"]

    from benchmark import cell as cells

    try:
        config = compose.stored(path)
        device = cells.choose_device(config)
        corpus = cells.gather(config)
    except (compose.UserError, DataError) as error:
        reason = compose.sentence(error)
    except OSError as error:
        if error.errno not in OF_THE_PLACE:
            raise
        reason = _unwritable(error)
    else:
        return cells.run_cell(directory, config, corpus, device, stop_requested)
    with directory.lease():
        directory.write(status="failed", reason=reason)
    return "failed"


def run_one(config: DictConfig, method: str, overridden: list[str]) -> int:
    """Run one checked cell; returns the exit status."""
    cell = make_cell(config, method, overridden)
    directory = record.RunDirectory(cell.path(config.results_dir))
    try:
        known = directory.read()
    except ValueError as error:
        # what newer code wrote is whole, and not to be thrown away
        other = "schema_version" in str(error)
        way_out = "set another results_dir" if other else "remove it to go on from the checkpoint"
        raise compose.UserError(f"{error}; {way_out}.") from error
    if known is not None and known["status"] == "done":
        _refuse_other_data(config, cell, known)
        _say(f"{cell.key} is done already.\n{_line(known)}\nrecord: {directory.path}")
        return 0
    if known is not None and known["status"] == "diverged":
        log.error(
            "%s has diverged: %s; remove %s to run it again",
            *(cell.key, known["reason"], directory.path),
        )
        return FAILURE

    compose.writable("results_dir", config.results_dir)

    from benchmark import cell as cells

    device = cells.choose_device(config)
    corpus = cells.gather(config)
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
        sys.exit(128 + received)  # no other cell of this command is begun
    log.error("%s: %s: %s (see %s)", cell.key, status, done["reason"], directory.path)
    return FAILURE


def _refuse_other_data(config: DictConfig, cell: Cell, known: dict[str, Any]) -> None:
    """A folder is no part of a cell's identity, so a done cell may be of another folder's text."""
    path = config.dataset.path
    if path is None or not os.path.isdir(path):
        return
    from benchmark.data.prepare import prepare, read_about

    if read_about(prepare(config.dataset, Path(config.data_dir)))["hash"] != (
        known["provenance"].get("data_hash")
    ):
        raise compose.UserError(
            f"{cell.key} is done already, on other data than {path}; give this data a name of its "
            "own with dataset.name=WORD."
        )


def _line(known: dict[str, Any]) -> str:
    test = known["summary"]["test"]
    shown = ("nll", "neg_elbo", "rec", "kl", "mi", "au", "ppl", "z_gain", "i_read", "nll_gap")
    values = [f"{name} {test[name]:.4g}" for name in shown if test.get(name) is not None]
    return f"test: {', '.join(values)}; verdict: {test['verdict']}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def told(work: Callable[[], int]) -> int:
    """The exit status of a command's work. Bad input is told in one sentence on stderr; an error of
    the program's own keeps its traceback."""
    try:
        return work()
    except (compose.UserError, DataError, record.Busy, record.LeaseLost) as error:
        return _refuse(error)
    except OSError as error:
        if error.errno not in OF_THE_PLACE:
            raise
        return _refuse(_unwritable(error))


def _unwritable(error: OSError) -> str:
    return f"{error.filename or 'a file'} cannot be written: {error.strerror}"


def free(folder: Path) -> Path:
    """A run's folder, if a command may add files to it; to be asked before the work. Raises
    UserError."""
    if record.held(folder):
        raise compose.UserError(f"{folder} is being written by another process; wait for it.")
    return compose.writable("RUN_DIR", str(folder))


def run_words(words: list[str]) -> int:
    """Run the cell that these words make; returns the exit status."""

    def work() -> int:
        config, method = compose.cell(words)
        return run_one(config, method, words)

    return told(work)


def run_all(cells: list[list[str]]) -> int:
    """Run cells one after another; the failure of one stops none."""
    worst = 0
    for words in cells:
        _say(f"== {' '.join(words)}")
        try:
            worst = max(worst, run_words(words))
        except Exception:
            traceback.print_exc()
            worst = FAILURE
    return worst


def _refuse(problem: object) -> int:
    sys.stderr.write(compose.sentence(problem) + "\n")
    return FAILURE


def _flags(arguments: Sequence[str]) -> Namespace:
    """Hydra's own flags and the words."""
    parser = get_args_parser()

    def error(message: str) -> NoReturn:
        raise compose.UserError(f"{message}; --help tells what there is.")

    parser.error = error  # argparse's own would print its usage too
    return parser.parse_intermixed_args(arguments)


@hydra.main(version_base="1.3", config_path=str(compose.CONFIGS), config_name="config")
def _hydra_main(composed: DictConfig) -> None:
    raise AssertionError("Hydra prints here, and runs nothing")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("benchmark").setLevel(logging.INFO)
    old = {number: signal.signal(number, end_at_once) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        status = _answer(_flags(sys.argv[1:] if arguments is None else arguments))
    except compose.UserError as error:
        status = _refuse(error)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    sys.exit(status)


def _answer(flags: Namespace) -> int:
    runs = not any((flags.help, flags.hydra_help, flags.info, flags.shell_completion, flags.cfg))
    if not runs and (flags.cfg != "job" or flags.package):
        return _ask_hydra()
    with compose.hydra_ready(flags.config_dir):
        if flags.cfg:
            _say(OmegaConf.to_yaml(compose.cell(flags.overrides)[0]).rstrip())
            return 0
        if flags.multirun:
            return run_all(compose.sweep(flags.overrides))
        return run_words(flags.overrides)


def _ask_hydra() -> int:
    """Help and the like, which Hydra prints; it reads the command line itself."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, where they become one sentence
    Plugins.instance().register(compose.PluginConfigs)
    try:
        _hydra_main()
    except compose.HYDRA_ERRORS as error:
        return _refuse(compose.explain(error))
    return 0


if __name__ == "__main__":
    main()
