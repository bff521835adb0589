"""Why did the latent units of a run die? `python -m benchmark.diagnose RUN_DIR [WORD=VALUE ...]`

Words are those of configs/diagnosis.yaml, device=auto|cpu|cuda|cuda:N beside them. Flags:
  --replay      train the run once more, and watch its gradients' noise and its means on the way
  --intervene   go on from an early step in several ways: the cause of collapse is what rescues
Prints what was found, and writes diagnosis.json and diagnosis.html into RUN_DIR; after a
replay of a code of one or two units also plane.svg and plane.gif.
"""

import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig, OmegaConf

from benchmark import compose, record
from benchmark.compose import UserError
from benchmark.config import Diagnosis
from benchmark.run import free, told

FLAGS = ("--replay", "--intervene")


@dataclass(frozen=True)
class Order:
    """What a command line asks for."""

    folder: Path
    settings: Diagnosis
    device: str | None
    flags: frozenset[str]


def order(arguments: Sequence[str]) -> Order:
    """Read the command line. Raises UserError."""
    flags = frozenset(word for word in arguments if word.startswith("-"))
    if unknown := flags - {*FLAGS}:
        raise UserError(f"there is no flag {min(unknown)}; Choices: {', '.join(FLAGS)}, --help.")
    words = [word for word in arguments if word.partition("=")[0].isidentifier() and "=" in word]
    folders = [word for word in arguments if word not in {*words, *flags}]
    if len(folders) != 1:
        raise UserError("name one run directory: python -m benchmark.diagnose RUN_DIR")
    device = None
    for word in words:
        name, _, value = word.partition("=")
        known = ["device", *(f.name for f in fields(Diagnosis))]
        if name not in known:
            raise UserError(f"there is no {name!r}; {compose.nearest(name, known)}.")
        if name == "device":
            device = value
    return Order(Path(folders[0]), settings(words), device, flags)


def settings(words: Sequence[str]) -> Diagnosis:
    """configs/diagnosis.yaml with these words in place. Raises UserError."""
    changed = [word for word in words if not word.startswith("device=")]
    try:
        given = OmegaConf.merge(
            OmegaConf.load(compose.CONFIGS / "diagnosis.yaml"), OmegaConf.from_dotlist(changed)
        )
    except compose.HYDRA_ERRORS as error:
        raise UserError(compose.explain(error)) from error
    assert isinstance(given, DictConfig)
    typed = compose.merge(Diagnosis, given, "")
    compose.check(typed)
    made: Any = OmegaConf.to_object(typed)
    return made


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    if not arguments or {"-h", "--help"} & {*arguments}:
        sys.stdout.write(f"{__doc__}\n")
        return 0 if arguments else 2
    return told(lambda: diagnose(order(arguments)))


def diagnose(asked: Order) -> int:
    """Measure, tell, and write down; returns the exit status. Raises UserError and the like."""
    from benchmark.cell import restore
    from benchmark.diagnosis import page, words
    from benchmark.diagnosis.measure import measure

    run = restore(free(asked.folder), asked.device)
    extra = {flag.removeprefix("--") for flag in asked.flags}
    found = measure(run, asked.folder, asked.settings, extra)
    sys.stdout.write(f"{words.table(found)}\n\n{words.paragraph(found)}\n")
    sys.stdout.flush()
    directory = record.RunDirectory(asked.folder)
    with directory.lease():
        directory.save_json("diagnosis.json", found)
        directory.save_text("diagnosis.html", page.html(found))
        if "planes" in found:
            draw_planes(directory, {found["cell"]["variant"]: found["planes"]})
    return 0


def draw_planes(directory: record.RunDirectory, trails: dict[str, Any]) -> None:
    """plane.svg and plane.gif, the posteriors' means over training."""
    from benchmark.diagnosis import plane_figures

    directory.save_text("plane.svg", plane_figures.panels(trails))
    with TemporaryDirectory() as place, directory.replacing("plane.gif") as temporary:
        plane_figures.animate(trails, drawn := Path(place) / "plane.gif")
        shutil.copy(drawn, temporary)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    sys.exit(main(sys.argv[1:]))
