"""A diagnosis in words: what a record says of a run, and what to try; imports neither torch nor
matplotlib.

Whatever the record lacks is left out. Remedies are named by their kind.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

Record = Mapping[str, Any]
Value = tuple[float, float]
"""A mean and its standard error."""

LARGEST = 1e12  # beyond it a number is a mistake
BRANCHES = {
    "unchanged": "no change",
    "samples": "several codes a sentence",
    "batch": "larger batches",
    "warm": "a start of the encoder alone",
    "reset": "a decoder that forgot",
}
"""The interventions' branches."""
WEAKER = "weakening the decoder (dropping words, a shorter memory)"
CAUSES = {
    "sampling noise": "several codes a sentence in each update",
    "minibatch noise": "larger batches",
    "weak signal": "letting the encoder learn before the decoder does",
    "lag": "a longer or stronger encoder update per decoder step",
}
"""What to try against each cause that an intervention can find."""


@dataclass(frozen=True)
class Unit:
    """What a record says of one unit; NaN where it is not known."""

    number: int
    verdict: str
    flags: tuple[str, ...]
    stable: float
    """The least of its mean's reliabilities."""
    signal: float
    noise: float
    rate: float
    epsilon: float
    """The least from which on it is (epsilon, delta)-collapsed."""
    capacity: float
    heterogeneity: float
    mismatch: float
    bound: float
    information: float
    read: float
    read_error: float
    alone: float
    """What this unit alone gains over another sentence's code."""
    alone_error: float


MEASURES = tuple(field.name for field in fields(Unit))[4:]


def units(record: Record) -> list[Unit]:
    """All of them, the largest bound first."""
    columns = section(record, "units")
    verdicts = record.get("verdicts") or [] if columns else []
    n = len(verdicts)
    flags = record.get("flags") or [()] * n
    known = {name: numbers(columns.get(name), n) for name in MEASURES}
    stable = [numbers(section(columns, "reliability").get(k), n) for k in ("dropout", "tokens")]
    found = []
    for d, verdict in enumerate(verdicts):
        least = min((line[d] for line in stable if not math.isnan(line[d])), default=math.nan)
        measured = (known[name][d] for name in MEASURES)
        found.append(Unit(d, verdict, tuple(flags[d]), least, *measured))
    return sorted(found, key=lambda unit: (math.isnan(unit.bound), -unit.bound))


def table(record: Record) -> str:
    """A line a unit, the largest bound first."""
    names = ["unit", *("S", "N", "rate", "eps", "C", "H", "G", "U", "I")]
    names += ["read", "s.e.", "alone", "s.e.", "stable"]
    lines = ["".join(name.rjust(7) for name in names) + "  verdict"]
    for unit in units(record):
        values = [*(getattr(unit, name) for name in MEASURES), unit.stable]
        line = "".join(cell.rjust(7) for cell in [str(unit.number), *map(_cell, values)])
        lines.append(f"{line}  {', '.join([unit.verdict, *unit.flags])}")
    return "\n".join(lines) if lines[1:] else "This model has no latent units."


def _cell(value: float) -> str:
    """As many digits, of three, as six letters hold."""
    if math.isnan(value):
        return "-"
    texts = [f"{value:.{digits}f}" for digits in (3, 2, 1, 0)]
    return next((text for text in texts if len(text) <= 6), texts[-1])


def paragraph(record: Record) -> str:
    """The diagnosis in plain sentences, a line a subject."""
    return "\n".join(
        f"{subject}: {said}" if subject in NAMED else said for subject, said in told(record).items()
    )


NAMED = ("Not measured", "Try")  # of which the sentences need their subject


def told(record: Record) -> dict[str, str]:
    """The same by subject, as far as there is something to say."""
    found = {
        "Units": _units(record),
        "Decoder": [*_noise(record), *_reading(record)],
        "Encoder": [*_lag(record), *_probes(record)],
        "Training": [*_trajectory(record), *_drift(record)],
        "Gradients": _gradients(record),
        "Interventions": _interventions(record),
        "Language model": _residuals(record),
        "Not measured": _notes(record),
        "Try": _remedies(record),
    }
    return {subject: " ".join(said) for subject, said in found.items() if said}


# -- units ----------------------------------------------------------------------------------------

READING = {
    "active": (
        "Unit {who} carries {bound}, and the decoder reads it: {instead}.",
        "Units {who} carry {bound}, and the decoder reads them: {instead}.",
    ),
    "undecided": (
        "Whether the decoder reads unit {who}, {bound}, is undecided: {instead}.",
        "Whether the decoder reads units {who}, {bound}, is undecided: {instead}.",
    ),
    "unread": (
        "Unit {who} carries {bound} that the decoder never reads: {instead}.",
        "Units {who} carry {bound} that the decoder never reads: {instead}.",
    ),
    "outliers": (
        "A few sentences make all of the signal of unit {who}: {told}, of {bound}.",
        "A few sentences make all of the signal of units {who}: {told}, of {bound}.",
    ),
    "noisy": (
        "The mean of unit {who} moves with the sentence, but its noise drowns it: {bound}.",
        "The means of units {who} move with the sentence, but their noise drowns them: {bound}.",
    ),
    "weak": (
        "Unit {who} is nearly the same for every sentence: {bound}.",
        "Units {who} are nearly the same for every sentence: {bound}.",
    ),
}
"""What is said of one unit, and of several, by their verdict."""
FLAGGED = {
    "off prior": (
        "Unit {who} pays {cost} for an aggregate off the prior, a rate that tells of nothing.",
        "Units {who} pay {cost} for aggregates off the prior, a rate that tells of nothing.",
    ),
    "low scale": (
        "A count of active units overlooks unit {who}: small means, and yet {bound}.",
        "A count of active units overlooks units {who}: small means, and yet {bound}.",
    ),
    "unstable": (
        "The mean of unit {who} follows dropout or a blotted word more than the sentence "
        "(reliability {share}).",
        "The means of units {who} follow dropout or a blotted word more than the sentence "
        "(reliability {share} or more).",
    ),
    "redundant": (
        "Unit {who} is not clearly missed, and yet alone it gains {alone}: others say the same.",
        "Units {who} are not clearly missed one by one, and yet the first of them alone gains "
        "{alone}: they say the same.",
    ),
}


def _units(record: Record) -> list[str]:
    found = units(record)
    if not found:
        return ["The model has no latent variable."] if record.get("latent") == "none" else []
    groups = {verdict: [u for u in found if u.verdict == verdict] for verdict in READING}
    ranked = sorted(groups.items(), key=lambda group: -_total(group[1], "bound"))
    active = len(groups["active"])
    said = [f"{active} of {len(found)} units {_one(active, 'is', 'are')} written and read."]
    said += [_group(READING[verdict], group) for verdict, group in ranked if group]
    for flag, words in FLAGGED.items():
        if group := [unit for unit in found if flag in unit.flags]:
            said.append(_group(words, group))
    return said + _collapsed(record, found)


def _collapsed(record: Record, found: Sequence[Unit]) -> list[str]:
    """By the count of Lucas et al. 2019, at the threshold that verdicts have."""
    at = threshold(record, "information")
    known_ = [unit.epsilon for unit in found if not math.isnan(unit.epsilon)]
    if not known_ or not at:
        return []
    n = sum(epsilon < at for epsilon in known_)
    share = f"in at least {all_but_delta(record)} of the sentences"
    return [f"The KL of {n} of {len(found)} stays below {at:g} nats {share}."]


def _group(words: tuple[str, str], group: Sequence[Unit]) -> str:
    """What is said of these units, the largest first."""
    first, n = group[0], len(group)
    most = n if n <= 8 else 6  # that one wants to read
    numbers = [str(number) for number in sorted(unit.number for unit in group[:most])]
    numbers += [f"{n - most} more"] if n > most else []
    theirs = _one(n, "in its place", f"in place of unit {first.number}, the largest,")
    together = _one(n, " nats", " nats together")
    return words[n > 1].format(
        who=listed(numbers),
        bound=_few(_total(group, "bound")) + together,
        cost=nats(_total(group, "mismatch")) + together,
        told=nats(_total(group, "information")) + together,
        instead=f"another sentence's {theirs} costs {_measured((first.read, first.read_error))}",
        share=nats(min(unit.stable for unit in group)),
        alone=_measured((first.alone, first.alone_error)),
    )


# -- what the decoder reads -----------------------------------------------------------------------


def _noise(record: Record) -> list[str]:
    costs = section(record, "distortion_by_noise")
    mean, whole = number(costs.get("0.0")), number(costs.get("1.0"))
    if math.isnan(whole - mean):
        return []
    return [f"At the posteriors' means a sentence costs {nats(whole - mean)} nats less."]


def _reading(record: Record) -> list[str]:
    found, least = section(record, "reading"), threshold(record, "read")
    shuffled, prior, moved, prefix, flat = (
        pair(found.get(name)) for name in ("shuffled", "prior", "sensitivity", "prefix", "flatness")
    )
    said = []
    if known(shuffled):
        cost = f"another sentence's code costs {_measured(shuffled)}"
        cost += f", one of the prior {_measured(prior)}" if known(prior) else ""
        about = "Whether information about the sentence passes through the code cannot be told: "
        if beyond(shuffled, least):
            about = ""
        elif not beyond((shuffled[0], -shuffled[1]), least):
            about = "No information about the sentence passes through the code: "
        said.append(f"{_capital(about + cost)}.")
    half = half_way(section(found, "by_position")) if beyond(shuffled, least) else None
    if half:
        said.append(f"Half of that is at the first {half[0]} of {half[1]} words.")
    if known(moved):
        change = f"A code of the prior changes the predictions by {_measured(moved)} a word"
        beside = f", another word before them by {nats(prefix[0])}" if known(prefix) else ""
        said.append(f"{change}{beside}.")
    if flat[0] >= 0:
        deviation = nats(flat[0] ** 0.5)
        said.append(f"Over codes of the prior log p(x|z) deviates by {deviation} nats.")
    return said + _apart(section(found, "apart"), threshold(record, "information"))


def _apart(found: Record, least: float) -> list[str]:
    """Of I(x; z), what is read."""
    names = ("information", "i_read", "unread")
    information, read, unread = (pair(found.get(name)) for name in names)
    if not known(information) or not known(read):
        return []
    if max(information[0], read[0]) < least:
        return [f"The code as a whole holds {_few(information[0])} nats."]
    most = f", among {found.get('candidates')} candidates, too few to tell more"
    most = most if found.get("saturated") else ""
    rest = f"; {_measured(unread)} are not shown to be read" if known(unread) else ""
    whole = f"Of {nats(information[0])} nats in the code it provably reads {nats(read[0])}"
    return [f"{whole}{rest}{most}."]


def half_way(by_position: Record) -> tuple[int, int] | None:
    """(words, of words) within which half of what the code gains is gained; None where it gains
    nothing."""
    places, gains = by_position.get("position") or [], numbers(by_position.get("gain"))
    total = sum(gains)
    if not total > 0:
        return None
    reached = 0.0
    for place, gain in zip(places, gains, strict=True):
        reached += gain
        if reached >= total / 2:
            return int(place), int(places[-1])
    return None


# -- why ------------------------------------------------------------------------------------------

LAG = {
    "encoder lags": "The encoder lags: {gain}, and the KL rises by {rise}.",
    "encoder errs": "The encoder errs: {gain}, at no higher KL; its codes are off, not missing.",
    "decoder offers nothing to encode": "The decoder offers nothing to encode: {gain}, and the KL "
    "stays at {kl} nats.",
    "in step": "The encoder keeps up: {gain}.",
}


def _lag(record: Record) -> list[str]:
    found = section(record, "lag")
    if found.get("verdict") not in LAG:
        return []
    encoder, prior = section(found, "encoder"), section(found, "prior")
    ends = [pair(_last(path.get("elbo"))) for path in (encoder, prior)]
    best = prior if ends[1][0] > ends[0][0] else encoder
    gain, rise = (pair(_last(best.get(name))) for name in ("elbo", "rise"))
    far = f"{_last(found.get('steps'))} refinement steps of each posterior gain {_measured(gain)}"
    kl = nats(number(_last(best.get("kl"))))
    said = [LAG[found["verdict"]].format(gain=far, rise=_measured(rise), kl=kl)]
    basins = pair(found.get("basins"))
    if known(basins) and beyond(basins, threshold(record, "read")):
        said.append(f"Begun at the prior they end {_measured(basins)} higher: in a better basin.")
    posterior = section(found, "posterior")
    weighted = section(posterior, "importance")
    exact = pair(section(posterior, "quadrature").get("truth"))
    if not known(exact) and weighted.get("trusted"):
        exact = pair(weighted.get("truth"))
    if known(exact):
        own = nats(number((encoder.get("kl") or [None])[0]))
        truth = f"The true posterior is {_measured(exact)} from the prior"
        said.append(f"{truth}, the encoder's {own}.")
    return said


PLACES = {
    "state": "the encoder's last state",
    "mean": "the posterior's means",
    "code": "the codes",
}
"""Where a probe reads, on the way from a sentence to its code."""
TARGETS = {"label": "the label", "length": "the length"}
NEXT_TO_NONE = 0.05  # of a variance that a probe explains


def _probes(record: Record) -> list[str]:
    """Where on the way from the encoder's state to the code a sentence's signal is lost."""
    said = []
    for target, what in TARGETS.items():
        found = section(section(record, "probes"), target)
        shares = {place: pair(found.get(place)) for place in PLACES}
        shares = {place: (max(share, 0.0), e) for place, (share, e) in shares.items() if e >= 0}
        if len(shares) < 2:
            continue
        parts = listed([f"{share:.0%} in {PLACES[place]}" for place, (share, _) in shares.items()])
        line = f"Of the variance of {what} a linear probe finds {parts}"
        said.append(f"{line}{_lost(shares)}.")
    return said


LOST = {
    ("state", "mean"): "in the head",
    ("mean", "code"): "to the posterior's noise",
    ("state", "code"): "on the way to the code",
}
"""Where a signal is lost between two places."""
TOLD = 0.2  # of what the first place has, from where a loss is told


def _lost(shares: Mapping[str, Value]) -> str:
    """Of what the first place has, how much is lost on the way to the next ones, where that is
    beyond two standard errors."""
    first, (most, _) = next(iter(shares.items()))
    if most < NEXT_TO_NONE:
        return f": {PLACES[first]} {_one(first == 'state', 'has', 'have')} next to none of it"
    lost = []
    for (place, (before, error)), (following, (after, other)) in pairwise(shares.items()):
        loss = before - after
        if loss >= TOLD * most and loss > 2 * math.hypot(error, other):
            lost.append(f"{loss / most:.0%} is lost {LOST[place, following]}")
    return f": of that {listed(lost)}" if lost else ""


def _trajectory(record: Record) -> list[str]:
    """Of the dead units: which never had a signal, and which lost it."""
    found = section(record, "trajectory")
    steps, signal = found.get("steps") or [], found.get("signal") or []
    at, lines = threshold(record, "signal"), [numbers(line) for line in signal]
    peaks: dict[int, tuple[float, Any]] = {}  # of the dead
    for unit in units(record):
        if unit.verdict in ("weak", "noisy"):
            known_ = [(line[unit.number], step) for line, step in zip(lines, steps, strict=True)]
            known_ = [(value, step) for value, step in known_ if not math.isnan(value)]
            peaks |= {unit.number: max(known_)} if known_ else {}
    if not peaks:
        return []
    dead = sorted(peaks, key=lambda d: -peaks[d][0])
    lost = [d for d in dead if peaks[d][0] >= at]
    who = _one(len(dead), "The dead unit", f"{len(lost)} of {len(dead)} dead units")
    if not lost:
        who = _one(len(dead), who, f"None of {len(dead)} dead units")
        return [f"{who} {_one(len(dead), 'never', 'ever')} had a signal of {at:g}."]
    most, when = peaks[lost[0]]
    where = _one(len(dead), "", f"unit {lost[0]}'s reached ")
    return [f"{who} once had a signal: {where}{nats(most)} at step {when:,.0f}."]


def _drift(record: Record) -> list[str]:
    """How steady the means are of what is written."""
    found = section(record, "drift")
    steps, moved = found.get("steps") or [], numbers(_last(found.get("drift")))
    written = [u for u in units(record) if u.verdict not in ("weak", "noisy")]
    shares = {u.number: moved[u.number] for u in written if u.number < len(moved)}
    shares = {d: share for d, share in shares.items() if not math.isnan(share)}
    if len(steps) < 2 or not shares:
        return []
    most = max(shares, key=lambda d: shares[d])
    least = f"unit {most}'s means moved the most, by {shares[most]:.1%} of their variance"
    return [f"From step {steps[-2]:,} to {steps[-1]:,} {least}."]


def _gradients(record: Record) -> list[str]:
    found = section(record, "gradients")
    steps = found.get("steps") or []
    told = []
    for name, what in (("rec", "reconstruction"), ("kl", "KL")):
        part = section(found, name)
        snr, sampling, between = (
            numbers(part.get(key), len(steps)) for key in ("snr_batch", "sampling", "between")
        )
        if not steps or math.isnan(snr[0] + snr[-1]):
            continue
        noise = sampling[-1] + max(between[-1], 0.0)
        share = f", {sampling[-1] / noise:.0%} of the noise then the codes' own" if noise else ""
        first, last = (f"{ratio(snr[i])} at step {steps[i]:,}" for i in (0, -1))
        told.append(f"of the {what} {first} and {last}{share}")
    said = [f"Signal over noise of a batch's gradient: {'; '.join(told)}."] if told else []
    if told and found.get("exact") is False:
        other = "the replay did not meet the run's own weights"
        said.append(f"That is of another run of its kind: {other}.")
    return said


def _interventions(record: Record) -> list[str]:
    found = section(record, "interventions")
    branches = section(found, "branches")
    if not branches:
        return []
    fates: dict[bool, list[str]] = {True: [], False: []}
    for name, end in branches.items():
        kl, gain = (nats(number(end.get(key))) for key in ("kl", "z_gain"))
        how = "diverged" if end.get("neg_elbo") is None else f"KL {kl}, z-gain {gain}"
        fates[bool(end.get("alive"))].append(f"{BRANCHES.get(name, name)} ({how})")
    said = f"Trained on from step {found.get('at'):,} for {found.get('steps'):,} steps the code"
    ends = [f"lives given {listed(fates[True])}"] if fates[True] else ["lives in no branch"]
    ends += [f"dies given {listed(fates[False])}"] if fates[False] else []
    return [f"{said} {', and '.join(ends)}. The cause, by one seed: {found.get('cause')}."]


COULD = {
    "could pay": "A latent could pay: sentences differ by what the words before do not tell",
    "no sign": "No sign that a latent could pay: the errors have next to nothing in common",
    "unclear": "Whether a latent could pay is unclear: take more sentences",
}


def _residuals(record: Record) -> list[str]:
    found = section(record, "residuals")
    if found.get("verdict") not in COULD:
        return []
    kinds = [(name, section(found, name)) for name in ("unigram", "bigram")]
    told = [
        f"{name}s {number(kind['ratio']):.2f} (s.e. {number(kind.get('error')):.2f})"
        for name, kind in kinds
        if not math.isnan(number(kind.get("ratio")))
    ]
    at = f"1 where the model is right, from {number(found.get('threshold')):g} on it counts"
    ratios = f" (errors in common by {listed(told)}; {at})" if told else ""
    notes = found.get("notes") or []
    return [
        f"{COULD[found['verdict']]}{ratios}.",
        *(note for note in notes if isinstance(note, str)),
    ]


def _notes(record: Record) -> list[str]:
    """Why whole sections are not there."""
    said: dict[str, list[str]] = {}
    for name, why in section(record, "notes").items():
        # of a language model it is said already that it has no units
        if "/" not in name and (name, record.get("latent")) != ("units", "none"):
            said.setdefault(why.rstrip("."), []).append(name)
    return [f"{listed(names)}, as {why}." for why, names in said.items()]


# -- what to try ----------------------------------------------------------------------------------


def _remedies(record: Record) -> list[str]:
    found = units(record)
    # what others say, too, needs no decoder that reads it
    verdicts = Counter(unit.verdict for unit in found if "redundant" not in unit.flags)
    flagged = Counter(flag for unit in found for flag in unit.flags)
    lag = section(record, "lag").get("verdict")
    causes = str(section(record, "interventions").get("cause") or "").split(" and ")
    tried = [CAUSES[cause] for cause in causes if cause in CAUSES]
    if lag == "encoder lags":
        tried.append(CAUSES["lag"])
    if lag == "encoder errs":
        tried.append("refining each posterior by the decoder's score")
    if verdicts["weak"] and not verdicts["active"]:
        if lag != "encoder lags":
            tried.append(WEAKER)
        if flagged["off prior"] < len(found):  # else there is such a floor
            tried += ["a floor under the rate", "weighing the KL in slowly"]
    if verdicts["unread"]:
        tried += [WEAKER, "showing it the code at every word"]
    if verdicts["noisy"]:
        tried.append("a floor under the spread of the posterior's means")
    if flagged["off prior"]:
        tried.append("a floor under what the means tell instead of one that a shift can meet")
    if flagged["unstable"]:
        tried.append("less dropout in the encoder")
    if verdicts["outliers"]:
        tried.append("bounding the posterior's means")
    if verdicts["undecided"]:
        tried.append("measuring once more, on more sentences")
    return [f"{'; '.join(dict.fromkeys(tried))}."] if tried else []


# -- reading a record -----------------------------------------------------------------------------


def section(record: Record, name: str) -> Record:
    """A part of a record; empty where there is none."""
    found = record.get(name)
    return found if isinstance(found, Mapping) else {}


def number(value: Any) -> float:
    """NaN for what is none, or for none that can be."""
    known = isinstance(value, int | float) and abs(value) < LARGEST
    return float(value) if known else math.nan


def numbers(values: Any, n: int = 0) -> list[float]:
    """Of a list; n of NaN where there is none."""
    return [number(value) for value in values] if isinstance(values, list) else [math.nan] * n


def pair(value: Any) -> Value:
    """A mean and its error; NaN for both where there is none."""
    mean, error = numbers(value, 2)
    return mean, error


def known(value: Value) -> bool:
    """Whether there is a mean."""
    return not math.isnan(value[0])


def beyond(value: Value, least: float) -> bool:
    """Whether it is above by two standard errors."""
    mean, error = value
    return mean - 2 * (0 if math.isnan(error) else error) >= least


def nats(value: float, sign: str = "") -> str:
    """Two digits after the point."""
    if math.isnan(value):
        return "unknown"
    return f"{round(value, 2) + 0.0:{sign},.2f}"  # + 0.0: no -0.00


def ratio(value: float) -> str:
    """Two digits that count."""
    return f"{float(f'{value:.2g}'):,g}"


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _few(value: float) -> str:
    """A bound, of which small ones are told as such."""
    return "less than 0.01" if value < 0.01 else f"at most {nats(value)}"


def _measured(value: Value) -> str:
    mean, error = value
    return f"{nats(mean)} nats" + ("" if math.isnan(error) else f" (s.e. {nats(error)})")


def _last(values: Any) -> Any:
    return values[-1] if isinstance(values, list) and values else None


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _one(n: int, one: str, several: str) -> str:
    return one if n == 1 else several


def _total(group: Sequence[Unit], name: str) -> float:
    return sum(value for unit in group if not math.isnan(value := getattr(unit, name)))


def threshold(record: Record, name: str) -> float:
    """0 where there is none."""
    found = number(section(record, "thresholds").get(name))
    return 0.0 if math.isnan(found) else found


def all_but_delta(record: Record) -> str:
    """The share of the sentences that a collapsed unit is quiet in, at least."""
    return f"{100 * (1 - threshold(record, 'delta')):g}%"
