"""Cells and their identity."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from benchmark.config import Config, Dataset, Halving
from benchmark.grid import CONTENT, LISTED, Cell, identity

BASE = {
    "method": {"name": "m", "target": 2.0, "ramp": 0.4, "per_unit": True},
    "dataset": {
        **{"name": "d", "hub": "a/b", "vocabulary": 100, "columns": ["text"]},
        **{"generator": {"kind": "tables", "scale": 2}, "batch_size": 32, "learning_rate": 0.001},
        "sizes": {"embedding": 8, "hidden": 8, "latent": 2, "dropout": 0.0},
    },
    "model": {"embedding": 8, "hidden": 8, "latent": 2, "dropout": 0.5},
    "budget": {
        **{"name": "default", "epochs": 10, "batch_size": 32, "optimiser": "adam"},
        **{"learning_rate": 0.001, "clip": 5.0, "select": "nll"},
    },
}
DEFAULTS = {"target": 1.0, "ramp": 0.4, "per_unit": False}


SCHEMA = OmegaConf.merge(OmegaConf.structured(Config), BASE)


def config(**changes: object) -> DictConfig:
    """BASE with some dotted keys set ("budget__clip" is budget.clip)."""
    made = SCHEMA.copy()
    for key, value in changes.items():
        OmegaConf.update(made, key.replace("__", "."), value)
    return made  # type: ignore[return-value]


def test_imports_neither_torch_nor_pandas():
    code = (
        "import sys, benchmark.record, benchmark.grid, benchmark.lease;"
        "assert not {'torch', 'pandas'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_identity_is_this_one():
    """A change here orphans every result there is: raise SCHEMA_VERSION if it is meant."""
    assert identity(config(), DEFAULTS) == "50b3296705a4"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("method__name", "other"), ("method__target", 3.0), ("method__per_unit", False)],
        *[("dataset__name", "e"), ("dataset__hub", "a/c")],
        *[("dataset__hub_config", "x"), ("dataset__revision", "r"), ("dataset__label", "l")],
        *[("dataset__generator", {"kind": "tables", "scale": 3}), ("dataset__columns", ["t"])],
        *[("dataset__join", "\n"), ("dataset__splits", {"test": "t"}), ("dataset__min_count", 2)],
        *[("dataset__sentences", {"test": 9}), ("dataset__distinct", True)],
        *[("dataset__split_seed", 1), ("dataset__tokens", "split"), ("dataset__max_tokens", 9)],
        *[("dataset__overlong", "cut"), ("dataset__vocabulary", 101)],
        *[(f"model__{size}", 9) for size in ("embedding", "hidden", "latent")],
        *[("model__dropout", 0.25), ("batching", "bucketed"), ("precision", "bf16")],
        ("placebo", True),
        *[("budget__name", "paper"), ("budget__epochs", 11), ("budget__steps", 5)],
        *[("budget__batch_size", 16), ("budget__optimiser", "sgd"), ("budget__clip", 1.0)],
        *[("budget__learning_rate", 0.01), ("budget__select", "neg_elbo")],
        *[
            ("budget__halving", Halving()),
            ("budget__halving", Halving(most=4)),
            ("budget__max_hidden", 8),
        ],
        *[("budget__max_embedding", 8), ("budget__evaluation__nll_samples", 50)],
    ],
)
def test_what_defines_a_result_changes_the_identity(key: str, value: object):
    assert identity(config(**{key: value}), DEFAULTS) != identity(config(), DEFAULTS)


def test_halving_with_other_fields_is_another():
    default, other = (config(budget__halving=Halving(most=most)) for most in (5, 4))
    assert identity(default, DEFAULTS) != identity(other, DEFAULTS)


def test_what_a_method_is_made_of_is_part_of_what_it_is():
    """And a field that a part gains later, at its default, is not."""
    parts = {"a": {"name": "one", "x": 1}, "b": {"name": "two", "x": 5}}
    neutral = {"a": {"x": 1}, "b": {"x": 1}}

    def of(parts: dict, neutral: dict) -> str:
        made = config()
        OmegaConf.set_struct(made, False)
        made.method = {"name": "both", "parts": parts}
        return identity(made, {"parts": neutral})

    known = of(parts, neutral)
    assert of(parts | {"a": {"name": "one", "x": 2}}, neutral) != known
    assert of(parts | {"a": {"name": "other", "x": 1}}, neutral) != known
    assert of({"a": parts["a"]}, neutral) != known
    grown = {name: part | {"new": 7} for name, part in parts.items()}
    assert of(grown, {name: part | {"new": 7} for name, part in neutral.items()}) == known
    assert of(parts, {"a": {"x": 1}, "b": {"x": 5}}) != known  # only what leaves its default


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("seed", 3), ("device", "cuda"), ("threads", 1), ("results_dir", "r")],
        *[
            ("data_dir", "x"),
            ("stop_after", 0.5),
            ("save_every", 0.0),
            ("dataset__path", "/elsewhere"),
        ],
        *[("dataset__batch_size", 8), ("dataset__learning_rate", 0.5)],
        *[("dataset__licence", "none"), ("dataset__sizes__hidden", 99)],
        ("budget__evaluation__every", 10),
    ],
)
def test_what_changes_no_result_changes_no_identity(key: str, value: object):
    assert identity(config(**{key: value}), DEFAULTS) == identity(config(), DEFAULTS)


def test_every_option_is_decided_on():
    """A new option fails here until someone says whether it defines a result."""
    elsewhere = {"path", "sizes", "batch_size", "learning_rate", "nll_sentences", "licence"}
    assert {f.name for f in fields(Dataset)} == {*CONTENT} | elsewhere
    silent = {"dataset", "seed", "device", "threads", "results_dir", "data_dir"}
    silent |= {"stop_after", "save_every"}
    assert {f.name for f in fields(Config)} == {*LISTED} | silent


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_keys_changes_nothing(random):
    def shuffled(node):
        if not isinstance(node, dict):
            return node
        keys = random.sample(list(node), len(node))
        return {key: shuffled(node[key]) for key in keys}

    mixed = OmegaConf.create(shuffled(BASE))
    assert identity(mixed, shuffled(DEFAULTS)) == identity(config(), DEFAULTS)


values = st.one_of(
    *[st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False)],
    st.lists(st.integers(), max_size=3),
    st.text(st.characters(codec="ascii", categories=["L"]), max_size=5),
)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.from_regex(r"new_[a-z]{1,5}", fullmatch=True), values, max_size=4))
def test_new_fields_at_their_default_change_nothing(new):
    grown = config()
    OmegaConf.set_struct(grown, False)
    grown.method = {**BASE["method"], **new}
    assert identity(grown, {**DEFAULTS, **new}) == identity(config(), DEFAULTS)
    if new:
        assert identity(grown, DEFAULTS) != identity(config(), DEFAULTS)


@settings(max_examples=25, deadline=None)
@given(st.integers(-(2**53), 2**53))
def test_whole_floats_and_integers_are_one(n):
    for key in ("method__target", "model__dropout", "budget__clip"):
        whole, real = config(**{key: n}), config(**{key: float(n)})
        assert identity(whole, DEFAULTS) == identity(real, DEFAULTS)


def test_truth_and_one_are_two():
    assert identity(config(method__per_unit=1), DEFAULTS) != identity(config(), DEFAULTS)


def test_a_stored_configuration_keeps_its_identity(tmp_path: Path):
    resolved = config()
    OmegaConf.save(resolved, tmp_path / "config.yaml")
    assert identity(OmegaConf.load(tmp_path / "config.yaml"), DEFAULTS) == identity(  # type: ignore[arg-type]
        resolved, DEFAULTS
    )


def test_references_are_followed():
    referring = config()
    referring.model.hidden = "${dataset.sizes.hidden}"
    assert identity(referring, DEFAULTS) == identity(config(), DEFAULTS)


def test_a_cell_knows_its_place():
    cell = Cell("yelp", "free_bits", "free_bits target=8", 3, "0123456789ab")
    assert cell.key == "yelp/free_bits/0123456789ab/3"
    assert cell.path("results") == Path("results/yelp/free_bits/0123456789ab/s3")


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc", "a\\b", ".hidden", "a\n", "~", "é"])
def test_names_that_would_escape_are_refused(name: str):
    for dataset, method in ((name, "m"), ("d", name)):
        with pytest.raises(ValueError, match="cannot name a folder"):
            Cell(dataset, method, "v", 0, "0" * 12)


@pytest.mark.parametrize(("seed", "id_"), [(-1, "0" * 12), (0, "../../../etc"), (0, "0" * 11)])
def test_a_wrong_seed_or_id_is_refused(seed: int, id_: str):
    with pytest.raises(ValueError, match=r"seed|id"):
        Cell("d", "m", "v", seed, id_)
