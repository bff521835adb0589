"""A grid through minutes of trouble: whatever strikes it, in whatever order, no cell is lost and no
number changes. `CHAOS_SEED=n` strikes as seed n did, as far as the machine's timing lets it."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from benchmark import record
from slurm import grid, runner, status, submit
from slurm.ledger import Ledger
from tests import cells
from tests.cells import SMALL, differences
from tests.slurmbox import Job, SlurmBox

WORDS = [word for word in SMALL if not word.startswith(("method=", "threads="))]
GRID = ["method=kl_annealing,lm", "seed=range(0,12)"]
CELLS = 24
CLUSTER = [
    *("cluster=slurm", "cluster.cpus=2", "cluster.memory=300M", "cluster.time=60"),
    # a cell may meet bad luck that often here, and its jobs be right
    *("cluster.patience=30", "cluster.attempts=20"),
]
EVERY, LASTS = 5.0, 180.0  # s between two strikes, and in all
AWAY = (3.0, 15.0)  # s for which what was struck stays down
PATIENCE = 600.0  # s for the grid to end once it is let alone


def words(results: Path, data: Path) -> list[str]:
    longer = ["budget.steps=400", "dataset.sentences.train=1280"]  # 80 steps between checkpoints
    places = [f"results_dir={results}", f"data_dir={data}"]
    return [*WORDS, *longer, "threads=1", *GRID, *places]


class Chaos:
    """What strikes a grid on a cluster, and what mends it a while later."""

    def __init__(self, box: SlurmBox, results: Path, data: Path, seed: int):
        self.box, self.results, self.random = box, results, random.Random(seed)
        self.command = [sys.executable, "-m", "slurm.submit", *words(results, data), *CLUSTER]
        self.log = results.parent / "runners.txt"
        self.struck: Counter[str] = Counter()
        self.later: list[tuple[float, Callable[[], object]]] = []
        self.out: set[str] = set()  # nodes, and the controller
        self.next: list[Callable[[Chaos], bool]] = []
        self.processes: list[subprocess.Popen] = []
        self.runner = self.run(*self.command, "--wait")

    # Strikes: each returns whether it hit anything.

    def kill_python(self) -> bool:
        pids = self.box.pids()
        if pids:
            with suppress(ProcessLookupError):
                os.kill(self.random.choice(pids), signal.SIGKILL)
        return bool(pids)

    def scancel(self) -> bool:
        return self.at_a_job("RUNNING", "PENDING")

    def send_usr2(self) -> bool:
        return self.at_a_job("RUNNING", options=["--signal=USR2"])

    def node_down(self) -> bool:
        node = self.take_a_node()
        if node is not None:
            self.box.set_node(node, "down")
            self.soon(lambda: self.back(node))
        return node is not None

    def daemon_dies_and_its_jobs_live_on(self) -> bool:
        node = self.take_a_node()
        if node is not None:
            self.box.kill_node(node, jobs=False)
            self.soon(lambda: (self.box.start_node(node), self.back(node)))
        return node is not None

    def controller_restarts(self) -> bool:
        if "controller" in self.out:
            return False
        self.out.add("controller")
        self.box.stop_controller()
        self.soon(lambda: (self.box.start_controller(), self.out.discard("controller")))
        return True

    def preemption(self) -> bool:
        if "controller" in self.out:
            return False
        nodes = str(self.random.randint(1, 2))
        options = ["-p", "high", "-N", nodes, "--exclusive", "--output=/dev/null"]
        self.box.run("sbatch", *options, "--wrap", "sleep 3")
        return True

    def kill_runner(self) -> bool:
        alive = self.runner.poll() is None
        self.runner.kill()
        return alive

    def kill_repair(self) -> bool:
        """A second runner, which dies at any point of its work."""
        second = self.run(sys.executable, "-m", "slurm.status", str(self.results), "--repair")
        self.soon(second.kill, (0.5, 8.0))
        return True

    STRIKES = (
        *(kill_python, scancel, send_usr2, node_down, daemon_dies_and_its_jobs_live_on),
        *(controller_restarts, preemption, kill_runner, kill_repair),
    )

    # What they share.

    def at_a_job(self, *states: str, options: list[str] | None = None) -> bool:
        jobs = [job for job in self.jobs() if job.state in states]
        if jobs:
            # not waited for: it asks a node's daemon, which may be dead, for half a minute
            self.run("scancel", *(options or []), self.random.choice(jobs).id)
        return bool(jobs)

    def jobs(self) -> list[Job]:
        if "controller" in self.out:
            return []
        return [job for job in self.box.jobs() if job.name.startswith("cell-")]

    def take_a_node(self) -> str | None:
        """Never the last one: nothing would run."""
        up = [node for node in self.box.nodes if node not in self.out]
        if len(up) < 2 or "controller" in self.out:
            return None
        node = self.random.choice(up)
        self.out.add(node)
        return node

    def back(self, node: str) -> None:
        if "controller" in self.out:
            self.soon(lambda: self.back(node))
            return
        with suppress(RuntimeError):  # it may have come back by itself
            self.box.set_node(node, "resume")
        self.out.discard(node)

    def run(self, *command: str) -> subprocess.Popen:
        with self.log.open("ab") as log:
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        return self.processes[-1]

    def soon(self, mend: Callable[[], object], between: tuple[float, float] = AWAY) -> None:
        self.later.append((time.monotonic() + self.random.uniform(*between), mend))

    def mend(self, *, all_of_it: bool = False) -> None:
        for item in sorted(self.later, key=lambda item: item[0]):
            if all_of_it or item[0] < time.monotonic():
                self.later.remove(item)
                item[1]()

    # Acts.

    def strike(self) -> None:
        """Each in its turn, and in no order; what hits nothing, or finds no controller, waits."""
        if len(self.next) < len(self.STRIKES):
            self.next += self.random.sample(self.STRIKES, len(self.STRIKES))
        for strike in self.next:
            with suppress(RuntimeError, TimeoutError):
                if strike(self):
                    self.next.remove(strike)
                    self.struck[strike.__name__.replace("_", " ")] += 1
                    print(f"{time.monotonic():.0f} {strike.__name__}")
                    return

    def rage(self) -> None:
        """Strike until the time is over, or nothing is left to hit."""
        end = time.monotonic() + LASTS
        blow = time.monotonic() + EVERY
        while time.monotonic() < end and self.left() > 2:
            self.mend()
            if self.runner.poll() is not None:
                self.runner = self.run(*self.command, "--wait")
            if time.monotonic() > blow:
                blow = time.monotonic() + EVERY
                self.strike()
            time.sleep(0.5)

    def calm_down(self) -> None:
        """All is mended; two runners at once bring the grid to its end."""
        self.mend(all_of_it=True)
        for node in self.box.nodes:
            self.back(node)
        status.main([str(self.results), "--repair"])
        if self.runner.poll() is not None:
            self.runner = self.run(*self.command, "--wait")

        def ended() -> bool:
            for standing in self.open():
                if standing.state == "held":  # told to a person, who lets it go
                    self.struck["(held, and released by hand)"] += 1
                    self.box.run("scontrol", "release", standing.jobs[-1])
            return not self.open() and self.runner.poll() is not None

        self.box.wait(ended, PATIENCE, "the grid ends, and its runner with it")

    def left(self) -> int:
        """Cells not done, by their records: to ask a controller that is away takes long."""
        return sum(known["status"] != "done" for _, known in record.scan(self.results))

    def open(self) -> list[grid.Standing]:
        return [s for s in grid.look(self.results) if s.state in runner.OPEN]


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_a_grid_outlives_whatever_strikes_it(slurm, tmp_path, capsys):
    seed = int(os.environ.get("CHAOS_SEED", time.time_ns() % 10**6))
    results, calm, data = (tmp_path / name for name in ("results", "calm", "data"))
    with capsys.disabled():
        print(f"\nCHAOS_SEED={seed}")
    with cells.one_thread():
        assert submit.main([*words(calm, data), "cluster=inline"]) == 0
    chaos = Chaos(slurm, results, data, seed)
    try:
        slurm.wait(chaos.jobs, 60, "the first jobs are there")
        began = time.monotonic()
        chaos.rage()
        raged = time.monotonic() - began
        left = chaos.left()
        chaos.calm_down()
    finally:
        for process in chaos.processes:
            process.kill()
            process.wait()
    with capsys.disabled():
        print(report(chaos, f"{raged:.0f} s of it, {left} cells left then"))

    assert "Traceback" not in chaos.log.read_text()
    standings = grid.look(results)
    assert {s.cell: s.state for s in standings} == {s.cell: "done" for s in grid.look(calm)}
    assert len(standings) == CELLS and chaos.runner.returncode == 0
    for standing in standings:
        assert record.validate(results / standing.cell) == []
        known = record.RunDirectory(calm / standing.cell).read()
        assert known and differences(standing.record["summary"], known["summary"]) == []
        mine, calms = (cells.lines(r / standing.cell) for r in (results, calm))
        assert differences(mine, calms) == [], standing.cell


def report(chaos: Chaos, title: str) -> str:
    """What was struck how often, and what it cost."""
    lines = [title, *(f"{n:6d}  {name}" for name, n in chaos.struck.most_common())]
    attempts, histories = Ledger(chaos.results).read()
    tries = [len(history.attempts) for history in histories.values()]
    refused = sum(attempt.refused is not None for attempt in attempts.values())
    costs = [standing.record["cost"] for standing in grid.look(chaos.results)]
    lost, trained = (
        sum(cost.get(name) or 0.0 for cost in costs) for name in ("lost_seconds", "train_seconds")
    )
    return "\n".join(
        [
            *lines,
            f"{len(attempts):6d}  submissions, {refused} of them refused",
            f"{sum(tries):6d}  attempts at {len(tries)} cells, at most {max(tries)} at one",
            f"{lost:6.1f}  s of training lost, of {trained:.1f} s",
        ]
    )
