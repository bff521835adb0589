"""How a split is cut into batches, and in which order an epoch takes them."""

from functools import lru_cache

import numpy as np

from benchmark.config import Batching

_ORDER = 7_351  # keeps this stream apart from others that are seeded with (seed, epoch)


def cut(lengths: np.ndarray, size: int, batching: Batching, seed: int = 0) -> list[np.ndarray]:
    """Index arrays of at most `size` sentences; every sentence is in exactly one.

    Cut once per run, as He et al. 2019 do: an epoch permutes only the batches' order. `exact`: all
    of a batch have one length, so that nothing is padded. `bucketed`: sorted by length, then cut.
    lengths: [N].
    """
    shuffled = np.random.default_rng(seed).permutation(len(lengths))
    by_length = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    if batching is Batching.bucketed:
        groups = [by_length]
    else:
        groups = np.split(by_length, np.flatnonzero(np.diff(lengths[by_length])) + 1)
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


@lru_cache(maxsize=2)  # a step asks for its own batch and for the next one
def order(n_batches: int, seed: int, epoch: int) -> np.ndarray:
    """[n_batches], the permutation of the batches in this epoch: a function of nothing else, so
    that a resumed run takes up the same order."""
    return np.random.default_rng([_ORDER, seed, epoch]).permutation(n_batches)
