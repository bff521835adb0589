"""The command that diagnoses a run."""

import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from benchmark import diagnose, record
from benchmark.diagnosis import together
from tests.cells import found as found_run
from tests.cells import run

FAST = ["sentences=30", "refined=10", "candidates=8", "draws=2"]


def diagnosed(path):
    return json.loads((path / "diagnosis.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Finished runs by their words."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def train(*words):
        if words not in made:
            place = folder / str(len(made)) / "cell"
            assert run(place, *words) == 0
            made[words] = found_run(place)
        return made[words]

    return train


def test_a_run_is_diagnosed(trained, capsys):
    path, known = trained()
    before = (path / "run.json").read_bytes()
    assert diagnose.main([str(path), *FAST]) == 0
    out = capsys.readouterr().out
    assert "verdict" in out and "of 8 units" in out
    found = diagnosed(path)
    assert (path / "run.json").read_bytes() == before and record.validate(path) == []
    assert found["cell"] == known["cell"] and found["step"] == known["selected_step"]
    assert sum(found["units"]["rate"]) == pytest.approx(known["summary"]["test"]["kl"], rel=1e-4)
    assert found["distortion_by_noise"].keys() == {"0.0", "0.25", "0.5", "1.0"}
    assert set(found["verdicts"]) == {"weak"} and len(found["flags"]) == 8
    assert found["thresholds"]["information"] == 0.05 and found["lag"]["sentences"] == 10
    assert len(found["trajectory"]["steps"]) == len(found["trajectory"]["signal"])
    assert found["reading"]["apart"]["candidates"] == 8 and found["reading"]["by_position"]
    page = (path / "diagnosis.html").read_text()
    assert page.startswith("<!doctype html>") and "<svg" in page
    assert {*re.findall(r"https?://[^/\"]*", page)} <= {"http://www.w3.org"}  # of the SVG's names
    # with no threshold to speak of, no unit is weak
    assert diagnose.main([str(path), *FAST, "information=1e-9", "signal=1e-9", "read=1e-9"]) == 0
    assert "weak" not in diagnosed(path)["verdicts"]


def test_a_placebo_is_diagnosed_on_what_it_read(trained):
    path, known = trained("placebo=true")
    assert diagnose.main([str(path), *FAST]) == 0
    found = diagnosed(path)
    assert sum(found["units"]["rate"]) == pytest.approx(known["summary"]["test"]["kl"], rel=1e-4)
    assert found["probes"]["label"]["state"] is not None  # of the sentence that is scored


@pytest.mark.parametrize("method", ["temporal_delta_vae", "zforcing"])
def test_codes_with_a_step_for_each_word_have_honest_nulls(method, trained, capsys):
    path, known = trained(f"method={method}")
    assert diagnose.main([str(path), *FAST]) == 0
    found = diagnosed(path)
    assert sum(found["units"]["rate"]) == pytest.approx(known["summary"]["test"]["kl"], rel=1e-4)
    assert found["units"]["information"] is found["lag"] is found["reading"]["apart"] is None
    assert {"units/information", "lag", "reading/apart"} <= found["notes"].keys()
    assert found["reading"]["sensitivity"] and len(found["verdicts"]) == len(found["units"]["read"])


def test_a_language_model_is_asked_whether_a_latent_could_pay(trained, capsys):
    path, _ = trained("method=lm")
    assert diagnose.main([str(path)]) == 0
    found = diagnosed(path)
    assert found["residuals"]["verdict"] in ("could pay", "no sign", "unclear")
    assert "no latent" in found["notes"]["units"] and "verdicts" not in found
    assert "latent" in capsys.readouterr().out


def test_a_replay_tells_what_nobody_kept(trained):
    path, known = trained("model.latent=2")
    assert diagnose.main([str(path), *FAST, "--replay"]) == 0
    found = diagnosed(path)
    for name in ("gradients", "drift", "planes"):
        assert found[name]["exact"] is True, name
        assert found[name]["steps"][-1] == known["cost"]["steps"]
    assert len(found["gradients"]["rec"]["snr"]) == len(found["gradients"]["steps"])
    assert found["drift"]["drift"][0] is None and len(found["drift"]["drift"][1]) == 2
    assert found["plane"]["truth"] and "<svg" in (path / "plane.svg").read_text()
    assert (path / "plane.gif").read_bytes()[:4] == b"GIF8"
    assert record.validate(path) == []


def test_it_intervenes(trained):
    path, _ = trained()
    assert diagnose.main([str(path), *FAST, "--intervene"]) == 0
    found = diagnosed(path)["interventions"]
    assert {"unchanged", "samples", "batch", "warm", "reset"} <= found["branches"].keys()
    assert found["cause"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{}", "sentence=4"], "did you mean 'sentences'"),
        (["{}", "sentences=1"], "sentences must be at least 2, not 1"),
        (["{}", "signal=x"], "signal"),
        (["{}", "read=-1"], "read must be above 0"),
        (["{}", "--retry"], "there is no flag --retry"),
        (["{}", "{}"], "name one run directory"),
        (["{}"], "no run"),
    ],
)
def test_a_wrong_word_is_told(words, told, tmp_path, capsys):
    assert diagnose.main([word.format(tmp_path) for word in words]) == 1
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_run_that_is_being_written_is_left_alone(trained, capsys):
    path, _ = trained()
    with record.RunDirectory(path).lease():
        assert diagnose.main([str(path), *FAST]) == 1
    assert "is being written by another process" in capsys.readouterr().err


def test_help_needs_no_torch():
    asked = "import sys; from benchmark import diagnose; diagnose.main(['--help'])"
    code = f"{asked}; assert not {{'torch', 'matplotlib'}} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_units_of_several_runs_in_one_picture(trained, tmp_path, capsys):
    runs = [trained()[0], trained("placebo=true")[0]]
    for path in runs:
        if not (path / "diagnosis.json").exists():
            assert diagnose.main([str(path), *FAST]) == 0
    out = tmp_path / "units.svg"
    assert together.main([str(out), *map(str, runs)]) == 0
    drawn = out.read_text()
    ElementTree.fromstring(drawn)
    assert "of 16 units" in drawn
    assert together.main([str(out), str(tmp_path)]) == 1
    assert "python -m benchmark.diagnose RUN_DIR makes it" in capsys.readouterr().err
