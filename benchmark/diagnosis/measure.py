"""Everything that a diagnosis measures of a run, as the plain record that diagnosis.json holds.

Whatever has no meaning for a model is None, and `notes` says why by its name.
"""

from collections.abc import Callable, Set
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from benchmark.api import LatentModel
from benchmark.cell import Restored
from benchmark.compose import UserError
from benchmark.config import Diagnosis
from benchmark.diagnosis import gradients, parts, plane
from benchmark.diagnosis.interventions import interventions
from benchmark.diagnosis.lag import lag
from benchmark.diagnosis.probes import probes
from benchmark.diagnosis.reading import reading, told_apart
from benchmark.diagnosis.replay import Probe, replay
from benchmark.diagnosis.residuals import residuals
from benchmark.diagnosis.units import NUISANCES, READ, drift, rate, read_out, reliability
from benchmark.evaluate import SplitLike, subset
from benchmark.record import read_metrics

SCHEMA = 1
TRAIL = {"step": "steps", "variance_of_mean": "signal", "mean_of_variance": "noise", "kl": "kl"}
WHY_NO_INFORMATION = {
    "sequence": "codes with a step for each word have no one mixture over sentences",
    "implicit": "codes without densities have no mixture",
}
WHY_NO_PROBE = {
    "state": "the encoder of this model shows no last state",
    "mean": "the posterior of this model has no mean and variance",
}
REPLAY, INTERVENE = EXTRAS = ("replay", "intervene")
Record = dict[str, Any]
Section = Callable[[], Any]


def measure(run: Restored, folder: Path, at: Diagnosis, extra: Set[str] = frozenset()) -> Record:
    """The record of a finished run in its folder; extra: of `EXTRAS`, what trains it again. Raises
    UserError where nothing can be said."""
    valid, test = run.split("valid"), run.split("test")
    record = {"schema": SCHEMA, "cell": run.record["cell"], "step": run.record["selected_step"]}
    if run.model.latent == "none":
        trail = validations(folder)
        record |= {"latent": "none", "notes": {"units": "the model has no latent variable"}}
        return record | {"residuals": residuals(run.model, (valid, test), run.device, trail)}
    record |= diagnosed(run.model, valid, test, run.device, at)
    record["trajectory"] = trajectory(folder)
    if REPLAY in extra:
        record |= replayed(run, at, record)
    if INTERVENE in extra:
        record["interventions"] = interventions(run, read=at.read)
    return record


def replayed(run: Restored, at: Diagnosis, known: Record) -> Record:
    """What is seen on the way of the run's training: the noise of its gradients and, where it is
    known at its end, how much its means move between two looks and, of a code in the plane, those
    means beside the true ones."""
    valid, device = run.split("valid"), run.device
    probes: dict[str, Probe] = {"gradients": gradients.probe(run)}
    if run.model.latent == "global" and known.get("units"):
        probes["drift"] = drift(valid, device, at.sentences)
    if known.get("plane"):
        probes["plane"] = lambda model, step: plane.points(model, valid, device, at.refined)
    found = replay(run, probes)
    about = {name: found.pop(name) for name in ("steps", "exact")}
    record = {name: about | found[name] for name in ("gradients", "drift") if name in found}
    return record | ({"planes": about | {"plane": found["plane"]}} if "plane" in found else {})


@torch.no_grad()
def diagnosed(
    model: LatentModel, valid: SplitLike, test: SplitLike, device: torch.device, at: Diagnosis
) -> Record:
    """What the model and two splits alone tell."""
    model.eval()
    notes: dict[str, str] = {}

    def attempt(name: str, section: Section) -> Any:
        try:
            return section()
        except UserError as error:
            notes[name] = str(error)
            return None

    rows = subset(test, "read", at.sentences)
    found = {"latent": model.latent, "sentences": len(rows), "thresholds": thresholds(at)}
    found |= attempt("units", lambda: units(model, test, rows, device, at, notes)) or {}
    read = attempt("reading", lambda: reading(model, test, rows, device))
    found["reading"], why = read or ({}, {})
    notes |= {f"reading/{name}": reason for name, reason in why.items()}
    found["reading"]["apart"] = attempt(
        "reading/apart",
        lambda: told_apart(model, valid, test, at.sentences, at.candidates, device),
    )
    found["probes"] = attempt("probes", lambda: probes(model, valid, test, device))
    asked = (found["probes"] or {}).values()
    missing = {place for target in asked for place, share in target.items() if share is None}
    notes |= {f"probes/{place}": WHY_NO_PROBE[place] for place in missing}
    found["lag"] = attempt("lag", lambda: lag(model, test, device, at.refined))
    if model.units <= plane.MOST_UNITS:
        found["plane"] = attempt("plane", lambda: plane.points(model, test, device, at.refined))
    return found | {"notes": notes}


def thresholds(at: Diagnosis) -> dict[str, float]:
    """From where a quantity counts."""
    names = ("signal", "information", "read", "reliability", "delta")
    return {name: getattr(at, name) for name in names}


def units(
    model: LatentModel,
    split: SplitLike,
    rows: np.ndarray,
    device: torch.device,
    at: Diagnosis,
    notes: dict[str, str],
) -> Record:
    """Each unit's measures, verdict and flags, and the noise counterfactual."""
    found, told, epsilon = rate(model, split, device, at.delta)
    try:
        decoder, distortion = read_out(model, split, rows, device)
        relative = "the posterior's means are relative to the prior"
    except UserError as problem:  # the rest needs no partner
        names = (*READ, *(f"{name}_error" for name in READ))
        decoder = {name: np.full(model.units, np.nan) for name in names}
        distortion, relative = None, str(problem)
        notes["units/read"] = relative
    stable = reliability(model, split, rows, device, at)
    if told is None:
        notes["units/information"] = WHY_NO_INFORMATION.get(model.latent, relative)
    if not model.own_rates:
        notes |= dict.fromkeys(("units/mismatch", "units/epsilon"), "the units share one rate")
    if distortion is None:
        notes["distortion_by_noise"] = relative
    for name, values in stable.items():
        if values is None:
            notes[f"units/reliability/{name}"] = "nothing moves the posterior so"
    known = [values for name in NUISANCES if (values := stable[name]) is not None]
    least = np.fmin.reduce(known) if known else np.full(model.units, np.nan)
    names = ("signal", "noise", "rate", "capacity", "heterogeneity", "mismatch", "bound")
    columns = {name: getattr(found, name) for name in names}
    columns |= {"information": told, "epsilon": epsilon, **decoder}
    return {
        "units": {name: parts.plain(column) for name, column in columns.items()}
        | {"reliability": {name: parts.plain(column) for name, column in stable.items()}},
        "verdicts": parts.verdicts(found, at, told, decoder["read"], decoder["read_error"]),
        "flags": parts.flags(found, at, least, decoder),
        "distortion_by_noise": distortion,
    }


def trajectory(folder: Path) -> Record | None:
    """Signal, noise and rate of each unit at the validations of its training, [times][D]."""
    try:
        with np.load(folder / "units.npz") as found:
            columns = {name: found[name] for name in TRAIL}
    except (OSError, KeyError, ValueError, BadZipFile):
        return None
    return {name: columns[key].tolist() for key, name in TRAIL.items()}


def validations(folder: Path) -> list[float]:
    """The trail of the validation NLL; none where it cannot be read."""
    try:
        lines = read_metrics(folder / "metrics.jsonl")
        return [x["value"] for x in lines if (x["split"], x["metric"]) == ("valid", "nll")]
    except (OSError, ValueError, KeyError):
        return []
