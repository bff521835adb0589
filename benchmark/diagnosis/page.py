"""A diagnosis as one page of HTML that opens from file:// and asks the network for nothing; imports
no torch.

Whatever a record says is text to the page, whoever wrote it.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from benchmark.diagnosis import words
from benchmark.diagnosis.drawing import DARK, LIGHT
from benchmark.diagnosis.figures import drawings
from benchmark.diagnosis.words import Record, Unit, section

TEMPLATES = Path(__file__).parent / "templates"
COLUMNS = {
    "signal": ("S", "signal: variance of the posterior's mean over sentences"),
    "noise": ("N", "noise: the posterior's variance, mean over sentences"),
    "rate": ("rate", "KL of the posterior from the prior, C + H + G"),
    "epsilon": ("ε", "the KL that at most a share δ of the sentences exceeds (Lucas et al. 2019)"),
    "capacity": ("C", "capacity of the means, ½ ln(1 + S/N)"),
    "heterogeneity": ("H", "what sits in the variances"),
    "mismatch": ("G", "mismatch of the aggregate with the prior"),
    "bound": ("U", "C + H, which the information cannot exceed"),
    "information": ("I", "information about the sentence under the posterior"),
    "read": ("read", "what the decoder loses if this unit alone is another sentence's"),
    "read_error": ("s.e.", "standard error of that"),
    "alone": (
        "alone",
        "what another sentence's code gains if this unit alone is its own",
    ),
    "alone_error": ("s.e.", "standard error of that"),
    "stable": (
        "stable",
        "share of the mean's variance that is the sentence's, and not that of dropout or of "
        "blotted words; the lower of the two",
    ),
}
"""Of the table of units: name and meaning, by the fields of a unit."""
DIGITS = 3


def html(record: Record) -> str:
    """The page."""
    cell = {key: str(value) for key, value in section(record, "cell").items()}
    facts = {
        "Data set": cell.get("dataset"),
        "Variant": cell.get("variant"),
        "Seed": cell.get("seed"),
        "Step": record.get("step"),
        "Sentences": record.get("sentences"),
        "Latent": record.get("latent"),
    }
    return template(TEMPLATES, "diagnosis.html").render(
        title=" ".join(filter(None, ["Diagnosis:", cell.get("variant"), cell.get("dataset")])),
        style=Markup(style()),
        palettes=PALETTES,
        facts={name: value for name, value in facts.items() if value is not None},
        body=Markup(fragment(record, "diagnosis")),
        columns=[*COLUMNS.values()],
        thresholds=section(record, "thresholds"),
        notes=_notes(section(record, "notes")),
    )


def fragment(record: Record, prefix: str, of: str = "", names: Sequence[str] = ()) -> str:
    """What is said and drawn of a run, to be put into a page with this one's `style`.

    prefix: of all ids. of: whose diagnosis it is, where the page has several. names: of the
    figures, all by default.
    """
    return template(TEMPLATES, "fragment.html").render(
        key=prefix,
        of=f", {of}" if of else "",
        told=words.told(record),
        drawings=drawings(record, prefix, names),
        heads=["unit", *(name for name, _ in COLUMNS.values()), "verdict"],
        units=[_line(unit) for unit in words.units(record)],
    )


PALETTES = {"light": LIGHT, "dark": DARK}


@cache
def style() -> str:
    """The style sheet of all pages; it takes its colours from PALETTES by name."""
    return (TEMPLATES / "page.css").read_text(encoding="utf-8")


def template(folder: Path, name: str) -> jinja2.Template:
    """A template, which escapes whatever it is given."""
    return environment(folder).get_template(name)


@cache
def environment(folder: Path) -> jinja2.Environment:
    """Of the templates in a folder."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _line(unit: Unit) -> list[str]:
    values = [getattr(unit, name) for name in COLUMNS]
    cells = ["-" if math.isnan(value) else f"{value:.{DIGITS}f}" for value in values]
    return [str(unit.number), *cells, ", ".join([unit.verdict, *unit.flags])]


def _notes(notes: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name.replace("/", ", "), str(why)) for name, why in notes.items()]
