"""The grid on a real SLURM cluster, and whatever strikes it there: in the end every cell is done,
every record valid, and every result that of a calm run to the bit."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission, JobPaths

from benchmark import record
from slurm import cancel, grid, queue, runner, status, submit
from slurm.ledger import Ledger
from tests import cells
from tests.cells import SMALL, differences
from tests.conftest import enter
from tests.slurmbox import SlurmBox

WORDS = [word for word in SMALL if not word.startswith(("method=", "threads="))]
STEPS = 100
CLUSTER = [
    *("cluster=slurm", "cluster.cpus=1", "cluster.memory=300M", "cluster.time=60"),
    *("cluster.patience=30",),
]
GRID = ["method=kl_annealing", "seed=0,1"]


@pytest.fixture(autouse=True)
def one_thread():
    with cells.one_thread():
        yield


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(grid, "GAP", 1.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def calm(tmp_path_factory, data) -> Path:
    """The results of a grid that nothing struck."""
    results = tmp_path_factory.mktemp("calm")
    with pytest.MonkeyPatch.context() as patch, cells.one_thread():
        patch.chdir(results)
        assert submit.main([*words(results, data), *GRID, "cluster=inline"]) == 0
    return results


def words(results: Path, data: Path) -> list[str]:
    steps = [f"budget.steps={STEPS}", "save_every=0", "threads=1"]
    return [*WORDS, *steps, f"results_dir={results}", f"data_dir={data}"]


def wait(results: Path, paths: list[str], pause: float = 1.0) -> int:
    """For cells that were all submitted."""
    return runner.wait(results, paths, lambda: pytest.fail("a cell was never submitted"), pause)


class Grid:
    """Two cells of the results folder under test."""

    def __init__(self, box: SlurmBox, results: Path, data: Path, calm: Path):
        self.box, self.results, self.data, self.calm = box, results, data, calm

    def submit(self, *more: str) -> None:
        assert submit.main([*words(self.results, self.data), *GRID, *CLUSTER, *more]) == 0

    def look(self) -> dict[str, str]:
        return {s.cell: s.state for s in grid.look(self.results)}

    def until(self, condition: Callable[[], object], what: str, seconds: float = 90) -> None:
        self.box.wait(condition, seconds, what)

    def training(self) -> str:
        """A cell that has taken some steps and has some to take."""

        def found() -> str | None:
            for cell, state in self.look().items():
                step, evaluated = grid.progress(self.results / cell)
                if state == "running" and 10 <= step < STEPS and not evaluated:
                    return cell
            return None

        self.until(found, "a cell trains")
        return found() or self.training()

    def job(self, cell: str) -> str:
        (standing,) = grid.look(self.results, only=[cell])
        return standing.jobs[-1]

    def attempts(self) -> int:
        return len(Ledger(self.results).read()[0])

    def restarts(self, job: str) -> int:
        """How often SLURM has put the job back into the queue."""
        said = self.box.run("scontrol", "show", "job", job)
        return int(said.partition("Restarts=")[2].split()[0])

    def node(self, job: str) -> str:
        return next(entry.node for entry in self.box.jobs() if entry.id == job)

    def kill(self, cell: str) -> None:
        for pid in self.box.pids(self.job(cell)):
            os.kill(pid, signal.SIGKILL)

    def finish(self, seconds: float = 240) -> None:
        """Bring it to its end as a user would, and compare with the calm run."""
        paths = sorted(self.look())
        assert wait(self.results, paths) == 0
        assert self.look() == dict.fromkeys(paths, "done")
        for cell in paths:
            assert record.validate(self.results / cell) == []
            here, there = (record.RunDirectory(r / cell).read() for r in (self.results, self.calm))
            assert here and there
            assert differences(here["summary"], there["summary"]) == [], cell
            mine, calms = (cells.lines(r / cell) for r in (self.results, self.calm))
            assert differences(mine, calms) == [], cell


@pytest.fixture
def struck(slurm, tmp_path, data, calm, monkeypatch) -> Iterator[Grid]:
    yield Grid(slurm, tmp_path / "results", data, calm)


def test_a_grid_runs_as_an_array_and_ends_in_the_results_of_a_calm_run(struck, capsys, monkeypatch):
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")  # submitted from a job that asked so
    struck.submit()
    assert "2 cells submitted (slurm)" in capsys.readouterr().out
    jobs = {job.id for job in struck.box.jobs()}
    assert jobs and len({job.partition("_")[0] for job in jobs}) == 1
    struck.submit()  # a second time nothing is missing
    assert "0 cells submitted" in capsys.readouterr().out
    struck.finish()


def test_a_killed_job_is_resubmitted_and_goes_on(struck):
    struck.submit()
    cell = struck.training()
    step = grid.progress(struck.results / cell)[0]
    struck.kill(cell)
    struck.finish()
    assert struck.attempts() == 2 and step >= 10
    known = record.RunDirectory(struck.results / cell).read()
    assert known and known["cost"]["lost_seconds"] < 5


def test_a_stray_scancel_loses_nothing(struck):
    struck.submit("cluster.array_parallelism=1")
    cell = struck.training()
    (pending,) = (job for job in struck.box.jobs() if job.state == "PENDING")
    struck.box.run("scancel", pending.id)
    struck.box.run("scancel", struck.job(cell))
    struck.finish()


def test_what_the_user_cancels_stays_cancelled(struck, capsys):
    struck.submit()
    cell = struck.training()
    assert cancel.main([f"results_dir={struck.results}", cell]) == 0
    other = next(c for c in struck.look() if c != cell)
    struck.until(
        lambda: struck.look() == {cell: "cancelled", other: "done"}, "one ends, one is done"
    )
    assert wait(struck.results, [cell]) == 1 and struck.attempts() == 1
    assert grid.progress(struck.results / cell)[0] > 0
    struck.submit()  # asks for what is missing, which this is not
    assert struck.look()[cell] == "cancelled"
    struck.submit("only=cancelled")  # but the user may think better of it
    struck.finish()


def test_told_of_its_time_limit_a_job_saves_and_is_queued_again(struck):
    struck.submit()
    cell = struck.training()
    job = struck.job(cell)
    struck.box.run("scancel", "--signal=USR2", job)
    struck.until(lambda: struck.restarts(job) == 1, "the job is queued again")
    struck.finish()
    assert struck.attempts() == 1
    known = record.RunDirectory(struck.results / cell).read()
    assert known and known["cost"]["lost_seconds"] == 0


@pytest.mark.parametrize(("partition", "attempts"), [("low", 1), ("cancelled", 2)])
def test_a_preempted_job_saves_and_goes_on(struck, partition, attempts):
    struck.submit(f"cluster.partition={partition}")
    cell = struck.training()
    high = struck.box.run(
        *("sbatch", "--parsable", "--output=/dev/null", "-p", "high", "-N", "3", "--exclusive"),
        *("--wrap", "sleep 2"),
    ).strip()
    struck.until(lambda: high not in {j.id for j in struck.box.jobs()}, "the other job has run")
    struck.finish()
    assert struck.attempts() == attempts
    known = record.RunDirectory(struck.results / cell).read()
    assert known and known["cost"]["lost_seconds"] == 0


def test_a_node_goes_down(struck):
    struck.submit()
    node = struck.node(struck.job(struck.training()))
    struck.box.kill_node(node)
    struck.box.set_node(node, "down")
    struck.finish()


def test_two_jobs_have_one_cell_where_only_a_nodes_daemon_died(struck):
    """SLURM thinks the job dead and starts it elsewhere, while it lives."""
    struck.submit()
    cell = struck.training()
    job = struck.job(cell)
    node = struck.node(job)
    (first,) = struck.box.pids(job)
    os.kill(first, signal.SIGSTOP)  # until there is another
    struck.box.kill_node(node, jobs=False)
    struck.box.set_node(node, "down")
    struck.until(lambda: len(struck.box.pids(job)) == 2, "two have the cell")
    time.sleep(5)
    os.kill(first, signal.SIGCONT)
    struck.finish()
    assert struck.attempts() == 1
    log = next((struck.results / ".slurm/jobs").rglob(f"{job}_0_log.err")).read_text()
    assert f"is being written by process {first}" in log


def test_the_controller_dies_and_comes_back(slurm_without_accounting, tmp_path, data, calm):
    """On a cluster of its own, since the controller forgets what it was told last."""
    struck = Grid(slurm_without_accounting, tmp_path / "results", data, calm)
    struck.submit()
    struck.training()
    time.sleep(3)  # it saves what it knows with a delay
    struck.box.stop_controller(signal.SIGKILL)
    # running: by its lease, whose process this machine sees
    assert set(struck.look().values()) <= {"unknown", "running", "done"}
    assert grid.lost(struck.results) == []
    struck.box.start_controller()
    struck.finish()


def test_a_result_torn_by_a_death_does_not_stop_the_next_run(struck):
    struck.submit("cluster.array_parallelism=1")
    (job,) = (j.id for j in struck.box.jobs() if j.id.endswith("_1"))
    torn = struck.results / ".slurm/jobs" / job.partition("_")[0] / f"{job}_0_result.pkl.save_tmp"
    torn.write_bytes(b"half")
    struck.finish()
    assert struck.attempts() == 1
    struck.until(lambda: not torn.exists() and torn.with_suffix("").exists(), "it is whole")


def test_a_held_job_is_told_of_and_waits(struck, capsys):
    struck.submit("cluster.array_parallelism=1")
    (job,) = (j.id for j in struck.box.jobs() if j.id.endswith("_1"))
    struck.box.run("scontrol", "hold", job)
    struck.until(lambda: "held" in struck.look().values(), "it is held")
    capsys.readouterr()
    status.main([str(struck.results)])
    assert "held: JobHeld" in capsys.readouterr().out
    assert grid.lost(struck.results) == []
    struck.box.run("scontrol", "release", job)
    struck.finish()


def test_a_submission_waits_for_the_controller(struck):
    struck.box.stop_controller()
    command = [sys.executable, "-m", "slurm.submit", *words(struck.results, struck.data), *GRID]
    process = subprocess.Popen([*command, *CLUSTER], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "SLURM does not answer" in process.stderr.readline()
    struck.box.start_controller()
    with process:
        assert process.wait(60) == 0
    assert struck.attempts() == 1
    struck.finish()


def test_who_waits_outlasts_a_controller_that_is_away(struck, monkeypatch):
    """Also with cells that SLURM never had: runs by hand that were cut off."""
    asked = [*words(struck.results, struck.data), *GRID]
    made, by_hand = submit.plan(asked), ExitStack()
    submit.lay_down(struck.results, made)
    for cell, _ in made:
        directory = record.RunDirectory(cell.path(struck.results))
        by_hand.enter_context(directory.lease())
        directory.write(status="running")

    def cut_off(*arguments) -> int:
        struck.box.stop_controller()
        by_hand.close()
        return runner.wait(*arguments, pause=1.0)

    heard = []

    def come_back(_: str, error: object) -> None:
        heard.append(str(error))
        struck.box.start_controller()

    monkeypatch.setattr(submit, "wait", cut_off)
    monkeypatch.setattr(runner.log, "warning", come_back)
    assert submit.main([*asked, *CLUSTER, "cluster.patience=0", "--wait"]) == 0
    assert len(heard) == 1 and "SLURM does not answer" in heard[0]
    struck.finish()


def test_a_wrong_partition_is_refused_at_once_and_nothing_is_lost(struck, capsys):
    asked = [*words(struck.results, struck.data), *GRID, *CLUSTER]
    assert submit.main([*asked, "cluster.partition=nowhere"]) == 1
    error = capsys.readouterr().err
    assert "SLURM refuses the job: " in error and "Invalid partition" in error
    assert error.count("\n") == 1 and set(struck.look().values()) == {"lost"}
    struck.submit()
    struck.finish()


def test_a_submitter_dies_before_it_knows_the_jobs_number(struck, monkeypatch):
    def die(*_):
        raise cells.Killed

    with monkeypatch.context() as patch, pytest.raises(cells.Killed):
        patch.setattr(Ledger, "submitted", die)
        struck.submit()
    assert set(struck.look().values()) <= {"pending", "running"}
    assert grid.lost(struck.results) == []
    struck.finish()
    assert struck.attempts() == 1


def test_two_runners_at_once_submit_once(struck):
    struck.submit()
    struck.kill(struck.training())
    with ThreadPoolExecutor() as pool:
        paths = sorted(struck.look())
        waits = [pool.submit(wait, struck.results, paths, pause=0.5) for _ in range(2)]
        assert [wait.result() for wait in waits] == [0, 0]
    assert struck.attempts() == 2
    struck.finish()


@pytest.mark.parametrize("how", ["cluster.group=2", "cluster.pack=2"])
def test_several_cells_share_a_job(struck, how):
    struck.submit(how, "cluster.cpus=2")
    (job,) = struck.box.jobs()
    cell = struck.training()
    struck.box.run("scancel", "--signal=USR2", job.id)
    struck.until(lambda: struck.restarts(job.id) == 1, "the job is queued again")
    struck.finish()
    assert struck.attempts() == 1 and cell in struck.look()


def test_jobs_run_the_code_of_their_submission(struck):
    struck.submit("cluster.snapshot=true", "cluster.array_parallelism=1")
    (code,) = (struck.results / ".slurm/code").iterdir()
    cell = struck.training()
    with (code / "benchmark/noise.py").open("a") as file:  # the copy: the other job reads this
        file.write("# edited\n")
    struck.finish()
    for name in struck.look():
        known = record.RunDirectory(struck.results / name).read()
        assert known
        about = known["provenance"]
        assert (about["fingerprint"] == about["submitted"]["fingerprint"]) == (name == cell)


def test_a_grid_ends_in_its_leaderboard(struck, capsys):
    """By a job that waits for all others, whatever becomes of them, and that is no cell's."""
    page = struck.results / "leaderboard" / "RESULTS.md"

    def submit_to_no_node(*more: str) -> dict[str, str]:
        """Nothing starts; jobs by the beginning of their names."""
        for node in struck.box.nodes:
            struck.box.set_node(node, "drain")
        struck.submit("leaderboard=true", *more)
        jobs = {job.name.partition("-")[0]: job.id for job in struck.box.jobs()}
        array = jobs["cell"].partition("_")[0]
        waits = struck.box.run("scontrol", "show", "job", jobs["leaderboard"])
        assert f"Dependency=afterany:{array}" in waits
        assert len(struck.look()) == 2 and set(struck.look().values()) == {"pending"}
        return jobs

    submit_to_no_node()
    assert cancel.main([f"results_dir={struck.results}", "all"]) == 0
    struck.until(lambda: not struck.box.jobs(), "nothing is left in the queue")

    jobs = submit_to_no_node("only=cancelled")
    struck.box.run("scancel", jobs["cell"])  # one of two, by hand
    for node in struck.box.nodes:
        struck.box.set_node(node, "resume")
    struck.until(page.exists, "the job of the leaderboard has run")
    assert "1 of 2 runs are done" in page.read_text()
    struck.until(lambda: not struck.box.jobs(), "it has ended")
    capsys.readouterr()
    assert status.main([str(struck.results), "--repair"]) == 0
    assert f"leaderboard: {page.parent}/" in capsys.readouterr().out
    struck.until(lambda: "2 of 2 runs are done" in page.read_text(), "it is built anew")
    struck.finish()


def test_no_answer_of_the_queue_is_no_answer(slurm_programs, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", "/dev/null")
    assert queue.ask() is None  # squeue finds no cluster
    monkeypatch.setenv("PATH", "/nowhere")
    assert queue.ask() is None  # there is no squeue


def test_a_job_whose_submission_was_not_answered_is_cancelled(struck, monkeypatch, tmp_path):
    """The controller takes it and only the answer is lost: it would wait for a node to fail on."""
    sbatch, answered = shutil.which("sbatch"), tmp_path / "answered"
    (tmp_path / "sbatch").write_text(f"""#!/bin/sh
{sbatch} "$@" || exit
test -e {answered} && exit
touch {answered}
echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
exit 1
""")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for node in struck.box.nodes:
        struck.box.set_node(node, "drain")
    struck.submit()
    assert answered.exists() and struck.attempts() == 1
    assert len({job.id.partition("_")[0] for job in struck.box.jobs()}) == 1
    for node in struck.box.nodes:
        struck.box.set_node(node, "resume")
    struck.finish()
    assert struck.attempts() == 1


def test_a_disk_without_room_for_jobs_counts_no_job_as_lost(struck, monkeypatch, capsys):
    """Neither before SLURM is asked, nor when it has taken a job whose files then have no room."""

    def no_room(*_, **__):
        raise OSError(errno.ENOSPC, "no room")

    asked = [*words(struck.results, struck.data), *GRID, *CLUSTER]
    for node in struck.box.nodes:
        struck.box.set_node(node, "drain")
    for method in ("dump", "move_temporary_file"):
        of = DelayedSubmission if method == "dump" else JobPaths
        with monkeypatch.context() as patch:
            patch.setattr(of, method, no_room)
            assert submit.main(asked) == 1
        assert capsys.readouterr().err == "a file cannot be written: no room.\n"
        assert not struck.box.jobs()
    attempts, histories = Ledger(struck.results).read()
    assert {attempt.refused for attempt in attempts.values()} == {"[Errno 28] no room"}
    for history in histories.values():
        assert history.fruitless((0, 0)) == 0
    for node in struck.box.nodes:
        struck.box.set_node(node, "resume")
    struck.finish()


def test_without_accounting_and_with_small_arrays(
    slurm_programs, monkeypatch, tmp_path, data, calm
):
    with SlurmBox(accounting=False, max_array_size=2) as box:
        enter(box, monkeypatch)
        struck = Grid(box, tmp_path / "results", data, calm)
        struck.submit()
        assert struck.attempts() == 2  # arrays
        struck.kill(struck.training())
        struck.finish()


def test_a_real_time_limit(struck):
    """SLURM looks at limits every 30 s. The cell is stopped, so that it lasts till then; SLURM's
    signal brings a CONT with it."""
    struck.submit("cluster.time=1", "cluster.signal_delay=5")
    cell = struck.training()
    job = struck.job(cell)
    for pid in struck.box.pids(job):
        os.kill(pid, signal.SIGSTOP)
    struck.until(lambda: struck.restarts(job) == 1, "submitit requeues the job")
    struck.finish()
    assert struck.attempts() == 1
