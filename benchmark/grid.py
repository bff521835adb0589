"""Cells: which there are, what makes one what it is, where it lies; imports no torch."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from benchmark.config import Config, schema
from benchmark.record import NAME, SCHEMA_VERSION

LISTED = ("method", "model", "budget", "batching", "precision", "placebo")
"""What makes a cell what it is, with the data set's CONTENT and the schema's version."""

CONTENT = (
    "name",  # all that tells local folders apart
    *("hub", "hub_config", "revision", "generator"),
    *("columns", "join", "label", "splits", "sentences", "distinct", "split_seed"),
    *("tokens", "max_tokens", "overlong", "vocabulary", "min_count"),
)
"""The keys of a data set that define its content."""
SILENT = ("budget.evaluation.every",)
"""Options of LISTED that change no result: extra records that nothing reads."""


def identity(config: DictConfig, defaults: Mapping[str, Any]) -> str:
    """12 hex that name a cell up to its data set's name and its seed.

    config: of the shape of `benchmark.config.Config`, its method filled from the method's own
    dataclass, with the registered `name` beside the fields and a paper's overrides applied.
    defaults: the method's fields that have a default, and those of its parts. The caller hands
    them in, because to import a method is to import torch.
    """
    given: Any = OmegaConf.to_container(config, resolve=True)
    listed = {key: given[key] for key in LISTED if key in given}
    listed["dataset"] = {key: given["dataset"][key] for key in CONTENT if key in given["dataset"]}
    typed = OmegaConf.merge(schema(Config), listed)
    for option in SILENT:
        OmegaConf.update(typed, option, None)
    kept = _deviations(typed)
    neutral = _deviations(OmegaConf.create(dict(defaults)))
    kept["method"] = _method(kept["method"], neutral)
    text = _canonical({**kept, "schema_version": SCHEMA_VERSION})
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _method(values: dict[str, Any], neutral: Mapping[str, Any]) -> dict[str, Any]:
    """A method's name and the fields that leave their neutral values; likewise of its parts."""
    kept = {}
    for key, value in values.items():
        if _are_methods(value):
            parts = neutral.get(key) or {}
            kept[key] = {name: _method(value[name], parts.get(name, {})) for name in value}
        elif key == "name" or key not in neutral or not _same(value, neutral[key]):
            kept[key] = value
    return kept


def _are_methods(value: Any) -> bool:
    """Whether these are the methods that one is made of, by the names of their configs."""
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(part, dict) and "name" in part for part in value.values())


def _deviations(node: Any) -> Any:
    """`node` in JSON's types; of a dataclass only the fields that leave their neutral default."""
    if isinstance(node, DictConfig):
        cls = OmegaConf.get_type(node)
        neutral = _neutral(cls) if is_dataclass(cls) else {}
        return {
            key: value
            for key, value in _values(node).items()
            if key not in neutral or not _same(value, neutral[key])
        }
    if isinstance(node, ListConfig):
        return [_deviations(item) for item in node]
    if isinstance(node, Enum):
        return node.name
    if isinstance(node, float) and node.is_integer():
        return int(node)  # 1 and 1.0 are one value, also where no schema sets the type
    return node


def _values(node: DictConfig) -> dict[Any, Any]:
    missing = OmegaConf.is_missing
    return {key: "???" if missing(node, key) else _deviations(node[key]) for key in node}


@cache
def _neutral(cls: type) -> dict[Any, Any]:
    return _values(schema(cls))


def _same(a: Any, b: Any) -> bool:
    return _canonical(a) == _canonical(b)  # to ==, True and 1 are one


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Cell:
    """A variant of a method on a data set with a seed: what one run fills.

    dataset, method: names of their configs. variant: for people, the method config's name and
    the fields that were overridden ("free_bits target=8"), or "placebo" behind it. id: the
    `identity`.
    Raises ValueError for names that are no plain folder names.
    """

    dataset: str
    method: str
    variant: str
    seed: int
    id: str

    def __post_init__(self) -> None:
        for what, name in (("data set", self.dataset), ("method", self.method)):
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"{what} {name!r} cannot name a folder of results: "
                    "use letters, digits, '_', '-', '+' and '.', the first no '.'"
                )
        if not re.fullmatch(r"[0-9a-f]{12}", self.id):
            raise ValueError(f"a cell's id is 12 hexadecimal digits, not {self.id!r}")
        if self.seed < 0:
            raise ValueError(f"a seed is 0 or more, not {self.seed}")

    @property
    def key(self) -> str:
        """dataset/method/id/seed."""
        return f"{self.dataset}/{self.method}/{self.id}/{self.seed}"

    def path(self, results_dir: str | Path) -> Path:
        """The cell's run directory."""
        return Path(results_dir) / self.dataset / self.method / self.id / f"s{self.seed}"
