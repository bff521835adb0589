"""What the READMEs tell people to type is what the commands take."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmark import compose
from benchmark.run import planned
from slurm import submit

ROOT = Path(__file__).parent.parent
PAGES = [
    *("README.md", "RULES.md", "methods/README.md", "slurm/README.md"),
    "benchmark/diagnosis/README.md",
]
STANDS_FOR = {"FOLDER": "data/folder", "R": "2"}


def commands(page: str) -> Iterator[list[str]]:
    """Every `python -m ...` of a page, in a block or in a line, by words."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    for found in re.findall(r"(?:^ *|`)(python -m [^`\n]*)", text, re.MULTILINE):
        words = shlex.split(found, comments=True)
        yield [re.sub(r"(?<==)[A-Z]+$", lambda m: STANDS_FOR.get(m[0], m[0]), w) for w in words[2:]]


def test_there_are_commands():
    assert len([words for page in PAGES for words in commands(page)]) > 80


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one(page):
    with compose.hydra_ready():
        for module, *words in commands(page):
            assert importlib.util.find_spec(module), f"{page}: there is no {module}"
            own = [word for word in words if "=" in word and not word.startswith("-")]
            if module not in ("benchmark.run", "slurm.submit") or "method=mine" in own:
                continue  # nothing to compose, or of a method that the reader is to write
            if not any(word.startswith("grids=") for word in own):
                (grid,) = submit.order(own).grids
                assert list(planned(grid)), words
