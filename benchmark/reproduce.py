"""A paper's table again, ours beside the printed: `python -m benchmark.reproduce NAME [words]`
submits the table's cells as a grid and, when they are done, prints the comparison. Without a NAME
it lists what there is.

Words are those of slurm.submit (cluster=local, seed=0, dataset.path=FOLDER) and win over the
paper's; one that changes the recipe is said to do so. Beside them:
  row=PATTERN        these rows of the table alone, as 'row=beta*'
  --show             submit nothing; print the table of what has been run
  --json             the table as JSON
  --dry-run, --wait  as in slurm.submit
The papers' data are not shipped: where they are missing, it is said where they can be had.
"""

import hashlib
import json
import math
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmark import compose
from benchmark.compose import UserError
from benchmark.data.errors import DataError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from benchmark.grid import Cell
    from slurm.submit import Order

    Plan = list[tuple[Cell, DictConfig]]

FOLDER = compose.CONFIGS / "reproduce"  # of .yml: Hydra offers a folder of .yaml as a group
FLAGS = ("--show", "--json", "--dry-run", "--wait", "--help")
OWN = ("method", "dataset", "budget", "grids")
# by which no recipe is another
PLACES = (
    *("seed=", "dataset.path=", "results_dir=", "data_dir="),
    *("device=", "threads=", "save_every="),
)
ABOUT = 5  # words: some count the signs that are none


@dataclass(frozen=True)
class Files:
    """The authors' data: where they can be had, under which names, and what is known of them.

    sha256 of the files is empty where nobody has seen them. tokens: from and to, of a test text,
    </s> counted.
    """

    where: str
    names: dict[str, str]
    sha256: dict[str, str] = field(default_factory=dict)
    sentences: dict[str, int] = field(default_factory=dict)
    vocabulary: int | None = None
    tokens: tuple[float, float] | None = None


@dataclass(frozen=True)
class Reproduction:
    """One file of configs/reproduce: a paper's table on one data set.

    tables: `paper` and `table` as in published.csv, and how many `runs` are behind a figure, where
    that is known. rows: of a printed model the words that give it, behind `words`, which are all
    rows'. notes: what of a row's recipe is not known. not_ours: why a printed model has no row.
    metrics: to be shown of models of which nothing was printed.
    """

    name: str
    title: str
    tables: list[dict[str, Any]]
    dataset: str
    words: str
    rows: dict[str, str]
    notes: dict[str, str]
    not_ours: dict[str, str]
    files: Files
    metrics: list[str] = field(default_factory=list)

    def grids(self, *words: str) -> dict[str, list[str]]:
        """The words of slurm.submit, by row."""
        return {
            model: [*self.words.split(), *own.split(), *words] for model, own in self.rows.items()
        }


@dataclass(frozen=True)
class Data:
    """A prepared data set, and in which sizes it is not the authors'."""

    hash: str
    sizes: str
    differs: list[str]
    known: bool
    """Whether there is anything to know the authors' by."""
    by: str = "these sizes"


@dataclass(frozen=True)
class Line:
    """A printed figure and ours."""

    model: str
    metric: str
    paper: str
    published: float | None
    digits: int
    """Behind the point, as printed."""
    mean: float
    sd: float
    done: int
    cells: int
    low: float
    high: float
    verdict: str
    """inside or outside the prediction interval, or that there is none to call."""
    why: str
    note: str


def names() -> list[str]:
    """What can be reproduced."""
    return sorted(path.stem for path in FOLDER.glob("*.yml"))


def load(name: str) -> Reproduction:
    """One of them. Raises UserError."""
    if name not in names():
        raise UserError(f"there is no reproduction {name!r}; {compose.nearest(name, names())}.")
    found = yaml.safe_load((FOLDER / f"{name}.yml").read_text("utf-8"))
    return Reproduction(name=name, **{**found, "files": Files(**found["files"])})


# The cells ---------------------------------------------------------------------------------------


def chosen(this: Reproduction, patterns: Sequence[str]) -> Reproduction:
    """With the rows alone that fit one of the patterns. Raises UserError."""
    for pattern in patterns:
        if not any(fnmatchcase(model, pattern) for model in this.rows):
            raise UserError(f"no row is named {pattern}; {compose.nearest(pattern, this.rows)}.")
    fit = [m for m in this.rows if not patterns or any(fnmatchcase(m, p) for p in patterns)]
    return replace(this, rows={model: this.rows[model] for model in fit})


def plans(this: Reproduction, words: Sequence[str]) -> dict[str, "Plan"]:
    """The cells by row. Raises UserError."""
    from slurm.submit import plan

    return {model: plan(grid) for model, grid in this.grids(*words).items()}


def changes(this: Reproduction, words: Sequence[str], planned: Mapping[str, "Plan"]) -> str:
    """The words by which the cells are not the paper's recipe; empty where they are."""
    own = [word for word in words if not word.startswith(PLACES)]
    if not own:
        return ""
    theirs = {cell.id for plan in plans(this, ["seed=0"]).values() for cell, _ in plan}
    ours = {cell.id for plan in planned.values() for cell, _ in plan}
    return "" if ours == theirs else " ".join(own)


# The data ----------------------------------------------------------------------------------------


def absent(this: Reproduction, config: "DictConfig") -> str:
    """What to do about the authors' files where they are not; empty where they are."""
    path = config.dataset.path
    if path is None or all((Path(path) / name).is_file() for name in this.files.names):
        return ""
    moves = ", ".join(f"{theirs} as {ours}" for ours, theirs in this.files.names.items())
    return (
        f"{path} does not hold the data of {this.name}: put {moves} there, "
        f"from {this.files.where}; or name another folder by dataset.path=FOLDER."
    )


def seen(this: Reproduction, path: str | None) -> list[str]:
    """What the files are known by, or else their hashes, in lines."""
    if path is None:
        return []
    found = digests(this.files, path)
    if found == this.files.sha256:
        return [f"files: the paper's, by their SHA-256 ({path})"]
    said = "their SHA-256 is not on record, and sizes must do"
    if this.files.sha256:
        said = "not the paper's, by their SHA-256"
    return [f"files: {said} ({path})", *(f"  {h}  {name}" for name, h in found.items())]


def digests(files: Files, path: str) -> dict[str, str]:
    """The SHA-256 of each of the files."""
    found = {}
    for name in files.names:
        with (Path(path) / name).open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def measure(files: Files, folder: Path, path: str | None = None) -> Data:
    """What a prepared folder holds, beside what the authors' files do.

    path: of the files that it was made of, where they are at hand; if the SHA-256 of the authors'
    is on record, it decides whether they are these.
    """
    from benchmark.data import vocabulary
    from benchmark.data.prepare import read_about
    from benchmark.data.sources import SPLITS

    about = read_about(folder)
    counts = {split: about["splits"][split]["sentences"] for split in SPLITS}
    words = len(vocabulary.read(folder / "vocabulary.txt")) - len(vocabulary.SPECIALS)
    tokens = about["splits"]["test"]["words"] / counts["test"] + 1
    theirs = digests(files, path) if files.sha256 and path is not None else {}
    others = [name for name, digest in theirs.items() if digest != files.sha256[name]]
    differs = [f"{', '.join(others)} by SHA-256"] if others else []
    differs += [
        f"{counts[split]:,} sentences in {split}, not {wanted:,}"
        for split, wanted in files.sentences.items()
        if counts[split] != wanted
    ]
    if files.vocabulary is not None and abs(words - files.vocabulary) > ABOUT:
        differs.append(f"{words:,} words, not {files.vocabulary:,}")
    if files.tokens is not None and not files.tokens[0] <= tokens <= files.tokens[1]:
        differs.append(
            f"{tokens:.2f} tokens a test text, not {files.tokens[0]:g} to {files.tokens[1]:g}"
        )
    sizes = "/".join(f"{counts[split]:,}" for split in SPLITS)
    by = "the files' SHA-256" if theirs else "these sizes"
    if files.sha256 and not theirs:
        by += " alone: the files that gave them are not here for their SHA-256"
    return Data(
        about["hash"],
        f"{sizes} sentences, {words:,} words, {tokens:.2f} tokens a test text",
        differs,
        bool(files.sentences or theirs),
        by,
    )


def prepared(this: Reproduction, config: "DictConfig", hashes: Collection[str]) -> Data | None:
    """The data that runs were made with, where they still lie prepared, or can be of files whose
    SHA-256 is on record."""
    from benchmark.data.prepare import prepare, read_about

    path, own = config.dataset.path, None
    if hashes and this.files.sha256 and path is not None and not absent(this, config):
        with suppress(DataError, OSError):  # the folder that says whether the files are the runs'
            own = prepare(config.dataset, Path(config.data_dir))
    folders = Path(config.data_dir).glob(f"{config.dataset.name}-*")
    for folder in sorted(folders, key=lambda folder: (folder != own, folder)):
        try:
            if read_about(folder)["hash"] in hashes:
                return measure(this.files, folder, path if folder == own else None)
        except (DataError, OSError, LookupError, ValueError):
            continue
    return None


def recognised(data: Data | None) -> str:
    """Whether the data are the authors', in a line."""
    if data is None:
        return "data: what the runs were made with is not here to be measured"
    if not data.known:
        said = "nothing is known to tell the paper's by"
    elif data.differs:
        said = f"not the paper's: {'; '.join(data.differs)}"
    else:
        said = f"the paper's, by {data.by}"
    return f"data: {data.hash} ({data.sizes}), {said}"


# The comparison ----------------------------------------------------------------------------------


def compare(
    this: Reproduction, planned: Mapping[str, "Plan"], changed: str
) -> tuple[list[Line], Data | None]:
    """Every printed figure of the rows beside ours, and the data that ours are of."""
    from leaderboard.load import KEY, load_cells, load_curves, stale
    from leaderboard.published import ours

    config = next(iter(planned.values()))[0][1]
    cells = load_cells([config.results_dir])
    cells = cells.loc[cells["status"] == "done"]
    runs = {tuple(run[name] for name in KEY): run for run in cells.to_dict("records")}
    done = {
        model: [run for cell, _ in plan if (run := runs.get(_key(cell)))]
        for model, plan in planned.items()
    }
    ids = {run["id"] for found in done.values() for run in found}
    curves = load_curves(cells.loc[cells["id"].isin([*ids])])
    trail: dict[tuple[str, str], set[str]] = {}
    for each in curves.loc[curves["split"] == "test"].dropna().to_dict("records"):
        trail.setdefault((each["id"], each["metric"]), set()).add(each["estimator"])
    hashes = {run["provenance/data_hash"] for found in done.values() for run in found}
    data = prepared(this, config, hashes)
    lines = []
    for row, digits, behind in printed(this, planned):
        plan, metric = planned[row["model"]], ours(row)
        values = [run[f"test/{metric}"] for run in done[row["model"]]]
        how = trail.get((plan[0][0].id, metric), set())
        why = _why_not(row, plan[0][1], hashes, data, how, changed, stale(done[row["model"]]))
        line = _line(row, digits, values, len(plan), behind, why)
        lines.append(replace(line, note=this.notes.get(row["model"], "")))
    return lines, data


def printed(this: Reproduction, models: Iterable[str]) -> Iterator[tuple[dict[str, Any], int, int]]:
    """The figures of published.csv that are of these models, each with its digits behind the point
    and the number of runs behind it; the metrics to be shown where nothing was printed."""
    from leaderboard import published

    rows: list[dict[str, Any]] = published.load().to_dict("records")  # pyright: ignore
    for table in this.tables:
        place = (table["paper"], table["table"], this.dataset)
        here = [row for row in rows if (row["paper"], row["table"], row["dataset"]) == place]
        digits: dict[str, int] = {}
        for row in here:
            if row["model"] not in this.not_ours:  # what was quoted may have more
                said = len(f"{row['value']:.10g}".partition(".")[2])
                digits[row["metric"]] = max(said, digits.get(row["metric"], 0))
        for row in here:
            if row["model"] in models:
                yield row, digits[row["metric"]], table.get("runs", 1)
    if not this.tables:
        for model in models:
            yield from (({"model": model, "metric": metric}, 0, 1) for metric in this.metrics)


def _key(cell: "Cell") -> tuple[Any, ...]:
    return cell.dataset, cell.method, cell.id, cell.seed


def _why_not(
    row: Mapping[str, Any],
    config: "DictConfig",
    hashes: set[str],
    data: Data | None,
    estimators: set[str],
    changed: str,
    older: bool = False,
) -> str:
    """Why a printed figure and ours may not be compared; empty where they may."""
    from leaderboard.published import comparable

    if "value" not in row:
        return "no figure of it is on record"
    if changed:
        return f"not the paper's recipe: {changed}"
    if older:
        return "made by another version of this code: run them again by only=stale"
    if len(hashes) > 1:
        return "the runs are of several data sets of one name"
    of_data = next(iter(hashes), None)
    if data is not None and data.known:
        if data.differs:
            return f"not the paper's data: {'; '.join(data.differs)}"
        row = {**row, "hash": row["hash"] or of_data}  # else nothing says what the files give
    return comparable(
        row,
        data_hash=of_data,
        sizes=config.model,
        estimator=next(iter(estimators)) if len(estimators) == 1 else None,
    )[1]


def _line(
    row: Mapping[str, Any], digits: int, values: list[float], cells: int, runs: int, why: str
) -> Line:
    import numpy as np

    from leaderboard.inference import prediction_interval

    mean, half = prediction_interval(values, runs)
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    verdict, theirs = "not comparable", row.get("value")
    if not values:
        verdict, why = "not run", ""
    elif not why and math.isnan(half):
        verdict, why = "too few runs", "an interval needs three runs with a figure"
    elif not why:
        assert theirs is not None
        # what was printed is known to half of its last digit
        inside = abs(theirs - mean) <= half + 0.5 * 10**-digits + 1e-9
        verdict = "inside" if inside else "outside"
    paper = f"{row['paper']}, Table {row['table']}" if theirs is not None else ""
    return Line(
        *(row["model"], row["metric"], paper, theirs, digits),
        *(mean, sd, len(values), cells),
        *(mean - half, mean + half, verdict, why, ""),
    )


# Telling -----------------------------------------------------------------------------------------


def listing() -> str:
    """What can be reproduced, a line each."""
    width = max(map(len, names()))
    lines = [f"{name:<{width}}  {load(name).title}" for name in names()]
    return "\n".join([*lines, "", "python -m benchmark.reproduce NAME [words]; --help tells more"])


def show(this: Reproduction, lines: Sequence[Line], data: Data | None) -> None:
    """Print the table; what a verdict rests on stands below it, by number."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table, said = Table(box=box.SIMPLE_HEAD, pad_edge=False), dict[str, int]()
    heads = ("model", "metric", "published", "ours", "sd", "runs", "95 % prediction", "verdict")
    for head in heads:
        table.add_column(
            head, justify="left" if head in ("model", "metric", "verdict") else "right"
        )
    papers = list(dict.fromkeys(line.paper for line in lines))
    for paper in papers:
        if len(papers) > 1:
            table.add_row(Text(paper, style="bold"))
        for line in lines:
            if line.paper != paper:
                continue
            marks = [said.setdefault(text, len(said) + 1) for text in (line.why, line.note) if text]
            verdict = " ".join([line.verdict, *(f"[{mark}]" for mark in marks)])
            cells = (
                *(line.model, line.metric),
                "-" if line.published is None else f"{line.published:.{line.digits}f}",
                *(_number(line.mean), _number(line.sd), f"{line.done} of {line.cells}"),
                "-" if math.isnan(line.low) else f"{_number(line.low)} to {_number(line.high)}",
                verdict,
            )
            table.add_row(*map(Text, cells))
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(Text(this.title, style="bold"))
    if any(line.done for line in lines):
        console.print(Text(recognised(data)))
    console.print(table)
    for text, mark in said.items():
        console.print(Text(f"[{mark}] {text}"))
    for model, why in this.not_ours.items():
        console.print(Text(f"{model}: not ours, {why}"))


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{round(value, 2) + 0.0:.2f}"  # no -0.00


def as_json(this: Reproduction, lines: Sequence[Line], data: Data | None, changed: str) -> str:
    """The table in JSON's types."""
    rows = [{key: _finite(value) for key, value in asdict(line).items()} for line in lines]
    about = None if data is None else asdict(data)
    head = {"name": this.name, "title": this.title}
    told = {**head, "data": about, "changed": changed, "rows": rows, "not_ours": this.not_ours}
    return json.dumps(told, indent=1)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# The command -------------------------------------------------------------------------------------


def submit(this: Reproduction, asked: "Order", config: "DictConfig") -> int:
    """Submit the rows' grids as one, where the data are there; returns the exit status. Raises
    UserError and DataError."""
    from benchmark.data.prepare import prepare
    from slurm.submit import submit

    missing = absent(this, config)
    if not asked.dry_run:
        if missing:
            raise UserError(missing)
        folder = prepare(config.dataset, compose.writable("data_dir", config.data_dir))
        path = config.dataset.path
        for line in [*seen(this, path), recognised(measure(this.files, folder, path))]:
            _say(line)
    elif missing:
        sys.stderr.write(compose.sentence(missing) + "\n")
    (words,) = asked.grids
    return submit(replace(asked, grids=[*this.grids(*words).values()]))


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    if {"-h", "--help"} & {*arguments}:
        sys.stdout.write(f"{__doc__}\n")
        return 0
    from slurm.submit import waited

    return waited(lambda: _answer(arguments))


def _answer(arguments: Sequence[str]) -> int:
    flags = {word for word in arguments if word.startswith("-")}
    if unknown := flags - {*FLAGS}:
        raise UserError(f"there is no flag {min(unknown)}; Choices: {', '.join(FLAGS)}.")
    named = [word for word in arguments if "=" not in word and word not in flags]
    if not named:
        _say(listing())
        return 0
    if len(named) > 1:
        raise UserError(f"one table at a time, not {' and '.join(named)}.")
    words = [word for word in arguments if "=" in word]
    patterns = [word.removeprefix("row=") for word in words if word.startswith("row=")]
    this = chosen(load(named[0]), patterns)

    from slurm.submit import order

    rest = [word for word in words if not word.startswith("row=")]
    for word in rest:
        if word.partition("=")[0] in OWN:
            raise UserError(
                f"{word} is for the table to say; leave it out, or choose rows by row=."
            )
    asked = order([*rest, *sorted(flags & {"--dry-run", "--wait"})])
    (own,) = asked.grids
    planned, status = plans(this, own), 0
    if "--show" not in flags:
        with redirect_stdout(sys.stderr if "--json" in flags else sys.stdout):
            status = submit(this, asked, next(iter(planned.values()))[0][1])
        if asked.dry_run:
            return status
    changed = changes(this, own, planned)
    lines, data = compare(this, planned, changed)
    if "--json" in flags:
        _say(as_json(this, lines, data, changed))
    elif "--show" in flags or any(line.done for line in lines):
        show(this, lines, data)
    if "--show" not in flags and any(line.done < line.cells for line in lines):
        sys.stderr.write("not all are done; the same command with --show prints the table later\n")
    return status


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
