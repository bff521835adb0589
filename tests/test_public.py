"""What may be published of runs: all the numbers, and nothing of the machine, its user or its
folders; records written by hand, struck by invented names and places."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from benchmark import record
from benchmark.compose import CONFIGS
from benchmark.grid import Cell
from benchmark.record import SUMMARY, TRUTH, RunDirectory
from leaderboard.load import load_cells
from leaderboard.public import config, may_show_samples, publish, restore, strip
from tests.records import FULL, WRITTEN, lay

HOST, USER = "quasar17.cluster.example", "wittgenstein"
PLACES = [
    f"/home/{USER}/results",
    "/tmp/My disk/secretive place/results",
    "/scratch/runs",
    "results",
]
FREE = {"generator": {"kind": "tables"}, "licence": None}
RESTRICTED = {"generator": None, "licence": "LDC99T42; text is not to be passed on"}
SENTENCE = "the secret sentence"


def about(place: str) -> dict[str, Any]:
    """A provenance that tells everything."""
    return record.provenance() | {
        **{"host": HOST, "user": USER, "platform": f"Linux-6.1-{HOST}-x86_64-with-glibc2.36"},
        "slurm_job": "secretive",
        "cwd": f"/home/{USER}",  # that nobody has thought of yet
        "argv": [
            *(f"/home/{USER}/main/benchmark/run.py", "method=free_bits", "method.floor=0.1"),
            *("dataset=yelp", f"results_dir={place}", f"+data_dir={place}/data"),
            *(f"dataset.path=/home/{USER}/yelp", f"method.file=/home/{USER}/My files/words.txt"),
            *(f"/tmp/{USER}/jobs/12", "yelp/free_bits/0123456789ab/s0"),
        ],
        "submitted": {"fingerprint": "f", "words": ["method=vae,lm", "dataset.path=/home/me/x"]},
    }


def write(
    results: Path,
    seed: int = 0,
    status: str = "done",
    reason: str | None = None,
    dataset: dict[str, Any] = FREE,
    note: str = "none",
    place: str = PLACES[0],
) -> Path:
    """A run directory that tells where, by whom and how it was made."""
    cell = Cell("toy", "plain", f"plain file=/home/{USER}/words.txt", seed, "0123456789ab")
    run = RunDirectory(cell.path(results))
    text = {
        **{"dataset": {"name": "toy", "path": f"/home/{USER}/toy", "hub": "owner/name"} | dataset},
        **{"method": {"name": "plain", "rate": 1e-05, "file": f"/home/{USER}/My files/words.txt"}},
        **{"seed": seed, "results_dir": place, "data_dir": f"{place}/data"},
    }
    run.create(cell, OmegaConf.to_yaml(OmegaConf.create(text)))
    summary = dict.fromkeys(SUMMARY.keys() - TRUTH, 1.25) | {"verdict": "read", "latent": "global"}
    with run.lease():
        run.metrics().add(10, "valid", {"kl": 0.1 + seed}, seconds=1.0, batches=10, backwards=10)
        if status == "done":
            run.save_npz("units.npz", kl=[0.5])
            run.save_npz("sentences.npz", nll=[30.0, 31.0])
            run.save_text("samples.jsonl", json.dumps({"kind": "prior", "text": SENTENCE}) + "\n")
        else:
            run.save_text("error.txt", f'File "/home/{USER}/main/x.py", line 1')
        run.save_text("log.txt", f"{place} on {HOST}")
        run.save_text("checkpoints/best.pt", "weights")
        run.write(
            **{"status": status, "reason": reason, "selected_step": 10},
            summary={"valid": summary, "test": summary | {"mi": None}} if status == "done" else {},
            notes={"test/mi": note},
            cost={"train_seconds": 12.5, "steps": 10},
            provenance=ABOUT[place],
        )
    return run.path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


NAMES = [HOST, HOST.partition(".")[0], USER, "a reason", "</s>", "nats/token"]
PATHS = [
    *(f"/home/{USER}", f"/home/{USER}/x.txt", f"'/home/{USER}/My files/x.txt'", "/tmp"),
    *("~/x.txt", f"~{USER}/x.txt", "../../home/x.txt", f"file:///tmp/{USER}/x", "(/tmp/a/b)"),
]
ABOUT = {place: about(place) for place in PLACES}
sentences = st.lists(st.sampled_from([*NAMES, *PATHS, "PLACE/x.txt", "PLACE"])).map(" ".join)
FORBIDDEN = [HOST, HOST.partition(".")[0], USER, "/home", "/tmp", "/scratch", "secretive"]


@given(reason=sentences, note=sentences, place=st.sampled_from(PLACES))
def test_a_record_tells_nothing_of_machine_user_or_folders(reason, note, place):
    reason, note = (text.replace("PLACE", place) for text in (reason, note))
    known = dict.fromkeys(record.FIELDS) | {"schema_version": 1}
    known |= {"reason": reason, "notes": {"test/mi": note}, "provenance": ABOUT[place]}
    known["cell"] = {"variant": f"plain file=/home/{USER}/words.txt"}
    public = strip(known, [place, f"{place}/data"])
    assert [word for word in FORBIDDEN if word in json.dumps(public)] == []
    assert strip(public) == public  # what was published once may be published again


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dataset", [FREE, RESTRICTED])
def test_no_published_byte_tells_of_machine_user_or_folders(tmp_path, place, dataset):
    said = " ".join([*NAMES, *PATHS, f"{place}/toy/run.json"])
    done = write(tmp_path / "r", 0, note=said, dataset=dataset, place=place)
    failed = write(tmp_path / "r", 1, "failed", said, dataset, place=place)
    assert len(publish(load_cells([tmp_path / "r"]), tmp_path / "out")) == 2
    secrets = [*FORBIDDEN, str(tmp_path), *[SENTENCE] * (dataset is RESTRICTED)]
    for name, content in contents(tmp_path / "out").items():
        assert [word for word in secrets if word.encode() in content] == [], name
    for run in (done, failed):
        here = tmp_path / "out" / run.relative_to(tmp_path / "r")
        assert {path.name for path in here.iterdir()} <= {*record.ARTEFACTS, "run.json"}
        known, was = (json.loads((at / "run.json").read_bytes()) for at in (here, run))
        for key in ("summary", "cost", "status", "selected_step", "schema_version"):
            assert known[key] == was[key]
        for name in ("metrics.jsonl", "units.npz", "sentences.npz"):
            assert contents(here).get(name) == contents(run).get(name)


def test_a_published_folder_loads_as_done_and_stays_as_it_is(tmp_path):
    for seed, (status, dataset) in enumerate([("done", FREE), ("done", RESTRICTED)]):
        write(tmp_path / "r", seed, status, dataset=dataset)
    write(tmp_path / "r", 2, "diverged", "the loss is not finite")
    write(tmp_path / "r", 3, "interrupted")
    write(tmp_path / "r", 4)
    (tmp_path / "r/toy/plain/0123456789ab/s4/units.npz").unlink()  # damaged
    cells, out = load_cells([tmp_path / "r"]), tmp_path / "out"
    made = publish(cells, out)
    assert [path.name for path in made] == ["s0", "s1", "s2", "s3"]
    assert all(record.validate(path) == [] for path in made)
    loaded = load_cells([out])
    assert list(loaded["status"]) == ["done", "done", "diverged", "queued"]
    same = [name for name in cells if name.startswith(("test/", "valid/", "cost/"))]
    assert loaded[same].head(3).equals(cells[same].head(3))
    before = contents(out)
    assert SENTENCE.encode() in before["toy/plain/0123456789ab/s0/samples.jsonl"]
    assert before["toy/plain/0123456789ab/s1/samples.jsonl"] == b""

    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert publish(cells, out) == publish(loaded, out) == []  # nor does it devour itself
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    publish(cells, tmp_path / "again")
    assert contents(tmp_path / "again") == before

    shutil.rmtree(tmp_path / "r/toy/plain/0123456789ab/s2")
    write(tmp_path / "r", 2, "failed", "another")
    assert publish(load_cells([tmp_path / "r"]), out) == [made[2]]
    assert {name for name, content in contents(out).items() if content != before[name]} == {
        "toy/plain/0123456789ab/s2/run.json"
    }


def test_what_has_not_run_is_announced_until_it_has(tmp_path):
    runs, out = tmp_path / "r", tmp_path / "out"
    for seed in (1, 2):
        write(runs, seed, "interrupted", f"by {USER}")
    made = publish(load_cells([runs]), out)
    for path in made:
        assert [file.name for file in sorted(path.iterdir())] == ["config.yaml", "run.json"]
        known = RunDirectory(path).read()
        assert known is not None and known["status"] == "queued" and known["reason"] is None
        assert not known["summary"] and not known["cost"] and not known["provenance"]
    assert publish(load_cells([runs]), out) == publish(load_cells([out]), out) == []
    shutil.rmtree(runs / "toy/plain/0123456789ab/s1")
    write(runs, 1)
    assert publish(load_cells([runs]), out) == [made[0]]
    assert list(load_cells([out])["status"]) == ["done", "queued"]
    before = contents(out)
    shutil.rmtree(runs / "toy/plain/0123456789ab/s1")
    write(runs, 1, "interrupted")  # as it is run anew
    assert publish(load_cells([runs]), out) == [] and contents(out) == before
    shutil.rmtree(runs / "toy/plain/0123456789ab/s2")  # nobody asks for it any more
    assert publish(load_cells([runs]).iloc[:0], out) == []  # where there are no runs of its data
    assert publish(load_cells([runs]), out) == [made[1]] and not made[1].exists()
    assert list(load_cells([out])["status"]) == ["done"]  # which stays, though it runs anew
    torn = out / "toy/other/0123456789ab/s0/run.json"  # damaged by hand, and for a person to mend
    torn.parent.mkdir(parents=True)
    torn.write_text("<<<<<<< ours")
    assert publish(load_cells([runs]), out) == [] and torn.exists()


def test_a_second_copy_is_not_published(tmp_path):
    write(tmp_path / "first", status="failed", reason="no memory")
    write(tmp_path / "second")
    cells = load_cells([tmp_path / "first", tmp_path / "second"])
    assert list(cells["status"]) == ["duplicate", "done"]
    assert len(publish(cells, tmp_path / "out")) == 1  # nor announced before
    assert list(load_cells([tmp_path / "out"])["status"]) == ["done"]


def poisoned(value: Any) -> Any:
    """The same with a sentence wherever one fits."""
    if isinstance(value, dict):
        more = {SENTENCE: 1.0, "text": SENTENCE, "lines": [SENTENCE], "0": {"x": SENTENCE}}
        return more | {key: poisoned(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [*map(poisoned, value)]
    return SENTENCE if isinstance(value, str | None) else value


@pytest.mark.parametrize("dataset", [FREE, RESTRICTED])
@pytest.mark.parametrize(("name", "known"), [("diagnosis", FULL), ("generation", WRITTEN)])
def test_beside_a_run_no_text_is_published(tmp_path, dataset, name, known):
    """Not even of data that are free: what is not known to be a number or a fixed word stays."""
    run = write(tmp_path / "r", dataset=dataset)
    lay(run, name, poisoned(known) | {key: known[key] for key in ("cell", "notes")})
    (run / f"{name}.jsonl").write_text(SENTENCE)
    (path,) = publish(load_cells([tmp_path / "r"]), tmp_path / "out")
    assert not (path / f"{name}.jsonl").exists()
    content = (path / f"{name}.json").read_bytes()
    assert SENTENCE.encode() not in content and json.loads(content)["notes"] == known["notes"]


def test_what_lies_beside_a_run_is_published_in_numbers(tmp_path):
    """And once more when it is new."""
    run, out = write(tmp_path / "r"), tmp_path / "out"
    cells = load_cells([tmp_path / "r"])
    assert len(publish(cells, out)) == 1 and publish(cells, out) == []
    here = f"/home/{USER}/words.txt"
    lay(run, "diagnosis", FULL | {"notes": {"lag": f"{here} on {HOST}"}})
    lay(run, "generation", WRITTEN)
    (path,) = publish(cells, out)
    assert publish(cells, out) == publish(load_cells([out]), out) == []
    found = json.loads((path / "diagnosis.json").read_bytes())
    assert found.pop("notes") == {"lag": "words.txt on HOST"}
    assert found == {k: v for k, v in FULL.items() if k != "notes"}
    found = json.loads((path / "generation.json").read_bytes())
    assert found["settings"] | {"device": None} == WRITTEN["settings"]
    assert found["interpolation"] | {"line": "straight"} == WRITTEN["interpolation"]
    same = {*WRITTEN} - {"settings", "interpolation"}
    assert {k: found[k] for k in same} == {k: WRITTEN[k] for k in same}
    assert record.validate(path) == []
    assert restore(out, tmp_path / "new") and (tmp_path / "new").rglob("diagnosis.json")


def test_of_a_record_remains_what_says_what_was_run(tmp_path):
    known = RunDirectory(write(tmp_path)).read()
    assert known is not None
    public = strip(known)
    assert public["provenance"]["argv"] == [
        *("run.py", "method=free_bits", "method.floor=0.1", "dataset=yelp"),
        *("method.file=words.txt", "yelp/free_bits/0123456789ab/s0"),
    ]
    assert public["provenance"]["platform"] == "Linux x86_64 glibc2.36"
    assert public["cell"]["variant"] == "plain file=words.txt"
    assert public["provenance"]["submitted"] == {"fingerprint": "f", "words": ["method=vae,lm"]}
    for key in ("commit", "dirty", "fingerprint", "result_version", "versions"):
        assert public["provenance"][key] == known["provenance"][key]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("</s> counted, <s> not; p(x)/q(x), nats/token", None),
        ("see https://example.org/a/b", None),
        ("/data/x.txt: No space left on device", "x.txt: No space left on device"),
        ("No such file: '/data/My files/x.txt'", "No such file: 'x.txt'"),
        (f"{USER} has no rights on {HOST}", "USER has no rights on HOST"),
        ("/home/moore", "~"),
    ],
)
def test_a_reason_keeps_its_sense(said, kept):
    empty = dict.fromkeys(record.FIELDS) | {"notes": {}, "schema_version": 1, "cell": {}}
    known = empty | {"reason": said, "provenance": {"host": HOST, "user": USER}}
    assert strip(known)["reason"] == (kept or said)


def test_a_configuration_is_published_without_its_places(tmp_path):
    text = (write(tmp_path) / "config.yaml").read_text()
    public = config(text)
    assert public == config(OmegaConf.to_container(OmegaConf.create(text))) == config(public)  # type: ignore[arg-type]
    assert public == {
        "dataset": {"name": "toy", "hub": "owner/name", **FREE},
        "method": {"name": "plain", "rate": 1e-05, "file": "words.txt"},
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("dataset", "shown"),
    [
        (FREE, True),
        (RESTRICTED, False),
        ({"generator": None, "licence": None}, False),
        ({"generator": None, "licence": "CC-BY-SA-4.0"}, True),
        ({"generator": None, "licence": "CC-BY-NC-4.0"}, False),
        ({"generator": None, "licence": "not MIT"}, False),
        ({}, False),
    ],
)
def test_only_text_that_is_generated_or_free_is_shown(dataset, shown):
    assert may_show_samples({"dataset": dataset}) == shown


def test_of_our_data_sets_no_text_is_shown_that_may_not_be():
    given = {
        file.stem: may_show_samples({"dataset": OmegaConf.to_container(OmegaConf.load(file))})
        for file in (CONFIGS / "dataset").glob("*.yaml")
    }
    assert given["synthetic"] and given["synthetic_lstm"]
    assert not any(given[name] for name in ("ptb", "yahoo", "yelp", "yelp_full", "yelp_short"))
    assert not given["text"] and not given["pixels"]


def test_published_runs_count_as_done_where_they_are_laid_down(tmp_path, monkeypatch):
    from slurm.grid import look

    states = ["done", "diverged", "failed", "done"]
    for seed, status in enumerate(states):
        write(tmp_path / "r", seed, status)
    publish(load_cells([tmp_path / "r"]), tmp_path / "out")
    mine = write(tmp_path / "here", 3, "interrupted")
    before = contents(mine)
    (tmp_path / "here/toy/plain/0123456789ab/.s0.tmp").mkdir(parents=True)  # of one that was ended
    laid = restore(tmp_path / "out", tmp_path / "here")
    assert [path.name for path in laid] == ["s0", "s1"] and contents(mine) == before
    standing = {s.cell[-2:]: s.state for s in look(tmp_path / "here")}
    assert standing == {"s0": "done", "s1": "diverged", "s3": "missing"}
    assert restore(tmp_path / "out", tmp_path / "here") == []
    assert publish(load_cells([tmp_path / "here"]), tmp_path / "out") == []
    assert restore(tmp_path / "nowhere", tmp_path / "here") == []
    monkeypatch.setattr("leaderboard.public.RESULT_VERSION", 2)
    assert [path.name for path in restore(tmp_path / "out", tmp_path / "new")] == []
