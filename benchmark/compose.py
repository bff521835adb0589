"""From words on a command line to one cell's configuration; imports no torch until a method's own
schema is needed.

Hydra composes YAML alone; the result is checked against `benchmark.config` and then against the
dataclass of the chosen method, which is found by name.
"""

import difflib
import importlib
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import MISSING, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from benchmark.config import Config

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
PLUGINS = "collapse_benchmark.methods"  # entry-point group of methods from other packages


class UserError(ValueError):
    """Bad input; its text is one sentence that says what to do."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """A clause that suggests the choice most like `word`, and lists them all."""
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    suggestion = f"did you mean {close[0]!r}? " if close else ""
    return f"{suggestion}Choices: {', '.join(known)}"


def find_method(name: str) -> type:
    """The dataclass registered as `name`: methods/NAME.py, or a plug-in's entry point."""
    from benchmark.api import METHODS

    plugins = {plugin.name: plugin for plugin in entry_points(group=PLUGINS)}
    if name not in METHODS:
        if name.isidentifier() and importlib.util.find_spec(f"methods.{name}"):
            importlib.import_module(f"methods.{name}")
        elif name in plugins:
            plugins[name].load()
        else:
            here = {path.stem for path in (CONFIGS.parent / "methods").glob("[!_]*.py")}
            raise UserError(
                f"no method is registered as {name!r}; {nearest(name, here | {*plugins})}."
            )
    if name not in METHODS:
        raise UserError(
            f"methods/{name}.py registers no method named {name!r}: "
            f'decorate its dataclass with @register("{name}").'
        )
    return METHODS[name]


def _merge(schema: Any, values: Any, where: str) -> DictConfig:
    """`values` on top of a structured schema, or one sentence about what does not fit."""
    base = OmegaConf.structured(schema)
    try:
        merged = OmegaConf.merge(base, values)
        OmegaConf.resolve(merged)
        OmegaConf.to_container(merged, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(f"{where}{error.full_key} has no value; set it.") from error
    except OmegaConfBaseException as error:
        key = error.full_key or error.key
        problem = str(error.msg or error).splitlines()[0]
        if error.parent_node is not None and "not in" in problem:
            known = [str(k) for k in error.parent_node if isinstance(k, str)]
            problem = f"there is no such field; {nearest(str(error.key), known)}"
        raise UserError(f"{where}{key}: {problem}.") from error
    assert isinstance(merged, DictConfig)
    return merged


def typed(composed: DictConfig, overridden: Iterable[str] = ()) -> DictConfig:
    """The checked configuration of one cell, every interpolation resolved.

    composed: what Hydra made of configs/ and the command line; overridden: the keys set there,
    which win over a method's `paper:` block. Raises UserError.
    """
    composed = composed.copy()
    OmegaConf.set_struct(composed, False)
    composed.pop("hydra", None)
    paper = composed.method.pop("paper", None)
    if paper is not None and composed.budget.name == "paper":
        keep = set(overridden)
        budget = paper.pop("budget", {})
        for group, values in (("method", paper), ("budget", budget)):
            for name, value in values.items():
                if f"{group}.{name}" not in keep:
                    composed[group][name] = value
    config = _merge(Config, composed, "")
    method = config.method
    name = method.get("name")
    cls = find_method(str(name))
    values = {key: value for key, value in method.items() if key != "name"}
    checked = _merge(cls, values, "method.")
    build(cls, checked)  # its own checks of ranges
    config.method = {"name": name} | OmegaConf.to_container(checked, enum_to_str=True)  # type: ignore[operator]
    _check_ranges(config)
    return config


def _plain(value: Any) -> Any:
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value)
    return value


def build(cls: type, values: Any) -> Any:
    """The method's dataclass filled from a configuration."""
    typed_values: Any = OmegaConf.merge(OmegaConf.structured(cls), values)
    try:
        return cls(**{f.name: _plain(typed_values[f.name]) for f in fields(cls)})
    except ValueError as error:
        raise UserError(str(error).rstrip(".") + ".") from error


def defaults(name: str) -> dict[str, Any]:
    """The neutral values of a method's fields, by name."""
    found = {}
    for f in fields(find_method(name)):
        if f.default is not MISSING:
            found[f.name] = f.default
        elif f.default_factory is not MISSING:
            found[f.name] = f.default_factory()
    return found


def _check_ranges(config: DictConfig) -> None:
    positive = [
        "model.embedding",
        "model.hidden",
        "model.latent",
        "budget.batch_size",
        "budget.learning_rate",
        "budget.clip",
        "budget.evaluation.elbo_samples",
        "budget.evaluation.nll_samples",
        "budget.evaluation.valid_nll_samples",
    ]
    for key in positive:
        if not OmegaConf.select(config, key) > 0:
            raise UserError(f"{key} must be above 0, not {OmegaConf.select(config, key)}.")
    optional = [
        "budget.epochs",
        "budget.steps",
        "threads",
        "stop_after",
        "budget.evaluation.nll_sentences",
        "budget.evaluation.every",
    ]
    for key in optional:
        value = OmegaConf.select(config, key)
        if value is not None and not value > 0:
            raise UserError(f"{key} must be above 0 or null, not {value}.")
    for key in ("budget.evaluation.read_candidates", "budget.evaluation.valid_read_candidates"):
        if OmegaConf.select(config, key) < 2:
            raise UserError(f"{key} must be at least 2: a sentence's own code and another's.")
    if not 0 <= config.model.dropout < 1:
        raise UserError(f"model.dropout must lie in [0, 1), not {config.model.dropout}.")
    if config.seed < 0:
        raise UserError(f"seed must not be negative, it is {config.seed}.")
    if (config.budget.epochs is None) == (config.budget.steps is None):
        raise UserError(
            "a budget has either epochs or steps; set one of budget.epochs and "
            "budget.steps and leave the other null."
        )
    if config.budget.select not in ("nll", "neg_elbo"):
        raise UserError(f"budget.select is nll or neg_elbo, not {config.budget.select!r}.")


def explain(error: Exception) -> str:
    """One sentence for an error of Hydra's or OmegaConf's, naming the choices or the nearest."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"there is no {group} {name!r}; {nearest(name, error.options or [])}."
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        key = unknown[1].split("@")[0]
        group = key.rpartition(".")[0]
        beside = {k for k in _known_keys() if k.rpartition(".")[0] == group}
        return f"there is no option {key!r}; {nearest(key, beside or _known_keys())}."
    return " ".join(text.split("\n")[0].split()).rstrip(".") + "."


def _known_keys() -> list[str]:
    """Every key of the default configuration, dotted."""

    def walk(node: Any, prefix: str) -> Iterable[str]:
        for key, child in node.items():
            if isinstance(child, dict):
                yield from walk(child, f"{prefix}{key}.")
            elif key != "defaults":
                yield f"{prefix}{key}"

    keys = {"method", "dataset", "budget", "model"}
    for path in [CONFIGS / "config.yaml", *CONFIGS.glob("*/*.yaml")]:
        prefix = "" if path.parent == CONFIGS else path.parent.name + "."
        keys |= {*walk(OmegaConf.to_container(OmegaConf.load(path)), prefix)}
    return sorted(key for key in keys if not key.startswith("hydra."))


HYDRA_ERRORS = (HydraException, OmegaConfBaseException)
