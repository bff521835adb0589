"""What may be published of runs: numbers and how they came about, but nothing of the machine, its
user or its folders, and no text that is not free. Imports no torch."""

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from benchmark.record import FIELDS, RESULT_VERSION, RunDirectory, validate
from leaderboard import beside
from leaderboard.load import DAMAGED, DUPLICATE, find_runs

FINISHED = ("done", "diverged", "failed")
NUMBERS = ("metrics.jsonl", "units.npz", "sentences.npz")
"""The files that hold numbers alone, and are published as they are."""

PROVENANCE = (
    *("commit", "dirty", "fingerprint", "earlier_fingerprints", "submitted", "result_version"),
    *("versions", "platform", "started_at", "argv", "data_hash", "device", "steps", "slots"),
)
"""What may be said of where a result comes from; what is not listed, now or later, may not."""

PLACES = ("results_dir", "data_dir", "dataset.path")
"""The options that name folders."""

FREE = frozenset(
    {
        *("CC0-1.0", "PDDL-1.0", "ODC-By-1.0", "ODbL-1.0", "public domain"),
        *("CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0"),
        *("MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause"),
    }
)
"""Licences, as SPDX writes them, under which anybody may pass text on. Those that ask for no
commercial use or no derivatives are not among them."""

# A path begins in a root, a home or a folder relative to this one; `</s>`, `p(x)/q(x)` and
# `nats/token` do not. In a sentence one with blanks can be told only by its quotes.
_START = r"(?: ~[\w.-]* | \.{0,2} ) /+"
_VALUE = re.compile(rf"{_START} [^/] .*", re.VERBOSE | re.DOTALL)
_PATH = re.compile(
    rf"""
    (?P<address> \b (?!file:) [a-z][a-z0-9+.-]* :// \S+ )
    | (?P<quote> ['"] ) (?P<quoted> {_START} [^'"]+ ) (?P=quote)
    | (?<! [\w/.~<)\]%] ) (?P<bare> {_START} [^\s'"`,;:()\[\]{{}}<>|/]
      [^\s'"`,;:()\[\]{{}}<>|]* )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_HOMES = {PurePosixPath("/home"), PurePosixPath("/Users")}
_SYSTEM = re.compile(r"Linux|macOS|Windows|x86_64|aarch64|arm64|glibc[\d.]*\d")


def strip(record: Mapping[str, Any], places: Iterable[str] = ()) -> dict[str, Any]:
    """A run's record without machine, user and folders. Its reason, notes and variant name files
    without their folders; of its command the words remain that say what was run.

    places: folders that its texts may name, for those with blanks in their names.
    """
    about = record["provenance"]

    def clean(text: str | None) -> str | None:
        return text and _clean(text, about, places)

    public = {key: record[key] for key in ("schema_version", "cell", *FIELDS)}
    public["cell"] = _without_paths(record["cell"])
    public["reason"] = clean(record["reason"])
    public["notes"] = {key: clean(note) for key, note in record["notes"].items()}
    public["provenance"] = {key: about[key] for key in PROVENANCE if key in about}
    if "argv" in about:
        public["provenance"]["argv"] = _words(about["argv"])
    if "words" in (submitted := about.get("submitted", {})):
        _, *words = _words(["", *submitted["words"]])
        public["provenance"]["submitted"] = submitted | {"words": words}
    if "platform" in about:
        public["provenance"]["platform"] = " ".join(_SYSTEM.findall(about["platform"]))
    return public


def config(given: str | Mapping[str, Any]) -> dict[str, Any]:
    """A cell's configuration, from config.yaml's text or in plain types, without PLACES; of any
    other path the file's name."""
    plain = _plain(given)
    for option in PLACES:
        *groups, key = option.split(".")
        reduce(lambda node, group: node.get(group) or {}, groups, plain).pop(key, None)
    return _without_paths(plain)


def may_show_samples(given: str | Mapping[str, Any]) -> bool:
    """Whether sentences of a cell's data, and its model's imitations of them, may be published:
    if a generator made them, or if dataset.licence is one of FREE. A licence that is not stated
    allows nothing, and neither does one that is not listed."""
    dataset = _plain(given).get("dataset")
    if not isinstance(dataset, dict):
        return False
    if dataset.get("generator") is not None:
        return True
    licence = dataset.get("licence")
    return isinstance(licence, str) and licence in FREE


def publish(cells: pd.DataFrame, out: str | Path) -> list[Path]:
    """Lay what may be shown of runs, a row of `load_cells` each, into out/DATASET/METHOD/ID/sSEED;
    returns the folders that are new or changed.

    The same record gives the same bytes, and one that is there already stays. Neither weights nor
    logs are copied; samples.jsonl, which a done run must have, is empty where its text is not free.
    Of diagnosis.json and generation.json go the numbers, never a text (see `beside`). A run that
    has not finished is laid down as queued, so that readers see what is to come; and what was laid
    down so, but is no longer to come, is taken away, of the data sets that there are runs of.
    """
    changed = _withdraw(cells, Path(out))
    for cell in cells.to_dict("records"):
        if cell["status"] in (DAMAGED, DUPLICATE):
            continue
        run = Path(cell["path"])
        target = Path(out).joinpath(*run.absolute().parts[-4:])
        if cell["status"] in FINISHED:
            files = _public_files(run)
        elif not target.exists():
            files = _announcement(run)
        else:
            continue  # it is announced, or was finished once
        if all(_holds(target / name, content) for name, content in files.items()):
            continue
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name, content in files.items():  # run.json last: without it nothing counts
            (target / name).write_bytes(content)
        changed.append(target)
    return changed


def _withdraw(cells: pd.DataFrame, out: Path) -> list[Path]:
    """Announcements that nothing stands behind any more."""
    known = {Path(path).absolute().parts[-4:] for path in cells["path"]}
    here = {dataset for dataset, *_ in known}
    gone = [
        run
        for run in find_runs(out)
        if run.absolute().parts[-4] in here
        and run.absolute().parts[-4:] not in known
        and _is_announced(run)
    ]
    for run in gone:
        shutil.rmtree(run)
    return gone


def _is_announced(run: Path) -> bool:
    try:
        record = RunDirectory(run).read()
    except (OSError, ValueError):
        return False  # damaged, which the reader is to hear
    return record is not None and record["status"] == "queued"


def restore(published: str | Path, results: str | Path) -> list[Path]:
    """Lay published runs into a results folder, so that they count as done there and are not run
    again; returns the new folders. They have no weights.

    What is there already stays. What failed, or was made by an older version, is left to run anew.
    """
    laid = []
    for run in find_runs(published):
        record = None if validate(run) else RunDirectory(run).read()
        target = Path(results).joinpath(*run.absolute().parts[-4:])
        if record is None or record["status"] not in ("done", "diverged") or target.exists():
            continue
        if record["provenance"].get("result_version") != RESULT_VERSION:
            continue
        half = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(run, half)
        half.rename(target)
        laid.append(target)
    return laid


def _announcement(run: Path) -> dict[str, bytes]:
    """The files of a run as if nobody had begun it."""
    record, known = _read(run)
    empty = {"reason": None, "selected_step": None, "summary": {}, "notes": {}, "cost": {}}
    queued = {"status": "queued", **empty, "provenance": {}}
    files = {"config.yaml": OmegaConf.to_yaml(OmegaConf.create(config(known))).encode()}
    return files | {"run.json": _json(strip(record | queued))}


def _read(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's record and its configuration in plain types."""
    record = RunDirectory(run).read()
    assert record is not None, f"{run} was loaded"
    stored = run / "config.yaml"
    return record, _plain(stored.read_text()) if stored.is_file() else {}


def _public_files(run: Path) -> dict[str, bytes]:
    """A run's files by name, as they may be published."""
    record, known = _read(run)
    found = OmegaConf.create(known)
    places = [place for option in PLACES if (place := OmegaConf.select(found, option))]
    files = {"config.yaml": OmegaConf.to_yaml(OmegaConf.create(config(known))).encode()}
    files |= {name: (run / name).read_bytes() for name in NUMBERS if (run / name).is_file()}
    if (samples := run / "samples.jsonl").is_file():
        files[samples.name] = samples.read_bytes() if may_show_samples(known) else b""
    about = record["provenance"]

    def clean(text: str) -> str:
        return _clean(text, about, places)

    beside_it = {
        "diagnosis.json": beside.diagnosis(run, clean),
        "generation.json": beside.generation(run, clean),
    }
    files |= {name: _json(found) for name, found in beside_it.items() if found}
    return files | {"run.json": _json(strip(record, places))}


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _plain(given: str | Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in plain types, to be changed."""
    # not PyYAML's own reader: to it 1e-05 is a word
    plain: Any = OmegaConf.to_container(OmegaConf.create(given))  # type: ignore[arg-type]
    return plain


def _words(argv: Iterable[str]) -> list[str]:
    """A command's words without those that name places."""
    program, *words = argv
    kept = [PurePosixPath(program).name]
    for word in words:
        option, equals, value = word.partition("=")
        if option.lstrip("+~-") not in PLACES and not _VALUE.fullmatch(word):
            kept.append(f"{option}{equals}{_without_paths(value)}")
    return kept


def _clean(text: str, provenance: Mapping[str, Any], places: Iterable[str]) -> str:
    """A sentence without machine, user and folders."""
    return _without_names(_without_folders(_without_places(text, places)), provenance)


def _without_paths(value: Any) -> Any:
    """`value` with the file's name in place of each path that it is or holds."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    return _name(value) if _VALUE.fullmatch(value) else _without_folders(value)


def _without_folders(text: str) -> str:
    """A sentence with the file's name in place of each path."""

    def name(found: re.Match[str]) -> str:
        if found["address"]:
            return found[0]
        quote = found["quote"] or ""
        return f"{quote}{_name(found['quoted'] or found['bare'])}{quote}"

    return _PATH.sub(name, text)


def _name(path: str) -> str:
    """A file's name; a home's is its owner's."""
    return "~" if PurePosixPath(path).parent in _HOMES else PurePosixPath(path).name


def _without_places(text: str, places: Iterable[str]) -> str:
    """A sentence in which files below known folders are named from there on."""
    for place in sorted((place.rstrip("/") for place in places), key=len, reverse=True):
        if "/" in place:  # a plain word may be one of the sentence
            text = text.replace(f"{place}/", "").replace(place, _name(place))
    return text


def _without_names(text: str, provenance: Mapping[str, Any]) -> str:
    """A sentence without the names of machine and user; a short user's is also a word."""
    host, user = provenance.get("host") or "", provenance.get("user") or ""
    names = {host: "HOST", host.partition(".")[0]: "HOST"} | ({user: "USER"} if user[3:] else {})
    for name in sorted(filter(None, names), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", names[name], text)
    return text
