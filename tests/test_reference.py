"""The published leaderboard: what its records say, and nothing of the machines they came from."""

import re
from pathlib import Path

from leaderboard.board import boards, overall
from leaderboard.load import check, load_cells
from leaderboard.report import markdown, measurements

REFERENCE = Path(__file__).parent.parent / "leaderboard" / "reference"


def test_it_is_what_its_records_say():
    cells = load_cells([REFERENCE / "runs"])
    ended = cells.loc[cells["status"] != "queued"]
    wrong = [line for line in check(ended) if ": stale: " not in line]
    assert len(ended) and wrong == []  # neither damaged nor of another schema
    found = boards(cells, measurements(cells))
    text = (REFERENCE / "RESULTS.md").read_text()
    assert text == markdown(cells, found, overall(found))
    tables = dict(zip((board.dataset for board in found), text.split("\n## ")[1:], strict=False))
    for board in found:
        table = tables[board.dataset].split("\n### ")[0]
        marked = re.findall(r"^\| \**(.+?)\** \(stale\) \|", table, re.MULTILINE)
        stale = [row.name for row in board.rows if row.stale]
        assert [name.replace("\\", "") for name in marked] == stale, board.dataset


def test_it_names_no_machine():
    texts = [
        *REFERENCE.rglob("run.json"),
        *REFERENCE.rglob("config.yaml"),
        REFERENCE / "index.html",
    ]
    for path in texts:
        text = path.read_text()
        assert "/tmp/" not in text and "/home/" not in text and "results_dir" not in text, path
        assert '"host"' not in text and '"user"' not in text, path
