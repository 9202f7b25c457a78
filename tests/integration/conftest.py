"""Project folders with the fake server in vLLM's place; nothing that was started in one outlives its test."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.load.calibration import Calibration
from pipeline.server import readiness, state, stop
from pipeline.stages import bench
from tests.fakes.cluster import Cluster
from tests.fakes.environment import FakeProject
from tests.fakes.nvml import FakeNvml


@pytest.fixture
def project(tmp_path: Path) -> Iterator[FakeProject]:
    made = FakeProject(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session", autouse=True)
def compilers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a server of the GPU sets compiles with is there, whatever this machine has; nothing here is compiled with it."""
    headers = tmp_path_factory.mktemp("headers")
    (headers / "Python.h").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", sys.executable)
        patch.setenv("C_INCLUDE_PATH", str(headers))
        yield


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> FakeNvml:
    """The stand-in for the driver's library, of today."""
    return FakeNvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def old_nvml(tmp_path_factory: pytest.TempPathFactory) -> FakeNvml:
    """The stand-in for the library of a driver that lacks the newer functions."""
    return FakeNvml(tmp_path_factory.mktemp("old-nvml"), "-DOLD")


def calibrated(concurrency: int, delay_ms_p95: float = 0.1) -> Calibration:
    """Return what a client that is good enough measures."""
    return Calibration(concurrency=concurrency, chunks=9, delay_ms_p50=0.1, delay_ms_p95=delay_ms_p95, cpu_us_per_chunk=10)


@pytest.fixture(autouse=True)
def calibrated_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrating the client for real takes seconds; the tests of just that do."""
    monkeypatch.setattr(bench, "calibrate", lambda concurrencies, *_: ([calibrated(number) for number in concurrencies], 1e6))
    monkeypatch.setattr(bench, "contention", lambda _: [])


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell starts what it runs in the background deaf to interrupts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def quick() -> Iterator[None]:
    """A fake is ready, and gone, in less time than one look at vLLM may take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readiness, "POLL_S", 0.03)
        patch.setattr(stop, "POLL_S", 0.05)
        yield


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake dies at once or not at all: two seconds are patience enough."""
    patient = state.dies_within
    monkeypatch.setattr(state, "dies_within", lambda pid, created, seconds: patient(pid, created, min(seconds, 2.0)))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Ray cluster of three nodes."""
    made = Cluster()
    yield made
    made.ray.shutdown()
