"""Sentences from generators whose log p(x), posterior and I(x; z) are known.

All sentences of a generator have one length T and end with probability 1, so `</s>` costs nothing.
Every generator is a mixture over G points of its latent, a real one's being the nodes of a
quadrature; N sentences [N, T] are ids of a corpus, that is symbol v is `len(SPECIALS) + v`.
Everything is numpy float64 and nats. Parameters and sentences are functions of the generator's own
seed.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from benchmark.data.errors import DataError
from benchmark.data.vocabulary import SPECIALS

FIRST = len(SPECIALS)
_CHUNK = 256  # sentences scored at once; with 6,561 nodes 13 MB an array
_MI_STREAM = 1_000  # those of the splits are 0, 1, 2


@dataclass(frozen=True)
class Posterior:
    """p(z|x) of N sentences.

    points: [G, D] values of the latent; weights: [N, G], they sum to 1 over G.
    """

    points: np.ndarray
    weights: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """[N, D]."""
        return self.weights @ self.points


class Truth(ABC):
    """A generator p(z) p(x|z)."""

    length: int
    """T, words in every sentence."""
    symbols: int
    """V, words in the vocabulary without specials."""
    seed: int

    points: np.ndarray
    """[G, D], the values of the latent that p(x) is summed over."""
    log_prior: np.ndarray
    """[G], log of their weights, which sum to 1 (of nodes: up to the quadrature's error)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    @abstractmethod
    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
        """[n, T] symbols from 0 on, and [n] labels: the latent where it is discrete."""

    @abstractmethod
    def log_px_given(self, symbols: np.ndarray) -> np.ndarray:
        """[N, G], log p(x|z) of symbols [N, T] at every point."""

    def sample(self, n: int, stream: int) -> tuple[np.ndarray, np.ndarray | None]:
        """[n, T] int32 ids and [n] labels or None; different streams are independent."""
        symbols, labels = self.draw(n, np.random.default_rng([self.seed, 1, stream]))
        return (symbols + FIRST).astype(np.int32), labels

    def log_px(self, ids: np.ndarray) -> np.ndarray:
        """[N], log p(x) of ids [N, T]; -inf where a special token stands among the words.

        Raises ValueError if the sentences are not T words long.
        """
        if ids.ndim != 2 or ids.shape[1] != self.length:
            raise ValueError(f"ids are [N, {self.length}] here, not {list(ids.shape)}")
        possible = ((ids >= FIRST) & (ids < FIRST + self.symbols)).all(axis=1)
        result = np.full(len(ids), -np.inf)
        result[possible] = self._log_px(ids[possible] - FIRST)
        return result

    def posterior(self, ids: np.ndarray) -> Posterior:
        """p(z|x) of ids [N, T], words only."""
        joint = self.log_px_given(ids - FIRST) + self.log_prior
        return Posterior(self.points, np.exp(joint - _logsumexp(joint)[:, None]))

    @cached_property
    def mi(self) -> tuple[float, float]:
        """I(x; z) and its standard error: the mean of KL(p(z|x) || p(z)) over 4,000 fresh
        sentences, the KL itself exact."""
        ids, _ = self.sample(4_000, stream=_MI_STREAM)
        rates = np.concatenate([self._rate(some) for some in _chunks(ids - FIRST)])
        return float(rates.mean()), float(rates.std(ddof=1) / np.sqrt(len(rates)))

    def _log_px(self, symbols: np.ndarray) -> np.ndarray:
        if not len(symbols):
            return np.zeros(0)
        return np.concatenate(
            [_logsumexp(self.log_px_given(s) + self.log_prior) for s in _chunks(symbols)]
        )

    def _rate(self, symbols: np.ndarray) -> np.ndarray:
        """[N], KL(p(z|x) || p(z))."""
        given = self.log_px_given(symbols)
        log_px = _logsumexp(given + self.log_prior)[:, None]
        return (np.exp(given + self.log_prior - log_px) * (given - log_px)).sum(axis=1)


class Tables(Truth):
    """One of K bigram tables writes the sentence: k ~ U{1..K}, x_t ~ softmax(A^k[x_{t-1}]),
    A ~ N(0, scale^2). log p(x) = logsumexp_k sum_t log P^k - ln K. Labels: k."""

    def __init__(self, tables: int, words: int, length: int, scale: float, seed: int) -> None:
        super().__init__(seed)
        self.length, self.symbols = length, words
        rng = np.random.default_rng([seed, 0])
        # the last row is what follows <s>
        self.log_p = _log_softmax(rng.normal(0, scale, (tables, words + 1, words)))
        self.points = np.arange(tables)[:, None]
        self.log_prior = np.full(tables, -np.log(tables))

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
        k = rng.integers(len(self.points), size=n)
        return _walk(self.log_p[k], self.length, rng), k

    def log_px_given(self, symbols: np.ndarray) -> np.ndarray:
        return self.log_p[:, _before(symbols, self.symbols), symbols].sum(axis=2).T


class Markov(Tables):
    """A single table, hence no latent: x_t ~ softmax(A[x_{t-1}]), A ~ N(0, scale^2)."""

    def __init__(self, words: int, length: int, scale: float, seed: int) -> None:
        super().__init__(tables=1, words=words, length=length, scale=scale, seed=seed)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
        return super().draw(n, rng)[0], None


class Plane(Truth):
    """A latent that shifts every word's odds: z ~ N(0, I_2), x_t ~ softmax(A[x_{t-1}] + g_t W z),
    A ~ N(0, scale^2), W ~ N(0, 1), mask g_t in {0, 1}. p(x) by the trapezoid rule, which converges
    exponentially on a density this smooth."""

    def __init__(
        self,
        words: int,
        length: int,
        scale: float,
        seed: int,
        mask: list[int] | None = None,
        step: float = 0.15,
        reach: float = 6.0,
    ) -> None:
        super().__init__(seed)
        self.length, self.symbols = length, words
        rng = np.random.default_rng([seed, 0])
        self.a = rng.normal(0, scale, (words + 1, words))
        self.w = rng.normal(0, 1, (words, 2))
        self.mask = np.ones(length, bool) if mask is None else np.array(mask, bool)
        if self.mask.shape != (length,):
            raise DataError(f"generator.mask has {len(self.mask)} entries, but length is {length}")
        self.points, area = _grid(step, reach)
        self.log_prior = -0.5 * (self.points**2).sum(axis=1) - np.log(2 * np.pi) + np.log(area)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
        shift = rng.normal(size=(n, 2)) @ self.w.T
        symbols = np.empty((n, self.length), np.int64)
        before = np.full(n, self.symbols)
        for t in range(self.length):
            before = symbols[:, t] = _categorical(self.a[before] + self.mask[t] * shift, rng)
        return symbols, None

    def log_px_given(self, symbols: np.ndarray) -> np.ndarray:
        before = _before(symbols, self.symbols)
        plain = _log_softmax(self.a)[before, symbols] * ~self.mask
        shifted = self.a[before, symbols] * self.mask
        # the rest depends on the words only by how often each stands somewhere the mask is on
        return (
            (plain + shifted).sum(axis=1)[:, None]
            + self._counts(symbols, self.symbols) @ (self.w @ self.points.T)
            - self._counts(before, self.symbols + 1) @ self._log_normaliser
        )

    @cached_property
    def _log_normaliser(self) -> np.ndarray:
        """[V + 1, G], log sum_v exp(A[u, v] + w_v z)."""
        shift = self.points @ self.w.T
        return np.stack([_logsumexp(row + shift) for row in self.a])

    def _counts(self, symbols: np.ndarray, kinds: int) -> np.ndarray:
        """[N, kinds], occurrences where the mask is on."""
        cells = symbols[:, self.mask] + kinds * np.arange(len(symbols))[:, None]
        return np.bincount(cells.ravel(), minlength=kinds * len(symbols)).reshape(-1, kinds)


class Echo(Truth):
    """What is said first returns at the end: codes c_i ~ U{1..M}; a_1..a_m, then `gap` words of a
    Markov chain that knows nothing of c, then b_1..b_m; a_i and b_i are c_i with probability
    1 - eps + eps/M, else any other code. A decoder that forgets over the gap loses I(a; b).
    Labels: the codes, read as digits of base M. Symbols 0..M-1 are the codes."""

    def __init__(
        self,
        pairs: int,
        codes: int,
        words: int,
        gap: int,
        eps: float,
        scale: float,
        seed: int,
    ) -> None:
        super().__init__(seed)
        self.length, self.symbols = 2 * pairs + gap, codes + words
        self.pairs, self.codes, self.gap, self.eps = pairs, codes, gap, eps
        self.filler = Markov(words, gap, scale, seed)
        self.points = np.stack(np.unravel_index(np.arange(codes**pairs), [codes] * pairs), axis=1)
        self.log_prior = np.full(codes**pairs, -pairs * np.log(codes))
        self.log_said = np.log((1 - eps) * np.eye(codes) + eps / codes)  # [code, symbol]

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
        codes = rng.integers(self.codes, size=(n, self.pairs))

        def said() -> np.ndarray:
            any_code = rng.integers(self.codes, size=codes.shape)
            return np.where(rng.random(codes.shape) < self.eps, any_code, codes)

        filler, _ = self.filler.draw(n, rng)
        symbols = np.concatenate([said(), filler + self.codes, said()], axis=1)
        return symbols, np.ravel_multi_index(list(codes.T), [self.codes] * self.pairs)

    def log_px_given(self, symbols: np.ndarray) -> np.ndarray:
        first, last = symbols[:, : self.pairs], symbols[:, self.pairs + self.gap :]
        filler = symbols[:, self.pairs : self.pairs + self.gap] - self.codes
        in_place = (
            (first < self.codes).all(axis=1)
            & (last < self.codes).all(axis=1)
            & (filler >= 0).all(axis=1)
        )
        result = np.full((len(symbols), len(self.points)), -np.inf)
        first, last, filler = first[in_place], last[in_place], filler[in_place]
        result[in_place] = self.filler.log_px_given(filler)
        for i, code in enumerate(self.points.T):
            result[in_place] += self.log_said[code][:, first[:, i]].T
            result[in_place] += self.log_said[code][:, last[:, i]].T
        return result

    @cached_property
    def mi(self) -> tuple[float, float]:
        """I(x; c), exact: the pairs are independent, and each is summed over all (a, b)."""
        said = np.exp(self.log_said)
        joint = said[:, :, None] * said[:, None, :] / self.codes  # [c, a, b]
        apart = joint.sum(axis=0) / self.codes  # p(a, b) p(c)
        return self.pairs * float((joint * np.log(joint / apart)).sum()), 0.0


GENERATORS: dict[str, type[Truth]] = {
    "tables": Tables,
    "plane": Plane,
    "echo": Echo,
    "markov": Markov,
}


def build(generator: dict[str, Any]) -> Truth:
    """The generator of a configuration: its `kind`, and its class's arguments.

    Raises DataError where a key is missing or unknown.
    """
    arguments = dict(generator)
    kind = arguments.pop("kind", None)
    if kind not in GENERATORS:
        raise DataError(f"generator.kind is {kind!r}; choose one of {sorted(GENERATORS)}")
    signature = inspect.signature(GENERATORS[kind])
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise DataError(
            f"generator {kind!r}: {error}; it takes {sorted(signature.parameters)}"
        ) from None
    return GENERATORS[kind](**arguments)


def _grid(step: float, reach: float) -> tuple[np.ndarray, float]:
    """[G, 2] points of a square grid over [-reach, reach]^2, and the area each stands for."""
    axis = np.linspace(-reach, reach, round(2 * reach / step) + 1)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    return points, float((axis[1] - axis[0]) ** 2)


def _before(symbols: np.ndarray, start: int) -> np.ndarray:
    """[N, T], the symbol before each; `start` before the first."""
    return np.pad(symbols[:, :-1], ((0, 0), (1, 0)), constant_values=start)


def _walk(log_p: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """[N, length] symbols; sentence i follows log_p[i] [V + 1, V] from its last row on."""
    n, words = log_p.shape[0], log_p.shape[2]
    symbols = np.empty((n, length), np.int64)
    before = np.full(n, words)
    for t in range(length):
        before = symbols[:, t] = _categorical(log_p[np.arange(n), before], rng)
    return symbols


def _categorical(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[N], a symbol drawn from softmax(logits [N, V]), by the Gumbel maximum."""
    return (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - _logsumexp(logits)[..., None]


def _logsumexp(x: np.ndarray) -> np.ndarray:
    """Over the last axis; -inf where all are."""
    top = x.max(axis=-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(x - top).sum(axis=-1)) + top[..., 0]


def _chunks(symbols: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(symbols), _CHUNK):
        yield symbols[start : start + _CHUNK]
