"""The registry as a list: `python -m benchmark.methods [slot=objective] [method=NAME,...]`.

For every configs/method/*.yaml the slots of a recipe that it fills (none, model, objective,
corrupt, step), its source, what it is in a line, whether rate=R sets its rate, and its parameters
with their values and what they mean.
"""

import ast
import inspect
import itertools
import json
import re
import sys
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any

from benchmark import compose
from benchmark.compose import UserError

PLAIN = "none"  # the slots that the plain VAE fills
WIDTH = 100
NAME = r"[A-Z][\w'-]+"
AUTHORS = rf"{NAME}(?:, {NAME})*(?: et al\.|,? and {NAME})?"
SOURCE = re.compile(rf"{AUTHORS},? \(?(?:[\w.&/-]+ ){{0,2}}(?:19|20)\d\d")
OURS = "this suite's own"
OWN = re.compile(OURS, re.IGNORECASE)
TASK = {  # any would do: only which slots a recipe fills is asked of it
    **{"vocab_size": 20, "mean_length": 6.0, "max_length": 9, "n_train": 100, "batch_size": 10},
    **{"steps_per_epoch": 100, "steps": 1000, "embedding": 4, "hidden": 6, "latent": 4},
    **{"dropout": 0.0, "init": 0.1, "init_embedding": 0.1},
}


@dataclass
class Parameter:
    name: str
    value: str  # the config's
    meaning: str  # its docstring's


@dataclass
class Entry:
    """What is known of a method before it is run."""

    name: str  # of its config
    slots: tuple[str, ...]
    source: str  # authors and year, or that it is our own
    summary: str
    sets_rate: bool
    parameters: list[Parameter]


def entries(names: Iterable[str]) -> Iterator[Entry]:
    """The entries of these configs. Raises UserError; to be called while `hydra_ready`."""
    for name in names:
        values = compose.method(name)
        cls = compose.find_method(values.name)
        file = inspect.getmodule(cls)
        assert file is not None
        own = [] if name == values.name else [comment(name)]  # one class may be several methods
        texts = [*own, inspect.getdoc(cls) or "", *strings(ast.parse(inspect.getsource(file)))]
        meanings = dict(itertools.chain(*(described(base) for base in cls.__mro__[:-1])))
        yield Entry(
            name=name,
            slots=filled(values),
            source=source(texts),
            summary=" ".join((own or [file.__doc__ or ""])[0].split("\n\n")[0].split()),
            sets_rate="aim" in compose.method_file(name),
            parameters=[
                Parameter(f.name, shown(values[f.name], f), meanings.get(f.name, ""))
                for f in fields(cls)
            ],
        )


def comment(name: str) -> str:
    """What stands at the head of a method's YAML."""
    path = compose.CONFIGS / "method" / f"{name}.yaml"
    lines = path.read_text().splitlines() if path.exists() else []
    return " ".join(
        line.lstrip("# ") for line in itertools.takewhile(lambda s: s[:1] == "#", lines)
    )


def strings(tree: ast.Module) -> list[str]:
    """Every string that stands as a statement: docstrings, and those below fields."""
    values = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    return [str(v.value) for v in values if isinstance(v, ast.Constant)]


def shown(value: Any, field: Field) -> str:
    """A value as a command line would have it."""
    if "methods" in field.metadata:
        return f"{{{', '.join(value)}}}"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def filled(values: Any) -> tuple[str, ...]:
    """The slots that the recipe of a configured method fills."""
    from benchmark.api import SLOTS
    from benchmark.task import CellTask

    recipe = compose.make_method(values).recipe(CellTask(**TASK))
    return tuple(slot for slot in SLOTS if getattr(recipe, slot) is not None)


def source(texts: Sequence[str]) -> str:
    """The first paper that the texts name, as authors, place and year."""
    for text in texts:
        text = " ".join(text.split())
        found = [m for pattern in (SOURCE, OWN) if (m := pattern.search(text))]
        if found:
            first = min(found, key=lambda match: match.start())[0]
            return OURS if OWN.match(first) else first.replace(" (", ", ").replace("(", "")
    return ""


def described(cls: type) -> Iterator[tuple[str, str]]:
    """The fields that a class defines with a string below, and that string."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    for field, below in itertools.pairwise(tree.body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            assert isinstance(below.value, ast.Constant)
            yield ast.unparse(field.target), " ".join(str(below.value.value).split())


def told(entry: Entry) -> str:
    """The entry in a few lines."""
    aims = "; rate=R sets its rate" if entry.sets_rate else ""
    head = f"{entry.name}  [{', '.join(entry.slots) or PLAIN}]  {entry.source}{aims}"
    lines = [
        head,
        *textwrap.wrap(entry.summary, WIDTH, initial_indent=4 * " ", subsequent_indent=4 * " "),
    ]
    for p in entry.parameters:
        text = f"{p.name}={p.value}  {p.meaning}"
        lines += textwrap.wrap(text, WIDTH, initial_indent=6 * " ", subsequent_indent=10 * " ")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    if {"-h", "--help"} & {*arguments}:
        sys.stdout.write(f"{__doc__}\n")
        return 0
    from benchmark.api import SLOTS  # torch with it, which --help is spared

    try:
        with compose.hydra_ready():
            asked = wanted(arguments)
            names = chosen("method", asked, compose.options("method"))
            found = list(entries(names))
        slots = chosen("slot", asked, (PLAIN, *SLOTS))
        found = [entry for entry in found if {*slots} & {*(entry.slots or (PLAIN,))}]
    except UserError as error:
        sys.stderr.write(compose.sentence(error) + "\n")
        return 1
    sys.stdout.write("\n\n".join(told(entry) for entry in found) + "\n")
    return 0


def wanted(words: Sequence[str]) -> dict[str, list[str]]:
    """What the words ask for, by key. Raises UserError."""
    asked = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in ("slot", "method"):
            raise UserError(f"{word} means nothing here; write slot=SLOT or method=NAME.")
        asked[key] = value.split(",")
    return asked


def chosen(key: str, asked: dict[str, list[str]], known: Collection[str]) -> Collection[str]:
    """The known names that are asked for, all where none is. Raises UserError."""
    for name in asked.get(key, ()):
        if name not in known:
            raise UserError(f"there is no {key} {name!r}; {compose.nearest(name, known)}.")
    return asked.get(key, known)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
