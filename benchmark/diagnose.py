"""Why did the latent units of a run die? `python -m benchmark.diagnose RUN_DIR [WORD=VALUE ...]`

Words: sentences=500 of the test split, signal=.01, information=.05 and read=.05, the thresholds of
the verdicts. Prints what was found, and writes it to RUN_DIR/diagnosis.json.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark import compose, diagnosis
from benchmark.api import LatentModel
from benchmark.cell import restore
from benchmark.compose import UserError
from benchmark.data.errors import DataError
from benchmark.diagnosis import Parts, Thresholds
from benchmark.estimators import Array, mean_and_error
from benchmark.evaluate import TOKENS, Rows, SplitLike, by_length, generator, subset
from benchmark.lease import Busy
from benchmark.noise import Noise
from benchmark.record import RunDirectory

NOISE = (0.0, 0.25, 0.5, 1.0)  # of the posterior's own, in the counterfactual
MOST = 2_000  # sentences whose mixtures tell a unit's information


@dataclass(frozen=True)
class Diagnosis:
    """What was measured of D units."""

    parts: Parts
    information: Array  # [D]
    read: Array  # [D], nats a sentence lost when a unit is replaced by a partner's
    read_error: Array  # [D]
    distortion: dict[float, float]  # nats a sentence, by the share of z's noise that is kept
    sentences: int  # behind read: those with a partner of their length
    verdicts: list[str]
    flags: list[list[str]]

    def record(self) -> dict[str, Any]:
        """In plain values, for JSON."""
        columns = {field.name: getattr(self.parts, field.name) for field in fields(Parts)}
        columns |= {"bound": self.parts.bound, "information": self.information}
        columns |= {"read": self.read, "read_error": self.read_error}
        return {
            "units": {name: [float(v) for v in column] for name, column in columns.items()},
            "verdicts": self.verdicts,
            "flags": self.flags,
            "distortion_by_noise": {str(c): value for c, value in self.distortion.items()},
            "sentences": self.sentences,
        }


@torch.no_grad()
def diagnose(
    model: LatentModel,
    split: SplitLike,
    device: torch.device,
    sentences: int = 500,
    at: Thresholds | None = None,
) -> Diagnosis:
    """Diagnose a model with one Gaussian code a sentence. Raises UserError for another kind."""
    if model.latent != "global":
        raise UserError(f"a diagnosis is of one code a sentence; this model's is {model.latent!r}.")
    model.eval()
    at = at or Thresholds()
    mean, variance, codes = posteriors(model, split, device)
    found = diagnosis.parts(mean, variance)
    some = subset(split, "mi", MOST)
    told = diagnosis.information(codes[some], mean[some], variance[some])
    chosen = subset(split, "read", sentences)
    drops, distortion = read_out(model, split, chosen, mean, codes, device)
    read, error = np.transpose([mean_and_error(column) for column in drops.T])
    return Diagnosis(
        *(found, told, read, error, distortion, len(drops)),
        verdicts=diagnosis.verdicts(found, told, read, at),
        flags=diagnosis.flags(found, at),
    )


def batches(split: SplitLike, rows: Rows, size: int, device: torch.device):
    """Rows and their batches on the device, about to draw an evaluation's own noise."""
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        batch = split.batch(part).to(device)
        yield part, batch.but(noise=Noise(split.name, torch.as_tensor(part, device=device)))


def posteriors(
    model: LatentModel, split: SplitLike, device: torch.device
) -> tuple[Array, Array, Array]:
    """Means, variances and one code of every sentence, [N, D] each, in the split's order."""
    found = np.empty((3, len(split), model.units))
    for length, rows in by_length(split, np.arange(len(split))):
        for part, batch in batches(split, rows, max(1, TOKENS[device.type] // length), device):
            moments = model.posterior(batch)
            if moments is None:
                raise UserError("the posterior of this model has no mean and variance.")
            z = model.draw(batch).z
            assert z is not None
            for column, value in zip(found, (*moments[:2], z[:, 0]), strict=True):
                column[part] = value.double().cpu().numpy()
    return found[0], found[1], found[2]


def read_out(
    model: LatentModel,
    split: SplitLike,
    rows: Rows,
    mean: Array,
    codes: Array,
    device: torch.device,
) -> tuple[Array, dict[float, float]]:
    """What log p(x|z) loses when one unit alone is that of another sentence of the same length,
    [n, D] of the n sentences that have one; and the distortion by the share of noise in z.

    mean, codes: [N, D], of the whole split.
    """
    drops: list[Tensor] = []
    noisy: list[Tensor] = []
    shuffle, units = generator(split.name, "units"), model.units
    kept = torch.tensor(NOISE, device=device)[:, None]
    unit = torch.eye(units, dtype=torch.bool, device=device)
    for length, same in by_length(split, rows):
        same = shuffle.permutation(same)
        before = dict(zip(same, np.roll(same, 1), strict=True))  # whose units each one takes
        room = max(1, TOKENS[device.type] // (length * (units + len(NOISE))))
        for part, batch in batches(split, same, room, device):
            centre, own, other = (
                torch.as_tensor(table[places], dtype=torch.float32, device=device)[:, None]
                for table, places in (
                    *((mean, part), (codes, part)),
                    (codes, [before[row] for row in part]),
                )
            )
            scores = model.log_px(batch, torch.lerp(centre, own, kept)).double()
            noisy.append(scores)
            if len(same) > 1:
                replaced = torch.where(unit, other, own)  # [B, D, D]
                drops.append(scores[:, -1:] - model.log_px(batch, replaced).double())
    if not drops:
        raise UserError(f"no two of {len(rows)} sentences have one length: take more of them.")
    distortion = -torch.cat(noisy).mean(0)
    return torch.cat(drops).cpu().numpy(), dict(zip(NOISE, distortion.tolist(), strict=True))


# -- in words -------------------------------------------------------------------------------------

READING = {
    "active": "{} written and read",
    "weak": "{} too weak: the posterior is nearly the same for every sentence",
    "noisy": "{} too noisy: the means move, but the sampling noise drowns them",
    "unread": "{} unread: written by the encoder, not used by the decoder",
    "outliers": "{} driven by outliers: a few sentences make all of the signal",
}


def paragraph(found: Diagnosis) -> str:
    """The diagnosis in plain sentences."""
    count, parts = Counter(found.verdicts), found.parts
    kinds = [(words, count[verdict]) for verdict, words in READING.items() if count[verdict]]
    told = ", ".join(words.format(f"{n} {'is' if n == 1 else 'are'}") for words, n in kinds)
    said = [f"Of {len(found.verdicts)} units {told}."]
    if off := [i for i, flags in enumerate(found.flags) if "off prior" in flags]:
        rate = float(parts.rate[off].sum())
        said.append(
            f"{len(off)} of them {'has' if len(off) == 1 else 'have'} an aggregate off the prior: "
            f"{rate:.2f} nats of rate, most of which inform of nothing."
        )
    best = int(np.argmax(parts.bound))
    if found.verdicts[best] not in ("weak", "noisy"):
        said.append(
            f"Unit {best} carries the most, at most {parts.bound[best]:.2f} nats of the sentence; "
            f"with another sentence's in its place the decoder loses {found.read[best]:.2f} "
            f"(s.e. {found.read_error[best]:.2f})."
        )
    mean, whole = found.distortion[0.0], found.distortion[1.0]
    said.append(f"At the posteriors' means a sentence costs {whole - mean:.2f} nats less.")
    return " ".join(said)


def table(found: Diagnosis) -> str:
    """A line a unit, the largest bound first."""
    p = found.parts
    columns = (p.signal, p.noise, p.rate, p.capacity, p.heterogeneity, p.mismatch)
    columns += (p.bound, found.information, found.read, found.read_error)
    names = ("unit", "S", "N", "rate", "C", "H", "G", "U", "I", "read", "s.e.")
    lines = ["".join(name.rjust(8) for name in names) + "  verdict"]
    for d in np.argsort(-p.bound):
        numbers = "".join(f"{column[d]:8.3f}" for column in columns)
        lines.append(f"{d:8d}{numbers}  {', '.join([found.verdicts[d], *found.flags[d]])}")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    if not arguments or {"-h", "--help"} & {*arguments}:
        sys.stdout.write(f"{__doc__}\n")
        return 0 if arguments else 2
    try:
        folder, sentences, at = asked(arguments)
        found = diagnose(*restore(folder), sentences, at)
        directory = RunDirectory(folder)
        with directory.lease():
            directory.save_json("diagnosis.json", found.record())
    except (UserError, DataError, Busy) as error:
        sys.stderr.write(compose.sentence(error) + "\n")
        return 1
    sys.stdout.write(f"{table(found)}\n\n{paragraph(found)}\n")
    return 0


def asked(arguments: Sequence[str]) -> tuple[Path, int, Thresholds]:
    """The run, how many sentences, and the thresholds. Raises UserError."""
    folders = [word for word in arguments if "=" not in word]
    if len(folders) != 1:
        raise UserError("name one run directory: python -m benchmark.diagnose RUN_DIR")
    sentences, at = 500, Thresholds()
    known = ["sentences", *vars(at)]
    for word in arguments:
        name, equals, value = word.partition("=")
        if not equals:
            continue
        if name not in known:
            raise UserError(f"there is no {name!r}; {compose.nearest(name, known)}.")
        try:
            if name == "sentences":
                sentences = int(value)
            else:
                at = replace(at, **{name: float(value)})
        except ValueError as error:
            raise UserError(f"{word}: {error}") from error
    if sentences < 2:
        raise UserError(f"sentences must be at least 2, not {sentences}.")
    return Path(folders[0]), sentences, at


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
