"""What is read of a run, for it to be compared."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from benchmark import compose
from benchmark.compose import UserError
from benchmark.config import Config, schema
from benchmark.record import RunDirectory, read_metrics

CURVES = ("nll", "neg_elbo", "kl", "mi", "i_read", "z_gain")


@dataclass(frozen=True)
class Side:
    """A finished run.

    config: by field, `budget.clip`. sentences: [N] each. trail: metric -> step -> value, of the
    validations.
    """

    letter: str
    path: Path
    known: dict[str, Any]
    config: dict[str, Any]
    sentences: dict[str, NDArray]
    trail: dict[str, dict[int, float]]

    @property
    def name(self) -> str:
        """What to call it; the letter tells two of one name apart."""
        cell = self.known["cell"]
        return f"{cell['variant']} on {cell['dataset']}, seed {cell['seed']}"

    def origin(self, name: str) -> Any:
        """What its provenance says."""
        return self.known["provenance"].get(name)


def read(path: Path, letter: str) -> Side:
    """A run that has been evaluated. Raises UserError."""
    try:
        known = RunDirectory(path).read()
        assert known is not None
        if known["status"] in ("done", "stopped"):
            config, trail = _config(path / "config.yaml"), _trail(path / "metrics.jsonl")
            return Side(letter, path, known, config, _sentences(path / "sentences.npz"), trail)
    except (OSError, ValueError, *compose.HYDRA_ERRORS) as error:
        why = compose.explain(error)
        raise UserError(f"{path} cannot be read, compare another run: {why}") from error
    raise UserError(f"{path} is {known['status']}: name a run that is done.")


def _config(path: Path) -> dict[str, Any]:
    """The fields; those that a run of older code did not have were neutral."""
    fields = _flat(OmegaConf.to_container(OmegaConf.load(path)))
    neutral = _flat(OmegaConf.to_container(schema(Config), enum_to_str=True))
    neutral = {name: value for name, value in neutral.items() if value != "???"}
    return fields | neutral | fields  # in the order of the file


def _flat(node: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {name.removesuffix("."): node}
    inner = [_flat(value, f"{name}{key}.") for key, value in node.items()]
    return {field: value for fields in inner for field, value in fields.items()}


def _trail(path: Path) -> dict[str, dict[int, float]]:
    trail: dict[str, dict[int, float]] = {}
    for line in read_metrics(path):
        name, known = line.get("metric"), line.get("split") == "valid"
        if known and name in CURVES and line["value"] is not None:
            trail.setdefault(name, {})[line["step"]] = line["value"]
    return trail


def _sentences(path: Path) -> dict[str, NDArray]:
    """Arrays by sentence; none where there is no such file."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return {name: arrays[name] for name in arrays}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged: it holds no arrays") from error
