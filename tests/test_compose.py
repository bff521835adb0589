"""From words to cells: sweeps, papers' settings, plug-ins, and what a command leaves behind."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from elsewhere import SMALL, methods_in, torch_kept, write_method
from omegaconf import OmegaConf

from benchmark import compose, record, run

ROOT = Path(__file__).resolve().parents[1]
PAPER = "name: vae\npaper: {budget: {clip: 1.0, halving: {patience: 5}, evaluation: {every: 9}}}\n"


@pytest.fixture
def ready():
    with compose.hydra_ready():
        yield


def config(*words: str):
    return compose.cell(words)[0]


# Words -------------------------------------------------------------------------------------------


def test_a_sweep_is_multiplied_out(ready):
    cells = compose.sweep(["method=vae,lm", "seed=range(2)", "budget.clip=1.5"])
    assert cells == [
        [f"method={method}", f"seed={seed}", "budget.clip=1.5"]
        for method in ("vae", "lm")
        for seed in (0, 1)
    ]


def test_all_is_every_config_of_a_group(ready):
    found = [cell[0].removeprefix("method=") for cell in compose.sweep(["method=all"])]
    assert found == sorted(path.stem for path in (ROOT / "configs/method").glob("*.yaml"))
    assert compose.sweep(["method=glob(*)"]) == compose.sweep(["method=all"])


def test_of_two_words_for_one_key_the_later_holds(ready):
    assert compose.sweep(["seed=0,1", "seed=2"]) == [["seed=2"]]
    assert config("seed=1", "seed=2").seed == 2


def test_an_option_that_no_yaml_lists_can_be_set(ready):
    assert "min_count" not in (ROOT / "configs/dataset/ptb.yaml").read_text()
    found = config("dataset=ptb", "dataset.min_count=3", "budget.halving.patience=7")
    assert found.dataset.min_count == 3
    assert (found.budget.halving.patience, found.budget.halving.most) == (7, 5)


def test_the_words_of_a_variant(ready):
    words = ["method=kl_annealing", "++method.ramp=0.2", "seed=3", "method.start=0.1"]
    found, method = compose.cell(words)
    assert run.make_cell(found, method, words).variant == "kl_annealing ramp=0.2 start=0.1"


# A paper's own settings --------------------------------------------------------------------------


def test_a_paper_block_holds_under_its_budget_alone(ready):
    ours, paper = config("method=kl_annealing"), config("method=kl_annealing", "budget=paper")
    assert (ours.method.start, ours.method.ramp) == (0.0, 0.4)
    assert (paper.method.start, paper.method.ramp) == (0.1, 0.1)
    assert "paper" not in paper.method


def test_zforcing_trains_as_its_paper_does(ready):
    budget = config("method=zforcing", "budget=paper").budget
    assert (budget.optimiser.value, budget.learning_rate, budget.clip) == ("adam", 1e-3, 100)
    assert budget.halving is None


@pytest.mark.parametrize(
    ("method", "epochs", "steps", "ramp"),
    [
        ("cyclical_annealing", 40, None, 0.45 * 10),  # of ten epochs: 4.5
        ("sigmoid_annealing", None, 80_000, 10_000),
        ("coupled_vae", None, 60_000, 42_000),
        ("control_vae", None, 80_000, None),
    ],
)
def test_a_schedule_has_the_length_of_its_paper(ready, method, epochs, steps, ramp):
    found = config(f"method={method}", "budget=paper")
    assert (found.budget.epochs, found.budget.steps) == (epochs, steps)
    assert found.budget.halving is None and found.budget.optimiser.value == "adam"
    if ramp is not None:
        cycle = epochs / found.method.cycles if epochs else steps
        assert found.method.ramp * cycle == pytest.approx(ramp)


@pytest.mark.parametrize(
    ("words", "epochs", "steps"),
    [
        (["method=coupled_vae"], None, 60_000),
        (["method=coupled_vae", "budget.epochs=5"], 5, None),
        (["method=coupled_vae", "budget.epochs=null"], None, 60_000),
        (["method=coupled_vae", "budget.steps=7"], None, 7),
        (["method=vmf_vae"], 200, None),
        (["method=vmf_vae", "budget.epochs=5"], 5, None),
        (["method=vmf_vae", "budget.steps=null"], 200, None),
        (["method=vmf_vae", "budget.steps=7", "budget.epochs=null"], None, 7),
    ],
)
def test_a_word_for_the_length_takes_the_place_of_a_papers(ready, words, epochs, steps):
    """Epochs and steps are alternatives: a word for one leaves the paper's other behind, and none
    of them takes the paper's away."""
    ours = config(*words, "budget=paper").budget
    assert (ours.epochs, ours.steps) == (epochs, steps)


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("bn_vae", {"method.epsilon": 1e-5, "method.torch_init": True, "halving.patience": 5}),
        ("control_vae", {"method.target": 2.0, "method.ki": 1e-4}),
        ("du_vae", {"method.ramp": 0.1, "method.torch_init": True, "halving.patience": 5}),
        ("free_bits", {"learning_rate": 0.5, "halving.patience": 5}),
        ("geco", {"method.momentum": 0.99}),
        ("mdr", {"method.start": 1.01, "batch_size": 64, "clip": 1.5, "optimiser": "adam"}),
        ("pretrain_free_bits", {"method.pretrain": 0.5, "epochs": 200, "learning_rate": 0.5}),
        ("sa_vae", {"method.svi_steps": 20, "method.ramp": 0.3, "epochs": 30, "halving.most": 6}),
        ("soft_free_bits", {"method.increment": 0.1}),
        ("twr_vae", {"epochs": 1000, "batch_size": 64, "learning_rate": 1e-4, "clip": 1e6}),
        ("vmf_vae", {"batch_size": 20, "learning_rate": 1e-4, "clip": 0.25, "halving": None}),
    ],
)
def test_a_paper_holds_what_its_code_does(ready, method, wanted):
    """As the papers and their released code have it, by `methods/README.md`."""
    found = config(f"method={method}", "budget=paper")
    for key, value in wanted.items():
        place = key if key.startswith("method.") else f"budget.{key}"
        known = OmegaConf.select(found, place)
        assert getattr(known, "value", known) == value, key


def test_the_command_line_wins_over_a_paper(ready):
    found = config("method=kl_annealing", "budget=paper", "method.ramp=0.3")
    assert (found.method.start, found.method.ramp) == (0.1, 0.3)


@pytest.mark.parametrize(
    ("words", "clip", "patience", "most", "every"),
    [
        (["budget=default"], 5.0, None, None, None),
        (["budget=paper"], 1.0, 5, 5, 9),
        (["budget=paper", "budget.clip=2"], 2.0, 5, 5, 9),
        (["budget=paper", "budget.halving.most=3"], 1.0, 5, 3, 9),
        (["budget=paper", "budget.halving.patience=4"], 1.0, 4, 5, 9),
        (["budget=paper", "budget.halving=null"], 1.0, None, None, 9),
        (["budget=paper", "++budget.evaluation.every=8"], 1.0, 5, 5, 8),
    ],
)
def test_a_paper_sets_its_budget(words, clip, patience, most, every, tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method/his.yaml").write_text(PAPER)
    with compose.hydra_ready(str(tmp_path)):
        budget = config("method=his", *words).budget
    halving = budget.halving or {"patience": None, "most": None}
    assert (budget.clip, halving["patience"], halving["most"]) == (clip, patience, most)
    assert budget.evaluation.every == every


# What a command leaves behind ---------------------------------------------------------------------


def test_a_sweep_runs_in_this_process_and_writes_where_it_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    words = ["method=vae,lm", "-m", "seed=0,1", *SMALL]
    with torch_kept():
        for _ in range(2):
            with pytest.raises(SystemExit) as ended:
                run.main(words)
            assert ended.value.code == 0
    found = [known["cell"] for _, known in record.scan("results")]
    assert [(cell["method"], cell["seed"]) for cell in found] == [
        *(("lm", 0), ("lm", 1), ("vae", 0), ("vae", 1))
    ]
    assert capsys.readouterr().out.count("is done already") == 4
    assert {path.name for path in tmp_path.iterdir()} == {"results", "data"}
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"synthetic"}


def test_the_configuration_can_be_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run.main(["--cfg", "job", "method=kl_annealing", "budget=paper"])
    assert ended.value.code == 0
    found = OmegaConf.create(capsys.readouterr().out)
    assert found.method.ramp == 0.1 and found.budget.batch_size == 64
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("module", ["run", "data", "new"])
def test_help_is_quick(module, tmp_path):
    code = (
        "import sys, runpy; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('benchmark.{module}', run_name='__main__')\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert 'torch' not in sys.modules"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert len(ended.stdout) > 100 and ended.stderr == ""
    # 0.6 s where nothing else runs
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0
    assert not [*tmp_path.iterdir()]


# Methods from other packages ----------------------------------------------------------------------


THEIRS = """
from dataclasses import dataclass, field
from benchmark.api import Recipe, register
from benchmark.objectives import rate, reconstruction

@register("theirs")
@dataclass
class Theirs:
    weight: float = field(default=1.0, metadata={"other": 0.5})

    def recipe(self, task):
        return Recipe(
            model=task.model(),
            objective=lambda draw, batch, t: reconstruction(draw) + self.weight * rate(draw),
        )
"""


def install(site: Path, package: str, names: dict[str, str], code: str = THEIRS) -> None:
    """A package with methods of its own, as pip leaves it: its code, its YAML, its entry points.

    names: method -> YAML, "" for none.
    """
    (site / package / "inner" / "configs" / "method").mkdir(parents=True)
    for folder in (package, f"{package}/inner"):
        (site / folder / "__init__.py").write_text("raise_if_imported = True\n")
    (site / package / "inner" / "code.py").write_text(code)
    about = site / f"{package}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {package}.inner.code:Theirs" for name in names]
    (about / "entry_points.txt").write_text("\n".join([f"[{compose.PLUGINS}]", *lines, ""]))
    for name, yaml in names.items():
        if yaml:
            (site / package / "inner" / "configs" / "method" / f"{name}.yaml").write_text(yaml)


def test_a_method_of_an_installed_package_runs(tmp_path):
    site, here = tmp_path / "site", tmp_path / "here"
    here.mkdir()
    install(site, "their_package", {"theirs": "name: theirs\nweight: 0.5\n"})
    ended = subprocess.run(
        [sys.executable, "-m", "benchmark.run", "method=theirs", "method.weight=0.25", *SMALL],
        cwd=here,
        env=os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    ((_, known),) = record.scan(here / "results")
    assert known["status"] == "done" and known["cell"]["variant"] == "theirs weight=0.25"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on Python's path, for packages to be installed into."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with methods_in(tmp_path / "elsewhere"):
        yield tmp_path / "site"
    for name in [name for name in sys.modules if name.startswith(("one_", "two_"))]:
        del sys.modules[name]


YAML = "name: theirs\nweight: 0.5\n"


def test_a_plugins_method_is_listed_and_found_without_an_import(site):
    install(site, "one_package", {"theirs": YAML})
    with compose.hydra_ready():
        assert ["method=theirs"] in compose.sweep(["method=all"])
        assert not [name for name in sys.modules if name.startswith("one_package.")]
        assert config("method=theirs").method.weight == 0.5
    assert "theirs" in compose.method_names()


@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        ({"one_package": {"theirs": ""}}, "ships no configs/method/theirs.yaml inside its package"),
        (
            {"one_package": {"theirs": YAML}, "two_package": {"theirs": YAML}},
            "two methods are named 'theirs': one_package.* and .* of the package two_package",
        ),
        ({"one_package": {"theirs": "name: vae\n", "vae": ""}}, "two methods are named 'vae'"),
        ({"one_package": {"theirs": "name: ours\nweight: 1\n", "ours": ""}}, "no method 'ours'"),
        ({"one_package": {"theirs": "name: theirs\n"}}, "does not list weight, of Theirs in one_"),
    ],
    ids=["no YAML", "two packages", "one of ours", "another name", "no field"],
)
def test_a_plugin_that_does_not_fit(packages, expected, site):
    for package, names in packages.items():
        install(site, package, names)
    with compose.hydra_ready(), pytest.raises(compose.UserError, match=expected):
        config("method=theirs")


def test_a_plugin_cannot_replace_what_is_ours(site):
    install(site, "one_package", {"theirs": YAML})
    folder = site / "one_package/inner/configs"
    (folder / "config.yaml").write_text("results_dir: /nowhere\n")
    (folder / "method" / "kl_annealing.yaml").write_text("name: theirs\nweight: 9\n")
    with compose.hydra_ready():
        found = config("method=kl_annealing")
    assert found.method.name == "kl_annealing" and found.results_dir == "results"


def test_a_plugin_whose_code_breaks(site):
    install(site, "one_package", {"theirs": YAML}, code="\n\nimport nowhere_at_all\n")
    with (
        compose.hydra_ready(),
        pytest.raises(
            compose.UserError, match=r"one_package\.inner\.code.* line 3: ModuleNotFound"
        ),
    ):
        config("method=theirs")


def test_a_file_that_broke_registers_nothing(tmp_path):
    with methods_in(tmp_path / "elsewhere") as folder:
        code = THEIRS + "\nraise RuntimeError('too late')\n"
        write_method(folder, "theirs", code, YAML)
        for _ in range(2):
            with pytest.raises(compose.UserError, match="line 17: RuntimeError: too late"):
                compose.find_method("theirs")
