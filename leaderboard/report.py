"""What is written beside the results: results.parquet, RESULTS.md, table.tex.

The same records give the same bytes.
"""

import math
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd

from leaderboard.board import MEASURES, PLAIN, Board, Row, boards
from leaderboard.load import load_curves

UNKNOWN = "-"
SHOWN = ("nll", "neg_elbo", "kl", "rec", "mi", "ppl", "i_read", "z_gain", "nll_gap", "elbo_gap")
UNIQUE = ["dataset", "method", "id", "seed", "split", "step", "metric", "estimator"]
TEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\~{}"})
PLUS_MINUS = {"md": " ± ", "tex": r" $\pm$ "}

LEGEND = """\
Test split; costs in nats a sentence, means over the finished seeds, ± half of the 95 % t-interval
(from three seeds on). **ties**: two rows that share a letter cannot be told apart by NLL (by seeds
and sentences, Holm over all pairs; never across kinds of latents, never where more than 10 % of the
sentences have importance weights that cannot be trusted, nor where doubling the samples moves NLL
by more than the difference); bold is told apart from all. **- vae**: NLL less the plain VAE's,
paired by seed; p adjusted for all rows (Holm). **placebo**: NLL less that of the same method whose
encoder reads another sentence. **pays**: NLL by sentence against the language model, `lm`.
**collapsed**: seeds with KL below 0.05. MI cannot exceed the logarithm of the sentences in its
mixture; never compare it across estimators.
"""


def write(cells: pd.DataFrame, out: Path) -> list[Path]:
    """All of it, each file all at once; returns their paths."""
    found = boards(cells)
    texts = {"RESULTS.md": markdown(cells, found), "table.tex": tex(found)}
    out.mkdir(parents=True, exist_ok=True)
    tidy = measurements(cells)
    paths = [_replace(out / "results.parquet", lambda path: tidy.to_parquet(path, index=False))]
    for name, text in texts.items():
        paths.append(_replace(out / name, lambda path, text=text: path.write_text(text)))
    return paths


def measurements(cells: pd.DataFrame) -> pd.DataFrame:
    """Every measurement of every run that counts, a row each; the columns UNIQUE name it. Of a
    measurement that was repeated, as after a stop, the last holds."""
    return load_curves(cells).drop_duplicates(UNIQUE, keep="last", ignore_index=True)


# Markdown ----------------------------------------------------------------------------------------


def markdown(cells: pd.DataFrame, found: Sequence[Board]) -> str:
    """RESULTS.md: a table a data set, then what did not finish."""
    n, done = len(cells), list(cells["status"]).count("done")
    parts = ["# Results\n", f"{done} of {n} runs are done.{_commits(cells)}\n", LEGEND]
    for board in found:
        parts.append(f"## {_plain(board.dataset)}\n")
        parts.append(_table(board))
        if pending := _pending(board):
            parts.append("Not in the means:\n\n" + "".join(f"- {line}\n" for line in pending))
    return "\n".join(parts)


def _commits(cells: pd.DataFrame) -> str:
    known = sorted({c[:12] for c in cells["provenance/commit"] if isinstance(c, str)})
    return f" Code: {', '.join(known)}." if known else ""


def columns(board: Board) -> list[str]:
    """The measures that some row of the board has."""
    return [name for name in SHOWN if any(not math.isnan(row.means[name][0]) for row in board.rows)]


def _table(board: Board) -> str:
    shown = columns(board)
    head = ["variant", "n", *(MEASURES[name] for name in shown), "AU"]
    head += ["ties", f"- {PLAIN}", "p", "placebo", "pays", "collapsed", "verdict", "s"]
    lines = [head, ["---"] * len(head)]
    for row in board.rows:
        name = f"**{_plain(row.name)}**" if row.best else _plain(row.name)
        count = (
            f"{len(row.done)}"
            if len(row.done) == len(row.cells)
            else (f"{len(row.done)}/{len(row.cells)}")
        )
        k, n, low, high = row.collapsed
        lines.append(
            [
                *(name, count, *(number(*row.means[measure]) for measure in shown)),
                *(_units(row), row.groups or UNKNOWN),
                *(_difference(row.versus_plain), number(row.p, digits=3)),
                *(_difference(row.versus_placebo), row.pays or UNKNOWN),
                f"{k}/{n} ({low:.2f}-{high:.2f})" if n else UNKNOWN,
                ", ".join(f"{c} {v}" if len(row.verdicts) > 1 else v for v, c in _sorted(row)),
                number(row.means["seconds"][0], digits=0),
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _sorted(row: Row) -> list[tuple[str, int]]:
    return sorted(row.verdicts.items()) or [(UNKNOWN, 0)]


def _units(row: Row) -> str:
    active, units = row.means["au"][0], row.means["units"][0]
    return UNKNOWN if math.isnan(active) else f"{active:.3g}/{units:.0f}"


def _difference(comparison: object) -> str:
    return number(comparison[0], comparison[1]) if isinstance(comparison, tuple) else UNKNOWN


def _pending(board: Board) -> Iterable[str]:
    found = []
    for row in board.rows:
        for cell in row.cells:
            if cell["status"] != "done":
                seed = "" if pd.isna(cell["seed"]) else f" seed {cell['seed']}"
                reason = f": {cell['reason']}" if isinstance(cell["reason"], str) else ""
                found.append(_plain(f"{row.name}{seed}: {cell['status']}{reason}"))
    return found


def _plain(text: str) -> str:
    """A record's text in one line of Markdown, of which nothing is markup."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    for mark in ("\\", "|", "*", "_", "`", "<", "[", "]"):
        line = line.replace(mark, f"\\{mark}")
    return line


def number(value: float, half: float = math.nan, digits: int = 2, style: str = "md") -> str:
    """A mean with half of its interval."""
    if math.isnan(value):
        return UNKNOWN if style == "md" else "--"
    text = f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no -0.00
    return text if math.isnan(half) else f"{text}{PLUS_MINUS[style]}{half:.{digits}f}"


# LaTeX -------------------------------------------------------------------------------------------


def tex(found: Sequence[Board]) -> str:
    r"""table.tex: a booktabs tabular a data set, to be \input."""
    parts = ["% \\usepackage{booktabs}\n"]
    for board in found:
        shown = columns(board)
        heads = [
            "variant",
            "seeds",
            *(MEASURES[name].replace("_", r"\_") for name in shown),
            "ties",
        ]
        lines = [f"% {board.dataset}", f"\\begin{{tabular}}{{lr{'r' * len(shown)}l}}", r"\toprule"]
        lines += [" & ".join(heads) + r" \\", r"\midrule"]
        for row in board.rows:
            name = row.name.translate(TEX)
            values = [number(*row.means[name_], style="tex") for name_ in shown]
            first = f"\\textbf{{{name}}}" if row.best else name
            lines.append(" & ".join([first, str(len(row.done)), *values, row.groups]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", ""]
        parts.append("\n".join(lines))
    return "\n".join(parts)


# Files -------------------------------------------------------------------------------------------


def _replace(path: Path, fill: Callable[[Path], object]) -> Path:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        fill(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
