"""Wrong calls and inputs: each ends soon, in one sentence that says what to do, and writes nothing.

Most run inside this process, where importing torch is paid once; some as the user's own command.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from elsewhere import SENTENCES, SMALL, methods_in, torch_kept, write_method

from benchmark import compose, record, run
from benchmark.data.__main__ import main as data_main
from tests.cells import spent_by_children

SECONDS = 10.0
ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "pyproject.toml"

METHOD = """
from dataclasses import dataclass, field
from benchmark.api import Recipe, register

@register("{name}")
@dataclass
class Planted:
    weight: float = field(default=1.0, metadata={{"other": 2.0}})

    def __post_init__(self):
        if not 0 <= self.weight <= 9:
            raise ValueError(f"method.weight lies in [0, 9], not {{self.weight}}")

    def recipe(self, task):
        return Recipe(model=task.model())
"""


def tree(folder: Path) -> dict[str, bytes]:
    """Everything below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def is_one_sentence(text: str) -> bool:
    return (
        text.count("\n") == 1
        and text.endswith(".\n")
        and len(text) > 20
        and "Traceback" not in text
        and "HYDRA_FULL_ERROR" not in text
    )


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The folder in which a command is given: without results/ and data/."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which main sets, to be unset again
    return folder


@pytest.fixture
def refused(here, capsys, caplog):
    """A function that gives a command, sees it refused as it should be, and returns the sentence.

    cache: a folder that may have been filled, with what is not to be fetched again.
    """

    def call(*words: str, main=run.main, cache: str | None = None) -> str:
        before, began = tree(here), time.process_time()
        with pytest.raises(SystemExit) as ended:
            sys.exit(main(words))
        assert time.process_time() - began < SECONDS
        assert ended.value.code not in (None, 0)
        printed = capsys.readouterr()
        assert is_one_sentence(printed.err), printed.err
        assert printed.out == "" and not [r for r in caplog.records if r.levelname != "INFO"]
        if cache is not None:
            shutil.rmtree(here / cache)
            (here / cache).parent.rmdir()
        assert tree(here) == before
        return printed.err

    return call


WORDS = [
    # names
    ("method=vee", "there is no method 'vee'; did you mean 'vae'. Choices: .*lm"),
    ("dataset=synthetc", "no dataset 'synthetc'; did you mean 'synthetic'. Choices: .*ptb"),
    ("budget=smok", "no budget 'smok'; did you mean 'smoke'. Choices: default, paper, smoke"),
    ("model=lstn", "no model 'lstn'; did you mean 'lstm'"),
    ("sead=1", "no option 'sead'; did you mean 'seed'. Choices: .*batching"),
    ("+sead=1", "no option 'sead'; did you mean 'seed'"),
    ("dataset.pth=x", "no option 'dataset.pth'; did you mean 'dataset.path'"),
    ("budget.epoch=3", "no option 'budget.epoch'; did you mean 'budget.epochs'"),
    ("budget.evaluation.evry=3", "did you mean 'budget.evaluation.every'"),
    ("budget.halving.patient=3", "did you mean 'budget.halving.patience'"),
    ("method=kl_annealing method.rmap=0.2", "no option 'method.rmap'; did you mean 'method.ramp'"),
    ("method=vae method.ramp=0.2", "no option 'method.ramp'"),
    ("model/size=3", "no option 'model/size'"),
    ("dataset.generator.kind=table", "generator.kind is 'table'; choose one of .*'tables'"),
    ("dataset.generator.wrods=3", "unexpected keyword argument 'wrods'; it takes .*'words'"),
    # shapes of words
    ("vae", "'vae' has no '='; write KEY=VALUE, or GROUP=NAME"),
    ("=3", "write KEY=VALUE"),
    ("seed=", "seed= has no value"),
    ("method=", "method= has no value"),
    ("seed=???", "has no value"),
    ("dataset.path=nowhere=", "put quotes around the value: 'dataset.path=.nowhere=.'"),
    ("seed=[", "'seed=.' cannot be read"),
    ("--sed=1", "unrecognized arguments: --sed=1; --help"),
    ("--config-dir nowhere", "nowhere is no folder"),
    ("seed=1,2", "more than one cell; add -m"),
    ("method=all", "more than one cell; add -m"),
    ("method=[vae,lm]", "names no method"),
    ("method={name:lm}", "names no method"),
    ("method=null", "names no method"),
    ("+method=lm", "write method=NAME"),
    ("~dataset", "write dataset=NAME"),
    ("~dataset.name", "dataset.name has no value"),
    ("dataset@other=ptb", "write dataset=NAME"),
    # types
    ("seed=a", "seed must be an integer, not 'a'"),
    ("seed=1.5", "seed must be an integer"),
    ("seed=null", "seed cannot be null"),
    ("seed=[1]", "seed must be an integer"),
    ("seed.a=1", "seed must be an integer"),
    ("budget.clip=wide", "budget.clip must be a number"),
    ("precision=fp16", "precision must be one of fp32, bf16"),
    ("batching=loose", "batching must be one of exact, bucketed"),
    ("budget.optimiser=lion", "budget.optimiser must be one of adam, sgd"),
    ("dataset.distinct=maybe", "must be true or false"),
    ("dataset.columns=text", "dataset.columns must be a list"),
    ("dataset.splits=3", "dataset.splits must be a mapping"),
    ("budget.halving=3", "budget.halving must be a mapping"),
    ("data_dir=[a]", "data_dir must be one word"),
    ("results_dir=null", "results_dir cannot be null"),
    ("method=kl_annealing method.ramp=long", "method.ramp must be a number"),
    ("method=kl_annealing method.shape=round", "method.shape must be one of"),
    ("dataset.generator.words=a", "generator.words is 'a'; it is of type int"),
    # ranges
    ("seed=-1", "seed must lie in"),
    ("seed=9223372036854775808", "seed must lie in"),
    ("threads=0", "threads must be above 0"),
    ("stop_after=-1", "stop_after must be above 0"),
    ("save_every=-1", "save_every must be at least 0"),
    ("model.hidden=0", "model.hidden must be above 0"),
    ("model.latent=-2", "model.latent must be above 0"),
    ("model.dropout=1", r"model.dropout must lie in \[0, 1\)"),
    ("budget.learning_rate=nan", "budget.learning_rate must be"),
    ("budget.learning_rate=inf", "budget.learning_rate must be a finite number"),
    ("budget.learning_rate=-1", "budget.learning_rate must be above 0"),
    ("budget.epochs=0", "budget.epochs must be above 0"),
    ("budget.epochs=null", "either epochs or steps"),
    ("budget.steps=3", "either epochs or steps"),
    ("budget.batch_size=0", "budget.batch_size must be above 0"),
    ("budget.clip=0", "budget.clip must be above 0"),
    ("budget.select=elbo", "budget.select must be nll or neg_elbo"),
    ("budget=paper budget.halving.patience=0", "budget.halving.patience must be above 0"),
    ("budget.evaluation.read_candidates=1", "read_candidates must be at least 2"),
    ("budget.evaluation.nll_sentences=0", "nll_sentences must be above 0"),
    ("dataset.sentences.train=0", "dataset.sentences must have counts above 0"),
    ("dataset.sentences.dev=9", "by train, valid and test"),
    ("dataset.generator.words=0", "generator.words is 0"),
    ("dataset.generator.scale=nan", "scale must be a finite number"),
    ("dataset=synthetic_echo dataset.generator.eps=2", "generator.eps is 2"),
    ("method=kl_annealing method.ramp=2", "method.ramp"),
    ("method=kl_annealing method.ramp=nan", "method.ramp must be a finite number"),
    # what means nothing
    ("dataset.path=/tmp", "dataset.path means nothing for 'synthetic', which is generated"),
    ("dataset.min_count=2", "dataset.min_count means nothing"),
    ("method.name=lm", "method.name is not to be set; .* method=NAME"),
    ("++method.name=lm", "method.name is not to be set"),
    ("budget.name=paper", "budget.name is not to be set"),
    ("hydra.sweep.dir=x", "hydra.sweep.dir means nothing here"),
    ("seed=${nowhere}", "Interpolation key 'nowhere' not found"),
    ("model.hidden=${model.hidden}", "Recursive interpolation"),
    ("results_dir=${oc.env:NOWHERE_AT_ALL}", "the environment has no variable NOWHERE_AT_ALL"),
    # names that are paths
    ("dataset.name=../../x", "dataset.name must be letters"),
    ("dataset.name=/etc", "dataset.name must be letters"),
    ("dataset.name=.hidden", "dataset.name must be letters"),
    ("method=../dataset/ptb", "names no method"),
    ("dataset=../method/vae", "names no dataset"),
    # machine
    ("device=tpu", "device is auto, cpu, cuda or cuda:N, not 'tpu'"),
    ("device=mps", "device is auto, cpu, cuda or cuda:N"),
    ("device=cuda:99", "is not here: torch sees"),
    # several methods in one
    ("method=stack method.of=vae", "method.of must be a list; write"),
    ("method=stack method.of=[]", "method.of names no method; give a list"),
    ("method=stack method.of=[3]", "'method=3' names no method|method=3 names no method"),
    (
        "method=stack method.of=[fre_bits]",
        "there is no method 'fre_bits'; did you mean 'free_bits'",
    ),
    (
        "method=stack method.of=[free_bits,kl_annealing]",
        "free_bits and kl_annealing both edit the slot 'objective'",
    ),
    ("method=stack method.parts.free_bit.floor=3", "did you mean 'free_bits'"),
    ("method=stack method.parts.free_bits=3", "method.parts.free_bits must be a mapping"),
    ("method=stack method.parts.free_bits.flor=3", "did you mean 'method.parts.free_bits.floor'"),
    ("method=stack method.parts.free_bits.floor=x", "parts.free_bits.floor must be a number"),
    ("method=stack method.parts.word_dropout.rate=7", "method.parts.word_dropout.rate is a prob"),
    # what a model cannot be, told before any data is prepared
    ("method=lm placebo=true", "placebo=true means nothing for lm"),
    ("method=free_bits method.per=group_batch method.groups=3", "does not divide the 8 units"),
    ("placebo=perhaps", "placebo must be true or false"),
    # places
    ("results_dir=/proc/self/fd/x", "results_dir=.* cannot be written to"),
    ("data_dir=/proc/self/fd/x", "data_dir=.* cannot be written to"),
    (f"results_dir={FILE}", "results_dir=.*toml cannot be written to .Not a dir"),
    (f"results_dir={FILE}/x", "cannot be written to .Not a directory"),
    (f"data_dir={FILE}", "cannot be written to .Not a directory"),
    # sweeps
    ("-m seed=", "empty sweep"),
    ("-m seed=range(3,3)", "seed=range.3,3. is an empty sweep"),
    ("-m seed=interval(0,1)", "has no end"),
    ("-m seed=0,1 vae", "'vae' has no '='"),
]


@pytest.mark.parametrize(
    ("words", "expected"), WORDS, ids=[words.replace(str(ROOT), "") for words, _ in WORDS]
)
def test_words(words, expected, refused):
    assert re.search(expected, refused(*words.split(" ")))


DATA_WORDS = [
    ("dataset=synthetc", "did you mean 'synthetic'"),
    ("dataset.pth=x", "did you mean 'dataset.path'"),
    ("dataset=", "empty sweep"),
    ("dataset=../method/vae", "names no dataset"),
    ("dataset.name=../x", "dataset.name must be letters"),
    ("dataset.sentences.train=-3", "counts above 0"),
    ("dataset=text", "names no source: set dataset.path"),
    ("dataset=ptb dataset.path=nowhere", "nowhere is no folder"),
    (f"data_dir={FILE}", "cannot be written to"),
    ("yelp", "'yelp' has no '='"),
    ("--yelp", "--yelp is no option"),
]


@pytest.mark.parametrize(
    ("words", "expected"), DATA_WORDS, ids=[words.replace(str(ROOT), "") for words, _ in DATA_WORDS]
)
def test_words_for_data(words, expected, refused):
    assert re.search(expected, refused(*words.split(" "), main=data_main))


FILES = [
    ({}, "holds neither train.txt, valid.txt and test.txt"),
    ({"train": b"a\n", "test": b"a\n"}, "has no valid.txt"),
    ({"train": b"a\n", "valid": b"", "test": b"a\n"}, "valid is empty"),
    ({"train": b"\n\n", "valid": b"a\n", "test": b"a\n"}, "train is empty"),
    ({"train": b"a\n\xff\xfe\n", "valid": b"a\n", "test": b"a\n"}, "line 2 is not UTF-8"),
    ({"train": b"1\ta\nb\n", "valid": b"1\ta\n", "test": b"1\ta\n"}, "an integer label and a tab"),
    ({"train": b"good\ta\n", "valid": b"a\n", "test": b"a\n"}, "a label is an integer"),
]


@pytest.mark.parametrize(("files", "expected"), FILES, ids=[expected for _, expected in FILES])
@pytest.mark.parametrize("main", [run.main, data_main], ids=["run", "data"])
def test_text_files(files, expected, main, refused, tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for split, text in files.items():
        (folder / f"{split}.txt").write_bytes(text)
    assert expected in refused("dataset=text", f"dataset.path={folder}", main=main)


TABLES = [
    ("dataset.columns=[words]", r"has no column 'words'; it has \['text', 'stars'\]"),
    ("dataset.label=text", "column 'text' of .* holds no integers"),
    ("dataset.columns=[stars]", "column 'stars' of .* holds int64, not text"),
    ("dataset.splits.valid=dev", "dataset.splits.valid is 'dev', but .* has the splits"),
]


@pytest.mark.parametrize(("word", "expected"), TABLES, ids=[word for word, _ in TABLES])
def test_tables(word, expected, refused, tmp_path):
    folder = tmp_path / "table"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        row = json.dumps({"text": "a b", "stars": 3})
        (folder / f"{split}.jsonl").write_text(f"{row}\n" * 3)
    sentence = refused("dataset=text", f"dataset.path={folder}", word, cache="data/hub")
    assert re.search(expected, sentence)


@pytest.fixture
def planted(tmp_path):
    with methods_in(tmp_path / "elsewhere") as folder:
        write_method(folder, "planted", METHOD.format(name="planted"), "name: planted\nweight: 1\n")
        yield folder


METHODS = [
    ("def (", "", "methods/planted.py cannot be imported, line 1: SyntaxError"),
    ("import nowhere", "", "line 1: ModuleNotFoundError: No module named 'nowhere'"),
    ("\nx = 1 / 0", "", "line 2: ZeroDivisionError"),
    ("", "", r"registers no method 'planted': .* @register\(\"planted\"\)"),
    (METHOD.format(name="other"), "", "registers no method 'planted', only 'other'"),
    (None, "name: plantd", "no method is registered as 'plantd'; did you mean 'planted'"),
    (None, "weight: 1", "names no method; add the line 'name: NAME'"),
    (None, "name: planted", "does not list weight, of Planted in methods.planted"),
    (None, "name: planted\nweihgt: 1", "sets 'weihgt', no field of .*; did you mean 'weight'"),
    (None, "name: planted\nweight: 99", r"method.weight lies in \[0, 9\], not 99"),
    (None, "name: planted\nweight: heavy", "method.weight must be a number, not 'heavy'"),
    (None, "name: planted\nweight: [", "planted.yaml, line .* is no YAML"),
    (None, "- planted", "planted"),
    (None, "name: planted\nweight: 1\npaper: 3", "paper holds fields of the method"),
    (None, "name: planted\nweight: 1\npaper: {wieght: 3}", "paper.wieght.*did you mean 'weight'"),
    (METHOD.format(name="planted").replace("@dataclass", ""), "", "@register above @dataclass"),
    (METHOD.format(name="planted").replace("recipe", "recipes"), "", "Planted has no recipe"),
    (
        METHOD.format(name="planted").replace("@dataclass", "@dataclass(frozen=True)"),
        *("", "without frozen=True"),
    ),
    (
        METHOD.format(name="planted") + METHOD.format(name="planted").replace("Planted", "Again"),
        *("", "two methods are named 'planted': Planted in .* and Again in .*; rename one"),
    ),
]


@pytest.mark.parametrize(("code", "yaml", "expected"), METHODS, ids=[e for _, _, e in METHODS])
def test_methods(code, yaml, expected, planted, refused):
    before = METHOD.format(name="planted")
    yaml = yaml or "name: planted\nweight: 1\n"
    write_method(planted, "planted", before if code is None else code, yaml)
    sentence = refused("--config-dir", str(planted / "configs"), "method=planted")
    assert re.search(expected, sentence)


def test_one_method_in_two_files(planted, refused):
    write_method(planted, "again", METHOD.format(name="planted"), "name: planted\nweight: 1\n")
    write_method(planted, "both", "from methods import planted, again", "name: both\n")
    sentence = refused("--config-dir", str(planted / "configs"), "method=both")
    assert "two methods are named 'planted': Planted in methods.planted and" in sentence
    assert "Planted in methods.again; rename one of them" in sentence


RECORDS = [
    (b'{"schema_version": 1', "damaged: it is no JSON.* remove it to go on"),
    (b"\xff\xfe", "damaged: it is no JSON.* remove it to go on"),
    (b"[]", "damaged: it is no JSON object; remove it to go on"),
    (b'{"schema_version": 1, "cell": {}}', "damaged: its cell lacks .* remove it to go on"),
    (b'{"schema_version": 99}', "schema_version is 99, this code reads .; set another results_dir"),
]


@pytest.mark.parametrize(("text", "expected"), RECORDS, ids=[expected for _, expected in RECORDS])
def test_records(text, expected, here, refused):
    with compose.hydra_ready():
        config, method = compose.cell([])
    path = run.make_cell(config, method, []).path(here / "results") / "run.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    assert re.search(expected, refused())


STORED = [
    (None, "config.yaml: No such file or directory"),
    (b"\xff\xfe", "config.yaml: .*can't decode"),
    (b"seed: \x00", "config.yaml, line 1 is no YAML|config.yaml: unacceptable character"),
    (b"seed: [", "config.yaml, line 1 is no YAML"),
    (b"- seed", "config.yaml: it holds no options"),
    (b"3", "config.yaml: Invalid loaded object type: int"),
    (b"", "config.yaml: the method's YAML names no method"),
    (b"method: ${nowhere}", "config.yaml: Interpolation key 'nowhere' not found"),
    (b"method: {name: vee}", "config.yaml: no method is registered as 'vee'; did you mean 'vae'"),
    (b"method: {name: kl_annealing}", "config.yaml: the method's YAML does not list cycles, "),
    (
        b"method: {name: vae}\nsead: 1",
        "config.yaml: there is no option 'sead'; did you",
    ),
    (b"method: {name: vae}\nseed: a", "config.yaml: seed must be an integer, not 'a'"),
]


@pytest.mark.parametrize(("text", "expected"), STORED, ids=[expected for _, expected in STORED])
def test_stored_configurations(text, expected, here):
    """Of a cell that was laid down for a job: its record tells."""
    with compose.hydra_ready():
        config, method = compose.cell([])
    cell = run.make_cell(config, method, [])
    directory = record.RunDirectory(cell.path("results"))
    directory.create(cell, "")
    file = directory.path / "config.yaml"
    if text is None:
        file.unlink()
    else:
        file.write_bytes(text)
    assert run.run_stored(directory.path, lambda: False) == "failed"
    known = directory.read()
    assert known is not None and is_one_sentence(known["reason"] + "\n")
    assert re.search(expected, known["reason"]) and known["reason"].count(str(file)) == 1


@pytest.fixture
def one_thread():
    with torch_kept():
        yield


def test_a_recipe_that_raises_is_a_failed_cell(planted, here, capsys, one_thread):
    code = METHOD.format(name="planted").replace("return", 'raise KeyError("gone");')
    write_method(planted, "planted", code, "name: planted\nweight: 1\n")
    with pytest.raises(SystemExit) as ended:
        run.main(["--config-dir", str(planted / "configs"), "method=planted", *SMALL])
    assert ended.value.code == 1
    (found,) = record.scan("results")
    assert found[1]["status"] == "failed" and "KeyError: 'gone'" in found[1]["reason"]
    assert "Traceback" in (found[0].path / "error.txt").read_text()


def test_a_bad_cell_of_a_sweep_stops_no_other(here, capsys, one_thread):
    with pytest.raises(SystemExit) as ended:
        run.main(["-m", "method=vae,nowhere,lm", *SMALL])
    assert ended.value.code == 1
    assert is_one_sentence(capsys.readouterr().err)
    assert {known["cell"]["method"] for _, known in record.scan("results")} == {"vae", "lm"}
    assert {known["status"] for _, known in record.scan("results")} == {"done"}


def test_every_bad_cell_of_a_sweep_is_told(refused, capsys, here):
    with pytest.raises(SystemExit) as ended:
        run.main(["-m", "method=vae,lm", "seed=-1,a"])
    assert ended.value.code == 1
    told = capsys.readouterr().err.splitlines(keepends=True)
    assert len(told) == 4 and all(is_one_sentence(line) for line in told)
    assert tree(here) == {}


def test_a_data_set_that_fails_stops_no_other(here, capsys):
    words = ("dataset=synthetic_null,nowhere,synthetic", SENTENCES)
    assert data_main(words) == 1
    printed = capsys.readouterr()
    assert is_one_sentence(printed.err)
    assert [line.split()[0] for line in printed.out.splitlines() if line[0] != " "] == [
        *("synthetic_null", "synthetic")
    ]


def test_an_error_of_the_programs_own_shows_its_traceback(here, capsys, monkeypatch, one_thread):
    def broken(config, *others):
        if config.seed == 0:
            raise RuntimeError("a bug")
        return made(config, *others)

    made = run.make_cell
    monkeypatch.setattr(run, "make_cell", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run.main(["seed=0"])
    with pytest.raises(SystemExit) as ended:
        run.main(["-m", "seed=0,1", *SMALL])
    assert ended.value.code == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "RuntimeError: a bug" in err
    assert [known["cell"]["seed"] for _, known in record.scan("results")] == [1]


COMMANDS = [
    ("run", "method=vee", "did you mean 'vae'"),
    ("run", "-m method=vee seed=0", "did you mean 'vae'"),
    ("run", "device=cuda:99", "is not here: torch sees"),
    ("run", f"results_dir={FILE}", "cannot be written to"),
    ("run", "--cfg all method=vee", "did you mean 'vae'"),
    ("data", "dataset=yelp", "check the id and the network, or give a local copy"),
    ("data", "dataset=text dataset.path=nowhere", "nowhere is no folder"),
]


@pytest.mark.parametrize(
    ("module", "words", "expected"),
    COMMANDS,
    ids=[f"{m} {w}".replace(str(ROOT), "") for m, w, _ in COMMANDS],
)
def test_commands(module, words, expected, here):
    began = spent_by_children()
    ended = subprocess.run(
        [sys.executable, "-m", f"benchmark.{module}", *words.split(" ")],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert spent_by_children() - began < SECONDS
    assert ended.returncode == 1
    assert is_one_sentence(ended.stderr) and expected in ended.stderr
    assert tree(here) == {}
