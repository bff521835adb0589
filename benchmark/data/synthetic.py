"""Sentences from generators whose log p(x), posterior and I(x; z) are known.

All sentences of a generator have one length T and end with probability 1, so `</s>` costs nothing.
Every generator is a mixture over G points of its latent, a real one's being the nodes of a
quadrature; N sentences [N, T] are ids of a corpus, that is symbol v is `len(SPECIALS) + v`.
Everything is numpy float64 and nats. Parameters and sentences are functions of the generator's own
seed.
"""

import inspect
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from benchmark.data.errors import DataError
from benchmark.data.vocabulary import SPECIALS

FIRST = len(SPECIALS)
_CHUNK = 256  # sentences scored at once; with 6,561 nodes 13 MB an array
_CENTRES = np.array([[-2.0, -2.0], [2.0, 2.0], [-2.0, 2.0], [2.0, -2.0]])


@dataclass(frozen=True)
class Posterior:
    """p(z|x) of N sentences.

    points: [G, D] values of the latent, or [N, G, D] where each sentence has its own; weights:
    [N, G], they sum to 1 over G.
    """

    points: np.ndarray
    weights: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """[N, D]."""
        return (self.weights[..., None] * self.points).sum(axis=1)


class Truth(ABC):
    """A generator p(z) p(x|z)."""

    length: int
    """T, words in every sentence."""
    symbols: int
    """V, words in the vocabulary without specials."""
    seed: int
    scored: tuple[str, ...] = ("train", "valid", "test")
    """The splits whose log p(x) is worth its time."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    @abstractmethod
    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
        """[n, T] symbols from 0 on, and [n] labels: the latent where it is discrete."""

    @abstractmethod
    def terms(self, symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What p(x) is the sum of, for symbols [N, T]: points [G, D] or [N, G, D]; log of their
        prior weights [G] or [N, G]; log p(x|z) [N, G]."""

    def sample(self, n: int, stream: int) -> tuple[np.ndarray, np.ndarray | None]:
        """[n, T] int32 ids and [n] labels or None; different streams are independent."""
        symbols, labels = self.draw(n, np.random.default_rng([self.seed, 1, stream]))
        return (symbols + FIRST).astype(np.int32), labels

    def log_px(self, ids: np.ndarray) -> np.ndarray:
        """[N], log p(x) of ids [N, T]; -inf where another token stands among the words.

        Raises ValueError if the sentences are not T words long.
        """
        return self.score(ids)[0]

    def score(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[N] log p(x), as `log_px`, and [N] KL(p(z|x) || p(z)), whose mean over the generator's
        own sentences is I(x; z)."""
        if ids.ndim != 2 or ids.shape[1] != self.length:
            raise ValueError(f"ids are [N, {self.length}] here, not {list(ids.shape)}")
        log_px, rate = np.full(len(ids), -np.inf), np.full(len(ids), np.nan)
        possible = np.flatnonzero(((ids >= FIRST) & (ids < FIRST + self.symbols)).all(axis=1))
        for start in range(0, len(possible), _CHUNK):
            rows = possible[start : start + _CHUNK]
            _, log_prior, given = self.terms(ids[rows] - FIRST)
            total = log_px[rows] = _logsumexp(given + log_prior)
            with np.errstate(invalid="ignore"):  # -inf - -inf at points that are impossible
                gain = given - total[:, None]
                parts = np.exp(gain + log_prior) * gain
            rate[rows] = np.where(np.isfinite(gain), parts, 0).sum(axis=1)
        return log_px, rate

    def posterior(self, ids: np.ndarray) -> Posterior:
        """p(z|x) of ids [N, T], words only."""
        points, log_prior, given = self.terms(ids - FIRST)
        joint = given + log_prior
        return Posterior(points, np.exp(joint - _logsumexp(joint)[:, None]))

    def mi(self, rates: np.ndarray) -> tuple[float, float]:
        """I(x; z) and its standard error, given the rates [N] of sentences of the generator."""
        return float(rates.mean()), float(rates.std(ddof=1) / np.sqrt(len(rates)))


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

    def terms(self, symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        given = self.log_p[:, _before(symbols, self.symbols), symbols].sum(axis=2).T
        return self.points, self.log_prior, given


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

    scored = ("valid", "test")

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

    def terms(self, symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        before = _before(symbols, self.symbols)
        plain = _log_softmax(self.a)[before, symbols] * ~self.mask
        shifted = self.a[before, symbols] * self.mask
        # the rest depends on the words only by how often each stands somewhere the mask is on
        given = (
            (plain + shifted).sum(axis=1)[:, None]
            + self._counts(symbols, self.symbols) @ (self.w @ self.points.T)
            - self._counts(before, self.symbols + 1) @ self._log_normaliser
        )
        return self.points, self.log_prior, given

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
        return symbols, codes @ self.codes ** np.arange(self.pairs)[::-1]

    def terms(self, symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first, last = symbols[:, : self.pairs], symbols[:, self.pairs + self.gap :]
        filler = symbols[:, self.pairs : self.pairs + self.gap] - self.codes
        in_place = (
            (first < self.codes).all(axis=1)
            & (last < self.codes).all(axis=1)
            & (filler >= 0).all(axis=1)
        )
        result = np.full((len(symbols), len(self.points)), -np.inf)
        first, last, filler = first[in_place], last[in_place], filler[in_place]
        result[in_place] = self.filler.terms(filler)[2]
        for i, code in enumerate(self.points.T):
            result[in_place] += self.log_said[code][:, first[:, i]].T
            result[in_place] += self.log_said[code][:, last[:, i]].T
        return self.points, self.log_prior, result

    def mi(self, rates: np.ndarray) -> tuple[float, float]:
        """I(x; c), exact: the pairs are independent, and each is summed over all (a, b)."""
        said = np.exp(self.log_said)
        joint = said[:, :, None] * said[:, None, :] / self.codes  # [c, a, b]
        apart = joint.sum(axis=0) / self.codes  # p(a, b) p(c)
        return self.pairs * float((joint * np.log(joint / apart)).sum()), 0.0


class LstmWeights(NamedTuple):
    """H hidden units; of the gates, what follows from the word before [V, 4H], from z [2, 4H], from
    h [H, 4H]; the first cell from z [2, H]; logits from [h, z] [H + 2, V]."""

    word: np.ndarray
    z: np.ndarray
    h: np.ndarray
    cell: np.ndarray
    out: np.ndarray

    def first(self, z: np.ndarray) -> list[np.ndarray]:
        """h and cell, [M, H] each, before the first word."""
        cell = z @ self.cell
        return [np.tanh(cell), cell]

    def step(
        self, before: np.ndarray, z: np.ndarray, h: np.ndarray, cell: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits [M, V] of the next word, h and cell."""
        gates = self.word[before] + z @ self.z + h @ self.h
        i, f, g, o = np.split(gates, 4, axis=1)
        cell = _sigmoid(f) * cell + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(cell)
        return np.concatenate([h, z], axis=1) @ self.out, h, cell


class Lstm(Truth):
    """He et al. 2019's synthetic data, as their released generator has it: z in R^2 from four unit
    Gaussians around (+-2, +-2); an LSTM that reads [embedding, z] from c_0 = W z, h_0 = tanh c_0;
    logits W_1 h_t + W_2 z; the first word uniform. All weights U(-1, 1), but W_2 ~ U(-3, 3).
    Labels: the Gaussian.

    p(x) by the midpoint rule on squares that are cut in four, from `coarse` to coarse / 2^cuts,
    where the density is within e^-depth of its greatest. A pass through the LSTM for every sentence
    and point is dear, so only the test split is scored, in float32. Such an LSTM's likelihood is
    rugged in z: against squares a quarter as wide the default is off by 0.02 nats (s.d.) a
    sentence, and by 0.0003 in the mean.
    """

    scored = ("test",)
    reach = 7.2

    def __init__(
        self,
        words: int,
        length: int,
        embedding: int,
        hidden: int,
        seed: int,
        coarse: float = 0.8,
        cuts: int = 2,
        depth: float = 14.0,
    ) -> None:
        super().__init__(seed)
        self.length, self.symbols = length, words
        self.coarse, self.cuts, self.depth = coarse, cuts, depth
        rng = np.random.default_rng([seed, 0])

        def uniform(*shape: int) -> np.ndarray:
            return rng.uniform(-1, 1, shape)

        # gates in the order input, forget, cell, output; two biases, as torch has them
        word = uniform(words, embedding) @ uniform(embedding, 4 * hidden)
        self.weights = LstmWeights(
            word=word + uniform(4 * hidden) + uniform(4 * hidden),
            z=uniform(2, 4 * hidden),
            h=uniform(hidden, 4 * hidden),
            cell=uniform(2, hidden),
            out=np.concatenate([uniform(hidden, words), 3 * uniform(2, words)]),
        )

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
        component = rng.integers(4, size=n)
        z = _CENTRES[component] + rng.normal(size=(n, 2))
        symbols = np.empty((n, self.length), np.int64)
        symbols[:, 0] = rng.integers(self.symbols, size=n)
        state = self.weights.first(z)
        for t in range(1, self.length):
            logits, *state = self.weights.step(symbols[:, t - 1], z, *state)
            symbols[:, t] = _categorical(logits, rng)
        return symbols, component

    def terms(self, symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weights = LstmWeights(*(w.astype(np.float32) for w in self.weights))
        found = [self._squares(weights, sentence) for sentence in symbols]
        # a point that fills up has no weight
        shape = (len(found), max(len(z) for z, _, _ in found))
        points, log_prior = np.zeros((*shape, 2)), np.full(shape, -np.inf)
        given = np.zeros(shape)
        for row, (z, prior, likelihood) in enumerate(found):
            points[row, : len(z)] = z
            log_prior[row, : len(z)] = prior
            given[row, : len(z)] = likelihood
        return points, log_prior, given

    def _squares(
        self, weights: LstmWeights, sentence: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The squares that hold the posterior of a sentence [T]: their centres [G, 2], log of their
        prior weights [G], log p(x|z) [G]."""
        side = self.coarse
        z, _ = _grid(side, self.reach - side / 2)
        corners = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
        for cut in range(self.cuts + 1):
            if cut:
                side /= 2
                z = (z[:, None] + side / 2 * corners).reshape(-1, 2)
            log_prior = self._log_density(z)
            # on the way a point may yet catch up by as much again
            alive, total = self._score(weights, sentence, z, log_prior, 2 * self.depth)
            z, log_prior = z[alive], log_prior[alive]
            joint = total + log_prior
            keep = joint > joint.max() - self.depth
            z, log_prior, total = z[keep], log_prior[keep], total[keep]
        return z, log_prior + 2 * np.log(side), total

    def _score(
        self,
        weights: LstmWeights,
        sentence: np.ndarray,
        z: np.ndarray,
        log_prior: np.ndarray,
        depth: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which of z [G, 2] do not fall behind the best by more than `depth` nats, and their
        log p(x|z)."""
        alive = np.arange(len(z))
        total = np.full(len(z), -np.log(self.symbols))
        z = z.astype(np.float32)
        state = weights.first(z)
        for before, word in pairwise(sentence):
            logits, *state = weights.step(np.full(len(z), before), z, *state)
            total = total + logits[:, word] - _logsumexp(logits)
            joint = total + log_prior[alive]
            keep = joint > joint.max() - depth
            alive, total, z = alive[keep], total[keep], z[keep]
            state = [part[keep] for part in state]
        return alive, total

    @staticmethod
    def _log_density(z: np.ndarray) -> np.ndarray:
        """[M], log p(z)."""
        squares = ((z[:, None] - _CENTRES) ** 2).sum(axis=2)
        return _logsumexp(-squares / 2) - np.log(2 * np.pi * len(_CENTRES))


GENERATORS: dict[str, type[Truth]] = {
    "tables": Tables,
    "plane": Plane,
    "echo": Echo,
    "markov": Markov,
    "lstm": Lstm,
}
MAY_BE_ZERO = ("seed", "scale", "eps", "gap", "cuts")


def build(generator: dict[str, Any]) -> Truth:
    """The generator of a configuration: its `kind`, and its class's arguments.

    Raises DataError where a key is missing or unknown, or a value no number of its range.
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
    for name, value in arguments.items():
        number = signature.parameters[name].annotation
        least = 0 if name in MAY_BE_ZERO else 1 if number is int else 1e-6
        most = 1 if name == "eps" else math.inf
        fits = type(value) in (int, number) and least <= value <= most
        if number in (int, float) and not fits:
            raise DataError(
                f"generator.{name} is {value!r}; it is of type {number.__name__} and lies in "
                f"[{least}, {most}]"
            )
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


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * np.tanh(0.5 * x) + 0.5


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - _logsumexp(logits)[..., None]


def _logsumexp(x: np.ndarray) -> np.ndarray:
    """Over the last axis; -inf where all are."""
    top = x.max(axis=-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(x - top).sum(axis=-1)) + top[..., 0]
