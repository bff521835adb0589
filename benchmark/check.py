"""Check what a method promises: `python -m benchmark.check method=NAME [method.FIELD=VALUE ...]`.

Trains the method on a few sentences, in a temporary directory and within a minute or two, and says
in words which promises of benchmark/promises.py it breaks, if any; then the exit status is 1.
device=cuda tries it on a GPU. Other options are those of benchmark.run.
"""

import logging
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from benchmark import compose

if TYPE_CHECKING:
    from benchmark.promises import Promise
    from benchmark.trial import Subject

BROKEN, USAGE = 1, 2  # exit statuses

TINY = (
    "model.embedding=6",
    "model.hidden=8",
    "model.latent=4",
    "model.dropout=0.1",
    "model.init=1.0",  # near zero wrong formulas agree with right ones
    "model.init_embedding=1.0",
    "budget.batch_size=8",
    "budget.epochs=4",
    "budget.steps=null",
    "budget.learning_rate=0.01",
    "threads=1",
    "device=cpu",
)


def configure(words: Sequence[str]) -> list[DictConfig]:
    """The checked configurations, each of a tiny cell, that the words mean. Raises UserError."""
    with compose.hydra_ready():
        return [compose.cell(cell)[0] for cell in compose.sweep([*TINY, *words])]


def report(promise: "Promise", subject: "Subject") -> tuple[str, bool]:
    """A line for the promise, one more for each finding, and whether it is kept."""
    from benchmark.promises import findings
    from benchmark.trial import Skip

    assert promise.__doc__ is not None
    words = " ".join(promise.__doc__.split("\n\n")[0].split())
    try:
        found = findings(promise, subject)
    except Skip as reason:
        return f"  --   {words} ({reason})", True
    lines = [f"{'BROKEN' if found else '  ok  '} {words}", *(f"       - {f}" for f in found)]
    return "\n".join(lines), not found


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    if {"-h", "--help"} & {*arguments}:
        _say(str(__doc__))
        return 0
    try:
        if not any(word.startswith("method=") for word in arguments):
            raise compose.UserError("say which: python -m benchmark.check method=NAME.")
        configs = configure(arguments)
    except compose.UserError as error:
        logging.error("%s", error)
        return USAGE
    return max([check(config) for config in configs])


def check(config: DictConfig) -> int:
    """Try one configuration, saying what is found; returns the exit status."""
    from benchmark.cell import prepare_torch
    from benchmark.promises import FIRST, PROMISES
    from benchmark.trial import subject

    began, broken = time.monotonic(), 0
    with subject(config) as tried:
        prepare_torch(config, tried.device)
        for promise in PROMISES:
            text, kept = report(promise, tried)
            _say(text)
            broken += not kept
            if broken and promise in FIRST:
                break
    verdict = f"breaks {broken} of {len(PROMISES)} promises" if broken else "keeps its promises"
    _say(f"{config.method.name} {verdict} ({time.monotonic() - began:.0f} s)")
    return BROKEN if broken else 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    sys.exit(main(sys.argv[1:]))
