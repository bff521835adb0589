"""Files that are there whole or not at all, and one writer for a directory of them.

Nothing here locks: flock does not hold on NFS. Temporary names carry the attempt that made them.
"""

import contextlib
import json
import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class Busy(RuntimeError):
    """Another live process is writing the run directory."""


class LeaseLost(RuntimeError):
    """The run directory is not, or no longer, this process's to write."""


_given_back = set[str]()
"""The leases that this process has released, of which a full disk may not take note."""


def temporary_path(target: Path, attempt: str) -> Path:
    return target.with_name(f".{target.name}.{attempt}.tmp")


def create(target: Path, content: bytes, attempt: str) -> bool:
    """Make a file that is there with its whole content or not at all; False if there is one."""
    if target.exists():
        return False
    temporary = temporary_path(target, attempt)
    try:
        temporary.write_bytes(content)
        sync(temporary)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, target)
        # not the error but this decides: NFS may answer a repeated request with "exists"
        made = target.samefile(temporary)
        sync(target.parent)
        return made
    except FileNotFoundError:
        return False  # a holder of the lease swept it away, and so has been here first
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file's content, or a directory's entries, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems sync no directories
            raise
    finally:
        os.close(descriptor)


class Lease:
    """One writer for one directory, also among several machines that share it.

    The leases of a directory are the files .lease.1, .lease.2, ...; the highest is in force. To
    succeed it is to create the next number, which the file system grants to one only; nobody
    ever removes the highest, so a number means one holder, and whoever finds a higher one than
    its own has lost. (Renaming one lease file away could hit a successor's, made meanwhile.)
    A hard link is as exclusive as O_EXCL, and no one sees the file before its content.

    The holder counts up in its file every `beat` s, through the open descriptor, which cannot
    touch a successor's. A lease may be succeeded if it says that it was released; if its process
    is gone, by this machine's own process table, which may also show that it lives; or, where
    that table does not tell, if its count stands still for `stale` s of the *observer's*
    monotonic clock: neither clocks that jump nor two machines' differing ones matter. A holder
    suspended between `check` and a rename can still do that one rename.
    """

    def __init__(self, folder: Path, attempt: str, beat: float, stale: float) -> None:
        self.folder, self.attempt, self.beat, self.stale = folder, attempt, beat, stale
        self.number = 0
        self._id = uuid.uuid4().hex[:12]
        self._process = _process(os.getpid())
        self._count = 0
        self._file = -1
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Lease":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lease, after a wait of `stale` s if its holder may have died elsewhere.

        Raises Busy if the holder lives.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            number = max(self._numbers(), default=0)
            if number and not self._succeeds(number):
                continue  # someone else came first; look again
            mine = self._path(number + 1)
            if not create(mine, self._content(), self.attempt):
                continue
            if max(self._numbers()) == number + 1:
                break
            mine.unlink(missing_ok=True)  # we were slow: the number had come and gone before
        self.number = number + 1
        self._file = os.open(mine, os.O_WRONLY)
        for older in self._numbers():
            if older < self.number:
                self._path(older).unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise LeaseLost unless this is the lease in force."""
        if not self.number:
            raise LeaseLost(f"{self.folder}: take the lease before writing")
        # opening our own file asks the server even where NFS answers a listing from its cache
        if self._read(self.number) is None or max(self._numbers()) != self.number:
            raise LeaseLost(f"{self.folder} was taken over by another process; this one stops")

    def release(self) -> None:
        """Let the next one in at once; harmless if the lease was lost or never taken."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self._thread = None
        self.number = 0
        _given_back.add(self._id)
        with contextlib.suppress(OSError):
            self._mark(released=True)
        os.close(self._file)

    def _succeeds(self, number: int) -> bool:
        """Whether lease `number` is over; False if it is no longer there. Raises Busy."""
        content = self._read(number)
        owner = _owner(content)
        name = f"process {owner.get('pid', '?')} on {owner.get('host', 'an unknown host')}"
        busy = Busy(f"{self.folder} is being written by {name}: wait for it, or stop it")
        if content is None:
            return False
        if owner.get("released") or _lives(owner) is False:
            return True
        if _lives(owner):
            raise busy
        log.warning(
            "%s may be in use by %s; waiting up to %g s for a sign of life",
            *(self.folder, name, self.stale),
        )
        end = time.monotonic() + self.stale
        while time.monotonic() < end:
            time.sleep(min(1.0, self.stale / 20))
            now = self._read(number)
            owner = _owner(now)
            if now is None or owner.get("released"):
                return now is not None
            if now != content:
                raise busy
        return True

    def _beat(self) -> None:
        while not self._ended.wait(self.beat):
            self._count += 1
            try:
                self._mark(released=False)
            except OSError as error:
                log.warning("%s: the lease could not be renewed: %s", self.folder, error)

    def _mark(self, released: bool) -> None:
        os.pwrite(self._file, self._content(released), 0)
        os.fsync(self._file)

    def _content(self, released: bool = False) -> bytes:
        """Of one length for all counts, because it is overwritten in place."""
        state = {"lease": self._id, "released": int(released), "count": f"{self._count:09d}"}
        return (json.dumps(self._process | state) + "\n").encode()

    def _path(self, number: int) -> Path:
        return self.folder / f".lease.{number}"

    def _numbers(self) -> list[int]:
        names = (name.removeprefix(".lease.") for name in os.listdir(self.folder))
        return [int(name) for name in names if name.isdecimal()]

    def _read(self, number: int) -> bytes | None:
        try:
            return self._path(number).read_bytes()
        except FileNotFoundError:
            return None


def holder(folder: Path) -> dict[str, Any]:
    """What the newest lease of a directory says of its process (`host`, `pid`) and of itself
    (`released`); nothing if there is none."""
    return _look(folder)[0]


def held(folder: Path, stale: float = 90.0) -> bool:
    """Whether somebody holds a directory's lease, as far as one look tells: where its process
    cannot be seen, whether it has beaten within `stale` s by the clocks of both."""
    owner, beat = _look(folder)
    lives = _lives(owner)
    if owner.get("released") or lives is False:
        return False
    return bool(lives) or time.time() - beat < stale


def _look(folder: Path) -> tuple[dict[str, Any], float]:
    """Who made a directory's newest lease, and its last beat, s by its file's clock; if there is
    none, nobody, and for ever ago."""
    names = (path.name.removeprefix(".lease.") for path in folder.glob(".lease.*"))
    number = max((int(name) for name in names if name.isdecimal()), default=0)
    path = folder / f".lease.{number}"
    try:
        return _owner(path.read_bytes()), path.stat().st_mtime
    except FileNotFoundError:
        return {}, -math.inf


def _process(pid: int) -> dict[str, Any]:
    """What tells a process from all others, ever and anywhere; `start` None if it is gone."""
    try:
        # the name, in parentheses, may hold anything; then state, 18 fields, start time
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        start = None if state in "ZX" else int(fields[18])
    except (FileNotFoundError, ProcessLookupError):
        start = None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = namespace = None
    machine = {"host": socket.gethostname(), "boot": boot}
    return {**machine, "namespace": namespace, "uid": os.getuid(), "pid": pid, "start": start}


def _owner(content: bytes | None) -> dict[str, Any]:
    try:
        owner = json.loads(content or b"{}")
    except ValueError:
        owner = {}
    return owner if isinstance(owner, dict) else {}


def _lives(owner: Mapping[str, Any]) -> bool | None:
    """Whether a lease's process is running and wants it; None where that cannot be seen from
    here."""
    if owner.get("lease") in _given_back:
        return False
    if not isinstance(owner.get("pid"), int) or not owner.get("boot"):
        return None
    now = _process(owner["pid"])
    # containers share host and boot, not processes; and /proc may hide other users' processes
    if any(now[key] != owner.get(key) for key in ("host", "boot", "namespace", "uid")):
        return None
    return now["start"] is not None and now["start"] == owner.get("start")
