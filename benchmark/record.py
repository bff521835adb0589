"""The run directory: one cell's record, whole at every instant; imports no torch.

Every file but metrics.jsonl is written beside its place and renamed into it. Only the holder of
the directory's lease writes; anyone reads.
"""

import contextlib
import dataclasses
import getpass
import hashlib
import json
import logging
import math
import os
import platform
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmark.lease import Busy as Busy
from benchmark.lease import Lease, LeaseLost, create, sync, temporary_path
from benchmark.lease import held as held

if TYPE_CHECKING:
    from benchmark.grid import Cell

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1  # of run.json and of a cell's identity
RESULT_VERSION = 1  # raised when the same cell would now give other numbers: CHANGELOG.md

STATUSES = (
    *("queued", "running", "interrupted", "stopped", "done"),
    *("failed", "diverged", "timeout", "cancelled"),
)
SPLITS = ("valid", "test")
ARTEFACTS = ("config.yaml", "metrics.jsonl", "units.npz", "sentences.npz", "samples.jsonl")
"""The files without which no cell is done."""

SUMMARY = {
    "nll": ("nats", "negative log-likelihood, importance-weighted"),
    "nll_samples": ("count", "importance samples a sentence behind nll, on average"),
    "nll_sentences": ("count", "sentences behind nll's importance-weighted part"),
    "nll_se": ("nats", "standard error of nll"),
    "neg_elbo": ("nats", "negative evidence lower bound, rec + kl"),
    "rec": ("nats", "-log p(x|z) under the posterior"),
    "kl": ("nats", "KL of the posterior from the prior, summed over units"),
    "mi": ("nats", "I(x; z) under q, the whole split in the mixture, each sentence in its own"),
    "mi_n": ("count", "sentences in the mixture; mi cannot exceed its logarithm"),
    "mi_loo": ("nats", "the same, each sentence left out of its own; null near ln mi_n"),
    "mi_batch32": ("nats", "He et al.'s estimate, in batches of 32; about ln 32 at most"),
    "au": ("count", "active units: the posterior mean's variance over sentences exceeds 0.01"),
    "units": ("count", "latent units there are"),
    "ppl": ("1", "exp(nll per predicted token), </s> counted, <s> not"),
    "z_gain": ("nats", "what x's own code gains over that of a partner of the same length"),
    "z_gain_se": ("nats", "standard error of z_gain"),
    "z_gain_n": ("count", "sentences with a partner"),
    "verdict": ("word", "collapsed, idle, read, unclear or none: does the decoder read the code"),
    "i_read": ("nats", "what of x the decoder provably reads from z, a lower bound"),
    "i_read_se": ("nats", "standard error of i_read"),
    "i_read_n": ("count", "sentences behind i_read"),
    "i_read_candidates": ("count", "codes each was told from, on average; i_read is at most ln"),
    "nll_half": ("nats", "nll at half the samples; far above nll: more are needed"),
    "ess": ("share", "effective importance samples of all, the mean over sentences"),
    "khat_bad": ("share", "sentences whose importance weights have Pareto k > 0.7"),
    "latent": ("word", "none, global, sequence or implicit"),
    "nll_gap": ("nats", "nll less the exact one of the same sentences"),
    "elbo_gap": ("nats", "neg_elbo less the exact nll of the same sentences"),
    "truth_mi": ("nats", "I(x; z) under the generator itself"),
}
"""A split's summary: name -> (unit, meaning); nats are per sentence. `nll@name` and the like are
the same quantity under another prior."""

TRUTH = frozenset({"nll_gap", "elbo_gap", "truth_mi"})  # absent where the truth is not known
WORDS = {
    "verdict": ("collapsed", "idle", "read", "unclear", "none"),
    "latent": ("none", "global", "sequence", "implicit"),
}
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")  # of a folder, and of nothing outside it
FIELDS = ("status", "reason", "selected_step", "summary", "notes", "cost", "provenance")


class RunDirectory:
    """One cell's folder. Its reader needs nothing; its writer holds `lease()`.

    attempt: this object's unique name, part of every temporary file's.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.attempt = uuid.uuid4().hex[:12]
        self._lease: Lease | None = None

    def create(
        self, cell: "Cell", config: str, provenance: Mapping[str, Any] | None = None
    ) -> None:
        """Lay down config.yaml and a queued run.json; what is there already stays."""
        self.path.mkdir(parents=True, exist_ok=True)
        record = {
            "schema_version": SCHEMA_VERSION,
            "cell": dataclasses.asdict(cell),
            "status": "queued",
            **{"reason": None, "selected_step": None, "summary": {}, "notes": {}},
            **{"cost": {}, "provenance": dict(provenance or {})},
        }
        create(self.path / "config.yaml", config.encode(), self.attempt)
        create(self.path / "run.json", _json(record), self.attempt)

    def read(self) -> dict[str, Any] | None:
        """run.json, or None where there is none. Raises ValueError if it breaks the schema."""
        try:
            text = (self.path / "run.json").read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            record = json.loads(text, parse_constant=_refuse)
            problems = _problems(record)
        except (ValueError, RecursionError) as error:
            problems = [f"it is no JSON ({error})"]
        if problems:
            raise ValueError(f"{self.path / 'run.json'} is damaged: {'; '.join(problems)}")
        return record

    def write(self, **changes: Any) -> None:
        """Replace fields of run.json (FIELDS), all or none.

        NaN and infinities become null, each with a note. Raises LeaseLost, and ValueError for
        what breaks the schema or for a `done` to which something is missing.
        """
        self.check()
        record = self.read()
        if record is None:
            raise ValueError(f"{self.path} holds no run.json to change: create the cell first")
        if unknown := changes.keys() - set(FIELDS):
            raise ValueError(f"run.json has no field {', '.join(sorted(unknown))}")
        found: dict[str, str] = {}
        record |= {key: _finite(value, key, found) for key, value in changes.items()}
        found = {key.removeprefix("summary/"): note for key, note in found.items()}
        record["notes"] = found | record["notes"]
        problems = _problems(record)
        if record["status"] == "done":
            problems += _missing(self.path)
        if problems:
            raise ValueError(f"{self.path}: not recorded: {'; '.join(problems)}")
        self.save_json("run.json", record)

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """A temporary path to write to; at the end its file takes the place of `name`, for good.

        Raises LeaseLost, and leaves `name` as it was, if the lease went meanwhile.
        """
        target = self.path / name
        target.parent.mkdir(exist_ok=True)
        temporary = temporary_path(target, self.attempt)
        try:
            with _naming(target):
                yield temporary
                sync(temporary)
                self.check()
                os.replace(temporary, target)
                sync(target.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def save_text(self, name: str, text: str) -> None:
        """Write a text file, all at once."""
        with self.replacing(name) as temporary:
            temporary.write_bytes(text.encode())

    def save_json(self, name: str, value: Any) -> None:
        """Write a JSON file, all at once; NaN and infinities as null."""
        with self.replacing(name) as temporary:
            temporary.write_bytes(_json(value))

    def save_npz(self, name: str, **arrays: Any) -> None:
        """Write arrays, all at once. Raises ValueError for objects, which need pickle."""
        with self.replacing(name) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    def metrics(self) -> "Metrics":
        """metrics.jsonl, open for this writer."""
        return Metrics(self.path / "metrics.jsonl", check=self.check)

    def clean(self) -> None:
        """Remove what other attempts left half-written; they are dead, or have lost the lease."""
        self.check()
        for temporary in self.path.rglob(".*.tmp"):
            if self.attempt not in temporary.name:
                temporary.unlink(missing_ok=True)

    def lease(self, beat: float = 30.0, stale: float = 90.0) -> "Lease":
        """The right to write, taken by `with`; intervals in seconds."""
        self._lease = Lease(self.path, self.attempt, beat, stale)
        return self._lease

    def check(self) -> None:
        """Raise LeaseLost unless this writer holds the lease."""
        if self._lease is None:
            raise LeaseLost(f"{self.path}: take the lease before writing")
        self._lease.check()


class Metrics:
    """metrics.jsonl: {"step", "split", "metric", "value", "estimator", "seconds", "batches",
    "backwards"} lines, appended. A line that a dying writer tore is cut off on opening."""

    def __init__(self, path: Path, check: Callable[[], None]) -> None:
        self.path, self._check = path, check
        path.touch()
        self._truncate(path.read_bytes().rfind(b"\n") + 1)

    def add(
        self,
        step: int,
        split: str,
        values: Mapping[str, float | None],
        *,
        estimators: Mapping[str, str] | None = None,
        seconds: float,
        batches: int,
        backwards: int,
    ) -> None:
        """One line per metric, in one write; NaN and infinities as null.

        estimators: how a metric was estimated, where its name alone does not say.
        """
        self._check()
        cost = {"seconds": seconds, "batches": batches, "backwards": backwards}
        lines = [
            {
                **{"step": step, "split": split, "metric": metric},
                "value": None if value is None else float(value),
                **{"estimator": (estimators or {}).get(metric), **cost},
            }
            for metric, value in values.items()
        ]
        with _naming(self.path), self.path.open("ab") as file:
            file.write(b"".join(_json(line, indent=None) for line in lines))

    @property
    def offset(self) -> int:
        """Bytes so far, all of them on disk: what a checkpoint keeps."""
        sync(self.path)
        return self.path.stat().st_size

    @property
    def seconds(self) -> float:
        """Of training, when the newest line was written; 0 where none can be read."""
        line = self.path.read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[2]
        try:
            return float(json.loads(line)["seconds"])
        except (ValueError, TypeError, LookupError, RecursionError):
            return 0.0

    def cut(self, offset: int) -> None:
        """Forget what was written behind `offset`. Raises ValueError, and forgets nothing, if
        there is less, or damage before it."""
        content = self.path.read_bytes()
        if len(content) < offset:
            problem = f"has {len(content)} bytes, fewer than the {offset} of before"
            raise ValueError(f"{self.path} {problem}")
        if offset and content[offset - 1 : offset] != b"\n":
            raise ValueError(f"{self.path} has no line that ends at byte {offset}, as before")
        _parse(content[:offset], self.path)
        self._truncate(offset)

    def _truncate(self, size: int) -> None:
        if self.path.stat().st_size > size:
            self._check()
            os.truncate(self.path, size)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a torn last one is ignored. Raises ValueError for another."""
    return _parse(Path(path).read_bytes(), Path(path))


def _parse(content: bytes, path: Path) -> list[dict[str, Any]]:
    whole, _, _ = content.rpartition(b"\n")
    lines = []
    for number, text in enumerate(whole.split(b"\n") if whole else [], 1):
        try:
            line = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is damaged: {error}") from error
        if not isinstance(line, dict):
            raise ValueError(f"{path}, line {number} is damaged: it is no object")
        lines.append(line)
    return lines


def validate(path: str | Path, read: Callable[[Path], object] = read_metrics) -> list[str]:
    """What is wrong with a run directory, in words; nothing, if it can be trusted. read: who reads
    the metrics of many runs hands in a reader of its own, which raises as `read_metrics` does."""
    path = Path(path)
    try:
        record = RunDirectory(path).read()
    except ValueError as error:
        return [str(error)]
    if record is None:
        return [f"{path} holds no run.json"]
    cell = record["cell"]
    place = (cell["dataset"], cell["method"], cell["id"], f"s{cell['seed']}")
    moved = path.absolute().parts[-4:] != place  # a copied folder would count one result twice
    problems = [f"{path} holds the record of {'/'.join(place)}"] if moved else []
    return problems + (_missing(path, read) if record["status"] == "done" else [])


def scan(results_dir: str | Path) -> Iterator[tuple[RunDirectory, dict[str, Any]]]:
    """Every run directory with its record, in order; a damaged one is logged and passed over."""
    for found in sorted(Path(results_dir).glob("*/*/*/s*/run.json")):
        run = RunDirectory(found.parent)
        try:
            record = run.read()
        except (ValueError, OSError) as error:
            log.warning("%s", error)
            continue
        if record is not None:
            yield run, record


def provenance(method_files: Sequence[str | Path] = ()) -> dict[str, Any]:
    """Where a result comes from: code, versions, machine, time, command."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = str(os.getuid())  # containers run under numbers without a name
    return {
        **_git(),
        "fingerprint": fingerprint(method_files),
        "result_version": RESULT_VERSION,
        "versions": {"python": platform.python_version(), **_versions()},
        "host": socket.gethostname(),
        "user": user,
        "platform": platform.platform(),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": sys.argv,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def fingerprint(method_files: Sequence[str | Path] = ()) -> str:
    """SHA-256 over the harness's code and a method's, with that of its parts."""
    harness = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(harness.rglob("*.py")):
        digest.update(f"{file.relative_to(harness).as_posix()}\n".encode() + file.read_bytes())
    for file in method_files:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def _git() -> dict[str, Any]:
    """The checkout's commit and whether files differ from it; nulls for code outside any."""
    base = ["git", "-C", str(Path(__file__).parent.parent)]
    try:
        _, commit, changes = (
            subprocess.run([*base, *words], capture_output=True, text=True, check=True, timeout=20)
            for words in (
                # a copy inside a checkout is not of its commit
                ["ls-files", "--error-unmatch", "--", __file__],
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--", "benchmark", "methods"],
            )
        )
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit.stdout.strip(), "dirty": bool(changes.stdout.strip())}


def _versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "numpy", "scipy", "omegaconf", "hydra-core", "datasets", "pyarrow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)  # asks no package to be imported
    return found


def _problems(record: Any) -> list[str]:
    """Where a record breaks the schema, in words."""
    if not isinstance(record, dict):
        return ["it is no JSON object"]
    if record.get("schema_version") != SCHEMA_VERSION:
        found = record.get("schema_version")
        return [f"its schema_version is {found}, this code reads {SCHEMA_VERSION}"]
    cell, notes = record.get("cell"), record.get("notes")
    words = ("dataset", "method", "variant", "id")
    if (
        not isinstance(cell, dict)
        or not all(isinstance(cell.get(key), str) for key in words)
        or type(cell.get("seed")) is not int
    ):
        return [f"its cell lacks one of {', '.join(words)}, seed"]
    if not all(NAME.fullmatch(cell[key]) for key in ("dataset", "method", "id")):
        return ["its cell's names are no folder's"]
    problems = [f"{key} is missing" for key in FIELDS if key not in record]
    for key in ("summary", "notes", "cost", "provenance"):
        if not isinstance(record.get(key, {}), dict):
            problems.append(f"{key} is no object")
    if problems or not isinstance(notes, dict):
        return problems
    if record["status"] not in STATUSES:
        problems.append(f"status is {record['status']!r}, not one of {', '.join(STATUSES)}")
    for split, summary in record["summary"].items():
        problems += _summary_problems(split, summary, notes)
    if record["status"] in ("done", "stopped"):
        lacking = [split for split in SPLITS if split not in record["summary"]]
        problems += [f"summary has no {split}" for split in lacking]
    return problems


def _summary_problems(split: str, summary: Any, notes: Mapping[str, Any]) -> list[str]:
    if split not in SPLITS or not isinstance(summary, dict):
        return [f"summary/{split} is no summary of {' or '.join(SPLITS)}"]
    problems = []
    for key, value in summary.items():
        name = key.partition("@")[0]
        fits = (
            value in WORDS[name]
            if name in WORDS
            else type(value) in (int, float) and -math.inf < value < math.inf
        )
        if name not in SUMMARY:
            problems.append(f"summary/{split} has an unknown {key}")
        elif value is not None and not fits:
            problems.append(f"{split}/{key} cannot be {value!r}")
    for key in sorted(SUMMARY.keys() - TRUTH | summary.keys()):
        if summary.get(key) is None and not (key in notes or f"{split}/{key}" in notes):
            problems.append(f"{split}/{key} is null and no note says why")
    return problems


def _missing(path: Path, read: Callable[[Path], object] = read_metrics) -> list[str]:
    """What a done cell's directory lacks."""
    problems = [f"{name} is missing" for name in ARTEFACTS if not (path / name).is_file()]
    if (path / "metrics.jsonl").is_file():
        try:
            read(path / "metrics.jsonl")
        except ValueError as error:
            problems.append(str(error))
    return problems


@contextlib.contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Have errors of writing, such as a full disk's, say of which file they are."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(target)
        raise


def _finite(value: Any, where: str = "", notes: dict[str, str] | None = None) -> Any:
    """`value` without NaN and infinities, which JSON does not have; `notes` is told of each."""
    if isinstance(value, Mapping):
        return {key: _finite(item, f"{where}/{key}", notes) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, f"{where}/{i}", notes) for i, item in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        if notes is not None:
            notes[where] = f"the value was {value}"
        return None
    return value


def _json(value: Any, indent: int | None = 2) -> bytes:
    return (json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n").encode()


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")
