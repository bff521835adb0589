"""Papers' tables again: every file of configs/reproduce is held to what was printed and to the
recipes, and a whole reproduction runs on a few sentences."""

import json
import math
import subprocess
import sys
from functools import cache
from hashlib import sha256
from pathlib import Path

import pandas as pd
import pytest
import yaml

from benchmark import compose, reproduce
from benchmark.data.prepare import prepare, read_about
from benchmark.record import RESULT_VERSION
from benchmark.reproduce import Data, Files, Reproduction
from leaderboard import load, published
from slurm import submit
from tests import cells

ROOT = Path(__file__).parents[1]
PRINTED = published.load()
NAMES = reproduce.names()


@cache
def planned(name: str):
    """The cells of a reproduction, by row."""
    return reproduce.plans(reproduce.load(name), [])


def config(name: str, model: str):
    return planned(name)[model][0][1]


def here(this: Reproduction) -> pd.DataFrame:
    """What was printed in the tables of a reproduction."""
    places = {(table["paper"], table["table"], this.dataset) for table in this.tables}
    keys = zip(*(PRINTED[key] for key in ("paper", "table", "dataset")), strict=True)
    return PRINTED.loc[[key in places for key in keys]]


# What the files say ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_true_to_what_was_printed(name):
    """Every printed model is a row or has its reason, none is both, and none is made up."""
    this = reproduce.load(name)
    models = {*here(this)["model"]}
    known = {*zip(*(PRINTED[key] for key in ("paper", "table", "dataset")), strict=True)}
    assert {(table["paper"], table["table"], this.dataset) for table in this.tables} <= known
    assert not this.rows.keys() & this.not_ours.keys()
    assert this.rows.keys() | this.not_ours.keys() == models or not this.tables
    assert this.notes.keys() <= this.rows.keys()
    assert bool(this.metrics) != bool(this.tables)  # shown where nothing was printed
    assert this.files.names.keys() == {"train.txt", "valid.txt", "test.txt"}
    assert this.files.sha256.keys() in (set(), this.files.names.keys())
    assert all(len(bytes.fromhex(digest)) == 32 for digest in this.files.sha256.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_cells_have_the_papers_sizes_and_budget(name):
    this = reproduce.load(name)
    for model, plan in planned(name).items():
        assert len({cell.seed for cell, _ in plan}) == len(plan) >= 3
        (ours,) = submit.distinct(plan)
        assert ours.budget.name == "paper" and ours.dataset.path is not None
        of_model = here(this).loc[lambda rows, model=model: rows["model"] == model]
        for sizes in {*of_model["sizes"]}:
            pairs = zip(sizes.split("/"), published.SIZES, strict=True)
            assert all(size in ("-", str(ours.model[key])) for size, key in pairs), (model, sizes)
        own = {*of_model["method"]} - {""}  # published.csv's own word for the row
        methods = plan[0][1].method.get("of", [plan[0][0].method])
        assert own <= {*methods}, (model, own)


@pytest.mark.parametrize("name", ["he2019_yahoo", "he2019_yelp"])
def test_he_et_al_s_recipe(name):
    """Their released code: SGD from 1, halved after two failures from epoch 15 on, five times."""
    for model in planned(name):
        found = config(name, model)
        budget, method = found.budget, found.method
        assert (budget.optimiser.name, budget.learning_rate, budget.clip) == ("sgd", 1.0, 5.0)
        assert dict(budget.halving) == {"patience": 2, "first_epoch": 15, "most": 5}
        assert (budget.epochs, budget.batch_size, budget.evaluation.nll_samples) == (100, 32, 500)
        assert found.dataset.vocabulary is found.dataset.max_tokens is None
        if model.startswith("beta"):
            assert method.beta == float(model.removeprefix("beta "))
        if model == "SA-VAE":
            assert method.ramp == 0
        annealing = method.parts.kl_annealing if method.name == "stack" else method
        assert ("anneal" in model) == bool(annealing.get("ramp"))
        if annealing.name == "kl_annealing":
            assert (annealing.start, annealing.ramp) == (0.1, 0.1)  # 10 of 100 epochs


def test_li_et_al_s_recipe():
    """Their released code: from 0.5, halved after five failures, the weight from 0."""
    for model in ("Monotone anneal", "AE+FB"):
        found = config("li2019_ptb", model)
        assert (found.budget.learning_rate, found.budget.halving.patience) == (0.5, 5)
    assert config("li2019_ptb", "Monotone anneal").method.start == 0
    aided = config("li2019_ptb", "AE+FB")
    assert aided.method.floor * aided.model.latent == 8.0 and aided.budget.epochs == 200
    assert config("li2019_ptb", "LSTM-LM").budget.halving.first_epoch == 0


def test_hydra_offers_no_group_of_them():
    with compose.hydra_ready():
        assert compose.options("reproduce") == []  # not one .yaml among them
    assert len(NAMES) == len([*reproduce.FOLDER.iterdir()])


# The data ----------------------------------------------------------------------------------------

TEXT = {"train": ["a b c d", "a b c"], "valid": ["a b"], "test": ["a b c", "d"]}


def lay(folder: Path, texts=TEXT) -> Path:
    folder.mkdir(parents=True)
    for split, lines in texts.items():
        (folder / f"{split}.txt").write_bytes(text(lines))
    return folder


def text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def files(**changed) -> Files:
    known = {"sentences": {"train": 2, "valid": 1, "test": 2}, "vocabulary": 4, "tokens": (2.9, 3)}
    names = {f"{split}.txt": f"their.{split}" for split in TEXT}
    return Files(where="an archive", names=names, **(known | changed))


def test_data_are_known_by_their_sizes(tmp_path):
    lay(tmp_path / "text")
    folder = prepare({"name": "t", "path": str(tmp_path / "text")}, tmp_path / "data")
    found = reproduce.measure(files(), folder)  # 3 and 1 words, and an end each
    assert found.known and not found.differs and found.hash == read_about(folder)["hash"]
    assert "by these sizes" in reproduce.recognised(found)
    for changed, said in (
        ({"sentences": {"train": 3, "valid": 1, "test": 2}}, "2 sentences in train, not 3"),
        ({"vocabulary": 20}, "4 words, not 20"),
        ({"tokens": (3.01, 3.1)}, "3.00 tokens a test text, not 3.01 to 3.1"),
    ):
        found = reproduce.measure(files(**changed), folder)
        assert found.differs == [said] and said in reproduce.recognised(found)
    unknown = reproduce.measure(files(sentences={}, vocabulary=None, tokens=None), folder)
    assert not unknown.known and "nothing is known" in reproduce.recognised(unknown)


def test_files_are_known_by_their_hashes_where_these_are_on_record(tmp_path):
    this = reproduce.load("li2019_ptb")
    lay(tmp_path / "text")
    path = str(tmp_path / "text")
    first, *lines = reproduce.seen(this, path)
    assert first.startswith("files: not the paper's") and len(lines) == 3
    first, *lines = reproduce.seen(reproduce.load("he2019_yahoo"), path)
    assert "not on record" in first and len({line.split()[0] for line in lines}) == 3
    assert reproduce.seen(this, None) == []


def test_hashes_on_record_decide_over_sizes(tmp_path):
    path = str(lay(tmp_path / "text"))
    folder = prepare({"name": "t", "path": path}, tmp_path / "data")
    theirs = {f"{split}.txt": sha256(text(TEXT[split])).hexdigest() for split in TEXT}
    found = reproduce.measure(files(sha256=theirs), folder, path)
    assert found.differs == [] and "the paper's, by the files' SHA-256" in reproduce.recognised(
        found
    )
    unsized = files(sha256=theirs, sentences={}, vocabulary=None, tokens=None)
    assert reproduce.measure(unsized, folder, path).known
    others = theirs | dict.fromkeys(("valid.txt", "test.txt"), "0" * 64)
    found = reproduce.measure(files(sha256=others), folder, path)
    assert found.differs == ["valid.txt, test.txt by SHA-256"]
    assert "not the paper's: valid.txt, test.txt by SHA-256" in reproduce.recognised(found)
    found = reproduce.measure(files(sha256=others), folder)  # made elsewhere
    assert (
        found.differs == []
        and "by these sizes alone: the files that gave them" in reproduce.recognised(found)
    )
    assert not reproduce.measure(unsized, folder).known


def test_the_papers_penn_treebank_is_recognised(shared_data, tmp_path):
    this, path = reproduce.load("li2019_ptb"), str(shared_data / "ptb")
    (line,) = reproduce.seen(this, path)
    assert line.startswith("files: the paper's, by their SHA-256")
    dataset = {**config("li2019_ptb", "LSTM-LM").dataset, "path": path}
    found = reproduce.measure(this.files, prepare(dataset, tmp_path))
    assert found.differs == []
    assert {*here(this)["hash"]} - {""} == {found.hash}


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_are_told_where_to_be_put(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    this = reproduce.load(name)
    assert reproduce.main([name, "cluster=inline", f"row={next(iter(this.rows))}"]) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and this.files.where in told.err
    for ours, theirs in this.files.names.items():
        assert f"{theirs} as {ours}" in told.err
    assert str(tmp_path / "data") in told.err and not [*tmp_path.iterdir()]


def test_a_dry_run_says_what_is_missing_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert reproduce.main(["li2019_ptb", "--dry-run", "row=LSTM*", "seed=0,1"]) == 0
    told = capsys.readouterr()
    assert "lm x ptb: 2 seeds" in told.out and "2 cells to run, 0 done" in told.out
    assert "does not hold the data" in told.err and not [*tmp_path.iterdir()]


# The comparison ----------------------------------------------------------------------------------


def verdict(values, theirs, *, digits=1, runs=1, why="") -> tuple[str, str]:
    row = {"model": "m", "metric": "nll", "paper": "p", "table": "1", "value": theirs}
    line = reproduce._line(row, digits, values, 5, runs, why)
    assert (line.done, line.cells) == (len(values), 5)
    return line.verdict, line.why


def test_a_verdict_is_by_the_prediction_interval_of_as_many_runs_as_were_printed():
    ours = [1.0, 2.0, 3.0]  # half of one more's interval: 4.302653 (1 + 1/3)^(1/2) = 4.968
    assert verdict(ours, 6.96, digits=2)[0] == "inside"
    assert verdict(ours, 6.98, digits=2)[0] == "outside"
    assert verdict(ours, 6.98, digits=2, runs=5)[0] == "outside"
    # of five more's mean: 4.302653 (1/5 + 1/3)^(1/2) = 3.142
    assert verdict(ours, 5.14, digits=2, runs=5)[0] == "inside"
    assert verdict(ours, 5.2, digits=2, runs=5)[0] == "outside"


def test_a_printed_figure_is_known_to_half_of_its_last_digit():
    assert verdict([0.04] * 3, 0.0)[0] == "inside"
    assert verdict([0.06] * 3, 0.0)[0] == "outside"
    assert verdict([0.06] * 3, 0.0, digits=0)[0] == "inside"


def test_no_verdict_is_called_without_a_ground():
    assert verdict([], 1.0, why="of other data") == ("not run", "")
    assert verdict([1.0, 1.0], 1.0)[0] == "too few runs"
    assert verdict([1.0, 1.0, math.nan], 1.0)[0] == "too few runs"
    assert verdict([1.0] * 3, 1.0, why="of other data") == ("not comparable", "of other data")


def why_not(row=None, *, data=None, hashes=("f" * 64,), estimators=("exact",), changed=""):
    printed = PRINTED[PRINTED["metric"] == "nll"].query("model == 'LSTM-LM' and comparable")
    row = {**printed.iloc[0].to_dict(), **(row or {})}
    ours = config("he2019_yahoo", "LSTM-LM")
    return reproduce._why_not(row, ours, {*hashes}, data, {*estimators}, changed)


def test_whether_a_figure_compares_is_for_the_leaderboard_to_say():
    same = Data("f" * 64, "", [], True)
    assert why_not(data=same) == ""
    assert "no hash is known" in why_not()
    assert "no hash is known" in why_not(data=Data("f" * 64, "", [], False))
    assert why_not(data=Data("f" * 64, "", ["2 words"], True)) == "not the paper's data: 2 words"
    assert "the hashes differ" in why_not({"hash": "0" * 64}, data=same)
    assert why_not({"hash": "f" * 64}) == ""
    assert "estimated" in why_not(data=same, estimators=("iwae K=500 n=9",))
    assert "several" in why_not(data=same, hashes=("f" * 64, "0" * 64))
    assert "from memory" in why_not({"status": published.FROM_MEMORY}, data=same)
    assert why_not(data=same, changed="seed") == "not the paper's recipe: seed"
    found = Data("f" * 64, "", ["x by SHA-256"], True)
    assert why_not({"hash": "f" * 64}, data=found) == "not the paper's data: x by SHA-256"


def test_printed_digits_are_the_columns(monkeypatch):
    this = reproduce.load("he2019_yahoo")
    rows = [(row, digits, runs) for row, digits, runs in reproduce.printed(this, this.rows)]
    assert {digits for row, digits, _ in rows if row["metric"] in ("nll", "kl", "mi")} == {1}
    assert {runs for row, _, runs in rows if row["paper"] == "he2019lagging"} == {5}
    assert {runs for row, _, runs in rows if row["paper"] != "he2019lagging"} == {1}
    assert len(rows) == len(here(this)) - len(here(this)[here(this)["model"].isin(this.not_ours)])


# A whole one -------------------------------------------------------------------------------------

TINY = {
    "title": "Nobody 2020, Table 3",
    "tables": [{"paper": "nobody", "table": "3"}],
    "dataset": "tiny",
    "words": "dataset=text dataset.name=tiny budget=smoke threads=1 device=cpu model.embedding=6 "
    "model.hidden=6 model.latent=2 budget.steps=6 budget.evaluation.nll_samples=4 "
    "budget.evaluation.read_candidates=2 seed=range(0,3)",
    "rows": {"Plain": "method=vae", "beta .5": "method=beta_vae method.beta=0.5"},
    "notes": {"beta .5": "the weight is a guess"},
    "not_ours": {"Large": "too large"},
}
LINES = ["the cat sat on the mat", "a dog ran", "the dog sat", "a cat ran home"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A reproduction that has been run, by the words that ran it."""
    folder = tmp_path_factory.mktemp("reproduction")
    lay(folder / "text", {"train": LINES * 10, "valid": LINES * 2, "test": LINES * 3})
    their = {f"{split}.txt": f"{split}.tar" for split in TEXT}
    about = {"where": "nowhere", "names": their, "sentences": {"train": 40, "valid": 8, "test": 12}}
    (folder / "tiny.yml").write_text(yaml.safe_dump({**TINY, "files": about}))
    words = [f"{key}={folder / place}" for key, place in (("dataset.path", "text"),
             ("results_dir", "results"), ("data_dir", "data"))]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, cells.one_thread():
        patch.setattr(reproduce, "FOLDER", folder)
        patch.setattr(published, "load", lambda: pd.DataFrame([PRINTED.iloc[0]]))
        assert reproduce.main(["tiny", "cluster=inline", *words]) == 0
    return folder, words


@pytest.fixture
def again(tiny, monkeypatch, capsys):
    """Show it beside what is printed of (model, metric): value."""
    folder, words = tiny
    monkeypatch.setattr(reproduce, "FOLDER", folder)

    def show(figures, *more: str, estimator: str = "iwae K=4"):
        rows = [
            {
                **{"paper": "nobody", "table": "3", "dataset": "tiny", "model": model},
                **{"method": "", "metric": metric, "value": value, "bound": ""},
                **{"estimator": estimator if metric == "nll" else "1 sample ELBO"},
                **{"unit": "nats/sentence", "status": published.VERIFIED, "comparable": True},
                **{"why_not": "", "sizes": "6/6/2", "data": "lines", "hash": ""},
            }
            for (model, metric), value in figures.items()
        ]
        monkeypatch.setattr(published, "load", lambda: pd.DataFrame(rows))
        assert reproduce.main(["tiny", *words, "--show", *more]) == 0
        return capsys.readouterr().out

    return show


FIGURES = {("Plain", "neg_elbo"): 1.0, ("beta .5", "kl"): 0.0, ("Large", "kl"): 9.5}


def test_a_reproduction_runs_and_is_set_beside_the_paper(again, tiny):
    found = json.loads(again(FIGURES, "--json"))
    assert found["data"]["differs"] == [] and not found["changed"]
    assert [(row["model"], row["done"]) for row in found["rows"]] == [("Plain", 3), ("beta .5", 3)]
    plain = found["rows"][0]
    records = [
        json.loads(file.read_text()) for file in tiny[0].glob("results/tiny/vae/*/*/run.json")
    ]
    values = pd.Series([known["summary"]["test"]["neg_elbo"] for known in records])
    assert (plain["mean"], plain["sd"]) == pytest.approx((values.mean(), values.std()))
    half = 4.302653 * values.std() * (4 / 3) ** 0.5
    assert plain["high"] - plain["low"] == pytest.approx(2 * half, rel=1e-5)
    assert plain["verdict"] == "outside"
    near = {("Plain", "neg_elbo"): round(values.mean(), 3)}
    assert json.loads(again(near, "--json"))["rows"][0]["verdict"] == "inside"


def test_the_files_hashes_decide_where_they_are_behind_the_runs(again, tiny, tmp_path, monkeypatch):
    this = yaml.safe_load((tiny[0] / "tiny.yml").read_text())
    monkeypatch.setattr(reproduce, "FOLDER", tmp_path)
    figures = {("Plain", "neg_elbo"): 1.0}

    def shown(hashes, *more):
        about = this["files"] | {"sha256": hashes}
        (tmp_path / "tiny.yml").write_text(yaml.safe_dump(this | {"files": about}))
        found = json.loads(again(figures, "--json", *more))
        return found["data"], found["rows"][0]

    texts = {"train": LINES * 10, "valid": LINES * 2, "test": LINES * 3}
    right = {f"{split}.txt": sha256(text(lines)).hexdigest() for split, lines in texts.items()}
    data, line = shown(right)
    assert data["by"] == "the files' SHA-256" and line["verdict"] == "outside"
    data, line = shown(right | {"train.txt": "0" * 64})
    assert data["differs"] == ["train.txt by SHA-256"] and line["verdict"] == "not comparable"
    assert line["why"] == "not the paper's data: train.txt by SHA-256"
    nowhere = f"dataset.path={tmp_path / 'nowhere'}"
    others = lay(tmp_path / "others", texts | {"train": LINES[::-1] * 10})  # of the same sizes
    for path in (nowhere, f"dataset.path={others}"):
        data, line = shown(right, path)
        assert data["by"].startswith("these sizes alone") and line["verdict"] == "outside"


def test_runs_of_another_result_version_are_not_compared(again, monkeypatch):
    monkeypatch.setattr(load, "RESULT_VERSION", RESULT_VERSION + 1)
    (row,) = json.loads(again({("Plain", "neg_elbo"): 1.0}, "--json"))["rows"]
    assert (row["done"], row["verdict"]) == (3, "not comparable")
    assert "another version of this code: run them again by only=stale" in row["why"]


def test_the_table_tells_the_data_the_notes_and_what_is_not_ours(again):
    told = again(FIGURES)
    assert "Nobody 2020, Table 3" in told and "by these sizes" in told
    assert "3 of 3" in told and "outside" in told
    assert "[1] the weight is a guess" in told and "Large: not ours, too large" in told
    (row,) = [line for line in told.splitlines() if line.strip().startswith("beta .5")]
    assert "[1]" in row


def test_another_recipe_is_said_to_be_one(again):
    (row,) = json.loads(again({("Plain", "kl"): 0.0}, "--json", "budget.steps=7"))["rows"]
    assert (row["done"], row["verdict"]) == (0, "not run")
    found = json.loads(again({("Plain", "kl"): 0.0}, "--json", "budget.steps=6", "threads=2"))
    assert found["changed"] == ""
    assert json.loads(again(FIGURES, "--json", "model.latent=3"))["changed"] == "model.latent=3"
    (row, *_) = json.loads(again(FIGURES, "--json", "seed=0"))["rows"]
    assert (row["done"], row["cells"], row["verdict"]) == (1, 1, "too few runs")


def test_rows_are_chosen_by_their_names(again):
    (row,) = json.loads(again(FIGURES, "--json", "row=beta*"))["rows"]
    assert row["model"] == "beta .5" and row["note"] == "the weight is a guess"


def test_estimators_must_agree(again):
    (row,) = json.loads(again({("Plain", "nll"): 1.0}, "--json"))["rows"]
    assert row["verdict"] == "outside"
    (row,) = json.loads(again({("Plain", "nll"): 1.0}, "--json", estimator="iwae K=500"))["rows"]
    assert row["verdict"] == "not comparable"
    assert "iwae K=4 n=12, in nobody by iwae K=500" in row["why"]


# The command -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["he2019_yaho"], "did you mean 'he2019_yahoo'"),
        (["li2019_ptb", "li2019_snli"], "one table at a time"),
        (["li2019_ptb", "--shwo"], "there is no flag --shwo"),
        (["li2019_ptb", "row=AE*F"], "did you mean 'AE+FB'"),
        (["li2019_ptb", "method=vae"], "method=vae is for the table to say"),
        (["li2019_ptb", "grids=some"], "grids=some is for the table to say"),
        (["li2019_ptb", "only=some"], "only=some is no choice"),
        (["li2019_ptb", "dataset.pth=x"], "there is no option 'dataset.pth'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(words, said, capsys):
    assert reproduce.main(words) == 1
    told = capsys.readouterr()
    assert said in told.err and told.err.count("\n") == 1 and not told.out


def test_without_runs_the_table_says_so(tmp_path, capsys):
    assert reproduce.main(["he2019_yahoo", "--show", f"results_dir={tmp_path}"]) == 0
    told = capsys.readouterr().out
    assert told.count("not run") == 31 + 9 and "0 of 5" in told and "data:" not in told


def test_the_list_is_quick(tmp_path):
    program = (
        "import sys; from benchmark import reproduce; reproduce.main([]); reproduce.main(['-h'])\n"
        "assert not {'torch', 'pandas', 'datasets', 'leaderboard'} & {*sys.modules}"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert all(any(line.startswith(name) for line in ran.stdout.splitlines()) for name in NAMES)
