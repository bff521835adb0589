"""What does a run's model write? `python -m benchmark.generate RUN_DIR [WORD=VALUE ...]`

Words, with their defaults:
  samples=1000      sentences from the prior, sampled and greedy
  sentences=500     of the test split, reconstructed greedily, by beam search and by sampling
  temperature=1     of what is sampled
  beams=5           hypotheses that the beam search keeps
  paths=20 steps=7  pairs of test sentences, and codes on the straight line between the two
  tokens=5000       on which distinct n-grams are counted
  corpus=10000      sentences that each of two language models is trained on: one on real text
                    judges the samples, one on samples judges real text
  epochs=10         of their training
  seed=0  device=auto|cpu|cuda|cuda:N
Prints what was found, and writes it to generation.json and the texts to generation.jsonl, both in
RUN_DIR. It takes a minute on the embedded data; on long text without a GPU take corpus=1000.
"""

import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmark import compose, record
from benchmark.compose import UserError
from benchmark.generation.settings import Settings
from benchmark.run import free, told

COUNTS = {"sentences": "n", "distinct": "distinct", "commonest": "commonest", "words": "words"}
OF_TEXT = COUNTS | {
    "self_bleu": "self-BLEU",
    **{f"distinct_{n}": f"dist-{n}" for n in (1, 2, 3)},
    **{"perplexity": "PPL", "perplexity_se": "s.e."},
}
OF_RECONSTRUCTIONS = COUNTS | {
    **{"bleu": "BLEU", "bleu_other": "by chance"},
    **{"exact": "exact", "edits": "edits"},
}
"""Columns of the tables: keys of generation.json's rows, and their heads."""


def order(arguments: Sequence[str]) -> tuple[Path, Settings]:
    """What a command line asks for: the run, and how. Raises UserError."""
    words = [word for word in arguments if re.match(r"\w+=", word)]
    folders = [word for word in arguments if word not in words]
    if len(folders) != 1 or folders[0].startswith("-"):
        raise UserError("name one run directory: python -m benchmark.generate RUN_DIR")
    try:
        given = OmegaConf.from_dotlist(words)
    except compose.HYDRA_ERRORS as error:
        raise UserError(compose.explain(error)) from error
    typed = compose.merge(Settings, given, "")
    compose.check(typed)
    settings: Any = OmegaConf.to_object(typed)
    return Path(folders[0]), settings


def table(found: dict[str, Any]) -> str:
    """What was found, for people."""
    rows = {"real text": found["real"]}
    rows |= {f"prior, {name}": row for name, row in found["prior"].items()}
    lines = _rows("", OF_TEXT, rows)
    if found["reconstruction"]:
        rows = {name: row for name, row in found["reconstruction"].items() if row}
        lines += ["", *_rows("reconstruction", OF_RECONSTRUCTIONS, rows)]
    said = []
    if path := found["interpolation"]:
        said.append(f"On a path of {path['steps']} codes stand {path['distinct']:.1f} sentences.")
    greedy = found["prior"]["greedy"]
    said.append(
        f"Of {greedy['sentences']} sentences written greedily from the prior "
        f"{greedy['distinct']} {'is' if greedy['distinct'] == 1 else 'are'} different."
    )
    reverse, judges = found["reverse"], found["judges"]
    said.append(
        f"Real text has a perplexity of {_number(reverse['perplexity'])} after "
        f"{judges['sentences']} samples, {_number(reverse['real'])} after as many real sentences."
    )
    said += [f"{place}: null, {reason}." for place, reason in found["notes"].items()]
    return "\n".join([*lines, "", *said])


def _rows(title: str, columns: dict[str, str], rows: dict[str, dict[str, Any]]) -> list[str]:
    return [title.ljust(16) + "".join(head.rjust(10) for head in columns.values())] + [
        name.ljust(16) + "".join(_number(row[key]).rjust(10) for key in columns)
        for name, row in rows.items()
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    if not arguments or {"-h", "--help"} & {*arguments}:
        sys.stdout.write(f"{__doc__}\n")
        return 0 if arguments else 2
    return told(lambda: generate(*order(arguments)))


def generate(folder: Path, settings: Settings) -> int:
    """Measure, tell, and write down; returns the exit status. Raises UserError and the like."""
    from benchmark.cell import restore
    from benchmark.generation.measure import measure

    run = restore(free(folder), settings.device)
    found, texts = measure(run, settings)
    sys.stdout.write(table(found) + "\n")
    sys.stdout.flush()
    directory = record.RunDirectory(folder)
    lines = [json.dumps(text, ensure_ascii=False) + "\n" for text in texts]
    with directory.lease():
        directory.save_text("generation.jsonl", "".join(lines))
        directory.save_json("generation.json", found)
    return 0


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    sys.exit(main(sys.argv[1:]))
