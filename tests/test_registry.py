"""The registry as a list, and the rates that methods may be told to have."""

import math
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from benchmark import compose, methods
from benchmark.compose import CONFIGS, UserError
from benchmark.run import planned
from benchmark.task import CellTask

RATES = OmegaConf.load(CONFIGS / "rates.yaml")


@pytest.fixture
def ready():
    with compose.hydra_ready():
        yield


@pytest.fixture(scope="module")
def found():
    with compose.hydra_ready():
        return {entry.name: entry for entry in methods.entries(compose.options("method"))}


def test_every_config_is_listed_with_a_source_and_a_line(found):
    assert {*found} == {path.stem for path in (CONFIGS / "method").glob("*.yaml")}
    for entry in found.values():
        assert entry.source == methods.OURS or entry.source[-4:].isdigit(), entry.name
        assert entry.summary.endswith("."), entry.name


def test_every_parameter_has_a_meaning_and_the_value_that_is_run(found, ready):
    for entry in found.values():
        assert all(p.meaning for p in entry.parameters), entry.name
    for name in ("cyclical_annealing", "delta_vae", "stack"):
        values = compose.cell([f"method={name}"])[0].method
        assert [p.name for p in found[name].parameters] == [key for key in values if key != "name"]
    assert {p.name: p.value for p in found["cyclical_annealing"].parameters}["cycles"] == "4"


@pytest.mark.parametrize(
    "name, slots, source",
    [
        ("vae", (), "Kingma and Welling, ICLR 2014"),
        ("free_bits", ("objective",), "Kingma et al., NeurIPS 2016"),
        ("word_dropout", ("corrupt",), "Bowman et al., CoNLL 2016"),
        ("aggressive", ("step",), "He et al., ICLR 2019"),
        ("zforcing", ("model", "objective"), "Goyal et al., NeurIPS 2017"),
        ("cyclical_annealing", ("objective",), "Fu et al. 2019"),
        ("lm_matched", ("model",), methods.OURS),
        ("stack", ("objective", "corrupt", "step"), methods.OURS),
    ],
)
def test_slots_and_sources(found, name, slots, source):
    assert (found[name].slots, found[name].source) == (slots, source)


def test_the_first_source_of_a_text_counts():
    assert methods.source(
        ["None.", "By Zhao, Zhao and Eskenazi (ACL 2017), as He et al. (2019)."]
    ) == ("Zhao, Zhao and Eskenazi, ACL 2017")
    assert methods.source(["This suite's own, beside Li et al. (2019)."]) == methods.OURS
    assert methods.source(["Nobody's."]) == ""


def listed(capsys, *words: str) -> list[str]:
    """The lines that the command begins entries with."""
    assert methods.main(words) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line[:1].strip()]


def test_the_list_is_filtered(capsys):
    head = "word_dropout  [corrupt]  Bowman et al., CoNLL 2016"
    assert listed(capsys, "method=word_dropout,vae", "slot=corrupt,model") == [head]
    assert listed(capsys, "method=word_dropout,vae", "slot=none")[0].startswith("vae  [none]  ")


def test_an_entry_says_what_is_to_be_set(found):
    told = methods.told(found["delta_vae"])
    assert told.startswith("delta_vae  [model]  Razavi et al., ICLR 2019; rate=R sets its rate\n")
    assert "\n      delta=0.15  Committed rate, nats a unit" in told
    assert max(map(len, told.splitlines())) <= methods.WIDTH


@pytest.mark.parametrize(
    "word, said",
    [
        ("slot=objectiv", "there is no slot 'objectiv'; did you mean 'objective'?"),
        ("method=free_bit", "did you mean 'free_bits'?"),
        ("objective", "write slot=SLOT or method=NAME"),
    ],
)
def test_a_wrong_filter_is_told(word, said, capsys):
    assert methods.main(["method=vae", word]) == 1
    assert said in capsys.readouterr().err


def test_the_command_prints_the_list():
    command = [sys.executable, "-m", "benchmark.methods", "slot=step", "method=aggressive"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.startswith("aggressive  [step]  He et al., ICLR 2019\n")
    assert "window=15  Encoder updates" in told


# -- rates ----------------------------------------------------------------------------------------


def test_the_grid_of_rates(ready):
    assert list(RATES) == [0.5, 1, 2, 4, 8]
    words = ["method=free_bits,delta_vae", "rate=all"]
    cells = [(cell[0], cell[1]) for cell in compose.sweep(words)]
    assert cells == [
        (f"method={name}", f"rate={rate}") for name in ("free_bits", "delta_vae") for rate in RATES
    ]


def test_where_a_rate_is_asked_for_all_methods_are_those_that_have_one(found, ready):
    cells = compose.sweep(["method=all", "rate=2"])
    assert [cell[0] for cell in cells] == [
        f"method={entry.name}" for entry in found.values() if entry.sets_rate
    ]
    assert len(cells) > 2


def test_every_method_that_sets_a_rate_takes_the_grids_ends(found, ready):
    for name in (entry.name for entry in found.values() if entry.sets_rate):
        for rate in (min(RATES), max(RATES)):
            config, _ = compose.cell([f"method={name}", f"rate={rate}"])
            assert config.method.target == rate
            assert compose.make_method(config.method).target == rate
            assert "rate" not in config and "aim" not in config.method


def test_a_rate_is_its_methods_fields_in_other_words(ready):
    (one, config), (other, same) = (
        next(iter(planned(words)))
        for words in (
            ["method=delta_vae", "rate=2"],
            ["method=delta_vae", "method.target=2", "method.delta=null"],
        )
    )
    assert one.id == other.id and config == same
    assert one.variant == "delta_vae rate=2"
    plain, _ = next(iter(planned(["method=delta_vae"])))
    assert plain.id != one.id


def test_a_rate_holds_against_the_papers(ready):
    config, _ = compose.cell(["method=pretrain_free_bits", "rate=2", "budget=paper"])
    assert config.method.target == 2 and config.budget.learning_rate == 0.5


@pytest.mark.parametrize(
    "words, said",
    [
        ("method=vae rate=2", "method 'vae' does not set its rate; leave rate=2 out, or choose"),
        ("method=free_bits rate=0", "rate must be a number of nats above 0, not 0"),
        ("method=free_bits rate=-1", "rate must be a number of nats above 0, not -1"),
        ("method=free_bits rate=many", "rate must be a number of nats above 0, not many"),
        ("method=free_bits rate=true", "rate must be a number of nats above 0, not True"),
        ("method=free_bits rate=inf", "rate must be a number of nats above 0, not inf"),
        ("method=free_bits rate=all", "rate=all is more than one cell; add -m"),
        ("method=free_bits rate=2 method.target=3", "rate=2 and method.target both say which"),
        ("method=free_bits rate=2 method.floor=1", "rate=2 and method.floor both say which"),
        ("method=free_bits method.aim={}", "method.aim is not to be set"),
        ("method=free_bits method.aim.floor=1", "method.aim.floor is not to be set"),
    ],
)
def test_a_rate_that_cannot_be_is_told(ready, words, said):
    with pytest.raises(UserError, match=said):
        compose.cell(words.split())


def test_what_goes_with_a_target_may_be_set_beside_a_rate(ready):
    config, _ = compose.cell(["method=temporal_delta_vae", "rate=2", "method.channels=3"])
    assert (config.method.target, config.method.channels) == (2, 3)


def test_a_committed_rate_in_total_is_shared_by_the_units(found, ready):
    cls = compose.find_method("delta_vae")
    with pytest.raises(ValueError, match="set one of"):
        cls(delta=0.1, target=1.0)
    with pytest.raises(ValueError, match="too large"):
        cls(delta=400.0).recipe(CellTask(**methods.TASK))
    encoder = cls(delta=None, target=2.0).recipe(CellTask(**methods.TASK)).model.encoder
    assert math.isclose(encoder.delta, 2.0 / 4)
