"""Where the grid stands: `python -m slurm.status [results] [--watch] [--repair] [--json]`.

A table of variants and data sets, with what is running and how long it will take, the failed cells
by reason with their logs, and where the leaderboard is. --repair resubmits what is lost, once;
--watch shows the table again every 10 s; --json is for programs. Imports no torch.
"""

import json
import logging
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark import compose, record
from benchmark.compose import UserError
from slurm.grid import Standing, look, progress
from slurm.page import told
from slurm.runner import repair, tally

ORDER = (
    *("failed", "diverged", "damaged", "running", "pending", "held", "lost", "unknown"),
    *("missing", "cancelled", "stale", "done"),
)
FAILED = ("failed", "diverged", "damaged")
FLAGS = ("--watch", "--repair", "--json")
PAUSE = 10.0  # s


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status: 1 if a cell has failed."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    if {"-h", "--help"} & {*arguments}:
        sys.stdout.write(f"{__doc__}\n")
        return 0
    flags = {word for word in arguments if word.startswith("-")}
    places = [word.removeprefix("results_dir=") for word in arguments if word not in flags]
    results = Path(places[0] if places else "results").absolute()
    try:
        if unknown := flags - {*FLAGS}:
            raise UserError(f"there is no flag {min(unknown)}; Choices: {', '.join(FLAGS)}.")
        if len(places) > 1 or not results.is_dir():
            raise UserError(f"{places[-1] if places else results} is no results folder; name one.")
        if "--repair" in flags:
            again = repair(results)
            sys.stderr.write(f"{len(again)} lost cells resubmitted\n")
        while True:
            standings = look(results)
            if "--json" in flags:
                sys.stdout.write(json.dumps(plain(results, standings), indent=2) + "\n")
            else:
                show(results, standings)
            if "--watch" not in flags:
                return int(any(s.state in FAILED for s in standings))
            time.sleep(PAUSE)
    except (UserError, record.Busy) as error:
        sys.stderr.write(compose.sentence(error) + "\n")
        return 2
    except KeyboardInterrupt:
        return 0


def remaining(results: Path, standing: Standing) -> tuple[float, float] | None:
    """(share of training done, minutes left of it) of a running cell, by its own clock; None
    before it has told."""
    steps = standing.record["provenance"].get("steps")
    step, _ = progress(results / standing.cell)
    if not steps or not step:
        return None
    try:
        line = record.read_metrics(results / standing.cell / "metrics.jsonl")[-1]
    except (OSError, ValueError, IndexError):
        return None
    return step / steps, line["seconds"] / step * (steps - step) / 60


def cell_of_table(results: Path, standings: Sequence[Standing]) -> str:
    """What the table says of a variant on a data set: "3/5 running 62 % ~14 min"."""
    by_state: dict[str, list[Standing]] = defaultdict(list)
    for standing in standings:
        by_state[standing.state].append(standing)
    done, n = len(by_state["done"]), len(standings)
    if done == n:
        return f"{done}/{n} done"
    said = []
    for state in ORDER:
        members = by_state[state]
        if not members or state == "done":
            continue
        text = f"{len(members)} {state}"
        if state == "running":
            text = f"{len(members)}/{n} running"
            known = [r for s in members if (r := remaining(results, s))]
            if known:
                share = statistics.mean(share for share, _ in known)
                text += f" {share:.0%} ~{max(left for _, left in known):.0f} min".replace("%", " %")
        elif members[0].reason and state in (*FAILED, "held"):
            text += f": {members[0].reason[:40]}"
        said.append(text)
    return ", ".join([f"{done}/{n} done", *said] if done else said)


def show(results: Path, standings: Sequence[Standing]) -> None:
    """Print the table and what failed."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not standings:
        console.print(f"no cell in {escape(str(results))}", soft_wrap=True)
        return
    datasets = sorted({standing.dataset for standing in standings})
    table = Table("variant", *map(escape, datasets))
    rows: dict[str, dict[str, list[Standing]]] = defaultdict(lambda: defaultdict(list))
    for standing in standings:
        rows[standing.variant][standing.dataset].append(standing)
    for variant in sorted(rows):
        cells = [rows[variant].get(dataset) for dataset in datasets]
        texts = [escape(cell_of_table(results, cell)) if cell else "" for cell in cells]
        table.add_row(escape(variant), *texts)
    console.print(table)
    reasons: dict[str, list[Standing]] = defaultdict(list)
    for standing in standings:
        if standing.state in (*FAILED, "held") or (standing.state == "lost" and standing.reason):
            reasons[f"{standing.state}: {standing.reason}"].append(standing)
    for reason, members in sorted(reasons.items()):
        console.print(escape(f"{len(members)} {reason}"), soft_wrap=True)
        for standing in members[:5]:
            console.print(escape(f"    python -m slurm.logs {standing.cell}"), soft_wrap=True)
        if len(members) > 5:
            console.print(f"    and {len(members) - 5} more")
    console.print(tally(standings))
    if line := told(results):
        console.print(escape(line), soft_wrap=True)


def plain(results: Path, standings: Sequence[Standing]) -> list[dict[str, Any]]:
    """The standings for a program."""
    found = []
    for standing in standings:
        left = remaining(results, standing) if standing.state == "running" else None
        found.append(
            {
                **{"cell": standing.cell, "state": standing.state, "reason": standing.reason},
                **{"variant": standing.variant, "dataset": standing.dataset},
                **{"seed": standing.record["cell"]["seed"], "jobs": list(standing.jobs)},
                "share": left and left[0],
                "minutes_left": left and left[1],
            }
        )
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
