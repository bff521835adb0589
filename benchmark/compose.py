"""From words on a command line to one cell's configuration; imports no torch until a method's own
schema is needed.

Hydra composes YAML alone; the result is checked against `benchmark.config` and then against the
dataclass of the chosen method, which is found by name. Whatever does not fit is a `UserError`.
"""

import difflib
import importlib
import importlib.util
import itertools
import math
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, ClassVar

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, ListConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from benchmark.config import Config, Dataset, schema
from benchmark.record import NAME

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
PLUGINS = "collapse_benchmark.methods"  # entry-point group of methods from other packages
GROUPS = ("method", "dataset", "model", "budget")
FIXED = ("method.name", "budget.name", "method.paper", "method.aim")  # a file's own, not a word's
HYDRA_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)


class UserError(ValueError):
    """Bad input; its text is one sentence that says what to do."""


def sentence(problem: object) -> str:
    """A problem in one line that ends with one full stop."""
    return " ".join(str(problem).split()).rstrip(".") + "."


def nearest(word: str, choices: Iterable[str]) -> str:
    """A clause that suggests the choice most like `word`, and lists them all."""
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    suggestion = f"did you mean {close[0]!r}? " if close else ""
    return f"{suggestion}Choices: {', '.join(known) or 'none'}"


# Words -------------------------------------------------------------------------------------------


class PluginConfigs(SearchPathPlugin):
    """Puts the `configs` folders of packages that bring methods behind our own, which they
    therefore cannot replace, and the command line's `--config-dir` in front."""

    config_dir: ClassVar[str | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.config_dir is not None:
            search_path.prepend("command-line", f"file://{os.path.abspath(self.config_dir)}")
        for folder in sorted({f for plugin in _plugins() for f in _config_folders(plugin)}):
            search_path.append("collapse-benchmark-plugin", f"file://{folder}")


def _plugins() -> Iterable[EntryPoint]:
    return entry_points(group=PLUGINS)


def _config_folders(plugin: EntryPoint) -> Iterator[Path]:
    """`configs` in the plug-in's package and those around it; nothing is imported to find them."""
    top, *inner = plugin.module.split(".")
    spec = importlib.util.find_spec(top)
    for place in (spec and spec.submodule_search_locations) or ():
        for depth in range(len(inner) + 1):
            folder = Path(place, *inner[:depth], "configs").absolute()
            if folder.is_dir():
                yield folder


@contextmanager
def hydra_ready(config_dir: str | None = None) -> Iterator[None]:
    """While it lasts words can be composed: from configs/, from those of plug-ins and, first of
    all, from another folder of the same kind."""
    if config_dir is not None and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir {config_dir} is no folder; give one with method/NAME.yaml.")
    Plugins.instance().register(PluginConfigs)
    PluginConfigs.config_dir = config_dir
    try:
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            yield
    finally:
        PluginConfigs.config_dir = None


def sweep(words: Sequence[str]) -> list[list[str]]:
    """The words of each cell: lists, ranges and globs multiplied out, `method=all` being every
    method there is (that has a rate to set, where one is asked for) and `rate=all` every rate of
    configs/rates.yaml. Raises UserError; to be called while `hydra_ready`."""
    choices: dict[str, list[str]] = {}  # of two words for one key the later holds, as in Hydra
    parsed = _parse(words)
    aimed = any(override.get_key_element() == "rate" for override in parsed)
    for override in parsed:
        key, line = override.get_key_element(), str(override.input_line)
        if key in GROUPS and override.value() == "all":
            names = _aimable() if key == "method" and aimed else options(key)
            choices[key] = [f"{key}={name}" for name in names]
        elif key == "rate" and override.value() == "all":
            choices[key] = [f"{key}={rate}" for rate in OmegaConf.load(CONFIGS / "rates.yaml")]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        elif override.is_sweep_override():
            raise UserError(f"{line} has no end; list the values: {key}=A,B.")
        else:
            choices[key] = [line]
        if not choices[key] or _is_empty(override):
            raise UserError(f"{line} is an empty sweep; name at least one value.")
    return [list(cell) for cell in itertools.product(*choices.values())]


def compose(words: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """What Hydra makes of one cell's words, unchecked, and the keys that they set. Raises
    UserError; to be called while `hydra_ready`."""
    parsed = _parse(words)
    accepted = [_accepted(override) for override in parsed]
    with _explained():
        composed = hydra.compose("config", accepted, return_hydra_config=True)
    return composed, [str(override.key_or_group) for override in parsed]


def _parse(words: Sequence[str]) -> list[Override]:
    with _explained():
        loader = GlobalHydra.instance().config_loader()
        return OverridesParser.create(loader).parse_overrides(list(words))


def _accepted(override: Override) -> str:
    """A word as Hydra is to see it. Hydra knows the YAML alone; the schema is asked later."""
    line, key, value = str(override.input_line), str(override.key_or_group), override.value()
    if not key:
        raise UserError(f"{line!r} names no option; write KEY=VALUE.")
    if override.is_sweep_override() or (key in (*GROUPS, "rate") and value == "all"):
        raise UserError(f"{line} is more than one cell; add -m to run one after another.")
    if _is_empty(override):
        raise UserError(f"{line} has no value; write {key}=VALUE.")
    if key in GROUPS:
        if override.type is not OverrideType.CHANGE or override.package is not None:
            raise UserError(f"{line} is no choice of a {key}; write {key}=NAME.")
        if not isinstance(value, str) or not NAME.fullmatch(value):
            raise UserError(f"{line} names no {key}; {nearest(str(value), options(key))}.")
        return line
    group = key.split(".")[0]
    if ".".join(key.split(".")[:2]) in FIXED:
        raise UserError(f"{key} is not to be set; choose another {group} with {group}=NAME.")
    if key == "hydra.searchpath":
        return line
    if key.startswith(("hydra.", "hydra/")):
        raise UserError(f"{key} means nothing here: Hydra composes, and no more; leave it out.")
    # the schema's fields can be set, also those that a YAML file does not list
    return f"++{line}" if override.type is OverrideType.CHANGE else line


def _is_empty(override: Override) -> bool:
    """Whether nothing stands behind the '='; '' does, and is an empty text."""
    return not override.is_delete() and str(override.input_line).partition("=")[2] in ("", "???")


def options(group: str) -> list[str]:
    """The configs of a group; to be called while `hydra_ready`."""
    return GlobalHydra.instance().config_loader().get_group_options(group)


def _aimable() -> list[str]:
    """The methods that may be told which rate to have."""
    return [name for name in options("method") if "aim" in method_file(name)]


def method_file(name: str) -> DictConfig:
    """configs/method/NAME.yaml as it is. Raises UserError; to be called while `hydra_ready`."""
    with _explained():
        loader: Any = (
            GlobalHydra.instance().config_loader()
        )  # composing would cost 20 times as much
        return loader.repository.load_config(f"method/{name}").config


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except HYDRA_ERRORS as error:
        raise UserError(explain(error)) from error


def explain(error: Exception) -> str:
    """One sentence for an error of Hydra's, OmegaConf's or the YAML reader's."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if group == "method" and (plugin := next((p for p in _plugins() if p.name == name), None)):
            return (
                f"{plugin.module} registers {name!r} but ships no configs/method/{name}.yaml "
                "inside its package; add one."
            )
        return f"there is no {group} {name!r}; {nearest(name, error.options or [])}."
    if isinstance(error, OverrideParseException):
        word = str(error.override)
        if "=" not in word:
            return f"{word!r} has no '='; write KEY=VALUE, or GROUP=NAME with {_alternatives()}."
        return f"{word!r} cannot be read as KEY=VALUE; put quotes around the value: {_quoted(word)}"
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return sentence(f"{mark.name}, line {mark.line + 1} is no YAML: {error.problem}")
    unknown = re.search(r"Could not override '([^']+)'", str(error))
    if unknown:
        return f"there is no option {unknown[1]!r}."
    return sentence(str(error).split("\n")[0])


def _alternatives() -> str:
    return " or ".join([", ".join(GROUPS[:-1]), GROUPS[-1]])


def _quoted(word: str) -> str:
    key, _, value = word.partition("=")
    inner = value.replace('"', "").replace("'", "")
    return f"""'{key}="{inner}"'."""


# The schema --------------------------------------------------------------------------------------


def cell(words: Sequence[str]) -> tuple[DictConfig, str]:
    """The checked configuration of one cell and the name of its method's config.

    Raises UserError; to be called while `hydra_ready`.
    """
    composed, keys = compose(words)
    return typed(composed, keys), composed.hydra.runtime.choices["method"]


def stored(folder: Path) -> DictConfig:
    """The checked configuration that lies in a run's folder. Raises UserError."""
    path = folder / "config.yaml"
    try:
        found = OmegaConf.load(path)
        if not isinstance(found, DictConfig):
            raise UserError("it holds no options.")
        return typed(found)
    except (OSError, UnicodeDecodeError, UserError, *HYDRA_ERRORS) as error:
        why = getattr(error, "strerror", None) or explain(error)
        raise UserError(sentence(why if str(path) in why else f"{path}: {why}")) from error


def typed(composed: DictConfig, overridden: Iterable[str] = ()) -> DictConfig:
    """The checked configuration of one cell, every interpolation resolved.

    composed: what Hydra made of configs/ and the command line; overridden: the keys set there,
    which win over a method's `paper:` block. Raises UserError.
    """
    overridden = [key for key in overridden if key not in GROUPS]
    name, file, paper, aim = None, "the method's YAML", None, None
    if "hydra" in composed:
        file = f"configs/method/{composed.hydra.runtime.choices['method']}.yaml"
    composed = _own(composed)
    method = composed.get("method")
    if isinstance(method, DictConfig):
        name, paper, aim = method.get("name"), method.pop("paper", None), method.pop("aim", None)
    if name is None:
        raise UserError(f"{file} names no method; add the line 'name: NAME' to it.")
    cls = find_method(str(name))
    _check_fields(cls, composed.method, file, overridden)
    _apply_paper(composed, cls, paper, file, overridden)
    _apply_aim(composed, aim, overridden)
    config = harness(composed)
    config.method = _checked(cls, config.method, "method.", config.budget.name == "paper")
    return config


def _checked(cls: type, given: DictConfig, where: str, paper: bool) -> dict[str, Any]:
    """A method's configuration in full: every field's type and range checked, `name` beside them,
    and the methods that it is made of filled in likewise."""
    values: dict[str, Any] = {str(key): value for key, value in given.items() if key != "name"}
    for f in fields(cls):
        if "methods" in f.metadata:
            names, parts = values.get(f.metadata["methods"]), values.get(f.name)
            values[f.name] = _parts(names, parts, f"{where}{f.name}", paper)
    checked = merge(cls, values, where)
    check(checked, where)
    build(cls, checked, where)  # its own checks of ranges
    return {"name": given.name} | OmegaConf.to_container(checked, enum_to_str=True)  # type: ignore[operator]


def _parts(names: Any, given: Any, where: str, paper: bool) -> dict[str, Any]:
    """The methods that one is made of, by the names of their configs: each as its YAML has it (its
    paper's fields under budget=paper), with the fields that are set for it."""
    if not isinstance(names, ListConfig) or not isinstance(given, DictConfig):
        return given  # the schema says what is wrong
    if not all(isinstance(name, str | int) for name in names):
        raise UserError(f"{where}: the methods must be names, not {names}.")
    for name in given:
        if name not in names:
            raise UserError(f"{where}.{name}: {nearest(str(name), map(str, names))}.")
    parts = {}
    for name in names:
        values, own = given.get(name, OmegaConf.create()), f"{where}.{name}."
        if not isinstance(values, DictConfig):
            raise UserError(f"{own[:-1]} must be a mapping; write {own}FIELD=VALUE.")
        if "name" not in values:  # else it was filled in before
            known = compose([f"method={name}"])[0].method
            OmegaConf.set_struct(known, False)
            known.pop("aim", None)
            block = known.pop("paper", None) or {}
            theirs = {key: v for key, v in block.items() if paper and key != "budget"}
            said = [f"{own}{key}" for key in values]
            values = OmegaConf.merge(known, theirs, values)
            assert isinstance(values, DictConfig)
            file = f"configs/method/{name}.yaml"
            _check_fields(find_method(values.name), values, file, said, own)
        parts[str(name)] = _checked(find_method(values.name), values, own, paper)
    return parts


def method(name: str) -> DictConfig:
    """A method's configuration in full, its YAML alone asked. Raises UserError; to be called while
    `hydra_ready`."""
    values = method_file(name)
    for block in ("paper", "aim"):
        values.pop(block, None)
    cls = find_method(str(values.get("name")))
    _check_fields(cls, values, f"configs/method/{name}.yaml", ())
    return OmegaConf.create(_checked(cls, values, "method.", False))


def harness(composed: DictConfig) -> DictConfig:
    """All of a cell's configuration but the method's own fields, checked; imports no torch."""
    own = _own(composed)
    own.pop("rate", None)  # a word for fields of the method
    config = merge(Config, own, "")
    check(config)
    _check_source(config.dataset)
    if (config.budget.epochs is None) == (config.budget.steps is None):
        raise UserError(
            "a budget has either epochs or steps; set one of budget.epochs and budget.steps "
            "and the other to null."
        )
    return config


def _own(composed: DictConfig) -> DictConfig:
    """A copy to change, without Hydra's own part, which is most of it."""
    ours = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    OmegaConf.set_struct(ours, False)
    return ours


PLAIN_WORDS = (
    (r"Value (.*) of type '\w+' could not be converted to Integer", r" must be an integer, not \1"),
    (r"Value (.*) of type '\w+' could not be converted to Float", r" must be a number, not \1"),
    (r"Value '(.*)' of type '\w+' is incompatible", r" must be an integer or a word, not \1"),
    (r"Incompatible value 'None'", " cannot be null; give it a value"),
    (r"Invalid value (.*), expected one of \[(.*)\]", r" must be one of \2, not \1"),
    (r"Value (.*) is not a valid bool", r" must be true or false, not \1"),
    (r"is not a ListConfig", " must be a list; write [A,B]"),
    (r"Cannot assign (\w+) to Dict", r" must be a mapping, no \1; write {KEY:VALUE}"),
    (r"is not a subclass of \w+. value: (.*)", r" must be a mapping, not \1; write {KEY:VALUE}"),
    (r"Cannot convert 'ListConfig' to string: '(.*)'", r" must be one word, not \1"),
    (r"Environment variable '(.*)' not found", r"the environment has no variable \1; set it"),
)
"""What OmegaConf says of a value that does not fit, and what we say."""


def merge(cls: Any, values: Any, where: str) -> DictConfig:
    """`values` on top of a structured schema, or one sentence about what does not fit."""
    try:
        merged = OmegaConf.merge(schema(cls), values)
        OmegaConf.resolve(merged)
        OmegaConf.to_container(merged, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(f"{where}{error.full_key} has no value; set it.") from error
    except OmegaConfBaseException as error:
        key = f"{where}{error.full_key or error.key or ''}"
        problem = str(error.msg or error).splitlines()[0]
        if "not in" in problem and error.parent_node is not None:
            prefix = key.removesuffix(str(error.key))
            beside = [f"{prefix}{name}" for name in error.parent_node if isinstance(name, str)]
            raise UserError(f"there is no option {key!r}; {nearest(key, beside)}.") from error
        for pattern, words in PLAIN_WORDS:
            if re.search(pattern, problem):
                problem = re.sub(f".*{pattern}.*", words, problem)
                break
        else:
            problem = f": {problem}" if key else problem
        raise UserError(sentence(f"{key}{problem}")) from error
    assert isinstance(merged, DictConfig)
    return merged


def check(node: Any, where: str = "") -> None:
    """Raise UserError for a value out of the range that its field states in the schema, and for
    a number that is none."""
    if isinstance(node, ListConfig):
        for i, value in enumerate(node):
            check(value, f"{where.rstrip('.')}[{i}]")
    elif isinstance(node, DictConfig):
        cls = OmegaConf.get_type(node)
        rules = {f.name: f.metadata.get("must") for f in fields(cls)} if is_dataclass(cls) else {}
        for name, value in node.items():
            rule = rules.get(str(name))
            if value is not None and rule is not None and not rule.holds(value):
                raise UserError(f"{where}{name} must {rule}, not {value}.")
            check(value, f"{where}{name}.")
    elif isinstance(node, float) and not math.isfinite(node):
        raise UserError(f"{where.rstrip('.')} must be a finite number, not {node}.")


def _check_source(dataset: Dataset) -> None:
    """What describes text means nothing beside a generator."""
    if dataset.generator is None:
        return
    needed = {"name", "generator", "sentences", "sizes", "batch_size", "learning_rate"}
    neutral: Any = schema(Dataset)
    for f in fields(Dataset):
        if f.name in needed | {"nll_sentences", "licence"}:
            continue
        if getattr(dataset, f.name) != neutral[f.name]:
            raise UserError(
                f"dataset.{f.name} means nothing for {dataset.name!r}, which is generated; leave "
                "it out, or choose another dataset."
            )


def writable(key: str, folder: str) -> Path:
    """`folder`, if it can be made and written to, which leaves nothing behind. Raises UserError,
    which names the option."""
    path = Path(folder)
    try:
        existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        TemporaryFile(dir=existing).close()
    except OSError as error:
        raise UserError(
            f"{key}={folder} cannot be written to ({error.strerror}); choose another folder."
        ) from error
    return path


# The method --------------------------------------------------------------------------------------


def find_method(name: str) -> type:
    """The dataclass registered as `name`: methods/NAME.py, or a plug-in's entry point."""
    from benchmark.api import METHODS

    plugins = [plugin for plugin in _plugins() if plugin.name == name]
    places = sorted(f"{plugin.value} of {_package(plugin)}" for plugin in plugins)
    here = _method_files()
    if name in here:
        places.insert(0, f"methods/{name}.py")
    if len(places) > 1:
        raise UserError(
            f"two methods are named {name!r}: {' and '.join(places)}; rename one of them, or "
            "uninstall its package."
        )
    if name in here:
        _import(places[0], lambda: importlib.import_module(f"methods.{name}"))
    elif plugins:
        _import(places[0], plugins[0].load)
    elif name not in METHODS:
        raise UserError(f"no method is registered as {name!r}; {nearest(name, method_names())}.")
    if name not in METHODS:
        module = f"methods.{name}" if name in here else plugins[0].module
        others = [other for other, cls in METHODS.items() if cls.__module__ == module]
        instead = f", only {', '.join(map(repr, others))}" if others else ""
        raise UserError(
            f"{places[0]} registers no method {name!r}{instead}: "
            f'decorate its dataclass with @register("{name}").'
        )
    return METHODS[name]


def method_files(method: Any) -> list[str]:
    """The files of a method, given its configuration in full, and of those it is made of."""
    cls = find_method(method["name"])
    parts = [method[f.name].values() for f in fields(cls) if "methods" in f.metadata]
    inner = [file for part in itertools.chain(*parts) for file in method_files(part)]
    return [str(sys.modules[cls.__module__].__file__), *inner]


def method_names() -> set[str]:
    """Every method that can be found, here and in other packages; none is imported."""
    return _method_files() | {plugin.name for plugin in _plugins()}


def _method_files() -> set[str]:
    """Names of the files in methods/."""
    try:
        found = importlib.import_module("methods").__path__
    except ModuleNotFoundError:
        return set()
    return {m.name for m in pkgutil.iter_modules(found) if not m.name.startswith("_")}


def _package(plugin: EntryPoint) -> str:
    return f"the package {plugin.dist.name}" if plugin.dist else "an installed package"


def _import(what: str, load: Callable[[], Any]) -> None:
    """Import a method's code, or say in one sentence where it breaks."""
    from benchmark.api import METHODS

    before = dict(METHODS)
    try:
        load()
    except Exception as error:
        METHODS.clear()
        METHODS.update(before)  # a file that broke behind its @register is no method
        line = getattr(error, "lineno", None)
        if line is None:
            line = traceback.extract_tb(error.__traceback__)[-1].lineno
            for frame in traceback.extract_tb(error.__traceback__):
                if what.endswith(Path(frame.filename).name):
                    line = frame.lineno
        reason = sentence(f"{type(error).__name__}: {getattr(error, 'msg', None) or error}")
        raise UserError(f"{what} cannot be imported, line {line}: {reason}") from error


def _check_fields(
    cls: type, given: DictConfig, file: str, overridden: Sequence[str], prefix: str = "method."
) -> None:
    """A method's YAML lists every field of its dataclass, and no other."""
    wanted = {f.name for f in fields(cls)}
    where = f"{cls.__name__} in {cls.__module__}"
    for name in sorted({str(key) for key in given} - wanted - {"name"}):
        option = f"{prefix}{name}"
        if option in overridden:
            options = [f"{prefix}{field}" for field in wanted]
            raise UserError(f"there is no option {option!r}; {nearest(option, options)}.")
        raise UserError(f"{file} sets {name!r}, no field of {where}; {nearest(name, wanted)}.")
    lacking = sorted(wanted - {str(key) for key in given})
    lacking = [name for name in lacking if f"{prefix}{name}" not in overridden]
    if lacking:
        raise UserError(
            f"{file} does not list {', '.join(lacking)}, of {where}: give every field a value."
        )


def _apply_paper(
    composed: DictConfig, cls: type, paper: Any, file: str, overridden: Sequence[str]
) -> None:
    """Under budget=paper a method's `paper:` block sets its fields, and the budget's by `budget:`
    within it; what the command line sets, stays."""
    if paper is None:
        return
    if not isinstance(paper, DictConfig):
        raise UserError(f"{file}: paper holds fields of the method and budget: FIELDS, no value.")
    wanted = {f.name for f in fields(cls)}
    for name in sorted({str(key) for key in paper} - wanted - {"budget"}):
        raise UserError(
            f"{file} sets paper.{name}, no field of {cls.__name__}; {nearest(name, wanted)}."
        )
    if composed.budget.get("name") != "paper":
        return
    for key, value in _leaves(paper):
        key = key if key.startswith("budget.") else f"method.{key}"
        if key == "budget.steps" and "budget.epochs" in overridden and composed.budget.epochs:
            continue  # training has one length
        said = (f"{o}." for o in overridden)
        if not any(f"{key}.".startswith(o) or o.startswith(f"{key}.") for o in said):
            OmegaConf.update(composed, key, value, force_add=True)


def _apply_aim(composed: DictConfig, aim: Any, overridden: Sequence[str]) -> None:
    """With rate=R a method's `target` is R, and its `aim:` block sets the fields that have to give
    way, which are null there, and others that go with a target, unless the command line does."""
    rate, name = composed.get("rate"), composed.method.name
    if rate is None:
        return
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise UserError(f"rate must be a number of nats above 0, not {rate}.")
    if not isinstance(aim, DictConfig):
        raise UserError(
            f"method {name!r} does not set its rate; leave rate={rate} out, or choose one that "
            f"does: {', '.join(_aimable()) or 'none'}."
        )
    for key, value in {**aim, "target": rate}.items():
        word = f"method.{key}"
        if word in overridden and (value is None or key == "target"):
            raise UserError(f"rate={rate} and {word} both say which rate; leave one of them out.")
        if word not in overridden:
            OmegaConf.update(composed, word, value, force_add=True)


def _leaves(node: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, DictConfig) and len(value):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def make_method(values: Any, config: str | None = None) -> Any:
    """A method, given its configuration in full; config: its config's name, which is its own where
    `values` has none. Raises UserError where it refuses its values."""
    rest = {key: value for key, value in values.items() if key != "name"}
    return build(find_method(values.get("name", config)), rest)


def build(cls: type, values: Any, where: str = "method.") -> Any:
    """The method's dataclass filled from a configuration, which stands at `where`. Raises
    UserError where the method refuses it."""
    typed_values: Any = OmegaConf.merge(schema(cls), values)
    filled = {f.name: _plain(typed_values[f.name]) for f in fields(cls)}
    for f in fields(cls):
        if "methods" in f.metadata:
            parts = filled[f.name].items()
            filled[f.name] = {name: make_method(part, name) for name, part in parts}
    try:
        return cls(**filled)
    except ValueError as error:
        raise UserError(sentence(error).replace("method.", where)) from error


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def defaults(method: Any) -> dict[str, Any]:
    """The neutral values of the fields of a method, given its configuration in full."""
    found = {}
    for f in fields(find_method(method["name"])):
        if "methods" in f.metadata:
            found[f.name] = {name: defaults(part) for name, part in method[f.name].items()}
        elif f.default is not MISSING:
            found[f.name] = f.default
        elif f.default_factory is not MISSING:
            found[f.name] = f.default_factory()
    return found
