"""The leaderboard's inference against closed forms, textbooks, brute force and simulation."""

import math
import re
import subprocess
import sys
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from leaderboard import inference
from leaderboard.inference import Comparison

NAN, INF = math.nan, math.inf


# -- two rows --------------------------------------------------------------------------------------


def test_the_interval_is_the_mean_and_students_half():
    # t(0.975, 2) = 4.302653, s = 1
    assert inference.interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(4.302653 / 3**0.5, abs=1e-6))
    assert inference.interval([1.0, 3.0]) == (2.0, pytest.approx(NAN, nan_ok=True))
    assert inference.interval([1.0, 2.0, INF]) == (INF, pytest.approx(NAN, nan_ok=True))
    assert np.isnan(inference.interval([1.0, 2.0, 3.0, NAN])).all()


def test_the_prediction_interval_is_students_and_widens_with_the_noise_of_what_it_predicts():
    # t(0.975, 2) = 4.302653, s = 1: of one more, s sqrt(1 + 1/3); of the mean of five, 1/5 + 1/3
    for runs, variance in ((1, 4 / 3), (5, 8 / 15)):
        middle, half = inference.prediction_interval([1.0, 2.0, 3.0], runs)
        assert (middle, half) == (2.0, pytest.approx(4.302653 * variance**0.5, abs=1e-5))
    assert inference.prediction_interval([1.0, 3.0]) == (2.0, pytest.approx(NAN, nan_ok=True))
    assert np.isnan(inference.prediction_interval([])).all()
    assert inference.prediction_interval([4.0] * 3) == (4.0, 0.0)


@pytest.mark.parametrize(("n", "runs"), [(3, 1), (5, 1), (5, 5)])
def test_the_prediction_interval_covers(n, runs):
    rng, trials = np.random.default_rng(0), 4_000
    ours, theirs = rng.normal(size=(trials, n)), rng.normal(size=(trials, runs)).mean(1)
    found = np.array([inference.prediction_interval(row.tolist(), runs) for row in ours])
    inside = np.mean(abs(theirs - found[:, 0]) <= found[:, 1])
    assert abs(inside - 0.95) < 4 * (0.95 * 0.05 / trials) ** 0.5


SLEEP = ([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0], [1.9, 0.8, 1.1, 0.1, -0.1])
SLEEP[1].extend([4.4, 5.5, 1.6, 4.6, 3.4])


def test_the_paired_test_is_students_own_example():
    """Student (1908): two soporifics on ten patients, t = -4.0621, p = 0.002833, 95 % interval
    (-2.4598858, -0.7001142), as R prints it."""
    found = inference.paired(*SLEEP)
    assert found.mean == pytest.approx(-1.58) and found.n == 10
    assert found.p == pytest.approx(0.002832890, rel=1e-6)
    assert found.half == pytest.approx((2.4598858 - 0.7001142) / 2, abs=1e-6)
    back = inference.paired(*SLEEP[::-1])
    assert back == (pytest.approx(-found.mean), pytest.approx(found.half), *found[2:])


def test_pairs_are_of_the_common_seeds():
    ours, theirs = {2: 5.0, 0: 1.0, 1: 3.5, 7: 900.0}, {0: 0.0, 1: 2.0, 2: 3.0, 9: -900.0}
    assert inference.paired(ours, theirs) == inference.paired([1.0, 3.5, 5.0], [0.0, 2.0, 3.0])
    assert inference.paired(ours, theirs).mean == pytest.approx(1.5)
    for wrong in ([1.0], {0: 1.0}):
        with pytest.raises(ValueError, match="same length"):
            inference.paired([1.0, 2.0], wrong)


def test_pairs_that_are_too_few_unknown_or_all_alike():
    few = inference.paired([1.0, 2.0], [0.0, 0.0])
    assert few.mean == 1.5 and few.n == 2 and np.isnan([few.half, few.p]).all()
    assert inference.paired([1.0, 2.0, 3.0], [0.0, 1.0, 2.0]) == (1.0, 0.0, 0.0, 3)
    assert inference.paired([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == (0.0, 0.0, 1.0, 3)
    diverged = inference.paired([INF, 2.0, 3.0, INF], [0.0, 1.0, 2.0, INF])
    assert diverged.n == 4 and np.isnan(diverged[:3]).all()
    none = inference.paired({0: 1.0}, {1: 1.0})
    assert none.n == 0 and np.isnan(none[:3]).all()


def simulated(rng, seeds, sentences, of_seed, of_sentence, of_both):
    """[S, N] differences whose true mean is zero."""
    parts = (seeds, 1), (1, sentences), (seeds, sentences)
    scales = (of_seed, of_sentence, of_both)
    return sum(rng.normal(0, scale, size) for scale, size in zip(scales, parts, strict=True))


@pytest.mark.parametrize(
    "scales", [(1, 0, 0.1), (0, 1, 0.3), (0, 0, 1), (0.1, 1, 0), (0.1, 1, 1), (0.3, 1, 1)]
)
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_over_seeds_and_sentences_covers(seeds, scales):
    """Where seeds vary, sentences do, neither, or both. Either part alone would cover far less in
    one of them, and their plain sum 99 % in the third."""
    rng, trials, covered = np.random.default_rng(seeds), 1_500, 0
    for _ in range(trials):
        d = simulated(rng, seeds, 100, *scales)
        found = inference.paired_by_sentence(d, np.zeros_like(d))
        covered += abs(found.mean) <= found.half
        assert (found.p < 0.05) == (abs(found.mean) > found.half)
    assert 0.92 < covered / trials < 0.98


def test_with_one_source_of_variance_it_is_the_t_test_of_that():
    rng = np.random.default_rng(0)
    base = rng.normal(100, 20, (5, 40))
    alike = inference.paired_by_sentence(base + np.arange(5.0)[:, None] - 1, base)
    assert alike == pytest.approx(inference.paired(np.arange(5.0) - 1, np.zeros(5)))
    per_sentence = rng.normal(1, 3, 40)
    found = inference.paired_by_sentence(base + per_sentence, base)
    expected = stats.ttest_1samp(per_sentence, 0)
    assert found.p == pytest.approx(expected.pvalue) and found.n == 5
    assert found.half == pytest.approx(expected.confidence_interval()[1] - per_sentence.mean())


def test_the_two_variances_are_those_of_the_analysis_of_variance():
    """By hand: d = [[0, 2], [4, 10], [2, 6]]: seed means 1, 7, 4 (var 9), sentence
    means 2, 6 (var 8), residuals +-1, -+1, 0: mean square 4 / 2 = 2.
    9 / 3 = 3 with 2 freedom and (8 - 2 / 3) / 2 = 11 / 3 with 1."""
    d = np.array([[0.0, 2.0], [4.0, 10.0], [2.0, 6.0]])
    found = inference.paired_by_sentence(d, 0 * d)
    quantile = (3 * 4.302653 + 11 / 3 * 12.706205) / (3 + 11 / 3)
    assert found.mean == pytest.approx(4) and found.half == pytest.approx(
        quantile * math.sqrt(3 + 11 / 3), rel=1e-6
    )


def test_sentences_without_a_likelihood_are_left_out():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(100, 20, (2, 3, 50))
    chosen = np.r_[2, 5, 11, 20, 33, 49]
    subset = np.full_like(ours, NAN)
    subset[:, chosen] = ours[:, chosen]
    found = inference.paired_by_sentence(list(subset), list(theirs))
    assert found == inference.paired_by_sentence(ours[:, chosen], theirs[:, chosen])
    by_seed = dict(enumerate(subset)) | {8: subset[0]}
    assert found == inference.paired_by_sentence(by_seed, dict(enumerate(theirs)) | {9: theirs[0]})
    assert inference.paired_by_sentence(theirs, subset).mean == pytest.approx(-found.mean)


def test_a_comparison_by_sentence_that_cannot_be_made():
    d = np.random.default_rng(0).normal(size=(3, 10))
    few = inference.paired_by_sentence(d[:2], 0 * d[:2])
    assert few.mean == pytest.approx(d[:2].mean()) and np.isnan([few.half, few.p]).all()
    for ours in (np.full_like(d, NAN), np.where(d == d[1, 2], INF, d), d[:0], np.full((3, 0), 1.0)):
        found = inference.paired_by_sentence(ours, np.zeros_like(ours))
        assert np.isnan(found[:3]).all() and found.n == len(ours)
    assert inference.paired_by_sentence(d, d) == Comparison(0.0, 0.0, 1.0, 3)
    assert inference.paired_by_sentence(np.ones((3, 9)), np.zeros((3, 9))) == (1.0, 0.0, 0.0, 3)
    with pytest.raises(ValueError):
        inference.paired_by_sentence(d, d[:, :5])
    far = inference.paired_by_sentence(d - 1e3, 0 * d)
    assert 0 < far.p < 1e-4 and far.mean < -900


def test_all_pairs_at_once_are_as_one_by_one():
    rng = np.random.default_rng(0)
    level = rng.normal(100, 20, 60)
    rows = [
        {seed: level + rng.normal(0, 0.3) + rng.normal(0, 1, 60) for seed in seeds}
        for seeds in ((0, 1, 2, 3), (0, 1, 2, 3), (1, 2, 3, 4), (3, 2, 1, 0), (0, 1), (), (7, 8, 9))
    ]
    rows.append(
        {seed: np.where(np.arange(60) % 3, NAN, values) for seed, values in rows[0].items()}
    )
    rows.append({seed: values + (INF if seed == 2 else 0) for seed, values in rows[1].items()})
    rows.append({seed: values - 5 for seed, values in rows[0].items()})
    rows.append({seed: np.full(60, NAN) for seed in range(4)})
    rows.append(
        {seed: np.where(np.arange(60) == 7, values, NAN) for seed, values in rows[0].items()}
    )
    found = inference.pairs_by_sentence(rows)
    singly = [inference.paired_by_sentence(a, b) for a, b in combinations(rows, 2)]
    assert np.isnan([pair.mean for pair in singly]).any() and max(pair.n for pair in singly) == 4
    for all_, one in zip(found, singly, strict=True):
        assert tuple(all_) == pytest.approx(tuple(one), rel=1e-6, abs=1e-6, nan_ok=True)
    same = inference.pairs_by_sentence([rows[0], rows[0]])
    assert same[0].mean == 0 and same[0].half < 1e-6 and same[0].p == pytest.approx(1)
    assert inference.pairs_by_sentence(rows[:1]) == []


def test_pays_is_the_side_of_zero():
    lm = np.random.default_rng(0).normal(100, 20, (3, 200))
    noise = np.random.default_rng(1).normal(0, 1, (3, 200))
    said = [inference.pays(lm + noise + shift, lm) for shift in (-1, 0, 1)]
    assert said == ["pays", "free", "costs"]
    assert inference.pays(lm[:2] - 5, lm[:2]) is None


# -- may win ---------------------------------------------------------------------------------------


def row(nll, half=None, khat_bad=0.0, latent="global"):
    half = nll + 0.1 if half is None else half
    return {f"test/{name}": x for name, x in zip(NAMES, (nll, half, khat_bad, latent), strict=True)}


NAMES = ("nll", "nll_half", "khat_bad", "latent")
LM = row(100.0, NAN, NAN, "none")


@pytest.mark.parametrize(
    ("ours", "other", "reason"),
    [
        (row(90.0), row(100.0), ""),
        (row(90.0, khat_bad=0.10, half=100.0), row(100.0), ""),
        (row(90.0), LM, ""),
        (row(90.0, latent="sequence"), LM, ""),
        (row(90.0, khat_bad=0.11), LM, "this row's importance weights .* 11.0% are bad"),
        (row(90.0, khat_bad=NAN), LM, "this row's .* an unknown share"),
        (row(90.0), row(100.0, khat_bad=0.5), "the other row's importance weights"),
        (row(99.95), row(100.0), "moves by 0.1 nats .* difference is 0.05"),
        (row(99.95), LM, "this row's nll still moves"),
        (row(90.0), row(100.0, half=111.0), "the other row's nll still moves by 11 nats"),
        (row(90.0, half=NAN), LM, "unknown amount"),
        (row(90.0), row(100.0, latent="sequence"), "differ in kind: global and sequence"),
        (row(90.0, latent="implicit"), row(100.0), "differ in kind: implicit and global"),
        (row(90.0, latent=None), LM, "kind of latent"),
        (row(NAN), LM, "nll of one of them is not known"),
    ],
)
def test_a_row_may_win_where_its_number_can_be_trusted(ours, other, reason):
    answer = inference.may_win(ours, other)
    assert bool(answer) is answer.yes is (not reason)
    if reason:
        assert re.search(reason, answer.reason)
        assert not inference.may_win(other, ours)


def test_half_an_interval_is_not_taken_for_half_the_samples():
    with pytest.raises(KeyError):
        inference.may_win({"nll": 1.0, "nll_half": 0.1, "khat_bad": 0.0, "latent": "none"}, LM)


# -- many rows -------------------------------------------------------------------------------------


def test_holm_steps_down():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert inference.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    found = inference.holm([0.01, NAN, 0.04, 0.03, NAN, 0.005])
    assert found == pytest.approx([0.03, NAN, 0.06, 0.06, NAN, 0.02], nan_ok=True)
    assert list(inference.holm([0.9, 0.8])) == [1, 1] and len(inference.holm([])) == 0
    assert np.isnan(inference.holm([NAN, NAN])).all()


def test_holm_rejects_what_the_closed_test_rejects():
    """Holm's is the closure of Bonferroni's test: a hypothesis falls with every intersection that
    holds it (Marcus, Peritz and Gabriel 1976)."""
    p = np.random.default_rng(0).beta(0.5, 4, 6)
    sets = [set(some) for size in range(1, 7) for some in combinations(range(6), size)]
    closed = [max(len(s) * min(p[list(s)]) for s in sets if i in s) for i in range(6)]
    assert inference.holm(p) == pytest.approx(np.minimum(closed, 1))


def test_tie_groups_of_the_usual_kinds():
    names, means = ["c", "a", "b", "d"], [3.0, 1.0, 2.0, 4.0]
    far = dict(zip(names, means, strict=True))

    def groups(distance):
        return inference.tie_groups(names, means, lambda x, y: far[y] - far[x] >= distance)

    assert groups(1) == [("a",), ("b",), ("c",), ("d",)]
    assert groups(2) == [("a", "b"), ("b", "c"), ("c", "d")]
    assert groups(3) == [("a", "b", "c"), ("b", "c", "d")]
    assert groups(4) == [("a", "b", "c", "d")]
    assert inference.winner(groups(1)) == "a" and inference.winner(groups(2)) is None
    assert inference.tie_groups([], [], lambda x, y: True) == []
    assert inference.winner([]) is None


def test_a_row_without_a_mean_takes_no_part():
    separable = np.zeros((3, 3), bool)
    separable[2, 1] = True
    found = inference.tie_groups(["none", "b", "a"], [NAN, 2.0, 1.0], separable)
    assert found == [("a",), ("b",)] and inference.winner(found) == "a"


def test_the_best_alone_wins_even_where_others_tie_apart():
    # the best is told from all but one of the middle
    separable = np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    found = inference.tie_groups(["a", "b", "c"], [1.0, 2.0, 3.0], separable)
    assert found == [("a", "c"), ("b", "c")] and inference.winner(found) is None


def test_tie_groups_are_largest_sets_that_hold_every_tie():
    rng = np.random.default_rng(0)
    for size, density in product((1, 2, 5, 8), (0.2, 0.5, 0.8)):
        separable = np.triu(rng.random((size, size)) < density, 1)
        means, names = rng.permutation(size).astype(float), [f"m{i}" for i in range(size)]
        tied = ~(separable | separable.T)
        sets = [set(some) for n in range(1, size + 1) for some in combinations(range(size), n)]
        sets = [s for s in sets if all(tied[i, j] for i, j in combinations(s, 2))]
        largest = [s for s in sets if not any(s < other for other in sets)]
        groups = inference.tie_groups(names, list(means), separable)
        found = [[names.index(name) for name in group] for group in groups]
        assert all(set(group) in largest for group in found)
        ranks = [[means[i] for i in group] for group in found]
        assert ranks == sorted(map(sorted, ranks))
        together = {pair for group in found for pair in combinations(sorted(group), 2)}
        every = combinations(range(size), 2)
        assert together == {(i, j) for i, j in every if tied[i, j]}
        assert {i for group in found for i in group} == {*range(size)}


def test_tie_groups_stay_few_where_the_largest_are_countless():
    # each is separable from one other alone: of the 60 there are 2^30 largest sets
    names = [f"m{i}" for i in range(60)]
    groups = inference.tie_groups(
        names, list(range(60)), lambda a, b: int(a[1:]) // 2 == int(b[1:]) // 2
    )
    assert len(groups) < 20 and {len(group) for group in groups} == {30}


@pytest.mark.parametrize(("k", "n"), [(1, 3), (2, 3), (3, 10), (0, 5), (5, 5)])
def test_the_share_is_clopper_and_pearsons(k, n):
    low, high = inference.share(k, n)
    # where k or more, k or fewer, would be seen once in forty times
    assert low == 0 if k == 0 else stats.binom.sf(k - 1, n, low) == pytest.approx(0.025)
    assert high == 1 if k == n else stats.binom.cdf(k, n, high) == pytest.approx(0.025)
    assert low <= k / n <= high


def test_the_share_of_all_has_a_closed_form_and_that_of_none_says_nothing():
    assert inference.share(3, 3) == (pytest.approx(0.025 ** (1 / 3)), 1.0)
    assert inference.share(0, 10) == (0.0, pytest.approx(1 - 0.025**0.1))
    assert inference.share(0, 0) == (0.0, 1.0)
    for k, n in ((-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="no share"):
            inference.share(k, n)


# -- the variants of a method ----------------------------------------------------------------------


def test_the_expected_best_is_the_mean_over_all_draws():
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0]
    brute = [np.mean([min(some) for some in combinations(values, n)]) for n in range(1, 7)]
    assert inference.expected_best(values) == pytest.approx(brute)
    assert brute[0] == pytest.approx(23 / 6) and brute[-1] == 1.0
    assert len(inference.expected_best([])) == 0
    # many values: of 1 ... N the least of n is (N + 1) / (n + 1) on average
    many = inference.expected_best(np.arange(1, 2001).astype(float).tolist())
    assert many == pytest.approx(2001 / (np.arange(1, 2001) + 1))


def test_a_diverged_variant_makes_a_search_of_one_infinitely_bad():
    assert list(inference.expected_best([2.0, INF, 1.0])) == [INF, pytest.approx(4 / 3), 1.0]
    assert np.isnan(inference.expected_best([2.0, NAN, 1.0])).all()


def variants(**values):
    return {name: dict(enumerate(nlls)) for name, nlls in values.items()}


def test_a_variant_is_chosen_on_the_lower_half_and_reported_on_the_rest():
    tried = variants(a=[1, 1, 1, 9, 9, 9], b=[2, 2, 2, 0, 0, 0], c=[0, 2, 2, 0, 0, 0])
    assert inference.choose(tried) == ("a", 3, (0, 1, 2), (3, 4, 5), "")
    assert inference.choose(tried, [3, 5, 77]) == ("b", 3, (3, 5), (0, 1, 2, 4), "")
    odd = inference.choose(variants(a=[1.0] * 7, b=[0.5] * 7))
    assert odd == ("b", 2, (0, 1, 2), (3, 4, 5, 6), "")
    assert inference.choose(dict(reversed(tried.items()))) == inference.choose(tried)


def test_one_variant_is_reported_on_all_its_seeds():
    assert inference.choose({"a": {2: NAN, 0: 1.0}, "b": {}}) == ("a", 1, (), (0, 2), "")
    assert inference.choose({})[:4] == (None, 0, (), ())


def test_too_few_seeds_to_choose_and_report_are_told():
    name, _, on, seeds, note = inference.choose(variants(a=[2.0], b=[1.0]))
    assert (name, on, seeds) == ("b", (0,), (0,)) and "chosen and reported on the same" in note
    _, _, on, seeds, note = inference.choose(variants(a=[2.0] * 3, b=[1.0] * 3))
    assert (on, seeds) == ((0,), (1, 2)) and note.endswith("left to report on: 2")


def test_only_what_all_variants_have_run_decides():
    # all were tried on seed 0, one was run on
    tried = {"a": dict.fromkeys(range(5), 2.0), "b": {0: 3.0}, "c": {0: 4.0}}
    assert inference.choose(tried) == ("a", 3, (0,), (1, 2, 3, 4), "")
    name, tried_, on, seeds, note = inference.choose({"a": {0: 1.0}, "b": {1: 1.0}})
    assert (name, tried_, on, seeds) == (None, 2, (), ()) and note == "no seed was run by all"


def test_a_variant_that_diverged_or_is_unknown_where_it_counts_is_not_chosen():
    tried = variants(a=[INF, 0, 0, 0, 0, 0], b=[NAN, 0, 0, 0, 0, 0], c=[5, 5, 5, 5, 5, 5])
    assert inference.choose(tried)[:2] == ("c", 3)
    name, _, _, _, note = inference.choose(variants(a=[INF] * 4, b=[NAN] * 4))
    assert name is None and "none has a finite nll" in note


def test_the_cost_at_a_rate_is_between_the_neighbours_and_never_beyond():
    rates, nlls = [8.0, 0.0, 2.0, 4.0], [70.0, 100.0, 90.0, 60.0]
    for wanted, nll in ((0, 100), (0.5, 97.5), (2, 90), (3, 75), (7, 67.5), (8, 70)):
        assert inference.at_rate(rates, nlls, wanted) == pytest.approx(nll)
    for wanted in (-0.01, 8.01, NAN):
        assert math.isnan(inference.at_rate(rates, nlls, wanted))
    assert math.isnan(inference.at_rate([], [], 1.0))
    assert inference.at_rate([1.0, 1.0, 3.0], [2.0, 4.0, 5.0], 2.0) == pytest.approx(4.0)


def test_an_unknown_neighbour_leaves_the_cost_at_a_rate_unknown():
    rates, nlls = [0.0, 2.0, 4.0, NAN], [100.0, NAN, 60.0, 0.0]
    assert math.isnan(inference.at_rate(rates, nlls, 3.0))
    assert inference.at_rate(rates, nlls, 4.0) == 60.0
    assert inference.at_rate([0.0, 2.0], [1.0, INF], 1.0) == INF


# -- across data sets ------------------------------------------------------------------------------


def test_the_interquartile_mean_is_the_trimmed_mean_of_all():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 3), (3, 3), (5, 3), (4, 5)):
        scores = rng.standard_cauchy(shape)
        expected = stats.trim_mean(scores, 0.25, axis=None)
        assert inference.interquartile_mean(list(scores)) == pytest.approx(expected)
    assert inference.interquartile_mean([[1.0, 2.0], [3.0, INF]]) == 2.5  # one run diverged
    assert inference.interquartile_mean([[1.0], [INF, INF, 2.0]]) == INF
    assert math.isnan(inference.interquartile_mean([[1.0, 2.0, 3.0, NAN]]))
    assert math.isnan(inference.interquartile_mean([]))


def averaged(scores):
    return np.mean([group.mean(-1) for group in scores], axis=0)


def test_the_bootstrap_draws_seeds_within_their_data_set():
    # without strata the mean would vary by tens
    assert inference.stratified_bootstrap([[0.0] * 3, [100.0] * 3], averaged) == (50.0, 50.0)
    # all resamples of two data sets of three seeds, by count: the exact percentiles
    x, y = [0.0, 1.0, 5.0], [2.0, 3.0, 11.0]
    exact = [(sum(a) + sum(b)) / 6 for a in product(x, repeat=3) for b in product(y, repeat=3)]
    low, high = inference.stratified_bootstrap([x, y], averaged, draws=10_000)
    expected = np.quantile(exact, [0.025, 0.975], method="inverted_cdf")
    assert [low, high] == pytest.approx(expected, abs=0.2)


def test_the_bootstrap_is_the_same_again_and_another_with_another_seed():
    scores = list(np.random.default_rng(0).normal(size=(2, 10)))
    first, second, other = (
        inference.stratified_bootstrap(scores, averaged, 200, seed) for seed in (0, 0, 1)
    )
    assert first == second != other
    with pytest.raises(ValueError, match="without seeds"):
        inference.stratified_bootstrap([[1.0], []], averaged)


def test_the_bootstrap_of_unequal_unknown_and_infinite_scores():
    low, high = inference.stratified_bootstrap([[1.0, 2.0, INF], [3.0]], averaged, 200)
    assert 2 <= low <= 2.5 and high == INF
    assert np.isnan(inference.stratified_bootstrap([[1.0, NAN, 2.0]], averaged, 200)).all()


def test_the_probability_of_improvement_is_mann_and_whitneys():
    rng = np.random.default_rng(0)
    x, y = [rng.integers(0, 5, (2, n)).astype(float) for n in (3, 7)]
    u = [stats.mannwhitneyu(b, a).statistic / (len(a) * len(b)) for a, b in zip(x, y, strict=True)]
    assert inference.probability_of_improvement(list(x), list(y)) == pytest.approx(np.mean(u))
    assert inference.probability_of_improvement([[1.0]], [[2.0, 3.0]]) == 1.0  # lower is better
    # each data set counts once, however many its seeds
    assert inference.probability_of_improvement([[1.0], [5.0] * 9], [[2.0], [4.0] * 9]) == 0.5
    assert inference.probability_of_improvement([[INF, 1.0]], [[INF]]) == 0.75
    assert math.isnan(inference.probability_of_improvement([[1.0, NAN]], [[2.0]]))
    with pytest.raises(ValueError):
        inference.probability_of_improvement([[1.0]], [[1.0], [2.0]])


def test_two_methods_are_drawn_together():
    x, y = [[1.0, 2.0, 3.0]] * 2, [[2.5, 3.5, 4.5]] * 2

    def improvement(both):
        return inference.probability_of_improvement(both[:2], both[2:])

    low, high = inference.stratified_bootstrap([*x, *y], improvement, 500)
    assert low < inference.probability_of_improvement(x, y) < high <= 1


def test_statistics_of_draws_are_those_of_each():
    rng = np.random.default_rng(0)
    x, y = [[rng.integers(0, 4, (9, n)).astype(float) for n in (3, 5)] for _ in range(2)]
    x[0][4, 1], y[1][6, 0], x[1][8, 2] = INF, INF, NAN
    each = [([group[i] for group in x], [group[i] for group in y]) for i in range(9)]
    means = [inference.interquartile_mean(ours) for ours, _ in each]
    assert inference.interquartile_mean(x) == pytest.approx(means, nan_ok=True)
    chances = [inference.probability_of_improvement(*pair) for pair in each]
    assert inference.probability_of_improvement(x, y) == pytest.approx(chances, nan_ok=True)
    assert np.isnan(chances[8]) and not np.isnan(chances[:8]).any()


def test_the_profile_is_the_share_at_or_below():
    scores = [[1.0, 2.0, INF], [1.0, 4.0]]
    found = inference.performance_profile(scores, [0.0, 1.0, 2.0, 3.9, 4.0, INF])
    halves = [(0 + 0) / 2, (1 / 3 + 1 / 2) / 2, (2 / 3 + 1 / 2) / 2, 7 / 12, (2 / 3 + 1) / 2, 1]
    assert found == pytest.approx(halves)
    assert np.isnan(inference.performance_profile([[1.0, NAN], [1.0]], [0.0, 2.0])).all()


def test_inference_starts_without_torch_and_the_slow_part_of_scipy():
    code = "import sys, leaderboard.inference; print({'torch', 'scipy.stats'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
