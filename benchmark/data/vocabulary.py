"""Which words a corpus knows, and under which id."""

from pathlib import Path

import numpy as np

# as in benchmark.api, which imports torch
PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")

# Spellings of the unknown word in the papers' files, and text that only looks like a special token:
# none is a word of the vocabulary, so each becomes UNK.
NO_WORDS = (*SPECIALS, "_UNK", "_unk", "<UNK>")


def choose(
    words: list[str], counts: np.ndarray, most: int | None, min_count: int
) -> tuple[list[str], np.ndarray]:
    """The vocabulary, specials first, then by falling count (ties by spelling, so that it does not
    depend on the order of the text); and [len(words)] int32, each word's id in it.

    words: every type met, in the order of their provisional ids; counts: [len(words)], in the
    training split; most: cap, specials not counted.
    """
    barred = set(NO_WORDS)
    known = [i for i, word in enumerate(words) if counts[i] >= min_count and word not in barred]
    known.sort(key=lambda i: (-counts[i], words[i]))
    known = known[:most]
    ids = np.full(len(words), UNK, np.int32)
    ids[known] = np.arange(len(SPECIALS), len(SPECIALS) + len(known), dtype=np.int32)
    return [*SPECIALS, *(words[i] for i in known)], ids


def write(vocabulary: list[str], path: Path) -> None:
    """A word a line; no token holds white space."""
    path.write_text("".join(f"{word}\n" for word in vocabulary), encoding="utf-8", newline="\n")


def read(path: Path) -> list[str]:
    """The words by id."""
    return path.read_text(encoding="utf-8").split("\n")[:-1]
