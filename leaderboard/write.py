"""All that a leaderboard is made of, from runs to files; the same records give the same bytes."""

import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from leaderboard import page, plots, report
from leaderboard.board import boards, overall


def write(cells: pd.DataFrame, out: Path) -> list[Path]:
    """Each file all at once, and of no earlier leaderboard's figures any; returns their paths, the
    page first."""
    curves = report.measurements(cells)
    found = boards(cells, curves)
    together = overall(found)
    drawn = plots.draw(found, curves)
    contents: dict[str, bytes] = {
        "index.html": page.build(cells, found, together, curves, drawn).encode(),
        "RESULTS.md": report.markdown(cells, found, together).encode(),
        "table.tex": report.tex(found).encode(),
    }
    for dataset, sheets in drawn.items():
        for sheet in sheets:
            for kind, content in sheet.files.items():
                contents[f"figures/{_plain(dataset)}-{sheet.name}.{kind}"] = content
    (out / "figures").mkdir(parents=True, exist_ok=True)
    paths = [
        _replace(out / name, lambda path, content=content: path.write_bytes(content))
        for name, content in contents.items()
    ]
    for old in {*(out / "figures").iterdir()} - {*paths}:
        old.unlink()
    table = out / "results.parquet"
    return [*paths, _replace(table, lambda path: curves.to_parquet(path, index=False))]


def _plain(dataset: str) -> str:
    """The name of a data set for a file; of two, their boards' names differ in it too."""
    return re.sub(r"[^\w.-]+", "-", dataset).strip("-")


def _replace(path: Path, fill: Callable[[Path], object]) -> Path:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        fill(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
