"""A second home for methods, and cells so small that they are run in the tests' own process."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmark.api import METHODS

SENTENCES = "dataset.sentences={train: 32, valid: 16, test: 16}"
SMALL = (
    *("threads=1", "budget=smoke", "budget.steps=2", "budget.batch_size=8", "model.hidden=8"),
    *("budget.evaluation.nll_samples=2", SENTENCES),
)
"""Words for a cell of a second."""


@contextmanager
def methods_in(folder: Path) -> Iterator[Path]:
    """While it lasts the files in folder/methods are the project's too; what is registered is
    forgotten at its end. folder/configs is for `--config-dir`."""
    for inner in ("methods", "configs/method", "tests"):
        (folder / inner).mkdir(parents=True)
    package = importlib.import_module("methods")
    project, known, imported = list(package.__path__), dict(METHODS), {*sys.modules}
    package.__path__ = [*project, str(folder / "methods")]
    importlib.invalidate_caches()
    try:
        yield folder
    finally:
        package.__path__ = project
        METHODS.clear()
        METHODS.update(known)
        for name in {*sys.modules} - imported:
            if name.startswith("methods."):
                del sys.modules[name]
                delattr(package, name.removeprefix("methods."))


def write_method(folder: Path, name: str, code: str, yaml: str | None = None) -> None:
    """methods/NAME.py and its YAML."""
    (folder / "methods" / f"{name}.py").write_text(code)
    (folder / "configs/method" / f"{name}.yaml").write_text(yaml or f"name: {name}\n")


@contextmanager
def torch_kept() -> Iterator[None]:
    """Afterwards torch is as it was before a cell set it for its process."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
