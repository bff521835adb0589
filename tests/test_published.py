"""The published figures: as many as were copied, as printed, and consistent but for the misprints
that they are known for."""

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from benchmark.record import SUMMARY
from leaderboard import published
from leaderboard.published import COLUMNS, FROM_MEMORY, KEY, SOURCE, beside, comparable, load

ROOT = Path(__file__).parents[1]
TABLE = load()
MISPRINT = "as printed"

COUNTS = {
    # two quoted models of 2 figures, one LM, ten models of 3
    ("he2019lagging-submission", "1", "yahoo"): 2 * 2 + 1 + 10 * 3,
    ("he2019lagging-submission", "1", "yelp"): 2 + 1 + 10 * 3,
    # one quoted model of 2, two of 1, PixelCNN, ten models of 3
    ("he2019lagging-submission", "1", "omniglot"): 2 + 2 + 1 + 10 * 3,
    ("he2019lagging-submission", "2", "yahoo"): 3,
    ("he2019lagging-submission", "2", "yelp"): 3,
    ("he2019lagging-submission", "2", "omniglot"): 3,
    # the LM, two models of 4; on Omniglot three of 4
    ("he2019lagging", "1", "yahoo"): 1 + 2 * 4,
    ("he2019lagging", "1", "yelp"): 1 + 2 * 4,
    ("he2019lagging", "1", "omniglot"): 3 * 4,
    # LM 2, auto-encoder 3, whole rows of 6, GPT-2 1
    ("li2020optimus", "8", "ptb"): 2 + 3 + 4 * 6 + 1 + 3 * 6,
    ("li2020optimus", "10", "yahoo"): 2 + 3 + 5 * 6 + 1 + 3 * 6,
    # LM 1, auto-encoder 2
    ("li2020optimus", "11", "snli"): 1 + 2 + 4 * 6 + 1 + 3 * 6,
    # annealed 6, SA-VAE 5, LM 1, auto-encoder 1, aggressive 3, Optimus 6
    ("li2020optimus", "9", "yelp"): 6 + 5 + 1 + 1 + 3 + 6,
    ("li2020optimus", "1 or 9, first figure", "yelp"): 2,
    ("li2020optimus", "1 or 9, second figure", "yelp"): 2,
    # LM 1, AE+FB 3; cyclical 3; cyclical 1, GPT-2 1
    ("li2020optimus", "1", "yelp"): 1 + 3,
    ("li2020optimus", "1", "yahoo"): 3,
    ("li2020optimus", "1", "snli"): 2,
    # the LM has no KL
    ("kim2018semi", "2", "yahoo"): 2 + 9 * 3,
    ("kim2018semi", "unknown", "omniglot"): 1 + 2,
    # LSTM 2 + 3, SCNN 1 + 2, MCNN 2, LCNN 1 + 2 + 3, VLCNN 2; LSTM 2 + 3, LCNN 3
    ("yang2017improved", "1-2", "yahoo"): 5 + 3 + 2 + 6 + 2,
    ("yang2017improved", "1-2", "yelp"): 5 + 3,
    # vMF without an MI; vMF without MI and AU
    ("zhu2020batch", "1", "yahoo"): 7 * 4 + 3,
    ("zhu2020batch", "1", "yelp"): 6 * 4 + 2,
}


def figure(paper: str, table: str, dataset: str, model: str, metric: str) -> pd.Series:
    key = (paper, table, dataset, model, metric)
    found = TABLE[[tuple(row) == key for row in TABLE[list(KEY)].itertuples(index=False)]]
    assert len(found) == 1
    return found.iloc[0]


def models() -> dict[tuple[str, ...], pd.DataFrame]:
    """The rows of each model in each table, by metric."""
    groups = TABLE.groupby(["paper", "table", "dataset", "model"])
    return {name: rows.set_index("metric") for name, rows in groups}  # pyright: ignore


def test_every_table_is_whole():
    assert TABLE.groupby(["paper", "table", "dataset"]).size().to_dict() == COUNTS
    assert len(TABLE) == 440


@pytest.mark.parametrize(
    ("paper", "table", "dataset", "model", "metric", "value"),
    [
        ("he2019lagging-submission", "1", "yahoo", "LSTM-LM", "nll", 328.1),
        ("he2019lagging-submission", "1", "yahoo", "aggressive+anneal", "nll", 326.6),
        ("he2019lagging-submission", "1", "yahoo", "beta .6", "kl", 0.1),
        ("he2019lagging-submission", "1", "yelp", "SA-VAE+anneal", "mi", 1.3),
        ("he2019lagging-submission", "1", "omniglot", "beta .2", "kl", 69.1),
        ("he2019lagging-submission", "2", "yelp", "SA-VAE", "train_hours", 59.37),
        ("he2019lagging", "1", "yahoo", "aggressive+anneal", "au", 15.0),
        ("li2020optimus", "8", "ptb", "Cyclical", "neg_elbo", 102.81),
        ("li2020optimus", "8", "ptb", "Optimus lambda 1", "neg_elbo", 77.65),
        ("li2020optimus", "10", "yahoo", "Optimus lambda .05", "neg_elbo", 282.70),
        ("li2020optimus", "11", "snli", "AE+FB", "rec", 24.94),
        ("li2020optimus", "9", "yelp", "SA-VAE", "au", 8),
        ("li2020optimus", "1", "yahoo", "Cyclical", "ppl", 66.93),
        ("kim2018semi", "2", "yahoo", "Word-drop 50 %", "kl", 5.29),
        ("yang2017improved", "1-2", "yelp", "LSTM-VAE", "nll", 372.2),
        ("zhu2020batch", "1", "yahoo", "Skip", "au", 8.1),
        ("zhu2020batch", "1", "yelp", "BN(.7)", "mi", 7.4),
    ],
)
def test_spot_values(paper, table, dataset, model, metric, value):
    assert figure(paper, table, dataset, model, metric)["value"] == value


def test_columns_and_types():
    assert tuple(TABLE.columns) == COLUMNS
    assert TABLE["value"].dtype == float and TABLE["comparable"].dtype == bool
    assert set(published.UNITS) - {"train_hours"} <= SUMMARY.keys()
    methods = {path.stem for path in (ROOT / "configs" / "method").glob("*.yaml")}
    assert set(TABLE["method"]) - {""} <= methods
    datasets = {path.stem for path in (ROOT / "configs" / "dataset").glob("*.yaml")}
    assert set(TABLE["dataset"]) - {"omniglot"} <= datasets
    assert published.DRAWN_FROM.keys() <= datasets


def test_the_elbo_is_rec_plus_kl_but_for_the_misprints():
    wrong, flagged, checked = set(), set(), 0
    for name, rows in models().items():
        if {"neg_elbo", "rec", "kl"} <= set(rows.index):
            rows = rows.loc[["neg_elbo", "rec", "kl"]]
            elbo, rec, kl = rows["value"]
            checked += 1
            if abs(elbo - rec - kl) > 0.0101:  # each is rounded to a hundredth
                wrong.add(name[2:])
            if rows["why_not"].str.startswith(MISPRINT).any():
                flagged.add(name[2:])
    assert checked == 7 + 8 + 7 + 3  # Tables 8, 10, 11 and 9
    expected = {
        ("ptb", "Cyclical"),
        ("ptb", "Optimus lambda 1"),
        ("yahoo", "SA-VAE"),
        ("yahoo", "Optimus lambda .05"),
    }
    assert wrong == flagged == expected


TOKENS = {"ptb": (21.916, 21.919), "yahoo": (79.845, 79.885), "yelp": (96.63, 96.74)}
"""Predicted tokens a test sentence: nll / ln ppl, with all that rounding leaves open."""


def test_perplexities_are_per_word_with_the_end_counted():
    low, high = TOKENS["ptb"]
    assert low < (78_669 + 3_761) / 3_761 < high  # Mikolov's test words, and an end a sentence
    held = []
    for (paper, _, dataset, model), rows in models().items():
        cost = next((metric for metric in ("nll", "neg_elbo") if metric in rows.index), None)
        if dataset not in TOKENS or cost is None or "ppl" not in rows.index:
            continue
        low, high = TOKENS[dataset]
        tokens = rows.loc[cost, "value"] / math.log(rows.loc["ppl", "value"])
        if rows["why_not"].str.startswith(MISPRINT).any():
            continue
        if rows.loc["ppl", "unit"] == "per subword":
            assert tokens > 1.1 * high
            assert rows.loc["ppl", "why_not"] == "perplexity per sub-word"
        elif model == "LSTM-LM" or paper in ("kim2018semi", "yang2017improved"):
            assert low < tokens < high
            held.append((paper, dataset))
        else:  # importance-weighted: no more than the ELBO's, and so as if of more tokens
            assert tokens > low
    assert Counter(held) == {
        ("li2020optimus", "ptb"): 1,
        ("li2020optimus", "yahoo"): 1,
        ("kim2018semi", "yahoo"): 10,
        ("yang2017improved", "yahoo"): 3,
        ("yang2017improved", "yelp"): 3,
    }


def test_a_perplexity_per_sub_word_is_far_from_one_per_word():
    elbo = figure("li2020optimus", "8", "ptb", "Optimus lambda .05", "neg_elbo")["value"]
    assert math.exp(elbo / 21.917) == pytest.approx(64.5, abs=0.05)


def test_what_was_not_read_again_is_never_comparable():
    memory = TABLE[TABLE["status"] == FROM_MEMORY]
    assert len(memory) == 30 + (32 - 4) + (26 - 4) + 57  # all but what other papers quote
    assert not memory["comparable"].any()
    for row in memory.to_dict("records"):
        told = comparable(row | {"comparable": True}, **same(row))  # even if a row claimed it
        assert told == (False, "the figure is from memory")


def test_misprints_are_not_comparable():
    misprints = TABLE[TABLE["why_not"].str.startswith(MISPRINT)]
    # cyclical 3, lambda 1; SA-VAE 4, lambda .05; Yelp's 3 from Yahoo's, and Yang et al.'s
    assert len(misprints) == 4 + 5 + 4
    assert set(misprints["paper"]) == {"li2020optimus"}
    assert not TABLE[TABLE["unit"] == "per subword"]["comparable"].any()


def same(row: dict) -> dict:
    """A run of ours that has all of a row's."""
    ours = {
        "1 sample ELBO": None,
        "iwae K=500": "iwae K=500 n=3761",
        "mixture whole split": "mixture n=3761",
        "mixture batch 32": "mixture n=32",
    }
    sizes = dict(zip(published.SIZES, (row["sizes"] or "1/1/1").split("/"), strict=True))
    return {
        "data_hash": row["hash"],
        "sizes": {name: 0 if size == "-" else int(size) for name, size in sizes.items()},
        "estimator": ours.get(row["estimator"], row["estimator"]),
    }


def test_only_figures_on_known_files_are_comparable():
    rows = TABLE.to_dict("records")
    found = [row for row in rows if comparable(row, **same(row))[0]]
    # on PTB: the LM's 2; the ELBO, KL and Rec of three models; the auto-encoded one's MI
    assert len(found) == 2 + 3 * 3 + 1
    assert {row["dataset"] for row in found} == {"ptb"}
    for row in rows:
        if row["comparable"] and row["dataset"] != "ptb":
            good, why = comparable(row, **same(row))
            assert not good and "no hash is known" in why and row["data"] in why


def test_each_difference_is_named():
    row = figure("li2020optimus", "8", "ptb", "LSTM-LM", "neg_elbo")
    ours = same(row.to_dict())
    assert comparable(row, **ours) == (True, "")
    for change, word in (
        ({"data_hash": "0" * 64}, "hashes differ"),
        ({"data_hash": None}, "hashes differ"),
        ({"sizes": ours["sizes"] | {"hidden": 512}}, "hidden size 512"),
        ({"sizes": {}}, "embedding size None"),
        ({"estimator": "iwae K=500 n=3761"}, "by exact"),
    ):
        good, why = comparable(row, **(ours | change))
        assert not good and word in why
    assert comparable(row, **(ours | {"sizes": ours["sizes"] | {"latent": 8}}))[0]  # an LM has none
    assert "sizes" in comparable(row.to_dict() | {"sizes": ""}, **ours)[1]


@pytest.mark.parametrize(
    ("theirs", "ours", "match"),
    [
        ("iwae K=500", "iwae K=500 n=500", True),
        ("iwae K=500", "iwae K=50 n=500", False),
        ("iwae K=500", "iwae K=5000 n=500", False),
        ("iwae, K unknown", "iwae K=500 n=500", False),
        ("mixture batch 32", "mixture n=32", True),
        ("mixture batch 32", "mixture n=3761", False),
        ("mixture whole split", "mixture n=3761", True),
        ("mixture whole split", "mixture n=32", False),
        ("mixture whole split", "mixture, own left out, n=3761", False),
        ("1 sample ELBO", None, True),
        ("1 sample ELBO", "iwae K=500 n=500", False),
        ("unknown", None, False),
        ("unknown", "unknown", False),
        ("exact", "exact", True),
        ("exact", None, False),
    ],
)
def test_estimators(theirs, ours, match):
    row = figure("li2020optimus", "8", "ptb", "AE+FB", "mi").to_dict() | {"estimator": theirs}
    assert comparable(row, **(same(row) | {"estimator": ours}))[0] is match


def test_the_hash_is_that_of_one_data_set_alone():
    known = TABLE[TABLE["hash"] != ""]
    assert set(known["dataset"]) == {"ptb"} and known["hash"].nunique() == 1
    assert known["data"].str.startswith("Mikolov's files: 42,068/3,370/3,761 sentences").all()


def test_beside():
    # on Yahoo Optimus quotes what was annealed, too; on PTB and SNLI it does not say
    assert set(beside("yahoo", "aggressive")["paper"]) == {"he2019lagging-submission"}
    assert "li2020optimus" in set(beside("ptb", "aggressive")["paper"])
    assert set(beside("yahoo", "word_dropout")["model"]) == {"Word-drop 25 %", "Word-drop 50 %"}
    assert beside("yelp_full", "lm").equals(beside("yelp", "lm"))
    assert beside("synthetic", "vae").empty and beside("yahoo", "").empty
    some = TABLE[TABLE["paper"] == "zhu2020batch"]
    assert len(beside("yelp", "delta_vae", some)) == 4


GOOD = {
    **{"paper": "p", "table": "1", "dataset": "ptb", "model": "m", "method": "", "metric": "nll"},
    **{"value": "1.5", "bound": "", "estimator": "exact", "unit": "nats/sentence"},
    **{"status": "verified", "comparable": "yes", "why_not": "", "sizes": "1/2/-"},
    **{"data": "d", "hash": ""},
}


def write(path: Path, *rows: dict[str, str]) -> Path:
    lines = [",".join(COLUMNS), *(",".join(row[name] for name in COLUMNS) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metric": "bleu"}, "metric is one of"),
        ({"status": "hearsay"}, "status is one of"),
        ({"bound": "lower"}, "bound is one of"),
        ({"comparable": "maybe"}, "comparable is one of"),
        ({"comparable": "no"}, "why_not"),
        ({"why_not": "because"}, "why_not"),
        ({"status": "from memory"}, "never comparable"),
        ({"unit": "per word"}, "unit of nll"),
        ({"value": "nan"}, "as printed"),
        ({"value": "<=1"}, "as printed"),
        ({"model": ""}, "model is empty"),
        ({"sizes": "256"}, "embedding/hidden/latent"),
        ({"hash": "abc"}, "64"),
        ({"model": "a,b"}, "17 cells"),
        ({}, "line 2 has p / 1 / ptb / m / nll already"),
    ],
)
def test_what_cannot_be_right_is_refused_with_its_line(tmp_path, change, words):
    path = write(tmp_path / "some.csv", GOOD, GOOD | change)
    with pytest.raises(ValueError, match="line 3: ") as error:
        load(path)
    assert words in str(error.value)


def test_a_file_of_other_columns_is_refused(tmp_path):
    (tmp_path / "some.csv").write_text("paper,value\n")
    with pytest.raises(ValueError, match="line 1: the columns are"):
        load(tmp_path / "some.csv")
    assert len(load(write(tmp_path / "good.csv", GOOD))) == 1


def test_it_is_found_from_anywhere_and_without_torch(tmp_path):
    code = "import sys; from leaderboard import published; published.load(); "
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert SOURCE.parent == Path(published.__file__).parent
