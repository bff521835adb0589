"""The published leaderboard: what its records say, and nothing of the machines they came from."""

from pathlib import Path

from leaderboard.board import boards, overall
from leaderboard.load import check, load_cells
from leaderboard.report import markdown, measurements

REFERENCE = Path(__file__).parent.parent / "leaderboard" / "reference"


def test_it_is_what_its_records_say():
    cells = load_cells([REFERENCE / "runs"])
    assert not cells.empty and check(cells) == []  # neither stale nor of another schema
    found = boards(cells, measurements(cells))
    assert (REFERENCE / "RESULTS.md").read_text() == markdown(cells, found, overall(found))


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
