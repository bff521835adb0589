"""A finished run brought back: the model that was measured, or one sentence that says why not."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmark import cell, record
from benchmark.cell import restore
from benchmark.compose import UserError
from benchmark.evaluate import Effort, evaluate
from benchmark.placebo import Misread
from benchmark.record import RunDirectory
from benchmark.tensors import read_tensors
from tests import cells
from tests.cells import differences, found, plain, run
from tests.test_bad_input import is_one_sentence
from tests.test_faults import DAMAGE

BEST = "checkpoints/best.pt"
METHOD = Path(__file__).resolve().parents[1] / "methods/kl_annealing.py"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with cells.one_thread():
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """The directory of a done run."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    assert run(folder) == 0
    return found(folder)[0]


@pytest.fixture
def copied(done, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(done, tmp_path / "copied")


def change(path: Path, **fields: Any) -> None:
    """Change fields of a record; `provenance` holds what changes in it."""
    directory = RunDirectory(path)
    with directory.lease():
        known = directory.read()
        assert known is not None
        about = known["provenance"] | fields.pop("provenance", {})
        directory.write(**fields, provenance={k: v for k, v in about.items() if v is not None})


def configure(path: Path, old: str, new: str) -> None:
    """Change a line of the stored configuration."""
    file = path / "config.yaml"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def refused(path: Path, *device: str) -> str:
    with pytest.raises(UserError) as error:
        restore(path, *device)
    assert is_one_sentence(f"{error.value}\n")
    return str(error.value)


# -- what comes back -------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["placebo=true"], ["stop_after=2"]])
def test_the_model_is_the_one_that_was_measured(words, tmp_path):
    """To the bit, on the splits that it was measured on."""
    assert run(tmp_path / "cell", *words) == 0
    path, known = found(tmp_path / "cell")
    made = restore(path)
    assert made.record == known and not made.model.training
    assert differences(plain(made.model), plain(read_tensors(path / BEST))) == []
    settings = made.config.budget.evaluation
    test = evaluate(made.model, made.split("test"), Effort.final(settings), device=made.device)
    valid = evaluate(made.model, made.split("valid"), Effort.final(settings), device=made.device)
    for name in ("neg_elbo", "kl", "mi", "z_gain"):
        assert test.summary[name] == known["summary"]["test"][name]
        assert valid.summary[name] == known["summary"]["valid"][name]
    assert test.summary["nll"] == known["summary"]["test"]["nll"]


def test_what_it_was_trained_with_comes_back_too(done):
    made = restore(done)
    assert made.recipe.model is made.model and made.recipe.objective is not None
    assert made.config.method.name == "kl_annealing"
    assert len(made.batches) == made.task.steps_per_epoch
    np.testing.assert_array_equal(np.sort(np.concatenate(made.batches)), np.arange(320))
    assert [len(made.split(name)) for name in ("train", "valid", "test")] == [320, 60, 60]
    assert made.split("train") is made.corpus.train


def test_a_placebo_misreads_every_split(done, copied):
    configure(copied, "placebo: false", "placebo: true")
    made = restore(copied)
    for name in ("train", "valid", "test"):
        split = made.split(name)
        assert isinstance(split, Misread) and split.name == name
        assert (split.partner != np.arange(len(split))).any()


def test_all_that_has_weights_is_on_the_device(done, monkeypatch):
    made = cell.make_recipe

    def with_critic(*given):
        recipe, *rest = made(*given)
        return recipe.but(objective=nn.Linear(2, 2)), *rest

    monkeypatch.setattr(cell, "make_recipe", with_critic)
    monkeypatch.setattr(cell, "choose_device", lambda config: torch.device("meta"))
    recipe = restore(done).recipe
    for slot in (recipe.model, recipe.objective):
        assert isinstance(slot, nn.Module)
        assert {parameter.device.type for parameter in slot.parameters()} == {"meta"}


# -- other code, another machine -------------------------------------------------------------------


def test_other_code_is_told_and_the_same_is_not(copied, caplog):
    change(copied, provenance={"fingerprint": record.fingerprint([METHOD])})
    restore(copied)
    assert not caplog.records
    for other in (record.fingerprint(), None):
        change(copied, provenance={"fingerprint": other})
        restore(copied)
        (told,) = caplog.records
        assert told.levelname == "WARNING"
        assert f"the code has changed since {copied} was trained" in told.message
        caplog.clear()


def test_a_device_that_is_not_here_is_replaced(copied, caplog):
    configure(copied, "device: auto", "device: cuda:99")
    here = "cuda" if torch.cuda.is_available() else "cpu"
    made = restore(copied)
    assert made.device.type == here and next(made.model.parameters()).device.type == here
    assert "the run's own device, cuda:99, is not here" in caplog.text
    caplog.clear()
    made = restore(copied, "cpu")
    assert made.device.type == made.config.device == "cpu"
    assert "is not here" not in caplog.text


@pytest.mark.parametrize("name", ["cuda:99", "tpu"])
def test_a_device_that_is_asked_for_is_not_replaced(done, name):
    assert name in refused(done, name)


# -- what does not come back -----------------------------------------------------------------------


@pytest.mark.parametrize("status", ["queued", "running", "interrupted", "failed", "diverged"])
def test_a_run_that_has_not_finished_is_refused(copied, status):
    change(copied, status=status)
    assert f"is no run with a selected checkpoint: it is {status}; train it" in refused(copied)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights_are_refused(copied, damage):
    DAMAGE[damage](copied / BEST)
    another = damage in ("a tensor", "an empty state")
    assert ("are another model's" if another else f"{BEST} is damaged (") in refused(copied)
    assert not (copied / "checkpoints/executed").exists()


@pytest.mark.parametrize(
    ("name", "told"), [(BEST, "No such file"), ("run.json", "has no run.json")]
)
def test_what_is_missing_is_told(copied, name, told):
    (copied / name).unlink()
    assert f"{copied} is no run with a selected checkpoint: " in (said := refused(copied))
    assert told in said


def test_a_damaged_record_is_refused(copied):
    os.truncate(copied / "run.json", 100)
    assert "run.json is damaged: it is no JSON" in refused(copied)


@pytest.mark.parametrize("data_hash", ["0" * 64, None])
def test_other_data_is_refused(copied, data_hash):
    change(copied, provenance={"data_hash": data_hash})
    assert f"the data of {copied} is not what it was" in refused(copied)


def test_weights_of_other_sizes_are_refused(copied):
    configure(copied, "  latent: 8\n  dropout: 0.3", "  latent: 7\n  dropout: 0.3")
    assert "are another model's than this code makes" in refused(copied)


def test_a_broken_configuration_names_its_file(copied):
    file = copied / "config.yaml"
    data = next(line for line in file.read_text().splitlines() if line.startswith("data_dir: "))
    configure(copied, data, "data_dir: /proc/self/fd/x")
    assert f"{file}: data_dir=/proc/self/fd/x cannot be written to" in refused(copied)
    file.unlink()
    assert refused(copied) == f"{file}: No such file or directory."
