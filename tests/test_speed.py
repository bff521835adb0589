"""The measurements run, at sizes where they say nothing: what they print is for `make speed`."""

import json
from functools import partial

import pytest

from tests import growth, speed
from tests.cells import one_thread


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    shape = speed.Shape(embedding=8, hidden=16, vocabulary=30, mean=6, latent=4)
    monkeypatch.setattr(speed, "SHAPES", dict.fromkeys(speed.SHAPES, shape))
    monkeypatch.setattr(growth, "SMALL", shape)
    monkeypatch.setattr(speed, "SAMPLES", 20)
    monkeypatch.setattr(speed, "peak_of_products", lambda device, precision: 1e9)
    monkeypatch.setattr(speed, "prepare_torch", lambda *settings: None)
    monkeypatch.setattr(speed, "loading", partial(speed.loading, sentences=300))
    with one_thread():
        yield


def test_every_work_is_measured(capsys):
    speed.main(["--json", "--repeats", "2", "--precision", "fp32", "bf16", "--device", "cpu"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    named = {(line["work"], line["precision"]) for line in lines}
    works = {name.rpartition(", ")[0] for name, precision in named if precision != "-"}
    assert works == {*speed.WORKS} and ("load and batch 100,000", "-") in named
    assert ("train, snli", "bf16") in named and ("evaluation pass, snli", "bf16") not in named
    assert all(line["ratio"] > 0 and line["tokens_per_second"] > 0 for line in lines)


def test_every_growth_can_be_tried(tmp_path):
    for part in ("prepare", "read"):
        (tmp_path / part).mkdir()
    for _, grows, _, make in growth.works(tmp_path):
        make(40 if grows in ("sentences", "vocabulary") else 4)()


def test_the_table_has_a_column_for_each_number():
    lines = [{"work": "a", "ratio": 1.234, "peak": None}, {"work": "bcd", "ratio": 5e3, "peak": 1}]
    assert speed.table(lines) == "work  ratio  peak\na     1.23   -\nbcd   5,000  1"
