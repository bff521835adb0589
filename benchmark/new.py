"""Begin a new method: `python -m benchmark.new NAME`.

Writes methods/NAME.py, configs/method/NAME.yaml and tests/test_NAME.py: a small method that works,
to be edited into yours. Nothing that exists is replaced.
"""

import keyword
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmark import compose

METHOD = '''\
"""Say here in a line what it does against collapse. Until you do, it weighs the KL."""

from dataclasses import dataclass, field

from torch import Tensor

from benchmark.api import Batch, Draw, Recipe, Task, register
from benchmark.objectives import rate, reconstruction


@register("NAME")
@dataclass
class CLASS:
    """Rec + beta KL with a constant beta (beta-VAE; Higgins et al., ICLR 2017)."""

    # A hyper-parameter is a field. Its default is neutral: with it the method is the plain VAE, or
    # does what it did before the field was added. The YAML says what is run. `other` is one more
    # value, at which training must go another way; so `benchmark.check` finds a dead knob.
    beta: float = field(default=1.0, metadata={"other": 0.25})
    """Weight of the KL; below 1 a code costs less than its nats (Higgins et al.: above 1)."""

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise ValueError(f"method.beta is a weight of 0 or more, not {self.beta}")

    def recipe(self, task: Task) -> Recipe:
        # A method edits one or more of four slots: model, objective, corrupt, step. A slot that is
        # left out is the plain VAE's. Costs are nats per sentence: sums over tokens and units,
        # means over the batch.
        def objective(draw: Draw, batch: Batch, t: int) -> Tensor:
            return reconstruction(draw) + self.beta * rate(draw)

        return Recipe(objective=objective)
'''

YAML = """\
# Every field of methods/NAME.py, each number with its source.
name: NAME
beta: 0.5     # ours, to begin with: half of what the code costs

# paper:      # what budget=paper runs in place of the values above, and of the budget's
#   beta: 1.0
#   budget: {clip: 5.0}
"""

TEST = '''\
"""Its formula, computed apart. What every method promises is tested in test_contract.py."""

from types import SimpleNamespace

import pytest
import torch

from benchmark.api import Draw
from methods.NAME import CLASS


def test_the_objective_is_rec_and_beta_kl():
    score, kl = torch.tensor([[-3.0], [-5.0]]), torch.tensor([[1.0, 0.5], [2.0, 0.5]])
    draw = Draw(None, log_px=score, log_pz=score * 0, log_qz=score * 0, kl=kl)
    task = SimpleNamespace(model=lambda: None)
    objective = CLASS(beta=0.25).recipe(task).objective
    assert objective(draw, None, 0).item() == 4.0 + 0.25 * 2.0


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"method\\.beta"):
        CLASS(beta=-1.0)
'''

FILES = {
    "methods/NAME.py": METHOD,
    "configs/method/NAME.yaml": YAML,
    "tests/test_NAME.py": TEST,
}
TAKEN = {"Batch", "Draw", "Recipe", "Task", "Tensor"}  # what the files import


def write(name: str, root: Path) -> list[Path]:
    """Write the files of a method `name` under `root`, all or none, and return their paths.

    Raises UserError for a name that is taken, or cannot be a file's.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,29}", name) or keyword.iskeyword(name):
        raise compose.UserError(
            f"{name!r} cannot name a method: up to 30 of a-z, 0-9 and '_', the first a letter, "
            "and no word of Python's."
        )
    if name == "all" or name in compose.method_names():
        raise compose.UserError(f"there is a method {name!r} already; choose another name.")
    paths = {root / file.replace("NAME", name): text for file, text in FILES.items()}
    for path in paths:
        if path.exists():
            raise compose.UserError(f"{path} is there already; choose another name.")
    camel = "".join(word.capitalize() for word in name.split("_"))
    camel += "Method" if camel in TAKEN else ""
    written: list[Path] = []
    try:
        for path, text in paths.items():
            with path.open("x", encoding="utf-8") as file:
                written.append(path)
                file.write(text.replace("NAME", name).replace("CLASS", camel))
    except OSError as error:
        for path in written:
            path.unlink()
        raise compose.UserError(f"{path} cannot be written: {error.strerror}.") from error
    return written


def main(arguments: Sequence[str], root: Path = compose.CONFIGS.parent) -> int:
    """The command; returns the exit status."""
    if {"-h", "--help"} & {*arguments}:
        sys.stdout.write(str(__doc__))
        return 0
    try:
        if len(arguments) != 1:
            raise compose.UserError("say one name: python -m benchmark.new NAME.")
        method, yaml, test = write(arguments[0], root)
    except compose.UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    name = method.stem
    steps = (
        ("put your method in place of the example", method),
        ("list its fields, each number with its source", yaml),
        ("compute its formula apart", test),
        ("what does it promise?", f"python -m benchmark.check method={name}"),
        ("does it run?", f"python -m benchmark.run method={name} budget=smoke"),
        ("what is it worth?", f"python -m benchmark.run -m method=vae,lm,{name} seed=0,1,2"),
    )
    sys.stdout.write("".join(f"{n}. {why}\n   {what}\n" for n, (why, what) in enumerate(steps, 1)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
