"""The generators' exact values, each against a computation that shares no line with it: sums over
every sentence there is, averages over draws from the prior, and Bayes by rejection."""

import itertools

import numpy as np
import pytest

from benchmark.data import synthetic
from benchmark.data.errors import DataError
from benchmark.data.synthetic import FIRST, build

TINY = {
    "tables": {"kind": "tables", "tables": 3, "words": 3, "length": 4, "scale": 2.0, "seed": 1},
    "plane": {"kind": "plane", "words": 4, "length": 4, "scale": 1.0, "seed": 1},
    "masked": {
        "kind": "plane", "words": 4, "length": 4, "scale": 1.0, "seed": 1, "mask": [1, 0, 0, 1]
    },
    "echo": {
        "kind": "echo", "pairs": 2, "codes": 2, "words": 2, "gap": 2, "eps": 0.3, "scale": 2.0,
        "seed": 1,
    },
    "markov": {"kind": "markov", "words": 4, "length": 4, "scale": 4.0, "seed": 1},
    "lstm": {
        "kind": "lstm", "words": 4, "length": 4, "embedding": 3, "hidden": 4, "seed": 1,
        "coarse": 0.4, "cuts": 1, "depth": 25.0,
    },
}  # fmt: skip


def every_sentence(truth) -> np.ndarray:
    words = range(FIRST, FIRST + truth.symbols)
    return np.array(list(itertools.product(words, repeat=truth.length)))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def p_tables(truth, x: np.ndarray, k: np.ndarray) -> np.ndarray:
    """p(x|z) of one sentence of symbols for draws of the latent, written out token by token."""
    p, before = np.ones(len(k)), truth.symbols
    for word in x:
        p *= np.exp(truth.log_p)[k, before, word]
        before = word
    return p


def p_plane(truth, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    p, before = np.ones(len(z)), truth.symbols
    for t, word in enumerate(x):
        p *= softmax(truth.a[before] + truth.mask[t] * (z @ truth.w.T))[:, word]
        before = word
    return p


def p_echo(truth, x: np.ndarray, codes: np.ndarray) -> np.ndarray:
    m, gap, eps = truth.pairs, truth.gap, truth.eps
    p = np.ones(len(codes))
    for i in range(m):
        for word in (x[i], x[m + gap + i]):
            p *= np.where(codes[:, i] == word, 1 - eps, 0) + eps / truth.codes
    before = len(truth.filler.log_p[0]) - 1
    for word in x[m : m + gap] - truth.codes:
        p *= np.exp(truth.filler.log_p[0, before, word])
        before = word
    return p


def p_lstm(truth, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    import torch

    w, hidden = truth.weights, truth.weights.h.shape[0]
    cell = torch.nn.LSTMCell(truth.symbols + 2, hidden).double()
    with torch.no_grad():
        cell.weight_ih.copy_(torch.tensor(np.concatenate([w.word, w.z]).T))
        cell.weight_hh.copy_(torch.tensor(w.h.T))
        cell.bias_ih.zero_()
        cell.bias_hh.zero_()
        c = torch.tensor(z @ w.cell)
        state = (torch.tanh(c), c)
        p = np.full(len(z), 1 / truth.symbols)
        for before, word in itertools.pairwise(x):
            one_hot = np.tile(np.eye(truth.symbols)[before], (len(z), 1))
            state = cell(torch.tensor(np.concatenate([one_hot, z], axis=1)), state)
            logits = state[0].numpy() @ w.out[:hidden] + z @ w.out[hidden:]
            p *= softmax(logits)[:, word]
    return p


def prior_draws(truth, n: int, rng: np.random.Generator) -> np.ndarray:
    match truth:
        case synthetic.Echo():
            return rng.integers(truth.codes, size=(n, truth.pairs))
        case synthetic.Tables():
            return rng.integers(len(truth.log_p), size=n)
        case synthetic.Plane():
            return rng.normal(size=(n, 2))
        case _:
            centres = np.array([[-2, -2], [2, 2], [-2, 2], [2, -2]])
            return centres[rng.integers(4, size=n)] + rng.normal(size=(n, 2))


LIKELIHOOD = {
    "tables": p_tables, "markov": p_tables, "plane": p_plane, "masked": p_plane, "echo": p_echo,
    "lstm": p_lstm,
}  # fmt: skip


@pytest.fixture(params=TINY)
def tiny(request):
    return request.param, build(TINY[request.param])


def test_the_probabilities_of_all_sentences_sum_to_one(tiny):
    _, truth = tiny
    assert np.exp(truth.log_px(every_sentence(truth))).sum() == pytest.approx(1, abs=2e-4)


def test_log_px_agrees_with_an_average_over_the_prior(tiny):
    name, truth = tiny
    ids, _ = truth.sample(12, stream=9)
    z = prior_draws(truth, 200_000, np.random.default_rng(3))
    for x, log_px in zip(ids, truth.log_px(ids), strict=True):
        p = LIKELIHOOD[name](truth, x - FIRST, z)
        error = p.std() / np.sqrt(len(p))
        assert abs(p.mean() - np.exp(log_px)) < 4.5 * error + 1e-4 * p.mean()


def test_samples_follow_log_px(tiny):
    """The mean of -log p(x) over samples is the entropy, which is summed over every sentence; and
    the most frequent sentences come as often as they should."""
    _, truth = tiny
    sentences = every_sentence(truth)
    log_px = truth.log_px(sentences)
    p = np.exp(log_px)
    possible = p > 0
    entropy = -(p[possible] * log_px[possible]).sum()
    ids, _ = truth.sample(20_000, stream=0)
    powers = truth.symbols ** np.arange(truth.length)[::-1]  # `every_sentence` counts like this
    sampled = log_px[(ids - FIRST) @ powers]
    assert abs(-sampled.mean() - entropy) < 4.5 * sampled.std() / np.sqrt(len(ids)) + 1e-3
    top = np.argsort(-p)[:10]
    seen = np.array([(ids == sentences[i]).all(axis=1).mean() for i in top])
    assert (np.abs(seen - p[top]) < 4.5 * np.sqrt(p[top] / len(ids)) + 1e-3).all()


def test_the_posterior_is_what_rejection_leaves(tiny):
    """Of codes drawn with a sentence, those whose sentence is x follow p(z|x)."""
    name, truth = tiny
    x = truth.sample(1, stream=4)[0]
    z = prior_draws(truth, 200_000, np.random.default_rng(5))
    p = LIKELIHOOD[name](truth, x[0] - FIRST, z)
    posterior = truth.posterior(x)
    width = posterior.mean.shape[1]
    kept = z[np.random.default_rng(6).random(len(z)) < p / p.max()].reshape(-1, width)
    np.testing.assert_allclose(posterior.weights.sum(axis=1), 1, atol=1e-12)
    error = kept.std(axis=0) / np.sqrt(len(kept))
    assert len(kept) > 500
    assert (np.abs(kept.mean(axis=0) - posterior.mean[0]) <= 4.5 * error + 1e-3).all()


def test_mutual_information_agrees_with_joint_draws(tiny):
    """I(x; z) = E log p(x|z) - E log p(x), with z drawn first and p(x|z) written out above."""
    name, truth = tiny
    if name == "lstm":
        config = TINY["lstm"] | {"cuts": 0, "depth": 10.0}  # quicker, and near enough
        truth = build(config)
    _, rates = truth.score(truth.sample(1_000 if name == "lstm" else 4_000, stream=7)[0])
    value, error = truth.mi(rates)
    rng = np.random.default_rng(8)
    z = prior_draws(truth, 400, rng)
    everything = every_sentence(truth) - FIRST
    log_px = truth.log_px(everything + FIRST)
    everything, log_px = everything[np.isfinite(log_px)], log_px[np.isfinite(log_px)]
    p = np.stack([LIKELIHOOD[name](truth, x, z) for x in everything], axis=1)  # [400, sentences]
    gains = (p * (np.log(p) - log_px)).sum(axis=1)  # KL(p(x|z) || p(x))
    noise = gains.std() / np.sqrt(len(gains))
    assert abs(value - gains.mean()) < 4.5 * np.hypot(error, noise) + 1e-9
    assert (value == 0) == (name == "markov")


def test_the_price_of_a_forgotten_echo():
    """The closed form's 1.64 nats for two pairs of four codes at eps = .1."""
    said = np.exp(build(TINY["echo"] | {"codes": 4, "eps": 0.1}).log_said)
    joint = said.T @ said / 4
    apart = np.outer(joint.sum(1), joint.sum(0))
    assert 2 * (joint * np.log(joint / apart)).sum() == pytest.approx(1.64, abs=0.005)


@pytest.mark.parametrize("finer", [{"step": 0.075}, {"reach": 9.0}])
def test_the_quadrature_on_the_plane_has_converged(finer):
    config = {"kind": "plane", "words": 50, "length": 20, "scale": 1.0, "seed": 0}
    ids, _ = build(config).sample(20, stream=2)
    usual, finer_one = build(config).score(ids), build(config | finer).score(ids)
    np.testing.assert_allclose(usual, finer_one, atol=1e-6)


def test_the_quadrature_of_the_lstm_has_converged_in_the_mean():
    config = {"kind": "lstm", "words": 60, "length": 10, "embedding": 20, "hidden": 20, "seed": 3}
    ids, _ = build(config).sample(100, stream=2)
    usual = build(config).log_px(ids)
    finer = build(config | {"cuts": 4, "depth": 20.0}).log_px(ids)
    assert abs((usual - finer).mean()) < 1e-3
    assert (usual - finer).std() < 0.02


def test_sizes_and_values_of_the_default_data():
    """An earlier trial measured H(x) = 30.60 on another draw of the tables; I is ln 8 at
    most."""
    truth = build(
        {"kind": "tables", "tables": 8, "words": 20, "length": 16, "scale": 2.0, "seed": 0}
    )
    log_px, rates = truth.score(truth.sample(4_000, stream=2)[0])
    assert -log_px.mean() == pytest.approx(30.6, abs=1.5)
    assert 2.0 < truth.mi(rates)[0] <= np.log(8)


def test_the_lstm_begins_uniformly():
    truth = build(TINY["lstm"] | {"words": 10})
    first = truth.sample(20_000, stream=0)[0][:, 0] - FIRST
    counts = np.bincount(first, minlength=10)
    assert ((counts - 2_000) ** 2 / 2_000).sum() < 30  # chi-square, 9 degrees: p < 5e-4 beyond


def test_a_word_out_of_place_is_impossible():
    truth = build(TINY["tables"])
    ids, _ = truth.sample(3, stream=0)
    ids[1, 2], ids[2, 0] = FIRST - 1, FIRST + truth.symbols
    log_px = truth.log_px(ids)
    assert np.isfinite(log_px[0]) and (log_px[1:] == -np.inf).all()
    with pytest.raises(ValueError, match=r"\[N, 4\]"):
        truth.log_px(ids[:, 1:])


def test_streams_differ_and_repeat():
    truth = build(TINY["plane"])
    again = build(TINY["plane"])
    np.testing.assert_array_equal(truth.sample(50, 0)[0], again.sample(50, 0)[0])
    assert (truth.sample(50, 0)[0] != truth.sample(50, 1)[0]).any()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kind": "tabels"}, "choose one of"),
        ({"kind": "markov", "words": 3}, "missing a required argument: 'length'"),
        (TINY["markov"] | {"tables": 2}, "unexpected keyword argument 'tables'"),
        (TINY["plane"] | {"mask": [1]}, "mask has 1 entries, but length is 4"),
    ],
)
def test_a_wrong_generator_is_refused(wrong, says):
    with pytest.raises(DataError, match=says):
        build(wrong)
