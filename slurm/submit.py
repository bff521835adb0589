"""Fan a grid out: `python -m slurm.submit method=vae,free_bits dataset=yelp seed=0,1,2 [...]`.

Words are those of benchmark.run, with lists, range(a,b), glob(*) and method=all. Beside them:
  cluster=slurm|local|inline   job arrays, a detached runner on this machine, or here and now
  cluster.KEY=VALUE            a setting of configs/cluster/NAME.yaml, as cluster.partition=gpu
  grids=FILE                   several grids in their order, a line of words each (`#` comments);
                               the words of the command line go with every one and win over its
                               own; of several such files one after another
  only=missing|failed|stale|cancelled|all   which; missing: neither at an end nor in a job
  leaderboard=true             build the leaderboard when these cells have come to their end
  --dry-run                    say what would run, and roughly how long; submit nothing
  --wait                       stay, resubmit what is lost, until every cell is at its end
The configuration of every cell is stored in its folder: later edits of configs/ change nothing.
"""

import io
import logging
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from benchmark import compose, record
from benchmark.compose import UserError
from benchmark.grid import Cell
from benchmark.run import planned, told
from slurm import cluster as clusters
from slurm import page
from slurm.cluster import Cluster, Executor
from slurm.grid import ENDS, Standing, look
from slurm.launch import launch, submitting
from slurm.runner import OPEN, wait

log = logging.getLogger(__name__)

CHOICES = {
    "missing": {"missing", "lost"},
    "failed": {"failed", "diverged", "damaged"},
    "stale": {"stale"},
    "cancelled": {"cancelled"},
}
CHOICES["all"] = {state for states in CHOICES.values() for state in states}
OWN = ("cluster", "leaderboard", "grids", "only")  # words that are no cell's


@dataclass(frozen=True)
class Order:
    """What a command line asks for."""

    grids: list[list[str]]
    """The words of each grid."""
    cluster: Cluster
    only: str
    dry_run: bool
    wait: bool


def order(arguments: Sequence[str]) -> Order:
    """Read the command line. Raises UserError."""
    flags = [word for word in arguments if word.startswith("-")]
    if unknown := set(flags) - {"--dry-run", "--wait"}:
        raise UserError(f"there is no flag {min(unknown)}; Choices: --dry-run, --wait, --help.")
    words = [word for word in arguments if not word.startswith("-")]
    words = [f"cluster.{word}" if word.startswith("leaderboard=") else word for word in words]
    about = [word for word in words if word.partition("=")[0].partition(".")[0] == "cluster"]
    files = [word for word in words if word.startswith("grids=")]
    chosen = [word for word in words if word.startswith("only=")]
    only = chosen[-1].removeprefix("only=") if chosen else "missing"
    if only not in CHOICES:
        raise UserError(f"only={only} is no choice; {compose.nearest(only, CHOICES)}.")
    shared = [word for word in words if word not in {*about, *files, *chosen}]
    read = [grid for word in files for grid in read_grids(word.removeprefix("grids="), shared)]
    return Order(
        grids=read if files else [shared],
        cluster=clusters.load(about),
        only=only,
        dry_run="--dry-run" in flags,
        wait="--wait" in flags,
    )


def read_grids(file: str, shared: Sequence[str]) -> list[list[str]]:
    """The words of each grid of a file, the shared ones behind its own. Raises UserError."""
    try:
        lines = [_words(line) for line in Path(file).read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"grids={file} cannot be read: {error}") from None
    for number, words in enumerate(lines, 1):
        if own := [word for word in words if word.startswith("-") or _is_own(word)]:
            raise UserError(
                f"{file}, line {number}: {own[0]} belongs to the command line, "
                "where it holds for every grid; move it there."
            )
    found = [[*words, *shared] for words in lines if words]
    if not found:
        raise UserError(f"grids={file} holds no grid: a line of words each, method=vae,lm seed=0.")
    return found


def _is_own(word: str) -> bool:
    return word.partition("=")[0].partition(".")[0] in OWN


def _words(line: str) -> list[str]:
    """A line's words as a shell has them. Raises ValueError."""
    text = io.StringIO(line)
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""  # shlex's own begin inside a word, too
    found = []
    while (rest := line[text.tell() :].lstrip()) and not rest.startswith("#"):
        found.append(lexer.get_token() or "")
    return found


def plan(*grids: Sequence[str]) -> list[tuple[Cell, DictConfig]]:
    """The cells of all grids, each once, their paths made absolute: a job may start elsewhere.
    Raises UserError."""
    return [(cell, config) for cell, config, _ in worded(*grids)]


def worded(*grids: Sequence[str]) -> list[tuple[Cell, DictConfig, list[str]]]:
    """`plan`, each cell with its own words of its grid's. Raises UserError."""
    found: dict[str, tuple[Cell, DictConfig, list[str]]] = {}
    with compose.hydra_ready():
        for words in grids:
            for own, (cell, config) in zip(compose.sweep(words), planned(words), strict=True):
                found.setdefault(cell.key, (cell, config, own))
    for config in distinct((cell, config) for cell, config, _ in found.values()):
        if config.stop_after is not None:
            raise UserError("stop_after is for benchmark.run: a grid's cells run to their end.")
        for key in ("results_dir", "data_dir"):
            config[key] = str(Path(config[key]).absolute())
        if config.dataset.path is not None:
            config.dataset.path = str(Path(config.dataset.path).absolute())
    if len({config.results_dir for _, config, _ in found.values()}) > 1:
        raise UserError("a grid has one results_dir; submit to each of them.")
    return list(found.values())


def distinct(cells: Iterable[tuple[Cell, DictConfig]]) -> list[DictConfig]:
    """The configurations, which seeds share."""
    return list({id(config): config for _, config in cells}.values())


def stored(cell: Cell, config: DictConfig) -> str:
    """The text of a cell's own config.yaml."""
    config.seed = cell.seed
    return OmegaConf.to_yaml(config)


def rehearse(cells: Iterable[tuple[Cell, DictConfig]]) -> None:
    """See that every method takes its sizes. Raises UserError."""
    from benchmark.cell import rehearse as try_out

    for config in distinct(cells):
        try_out(config)


def prepare(cells: Iterable[tuple[Cell, DictConfig]]) -> None:
    """Make every data set ready, once. Raises UserError and DataError."""
    from benchmark.data import prepare as data

    for config in distinct(cells):
        data.prepare(config.dataset, compose.writable("data_dir", config.data_dir))


def lay_down(
    results: Path,
    cells: Iterable[tuple[Cell, DictConfig]],
    words: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Make the cells' folders, each with its configuration, the code's fingerprint and the words
    that it was asked for with, by its key."""
    fingerprints: dict[str, str] = {}
    for cell, config in cells:
        directory = record.RunDirectory(cell.path(results))
        if (directory.path / "run.json").exists():
            continue
        if cell.id not in fingerprints:
            fingerprints[cell.id] = record.fingerprint(compose.method_files(config.method))
        own = list((words or {}).get(cell.key, ()))
        submitted = {"fingerprint": fingerprints[cell.id], "words": own}
        directory.create(cell, stored(cell, config), {"submitted": submitted})


def renew(results: Path, cells: Iterable[tuple[Cell, DictConfig]]) -> None:
    """Give cells that were laid down before the configuration of now: the same cell, but perhaps
    another device, another place of the data, or no stop on the way."""
    for cell, config in cells:
        directory, text = record.RunDirectory(cell.path(results)), stored(cell, config)
        if (directory.path / "config.yaml").read_text() != text:
            with directory.lease():
                directory.save_text("config.yaml", text)


def make_ready(results: Path, standings: Iterable[Standing]) -> None:
    """Let cells at their end begin again: a failed one goes on from its checkpoint, as does one
    whose record is damaged; what a diverged or stale one left is kept under results/.stale, with
    that record."""
    for standing in standings:
        path = results / standing.cell
        kept = results / ".stale" / f"{standing.cell}.{time.strftime('%Y%m%d-%H%M%S')}"
        if standing.state in ("diverged", "stale"):
            kept.parent.mkdir(parents=True, exist_ok=True)
            path.rename(kept)
        elif standing.state == "damaged":
            kept.mkdir(parents=True)
            (path / "run.json").rename(kept / "run.json")
        elif standing.state == "failed":
            directory = record.RunDirectory(path)
            with directory.lease():
                known = directory.read()
                if known is not None and known["status"] in ENDS:
                    directory.write(status="queued", reason=None)


def fan_out(
    results: Path,
    cells: Sequence[tuple[Cell, DictConfig]],
    states: Set[str],
    cluster: Cluster,
    words: Mapping[str, Sequence[str]],
) -> list[Standing]:
    """Submit those of the cells that stand so once the right is ours; returns how each stood then.
    Raises record.Busy while another process submits, Refused, and UserError where the scheduler is
    away."""
    with submitting(results):
        lay_down(results, cells, words)
        pairs = {cell.path("").as_posix(): (cell, config) for cell, config in cells}
        known = {standing.cell: standing for standing in look(results, only=pairs)}
        standings = [known[path] for path in pairs]
        chosen = [standing for standing in standings if standing.state in states]
        make_ready(results, chosen)
        lay_down(results, cells, words)  # what was moved away
        renew(results, [pairs[standing.cell] for standing in chosen])
        others = [standing for standing in standings if standing.state in OPEN - states]
        launch(
            *(results, [standing.cell for standing in chosen], cluster),
            after=sorted({job.partition("_")[0] for s in others for job in s.jobs[-1:]}),
        )
    return standings


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    if {"-h", "--help"} & {*arguments}:
        sys.stdout.write(f"{__doc__}\n")
        return 0
    return waited(lambda: submit(order(arguments)))


def waited(work: Callable[[], int]) -> int:
    """The exit status of a command that submits, and may be left while it waits."""
    try:
        return told(work)
    except KeyboardInterrupt:
        sys.stderr.write("what is submitted goes on; the same command waits for it again\n")
        return 130


def submit(asked: Order) -> int:
    """Submit what is asked for; returns the exit status. Raises UserError."""
    found = worded(*asked.grids)
    cells = [(cell, config) for cell, config, _ in found]
    words = {cell.key: own for cell, _, own in found}
    rehearse(cells)
    results = Path(cells[0][1].results_dir)
    inline = asked.cluster.executor is Executor.inline
    stays = asked.wait or inline
    if asked.dry_run:
        return dry_run(results, cells, asked)
    compose.writable("results_dir", str(results))
    prepare(cells)
    # who stays builds the leaderboard
    cluster = replace(asked.cluster, leaderboard=False) if stays else asked.cluster
    wanted = CHOICES[asked.only]
    standings = fan_out(results, cells, wanted, cluster, words)
    chosen = [standing for standing in standings if standing.state in wanted]
    _say(_summary(standings, chosen, asked))
    unknown = [standing.cell for standing in standings if standing.state == "unknown"]
    if unknown and not chosen:
        raise UserError(
            f"{len(unknown)} cells may be in jobs of a cluster whose squeue does not answer here; "
            "ask where it does, or slurm.cancel them first."
        )
    if not stays:
        return 0
    if inline:
        names = [standing.cell for standing in chosen]
        status = int(any(standing.state != "done" for standing in look(results, only=names)))
    else:
        stood = zip(cells, standings, strict=True)
        mine = {s.cell: pair for pair, s in stood if s.state in wanted | OPEN}
        status = wait(
            *(results, list(mine)),
            # not what is lost, which goes on as it was submitted
            lambda: fan_out(results, list(mine.values()), {"missing"}, cluster, words),
        )
    if asked.cluster.leaderboard and page.build(results):
        _say(str(page.told(results)))
    return status


def dry_run(results: Path, cells: list[tuple[Cell, DictConfig]], asked: Order) -> int:
    """Say what would be submitted."""
    from slurm.estimate import estimate

    known = {standing.cell: standing.state for standing in look(results)}
    states = [known.get(cell.path("").as_posix(), "missing") for cell, _ in cells]
    chosen = [
        pair for pair, state in zip(cells, states, strict=True) if state in CHOICES[asked.only]
    ]
    count = Counter((cell.variant, cell.dataset) for cell, _ in chosen)
    for (variant, dataset), n in count.items():
        _say(f"{variant} x {dataset}: {n} seed{'s' * (n > 1)}")
    for line in estimate(results, chosen):
        _say(line)
    _say(f"{len(chosen)} cells to run, {states.count('done')} done")
    return 0


def _summary(standings: Iterable[Standing], chosen: Sequence[Standing], asked: Order) -> str:
    others = Counter(s.state for s in standings if s not in chosen)
    rest = ", ".join(f"{n} {state}" for state, n in sorted(others.items()))
    where = asked.cluster.executor.value
    return f"{len(chosen)} cells submitted ({where}){f'; {rest}' if rest else ''}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    sys.exit(main(sys.argv[1:]))
