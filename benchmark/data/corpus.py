"""A prepared data set, as training and evaluation read it."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from benchmark.api import BOS, EOS, PAD, Batch
from benchmark.data import synthetic, vocabulary
from benchmark.data.errors import DataError
from benchmark.data.prepare import read_about
from benchmark.data.synthetic import Truth


class Split:
    """The sentences of one split, memory-mapped."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._ids = np.load(folder / f"{name}.ids.npy", mmap_mode="r").view(np.ndarray)
        self._offsets = np.load(folder / f"{name}.offsets.npy", mmap_mode="r").view(np.ndarray)
        self.lengths: np.ndarray = np.diff(self._offsets) + 1
        """[N] int64, tokens to predict: `</s>` is counted, `<s>` is not."""
        labels = folder / f"{name}.labels.npy"
        self.labels: np.ndarray | None = np.load(labels) if labels.exists() else None
        """[N] int64, -1 where a sentence has none; None if no sentence has one."""

    def __len__(self) -> int:
        return len(self.lengths)

    def ids(self, i: int) -> np.ndarray:
        """[words] int32, sentence i without special tokens."""
        return self._ids[self._offsets[i] : self._offsets[i + 1]]

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """These sentences, padded to the longest of them, on the CPU."""
        indices = np.asarray(indices)
        lengths = self.lengths[indices]
        positions = np.arange(lengths.max())
        last = lengths[:, None] - 1
        # behind a sentence's end any address will do: what is read there is masked
        where = np.minimum(self._offsets[indices][:, None] + positions, len(self._ids) - 1)
        targets = np.where(positions < last, self._ids[where], PAD).astype(np.int64)
        source = np.pad(targets, ((0, 0), (1, 0)), constant_values=BOS)
        inputs = source[:, :-1].copy()
        np.put_along_axis(targets, last, EOS, axis=1)
        source[:, 1:] = targets
        return Batch(
            targets=torch.from_numpy(targets),
            inputs=torch.from_numpy(inputs),
            source=torch.from_numpy(source),
            target_lengths=torch.from_numpy(lengths),
            source_lengths=torch.from_numpy(lengths + 1),
        )


class Corpus:
    """A prepared folder: three splits, their vocabulary and, of generated data, the truth.

    Raises DataError if the folder was not prepared.
    """

    def __init__(self, folder: Path) -> None:
        about = read_about(folder)
        self.folder = folder
        self.name: str = about["name"]
        self.hash: str = about["hash"]
        """SHA-256 of ids and vocabulary: equal wherever and whenever the data was prepared."""
        self.about: dict = about
        self.vocabulary: list[str] = vocabulary.read(folder / "vocabulary.txt")
        self.train, self.valid, self.test = (Split(folder, s) for s in ("train", "valid", "test"))

    @cached_property
    def truth(self) -> Truth | None:
        """The generator, where the data has one."""
        generator = self.about["rules"].get("generator")
        return synthetic.build(generator) if generator else None

    @property
    def truth_mi(self) -> float | None:
        """I(x; z) of the generator, in nats."""
        truth = self.about["truth"]
        return truth["mi"] if truth else None

    def exact_nll(self, split: str) -> np.ndarray | None:
        """[N] float64, -log p(x) under the generator, in nats per sentence; `</s>` costs nothing,
        all sentences being of one length. None where the truth is unknown or was too dear."""
        path = self.folder / f"{split}.nll.npy"
        return np.load(path) if path.exists() else None


def load(folder: Path) -> Corpus:
    """What `prepare` left in this folder. Raises DataError."""
    try:
        return Corpus(Path(folder))
    except DataError:
        raise
    except (OSError, ValueError, LookupError, EOFError) as error:
        why = f"{folder} is damaged ({error}): remove it, and the next run prepares it anew"
        raise DataError(why) from error
