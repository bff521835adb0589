"""The page of a leaderboard, as text."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from benchmark.diagnosis.words import told
from leaderboard import page
from leaderboard.__main__ import main
from leaderboard.board import boards
from leaderboard.load import load_cells
from tests.records import MODEL, WRITTEN, full, lay
from tests.test_board import grid, outdate, run

HOSTILE = "<script>alert(1)</script> & \"quotes\" 'and' `ticks` {{ 7*7 }} </style>"
VOID = {"meta", "input", "link", "br", "hr", "img"}


class Reader(HTMLParser):
    """Elements in their order, and that each is closed in its turn."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def attributes(self, name: str) -> list[str]:
        return [found[name] or "" for _, found in self.elements if name in found]


def built(results: Path) -> str:
    assert main([str(results), "--out", str(results.parent / "out")]) == 0
    return (results.parent / "out" / "index.html").read_text()


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Runs whose every text is an attack, of which one failed."""
    results = tmp_path / "results"
    grid(results, vae=34.0, lm=34.0, free=32.0)
    for seed in range(3):
        run(results, f"bad {HOSTILE}", seed, 33.0)
    for path in results.glob("*/*/*/s*"):
        sample = {"kind": "reconstruction", "source": HOSTILE, "text": HOSTILE}
        (path / "samples.jsonl").write_text(f"{json.dumps(sample)}\nno json\n{json.dumps([1])}\n")
    ill = next(results.glob("*/vae/*/s4/run.json"))
    known = json.loads(ill.read_text())
    ill.write_text(json.dumps(known | {"status": "failed", "reason": HOSTILE}))
    config = next(results.glob("*/free/*/s0/config.yaml"))
    config.write_text(f"method:\n  name: '{HOSTILE}'\nseed: 0\nresults_dir: /secret\n")
    return results


def test_what_records_say_stays_text(hostile):
    text = built(hostile)
    found = Reader(text)
    assert [tag for tag, _ in found.elements].count("script") == 1
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    assert "49" not in re.findall(r"\{\{|\b49\b", text)  # nothing is a template twice
    assert any(HOSTILE in value for value in found.attributes("data-row"))
    assert not [name for _, attrs in found.elements for name in attrs if name.startswith("on")]


def test_the_page_names_nothing_outside_itself(hostile):
    text = built(hostile)
    found = Reader(text)
    assert found.attributes("src") == []
    links = found.attributes("href") + found.attributes("xlink:href")
    ids = found.attributes("id")
    assert links and all(link[0] == "#" and link[1:] in ids for link in links)
    assert len(ids) == len(set(ids))
    assert not re.search(r"@import|url\((?!#)", text)
    (policy,) = [
        v for _, a in found.elements if (v := a.get("content") or "").startswith("default")
    ]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy


def test_labels_and_headers_belong_to_what_is_there(hostile):
    found = Reader(built(hostile))
    ids = found.attributes("id")
    for name in ("for", "aria-labelledby"):
        assert {word for value in found.attributes(name) for word in value.split()} <= {*ids}


def test_every_row_and_every_run_is_on_the_page(hostile):
    text = built(hostile)
    (table,) = re.findall(r'<table id="[^"]*" class="board">(.*?)</table>', text, re.DOTALL)
    names = re.findall(r'<tr data-row="([^"]*)"', table)
    (board,) = boards(load_cells([hostile]))
    assert len(names) == len(board.rows) == 4
    # one failed, and two seeds of others' are missing
    assert "Not in the means: 3 runs" in text
    assert text.count("</summary>") >= 4 and "/secret" not in text


def test_the_same_runs_give_the_same_bytes(hostile):
    assert built(hostile) == built(hostile)


def test_no_run_stops_the_page(tmp_path: Path):
    """Torn, empty, of no numbers, or with a huge text."""
    results = tmp_path / "results"
    run(results, "vae", 0, 34.0)
    run(results, "lm", 0, float("inf"))
    run(results, "free", 0, 33.0, kl=None, mi=None, au=None)
    for n, (name, content) in enumerate(
        [
            ("run.json", "{"),
            ("config.yaml", "\x00: ["),
            ("metrics.jsonl", '{"step"'),
            ("samples.jsonl", "\xff"),
        ]
    ):
        run(results, "word", n, 35.0)
        path = next(results.glob(f"*/word/*/s{n}"))
        (path / name).write_text(content, encoding="latin-1")
    huge = {"kind": "prior", "source": None, "text": "word " * 1_000_000}
    next(results.glob("*/vae/*/s0/samples.jsonl")).write_text(json.dumps(huge))
    (results / "toy" / "vae" / "abc" / "s9").mkdir(parents=True)
    text = built(results)
    assert len(text) < 1_000_000
    Reader(text)


def test_the_first_diagnosed_seed_of_a_variant_is_told(tmp_path: Path):
    results = tmp_path / "results"
    grid(results, vae=34.0, lm=33.0, free=32.0)
    attack = full(cell={"variant": HOSTILE}, notes={"lag": HOSTILE, HOSTILE: HOSTILE})
    for name, record in (("vae/*/s1", attack), ("vae/*/s2", full()), ("free/*/s0", full())):
        lay(next(results.glob(f"*/{name}")), "diagnosis", record)
    lay(next(results.glob("*/lm/*/s0")), "diagnosis", MODEL)
    lay(next(results.glob("*/lm/*/s1")), "generation", WRITTEN)
    text = built(results)
    found = Reader(text)
    assert [tag for tag, _ in found.elements].count("script") == 1
    ids = found.attributes("id")
    assert len(ids) == len({*ids}) and text.count('<table class="units">') == 2
    assert "seed 1</span>" in text and "<script>alert" not in text
    for said in told(MODEL).values():
        assert said in html.unescape(text)
    assert told(full())["Units"] in html.unescape(text)
    assert text.count("inform of the sentence</strong>") == 2  # a figure of each
    assert "Why units live or die" in text and "What is written" in text
    assert 'class="parts"' in text and "at most 2.11 nats" in text
    assert text == built(results)


@pytest.mark.parametrize(
    "damage",
    [
        {"verdicts": ["active"] * 7},
        {"verdicts": ["what?"] * 6},
        {"units": [1.0]},
        {"units": {"rate": [1e300] * 6, "bound": [-1e300] * 6, "noise": [1e-300] * 6}},
        {"flags": 3, "reading": {"by_position": {"position": [1], "gain": [1.0, 2.0]}}},
        {"trajectory": {"steps": [1, 2], "signal": [[1.0], [1.0, 2.0]], "noise": [[1.0]]}},
        {"interventions": {"at": "x", "steps": [], "branches": {"warm": 3}}},
    ],
)
def test_no_diagnosis_stops_the_page(tmp_path: Path, damage):
    results = tmp_path / "results"
    run(results, "vae", 0, 34.0)
    lay(next(results.glob("*/vae/*/s0")), "diagnosis", full() | damage)
    lay(next(results.glob("*/vae/*/s0")), "generation", WRITTEN | {"prior": 3, "settings": []})
    Reader(built(results))


def test_each_column_has_its_entry_in_the_glossary():
    known = {term["name"] for term in page.glossary()}
    assert {column.term for column in page.COLUMNS} | {"variant", "slots"} == known
    assert all(term["means"] for term in page.glossary())


@pytest.mark.parametrize(
    ("provenance", "more"),
    [
        ({}, "dataset=toy method.target=8 placebo=true budget=smoke"),
        (
            {"argv": ["run.py", "method=free", "+dataset.x=[1,2]", "seed=3", "data_dir=/d"]},
            "dataset=toy method.target=8 placebo=true budget=smoke '+dataset.x=[1,2]'",
        ),
        (
            {
                "argv": ["-c", "x=1"],
                "submitted": {
                    "words": [
                        *("method=free,vae", "dataset=toy_of_mine", "budget.steps=7"),
                        *("seed=range(0,3)", "+model.hidden=8,16", "gone.by=1,2"),
                    ]
                },
            },
            "dataset=toy_of_mine method.target=8 placebo=true budget=smoke budget.steps=7 "
            "+model.hidden=16",
        ),
    ],
)
def test_a_command_makes_the_variant_again(tmp_path: Path, provenance, more):
    """From its name, and from its own words but those of the machine; a sweep's as it had them."""
    results = tmp_path / "results"
    path = run_directory(results, "free target=8 placebo")
    (path / "config.yaml").write_text("budget:\n  name: smoke\nmodel:\n  hidden: 16\nseed: 3\n")
    known = json.loads((path / "run.json").read_text())
    known["provenance"] |= provenance
    (path / "run.json").write_text(json.dumps(known))
    (board,) = boards(load_cells([results]))
    told = page._runs(board.rows[0])["command"]
    assert told == f"python -m benchmark.run method=free {more} seed=SEED"


def run_directory(results: Path, variant: str) -> Path:
    run(results, variant, 0, 33.0)
    return next(results.glob("*/*/*/s0"))


def test_a_published_figure_stands_beside_ours_with_the_reason(tmp_path: Path):
    printed = page.published.load()
    papers = printed[(printed["dataset"] == "ptb") & (printed["method"] == "kl_annealing")]
    run(tmp_path, "kl_annealing", 0, 101.0, neg_elbo=102.0)
    (board,) = boards(load_cells([tmp_path]))
    board.name = "ptb"
    trail = pd.DataFrame(columns=["method", "id", "metric", "estimator"])
    lines = page._published(board, trail, {row.id: {"sizes": {}} for row in board.rows})
    assert len(lines) == len(papers) > 0
    assert {line[4] for line in lines} == {*papers["paper"]}
    assert all(line[0] == "kl_annealing" and line[-1] for line in lines)  # each has its reason
    assert {line[3] for line in lines if line[1] == "-ELBO"} == {"102.00"}
    outdate(next(tmp_path.rglob("run.json")))
    (board,) = boards(load_cells([tmp_path]))
    board.name = "ptb"
    lines = page._published(board, trail, {row.id: {"sizes": {}} for row in board.rows})
    assert lines and {line[0] for line in lines} == {"kl_annealing (stale)"}


def test_an_exact_bound_of_a_paper_stands_beside_our_exact_likelihood(tmp_path: Path):
    """A language model's -ELBO is its NLL, whatever it is called."""
    printed = page.published.load().query("dataset == 'ptb' and method == 'lm'")
    (row,) = printed.query("metric == 'neg_elbo'").to_dict("records")
    run(tmp_path, "lm", 0, 101.0, neg_elbo=102.0)
    (board,) = boards(load_cells([tmp_path]))
    board.name, board.hash = "ptb", row["hash"]
    trail = pd.DataFrame(
        [("lm", board.rows[0].id, "nll", "exact"), ("lm", board.rows[0].id, "neg_elbo", None)],
        columns=["method", "id", "metric", "estimator"],
    )
    sizes = {"embedding": 256, "hidden": 256, "latent": 32}
    lines = page._published(board, trail, {board.rows[0].id: {"sizes": sizes}})
    told = [line for line in lines if line[1] == "-ELBO" and line[2] == f"{row['value']:g}"]
    assert [(line[3], line[-1]) for line in told] == [("101.00", "")]
