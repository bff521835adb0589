"""What a diagnosis and a look at what is written leave beside a run, made by hand."""

import copy
import json
from pathlib import Path
from typing import Any

UNITS = {
    "signal": [0.001, 0.04, 0.5, 0.8, 0.9, 0.6],
    "noise": [0.99, 0.95, 0.4, 0.2, 1.0, 0.3],
    "rate": [0.51, 0.022, 0.45, 0.81, 0.33, 0.56],
    "epsilon": [0.02, 0.04, 1.2, 2.1, 4.0, 1.5],
    "capacity": [0.0005, 0.02, 0.4, 0.75, 0.31, 0.5],
    "heterogeneity": [0.0005, 0.001, 0.03, 0.05, 0.01, 0.04],
    "mismatch": [0.509, 0.001, 0.02, 0.01, 0.01, 0.02],
    "bound": [0.001, 0.021, 0.43, 0.8, 0.32, 0.54],
    "information": [0.0, 0.01, 0.41, 0.78, 0.008, 0.5],
    "read": [0.0, 0.01, 0.06, 0.004, 0.3, 6.17],
    "read_error": [0.01, 0.01, 0.04, 0.01, 0.1, 0.41],
    "alone": [0.0, 0.01, 0.05, 0.0, 0.2, 5.2],
    "alone_error": [0.01, 0.01, 0.04, 0.01, 0.1, 0.39],
    "reliability": {"dropout": [0.9, 0.31, 0.8, 0.9, 0.9, 0.95], "tokens": None},
}
FULL: dict[str, Any] = {
    "schema": 1,
    "cell": {"dataset": "toy", "method": "plain", "variant": "plain", "seed": 3, "id": "0" * 12},
    "latent": "global",
    "step": 120,
    "sentences": 500,
    "thresholds": {"signal": 0.01, "information": 0.05, "read": 0.05, "reliability": 0.5}
    | {"delta": 0.01},
    "units": UNITS,
    "verdicts": ["weak", "noisy", "undecided", "unread", "outliers", "active"],
    "flags": [["off prior"], ["unstable"], [], [], [], []],
    "distortion_by_noise": {"0.0": 30.5, "0.25": 30.6, "0.5": 30.8, "1.0": 31.4},
    "reading": {
        "shuffled": [14.4, 0.5],
        "prior": [12.4, 0.4],
        "sensitivity": [0.73, 0.03],
        "prefix": [0.3, 0.02],
        "flatness": [9.61, 0.4],
        "sentences": 500,
        "by_position": {
            "position": [1, 2, 3, 4],
            "gain": [6.0, 4.0, 3.0, 1.4],
            "error": [0.5, 0.4, 0.3, 0.2],
            "sentences": [500, 500, 500, 400],
        },
        "apart": {
            **{"information": [1.64, 0.05], "i_read": [1.43, 0.04], "unread": [0.21, 0.03]},
            **{"candidates": 32, "saturated": False},
        },
    },
    "trajectory": {
        "steps": [10, 60, 120],
        "signal": [
            [0.002, 0.3, 0.1, 0.2, 0.1, 0.2],
            [0.004, 0.2, 0.3, 0.6, 0.4, 0.5],
            [0.001, 0.04, 0.5, 0.8, 0.9, 0.6],
        ],
        "noise": [[0.9] * 6, [0.95] * 6, [0.99, 0.95, 0.4, 0.2, 1.0, 0.3]],
        "kl": [[0.1] * 6] * 3,
    },
    "lag": {
        **{"sentences": 100, "steps": [0, 5, 20], "verdict": "encoder lags"},
        "encoder": {
            **{"kl": [2.1, 2.4, 2.6], "elbo": [[0.0, 0.0], [1.5, 0.1], [2.1, 0.2]]},
            **{"rise": [[0.0, 0.0], [0.3, 0.1], [0.5, 0.1]], "units": [0.0] * 6},
        },
        "prior": {
            **{"kl": [0.0, 1.4, 2.5], "elbo": [[-9.0, 0.3], [0.5, 0.1], [1.9, 0.2]]},
            **{"rise": [[-2.1, 0.1], [-0.7, 0.1], [0.4, 0.1]], "units": [0.0] * 6},
        },
        "basins": [-0.2, 0.1],
        "posterior": {
            "importance": {"truth": [2.9, 0.1], "gap": [2.6, 0.1], "ess": 600.0, "trusted": True},
            "quadrature": None,
        },
    },
    "probes": {
        "label": {"state": [0.9, 0.01], "mean": [0.6, 0.02], "code": [0.2, 0.02]},
        "length": {"state": [0.01, 0.01], "mean": [-0.01, 0.01], "code": None},
    },
    "plane": {
        **{"truth": [[0.5], [-0.5], [1.5]], "encoder": [[0.0], [0.02], [-0.01]]},
        **{"rate": {"truth": 2.0, "encoder": 0.01}, "unresolved": 0},
    },
    "gradients": {
        **{"steps": [1, 20, 120], "exact": True},
        "rec": {
            **{"snr": [0.02, 0.001, -0.0002], "snr_error": [0.002, 0.0005, 0.0004]},
            **{"snr_batch": [1.28, 0.064, -0.0128], "signal": [2.0, 1.0, 0.0]},
            **{"sampling": [25.0, 25.0, 25.0], "between": [75.0, 75.0, 75.0]},
        },
        "kl": {
            **{"snr": [0.001, 0.02, 0.1], "snr_error": [0.001, 0.001, 0.001]},
            **{"snr_batch": [0.064, 1.28, 6.4], "signal": [1.0, 1.0, 1.0]},
            **{"sampling": [0.0, 0.0, 0.0], "between": [9.0, 9.0, 9.0]},
        },
    },
    "drift": {
        **{"steps": [1, 20, 120], "exact": True},
        "drift": [None, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [1.2, 0.9, 0.1, 0.05, 0.3, 0.02]],
    },
    "planes": {
        **{"steps": [1, 120], "exact": True},
        "plane": {
            "truth": [[[0.1], [-0.1], [0.2]], [[0.5], [-0.5], [1.5]]],
            "encoder": [[[0.0], [0.0], [0.0]], [[0.0], [0.02], [-0.01]]],
            **{"rate": {"truth": [0.1, 2.0], "encoder": [0.0, 0.01]}, "unresolved": [0, 0]},
        },
    },
    "interventions": {
        **{"at": 12, "steps": 36, "updates": 250, "cause": "lag"},
        "branches": {
            "unchanged": {"kl": 0.01, "z_gain": 0.02, "z_gain_se": 0.02, "neg_elbo": 34.0}
            | {"mi": 0.0, "alive": False},
            "warm": dict.fromkeys(("kl", "mi", "z_gain", "z_gain_se", "neg_elbo"))
            | {"alive": False},
            "reset": {"kl": 1.7, "z_gain": 6.2, "z_gain_se": 0.5, "neg_elbo": 32.0}
            | {"mi": 1.5, "alive": True},
        },
    },
    "notes": {"reading/by_position": "x", "residuals": "this model has a latent already."},
}
MODEL: dict[str, Any] = {
    "schema": 1,
    "cell": FULL["cell"] | {"method": "lm", "variant": "lm"},
    "latent": "none",
    "step": 120,
    "residuals": {
        **{"verdict": "could pay", "sentences": 2000, "threshold": 1.2, "fell": 0.2},
        "unigram": {"ratio": 1.03, "error": 0.04, "verdict": "no sign", "without_few": 1.0},
        "bigram": {"ratio": 2.31, "error": 0.21, "verdict": "could pay", "without_few": 1.8},
        "notes": ["The language model still learned when it was stopped."],
    },
    "notes": {"units": "the model has no latent variable"},
}


def full(**changes: Any) -> dict[str, Any]:
    """A whole record, its sections replaced; by None, taken out."""
    record = copy.deepcopy(FULL) | changes
    return {name: value for name, value in record.items() if value is not None}


TEXT: dict[str, Any] = {
    **{"sentences": 1000, "distinct": 900, "commonest": 0.01, "words": 16.0, "cut_off": 0.0},
    **{"self_bleu": 60.0, "distinct_1": 0.01, "distinct_2": 0.2, "distinct_3": 0.7},
    "perplexity": 18.0,
}
NEAR: dict[str, Any] = {
    **{"sentences": 500, "distinct": 400, "commonest": 0.01, "words": 16.0, "cut_off": 0.0},
    **{"bleu": 13.0, "bleu_other": 1.0, "exact": 0.02, "edits": 0.8},
}
GREEDY: dict[str, Any] = {"rule": "greedy", "temperature": None, "beams": None}
WRITTEN: dict[str, Any] = {
    **{"schema": 1, "cell": FULL["cell"], "step": 120, "latent": "global"},
    "settings": {
        **{"samples": 1000, "sentences": 500, "temperature": 1.0, "beams": 5, "paths": 20},
        **{"steps": 7, "tokens": 5000, "corpus": 10000, "epochs": 10, "seed": 0},
        **{"device": None, "max_length": 32},
    },
    "signatures": {"bleu": "nrefs:1|case:mixed|tok:none", "self_bleu": "nrefs:999|tok:none"},
    "reconstruction": {"greedy": GREEDY | NEAR, "beam": None},
    "interpolation": GREEDY | {"paths": 20, "steps": 7, "distinct": 3.6, "line": "straight"},
    "prior": {
        "sampling": TEXT | {"rule": "sampling", "temperature": 1.0, "beams": None},
        "greedy": TEXT | GREEDY | {"distinct": 300},
    },
    "real": TEXT | {"perplexity": 17.0},
    "reverse": {"perplexity": 19.0, "real": 17.5},
    "judges": {"sentences": 10000, "steps": 500, "selected_step": {"real": 5, "samples": 6}},
    "notes": {"reconstruction/beam": "the model has no `rewriting`, which writes word by word"},
}


def lay(run: Path, name: str, record: dict[str, Any]) -> None:
    """Beside a run's record, as `name`.json."""
    (run / f"{name}.json").write_text(json.dumps(record))
