"""What lies beside a run's record if somebody asked for it: diagnosis.json and generation.json.

Of either file is read what it is known to hold, numbers and a few fixed words, and nothing else:
whatever is not listed here is on no page and in nothing that is published.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmark.diagnosis import words
from benchmark.record import WORDS

Known = dict[str, Any]
Spec = Mapping[str, Any] | Sequence[Any] | Callable[[Any], Any]
"""By names, of a list's items, or of a value: what of it is kept, or None."""
Clean = Callable[[str], str]

SCHEMA = 1  # of both files
DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What telling or drawing of a damaged file may raise."""


def diagnosis(run: str | Path, clean: Clean = str) -> Known | None:
    """A run's diagnosis; None where there is none to trust. clean: of the sentences in it."""
    found = _kept(Path(run) / "diagnosis.json", DIAGNOSIS, clean)
    try:
        words.paragraph(found or {})
    except DAMAGE:
        return None
    return found


def generation(run: str | Path, clean: Clean = str) -> Known | None:
    """What was measured of what a run writes; None where there is nothing to trust."""
    found = _kept(Path(run) / "generation.json", GENERATION, clean)
    settings = words.section(found or {}, "settings")
    return found if all(settings.get(name) is not None for name in SETTINGS) else None


def _kept(path: Path, spec: Spec, clean: Clean) -> Known | None:
    found = _read(path)
    if found is None:
        return None
    kept = _keep(found, spec)
    notes = words.section(found, "notes")
    kept["notes"] = {_name(k): clean(v) for k, v in notes.items() if isinstance(v, str)}
    said = words.section(found, "residuals").get("notes")
    if isinstance(kept.get("residuals"), dict) and isinstance(said, list):
        kept["residuals"]["notes"] = [clean(note) for note in said if isinstance(note, str)]
    cell = words.section(found, "cell")
    places = {key: clean(v) for key in CELL if isinstance(v := cell.get(key), str)}
    return kept | {"cell": places | {"seed": _number(cell.get("seed"))}}


def _read(path: Path) -> Known | None:
    try:
        stat = path.stat()
        return _parsed(path, stat.st_mtime_ns, stat.st_size)
    except (OSError, ValueError, RecursionError):
        return None


@cache  # a table and its page both ask
def _parsed(path: Path, changed: int, size: int) -> Known | None:
    found = json.loads(path.read_bytes())
    return found if isinstance(found, dict) and found.get("schema") == SCHEMA else None


def _keep(value: Any, spec: Spec) -> Any:
    if isinstance(spec, Mapping):
        if not isinstance(value, dict):
            return None
        return {name: _keep(value[name], inner) for name, inner in spec.items() if name in value}
    if callable(spec):
        return spec(value)
    return [_keep(item, spec[0]) for item in value] if isinstance(value, list) else None


# -- what either holds ----------------------------------------------------------------------------


def _number(value: Any) -> float | None:
    """A truth, too, and nothing that JSON does not know."""
    kept = isinstance(value, int | float) and abs(value) < math.inf
    return value if kept else None


def _one_of(*known: str) -> Spec:
    return lambda value: value if value in known else None


def _signature(value: Any) -> str | None:
    """In which sacrebleu tells its settings."""
    fits = isinstance(value, str) and re.fullmatch(r"[\w.:|+-]{1,200}", value)
    return value if fits else None


def _cause(value: Any) -> str | None:
    known = {*words.CAUSES, "not collapsed", "none of these"}
    return value if isinstance(value, str) and {*value.split(" and ")} <= known else None


def _name(place: str) -> str:
    """Of what a note is on."""
    return re.sub(r"[^\w/ .-]", "", place)[:80]


def _all(spec: Spec, *names: str) -> dict[str, Spec]:
    return {name: spec for name in names}


def _numbers(*names: str) -> dict[str, Spec]:
    return _all(_number, *names)


def _lists(*names: str) -> dict[str, Spec]:
    return _all([_number], *names)


CELL = ("dataset", "method", "variant", "id")
LATENT = _one_of(*WORDS["latent"])
PATH = _lists("kl", "units") | _all([[_number]], "elbo", "rise")
COST = _lists("signal", "between", "sampling", "snr", "snr_error", "snr_batch")
REPLAYED = _lists("steps") | _numbers("exact")
KIND = _numbers("ratio", "error", "without_few") | {"verdict": _one_of(*words.COULD)}

BRANCH = _numbers("kl", "mi", "z_gain", "z_gain_se", "neg_elbo", "alive")

DIAGNOSIS: Spec = {
    **_numbers("schema", "step", "sentences"),
    "latent": LATENT,
    "thresholds": _numbers("signal", "information", "read", "reliability", "delta"),
    "units": _lists(*words.MEASURES, "shared", "shared_error")
    | {"reliability": _lists("dropout", "dropout_scale", "tokens", "tokens_scale")},
    "verdicts": [_one_of(*words.READING)],
    "flags": [[_one_of(*words.FLAGGED)]],
    "distortion_by_noise": _numbers("0.0", "0.25", "0.5", "1.0"),
    "reading": {
        **_lists("shuffled", "prior", "sensitivity", "prefix", "flatness"),
        **_numbers("sentences"),
        "by_position": _lists("position", "gain", "error", "sentences"),
        "apart": _lists("information", "i_read", "unread") | _numbers("candidates", "saturated"),
    },
    "probes": _all(_lists(*words.PLACES), *words.TARGETS),
    "trajectory": _lists("steps") | _all([[_number]], "signal", "noise", "kl"),
    "lag": {
        **_numbers("sentences"),
        **_lists("steps", "basins"),
        **{"encoder": PATH, "prior": PATH},
        "posterior": {
            "importance": _lists("truth", "gap") | _numbers("samples", "ess", "bad", "trusted"),
            "quadrature": _lists("truth") | _numbers("unresolved"),
        },
        "verdict": _one_of(*words.LAG),
    },
    "plane": {
        **_all([[_number]], "truth", "encoder"),
        "rate": _numbers("truth", "encoder"),
        **_numbers("unresolved"),
    },
    "residuals": {
        **_numbers("sentences", "threshold", "fell"),
        **{"verdict": _one_of(*words.COULD), "unigram": KIND, "bigram": KIND},
    },
    "gradients": REPLAYED | {"rec": COST, "kl": COST},
    "drift": REPLAYED | {"drift": [[_number]]},
    "planes": REPLAYED
    | {
        "plane": _all([[[_number]]], "truth", "encoder")
        | {"rate": _lists("truth", "encoder")}
        | _lists("unresolved")
    },
    "interventions": {
        **_numbers("at", "steps", "updates"),
        "branches": _all(BRANCH, *words.BRANCHES),
        "cause": _cause,
    },
}

RULE = {"rule": _one_of("greedy", "beam", "sampling")} | _numbers("temperature", "beams")
TEXT = _numbers("sentences", "distinct", "commonest", "words", "cut_off")
DIVERSE = _numbers("self_bleu", "distinct_1", "distinct_2", "distinct_3", "perplexity")
NEAR = _numbers("bleu", "bleu_other", "exact", "edits")
SETTINGS = (
    *("samples", "sentences", "temperature", "beams", "paths", "steps"),
    *("tokens", "corpus", "epochs"),
)
"""What two runs must have in common to be compared."""

GENERATION: Spec = {
    **_numbers("schema", "step"),
    "latent": LATENT,
    "settings": _numbers(*SETTINGS, "seed", "max_length"),
    "signatures": _all(_signature, "bleu", "self_bleu"),
    "prior": _all(RULE | TEXT | DIVERSE, "sampling", "greedy"),
    "real": TEXT | DIVERSE,
    "reconstruction": _all(RULE | TEXT | NEAR, "greedy", "beam", "sampling"),
    "interpolation": RULE | _numbers("paths", "steps", "distinct"),
    "reverse": _numbers("perplexity", "real"),
    "judges": {
        **_numbers("sentences", "held_out", "embedding", "hidden", "steps"),
        **_all(_numbers("real", "samples"), "selected_step", "seconds"),
    },
}
