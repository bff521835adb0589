"""The harness against the textbook: two programs that share no line must agree on every number.

First the textbook against arithmetic written out by hand, then the harness against the textbook,
in fp32 with dropout off. Weights are far larger than at the start of training, so that every
gradient is well above rounding and every gate is at work.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark import evaluate, objectives
from benchmark.api import BOS, EOS, PAD, SPECIALS, Batch, Draw, Recipe
from benchmark.config import Budget, Optimiser
from benchmark.models import GaussianVAE, LanguageModel, LSTMDecoder, LSTMEncoder
from benchmark.noise import Noise
from benchmark.train import Trainer
from tests import textbook
from tests.textbook import TextbookLM, TextbookVAE

VOCAB, EMBEDDING, HIDDEN, LATENT = 60, 24, 32, 6
EQUAL, UNEQUAL = [12] * 8, [3, 17, 9, 4, 12, 12, 2, 30]

# A parameter of the textbook -> the same parameter of the harness.
LSTM = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
DECODER_NAMES = {
    "decoder.embedding.weight": "decoder.embed.weight",
    **{f"decoder.lstm.{name}": f"decoder.lstm.{name}" for name in LSTM},
    "decoder.output.weight": "decoder.output.weight",
}
NAMES = {
    "encoder.embedding.weight": "encoder.embed.weight",
    **{f"encoder.lstm.{name}": f"encoder.lstm.{name}" for name in LSTM},
    "encoder.linear.weight": "encoder.head.weight",
    "decoder.initial.weight": "decoder.initial.weight",
    **DECODER_NAMES,
}


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    torch.manual_seed(0)


def sentences(lengths: list[int], vocab: int = VOCAB) -> list[Tensor]:
    """Random sentences [L] of so many predicted tokens each, `<s>` first and `</s>` last."""
    start, end = torch.tensor([BOS]), torch.tensor([EOS])
    words = [torch.randint(len(SPECIALS), vocab, (length - 1,)) for length in lengths]
    return [torch.cat([start, row, end]) for row in words]


def padded(rows: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


def as_batch(rows: list[Tensor], noise: Noise | None = None) -> Batch:
    """What the harness is given of sentences [L] each."""
    lengths = torch.tensor([len(row) for row in rows])
    return Batch(
        targets=padded([row[1:] for row in rows]),
        inputs=padded([row[:-1] for row in rows]),
        source=padded(rows),
        target_lengths=lengths - 1,
        source_lengths=lengths,
        noise=noise,
    )


@dataclass
class Kept:
    """A split that is held in memory and remembers which rows it was asked for."""

    rows: list[Tensor]
    name: str = "test"
    asked: list[np.ndarray] = field(default_factory=list)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row) - 1 for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray) -> Batch:
        self.asked.append(indices)
        return as_batch([self.rows[i] for i in indices])

    def stack(self, indices: np.ndarray) -> Tensor:
        """[B, L], what the textbook is given of sentences of one length."""
        return torch.stack([self.rows[i] for i in indices])


def loud(model: nn.Module, scale: float = 0.3) -> None:
    """Weights that make latents, gates and words matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, scale)


def small_textbook(latent: int = LATENT) -> TextbookVAE:
    model = TextbookVAE(VOCAB, EMBEDDING, HIDDEN, latent, dropout=0.0)
    loud(model)
    return model


def copy_weights(source: nn.Module, target: nn.Module, names: dict[str, str]) -> None:
    given, taken = dict(source.named_parameters()), dict(target.named_parameters())
    assert set(given) == set(names) and set(taken) == set(names.values())
    with torch.no_grad():
        for theirs, ours in names.items():
            assert given[theirs].shape == taken[ours].shape
            taken[ours].copy_(given[theirs])


def both(
    vocab: int = VOCAB,
    embedding: int = EMBEDDING,
    hidden: int = HIDDEN,
    latent: int = LATENT,
    dropout: float = 0.0,
) -> tuple[TextbookVAE, GaussianVAE]:
    """The textbook's model and the harness's with the same weights."""
    theirs = TextbookVAE(vocab, embedding, hidden, latent, dropout)
    loud(theirs, scale=0.3 * math.sqrt(HIDDEN / hidden))
    sizes = {"vocab_size": vocab, "embedding": embedding, "hidden": hidden, "latent": latent}
    ours = GaussianVAE(LSTMEncoder(**sizes), LSTMDecoder(**sizes, dropout=dropout))
    copy_weights(theirs, ours, NAMES)
    return theirs, ours


def both_language_models() -> tuple[TextbookLM, LanguageModel]:
    theirs = TextbookLM(VOCAB, EMBEDDING, HIDDEN, dropout=0.0)
    loud(theirs)
    sizes = {"vocab_size": VOCAB, "embedding": EMBEDDING, "hidden": HIDDEN, "latent": 0}
    ours = LanguageModel(LSTMDecoder(**sizes, dropout=0.0))
    copy_weights(theirs, ours, DECODER_NAMES)
    return theirs, ours


@torch.no_grad()
def relative(ours: Tensor, theirs: Tensor) -> float:
    """Euclidean norm of the difference over that of the reference."""
    assert ours.shape == theirs.shape and float(theirs.norm()) > 0
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


# ---- the textbook against arithmetic written out ------------------------------------------------


def by_hand(model: TextbookVAE, x: list[int], eps: Tensor) -> tuple[Tensor, Tensor]:
    """Rec and KL of one sentence, token by token, gate by gate."""

    def cell(lstm: nn.LSTM, value: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        gates = lstm.weight_ih_l0 @ value + lstm.bias_ih_l0
        gates = gates + lstm.weight_hh_l0 @ h + lstm.bias_hh_l0
        write, keep, candidate, show = gates.chunk(4)
        c = keep.sigmoid() * c + write.sigmoid() * candidate.tanh()
        return show.sigmoid() * c.tanh(), c

    encoder, decoder = model.encoder, model.decoder
    h = c = torch.zeros(HIDDEN)
    for token in x:
        h, c = cell(encoder.lstm, encoder.embedding.weight[token], h, c)
    head = encoder.linear.weight @ h
    mean, log_variance = head[:LATENT], head[LATENT:]
    z = mean + (log_variance / 2).exp() * eps
    c = decoder.initial.weight @ z
    h, rec = c.tanh(), torch.zeros(())
    for token, following in pairwise(x):
        h, c = cell(decoder.lstm, torch.cat([decoder.embedding.weight[token], z]), h, c)
        rec = rec - torch.log_softmax(decoder.output.weight @ h, 0)[following]
    q = torch.distributions.Normal(mean, (log_variance / 2).exp())
    p = torch.distributions.Normal(torch.zeros(LATENT), torch.ones(LATENT))
    return rec, torch.distributions.kl_divergence(q, p).sum()


def test_textbook_loss_is_the_sum_over_tokens_by_hand():
    model = small_textbook()
    rows, eps = sentences([7, 7, 7]), torch.randn(3, LATENT)
    loss, rec, kl = model.loss(torch.stack(rows), eps, kl_weight=0.3)
    for i, row in enumerate(rows):
        rec_i, kl_i = by_hand(model, row.tolist(), eps[i])
        torch.testing.assert_close(rec[i], rec_i, rtol=1e-5, atol=0)
        torch.testing.assert_close(kl[i], kl_i, rtol=1e-5, atol=0)
        torch.testing.assert_close(loss[i], rec_i + 0.3 * kl_i, rtol=1e-5, atol=0)


def test_textbook_starts_as_he_et_al_do():
    model = TextbookVAE(VOCAB, EMBEDDING, HIDDEN, LATENT, dropout=0.5)
    for name, parameter in model.named_parameters():
        bound = 0.1 if "embedding" in name else 0.01
        assert 0.9 * bound < parameter.abs().max() <= bound, name
    assert not any("linear.bias" in name or "output.bias" in name for name in model.state_dict())


def test_textbook_dropout_acts_in_training_alone():
    model = TextbookVAE(VOCAB, EMBEDDING, HIDDEN, LATENT, dropout=0.5)
    loud(model)
    x, eps = torch.stack(sentences(EQUAL)), torch.randn(len(EQUAL), LATENT)
    assert not torch.equal(model.loss(x, eps)[0], model.loss(x, eps)[0])
    model.eval()
    assert torch.equal(model.loss(x, eps)[0], model.loss(x, eps)[0])


def test_textbook_mixture_and_variances_by_hand():
    model = small_textbook()
    batches = [torch.stack(sentences([9] * 5)), torch.stack(sentences([4] * 3))]
    noise = [torch.randn(len(x), LATENT) for x in batches]
    total, means = 0.0, []
    for x, eps in zip(batches, noise, strict=True):
        mean, log_variance = (value.detach().double() for value in model.encoder(x))
        posteriors = [
            torch.distributions.MultivariateNormal(m, v.diag())
            for m, v in zip(mean, log_variance.exp(), strict=True)
        ]
        z = mean + (log_variance / 2).exp() * eps
        for code, own in zip(z, posteriors, strict=True):
            mixture = sum(q.log_prob(code).exp() for q in posteriors) / len(posteriors)
            total += float(-own.entropy() - mixture.log())
        means.append(mean)
    assert textbook.mutual_information(model, batches, noise) == pytest.approx(total / 8, rel=1e-5)
    variance = torch.cat(means).var(0)
    threshold = float(variance.sort().values[2])  # strictly between the least and the greatest
    units, measured = textbook.active_units(model, batches, threshold * (1 - 1e-4))
    torch.testing.assert_close(measured.double(), variance, rtol=1e-5, atol=0)
    assert units == LATENT - 2


def test_textbook_importance_weighting_is_the_integral():
    """One latent dimension: log p(x) by the trapezoidal rule on a fine grid."""
    model = small_textbook(latent=1)
    (row,) = sentences([6])
    x, grid = row[None], torch.linspace(-8, 8, 4001)[:, None]
    with torch.no_grad():
        prior = textbook.log_normal(grid, torch.zeros(1), torch.zeros(1))
        joint = model.decoder(x.expand(len(grid), -1), grid) + prior
    exact = -float(torch.logsumexp(joint.double(), 0) + math.log(16 / 4000))
    noise = torch.randn(4000, 1)
    estimate = textbook.iwae_nll(model, x, noise)
    assert estimate == pytest.approx(exact, abs=0.02)
    assert estimate == pytest.approx(textbook.iwae_nll(model, x, noise, chunk=7), rel=1e-5)
    assert textbook.iwae_nll(model, x, noise[:1]) != pytest.approx(exact, abs=0.02)


def test_textbook_with_z_ignored_is_the_language_model():
    model, lm = small_textbook(), TextbookLM(VOCAB, EMBEDDING, HIDDEN, dropout=0.0)
    with torch.no_grad():
        model.encoder.linear.weight.zero_()  # the posterior is the prior
        model.decoder.initial.weight.zero_()
        model.decoder.lstm.weight_ih_l0[:, EMBEDDING:] = 0
        for name, parameter in lm.named_parameters():
            value = model.get_parameter(name)
            parameter.copy_(value[:, :EMBEDDING] if name.endswith("weight_ih_l0") else value)
    rows = [row[None] for row in sentences(UNEQUAL)]
    with torch.no_grad():
        exact = [lm.loss(row).item() for row in rows]
    estimates = [textbook.iwae_nll(model, row, torch.randn(150, LATENT)) for row in rows]
    assert estimates == pytest.approx(exact, rel=1e-5)
    batches = [torch.stack(sentences([5] * 4))]
    assert textbook.active_units(model, batches)[0] == 0
    assert textbook.bound(model, batches, [torch.randn(4, LATENT)])["kl"] == 0


def test_textbook_perplexity_counts_the_end_of_a_sentence():
    # 2 + 4 predicted tokens, </s> among them: (e^6)^(1/6)
    rows = [row[None] for row in sentences([2, 4])]
    assert textbook.perplexity([1.5, 4.5], rows) == pytest.approx(math.e)


# ---- the harness against the textbook -----------------------------------------------------------


def differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Relative difference of every tensor, and of all of them as one vector under "total"."""
    assert ours.keys() == theirs.keys()
    found = {name: relative(ours[name], theirs[name]) for name in theirs}
    flat = [torch.cat([values[name].flatten() for name in theirs]) for values in (ours, theirs)]
    return found | {"total": relative(*flat)}


def gradients(theirs: nn.Module, ours: nn.Module, names: dict[str, str]) -> dict[str, float]:
    """`differences` of the gradients that both models hold."""
    return differences(
        {name: ours.get_parameter(counterpart).grad for name, counterpart in names.items()},
        {name: parameter.grad for name, parameter in theirs.named_parameters()},
    )


def compare_losses(theirs: TextbookVAE, ours: GaussianVAE, rows: list[Tensor]) -> dict[str, float]:
    """Relative differences of loss, Rec, KL and all gradients; the textbook meets the sentences
    one by one, the harness together."""
    latent, ids = ours.units, torch.arange(len(rows))
    batch = as_batch(rows, Noise("train", ids))
    draw = ours.draw(batch)
    loss = objectives.negative_elbo(draw, batch, 0)
    loss.backward()

    eps = Noise("train", ids).normal(1, latent)[:, 0]
    each = [theirs.loss(row[None], e[None]) for row, e in zip(rows, eps, strict=True)]
    expected, rec, kl = (torch.cat(values) for values in zip(*each, strict=True))
    expected.mean().backward()
    return gradients(theirs, ours, NAMES) | {
        "loss": relative(loss, expected.mean()),
        "rec": relative(-draw.log_px[:, 0], rec),
        "kl": relative(draw.kl.sum(-1), kl),
    }


def test_harness_starts_as_he_et_al_do():
    sizes = {"vocab_size": VOCAB, "embedding": EMBEDDING, "hidden": HIDDEN, "latent": LATENT}
    model = GaussianVAE(LSTMEncoder(**sizes), LSTMDecoder(**sizes, dropout=0.5))
    for name, parameter in model.named_parameters():
        bound = 0.1 if "embed" in name else 0.01
        assert 0.9 * bound < parameter.abs().max() <= bound, name


@pytest.mark.parametrize("lengths", [EQUAL, UNEQUAL, [1]], ids=["equal", "padded", "only </s>"])
def test_loss_and_every_gradient(lengths):
    found = compare_losses(*both(), sentences(lengths))
    assert all(value < 1e-5 for value in found.values()), found


def test_loss_and_every_gradient_with_more_logits_than_are_held_at_once():
    vocab = 40_000
    found = compare_losses(*both(vocab=vocab), sentences([100] * 8 + [60, 40], vocab))
    assert all(value < 1e-5 for value in found.values()), found


def test_loss_and_every_gradient_at_the_start_of_training():
    """PTB's sizes and He et al.'s small weights, where gradients span many orders of magnitude."""
    theirs, ours = both(vocab=2000, embedding=256, hidden=256, latent=32)
    textbook.initialise(theirs)
    copy_weights(theirs, ours, NAMES)
    found = compare_losses(theirs, ours, sentences([21, 9, 34, 17], 2000))
    del found["kl"]  # about 1e-7 nats, the rounding of its own terms
    assert all(value < 1e-5 for value in found.values()), found


def test_language_model_and_every_gradient():
    theirs, ours = both_language_models()
    rows = sentences(UNEQUAL)
    draw = ours.draw(batch := as_batch(rows))
    objectives.negative_elbo(draw, batch, 0).backward()
    each = torch.cat([theirs.loss(row[None]) for row in rows])
    each.mean().backward()
    assert relative(-draw.log_px[:, 0], each) < 1e-5
    found = gradients(theirs, ours, DECODER_NAMES)
    assert all(value < 1e-5 for value in found.values()), found


@torch.no_grad()
def test_several_codes_a_sentence_and_their_densities():
    theirs, ours = both()
    rows, k = sentences(UNEQUAL), 7
    ids = torch.arange(len(rows))
    draw = ours.draw(batch := as_batch(rows, Noise("test", ids)), k)
    assert draw.z is not None
    noise = Noise("test", ids).normal(k, LATENT)
    nlls = math.log(k) - torch.logsumexp(draw.log_px + draw.log_pz - draw.log_qz, dim=1)
    expected = [textbook.iwae_nll(theirs, r[None], e, 3) for r, e in zip(rows, noise, strict=True)]
    assert nlls.tolist() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(ours.log_px(batch, draw.z), draw.log_px)

    codes = draw.z[:, 0]
    columns = [textbook.log_normal(codes, *theirs.encoder(row[None])) for row in rows]
    assert relative(ours.log_q(codes, batch), torch.stack(columns, dim=1)) < 1e-5


def annealed(draw: Draw, batch: Batch, t: int) -> Tensor:
    weight = objectives.linear_ramp(t, 40, start=0.1)
    return objectives.reconstruction(draw) + weight * objectives.rate(draw)


def trainer_on(split: Kept, model: GaussianVAE, budget: Budget) -> Trainer:
    """The harness's trainer, on batches of `budget.batch_size` rows in a row. It has nowhere to
    record to: nothing is recorded, saved or validated within an epoch."""
    batches = list(np.arange(len(split)).reshape(-1, budget.batch_size))
    return Trainer(
        Recipe(model=model, objective=annealed),
        SimpleNamespace(steps=len(batches), steps_per_epoch=len(batches)),
        budget,
        split,
        batches,
        seed=0,
        device=torch.device("cpu"),
        autocast=nullcontext,
        validate=None,
        directory=None,
        metrics=None,
    )


@pytest.mark.parametrize("optimiser", Optimiser)
def test_twenty_steps_of_training(optimiser):
    """The trainer's own loop, clipped at 5, against the textbook's on the same batches."""
    theirs, ours = both()
    start = {name: p.detach().clone() for name, p in theirs.named_parameters()}
    split = Kept(sentences([2] * 8 * 15 + [25] * 8 * 15))
    rate = {Optimiser.sgd: 1.0, Optimiser.adam: 3e-3}[optimiser]
    budget = Budget(
        name="test",
        batch_size=8,
        optimiser=optimiser,
        learning_rate=rate,
        clip=5.0,
        select="nll",
    )
    torch.manual_seed(1)
    trainer = trainer_on(split, ours, budget)
    assert trainer.train(20, lambda: False, save_every=math.inf)

    kind = {Optimiser.sgd: torch.optim.SGD, Optimiser.adam: torch.optim.Adam}[optimiser]
    by_the_book = kind(theirs.parameters(), lr=rate)
    torch.manual_seed(1)
    assert len(split.asked) == 20
    for t, indices in enumerate(split.asked):
        eps = torch.randn(len(indices), 1, LATENT)[:, 0]
        weight = 0.1 + 0.9 * t / 40
        textbook.train_step(theirs, by_the_book, split.stack(indices), eps, weight, clip=5.0)

    measured = {name: ours.get_parameter(counterpart) for name, counterpart in NAMES.items()}
    found = differences(measured, dict(theirs.named_parameters()))
    assert all(value < 1e-4 for value in found.values()), found
    moved = differences(measured, start)
    assert all(value > 1e-2 for value in moved.values()), moved  # or agreement means nothing


# Lengths of which one fills more than a mixture of 32, and one holds a single sentence.
MIXED = [5] * 40 + [9] * 33 + [3] + [14] * 7
SAMPLES, CODES = 3, 23  # of the ELBO; of the importance weights


@pytest.mark.parametrize("tokens", [2**15, 50], ids=["roomy", "cramped"])
def test_metrics(tokens, monkeypatch):
    """Every metric, however little room the decoder has, from the same noise."""
    monkeypatch.setitem(evaluate.TOKENS, "cpu", tokens)
    theirs, ours = both(dropout=0.5)  # which the harness itself must turn off
    theirs.eval()
    with torch.no_grad():
        theirs.encoder.linear.weight[:2] *= 0.01  # two units whose means hardly move
        theirs.encoder.linear.weight[2:LATENT] *= 5  # and others that tell sentences apart
    copy_weights(theirs, ours, NAMES)
    rows = sentences(MIXED)
    split = Kept([rows[i] for i in torch.randperm(len(rows))])
    effort = evaluate.Effort(SAMPLES, CODES, None, read_candidates=4, read_sentences=10)
    report = evaluate.evaluate(ours, split, effort)

    places = [np.flatnonzero(split.lengths == length) for length in np.unique(split.lengths)]
    places = [some[i : i + 32] for some in places for i in range(0, len(some), 32)]
    batches = [split.stack(some) for some in places]
    noise = [Noise("test", torch.as_tensor(some)).normal(SAMPLES, LATENT) for some in places]
    bounds = [textbook.bound(theirs, batches, [eps[:, k] for eps in noise]) for k in range(SAMPLES)]
    expected = {name: np.mean([found[name] for found in bounds]) for name in bounds[0]}
    expected["mi_batch32"] = textbook.mutual_information(theirs, batches, [e[:, 0] for e in noise])
    expected["au"], variance = textbook.active_units(theirs, batches)
    rows = [row[None] for row in split.rows]
    noise = [Noise("test", torch.tensor([i])).normal(CODES, LATENT)[0] for i in range(len(rows))]
    nlls = [textbook.iwae_nll(theirs, r, e, chunk=10) for r, e in zip(rows, noise, strict=True)]
    expected["nll"] = np.mean(nlls)
    expected["ppl"] = textbook.perplexity(nlls, rows)
    expected["mi"] = whole_mixture(theirs, rows)

    assert 0 < expected["au"] < LATENT
    measured = {name: report.summary[name] for name in expected}
    assert measured == pytest.approx(expected, rel=1e-5)
    assert report.sentences["nll"] == pytest.approx(np.array(nlls), rel=1e-5)
    assert report.units["variance_of_mean"] == pytest.approx(variance.numpy(), rel=1e-5)


@torch.no_grad()
def whole_mixture(model: TextbookVAE, rows: list[Tensor]) -> float:
    """I(x; z) by the mixture of all N posteriors, every code's own density sampled."""
    mean, log_variance = (torch.cat(parts) for parts in zip(*map(model.encoder, rows), strict=True))
    eps = Noise("test", torch.arange(len(rows))).normal(1, LATENT)[:, 0]
    z = mean + (0.5 * log_variance).exp() * eps
    each = textbook.log_normal(z[:, None].double(), mean.double(), log_variance.double())
    return float((each.diagonal() - each.logsumexp(1)).mean()) + math.log(len(rows))


def test_metrics_of_the_language_model():
    theirs, ours = both_language_models()
    split = Kept(sentences(MIXED))
    effort = evaluate.Effort(1, CODES, None, read_candidates=4, read_sentences=10)
    summary = evaluate.evaluate(ours, split, effort).summary
    with torch.no_grad():
        nlls = [theirs.loss(row[None]).item() for row in split.rows]
    assert summary["nll"] == pytest.approx(np.mean(nlls), rel=1e-5)
    assert summary["ppl"] == pytest.approx(
        textbook.perplexity(nlls, [row[None] for row in split.rows]), rel=1e-5
    )
