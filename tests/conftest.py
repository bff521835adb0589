"""What the tests share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.slurmbox import OUTER, SlurmBox, missing

# Machines are noisy: how long an example takes says nothing about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def denormal_numbers():
    """Cells have the processor flush these, a state of the thread that would outlive them."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository, which may not be shipped with it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        reason = f"the real data sets are not at {folder}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def slurm_programs() -> None:
    """All that a cluster needs is installed, which `.ci/run` does and few other machines have."""
    if programs := missing():
        reason = f"no SLURM here: {', '.join(programs)} missing, which .ci/run installs"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def slurm_cluster(slurm_programs) -> Iterator[SlurmBox]:
    """Three nodes with accounting; each worker of xdist has its own."""
    with SlurmBox(nodes=3) as box:
        yield box


@pytest.fixture
def slurm(slurm_cluster, monkeypatch) -> Iterator[SlurmBox]:
    """The session's cluster, empty and idle, for this process and those it starts."""
    enter(slurm_cluster, monkeypatch)
    yield slurm_cluster
    slurm_cluster.cancel_all()


@pytest.fixture
def slurm_without_accounting(slurm_programs, monkeypatch) -> Iterator[SlurmBox]:
    """A cluster of the test's own whose sacct fails, for this process and those it starts."""
    with SlurmBox(accounting=False) as box:
        enter(box, monkeypatch)
        yield box


def enter(box: SlurmBox, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in filter(OUTER.match, [*os.environ]):
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", box.env["SLURM_CONF"])
