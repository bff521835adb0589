"""Where text comes from: a local folder of text files, a hub data set, or a copy of one.

Each gives a `Rows` per split: how many rows there are, and any of them in any order, so that a
million can be drawn from without being held.
"""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies
from zipfile import BadZipFile

import numpy as np

from benchmark.config import Dataset
from benchmark.data.errors import DataError

SPLITS = ("train", "valid", "test")
_CHUNK = 1 << 24  # bytes


class Rows(Protocol):
    """The rows of one split of a source; a row holds one or more texts and perhaps a label."""

    texts_per_row: int
    labelled: bool

    def __len__(self) -> int: ...

    def read(self, order: np.ndarray | None) -> Iterator[tuple[list[str], int]]:
        """The rows with these indices, or all as they stand; the label is -1 where there is
        none."""
        ...


def image_file(path: Path) -> Path | None:
    """The one .npz of a folder that holds one."""
    found = sorted(path.glob("*.npz")) if path.is_dir() else []
    return found[0] if len(found) == 1 else None


def is_text_folder(path: Path) -> bool:
    """Whether a folder holds at least one of train.txt, valid.txt, test.txt."""
    return any((path / f"{split}.txt").exists() for split in SPLITS)


def files(path: Path) -> list[Path]:
    """What a change of a local source would show in.

    Raises DataError if the folder is missing or holds no data.
    """
    if not path.is_dir():
        raise DataError(
            f"{path} is no folder: point dataset.path at a folder with train.txt, valid.txt and "
            "test.txt, or at a copy of a hub repository"
        )
    if is_text_folder(path):
        for split in SPLITS:
            if not (path / f"{split}.txt").is_file():
                raise DataError(
                    f"{path} has no {split}.txt: a local folder needs train.txt, valid.txt and "
                    "test.txt, a sentence a line"
                )
        return [path / f"{split}.txt" for split in SPLITS]
    if images := image_file(path):
        return [images]
    kinds = {".parquet", ".json", ".jsonl", ".csv", ".tsv", ".arrow", ".txt", ".md", ".gz", ".zst"}
    found = sorted(f for f in path.rglob("*") if f.suffix in kinds and f.is_file())
    if not any(f.suffix != ".md" for f in found):
        raise DataError(
            f"{path} holds neither train.txt, valid.txt and test.txt nor a hub repository's data "
            "files (parquet, json, csv): put one or the other there, or correct dataset.path"
        )
    return found


def open_rows(dataset: Dataset, data_dir: Path) -> tuple[dict[str, Rows], dict[str, str]]:
    """Rows by the source's split names, and which of them each of train, valid, test is taken from.

    Raises DataError, also if the hub cannot be reached.
    """
    if dataset.path is not None and is_text_folder(Path(dataset.path)):
        folder = Path(dataset.path)
        labelled = _first_line_is_labelled(folder / "train.txt")
        return (
            {split: TextFile(folder / f"{split}.txt", labelled) for split in SPLITS},
            {split: split for split in SPLITS},
        )
    if dataset.path is not None and (images := image_file(Path(dataset.path))):
        return {split: Pixels(images, split) for split in SPLITS}, {s: s for s in SPLITS}
    return _open_hub(dataset, data_dir)


# A local folder ----------------------------------------------------------------------------------


class TextFile:
    """A sentence or document a line, `label<TAB>text` if labelled, as in the authors' files.

    Only a line feed ends a line (one before it that returns the carriage, and a byte order mark,
    are dropped). In a labelled file the first tab ends the label; any other tab is a blank.
    """

    texts_per_row = 1

    def __init__(self, path: Path, labelled: bool) -> None:
        self.path = path
        self.labelled = labelled
        self._offsets = _line_offsets(path)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def read(self, order: np.ndarray | None) -> Iterator[tuple[list[str], int]]:
        with self.path.open("rb") as file:
            if order is None:
                for i, line in enumerate(file):
                    yield self._parse(line, i)
            else:
                for i in map(int, order):
                    file.seek(self._offsets[i])
                    size = int(self._offsets[i + 1] - self._offsets[i])
                    yield self._parse(file.read(size), i)

    def _parse(self, line: bytes, i: int) -> tuple[list[str], int]:
        text = _decode(line, self.path, i)
        if not self.labelled or not text.strip():
            return [text], -1
        label, tab, rest = text.partition("\t")
        if not tab or not _is_integer(label):
            raise DataError(
                f"{self.path} line {i + 1} does not begin with an integer label and a tab, though "
                "the first line of train.txt does: label every line, or none"
            )
        return [rest], int(label)


class Pixels:
    """Images as sentences: x_train, x_valid, x_test of an .npz, [N, H, W] uint8, row by row, each
    pixel the word 1 where there is ink, above half of the range, or 0."""

    texts_per_row = 1
    labelled = False

    def __init__(self, path: Path, split: str) -> None:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                images = arrays[f"x_{split}"]
        except (KeyError, ValueError, OSError, BadZipFile) as error:
            raise DataError(
                f"{path} gives no x_{split} ({error}): images need the arrays x_train, x_valid and "
                "x_test, N x height x width of uint8"
            ) from error
        if images.ndim != 3 or images.dtype != np.uint8:
            raise DataError(
                f"{path}: x_{split} is {images.ndim}-dimensional {images.dtype}: images are "
                "N x height x width of uint8"
            )
        self._ink = (images > 127).reshape(len(images), -1)

    def __len__(self) -> int:
        return len(self._ink)

    def read(self, order: np.ndarray | None) -> Iterator[tuple[list[str], int]]:
        for i in range(len(self)) if order is None else order:
            yield [" ".join("1" if ink else "0" for ink in self._ink[i])], -1


def _decode(line: bytes, path: Path, i: int) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} line {i + 1} is not UTF-8 (byte 0x{line[error.start]:02x} at column "
            f"{error.start + 1}): convert the file, for instance with "
            "`iconv -f latin1 -t utf-8`"
        ) from None
    return text.removeprefix("\ufeff") if i == 0 else text


def _is_integer(text: str) -> bool:
    return text.strip().removeprefix("-").isdecimal()


def _first_line_is_labelled(path: Path) -> bool:
    """Whether the first line that is not empty is `integer<TAB>text`."""
    with path.open("rb") as file:
        for i, line in enumerate(file):
            text = _decode(line, path, i)
            if not text.strip():
                continue
            label, tab, _ = text.partition("\t")
            if tab and not _is_integer(label) and len(label.split()) == 1:
                raise DataError(
                    f"{path} line {i + 1} has {label.strip()!r} before its first tab: a label is "
                    "an integer, and text without labels must not begin with a word and a tab"
                )
            return bool(tab) and _is_integer(label)
    return False


def _line_offsets(path: Path) -> np.ndarray:
    """[lines + 1] int64, where each line begins, and the file's end."""
    found = [np.zeros(1, np.int64)]
    position = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n"))
            found.append(ends + position + 1)
            position += len(chunk)
    offsets = np.concatenate(found)
    return offsets if offsets[-1] == position else np.append(offsets, position)


# The hub -----------------------------------------------------------------------------------------


class HubRows:
    """One split of a data set of the `datasets` library."""

    def __init__(self, table: Any, columns: list[str], join: str | None, label: str | None) -> None:
        self._table = table
        self._columns = columns
        self._join = join
        self._label = label
        self.labelled = label is not None
        self.texts_per_row = 1 if join is not None else len(columns)

    def __len__(self) -> int:
        return len(self._table)

    def read(self, order: np.ndarray | None) -> Iterator[tuple[list[str], int]]:
        table = self._table
        for start in range(0, len(table) if order is None else len(order), 1000):
            some = slice(start, start + 1000) if order is None else order[start : start + 1000]
            rows = table[some]
            labels = rows[self._label] if self._label else [None] * len(rows[self._columns[0]])
            for *texts, label in zip(*(rows[c] for c in self._columns), labels, strict=True):
                texts = [text or "" for text in texts]
                yield (
                    [self._join.join(texts)] if self._join is not None else texts,
                    -1 if label is None else int(label),
                )


def _open_hub(dataset: Dataset, data_dir: Path) -> tuple[dict[str, Rows], dict[str, str]]:
    where = dataset.path or dataset.hub
    if where is None:
        raise DataError(
            f"data set {dataset.name!r} names no source: set dataset.path (a folder), dataset.hub "
            "(a hub id) or dataset.generator"
        )
    tables = _load(dataset, where, data_dir)
    if not dataset.columns:
        names = next(iter(tables.values())).column_names
        raise DataError(f"set dataset.columns to the text columns of {where}; it has {names}")
    for split in SPLITS:
        name = dataset.splits.get(split)
        if name not in tables:
            raise DataError(
                f"dataset.splits.{split} is {name!r}, but {where} has the splits {sorted(tables)}"
            )
    used = {name: tables[name] for name in dataset.splits.values()}
    wanted = [*dataset.columns, *([dataset.label] if dataset.label else [])]
    for table in used.values():
        for column in wanted:
            if column not in table.column_names:
                raise DataError(
                    f"{where} has no column {column!r}; it has {table.column_names}: correct "
                    "dataset.columns or dataset.label"
                )
        for column in dataset.columns:
            kind = getattr(table.features[column], "dtype", None)
            if kind not in {"string", "large_string"}:
                raise DataError(
                    f"column {column!r} of {where} holds {kind}, not text: choose another of "
                    f"{table.column_names} in dataset.columns"
                )
        if dataset.label and not str(
            getattr(table.features[dataset.label], "dtype", None)
        ).startswith(("int", "uint", "bool")):
            raise DataError(
                f"column {dataset.label!r} of {where} holds no integers, as labels must: set "
                "dataset.label to another or to null"
            )
    return (
        {
            name: HubRows(table, list(dataset.columns), dataset.join, dataset.label)
            for name, table in used.items()
        },
        {split: dataset.splits[split] for split in SPLITS},
    )


def _load(dataset: Dataset, where: str, data_dir: Path) -> Any:
    cache = data_dir / "hub"
    # read when `datasets` is imported; without it files would land in the home directory
    os.environ.setdefault("HF_HOME", str(cache.resolve()))
    if dataset.path is None and not _hub_answers():
        # also read at import; spares half a minute of retries, and what is cached can be had
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets
    from datasets.utils import logging

    logging.disable_progress_bar()
    try:
        return datasets.load_dataset(
            str(Path(where).resolve()) if dataset.path is not None else where,
            dataset.hub_config,
            revision=dataset.revision if dataset.path is None else None,
            cache_dir=str(cache),
        )
    # `datasets` raises a different kind for each thing that can be wrong: all mean no data
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if dataset.path is not None:
            raise DataError(f"{where} could not be read as a hub repository: {reason}") from error
        raise DataError(
            f"hub data set {where!r} could not be loaded: {reason}; check the id and the network, "
            "or give a local copy by dataset.path=FOLDER"
        ) from error


def _hub_answers() -> bool:
    """Whether the hub can be reached; taken for granted behind a proxy."""
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    if "https" in getproxies():
        return True
    try:
        socket.create_connection((host.hostname or "", host.port or 443), timeout=5).close()
    except OSError:
        return False
    return True
