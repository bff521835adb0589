"""Could a latent pay? Asked of a language model alone, of what its errors have in common.

Given the words before it, a word's residual r_t = onehot(x_t) - p_t has mean 0 where the model is
right. With any features f_t of those words, S = sum_t f_t (x) r_t then has

    E SS' = F = E sum_t f_t f_t' (x) (diag p_t - p_t p_t')

and a code that shifts the logits by z u'f_t, z ~ N(0, s^2), gains s^2/2 u'(E SS' - F)u nats a
sentence to second order in s (the score of a random effect: Liang 1987, Biometrika 74). What counts
here is the part of it that two positions share, with b_t = f_t (x) (r_t - E[r_t | f_t]),

    ratio = 1 + u' E[sum_{s != t} b_s b_t'] u / u'Fu

for what is wrong at single positions, or by the same amount in every sentence, no code is needed to
mend. Above 1, sentences differ by something that the words before do not tell this model: what a
code could.

Unigram: f = 1, some sentences have more of a word. Bigram: f_t = onehot(x_{t-1}), they have more of
it behind another. The direction u is sought on one half of the sentences and measured on the other,
and the other way round; so the ratio is 1 but for its error under any right model, and on average
below that of the best direction under a wrong one.

Words are classes, the most frequent ones and one of all others: a sum of residuals has mean 0 too,
and with K classes of words behind J classes the search takes a block [K, K] for each of J, never
[J K, J K].
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from torch.nn.functional import one_hot

from benchmark.api import LatentModel
from benchmark.compose import UserError
from benchmark.diagnosis.sentences import batches, room
from benchmark.estimators import Array
from benchmark.evaluate import Rows, SplitLike, by_length, subset
from benchmark.models.likelihood import SLAB

MOST = 4_000  # sentences
LEAST = 100  # of which the standard error of a ratio near 1 is about 0.15
ENOUGH = 1_000  # a ratio that 4,000 put at 2.3 was 1.3 of 250 and 1.7 of 1,000
KINDS = {"unigram": (1, 500), "bigram": (64, 64)}  # J and K
RIDGE = 1.0  # of F's mean diagonal, added to it in the search: keeps off words that hardly occur
PAYS = 1.2  # a ratio that counts; a trained LSTM has had up to 1.14 without anything to encode
LEARNING = 0.1  # nats a sentence that validation fell by of late, from where a model still learns
FEW = 0.01  # of the sentences, without which a verdict should stand
SHARED = 1.2  # halves that find each other's directions are not independent: so much wider, by the
# ratio's spread over 100 samples under right models (0.95 to 1.25), is its error than its terms say
TOLERANCE = 1e-3  # of the search's eigenvalue; whatever direction it finds is measured truly

Half = list[tuple[SplitLike, Rows]]


@torch.no_grad()
def residuals(
    model: LatentModel,
    splits: Sequence[SplitLike],
    device: torch.device,
    trail: Sequence[float] = (),
    most: int = MOST,
) -> dict[str, Any]:
    """The ratio of each kind on held-out splits, with its standard error and a verdict:

    could pay   by two standard errors above the threshold
    no sign     by two below it
    unclear     neither: more sentences would tell

    trail: the validation nll in nats a sentence, oldest first. most: sentences of all the splits.
    Raises UserError for a model with a latent, and for fewer than 100 sentences.
    """
    if model.latent != "none":
        raise UserError(
            "whether a latent could pay is asked of a model without one, "
            f"and this one's is {model.latent!r}: diagnose a language model's run."
        )
    chosen = [(split, subset(split, "residuals", most // len(splits))) for split in splits]
    sentences = sum(len(rows) for _, rows in chosen)
    if sentences < LEAST:
        raise UserError(f"{sentences} sentences are too few for residuals; give {LEAST} or more.")
    # neighbours may be of one document, whose theme would be sought and found: they stay together
    halves: list[Half] = [
        [(split, np.array_split(rows, 2)[half]) for split, rows in chosen] for half in (0, 1)
    ]
    before, words = _counts(chosen)
    kinds = {
        name: Kind(Classes(before, j, device), Classes(words, k, device))
        for name, (j, k) in KINDS.items()
    }
    sums = {name: [Sums(kind, device) for _ in halves] for name, kind in kinds.items()}
    for half, parts in enumerate(halves):
        for predicted in _predicted(model, parts, len(words), device):
            for name, kind in kinds.items():
                sums[name][half].add(*kind(*predicted))
    directions = {name: [each.direction() for each in pair] for name, pair in sums.items()}
    shares: dict[str, list[Tensor]] = {name: [] for name in kinds}
    for half, parts in enumerate(halves):
        for predicted in _predicted(model, parts, len(words), device):
            for name, kind in kinds.items():
                found_elsewhere = directions[name][1 - half]
                shares[name].append(_measured(*kind(*predicted), *found_elsewhere))
    told = {name: _told(torch.cat(parts, 1).cpu().numpy()) for name, parts in shares.items()}
    verdicts = {each["verdict"] for each in told.values()}
    verdict = next(v for v in ("could pay", "unclear", "no sign") if v in verdicts)
    fell = _fell(trail)
    about = {"verdict": verdict, "threshold": PAYS, "sentences": sentences, "fell": fell}
    return about | told | {"notes": _notes(told, verdict, sentences, fell)}


class Classes:
    """The most frequent words, each a class of its own, and all others in one more, the last."""

    def __init__(self, counts: np.ndarray, most: int, device: torch.device) -> None:
        order = np.argsort(-counts, kind="stable")
        kept = order[: min(most - 1, np.count_nonzero(counts))]
        of = np.full(len(counts), len(kept))
        of[kept] = np.arange(len(kept))
        self.number = len(kept) + 1
        self.kept, self.of = (torch.as_tensor(ids, device=device) for ids in (kept, of))


@dataclass(frozen=True)
class Kind:
    """Which words are told apart, as a feature of what follows and as what is predicted."""

    before: Classes
    words: Classes

    def __call__(
        self, inputs: Tensor, targets: Tensor, log_p: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features [B, T], and probabilities and residuals [B, T, K] of the classes, of words
        before and words [B, T] and what is predicted of them [B, T, V]."""
        p = log_p[..., self.words.kept].exp()
        p = torch.cat([p, (1 - p.sum(-1, keepdim=True)).clamp(min=0)], -1)
        return self.before.of[inputs], p, one_hot(self.words.of[targets], self.words.number) - p


class Sums:
    """What half of the sentences say of one kind, and the direction it suggests."""

    def __init__(self, kind: Kind, device: torch.device) -> None:
        self.scores: list[Array] = []  # [B, J, K] each, S
        self.counts: list[Array] = []  # [B, J] each, how often a feature is there
        shape = kind.before.number, kind.words.number, kind.words.number
        # of sum_t r_t r_t' and of F, given the feature
        self.own, self.variance = torch.zeros(2, *shape, dtype=torch.float64, device=device)

    def add(self, feature: Tensor, p: Tensor, r: Tensor) -> None:
        """Take in what a kind says of some sentences."""
        there = one_hot(feature, len(self.own)).to(r.dtype)
        self.scores.append((there.mT @ r).cpu().numpy())
        self.counts.append(there.sum(1).cpu().numpy())
        for j in feature.unique().tolist():
            some, errors = p[feature == j], r[feature == j]
            self.own[j] += errors.mT @ errors
            self.variance[j] += some.sum(0).diag() - some.mT @ some

    def direction(self) -> tuple[Tensor, Tensor]:
        """u, and the mean residual given each feature, [J, K] each."""
        scores, counts = (np.concatenate(each).astype(float) for each in (self.scores, self.counts))
        seen = counts.sum(0)[:, None]  # [J, 1]
        mean = scores.sum(0) / np.maximum(seen, 1)
        scores -= counts[..., None] * mean
        own = self.own.cpu().numpy() - seen[..., None] * mean[:, :, None] * mean[:, None]
        u = _top(scores, own, self.variance.cpu().numpy())
        device = self.own.device
        return torch.as_tensor(u, device=device).float(), torch.as_tensor(
            mean, device=device
        ).float()


def _top(scores: Array, own: Array, variance: Array) -> Array:
    """[J, K], the u whose u'(sum of SS' - own)u is greatest for its u'(variance + ridge)u; scores:
    [N, J, K]; own, variance: blocks [J, K, K]."""
    _, features, words = scores.shape
    size, flat = features * words, scores.reshape(len(scores), -1)
    mean_diagonal = np.trace(variance, axis1=1, axis2=2).sum() / size
    ridged = variance + RIDGE * mean_diagonal * np.eye(words)

    def operator(times: Callable[[Array], Array]) -> LinearOperator:
        return LinearOperator((size, size), matvec=times, dtype=float)  # type: ignore[call-arg]

    def within(blocks: Array) -> Callable[[Array], Array]:
        return lambda u: (blocks @ u.reshape(features, words, 1)).ravel()

    own_part = within(own)
    _, best = eigsh(
        operator(lambda u: flat.T @ (flat @ u) - own_part(u)),
        k=1,
        M=operator(within(ridged)),
        Minv=operator(within(np.linalg.inv(ridged))),
        which="LA",
        v0=np.random.default_rng(0).normal(size=size),
        tol=TOLERANCE,  # type: ignore[arg-type]
    )
    return best.reshape(features, words)


def _counts(chosen: Half) -> tuple[np.ndarray, np.ndarray]:
    """How often each word stands before another, and how often it is predicted, [V] each."""
    found = np.zeros((2, 0), np.int64)
    for split, rows in chosen:
        for _, same in by_length(split, rows):
            batch = split.batch(same)
            ids = [words.numpy().ravel() for words in (batch.inputs, batch.targets)]
            size = max(found.shape[1], *(words.max() + 1 for words in ids))
            found = np.pad(found, ((0, 0), (0, size - found.shape[1])))
            found += [np.bincount(words, minlength=size) for words in ids]
    return found[0], found[1]


def _predicted(
    model: LatentModel, half: Half, vocabulary: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Words before and words [B, T], none of them padding, and log p of every word [B, T, V]."""
    for split, rows in half:
        for length, same in by_length(split, rows):
            size = max(1, min(room(device, length), SLAB // (length * vocabulary)))
            for _, batch in batches(split, same, size, device):
                log_p = model.predictions(batch, None)
                if log_p is None:
                    raise UserError("this model does not tell its predictions word by word.")
                yield batch.inputs, batch.targets, log_p[:, 0]


def _measured(feature: Tensor, p: Tensor, r: Tensor, u: Tensor, mean: Tensor) -> Tensor:
    """[2, B], each sentence's share of the ratio's numerator and denominator along u."""
    errors, u = r - mean[feature], u[feature]  # [B, T, K]
    along = (u * errors).sum(-1).double()
    variance = (p * u * u).sum(-1).double() - (p * u).sum(-1).double().square()
    return torch.stack([along.sum(1).square() - along.square().sum(1), variance.sum(1)])


def _told(shares: Array) -> dict[str, Any]:
    """A kind's ratio, in plain values; shares: [2, N]."""
    excess, variance = shares
    ratio = 1 + excess.sum() / variance.sum()
    rest = excess - (ratio - 1) * variance
    error = SHARED * rest.std(ddof=1) * np.sqrt(len(rest)) / variance.sum()
    usual = np.argsort(excess)[: len(excess) - int(np.ceil(FEW * len(excess)))]
    verdict = "unclear"
    if abs(ratio - PAYS) > 2 * error:
        verdict = "could pay" if ratio > PAYS else "no sign"
    return {
        "ratio": float(ratio),
        "error": float(error),
        "verdict": verdict,
        "without_few": float(1 + excess[usual].sum() / variance[usual].sum()),
    }


def _fell(trail: Sequence[float]) -> float | None:
    """By how much the lowest value fell in the last fifth; None of a single one."""
    if len(trail) < 2:
        return None
    last = max(1, len(trail) // 5)
    return float(min(trail[:-last]) - min(trail))


def _notes(
    told: dict[str, dict[str, Any]], verdict: str, sentences: int, fell: float | None
) -> list[str]:
    """Where the verdict may mislead, in sentences."""
    notes = []
    if verdict != "could pay":
        if sentences < ENOUGH:
            notes.append(
                f"{sentences} sentences show only what is strong: the direction is not found. Take "
                f"{ENOUGH:,} or more."
            )
        return notes
    if fell is None:
        notes.append(
            "Whether the language model still learned is not known: a model that is not done shows "
            "what it has yet to learn, and not only what a code could tell."
        )
    elif fell > LEARNING:
        notes.append(
            f"The language model still learned when it was stopped ({fell:.2f} nats a sentence in "
            "the last fifth of its validations): it may come to tell by itself what a code could."
        )
    for name, kind in told.items():
        if kind["verdict"] == "could pay" and kind["without_few"] < PAYS:
            notes.append(
                f"By {name}s it is {FEW:.0%} of the sentences that say so: repeated sentences and "
                "words that seldom occur do that without anything to encode."
            )
    return notes
