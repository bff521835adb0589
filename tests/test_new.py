"""A method begun by `python -m benchmark.new` runs, keeps every promise and passes its own test."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from elsewhere import SMALL, methods_in, torch_kept

from benchmark import check, new, record, run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path):
    with methods_in(tmp_path / "elsewhere") as folder, torch_kept():
        yield folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_new_method_keeps_every_promise(folder, capsys):
    assert new.main(["my_way"], folder) == 0
    assert files(folder) == {
        *("methods/my_way.py", "configs/method/my_way.yaml", "tests/test_my_way.py")
    }
    said = capsys.readouterr().out
    assert "benchmark.check method=my_way" in said and "configs/method/my_way.yaml" in said
    code = check.main(["method=my_way", f"hydra.searchpath=['file://{folder}/configs']"])
    assert code == 0, capsys.readouterr().out


def test_a_new_method_runs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    new.write("mine", folder)
    with pytest.raises(SystemExit) as ended:
        run.main(["--config-dir", str(folder / "configs"), "method=mine", *SMALL])
    assert ended.value.code == 0
    ((_, known),) = record.scan("results")
    assert known["status"] == "done" and known["cell"]["method"] == "mine"


def test_a_new_methods_test_passes_and_can_fail(folder):
    new.write("mine", folder)
    spec = importlib.util.spec_from_file_location("test_mine", folder / "tests/test_mine.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.test_a_negative_weight_is_refused()
    module.test_the_objective_is_rec_and_beta_kl()
    importlib.import_module("methods.mine").rate = lambda draw: draw.kl.mean()
    with pytest.raises(AssertionError):
        module.test_the_objective_is_rec_and_beta_kl()


@pytest.mark.parametrize("name", ["recipe", "a", "a" * 30])
def test_a_new_method_is_as_tidy_as_ours(name, folder):
    new.write(name, folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    ours = "lint.isort.known-first-party=['benchmark', 'methods']"
    for words in (["check", "--config", ours], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *words, str(folder)], check=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, "cannot name a method") for name in ("", "Mine", "1st", "a-b", "a.b", "é", "_a")),
        *((name, "cannot name a method") for name in ("../up", "/tmp/x", "class", "a" * 31, "a b")),
        *((name, "there is a method") for name in ("vae", "all")),
        ("grid", "tests/test_grid.py is there already"),
        ("taken", "configs/method/taken.yaml is there already"),
    ],
)
def test_a_name_that_will_not_do(name, expected, folder, capsys):
    (folder / "tests/test_grid.py").touch()
    (folder / "configs/method/taken.yaml").touch()
    before = files(folder)
    assert new.main([name], folder) == 1
    printed = capsys.readouterr()
    assert expected in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert files(folder) == before


def test_one_name_is_asked_for(folder, capsys):
    for words in ([], ["one", "two"]):
        assert new.main(words, folder) == 1
        assert "say one name" in capsys.readouterr().err


def test_all_files_are_written_or_none(folder, capsys):
    (folder / "tests").rmdir()
    assert new.main(["mine"], folder) == 1
    assert "cannot be written: No such file" in capsys.readouterr().err
    assert files(folder) == set()
