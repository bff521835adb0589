"""Cells become jobs: arrays on a cluster, the local runner, or here and now; imports no torch."""

import logging
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from shlex import quote

import submitit
from submitit.core.utils import FailedJobError

from benchmark import record
from benchmark.compose import UserError
from benchmark.lease import Lease
from benchmark.run import stop_signals
from slurm import queue
from slurm.cluster import Cluster, Executor, Resources
from slurm.grid import progress
from slurm.job import SIGNALS, Job, one_by_one
from slurm.ledger import Attempt, Ledger, now
from slurm.page import ROOT, Page, environment

log = logging.getLogger(__name__)

PLACE = ("partition", "account", "qos", "constraint")
TRANSIENT = (
    *("unable to contact", "timed out", "connection refused", "connection reset"),
    *(
        "temporarily unable",
        "try again",
        "standby mode",
        "resource temporarily",
        "communication",
        "zero bytes",
    ),
)
"""What sbatch says of a controller that may be back in a while."""


@contextmanager
def submitting(results: Path) -> Iterator[None]:
    """The right to submit cells of these results: one process has it. Raises record.Busy."""
    lease = Lease(results / ".slurm" / "submit", uuid.uuid4().hex[:12], beat=30.0, stale=90.0)
    with lease:
        yield


class Refused(UserError):
    """The scheduler does not take these jobs, however often it is asked."""


def launch(
    results: Path,
    cells: Sequence[str],
    cluster: Cluster,
    *,
    repair: bool = False,
    after: Sequence[str] = (),
) -> None:
    """Submit cells whose folders are laid down, and what builds the leaderboard at their end; to be
    called while `submitting`. repair: they were submitted before, and lost. after: other jobs for
    whose end the leaderboard waits. Raises Refused, and UserError where the scheduler is away."""
    if not cells and not cluster.leaderboard:
        return
    if cluster.executor is Executor.local:  # whose runner reads the ledger
        _note(results, [[cell] for cell in cells] or [[]], cluster, repair)
        start_pool(results)
    elif cluster.executor is Executor.inline:
        _note(results, [list(cells)], cluster, repair)
        with stop_signals(SIGNALS[1:]) as stopped:
            one_by_one(results, cells, stopped)
            received = stopped()
        if received:
            sys.exit(128 + received)
    else:
        if {"%", "\\"} & {*str(results)}:
            raise Refused(
                f"SLURM reads % and \\ in {results} otherwise; choose another results_dir."
            )
        code = _snapshot(results) if cluster.snapshot and cells else ROOT
        arrays = [
            _submit(results, jobs, resources, cluster, code, repair)
            for resources, jobs in _arrays(results, cells, cluster)
        ]
        if cluster.leaderboard:
            _submit_page(results, cluster, [*after, *arrays])


def _note(results: Path, jobs: list[list[str]], cluster: Cluster, repair: bool) -> Attempt:
    """Write down what is about to be submitted."""
    attempt = Attempt(
        token=f"{'cell' if any(jobs) else 'leaderboard'}-{uuid.uuid4().hex[:12]}",
        cluster=cluster.plain(),
        jobs=jobs,
        progress={cell: progress(results / cell) for job in jobs for cell in job},
        time=now(),
        repair=repair,
    )
    Ledger(results).intend(attempt)
    return attempt


# Job arrays --------------------------------------------------------------------------------------


def _arrays(
    results: Path, cells: Sequence[str], cluster: Cluster
) -> Iterator[tuple[Resources, list[list[str]]]]:
    """Cells by the resources they need, in jobs, no more of them than an array may have."""
    classes: dict[str, tuple[Resources, list[str]]] = {}
    for cell in cells:
        dataset, method, *_ = Path(cell).parts
        resources = cluster.resources(method, dataset)
        classes.setdefault(repr(resources), (resources, []))[1].append(cell)
    most, size = queue.largest_array(), cluster.group * cluster.pack
    for resources, members in classes.values():
        jobs = [members[start : start + size] for start in range(0, len(members), size)]
        for start in range(0, len(jobs), most):
            yield resources, jobs[start : start + most]


def _submit_page(results: Path, cluster: Cluster, arrays: Sequence[str]) -> None:
    """The job that builds the leaderboard when these have ended, however they did. In the ledger
    it is an attempt without cells. Where it is refused the cells run all the same."""
    place = {name: getattr(cluster, name) for name in PLACE}
    resources = Resources(time=60, cpus=1, memory="2G", **place)
    try:
        after = f"afterany:{':'.join(arrays)}" if arrays else None
        _submit(results, [[]], resources, cluster, ROOT, dependency=after)
    except UserError as error:
        log.warning("no job will build the leaderboard: %s", error)


def _submit(
    results: Path,
    jobs: list[list[str]],
    resources: Resources,
    cluster: Cluster,
    code: Path,
    repair: bool = False,
    dependency: str | None = None,
) -> str:
    """One array, written down before and after; asked again while the controller is away. Returns
    its number. jobs: the cells of each; one without cells builds the leaderboard."""
    work = [Job(results, cells, cluster.pack) if cells else Page(results) for cells in jobs]
    attempt, ledger = _note(results, jobs, cluster, repair), Ledger(results)
    try:
        executor = _executor(results, attempt.token, resources, cluster, code, dependency)
    except RuntimeError as error:
        ledger.refused(attempt.token, str(error))
        raise Refused(
            f"no SLURM here ({error}); submit from a login node, or use cluster=local."
        ) from error
    deadline, wait = time.monotonic() + cluster.patience, 2.0
    while True:
        try:
            # submitit prints what sbatch says against it, which is told below
            with redirect_stderr(StringIO()), _outside_any_job(), executor.batch():
                made = [executor.submit(job) for job in work]
        except FailedJobError as error:
            said = " ".join(str(error).split())
            away = any(words in said.lower() for words in TRANSIENT)
            if not away or time.monotonic() > deadline:
                ledger.refused(attempt.token, said)
                if away:
                    raise UserError(f"SLURM does not answer: {_reason(said)}.") from error
                raise Refused(f"SLURM refuses the job: {_reason(said)}.") from error
            log.warning("SLURM does not answer (%s); asking again in %.0f s", _reason(said), wait)
            time.sleep(wait)
            wait = min(2 * wait, 60.0)
            _forget(attempt.token, deadline)
        except OSError as error:  # of submitit's files, before or after it asked
            _forget(attempt.token, deadline)
            with suppress(OSError):
                ledger.refused(attempt.token, str(error))
            raise
        else:
            number = made[0].job_id.partition("_")[0]
            ledger.submitted(attempt.token, number)
            return number


def _forget(token: str, deadline: float) -> None:
    """Cancel the job of this name, if the controller took it and only its answer was lost: without
    the files that submitit would have made then, it cannot run. Until the queue answers, nobody
    knows."""
    while (answer := queue.ask()) is None:
        if time.monotonic() > deadline:
            return
        time.sleep(2.0)
    if job := answer.named(token):
        queue.cancel([job])


@contextmanager
def _outside_any_job() -> Iterator[None]:
    """Without the variables of a job in which this may run: its cells' jobs would inherit them."""
    names = [
        name
        for name in os.environ
        if name.startswith(("SLURM_", "SUBMITIT_"))
        and not name.startswith(("SLURM_CONF", "SLURM_JWT"))
    ]
    kept = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(kept)


def _reason(said: str) -> str:
    """sbatch's own words out of submitit's."""
    return said.rpartition("sbatch: error: ")[2].rstrip(". ") or said


def _executor(
    results: Path,
    token: str,
    resources: Resources,
    cluster: Cluster,
    code: Path,
    dependency: str | None,
) -> submitit.AutoExecutor:
    executor = submitit.AutoExecutor(
        folder=results / ".slurm" / "jobs" / "%A", cluster="slurm", slurm_max_num_timeout=10**6
    )
    unit = {"M": 1024, "G": 1}[resources.memory[-1]]
    wishes = {
        f"slurm_{name}": value for name in PLACE if (value := getattr(resources, name)) is not None
    }
    if resources.gpus:
        wishes["gpus_per_node"] = resources.gpus
    if dependency is not None:
        wishes["slurm_dependency"] = dependency
    executor.update_parameters(
        name=token,
        timeout_min=resources.time,
        cpus_per_task=resources.cpus,
        mem_gb=int(resources.memory[:-1]) / unit,
        slurm_array_parallelism=cluster.array_parallelism,
        slurm_signal_delay_s=cluster.signal_delay,
        slurm_setup=[
            f"export PYTHONPATH={quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
            *cluster.setup,
        ],
        slurm_additional_parameters={"requeue": True, "chdir": quote(str(code))},
        **wishes,
    )
    return executor


def _snapshot(results: Path) -> Path:
    """A copy of the code, which later edits leave alone. Raises OSError, and leaves no half."""
    target = (
        results / ".slurm" / "code" / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    )
    try:
        for name in ("benchmark", "methods", "slurm", "configs"):
            for file in (ROOT / name).rglob("*"):
                if file.is_file() and file.suffix != ".pyc":
                    copy = target / file.relative_to(ROOT)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(file, copy)
    except OSError:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return target


# The local runner --------------------------------------------------------------------------------


def start_pool(results: Path) -> None:
    """Start the local runner, detached; harmless where it is at work already."""
    folder = results / ".slurm" / "pool"
    folder.mkdir(parents=True, exist_ok=True)
    write = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "slurm.pool", str(results)],
        environment(),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, folder / "log.txt", write, 0o666),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,  # the terminal's end is not its
    )
    deadline = time.monotonic() + 30
    while not record.held(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
