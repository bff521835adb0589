"""The leaderboard as text, RESULTS.md and table.tex, and as one table of measurements.

The same records give the same bytes.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import zip_longest
from typing import Any

import pandas as pd

from benchmark.diagnosis import words
from leaderboard import beside
from leaderboard.board import (
    LANGUAGE_MODEL,
    MEASURES,
    PLAIN,
    RATES,
    THRESHOLDS,
    Board,
    Overall,
    Row,
)
from leaderboard.inference import interval
from leaderboard.load import DAMAGED, DUPLICATE, load_curves
from leaderboard.statistics import unfinished

UNKNOWN = "-"
SHOWN = ("nll", "neg_elbo", "kl", "rec", "mi", "ppl", "i_read", "z_gain", "nll_gap", "elbo_gap")
UNIQUE = ["dataset", "method", "id", "seed", "split", "step", "metric", "estimator"]
TEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\~{}"})
PLUS_MINUS = {"md": " ± ", "tex": r" $\pm$ "}

LEGEND = """\
Test split; costs in nats a sentence, means over the finished seeds, ± half of the 95 % t-interval
(from three seeds on). **ties**: two rows that share a letter cannot be told apart by NLL (by seeds
and sentences, Holm over all pairs; never where more than 10 % of the sentences have importance
weights that cannot be trusted, nor where doubling the samples moves NLL by more than the
difference); rows of two kinds of latents are not compared and share no letter. Bold is told apart
from all that it is compared with. **- vae**: NLL less the plain VAE's,
paired by seed; p adjusted for all rows (Holm), bold where the row is better, in brackets where it
is significant and those same conditions do not let it count. **placebo**: NLL less that of the same
method whose encoder reads another sentence. **pays**: NLL by sentence against the language model,
`lm`; a difference is told under those conditions alone, and `free`, that none could be told,
without them. Below the table, why there is no word. **collapsed**: seeds with KL below 0.05. **s**:
seconds of training, the median over seeds. MI cannot exceed the logarithm of the sentences in its
mixture; never compare it across estimators.
"""
BY_METHOD = """\
Of each method the variant with the least validation NLL on some seeds, with its test NLL on the
others; never compare a method of which many variants were tried with one of few without the curve:
the best mean validation NLL that a search of 1, 2, ... of the variants is expected to find. A run
that diverged is infinitely bad.
"""
AT_RATES = """\
NLL at a rate (KL) in nats, between the two nearest variants of each method; nothing is told beyond
them.
"""
AT_COST = """\
The best validation NLL so far when all rows have spent the same: the most that every one has.
**backwards**: passes back from the whole objective. Gradients that a model takes inside its own
inference, as to refine a posterior, are not counted there; their seconds are.
"""
DIAGNOSED = """\
Of the seeds that were diagnosed (`python -m benchmark.diagnose RUN_DIR`), means; nats a sentence.
The **rate** falls into **C + H**, which the information in the code cannot exceed, and **G**, the
mismatch of the aggregate with the prior, which informs of nothing; all summed over units.
**units**: of all seeds, by verdict: active (written and read), undecided, unread, outliers, noisy,
weak. **code**: what the decoder loses with another sentence's. **in the code**: the information of
the whole code, among a few candidates; **read**: what of it the decoder provably reads. **lag**:
what refining each posterior gains, the decoder held still, and what that says of the encoder.
**errors in common**: of a language model, 1 where it is right; above, whether a latent could pay.
"""
WRITTEN = """\
Of the seeds that were asked to write (`python -m benchmark.generate RUN_DIR`), means over
{samples:,.0f} sentences from the prior at temperature {temperature:g}. **dist-2**: different pairs
of words over all pairs of {tokens:,.0f} tokens; **self-BLEU**: of each text against all others,
higher is less diverse; **PPL**: of the samples under a language model that read {corpus:,.0f} real
sentences; **reverse PPL**: of real text under one that read as many samples.
**greedily**: different sentences, as a share, that codes of the prior give without sampling: a
decoder that ignores its code writes one. **BLEU** of greedy reconstructions against their sources,
and against another sentence's, which is how near chance comes; **edits** a word.
"""
ACROSS = """\
The variants that have been run on all of: {}.

Score: NLL less the plain VAE's of the same seed, in nats a token, below zero is better; a run that
diverged is infinitely bad. **mean**: interquartile, of all runs, the quarters rounded down to whole
runs, with the 95 % interval of a bootstrap of each data set's seeds, too narrow where they are few.
**better than**: the chance that a run's NLL is lower, with its interval; than that of the `vae` of
the same seed, than that of any `lm`. **carried**: on how many data sets the estimates carry the
difference from `vae`. **≤**: the share of runs with no higher score. **missing**: seeds without a
score, for lack of the run or of its `vae`. In means, chances and shares data sets weigh alike,
however many their runs.
"""


@dataclass(frozen=True)
class View:
    """A further table: plain text, of a board or of all of them."""

    title: str
    caption: str
    head: list[str]
    rows: list[list[str]]
    after: tuple[str, ...] = ()
    """What stands below it, a line each."""


def measurements(cells: pd.DataFrame) -> pd.DataFrame:
    """Every measurement of every run that counts, a row each; the columns UNIQUE name it. Of a
    measurement that was repeated, as after a stop, the last holds."""
    counted = ~cells["status"].isin([DAMAGED, DUPLICATE])
    return load_curves(pd.DataFrame(cells[counted])).drop_duplicates(
        UNIQUE, keep="last", ignore_index=True
    )


# Markdown ----------------------------------------------------------------------------------------


def markdown(cells: pd.DataFrame, found: Sequence[Board], together: Overall | None) -> str:
    """RESULTS.md: of each data set a table, other views of it and what did not finish; then what
    all data sets say together."""
    n, done = len(cells), list(cells["status"]).count("done")
    code = f" Code: {', '.join(known)}." if (known := commits(cells)) else ""
    parts = ["# Results\n", f"{done} of {n} runs are done.{code}\n", LEGEND]
    for board in found:
        parts.append(f"## {_plain(board.dataset)}\n")
        parts += [_table(board), *_untold(board)]
        parts += [part for view in views(board) for part in _view(view, "###")]
        if pending := unfinished((row.name, cell) for row in board.rows for cell in row.cells):
            lines = "".join(f"- {_plain(line)}\n" for line in pending)
            parts.append(f"Not in the means:\n\n{lines}")
    if together:
        parts += _view(across(together), "##")
    return "\n".join(parts)


def commits(cells: pd.DataFrame) -> list[str]:
    """Those of all runs, and how many of the finished ones are not of one of them alone."""
    known = sorted({c[:12] for c in cells["provenance/commit"] if isinstance(c, str)})
    about = cells[cells["status"] == "done"]
    counts = {
        "of no known one": sum(not isinstance(c, str) for c in about["provenance/commit"]),
        "of one with changes": sum(dirty is True for dirty in about["provenance/dirty"]),
        "trained by two versions or more": sum(
            isinstance(earlier, list) and bool(earlier)
            for earlier in about["provenance/earlier_fingerprints"]
        ),
    }
    told = [f"{n} run{'s' * (n > 1)} {which}" for which, n in counts.items() if n]
    return [*known, *told]


def columns(board: Board) -> list[str]:
    """The measures that some row of the board has."""
    return [name for name in SHOWN if any(not math.isnan(row.means[name][0]) for row in board.rows)]


def _table(board: Board) -> str:
    shown = columns(board)
    head = ["variant", "n", *(MEASURES[name] for name in shown), "AU"]
    head += ["ties", f"- {PLAIN}", "p", "placebo", "pays", "collapsed", "verdict", "s"]
    lines = []
    for row in board.rows:
        name = f"**{_plain(row.name)}**" if row.best else _plain(row.name)
        name += " (stale)" if row.stale else ""
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
                *(_difference(row.versus_plain), _p(row)),
                *(_difference(row.versus_placebo), row.pays or UNKNOWN),
                f"{k}/{n} ({low:.2f}-{high:.2f})" if n else UNKNOWN,
                ", ".join(f"{c} {v}" if len(row.verdicts) > 1 else v for v, c in _sorted(row)),
                number(row.means["seconds"][0], digits=0),
            ]
        )
    return _lines(head, lines)


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    every = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in every)


def _p(row: Row) -> str:
    return f"**{significance(row)}**" if row.won else significance(row)


def significance(row: Row) -> str:
    """A row's p, in brackets where it is significant and not to count."""
    text = "<0.001" if row.p < 0.0005 else number(row.p, digits=3)
    return f"({text})" if row.won is None and row.p < 0.05 else text


def untold(board: Board) -> list[str]:
    """Why rows are not said to pay, or not to: a reason, and the rows."""
    reasons: dict[str, list[str]] = {}
    for row in board.rows:
        if row.why_not:
            reasons.setdefault(row.why_not, []).append(row.name)
    return [f"{why}: {', '.join(names)}" for why, names in reasons.items()]


def _untold(board: Board) -> Iterable[str]:
    if reasons := untold(board):
        yield "Whether these pay cannot be told:\n\n" + _items(reasons)


def _items(lines: Iterable[str]) -> str:
    return "".join(f"- {_plain(line)}\n" for line in lines)


def _view(view: View, level: str) -> Iterable[str]:
    yield f"{level} {view.title}\n"
    yield view.caption
    yield _lines(view.head, [list(map(_plain, row)) for row in view.rows])
    if view.after:
        yield _items(view.after)


def views(board: Board) -> list[View]:
    """A board's further tables, as far as there is something to say."""
    found = []
    if any(each.tried > 1 for each in board.methods):
        found.append(_by_method(board))
    if board.at_rates:
        head = ["method", *(f"{rate:g} nats" for rate in RATES)]
        lines = [[method, *map(number, nlls.values())] for method, nlls in board.at_rates.items()]
        found.append(View("At equal rate", AT_RATES, head, lines))
    if board.equal:
        found.append(_at_cost(board))
    return [*found, *_diagnosed(board), *_written(board)]


def _by_method(board: Board) -> View:
    head = ["method", "tried", "chosen", "on seeds", "reported on", "NLL", "best of 1, 2, ..."]
    lines = []
    for each in board.methods:
        curve = ", ".join(map(number, each.curve)) if each.tried > 1 else UNKNOWN
        seeds = [" ".join(map(str, some)) or UNKNOWN for some in (each.chosen_on, each.seeds)]
        line = [each.method, str(each.tried), each.name or UNKNOWN, *seeds, number(*each.nll)]
        lines.append([*line, curve, each.note])
    return View("By method", BY_METHOD, [*head, "note"], lines)


def _at_cost(board: Board) -> View:
    """The rows in order of their NLL, once for each kind of cost."""
    units = {"seconds": "{:,.1f} s", "backwards": "{:,.0f} backwards"}
    head, columns = [], []
    for name, view in board.equal.items():
        head += [f"after {units[name].format(view.cost)}", "NLL"]
        columns += [list(view.nll), [number(*nll) for nll in view.nll.values()]]
    lines = [list(line) for line in zip_longest(*columns, fillvalue="")]
    return View("At equal cost", AT_COST, head, lines)


def called(row: Row) -> str:
    return row.name + (" (stale)" if row.stale else "")


def _diagnosed(board: Board) -> Iterable[View]:
    """Why units live or die, a row a variant."""
    lines = []
    for row in board.rows:
        known = [record for cell in row.done if (record := beside.diagnosis(cell["path"]))]
        if not known:
            continue
        units = [each for record in known if (each := words.units(record))]
        verdicts = Counter(unit.verdict for each in units for unit in each)
        told = [f"{verdicts[name]} {name}" for name in words.READING if verdicts[name]]
        sums = [
            [sum(getattr(unit, name) for unit in each) for each in units]
            for name in ("rate", "bound", "mismatch")
        ]
        code = [
            _at(known, "reading", *place, 0)
            for place in (("shuffled",), ("apart", "information"), ("apart", "i_read"))
        ]
        kinds = [_at(known, "residuals", kind, "ratio") for kind in ("unigram", "bigram")]
        lines.append(
            [
                *(called(row), str(len(known)), ", ".join(told) or UNKNOWN),
                *(number(*interval(values)) for values in (*sums, *code)),
                _told(_at(known, "lag", "encoder", "elbo", -1, 0), known, "lag", "verdict"),
                _told([*map(max, *kinds)], known, "residuals", "verdict"),
            ]
        )
    if lines:
        head = ["variant", "n", "units", "rate", "C + H", "G", "code", "in the code", "read"]
        yield View("Why units live or die", DIAGNOSED, [*head, "lag", "errors in common"], lines)


def _written(board: Board) -> Iterable[View]:
    """What is written, a row a variant, apart for what was asked for in different amounts."""
    asked: dict[tuple[float, ...], dict[str, list[beside.Known]]] = {}
    for row in board.rows:
        for cell in row.done:
            if found := beside.generation(cell["path"]):
                key = tuple(found["settings"][name] for name in beside.SETTINGS)
                asked.setdefault(key, {}).setdefault(called(row), []).append(found)
    for key, rows in sorted(asked.items()):
        of = dict(zip(beside.SETTINGS, key, strict=True))
        real = [found for each in rows.values() for found in each]
        lines = [_texts("real text", real, ("real",), ("reverse", "real"))]
        lines += [_texts(name, each, ("prior", "sampling")) for name, each in rows.items()]
        title = "What is written" + (f", of {of['samples']:,.0f}" if len(asked) > 1 else "")
        head = ["text", "n", "words", "dist-2", "self-BLEU", "PPL", "reverse PPL", "greedily"]
        head += ["BLEU", "of others", "edits"]
        yield View(title, WRITTEN.format(**of), head, lines)


def _texts(
    name: str,
    found: Sequence[beside.Known],
    place: tuple[str, ...],
    reverse: tuple[str, ...] = ("reverse", "perplexity"),
) -> list[str]:
    """A row of means. place, reverse: of the texts, and of what a reader of them says."""

    def told(*path: str, digits: int = 2) -> str:
        return number(*interval(_at(found, *path)), digits=digits)

    counts = [_at(found, "prior", "greedy", key) for key in ("distinct", "sentences")]
    greedy = [d / n if n else math.nan for d, n in zip(*counts, strict=True)]
    near = [told("reconstruction", "greedy", key) for key in ("bleu", "bleu_other", "edits")]
    theirs = [number(*interval(greedy), digits=3), *near] if len(place) > 1 else [UNKNOWN] * 4
    return [
        *(name, str(len(found)), told(*place, "words", digits=1)),
        *(told(*place, "distinct_2", digits=3), told(*place, "self_bleu")),
        *(told(*place, "perplexity"), told(*reverse), *theirs),
    ]


def _at(found: Sequence[beside.Known], *path: str | int) -> list[float]:
    """A number of each, at its place; NaN where there is none."""
    return [words.number(reduce(_inside, path, each)) for each in found]


def _inside(value: Any, place: str | int) -> Any:
    try:
        return value[place]
    except (IndexError, KeyError, TypeError):
        return None


def _told(values: Sequence[float], found: Sequence[beside.Known], *path: str) -> str:
    """A mean, and the words for it, with the seeds that have them where these are not all."""
    words_ = Counter(word for each in found if isinstance(word := reduce(_inside, path, each), str))
    most = [f"{word}{f' ({n})' if n < len(found) else ''}" for word, n in sorted(words_.items())]
    return ", ".join([number(*interval(values)), *most])


def across(together: Overall) -> View:
    """All data sets together."""
    head = ["variant", "runs", "diverged", "mean", f"better than {PLAIN}"]
    head += [f"better than {LANGUAGE_MODEL}", "carried", *(f"≤ {t:g}" for t in THRESHOLDS)]
    lines = []
    for row in together.rows:
        missing = [f"{d} {' '.join(map(str, seeds))}" for d, seeds in row.missing.items()]
        lines.append(
            [
                *(row.name, str(row.runs), str(row.diverged)),
                _with_interval(row.mean, *row.interval, digits=3),
                *(_with_interval(*row.over_plain), _with_interval(*row.over_model)),
                f"{row.carried}/{len(together.datasets)}",
                *map(number, row.profile),
                "; ".join(missing) or UNKNOWN,
            ]
        )
    lacking = [f"{name}: {', '.join(where)}" for name, where in together.left_out.items()]
    return View(
        "Across data sets",
        ACROSS.format(", ".join(together.datasets)),
        [*head, "missing"],
        lines,
        tuple(f"left out for want of runs: {line}" for line in lacking),
    )


def _with_interval(value: float, low: float, high: float, digits: int = 2) -> str:
    text = number(value, digits=digits)
    ends = [number(end, digits=digits) for end in (low, high)]
    return text if math.isnan(low) else f"{text} ({' to '.join(ends)})"


def _sorted(row: Row) -> list[tuple[str, int]]:
    return sorted(row.verdicts.items()) or [(UNKNOWN, 0)]


def _units(row: Row) -> str:
    active, units = row.means["au"][0], row.means["units"][0]
    return UNKNOWN if math.isnan(active) else f"{active:.3g}/{units:.0f}"


def _difference(comparison: object) -> str:
    return number(comparison[0], comparison[1]) if isinstance(comparison, tuple) else UNKNOWN


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
            name = called(row).translate(TEX)
            values = [number(*row.means[name_], style="tex") for name_ in shown]
            first = f"\\textbf{{{name}}}" if row.best else name
            lines.append(" & ".join([first, str(len(row.done)), *values, row.groups]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", ""]
        parts.append("\n".join(lines))
    return "\n".join(parts)
