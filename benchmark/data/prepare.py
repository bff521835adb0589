"""A source becomes one folder that training reads: made once, never changed, found by its rules.

train.ids.npy       int32, the words of all sentences one after another
train.offsets.npy   int64 [N + 1], where each sentence begins in it
train.labels.npy    int64 [N], if the source has labels
train.nll.npy       float64 [N], nats, if the truth is known
(valid and test alike)
vocabulary.txt      a word a line, by id
prepared.json       the rules it was made by, its content's hash, its counts
"""

import hashlib
import json
import logging
import shutil
import uuid
from array import array
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from threadpoolctl import threadpool_limits

from benchmark.config import Dataset, Overlong, schema
from benchmark.data import sources, synthetic, vocabulary
from benchmark.data.errors import DataError
from benchmark.data.sources import SPLITS, Rows
from benchmark.data.tokens import SEPARATE, TOKENISERS

log = logging.getLogger(__name__)

# what the content follows from; the name, the path and what training takes are no part of it
CONTENT_KEYS = (
    "hub",
    "hub_config",
    "revision",
    "generator",
    "columns",
    "join",
    "label",
    "splits",
    "sentences",
    "distinct",
    "split_seed",
    "tokens",
    "max_tokens",
    "overlong",
    "vocabulary",
    "min_count",
)
_LAYOUT = 1  # of the folder; raised when older folders must be made again
_CHUNK = 1 << 20  # tokens


def prepare(dataset: Any, data_dir: Path) -> Path:
    """The prepared folder of a data set's configuration, made if it does not exist.

    Two processes may prepare at once: each builds under a name of its own, and the second to be
    ready throws its copy away. A local source that was changed (a file's size or time) is another
    folder.

    Raises DataError, which names in one sentence what is wrong.
    """
    config: Dataset = OmegaConf.merge(schema(Dataset), dataset)  # type: ignore
    data_dir = Path(data_dir)
    rules = content(config)
    key = hashlib.sha256(
        json.dumps(
            [rules, _fingerprint(config), SEPARATE.pattern, _LAYOUT], sort_keys=True
        ).encode()
    ).hexdigest()[:12]
    folder = data_dir / f"{config.name}-{key}"
    if (folder / "prepared.json").exists():
        return folder
    building = data_dir / f".{folder.name}.{uuid.uuid4().hex}"
    building.mkdir(parents=True)
    try:
        about = (
            _generate(config, building) if config.generator else _read(config, data_dir, building)
        )
        about = {"name": config.name, "hash": _hash(building), **about, "rules": rules}
        (building / "prepared.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
        try:
            building.rename(folder)
        except OSError:
            # a folder with content cannot be renamed over: another process was ready first
            if not (folder / "prepared.json").exists():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
        with suppress(OSError):
            data_dir.rmdir()  # what failed leaves no empty folder; one with content stays
    return folder


def content(dataset: Any) -> dict[str, Any]:
    """The plain values of the keys that a data set's content follows from."""
    config = OmegaConf.merge(schema(Dataset), dataset)
    plain = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    return {key: plain[key] for key in CONTENT_KEYS}


def read_about(folder: Path) -> dict[str, Any]:
    """What prepared.json says.

    Raises DataError if the folder was not prepared.
    """
    try:
        return json.loads((folder / "prepared.json").read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{folder} is no prepared data set: run `python -m benchmark.data dataset=NAME`"
        ) from None


def _fingerprint(config: Dataset) -> list[Any]:
    """What a local source's files look like from outside; cheap enough for every start."""
    if config.path is None:
        return []
    path = Path(config.path)
    stats = [(str(f.relative_to(path)), f.stat()) for f in sources.files(path)]
    return [str(path.resolve()), *((name, s.st_size, s.st_mtime_ns) for name, s in stats)]


def _hash(folder: Path) -> str:
    """SHA-256 of vocabulary, ids and offsets."""
    digest = hashlib.sha256((folder / "vocabulary.txt").read_bytes())
    for split in SPLITS:
        for part, kind in (("offsets", "<i8"), ("ids", "<i4")):
            values = np.load(folder / f"{split}.{part}.npy", mmap_mode="r")
            digest.update(f"{split} {part} {len(values)}\n".encode())
            for start in range(0, len(values), _CHUNK):
                digest.update(values[start : start + _CHUNK].astype(kind).tobytes())
    return digest.hexdigest()


# Generated ---------------------------------------------------------------------------------------


def _generate(config: Dataset, folder: Path) -> dict[str, Any]:
    assert config.generator is not None
    truth = synthetic.build(dict(config.generator))
    words = [str(v) for v in range(truth.symbols)]
    vocabulary.write([*vocabulary.SPECIALS, *words], folder / "vocabulary.txt")
    splits, rates = {}, []
    for stream, split in enumerate(SPLITS):
        n = config.sentences.get(split, 0)
        if n < 1:
            raise DataError(
                f"{split} would be empty: set dataset.sentences.{split} to how many to generate"
            )
        ids, labels = truth.sample(n, stream)
        np.save(folder / f"{split}.ids.npy", ids.ravel())
        np.save(folder / f"{split}.offsets.npy", np.arange(n + 1) * truth.length)
        if split in truth.scored:
            # small matrices many times over: more BLAS threads only wait for one another
            with threadpool_limits(1):
                log_px, rate = truth.score(ids)
            np.save(folder / f"{split}.nll.npy", -log_px)
            rates.append(rate)
        if labels is not None:
            np.save(folder / f"{split}.labels.npy", labels.astype(np.int64))
        splits[split] = {"sentences": n, "words": ids.size, "unknown": 0}
    mi, mi_se = truth.mi(np.concatenate(rates))
    return {"splits": splits, "truth": {"mi": mi, "mi_se": mi_se}}


# Read --------------------------------------------------------------------------------------------


@dataclass
class Spool:
    """One split on its way to disk: words under provisional ids, in a file."""

    file: Any
    wanted: int | None  # sentences; None: whatever there is
    lengths: array = field(default_factory=lambda: array("q"))
    labels: array = field(default_factory=lambda: array("q"))

    @property
    def full(self) -> bool:
        return self.wanted is not None and len(self.lengths) >= self.wanted

    def add(self, ids: list[int], label: int) -> None:
        array("i", ids).tofile(self.file)
        self.lengths.append(len(ids))
        self.labels.append(label)


def _read(config: Dataset, data_dir: Path, folder: Path) -> dict[str, Any]:
    """Two passes: text to provisional ids on disk, then those to ids by frequency. What is held in
    memory is every word's type and every sentence's length, never the text."""
    rows, taken_from = sources.open_rows(config, data_dir)
    provisional: defaultdict[str, int] = defaultdict()
    provisional.default_factory = provisional.__len__
    met: set[bytes] = set()
    passed_over: dict[str, int] = defaultdict(int)
    splits: dict[str, Any] = {}
    spools: dict[str, Spool] = {}
    # train comes last: it takes what is left, and a repeated sentence is taken out of it
    for name in dict.fromkeys(taken_from[split] for split in reversed(SPLITS)):
        claimants = [split for split in reversed(SPLITS) if taken_from[split] == name]
        shares = _shares(config, name, len(rows[name]) * rows[name].texts_per_row, claimants)
        order = None
        if len(claimants) > 1 or shares[claimants[0]] is not None:
            order = np.random.default_rng(config.split_seed).permutation(len(rows[name]))
        with ExitStack() as files:
            for split in claimants:
                file = files.enter_context((folder / f"{split}.spool").open("wb"))
                spools[split] = Spool(file, shares[split])
            queue = [spools[split] for split in claimants]
            for tokens, label in _sentences(config, rows[name], order, met, passed_over):
                while queue and queue[0].full:
                    queue.pop(0)
                if not queue:
                    break
                queue[0].add([provisional[token] for token in tokens], label)
    for split in SPLITS:
        if not spools[split].lengths:
            where = f" of {config.path or config.hub}"
            raise DataError(
                f"{split} is empty: split {taken_from[split]!r}{where} gave no sentence"
                + (f" (passed over: {dict(passed_over)})" if passed_over else "")
            )
    for reason, n in passed_over.items():
        log.info("%s: %d sentences passed over, being %s", config.name, n, reason)

    counts = np.zeros(len(provisional), np.int64)
    for some in _stored(folder / "train.spool"):
        counts += np.bincount(some, minlength=len(counts))
    words, ids = vocabulary.choose(list(provisional), counts, config.vocabulary, config.min_count)
    if len(words) == len(vocabulary.SPECIALS):
        raise DataError(
            "the vocabulary is empty: lower dataset.min_count or raise dataset.vocabulary"
        )
    vocabulary.write(words, folder / "vocabulary.txt")
    labelled = any(max(spool.labels) >= 0 for spool in spools.values())
    for split, spool in spools.items():
        splits[split] = _finish(folder, split, spool, ids, labelled)
    return {"splits": {s: splits[s] for s in SPLITS}, "passed_over": passed_over, "truth": None}


def _shares(
    config: Dataset, name: str, available: int, claimants: list[str]
) -> dict[str, int | None]:
    """How many sentences each of the splits that are taken from one split of the source gets.

    Those of `dataset.sentences`; the one of them that names none, train, gets the rest. A source
    that holds fewer than were asked for is shared out in the same proportions.
    """
    wanted = {split: config.sentences.get(split) for split in claimants}
    if len(claimants) == 1:
        only = wanted[claimants[0]]
        return {claimants[0]: only if only is not None and only < available else None}
    for split, n in wanted.items():
        if n is None and split != claimants[-1]:
            raise DataError(
                f"{' and '.join(claimants)} are all taken from split {name!r}: say how many "
                f"sentences {split} gets, by dataset.sentences.{split}"
            )
    total = sum(n or 0 for n in wanted.values())
    if total <= available:
        return wanted
    shares = {split: (n or 0) * available // total for split, n in wanted.items()}
    log.warning(
        "%s: split %r holds %d sentences, not the %d asked for; shared out as %s",
        config.name, name, available, total, shares,
    )  # fmt: skip
    return dict(shares)


def _sentences(
    config: Dataset,
    rows: Rows,
    order: np.ndarray | None,
    met: set[bytes],
    passed_over: dict[str, int],
) -> Iterator[tuple[list[str], int]]:
    """The tokens and label of every sentence that is to be kept."""
    tokenise, most = TOKENISERS[config.tokens], config.max_tokens
    for texts, label in rows.read(order):
        for text in texts:
            tokens = tokenise(text)
            if not tokens:
                passed_over["empty"] += 1
                continue
            if most is not None and len(tokens) > most:
                if config.overlong is Overlong.drop:
                    passed_over["overlong"] += 1
                    continue
                tokens = tokens[:most]
            if config.distinct:
                mark = hashlib.blake2b(" ".join(tokens).encode(), digest_size=8).digest()
                if mark in met:
                    passed_over["met before"] += 1
                    continue
                met.add(mark)
            yield tokens, label


def _stored(spool: Path) -> Iterator[np.ndarray]:
    with spool.open("rb") as file:
        while len(some := np.fromfile(file, np.int32, _CHUNK)):
            yield some


def _finish(
    folder: Path, split: str, spool: Spool, ids: np.ndarray, labelled: bool
) -> dict[str, int]:
    """Writes a split's arrays and deletes its spool; gives its counts."""
    offsets = np.zeros(len(spool.lengths) + 1, np.int64)
    np.cumsum(np.frombuffer(spool.lengths, np.int64), out=offsets[1:])
    np.save(folder / f"{split}.offsets.npy", offsets)
    if labelled:
        np.save(folder / f"{split}.labels.npy", np.frombuffer(spool.labels, np.int64))
    out = np.lib.format.open_memmap(
        folder / f"{split}.ids.npy", mode="w+", dtype=np.int32, shape=(int(offsets[-1]),)
    )
    position = unknown = 0
    for some in _stored(folder / f"{split}.spool"):
        final = ids[some]
        out[position : position + len(some)] = final
        position += len(some)
        unknown += int((final == vocabulary.UNK).sum())
    out.flush()
    (folder / f"{split}.spool").unlink()
    return {"sentences": len(offsets) - 1, "words": position, "unknown": unknown}
