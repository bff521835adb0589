"""What the numbers allow to be said: intervals, tests, groups of ties, choices; pure functions.

Costs are in nats a sentence and lower is better, everywhere. NaN is what is not known, and what
depends on it is not known either; infinity stands for a run that diverged: worse than any other.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, stdtr, stdtrit  # scipy.stats takes a second to import

from leaderboard.statistics import half_width, mean

BAD_WEIGHTS = 0.10
"""The share of sentences with untrusted importance weights above which a row claims no win."""

Array = NDArray[np.float64]
Scores = Sequence[ArrayLike]
"""[S_d] scores of one method's seeds for each data set d, on one scale for all."""


class Comparison(NamedTuple):
    """Ours less theirs: below zero, ours is better. NaN where it cannot be told."""

    mean: float
    half: float  # of the 95 % interval
    p: float  # two-sided, of no difference; below 0.05 just where the interval leaves zero out
    n: int  # pairs of seeds


class Choice(NamedTuple):
    """One variant of several, and where it may be reported without having been selected there."""

    name: str | None
    tried: int
    chosen_on: tuple[int, ...]
    seeds: tuple[int, ...]
    """To report on."""
    note: str
    """What is wanting, in words; empty where nothing is."""


class Answer(NamedTuple):
    """Yes or no, true or false as such, with the reason of a no."""

    yes: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.yes


# -- two rows --------------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Their mean and half of its 95 % t-interval (Student 1908), NaN for fewer than three."""
    with np.errstate(invalid="ignore"):  # infinities have no spread
        return mean(values), half_width(values)


def prediction_interval(values: Sequence[float], runs: int = 1) -> tuple[float, float]:
    """Their mean and half of the 95 % interval that the mean of `runs` more of their kind will lie
    in (of normal values, by Student's t), NaN for fewer than three."""
    middle, half = interval(values)
    return middle, half * math.sqrt(1 + len(values) / runs)


def paired(ours: Any, theirs: Any) -> Comparison:
    """The t test of the differences (Student 1908): seed -> value each, of which the common seeds
    count, or aligned [S]. Fewer than three pairs have a mean alone.

    Raises ValueError for sequences of unequal length.
    """
    ours, theirs = _align(ours, theirs)
    with np.errstate(invalid="ignore"):
        differences = np.subtract(ours, theirs, dtype=float)
    (middle, half), n = interval(differences.tolist()), len(differences)
    if half == 0:
        p = float(middle == 0)
    else:
        p = 2 * float(stdtr(n - 1, -abs(middle) / half * stdtrit(n - 1, 0.975)))
    return Comparison(middle, half, p, n)


def paired_by_sentence(ours: Any, theirs: Any) -> Comparison:
    """The mean difference over sentences, uncertain by the choice of sentences and of seeds: [N]
    NLLs for each seed, as seed -> [N] or aligned. A sentence that is NaN in any array is left out.

    d_si = m + a_s + b_i + e_si, seeds s and sentences i crossed (Searle, Casella and McCulloch
    1992, ch. 4), so that the mean's variance is

        (var a + var e / N) / S  +  var b / N.

    The first part is the variance of the seeds' means over S, with S - 1 degrees of freedom. The
    second is that of the sentences' means over N, less the share of e in it, which is in the first
    part already: (var_i(mean_s d) - mean square of e / S) / N, no less than zero, with N - 1. Each
    has its own t quantile, and the interval takes their mean weighted by the parts (Cochran 1964):
    in simulations it covers 95 to 98 %, where Satterthwaite's (1946) covers 92 to 95.

    Fewer than three seeds or two sentences have a mean alone. Raises ValueError for sequences of
    unequal length.
    """
    ours, theirs = (np.array(rows, dtype=float) for rows in _align(ours, theirs))
    n = len(ours)
    if not ours.size:
        return Comparison(math.nan, math.nan, math.nan, n)
    known = ~np.isnan(np.stack([ours, theirs])).any((0, 1))
    with np.errstate(invalid="ignore"):
        d = ours[:, known] - theirs[:, known]
    sentences = d.shape[1]
    if not sentences or not np.isfinite(d).all():
        return Comparison(math.nan, math.nan, math.nan, n)
    middle = float(d.mean())
    if n < 3 or sentences < 2:
        return Comparison(middle, math.nan, math.nan, n)
    by_seed, by_sentence = d.mean(1), d.mean(0)
    rest = d - by_seed[:, None] - by_sentence + middle
    noise = (rest**2).sum() / ((n - 1) * (sentences - 1))
    half, p = _crossed(
        np.array([middle]), by_seed.var(ddof=1), by_sentence.var(ddof=1), noise, n, sentences
    )
    return Comparison(middle, float(half[0]), float(p[0]), n)


def pairs_by_sentence(rows: Sequence[Mapping[int, Array]]) -> list[Comparison]:
    """`paired_by_sentence` of every two of the rows (seed -> [N]), in the order of `combinations`.

    All at once: the means and squares that it takes of a difference follow from those of the two
    rows and their product, so that of M rows there are M passes over the sentences, not M^2 / 2.
    """
    unknown = [{seed: np.isnan(values) for seed, values in row.items()} for row in rows]
    found: dict[tuple[int, int], Comparison] = {}
    alike: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for pair in combinations(range(len(rows)), 2):
        seeds = tuple(sorted(rows[pair[0]].keys() & rows[pair[1]].keys()))
        if seeds:
            lost = np.any([unknown[each][seed] for each in pair for seed in seeds], axis=0)
            alike.setdefault((seeds, lost.tobytes()), []).append(pair)
        else:
            found[pair] = Comparison(math.nan, math.nan, math.nan, 0)
    for (seeds, lost), pairs in alike.items():
        members = sorted({each for pair in pairs for each in pair})
        kept = ~np.frombuffer(lost, dtype=bool)
        values = np.array([[rows[each][seed][kept] for seed in seeds] for each in members])
        place = {each: i for i, each in enumerate(members)}
        a, b = ([place[each] for each in side] for side in zip(*pairs, strict=True))
        found |= zip(pairs, _all_crossed(values, a, b), strict=True)
    return [found[pair] for pair in combinations(range(len(rows)), 2)]


def _all_crossed(values: Array, a: list[int], b: list[int]) -> list[Comparison]:
    """Of [M, S, N] the comparisons of the members a with those of b."""
    members, n, sentences = values.shape
    if not values.size:
        return [Comparison(math.nan, math.nan, math.nan, n) for _ in a]
    finite: Any = np.isfinite(values).all((1, 2))
    values = np.where(finite[:, None, None], values, 0.0)
    values -= values.mean((0, 1))  # cancels in every difference, and leaves small numbers to square
    middle = values.mean((1, 2))
    difference = np.where(finite[a] & finite[b], middle[a] - middle[b], np.nan)
    half = p = np.full(len(a), np.nan)
    if n >= 3 and sentences >= 2:
        by_seed, by_sentence = values.mean(2), values.mean(1)
        rest = values - by_seed[:, :, None] - by_sentence[:, None] + middle[:, None, None]
        noise = _distances(rest.reshape(members, -1), a, b) / ((n - 1) * (sentences - 1))
        spread = _distances(by_sentence - middle[:, None], a, b) / (sentences - 1)
        half, p = _crossed(
            difference, (by_seed[a] - by_seed[b]).var(1, ddof=1), spread, noise, n, sentences
        )
    columns = (difference.tolist(), half.tolist(), p.tolist())
    return [Comparison(*told, n) for told in zip(*columns, strict=True)]


def _distances(rows: Array, a: list[int], b: list[int]) -> Array:
    """Squared, of the rows a from the rows b of [M, N]."""
    products = rows @ rows.T
    squares = np.diagonal(products)
    return np.maximum(squares[a] + squares[b] - 2 * products[a, b], 0)


def _crossed(
    middle: Array, of_seeds: Any, of_sentences: Any, noise: Any, n: int, sentences: int
) -> tuple[Array, Array]:
    """Half intervals and p values [M] of the means of crossed differences, from the variances of
    their seeds' means and of their sentences', and the mean square of the rest."""
    of_seeds = np.broadcast_to(of_seeds / n, middle.shape)
    of_sentences = np.maximum(of_sentences - noise / n, 0.0) / sentences
    total, freedom = of_seeds + of_sentences, np.array([n - 1, sentences - 1])

    def width(p: Any) -> Array:
        return -stdtrit(freedom[0], p / 2) * of_seeds - stdtrit(freedom[1], p / 2) * of_sentences

    with np.errstate(all="ignore"):  # of what is not known, does not vary, or lies too far out
        half = np.where(total > 0, width(0.05) / np.sqrt(total), 0.0)
        # p is the level at which the interval ends at zero, and between those of either part alone
        t = abs(middle) / np.sqrt(total)
        low, high = np.log(np.maximum(2 * stdtr(np.sort(freedom)[::-1, None], -t), 1e-300))
        span = high - low
        for _ in range(40):
            span = span / 2
            low = low + span * (width(np.exp(low + span)) > abs(middle) * np.sqrt(total))
        p = np.where(total > 0, np.exp(low + span), middle == 0)
    unknown = np.isnan(middle)
    return np.where(unknown, np.nan, half), np.where(unknown, np.nan, p)


def pays(ours: Any, lm: Any) -> Literal["pays", "free", "costs"] | None:
    """Whether reading z makes the NLL better than that of the same decoder without z, at 95 %:
    `paired_by_sentence`'s arguments. `free` says that no difference could be told; None that none
    could be sought."""
    difference, half, _, _ = paired_by_sentence(ours, lm)
    if math.isnan(half):
        return None
    return "pays" if difference < -half else "costs" if difference > half else "free"


def may_win(row: Mapping[str, Any], other: Mapping[str, Any]) -> Answer:
    """Whether one row may be called better than another by its NLL, or why neither may.

    Rows of `load_cells`, or means of them by the same names: test/nll, test/nll_half (the NLL at
    half the samples, not half an interval), test/khat_bad, test/latent. Raises KeyError without.
    """
    difference = abs(row["test/nll"] - other["test/nll"])
    if math.isnan(difference):
        return Answer(False, "the nll of one of them is not known")
    kinds = [each["test/latent"] for each in (row, other)]
    if not all(isinstance(kind, str) for kind in kinds):
        return Answer(False, "the kind of latent of one of them is not known")
    if "none" not in kinds and kinds[0] != kinds[1]:
        return Answer(False, f"latents differ in kind: {kinds[0]} and {kinds[1]}")
    for each, whose in ((row, "this row's"), (other, "the other row's")):
        if each["test/latent"] == "none":
            continue  # its nll is exact
        bad, moved = each["test/khat_bad"], abs(each["test/nll"] - each["test/nll_half"])
        if not bad <= BAD_WEIGHTS:
            share = "an unknown share" if math.isnan(bad) else f"{bad:.1%}"
            return Answer(False, f"{whose} importance weights cannot be trusted: {share} are bad")
        if not moved <= difference:
            by = "by an unknown amount" if math.isnan(moved) else f"by {moved:.2g} nats"
            text = f"{whose} nll still moves {by} when its samples are doubled"
            return Answer(False, f"{text}, and the difference is {difference:.2g}")
    return Answer(True)


def _align(ours: Any, theirs: Any) -> tuple[list[Any], list[Any]]:
    """Both by the same seeds, in order."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        seeds = sorted(ours.keys() & theirs.keys())
        return [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]
    if isinstance(ours, Mapping) or isinstance(theirs, Mapping) or len(ours) != len(theirs):
        raise ValueError("pairs are two mappings from seeds, or two sequences of the same length")
    return list(ours), list(theirs)


# -- many rows -------------------------------------------------------------------------------------


def holm(p: ArrayLike) -> Array:
    """Adjusted p values [M], by which the chance of any false claim among the M stays below the
    level (Holm 1979). A NaN stays one and does not count."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")[: np.count_nonzero(~np.isnan(p))]  # NaN come last
    adjusted = np.full_like(p, np.nan)
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def tie_groups(
    names: Sequence[str], means: Sequence[float], separable: Callable[[str, str], bool] | ArrayLike
) -> list[tuple[str, ...]]:
    """Groups in which no two are separable, best first: two names share a group just where they
    cannot be told apart (compact letter display, Piepho 2004).

    There may be more largest groups than anyone can read, so each is built to hold as many pairs
    as possible that no earlier one does, until every pair is in one (Gramm et al. 2007).

    separable: of two names, the better first, or [M, M] booleans, of which either of a pair will
    do. A name whose mean is NaN is in no group.
    """
    order = [int(i) for i in np.argsort(means, kind="stable") if not math.isnan(means[i])]
    tied = np.ones((len(order), len(order)), dtype=bool)
    if callable(separable):
        for a, b in combinations(range(len(order)), 2):
            tied[a, b] = tied[b, a] = not separable(names[order[a]], names[order[b]])
    else:
        matrix = np.asarray(separable, dtype=bool)[np.ix_(order, order)]
        tied = ~(matrix | matrix.T)
    np.fill_diagonal(tied, False)
    groups, wanting = [[i] for i in range(len(order)) if not tied[i].any()], tied.copy()
    for first in range(len(order)):
        while wanting[first].any():
            group, fits, gains = [first], tied[first], wanting[first].astype(int)
            while fits.any():
                group.append(int(np.argmax(np.where(fits, gains, -1))))
                fits, gains = fits & tied[group[-1]], gains + wanting[group[-1]]
            wanting[np.ix_(group, group)] = False
            groups.append(sorted(group))
    return [tuple(names[order[i]] for i in group) for group in sorted(groups)]


def winner(groups: Sequence[tuple[str, ...]]) -> str | None:
    """The best name of `tie_groups` if it is separable from all others, to be set in bold."""
    return groups[0][0] if groups and len(groups[0]) == 1 else None


def share(k: int, n: int) -> tuple[float, float]:
    """The exact 95 % interval of a share of which k of n were seen (Clopper and Pearson 1934).
    Raises ValueError unless 0 <= k <= n."""
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is no share")
    low = float(betaincinv(k, n - k + 1, 0.025)) if k > 0 else 0.0
    high = float(betaincinv(k + 1, n - k, 0.975)) if k < n else 1.0
    return low, high


# -- the variants of a method ----------------------------------------------------------------------


def expected_best(values: Sequence[float]) -> Array:
    """[N]: the expected least of n = 1 ... N of the N values: what a search of n trials would have
    found (Dodge et al. 2019; drawn without replacement, which is unbiased: Tang et al. 2020)."""
    if any(map(math.isnan, values)):
        return np.full(len(values), np.nan)
    ranked, total = np.sort(values), len(values)
    curve = np.zeros(total)
    for n in range(1, total + 1):
        # the i-th of all is the least of n in C(total - i, n - 1) of C(total, n) draws: by ratios
        behind = np.arange(total - 1, n - 1, -1)
        chances = n / total * np.cumprod([1, *(1 - (n - 1) / behind)])
        curve[n - 1] = chances @ ranked[: total - n + 1]
    return curve


def choose(
    variants: Mapping[str, Mapping[int, float]], seeds: Iterable[int] | None = None
) -> Choice:
    """The variant (name -> {seed: validation NLL}) with the least mean over some seeds, to be
    reported on its others: where it was selected, it looks better than it is.

    seeds: to choose on, of those that all variants have run; the lower half of these by default.
    One variant is not chosen and has all its seeds to report; one that has run none is not tried.
    """
    tried = {name: values for name, values in variants.items() if values}
    if len(tried) < 2:
        ((name, values),) = tried.items() or [(None, {})]
        return Choice(name, len(tried), (), tuple(sorted(values)), "" if tried else "none has run")
    common = sorted(set.intersection(*map(set, tried.values())))
    on = sorted({*seeds} & {*common}) if seeds is not None else common[: max(1, len(common) // 2)]
    means = {name: mean([values[seed] for seed in on]) for name, values in tried.items()}
    known = [name for name in means if math.isfinite(means[name])]
    if not known:
        note = "none has a finite nll on the seeds to choose on" if on else "no seed was run by all"
        return Choice(None, len(tried), tuple(on), (), note)
    name = min(known, key=lambda name: (means[name], name))
    others = sorted({*tried[name]} - {*on})
    note = "" if len(others) >= 3 else f"too few seeds are left to report on: {len(others)}"
    if not others:
        note = "too few seeds: chosen and reported on the same, so that the nll is too good"
    return Choice(name, len(tried), tuple(on), tuple(others or on), note)


def at_rate(rates: Sequence[float], nlls: Sequence[float], wanted: float) -> float:
    """The NLL at a rate (nats), linear between the two neighbouring variants [M]; NaN outside of
    them. Variants of one rate count by their mean, those of an unknown rate not at all."""
    place = ~np.isnan(rates)
    knots, index = np.unique(np.asarray(rates, dtype=float)[place], return_inverse=True)
    heights = np.bincount(index, np.asarray(nlls)[place]) / np.bincount(index)
    right = int(np.searchsorted(knots, wanted))
    if right < len(knots) and knots[right] == wanted:
        return float(heights[right])
    if not 0 < right < len(knots):
        return math.nan
    part = (wanted - knots[right - 1]) / (knots[right] - knots[right - 1])
    return float((1 - part) * heights[right - 1] + part * heights[right])


# -- across data sets ------------------------------------------------------------------------------


def interquartile_mean(scores: Scores) -> Any:
    """The mean of all data sets' scores without the lowest and the highest quarter, rounded down
    (Agarwal et al. 2021). Data sets weigh alike: a score counts by one over its data set's number
    of seeds, and one of which a part is in a quarter by the rest. Of draws, [..., S_d], it is that
    of each."""
    if not len(scores):
        return math.nan
    values = np.concatenate([*scores], -1)
    sizes = [np.shape(group)[-1] for group in scores]
    # in whole numbers: what is cut off may be infinite, and not the least of it may be left
    runs, unit = sum(sizes), math.lcm(*sizes)
    order = np.argsort(values, -1)
    weights = np.repeat([runs * unit // size for size in sizes], sizes)[order]
    upto, cut = weights.cumsum(-1), runs // 4 * unit * len(sizes)
    rest = np.minimum(upto, runs * unit * len(sizes) - cut) - np.maximum(upto - weights, cut)
    rest = np.maximum(rest, 0)
    kept = np.where(rest > 0, np.take_along_axis(values, order, -1), 0.0)
    found = (kept * rest).sum(-1) / rest.sum(-1)
    return np.where(np.isnan(values).any(-1), np.nan, found)[()]


def stratified_bootstrap(
    scores: Scores,
    statistic: Callable[[list[Array]], Any],
    draws: int = 2_000,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic of the scores when each data set's seeds are
    drawn anew with replacement (Agarwal et al. 2021); somewhat narrow with few seeds.

    statistic: of each data set's draws [draws, S_d], all at once, to [draws]. Of two methods:
    `stratified_bootstrap([*x, *y], lambda both: f(both[:D], both[D:]))`. Raises ValueError for a
    data set without seeds.
    """
    groups = [np.asarray(group, dtype=float) for group in scores]
    if not all(map(len, groups)):
        raise ValueError("a data set without seeds cannot be drawn from")
    rng = np.random.default_rng(seed)
    drawn = [group[rng.integers(len(group), size=(draws, len(group)))] for group in groups]
    # the draws' own values: nothing is between a number and infinity
    low, high = np.quantile(statistic(drawn), [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


def probability_of_improvement(x: Scores, y: Scores) -> Any:
    """The chance that a seed of x is better than one of y, ties half, the mean over data sets
    (Agarwal et al. 2021). Of draws, [..., S_d], it is that of each. Raises ValueError unless both
    have as many data sets."""
    chances = []
    for ours, theirs in zip(x, y, strict=True):
        ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
        unknown = np.isnan(ours).any(-1) | np.isnan(theirs).any(-1)
        ours, theirs = ours[..., :, None], theirs[..., None, :]
        less = (ours < theirs).mean((-2, -1)) + (ours == theirs).mean((-2, -1)) / 2
        chances.append(np.where(unknown, np.nan, less))
    return np.mean(chances, axis=0)[()]


def performance_profile(scores: Scores, thresholds: ArrayLike) -> Array:
    """[T]: the share of seeds at or below each of the T thresholds, the mean over data sets
    (Agarwal et al. 2021)."""
    shares = []
    for group in scores:
        values = np.asarray(group, dtype=float)
        reached = np.less_equal.outer(values, thresholds).mean(0)
        shares.append(np.where(np.isnan(values).any(), np.nan, reached))
    return np.mean(shares, axis=0)
