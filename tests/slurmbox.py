"""A SLURM cluster of one's own in a temporary folder, on loopback: it reads nothing of /etc, leaves
nothing behind but a database to copy, and several may run at once. Needs what `.ci/run` installs;
any user may run one."""

import fcntl
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PROGRAMS = (
    *("slurmctld", "slurmd", "sbatch", "setpriv"),
    *("slurmdbd", "mariadbd", "mariadb-install-db"),
)
ID_NAMES = ("JOB", "ARRAY_JOB", "ARRAY_TASK")
OUTER = re.compile("(SLURMD?|SBATCH|SRUN|SALLOC|SACCT|SQUEUE|SINFO|SCANCEL|SUBMITIT)_")
"""Variables of an allocation around the tests, which jobs would inherit."""

# Whoever reaches a port is trusted, so none is open to other machines. A requeued job waits for
# cred_expire; less than 5 s is an error, and then it is 120. With proctrack/pgid each job would end
# 3 s later.
CONTROLLER = """
ClusterName=box
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={root}/state
SlurmctldPidFile={root}/slurmctld.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdSpoolDir={root}/spool.%n
SlurmdPidFile={root}/slurmd.%n.pid
SlurmdLogFile={root}/slurmd.%n.log
SlurmdParameters=config_overrides
SlurmdTimeout=10
MessageTimeout=5
KillWait=2
ReturnToService=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_min_interval=100000,sched_interval=1,bf_interval=1,batch_sched_delay=0
MaxArraySize={max_array_size}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE
PartitionName=cancelled Nodes=ALL PriorityTier=1 PreemptMode=CANCEL
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""
NODE = """\
NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={cpus} \
RealMemory={memory} State=UNKNOWN
"""
ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={port}
"""
DATABASE = """
AuthType=auth/none
CommunicationParameters=NoInAddrAny
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
PidFile={root}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=accounts
"""


@dataclass(frozen=True)
class Job:
    """A line of squeue. Each element of an array has its own, also while it waits."""

    id: str
    """`7`, or `7_1` of an array."""
    state: str
    reason: str
    node: str
    """Empty while it waits."""
    name: str


class SlurmBox:
    """A cluster of nodes n1, n2, ... that lasts as long as its `with` block.

    The partitions are `low` (the default), whose jobs are requeued for those of `high`, and
    `cancelled`, whose jobs are cancelled for them. Whatever takes too long raises TimeoutError. The
    daemons die with the thread that started them, even if by SIGKILL.
    """

    def __init__(
        self,
        *,
        nodes: int = 2,
        cpus: int = 4,
        memory: int = 4000,
        accounting: bool = True,
        max_array_size: int = 1001,
    ) -> None:
        """`memory` is in MB a node; array indices are below `max_array_size`; without `accounting`
        sacct fails, as it does on some clusters."""
        self.root = Path()
        self.nodes = [f"n{i + 1}" for i in range(nodes)]
        self.env: dict[str, str] = {}
        """The whole environment of whoever uses this cluster."""
        self._accounting = accounting
        self._node = {"cpus": cpus, "memory": memory}
        self._max_array_size = max_array_size
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._until_exit = ExitStack()

    def __enter__(self) -> "SlurmBox":
        with ExitStack() as until_exit:
            self._settle(until_exit)
            if self._accounting:
                shutil.copytree(_database_template(), self.root / "data")
                self._start_database()
            self.start_controller()
            for name in self.nodes:
                self.start_node(name)
            self.wait(lambda: {*self._states().values()} == {"idle"}, 30, "the nodes are idle")
            self._until_exit = until_exit.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._until_exit.close()

    def run(self, *argv: str, seconds: float = 30) -> str:
        """What a client command prints; raises RuntimeError with its complaint if it fails."""
        try:
            done = subprocess.run(
                argv, env=self.env, timeout=seconds, text=True, capture_output=True
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{' '.join(argv)}: nothing after {seconds} s") from None
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def jobs(self) -> list[Job]:
        """What waits, runs or completes."""
        lines = self.run("squeue", "-r", "-h", "-o", "%i|%T|%r|%N|%j").splitlines()
        return [Job(*line.split("|", 4)) for line in lines]

    def pids(self, job_id: str | None = None) -> list[int]:
        """The living Python processes of a job (`7` or `7_1`), or of all, on whatever node."""
        found = []
        for pid, have in self._processes():
            job, array, index = (have.get(f"SLURM_{name}_ID") for name in ID_NAMES)
            if job and job_id in (None, job, f"{array}_{index}"):
                with suppress(OSError):
                    if Path(os.readlink(f"/proc/{pid}/exe")).name.startswith("python"):
                        found.append(pid)
        return found

    def wait(self, condition: Callable[[], T], seconds: float, what: str) -> T:
        """The first true value of `condition`; TimeoutError tells the state of the cluster."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not so within {seconds} s: {what}\n{self._report()}")
            time.sleep(0.1)
        return value

    def kill_node(self, name: str, *, jobs: bool = True) -> None:
        """As a power cut does: its daemon is gone and, with `jobs`, all that it ran. The controller
        notices after some 30 s, or at once when told by `set_node(name, "down")`."""
        self._stop(name, signal.SIGKILL)
        if jobs:
            self._sweep(lambda have: have.get("SLURMD_NODENAME") == name)

    def start_node(self, name: str) -> None:
        """Returns before the controller knows of it."""
        self._start(name, "slurmd", "-D", "-N", name, SLURMD_NODENAME=name)

    def set_node(self, name: str, state: str) -> None:
        """As an administrator does: `down`, `drain`, `resume`."""
        self.run("scontrol", "update", f"nodename={name}", f"state={state}", "reason=test")

    def stop_controller(self, by: signal.Signals = signal.SIGTERM) -> None:
        """SIGTERM lets it save what it knows. After SIGKILL it has forgotten the last seconds and
        gives their job ids out again, while accounting still knows the first jobs of that id."""
        self._stop("slurmctld", by)

    def start_controller(self) -> None:
        """Returns once it answers."""
        self._start("slurmctld", "slurmctld", "-D", "-i")
        self.wait(lambda: "is UP" in self._try("scontrol", "ping"), 30, "the controller is up")

    def cancel_all(self) -> None:
        """Back to an empty queue and idle nodes, whatever a test did to them."""
        if not self._alive("slurmctld"):
            self.start_controller()
        for name in self.nodes:
            if not self._alive(name):
                self.start_node(name)

        def clean() -> bool:
            jobs, states = self.jobs(), self._states()
            if jobs:
                self._try("scancel", "--full", "--signal=KILL", *(job.id for job in jobs))
                self._try("scancel", *(job.id for job in jobs))
            for name, state in states.items():
                if state.startswith(("down", "drain")):
                    self._try("scontrol", "update", f"nodename={name}", "state=resume")
            return not jobs and {*states.values()} == {"idle"}

        self.wait(clean, 60, "the queue is empty and the nodes are idle")
        self._sweep(lambda have: "SLURM_JOB_ID" in have)

    def _settle(self, until_exit: ExitStack) -> None:
        """Folder, ports and configuration."""
        # Not pytest's tmp_path: a unix socket's name may have about 107 characters.
        self.root = Path(tempfile.mkdtemp(prefix="sb"))
        until_exit.callback(shutil.rmtree, self.root, ignore_errors=True)
        self.env = {k: v for k, v in os.environ.items() if not OUTER.match(k)}
        self.env["SLURM_CONF"] = str(self.root / "slurm.conf")
        until_exit.callback(self._kill)
        held, ports = _ports(2 + len(self.nodes))
        until_exit.enter_context(held)

        own = {"root": self.root, "user": _user(), "max_array_size": self._max_array_size}
        (self.root / "state").mkdir()
        text = CONTROLLER.format(port=ports[0], **own)
        if self._accounting:
            text += ACCOUNTING.format(port=ports[1])
            database = self.root / "slurmdbd.conf"
            database.touch(mode=0o600)  # or slurmdbd refuses it
            database.write_text(DATABASE.format(port=ports[1], **own))
        for name, port in zip(self.nodes, ports[2:], strict=True):
            (self.root / f"spool.{name}").mkdir()
            text += NODE.format(name=name, port=port, **self._node)
        (self.root / "slurm.conf").write_text(text)

    def _start_database(self) -> None:
        sql = self.root / "sql.sock"
        options = (*_sql_options(self.root), f"--socket={sql}", "--skip-networking")
        self._start("mariadbd", "mariadbd", *options)
        self.wait(sql.exists, 30, "the database is up")
        # slurmdbd has no option for the socket, its client library has a variable.
        self._start("slurmdbd", "slurmdbd", "-D", MYSQL_UNIX_PORT=str(sql))
        self.wait(lambda: self._try("sacctmgr", "-n", "show", "qos"), 30, "slurmdbd is up")

    def _start(self, name: str, program: str, *arguments: str, **variables: str) -> None:
        assert not self._alive(name), f"{name} is running"
        # Not preexec_fn, which is unsafe once torch has threads. In a session of its own, so that
        # Ctrl-C reaches pytest alone.
        with (self.root / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", _find(program), *arguments],
                env={**self.env, **variables},
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def _alive(self, name: str) -> bool:
        return name in self._daemons and self._daemons[name].poll() is None

    def _stop(self, name: str, by: signal.Signals) -> None:
        self._daemons[name].send_signal(by)
        self.wait(lambda: not self._alive(name), 20, f"{name} has ended")

    def _kill(self) -> None:
        """The folder goes with it, so nothing need end well."""
        self._sweep(lambda have: True)
        for daemon in self._daemons.values():
            daemon.wait(20)

    def _processes(self) -> Iterator[tuple[int, dict[str, str]]]:
        """All that belongs to this cluster, also what init has inherited, with its variables."""
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                text = (folder / "environ").read_bytes().decode(errors="replace")
                have = dict(v.split("=", 1) for v in text.split("\0") if "=" in v)
                if have.get("SLURM_CONF") == self.env["SLURM_CONF"]:
                    yield int(folder.name), have

    def _sweep(self, doomed: Callable[[dict[str, str]], bool]) -> None:
        """Kill until none is left, since what is about to die may start another."""
        deadline = time.monotonic() + 20
        while pids := [pid for pid, have in self._processes() if doomed(have)]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes {pids} survive SIGKILL")
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def _states(self) -> dict[str, str]:
        lines = self._try("sinfo", "-h", "-N", "-p", "low", "-o", "%N %T").splitlines()
        return dict(line.split() for line in lines)

    def _try(self, *argv: str) -> str:
        """What it prints, or nothing while the cluster cannot say."""
        with suppress(RuntimeError, TimeoutError):
            return self.run(*argv, seconds=10)
        return ""

    def _report(self) -> str:
        said = [self._try("sinfo", "-N", "-l"), self._try("squeue", "-r")]
        ended = [f"{name}.out" for name in self._daemons if not self._alive(name)]
        for log in (self.root / name for name in (*ended, "slurmctld.log")):
            lines = log.read_text().splitlines() if log.exists() else []
            said.append("\n".join([f"{log.name}:", *lines[-30:]]))
        return "\n".join(said)


def missing() -> list[str]:
    """What a cluster needs and this machine has not."""
    return [program for program in PROGRAMS if shutil.which(_find(program)) is None]


def _find(program: str) -> str:
    """Also where ordinary users do not look: Debian keeps the daemons there."""
    path = f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin"
    return shutil.which(program, path=path) or program


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _ports(n: int) -> tuple[socket.socket, range]:
    """n free ports, and a socket on the port before them that keeps other boxes away while it is
    open. They lie below those that the kernel gives to whoever asks for any."""
    for first in range(20000, 32000, 32):
        lock, ports = socket.socket(), range(first + 1, first + 1 + n)
        try:
            lock.bind(("127.0.0.1", first))
            for port in ports:
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
            return lock, ports
        except OSError:
            lock.close()
    raise RuntimeError("no block of free ports between 20000 and 32000")


def _sql_options(root: Path) -> list[str]:
    files = [f"--datadir={root}/data", f"--tmpdir={root}", f"--user={_user()}"]
    sizes = ["--innodb-log-file-size=4M", "--innodb-buffer-pool-size=32M"]
    return ["--no-defaults", *files, *sizes, "--innodb-flush-log-at-trx-commit=0"]


def _database_template() -> Path:
    """The files of a database that slurmdbd has set up: made once on a machine, which takes
    seconds, to be copied."""
    version = subprocess.check_output([_find("slurmd"), "-V"], text=True).split()[-1]
    template = Path(tempfile.gettempdir()) / f"slurm-accounting-{os.getuid()}-{version}"
    with open(f"{template}.lock", "a") as lock, ExitStack() as until_exit:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not template.is_dir():
            box = SlurmBox(nodes=0)
            box._settle(until_exit)
            (box.root / "data").mkdir()
            options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
            install = _find("mariadb-install-db")
            box.run(install, *_sql_options(box.root), *options, seconds=120)
            box._start_database()
            box.run("sacctmgr", "-i", "add", "cluster", "box")
            for daemon in ("slurmdbd", "mariadbd"):
                box._stop(daemon, signal.SIGTERM)
            (box.root / "data").rename(template)
    return template
