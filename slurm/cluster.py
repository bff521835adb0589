"""How a grid is run: configs/cluster/NAME.yaml, checked; imports no torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from benchmark.compose import CONFIGS, UserError, check, merge, nearest
from benchmark.config import at_least, must, positive

FOLDER = CONFIGS / "cluster"


class Executor(Enum):
    """slurm: job arrays; local: a detached runner on this machine; inline: here and now."""

    slurm = "slurm"
    local = "local"
    inline = "inline"


@dataclass
class Resources:
    """What a job asks of the cluster; null leaves it to the cluster."""

    time: int = positive(1440)  # minutes
    cpus: int = positive(2)
    gpus: int = at_least(0, 0)
    memory: str = must(
        "be a number with M or G behind it",
        lambda value: value[:-1].isdecimal() and value[-1] in "MG",
        default="8G",
    )
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None


@dataclass
class Cluster(Resources):
    """How cells become jobs. A job runs `group` of them one after another, or `pack` side by side
    on its device; a class of cells may have resources of its own."""

    executor: Executor = Executor.slurm
    classes: list[dict[str, Any]] = field(default_factory=list)
    """Mappings of `method` and `dataset`, patterns of config names, and resources for the cells
    that fit both; later ones win."""
    group: int = positive(1)
    pack: int = positive(1)
    parallel: int = positive(2)
    """Cells at once under `local`."""
    array_parallelism: int = positive(256)
    signal_delay: int = positive(120)
    """Seconds before its time limit at which a job is told to save; longer than a step takes."""
    attempts: int = positive(5)
    """Jobs in a row that may be lost without a step of progress, before a cell is given up."""
    patience: int = at_least(0, 600)
    """Seconds for which an unreachable controller is asked again."""
    setup: list[str] = field(default_factory=list)
    """Shell lines that a job runs first."""
    snapshot: bool = False
    """Whether the jobs run a copy of the code, made at submission."""
    leaderboard: bool = False
    """Whether the leaderboard is built when all of them have ended."""

    def resources(self, method: str, dataset: str) -> Resources:
        """What a cell of these configs needs."""
        wanted = {f.name: getattr(self, f.name) for f in fields(Resources)}
        for entry in self.classes:
            patterns = (entry.get("method", "*"), method), (entry.get("dataset", "*"), dataset)
            if all(fnmatchcase(name, pattern) for pattern, name in patterns):
                wanted |= {key: v for key, v in entry.items() if key not in ("method", "dataset")}
        return Resources(**wanted)

    def plain(self) -> dict[str, Any]:
        """In JSON's types; `restore` is the way back."""
        return asdict(self) | {"executor": self.executor.value}


def restore(plain: dict[str, Any]) -> Cluster:
    """The cluster that `plain` was made of."""
    return _checked(OmegaConf.create(plain))


def load(words: Sequence[str]) -> Cluster:
    """The cluster that `cluster=NAME` and `cluster.KEY=VALUE` name; slurm where none is named.
    Raises UserError."""
    name, settings = "slurm", []
    for word in words:
        key, _, value = word.partition("=")
        if not value:
            raise UserError(f"{word} has no value; write {key}=VALUE.")
        if key == "cluster":
            name = value
        else:
            settings.append(word.removeprefix("cluster."))
    known = [path.stem for path in FOLDER.glob("*.yaml")]
    if name not in known:
        raise UserError(f"there is no cluster {name!r}; {nearest(name, known)}.")
    try:
        given = OmegaConf.merge(OmegaConf.load(FOLDER / f"{name}.yaml"), _dotted(settings))
    except OmegaConfBaseException as error:
        raise UserError(f"{' '.join(words)} cannot be read: {error}") from error
    assert isinstance(given, DictConfig)
    return _checked(given)


def _dotted(settings: Sequence[str]) -> DictConfig:
    """Names as they are written: to YAML 007 is 7, no is False, and 12:00:00 is 43200."""
    given = OmegaConf.create()
    for word in settings:
        key, _, value = word.partition("=")
        if key == "time" and ":" in value:
            raise UserError(f"cluster.time is in minutes, not {value}.")
        if key in ("partition", "account", "qos", "constraint", "memory") and value != "null":
            OmegaConf.update(given, key, value)
        else:
            given = OmegaConf.merge(given, OmegaConf.from_dotlist([word]))
    assert isinstance(given, DictConfig)
    return given


def _checked(given: DictConfig) -> Cluster:
    typed = merge(Cluster, given, "cluster.")
    check(typed, "cluster.")
    known = {f.name for f in fields(Resources)}
    for entry in typed.classes:
        resources = {key: v for key, v in entry.items() if key not in ("method", "dataset")}
        for key in resources:
            if key not in known:
                choices = {*known, "method", "dataset"}
                raise UserError(f"cluster.classes: no resource {key!r}; {nearest(key, choices)}.")
        check(merge(Resources, OmegaConf.create(resources), "cluster.classes."), "cluster.classes.")
    made: Any = OmegaConf.to_object(typed)
    return made
