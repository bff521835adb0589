"""`python -m benchmark.check` catches planted faults by name, and is quiet where there are none."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from benchmark import check, promises
from benchmark.compose import defaults
from benchmark.trial import Skip, subject
from tests.cells import spent_by_children

HERE = Path(__file__).parent
BROKEN, SOUND = HERE / "broken", HERE / "sound"
PLANTED = {
    "parameter_never_learns": {"every_parameter_learns": "`model.decoder.gate` never learns"},
    "parameter_in_no_part": {"builds": "`scale` is in 0 parts"},
    "dead_knob": {"every_field_matters": "`floor` changes nothing: .* between 0.5 and 2.0"},
    "dead_selection": {"every_field_matters": "`ramp` changes nothing: .* between 0.4 and 0.8"},
    "undocumented_field": {
        "is_documented": "`width` has no docstring",
        "every_field_matters": "`width` has no other value to try",
    },
    "corrupts_targets": {"corruption_spares_the_targets": "corruption changes `targets`"},
    "reads_targets": {"inference_reads_the_source": "where only `targets` changed"},
    "averages_tokens": {
        "the_objective_sums_over_tokens": "0.1/B in a sentence of 10 tokens and 0.2/B in one of 5"
    },
    "averages_units": {"the_objective_sums_over_units": "weighs 0.25/B, but 0.125/B"},
    "wrong_kl": {"the_kl_is_that_of_the_codes": r"`kl` is .* but log q - log p .* averages"},
    "forgets_state": {"training_resumes_exactly": "differs at step 14 after a resume at step 13"},
    "noisy_evaluation": {
        "evaluation_changes_nothing": "in one evaluation and .* in the next",
        "scores_agree": "`log_px` differs by",
        "a_sentence_is_scored_alone": "`log_px` of a sentence differs by",
    },
    "learns_in_evaluation": {
        "evaluation_changes_nothing": "`model.encoder.seen` differs at step 14 if .* evaluated"
    },
    "unrepeatable_step": {"the_seed_decides": "two runs of one seed differ: .* at step 1"},
    "two_decoder_updates": {
        "a_step_updates_the_decoder_once": "step 1 updates the decoder 2 times, not once"
    },
    "reads_padding": {"a_sentence_is_scored_alone": "between alone and before padding"},
    "other_score": {"scores_agree": "`log_px` differs by 1 between"},
    "writes_on": {"the_model_writes_sentences": "does not write PAD behind </s>"},
}
"""Fault -> every promise that it breaks, and what is said."""


def planted(name: str, folder: Path = BROKEN, **values: Any) -> DictConfig:
    """The configuration of a method that only tests know."""
    (config,) = check.configure(["method=vae"])
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    fields = {
        key: getattr(v, "name", v) for key, v in defaults({"name": name}).items()
    }  # an enum's
    config.method = {"name": name} | fields | values
    return config


def all_findings(config: DictConfig) -> dict[str, list[str]]:
    found = {}
    with subject(config) as s:
        for promise in promises.PROMISES:
            try:
                found[promise.__name__] = promises.findings(promise, s)
            except Skip:
                continue
            if promise in promises.FIRST and found[promise.__name__]:
                break
    return {name: texts for name, texts in found.items() if texts}


def test_every_planted_method_is_listed():
    assert {path.stem for path in BROKEN.glob("*.py")} == PLANTED.keys()


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_named(name):
    found = all_findings(planted(name))
    assert found.keys() == PLANTED[name].keys(), found
    for promise, words in PLANTED[name].items():
        assert any(re.search(words, text) for text in found[promise]), found


@pytest.mark.parametrize(
    "by, words",
    [
        ("batch", "0.1/B in a sentence"),
        ("task", "at step 0"),
        ("none", "6/B in 6 sentences and 12/B in 12"),
    ],
)
def test_other_ways_to_average_are_caught(by, words):
    with subject(planted("averages_tokens", by=by)) as s:
        (found,) = promises.findings(promises.the_objective_sums_over_tokens, s)
    assert words in found


@pytest.mark.parametrize(
    "name, values",
    [
        ("code_for_each_step", {}),
        ("implicit_prior", {}),
        ("implicit_prior", {"noise": "decaying", "half_life": 3.0}),
    ],
)
def test_sound_methods_of_other_kinds_are_left_in_peace(name, values):
    """Codes for each step under a learned prior; codes without densities; slots with state."""
    assert all_findings(planted(name, SOUND, **values)) == {}


def test_an_error_of_the_method_is_a_finding():
    with subject(planted("dead_knob", weight="heavy")) as s:
        (found,) = promises.findings(promises.trains, s)
    assert "heavy" in found and "line" in found


def command(*words: str) -> tuple[int, str, str, float]:
    """Exit status, output, errors and seconds of the command."""
    began = spent_by_children()
    done = subprocess.run(
        [sys.executable, "-m", "benchmark.check", *words], capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr, spent_by_children() - began


def test_the_command_lists_promises_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    status, output, errors, seconds = command("method=vae")
    assert (status, errors) == (0, "")
    assert output.count("  ok  ") + output.count("  --  ") == len(promises.PROMISES)
    assert "vae keeps its promises" in output
    assert not [*tmp_path.iterdir()]
    assert seconds < 120


def test_findings_are_listed_and_the_status_is_1(capsys):
    assert check.check(planted("dead_knob")) == check.BROKEN
    output = capsys.readouterr().out
    assert "BROKEN Training changes if a hyper-parameter changes" in output
    assert "       - `floor` changes nothing: no loss, parameter or score differs" in output
    assert f"dead_knob breaks 1 of {len(promises.PROMISES)} promises" in output


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["method=vea"], "there is no method 'vea'; did you mean 'vae'?"),
        (["method=kl_annealing", "method.rampe=1"], "did you mean 'method.ramp'?"),
        (["method=kl_annealing", "method.ramp=2"], "method.ramp"),
        ([], "method=NAME"),
    ],
)
def test_bad_words_end_in_one_sentence(words, sentence):
    status, output, errors, seconds = command(*words)
    assert status == check.USAGE and output == ""
    assert sentence in errors and errors.count("\n") == 1
    assert seconds < 10


def test_help_needs_no_torch():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['check', '--help']\n"
        "try: runpy.run_module('benchmark.check', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "method=NAME" in done.stdout
