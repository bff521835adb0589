"""The cluster that other tests rely on does what is said of it."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.slurmbox import Job, SlurmBox

SLEEP = f"exec {sys.executable} -ISc 'import time; time.sleep(100)'"
"""A job that needs to be ended."""


def submit(box: SlurmBox, *options: str, script: str = SLEEP) -> str:
    return box.run("sbatch", "--parsable", "--output=/dev/null", *options, "--wrap", script).strip()


def job(box: SlurmBox, job_id: str) -> Job | None:
    return next((job for job in box.jobs() if job.id == job_id), None)


def running(box: SlurmBox, job_id: str, *, on: str | None = None) -> int:
    """The job's one process, once it is there."""

    def found() -> list[int]:
        now = job(box, job_id)
        there = now and now.state == "RUNNING" and on in (None, now.node)
        return box.pids(job_id) if there else []

    (pid,) = box.wait(found, 60, f"job {job_id} runs on {on or 'a node'}")
    return pid


def test_each_node_runs_a_job_and_accounting_tells_of_it(slurm, tmp_path):
    script = f'echo "$SLURMD_NODENAME" > {tmp_path}/$SLURM_JOB_ID'
    ids = {node: submit(slurm, "-w", node, script=script) for node in slurm.nodes}
    slurm.wait(lambda: not slurm.jobs(), 30, "all have ended")
    assert {node: Path(tmp_path / ids[node]).read_text().strip() for node in ids} == {
        node: node for node in ("n1", "n2", "n3")
    }

    def told() -> bool:
        said = slurm.run("sacct", "-nXP", "-o", "NodeList,State", "-j", ",".join(ids.values()))
        return sorted(said.split()) == [f"n{i}|COMPLETED" for i in (1, 2, 3)]

    slurm.wait(told, 20, "sacct knows that they are complete")


def test_each_element_of_an_array_has_its_line_and_its_process(slurm):
    array = submit(slurm, "--array=0-3%2", "--job-name=a|b")
    pid = running(slurm, f"{array}_0")
    other = running(slurm, f"{array}_1")
    assert sorted(slurm.pids()) == sorted([pid, other])
    jobs = sorted(slurm.jobs(), key=lambda job: job.id)
    assert [(job.id, job.state, job.name) for job in jobs] == [
        (f"{array}_{i}", "RUNNING" if i < 2 else "PENDING", "a|b") for i in range(4)
    ]
    assert {(job.node, job.reason) for job in jobs[2:]} == {("", "JobArrayTaskLimit")}


def test_high_jobs_have_low_ones_requeued_and_others_cancelled(slurm):
    low = submit(slurm, "-w", "n1", "--exclusive")
    cancelled = submit(slurm, "-p", "cancelled", "-w", "n2", "--exclusive")
    assert running(slurm, low, on="n1") != running(slurm, cancelled, on="n2")
    high = submit(slurm, "-p", "high", "-N", "2", "-w", "n1,n2", "--exclusive")
    running(slurm, high)
    slurm.wait(lambda: not job(slurm, cancelled), 20, "one is cancelled")
    slurm.wait(lambda: (now := job(slurm, low)) and now.state == "PENDING", 20, "one is requeued")
    assert not slurm.pids(low) + slurm.pids(cancelled)


def test_jobs_of_a_node_that_is_down_run_elsewhere(slurm):
    job_id = submit(slurm, "-x", "n3")
    first = running(slurm, job_id, on="n1")
    slurm.kill_node("n1")
    assert slurm.pids(job_id) == []
    slurm.set_node("n1", "down")
    assert running(slurm, job_id, on="n2") != first


def test_jobs_may_outlive_the_daemon_of_their_node(slurm):
    job_id = submit(slurm, "-w", "n3")
    pid = running(slurm, job_id, on="n3")
    slurm.kill_node("n3", jobs=False)
    slurm.set_node("n3", "down")
    slurm.wait(lambda: (now := job(slurm, job_id)) and now.state == "PENDING", 20, "it is requeued")
    assert slurm.pids(job_id) == [pid]
    slurm.cancel_all()
    assert slurm.pids() == slurm.jobs() == []


def test_a_controller_comes_back_and_knows_its_jobs(slurm):
    job_id = submit(slurm)
    pid = running(slurm, job_id)
    slurm.stop_controller()
    with pytest.raises(RuntimeError, match=r"^squeue .*: exit 1: slurm_load_jobs"):
        slurm.jobs()
    assert slurm.pids(job_id) == [pid]
    slurm.start_controller()
    now = job(slurm, job_id)
    assert now and now.state == "RUNNING" and slurm.pids(job_id) == [pid]


def test_cleaning_up_brings_back_whatever_is_down(slurm):
    submit(slurm, "--array=0-40")
    submit(slurm, "--hold")
    slurm.wait(slurm.pids, 30, "some run")
    slurm.set_node("n1", "drain")
    slurm.set_node("n2", "down")
    slurm.kill_node("n2")
    slurm.stop_controller()
    slurm.cancel_all()
    assert slurm.jobs() == slurm.pids() == []
    running(slurm, submit(slurm, "-w", "n2"), on="n2")


def test_a_wait_in_vain_tells_the_state_of_the_cluster(slurm):
    submit(slurm, "--hold", "--job-name=idler")
    with pytest.raises(TimeoutError, match=r"(?s)0.2 s: a wonder.*n3.*idler.*_slurm_rpc_submit"):
        slurm.wait(lambda: False, 0.2, "a wonder")


def test_without_accounting_jobs_run_and_sacct_fails(slurm_without_accounting, tmp_path):
    box = slurm_without_accounting
    assert os.environ["SLURM_CONF"] == box.env["SLURM_CONF"]
    submit(box, script=f"touch {tmp_path}/done")
    box.wait((tmp_path / "done").exists, 20, "it has run")
    with pytest.raises(RuntimeError, match="accounting storage is disabled"):
        box.run("sacct")


def test_a_controller_that_was_killed_gives_job_ids_out_again(slurm_without_accounting):
    box = slurm_without_accounting
    pid = running(box, submit(box))
    forgotten = submit(box, "--hold")
    box.stop_controller(signal.SIGKILL)
    box.start_controller()
    assert (submit(box, "--hold"), box.pids()) == (forgotten, [pid])


def test_settings_are_followed_and_nothing_is_left(slurm, monkeypatch):
    monkeypatch.setenv("SBATCH_PARTITION", "of an outer cluster")
    with SlurmBox(nodes=1, cpus=2, memory=900, accounting=False, max_array_size=5) as box:
        assert box.env["SLURM_CONF"] != slurm.env["SLURM_CONF"]
        with pytest.raises(RuntimeError, match="Invalid job array"):
            submit(box, "--array=0-5")
        with pytest.raises(RuntimeError, match="node configuration is not available"):
            submit(box, "--mem=901")
        running(box, submit(box, "--mem=900", "--cpus-per-task=2"), on="n1")
        assert slurm.jobs() == []
    assert [*box._processes()] == []
    assert not box.root.exists()
