"""What a model is worth on a split, measured by the same code for every method.

Pure: changes no weight, no mode, no random state. All noise is a function of (split, sentence,
sample), so two models' results are paired, and no result depends on how sentences are batched:
they are batched by exact length, hence never padded. Costs are in nats per sentence; N sentences,
B of a batch, T tokens, K samples, U units.
"""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from benchmark.api import Batch, Draw, Encoded, LatentModel
from benchmark.config import Evaluation
from benchmark.diagnosis.parts import parts
from benchmark.estimators import (
    Array,
    controlled_mean,
    effective_share,
    fit_temperature,
    info_nce,
    log_mean_exp,
    log_mean_exp_error,
    mean_and_error,
    pareto_shape,
    pareto_tail,
)
from benchmark.noise import Noise
from benchmark.record import SUMMARY, TRUTH

Rows = NDArray[np.int64]

ACTIVE = 0.01  # variance of the posterior mean from which a unit is active (Burda et al. 2016)
BAD_SHAPE = 0.7  # Pareto shape above which importance sampling fails (Vehtari et al. 2024)
NOTHING = 0.05  # nats per sentence that count as none, in a rate or in what is read
AUTO, PILOT = "auto", 64  # samples by which a sentence says how many its estimate takes:
LEVELS = (32, 64, 125, 250, 500)
MOST = LEVELS[-1]
TOLERANCE = 0.05  # nats, the standard error of a sentence's estimate that is aimed at
MI_BATCH = 32  # He et al. (2019) cut their mixtures by this batch size
MI_MOST = 10_000  # sentences in the whole-split mixture; it costs their square
TOKENS = {"cpu": 2**15, "cuda": 2**18}  # that a decoder scores at once: bounds memory


class SplitLike(Protocol):
    """What the evaluator needs of a split."""

    name: str

    @property
    def lengths(self) -> NDArray[np.integer]:
        """[N], predicted tokens of each sentence, `</s>` included."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Rows) -> Batch:
        """These sentences, in this order, on the CPU."""
        ...


class Stopped(Exception):
    """The evaluation was asked to stop."""


@dataclass(frozen=True)
class Effort:
    """How much is spent on an evaluation: samples (or candidates) x sentences."""

    elbo_samples: int  # for each sentence of the split
    nll_samples: int | str  # or AUTO: as many as a sentence needs
    nll_sentences: int | None  # None: the whole split
    read_candidates: int
    read_sentences: int
    gain_sentences: int | None = None

    @classmethod
    def final(cls, settings: Evaluation) -> "Effort":
        """What a result is measured with."""
        return cls(
            elbo_samples=settings.elbo_samples,
            nll_samples=settings.nll_samples,
            nll_sentences=settings.nll_sentences,
            read_candidates=settings.read_candidates,
            read_sentences=settings.read_sentences,
        )

    @classmethod
    def validation(cls, settings: Evaluation) -> "Effort":
        """What an epoch's end can afford: one sample for the ELBO, as in the literature."""
        return cls(
            elbo_samples=1,
            nll_samples=settings.valid_nll_samples,
            nll_sentences=settings.valid_nll_sentences,
            read_candidates=settings.valid_read_candidates,
            read_sentences=settings.valid_read_sentences,
            gain_sentences=settings.valid_gain_sentences,
        )


@dataclass
class Report:
    """What an evaluation found.

    summary: the record's SUMMARY, of which nll_gap, elbo_gap and truth_mi only where the truth is
    known, and nll@name for each further prior. None where a metric has no meaning, and then
    notes[key] says why; a NaN is a diverged model's.
    units: [U] each: kl, its mean; variance_of_mean, unbiased, over sentences; mean_of_variance;
    capacity and heterogeneity, the rate's parts (`benchmark.diagnosis.parts`).
    sentences: [N] each: index, length, neg_elbo, kl, nll (NaN outside the subset).
    temperature: the critic's of i_read, to be fitted on validation and handed in on test.
    samples: K, in words; tail: the same of the weights that k-hat is fitted to.
    """

    summary: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    units: dict[str, Array] = field(default_factory=dict)
    sentences: dict[str, NDArray] = field(default_factory=dict)
    temperature: float | None = None
    samples: str = ""
    tail: str | None = None

    @property
    def numbers(self) -> dict[str, float | None]:
        """The summary without its words."""
        return {key: v for key, v in self.summary.items() if not isinstance(v, str)}

    @property
    def estimators(self) -> dict[str, str]:
        """How a metric was estimated, where its name alone does not say."""
        found = self.summary
        likelihood = f"iwae K={self.samples} n={found['nll_sentences']}"
        if found["latent"] == "none":
            likelihood = "exact"
        return {
            **dict.fromkeys(("nll", "nll_se", "ppl", "nll_gap"), likelihood),
            "khat_bad": f"pareto K={self.tail} n={found['nll_sentences']}",
            "mi": f"mixture n={found['mi_n']}",
            "mi_loo": f"mixture, own left out, n={found['mi_n']}",
            "mi_batch32": f"mixture n={MI_BATCH}",
            "i_read": f"infonce tau={self.temperature}",
        }

    def null(self, reason: str, *keys: str) -> None:
        """Say that these metrics have no meaning here, and why."""
        self.summary.update(dict.fromkeys(keys))
        self.notes.update(dict.fromkeys(keys, reason))


def evaluate(
    model: LatentModel,
    split: SplitLike,
    effort: Effort,
    *,
    device: torch.device | None = None,
    autocast: AbstractContextManager | None = None,
    exact_nll: Array | None = None,
    truth_mi: float | None = None,
    temperature: float | None = None,
    finished: dict[str, dict[str, Array]] | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Report:
    """Measure `model` on `split`.

    exact_nll: [N] and truth_mi, where the data's truth is known. temperature: of i_read's critic;
    None fits it on this split, which is slightly optimistic: only a test result whose temperature
    comes from validation is a bound. finished: collects the importance-weighted scores of each
    batch that is done; handed in again after a stop, with the same model, these are not computed
    again. Raises Stopped between batches once `stop_requested()`.
    """
    if len(split) == 0:
        raise ValueError(f"the {split.name} split has no sentence to evaluate on")
    report = Report()
    device = device or torch.device("cpu")
    with untouched(model, device), torch.no_grad(), autocast or nullcontext():
        look = _Look(model, split, device, stop_requested, report)
        whole = _whole_split(look, effort)
        if model.latent == "none":
            _without_latents(look, whole)
        else:
            _importance_weighted(look, whole, effort, {} if finished is None else finished)
            _information(look, whole)
            _reading(look, whole, effort, temperature)
    _perplexity(look)
    _truth(look, exact_nll, truth_mi)
    for name in ("nll", "i_read"):
        mean, error = report.summary[name], report.summary[f"{name}_se"]
        if error is not None and math.isnan(error) and not math.isnan(mean):
            report.null("it rests on a single sentence", f"{name}_se")
    report.summary["verdict"] = _verdict(report.summary)
    assert SUMMARY.keys() - TRUTH <= report.summary.keys()
    return report


@contextmanager
def untouched(model: LatentModel, device: torch.device) -> Iterator[None]:
    """Evaluation mode inside; every module's mode and all random states as before, after."""
    modes = [(module, module.training) for module in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            random.setstate(python)
            np.random.set_state(numpy)


def generator(split: str, purpose: str) -> np.random.Generator:
    """A generator fixed by the split's name and what it is for: the same for every method."""
    return np.random.default_rng([crc32(split.encode()), crc32(purpose.encode())])


def subset(split: SplitLike, purpose: str, size: int | None) -> Rows:
    """[n] rows of the fixed random subset, in rising order; a smaller one is part of a larger."""
    order = generator(split.name, purpose).permutation(len(split))
    return np.sort(order[:size])


def by_length(split: SplitLike, rows: Rows) -> Iterator[tuple[int, Rows]]:
    """(tokens, rows of that length), shortest first."""
    lengths = np.asarray(split.lengths)[rows]
    for length in np.unique(lengths):
        yield int(length), rows[lengths == length]


def each(do: Callable[..., Tensor], *encoded: Encoded) -> Encoded:
    """Of the parts of an encoding that there are; of several encodings, part by part."""
    together = zip(*encoded, strict=True)
    return tuple(None if part[0] is None else do(*part) for part in together)


def shapes(encoded: Encoded) -> list[torch.Size | None]:
    """Of each part, for one sentence."""
    return [None if part is None else part.shape[1:] for part in encoded]


@dataclass
class _Look:
    """One evaluation under way: what all of its passes share."""

    model: LatentModel
    split: SplitLike
    device: torch.device
    stop_requested: Callable[[], bool]
    report: Report
    known: Encoded = ()  # what the encoder said, [N, ...] each, of the rows that are
    met: NDArray[np.bool_] = field(init=False)  # [N]

    def __post_init__(self) -> None:
        self.met = np.zeros(len(self.split), dtype=bool)

    @property
    def rows(self) -> Rows:
        return np.arange(len(self.split))

    def ask(self) -> None:
        """Raise Stopped if that is wanted."""
        if self.stop_requested():
            raise Stopped

    def room(self, tokens: int) -> int:
        """How many of something that costs so many tokens go through the decoder at once."""
        return max(1, TOKENS[self.device.type] // tokens)

    def batches(self, rows: Rows, size: int) -> Iterator[tuple[Rows, Batch]]:
        """Rows and their batches on the device, `size` at a time."""
        for start in range(0, len(rows), size):
            self.ask()
            part = rows[start : start + size]
            batch = self.split.batch(part)
            if self.device.type == "cuda":
                batch = batch.pin()
            yield part, self.with_noise(batch.to(self.device, non_blocking=True), part)

    def encoded(self, rows: Rows, batch: Batch) -> Batch:
        """The batch of these rows with what the encoder says of them. Where that is one code a
        sentence, it is kept: all passes share it."""
        if self.model.latent == "sequence":
            return batch.but(encoded=self.model.encode(batch))
        if not self.met[rows].all():
            found = self.model.encode(batch)
            if found is None:
                return batch
            if not self.known:
                n = len(self.split)
                self.known = each(lambda part: part.new_empty(n, *part.shape[1:]), found)
            if shapes(found) != shapes(self.known):  # which differ with the length: not kept
                return batch.but(encoded=found)
            here = self.index(rows)
            each(lambda whole, part: whole.index_copy_(0, here, part), self.known, found)
            self.met[rows] = True
        return batch.but(encoded=each(lambda whole: whole[self.index(rows)], self.known))

    def index(self, places: Rows) -> Tensor:
        """Places as an index into what lies on the device."""
        return torch.as_tensor(places, device=self.device)

    def with_noise(self, batch: Batch, rows: Rows, first: int = 0) -> Batch:
        """The batch of these rows, about to draw samples `first` on."""
        return batch.but(noise=Noise(self.split.name, self.index(rows), first))


class _Columns:
    """Scores by sentence, kept where they were computed and fetched once."""

    def __init__(self) -> None:
        self.rows: list[Rows] = []
        self.parts: dict[str, list[Tensor]] = {}

    def add(self, rows: Rows, **scores: Tensor) -> None:
        """Scores [B, ...] of these rows."""
        self.rows.append(rows)
        for name, score in scores.items():
            self.parts.setdefault(name, []).append(score)

    @property
    def order(self) -> Rows:
        """What sorts by row what was added."""
        return np.argsort(np.concatenate(self.rows))

    def fetch(self) -> dict[str, Array]:
        """[n, ...] by name, in float64, in rising order of the rows."""
        return {
            name: torch.cat(parts).double().cpu().numpy()[self.order]
            for name, parts in self.parts.items()
        }


class Moments:
    """Streamed statistics of posterior means and variances, at each step over the sentences that
    reach it: pooling (sentence, step) pairs would take a mean that only moves with the step for
    signal. A global code has one step."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None  # [5, T, U]

    def add(self, mean: Tensor, variance: Tensor, mask: Tensor | None = None) -> None:
        """A batch's [B, U], or [B, T, U] with mask [B, T]."""
        if mask is None:
            mean, variance = mean[:, None], variance[:, None]
            mask = mean.new_ones(mean.shape[:2], dtype=torch.bool)
        mean, variance = mean.double(), variance.double()
        terms = torch.stack([torch.ones_like(mean), mean, mean**2, variance, variance.log()])
        sums = terms.masked_fill(~mask[..., None], 0).sum(1)
        if self.sums is not None:
            steps = max(self.sums.shape[1], sums.shape[1])
            longer = [pad(s, (0, 0, 0, steps - s.shape[1])) for s in (self.sums, sums)]
            sums = longer[0] + longer[1]
        self.sums = sums

    def fetch(self) -> Array | None:
        """[5, T, U]: the sentences, and the sums of mean, squared mean, variance and log variance.
        None if there was nothing."""
        return None if self.sums is None else self.sums.cpu().numpy()


def spread_and_noise(sums: Array) -> tuple[Array, Array]:
    """The unbiased variance of the posterior means over sentences, pooled over steps by degrees of
    freedom, and the mean of the posterior variances, [U] each; sums: see `Moments.fetch`."""
    count, mean, square, variance, _ = sums
    within = np.maximum(square - mean**2 / np.maximum(count, 1), 0).sum(0)
    freedom = np.maximum(count - 1, 0).sum(0)
    spread = np.divide(within, freedom, out=np.full_like(within, np.nan), where=freedom > 0)
    return spread, variance.sum(0) / count.sum(0)


@dataclass
class _Whole:
    """What every sentence of the split scored: [N], but codes [N, ...]."""

    neg_elbo: Array
    codes: Tensor | None  # sample 0; not kept of a model with a code for each step
    gaussian: tuple[Array, Array] | None  # see _gaussian


def _whole_split(look: _Look, effort: Effort) -> _Whole:
    """ELBO, units and z-gain in one pass. Sentences of one length are taken together, so that
    partners' codes are at hand and codes with a step for each token need never all be kept."""
    model, samples = look.model, effort.elbo_samples
    columns, gains, moments = _Columns(), _Columns(), Moments()
    codes: list[Tensor] = []
    gained = np.zeros(len(look.split), dtype=bool)
    gained[subset(look.split, "gain", effort.gain_sentences)] = True
    shuffle = generator(look.split.name, "partners")
    for length, rows in by_length(look.split, look.rows):
        drawn: list[Tensor] = []
        scored: list[Tensor] = []
        for part, batch in look.batches(rows, look.room(samples * length)):
            batch = look.encoded(part, batch)
            draw = model.draw(batch, samples)
            scores = {"rec": -draw.log_px.double().mean(1), "kl": draw.kl}
            if draw.z is not None:
                own = draw.z[:, 0].clone()  # a view would keep all samples
                posterior = model.posterior(look.with_noise(batch, part))
                if posterior is not None:
                    moments.add(*posterior)
                    if len(posterior) == 2:
                        scores["sampled"], scores["mean"] = _gaussian(own, *posterior)
                drawn.append(own)
                scored.append(draw.log_px[:, 0].double())
            columns.add(part, **scores)
        if not drawn:
            continue
        code, log_px = torch.cat(drawn), torch.cat(scored)  # in the order of rows
        if model.latent != "sequence":
            codes.append(code)
        if len(rows) == 1:
            continue
        cycle = shuffle.permutation(len(rows))
        partner = np.empty_like(cycle)
        partner[cycle] = np.roll(cycle, 1)  # one cycle through all: nobody is his own partner
        for part, batch in look.batches(rows[gained[rows]], look.room(length)):
            here = np.searchsorted(rows, part)
            other = code[look.index(partner[here])]
            with_other = model.log_px(batch, other[:, None])[:, 0].double()
            gains.add(part, gain=log_px[look.index(here)] - with_other)

    found = columns.fetch()
    neg_elbo = found["rec"] + found["kl"].sum(1)
    _describe(look, neg_elbo, found["rec"], found["kl"], moments.fetch(), gains)
    return _Whole(
        neg_elbo=neg_elbo,
        codes=torch.cat(codes)[look.index(columns.order)] if codes else None,
        gaussian=(found["sampled"], found["mean"]) if "sampled" in found else None,
    )


def _describe(
    look: _Look,
    neg_elbo: Array,
    rec: Array,
    kl: Array,
    moments: Array | None,
    gains: _Columns,
) -> None:
    """Write down what one pass over the split has shown; neg_elbo and rec [N], kl [N, U]."""
    report, summary = look.report, look.report.summary
    report.sentences = {
        "index": look.rows,
        "length": np.asarray(look.split.lengths),
        "neg_elbo": neg_elbo,
        "kl": kl.sum(1),
        "nll": np.full_like(neg_elbo, np.nan),
    }
    rate = kl.mean(0)
    names = ("variance_of_mean", "mean_of_variance", "capacity", "heterogeneity")
    found = [np.full_like(rate, np.nan)] * len(names)
    if moments is not None:
        split = parts(moments, rate)
        found = [*spread_and_noise(moments), split.capacity, split.heterogeneity]
    report.units = {"kl": rate, **dict(zip(names, found, strict=True))}

    summary.update(latent=look.model.latent, units=look.model.units)
    summary["rec"], summary["kl"] = float(rec.mean()), float(kl.sum(1).mean())
    summary["neg_elbo"] = float(neg_elbo.mean())
    if np.isnan(neg_elbo).all() and not np.isnan(rec).any():
        report.null("prior or posterior has no density", "kl", "neg_elbo")
    if moments is None:
        report.null("the posterior has no mean and variance", "au")
    else:
        summary["au"] = int((report.units["variance_of_mean"] >= ACTIVE).sum())
    if gains.rows:
        gain = gains.fetch()["gain"]
        summary["z_gain"], summary["z_gain_se"] = mean_and_error(gain)
        summary["z_gain_n"] = len(gain)
    else:
        report.null("no two sentences have one length", "z_gain", "z_gain_se", "z_gain_n")


def _gaussian(z: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """[B] each: log N(z; mean, variance), and its mean over z, which is the negative entropy."""
    z, mean, variance = z.double(), mean.double(), variance.double()
    volume = (2 * math.pi * variance).log()
    sampled = -0.5 * (volume + (z - mean) ** 2 / variance).sum(1)
    return sampled, -0.5 * (volume + 1).sum(1)


def _without_latents(look: _Look, whole: _Whole) -> None:
    """The negative log-likelihood of a model without latents is what it scored: exact."""
    report = look.report
    report.sentences["nll"] = whole.neg_elbo
    report.summary["nll"], report.summary["nll_se"] = mean_and_error(whole.neg_elbo)
    report.summary["nll_sentences"] = len(look.split)
    report.null("nll is exact: nothing is sampled", "nll_samples", "nll_half", "ess", "khat_bad")
    report.null(
        "the model has no latent variable",
        *("kl", "mi", "mi_n", "mi_loo", "mi_batch32", "au"),
        *("z_gain", "z_gain_se", "z_gain_n"),
        *("i_read", "i_read_se", "i_read_n", "i_read_candidates"),
    )


def _importance_weighted(
    look: _Look, whole: _Whole, effort: Effort, finished: dict[str, dict[str, Array]]
) -> None:
    """The importance-weighted NLL (Burda et al. 2016) on a fixed random subset, carried to the
    whole split by the ELBO as a control variate, and how far its weights can be trusted."""
    report, samples = look.report, effort.nll_samples
    if "neg_elbo" in report.notes:
        return report.null(
            report.notes["neg_elbo"],
            *("nll", "nll_se", "nll_samples", "nll_sentences", "nll_half", "ess", "khat_bad"),
        )
    fewest = PILOT if samples == AUTO else int(samples)
    chosen = subset(look.split, "nll", effort.nll_sentences)
    rows: list[Rows] = []
    parts: list[dict[str, Array]] = []
    for length, same in by_length(look.split, chosen):
        for part, batch in look.batches(same, look.room(fewest * length)):
            key = f"{look.split.name}/{samples}/{part[0]}-{part[-1]}"  # of one length: unique
            if key not in finished:
                finished[key] = _sampled(look, part, batch, samples)
            rows.append(part)
            parts.append(finished[key])
    order = np.argsort(np.concatenate(rows))
    found = {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}

    summary = report.summary
    drawn = float(found["samples"].mean())
    summary.update(nll_samples=drawn if samples == AUTO else samples, nll_sentences=len(chosen))
    report.samples = report.tail = str(samples)
    if samples == AUTO:
        report.samples = f"{LEVELS[0]}-{MOST} for an error of {TOLERANCE}"
        report.tail = f"{LEVELS[0] + PILOT}-{MOST} with the pilot's"
    for name in sorted(found.keys() - {"ess", "khat", "samples"}):  # a set has no order of its own
        summary[name], error = controlled_mean(whole.neg_elbo, chosen, found[name])
        if name == "nll":
            summary["nll_se"] = error
    report.sentences["nll"][chosen] = found["nll"]
    summary["ess"] = float(found["ess"].mean())
    if "khat" in found:
        summary["khat_bad"] = float((found["khat"] > BAD_SHAPE).mean())
    else:
        report.null(f"the weights of {samples} samples have too short a tail", "khat_bad")
    if "nll_half" not in found:
        report.null("one sample has no half", "nll_half")


def _sampled(look: _Look, rows: Rows, batch: Batch, samples: int | str) -> dict[str, Array]:
    """[B] each, see `_trust`, of so many samples; or of as many as `_enough` says of a pilot, whose
    own samples, others, are no part of the estimate: so it is none the better for good luck. Where
    they are fewer than MOST, the pilot's weights join the tail's fit: one to 32 weights finds up to
    .08 of sentences bad where one to 500 finds .001."""
    batch = look.encoded(rows, batch)
    if samples != AUTO:
        return _trust(_log_weights(look, rows, batch, 0, int(samples)))
    pilot = _log_weights(look, rows, batch, MOST, MOST + PILOT)
    enough = np.max([_enough(log_weights) for log_weights in pilot.values()], axis=0)
    found: list[tuple[Rows, dict[str, Array]]] = []
    for k in np.unique(enough):
        places = np.flatnonzero(enough == k)
        ((here, some),) = look.batches(rows[places], len(places))
        weights = _log_weights(look, here, look.encoded(here, some), 0, int(k))
        found.append((places, _trust(weights, pilot["nll"][places, : MOST - k])))
    order = np.argsort(np.concatenate([places for places, _ in found]))
    columns = [scores for _, scores in found]
    return {name: np.concatenate([c[name] for c in columns])[order] for name in columns[0]}


def _enough(log_weights: Array) -> Rows:
    """[B], the fewest of LEVELS samples at which a sentence's standard error would be below
    TOLERANCE by a pilot's [B, K]. MOST where the pilot cannot tell: its weights' tail is too heavy
    for an error to be trusted, or its second half changed more than its error allows."""
    pilot = log_weights.shape[1]
    error = log_mean_exp_error(log_weights)
    needed = pilot * (error / TOLERANCE) ** 2
    half = log_mean_exp(log_weights[:, : pilot // 2])
    change = np.abs(log_mean_exp(log_weights) - half)
    told = (pareto_shape(log_weights) < BAD_SHAPE) & (change < 2 * error + 1e-6) & (needed < MOST)
    levels = np.array(LEVELS)
    return np.where(told, levels[np.searchsorted(levels, np.where(told, needed, MOST))], MOST)


def _log_weights(look: _Look, rows: Rows, batch: Batch, drawn: int, until: int) -> dict[str, Array]:
    """[B, K], log p(x, z_k) - log q(z_k|x) under each of the model's priors, for the samples that
    follow the first `drawn`, in slices of what the decoder has room for."""
    slices: dict[str, list[Tensor]] = {}
    size = look.room(batch.targets.numel())
    for first in range(drawn, until, size):
        look.ask()
        noisy = look.with_noise(batch, rows, first)
        draw = look.model.draw(noisy, min(size, until - first))
        rest = draw.log_px.double() - draw.log_qz.double()
        slices.setdefault("nll", []).append(rest + draw.log_pz.double())
        for name, log_pz in draw.log_pz_alt.items():
            slices.setdefault(f"nll@{name}", []).append(rest + log_pz.double())
    return {name: torch.cat(some, dim=1).cpu().numpy() for name, some in slices.items()}


def _trust(log_weights: dict[str, Array], others: Array | None = None) -> dict[str, Array]:
    """[B] each: the NLL under each prior, that at half the samples, and the model's own prior's
    effective sample size and tail, to whose fit other weights [B, ...] may be added."""
    own = log_weights["nll"]
    samples = own.shape[1]
    found = {name: -log_mean_exp(weights) for name, weights in log_weights.items()}
    found["ess"] = effective_share(own)
    found["samples"] = np.full(len(own), float(samples))
    if samples > 1:
        found["nll_half"] = -log_mean_exp(own[:, : samples // 2])
    fitted = own if others is None else np.concatenate([own, others], axis=1)
    if pareto_tail(fitted.shape[1]) >= 5:
        found["khat"] = pareto_shape(fitted)
    return found


def _information(look: _Look, whole: _Whole) -> None:
    """I(x; z) under q, by mixtures of posteriors (Hoffman and Johnson 2016): of the whole split,
    of all but the sentence's own, and of batches of 32 (He et al. 2019).

    The density of a code under its own posterior is sampled, not averaged, in the first two, so
    that no sentence's term, let alone the mean, exceeds ln N. In He et al.'s it is the analytic
    mean, as theirs is, where the posterior is Gaussian.
    """
    model, report = look.model, look.report
    rows = subset(look.split, "mi", MI_MOST)
    n = len(rows)
    keys = ("mi", "mi_n", "mi_loo", "mi_batch32")
    if whole.codes is None:
        return report.null(model.why_no_log_q, *keys)
    if n == 1:
        return report.null("one sentence has no mixture", *keys)
    codes = whole.codes[look.index(rows)]
    own = codes.new_zeros(n, dtype=torch.float64)
    nearby, others = torch.zeros_like(own), torch.full_like(own, -torch.inf)
    for _, same in by_length(look.split, rows):
        for part, batch in look.batches(same, MI_BATCH):
            log_q = model.log_q(codes, look.encoded(part, batch))  # [N, B]
            if log_q is None:
                return report.null(model.why_no_log_q, *keys)
            here = look.index(np.searchsorted(rows, part))
            block = log_q[here].double()
            own[here] = block.diagonal()
            nearby[here] = block.logsumexp(1) - math.log(len(part))
            itself = (here, torch.arange(len(part), device=look.device))
            rest = log_q.double().index_put(itself, own.new_tensor(-torch.inf))
            others = torch.logaddexp(others, rest.logsumexp(1))

    mi = float((own - torch.logaddexp(others, own)).mean()) + math.log(n)
    report.summary.update(mi=mi, mi_n=n)
    if mi > 0.9 * math.log(n):
        report.null("mi is near ln mi_n, where leaving one out means nothing", "mi_loo")
    else:
        report.summary["mi_loo"] = float((own - others).mean()) + math.log(n - 1)
    own, nearby = own.cpu().numpy(), nearby.cpu().numpy()
    if whole.gaussian is not None:
        sampled, mean = (scores[rows] for scores in whole.gaussian)
        # posterior() may be of another family, or whitened by a learned prior; then these differ
        if np.allclose(sampled, own, rtol=0.01, atol=0.1):
            own = mean
    report.summary["mi_batch32"] = float((own - nearby).mean())


def _reading(look: _Look, whole: _Whole, effort: Effort, temperature: float | None) -> None:
    """What the decoder provably reads: InfoNCE (van den Oord et al. 2018) with its own score as
    the critic. Candidates are any other sentences' codes; where a code has a step for each token,
    those of sentences of the same length, as many as there are, and a sentence without is left
    out. The standard error takes sentences for independent, though they share candidates."""
    model, report = look.model, look.report
    chosen = subset(look.split, "read", effort.read_sentences)
    choose = generator(look.split.name, "candidates")
    found: list[Array] = []
    for length, same in by_length(look.split, chosen):
        if whole.codes is None:
            pool = np.flatnonzero(np.asarray(look.split.lengths) == length)
        else:
            pool = look.rows
        k = min(effort.read_candidates, len(pool))
        if k < 2:
            continue
        table = pool[_candidates(np.searchsorted(pool, same), len(pool), k, choose)]  # [n, K]
        codes = whole.codes
        if codes is None:
            needed, table = np.unique(table, return_inverse=True)
            batches = look.batches(needed, look.room(length))
            codes = torch.cat([_first_codes(model.draw(batch)) for _, batch in batches])
        for part, batch in look.batches(same, look.room(k * length)):
            candidates = codes[look.index(table[np.searchsorted(same, part)])]
            scores = np.full((len(part), effort.read_candidates), -np.inf)
            scores[:, :k] = model.log_px(batch, candidates).double().cpu().numpy()
            found.append(scores)
    if not found:
        return report.null(
            "no sentence has a candidate beside itself",
            *("i_read", "i_read_se", "i_read_n", "i_read_candidates"),
        )
    scores = np.concatenate(found)
    report.temperature = fit_temperature(scores) if temperature is None else temperature
    read = info_nce(scores, report.temperature)
    report.summary["i_read"], report.summary["i_read_se"] = mean_and_error(read)
    report.summary["i_read_n"] = len(read)
    report.summary["i_read_candidates"] = float((scores != -np.inf).sum(1).mean())


def _first_codes(draw: Draw) -> Tensor:
    """[B, ...], sample 0 of each sentence."""
    assert draw.z is not None
    return draw.z[:, 0]


def _candidates(own: Rows, pool: int, k: int, rng: np.random.Generator) -> Rows:
    """[n, K] places in a pool: one's own first, then K - 1 others without repetition."""
    others = np.stack([rng.choice(pool - 1, k - 1, replace=False) for _ in own])
    return np.concatenate([own[:, None], others + (others >= own[:, None])], axis=1)


def _perplexity(look: _Look) -> None:
    """exp(nll per predicted token): `</s>` is counted, `<s>` is not."""
    summary, nll = look.report.summary, look.report.summary["nll"]
    if nll is None:
        return look.report.null(look.report.notes["nll"], "ppl")
    per_token = nll * len(look.split) / float(np.sum(look.split.lengths))
    if per_token > 700:
        return look.report.null("exp(nll per token) is beyond any float", "ppl")
    summary["ppl"] = math.exp(per_token)


def _truth(look: _Look, exact_nll: Array | None, truth_mi: float | None) -> None:
    """How far from the truth: less the mean exact NLL of the same sentences, the whole split's."""
    report = look.report
    if truth_mi is not None:
        report.summary["truth_mi"] = truth_mi
    if exact_nll is None:
        return
    for key, of in (("nll_gap", "nll"), ("elbo_gap", "neg_elbo")):
        if report.summary[of] is None:
            report.null(report.notes[of], key)
        else:
            report.summary[key] = report.summary[of] - float(np.mean(exact_nll))


def _verdict(summary: dict[str, Any]) -> str:
    """Whether the decoder reads the code: one of none, collapsed, idle, read, unclear."""
    kl, read, error = (summary.get(key) for key in ("kl", "i_read", "i_read_se"))
    if summary["latent"] == "none":
        return "none"
    if kl is not None and kl < NOTHING:
        return "collapsed"
    if read is not None and error is not None:
        if read + 2 * error < NOTHING:
            return "idle"
        if read - 2 * error > 0:
            return "read"
    return "unclear"
