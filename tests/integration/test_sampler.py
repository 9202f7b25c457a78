"""The memory sampler as the process that it is."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fakes.environment import FakeProject, until

HOLD = "import os, time\nheld = bytearray(64 << 20)\nheld[::4096] = b'x' * len(held[::4096])\n"
FORKING = f"{HOLD}if os.fork() == 0: time.sleep(60)\nprint('ready', flush=True)\ntime.sleep(60)"


class Sampler:
    """A sampler on a folder, started as the server room starts it."""

    def __init__(self, project: FakeProject) -> None:
        self.folder = project.root / "artifacts" / "launches" / "one"
        self.folder.mkdir(parents=True)
        words = [sys.executable, "-m", "pipeline.gpu.sampler", str(self.folder), "50"]
        self.process = subprocess.Popen(words, cwd=project.root, start_new_session=True)

    def samples(self) -> list[dict[str, Any]]:
        path = self.folder / "samples.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def follow(self, pid: int) -> None:
        (self.folder / "session").write_text(str(pid), encoding="utf-8")

    def ended(self) -> bool:
        return self.process.poll() is not None


@pytest.fixture
def sampler(project: FakeProject) -> Iterator[Sampler]:
    made = Sampler(project)
    yield made
    made.process.kill()
    made.process.wait()


@pytest.fixture
def genuine(tmp_path: Path) -> Iterator[Sampler]:
    """The sampler with its own patience, of seconds."""
    made = Sampler(FakeProject(tmp_path, waits={}))
    yield made
    made.process.kill()
    made.process.wait()


@pytest.fixture
def session() -> Iterator[psutil.Popen]:
    """A leader and a child that share 64 MiB, in a session of their own."""
    leader = psutil.Popen([sys.executable, "-c", FORKING], stdout=subprocess.PIPE, start_new_session=True)
    assert leader.stdout.readline() == b"ready\n"
    members = [leader, *leader.children()]
    yield leader
    for member in members:
        if member.is_running():
            member.kill()
    leader.wait()
    leader.stdout.close()


def test_a_baseline_is_written_before_any_session(sampler: Sampler) -> None:
    until(sampler.samples, "a first sample")
    first = sampler.samples()[0]
    assert "processes" not in first
    assert "rss_mib" not in first
    assert first["t"] > 0


def test_a_session_is_summed_with_shared_memory_counted_once_in_pss(sampler: Sampler, session: psutil.Popen) -> None:
    until(sampler.samples, "a first sample")
    sampler.follow(session.pid)
    until(lambda: any("pss_mib" in sample for sample in sampler.samples()), "a PSS sample")
    sample = next(sample for sample in sampler.samples() if "pss_mib" in sample)
    assert sample["processes"] == 2
    assert sample["rss_mib"] >= 2 * 64, "each process counts the pages that it shares"
    assert 64 <= sample["pss_mib"] < sample["rss_mib"] - 32, "shared pages count once"


def test_time_goes_forward_and_pss_is_taken_less_often(sampler: Sampler, session: psutil.Popen) -> None:
    sampler.follow(session.pid)
    until(lambda: sum("pss_mib" in sample for sample in sampler.samples()) >= 3, "three PSS samples")
    samples = [sample for sample in sampler.samples() if "processes" in sample]
    times = [sample["t"] for sample in samples]
    assert times == sorted(times)
    assert sum("pss_mib" in sample for sample in samples) < len(samples)
    assert all("rss_mib" in sample for sample in samples)


def test_it_lives_as_long_as_the_last_of_the_session_and_then_ends(sampler: Sampler, session: psutil.Popen) -> None:
    (child,) = session.children()
    sampler.follow(session.pid)
    until(lambda: any(sample.get("processes") == 2 for sample in sampler.samples()), "a sample of both")
    session.kill()
    session.wait()
    seen = len(sampler.samples())
    # Samples for twice its patience: the child alone holds it.
    until(lambda: len(sampler.samples()) >= seen + 30, "more samples")
    assert not sampler.ended()
    assert sampler.samples()[-1]["processes"] == 1
    child.kill()
    until(sampler.ended, "its end")
    assert sampler.process.returncode == 0
    assert sampler.samples()[-1]["processes"] == 0, "it has seen the session empty"


def test_it_ends_after_a_session_that_was_gone_before_it_looked(sampler: Sampler) -> None:
    gone = psutil.Popen(["true"], start_new_session=True)
    gone.wait()
    sampler.follow(gone.pid)
    until(sampler.ended, "its end")
    assert sampler.process.returncode == 0


def test_it_ends_when_no_session_is_named_in_time(tmp_path: Path) -> None:
    sampler = Sampler(FakeProject(tmp_path, waits={"WAIT_FOR_SESSION_S": 0.5}))
    try:
        until(sampler.ended, "its end")
    finally:
        sampler.process.kill()
        sampler.process.wait()
    assert sampler.process.returncode == 0
    assert all("processes" not in sample for sample in sampler.samples())
    assert sampler.samples()[-1]["t"] - sampler.samples()[0]["t"] >= 0.4, "it was in time for a while"


def test_with_its_own_patience_it_outlasts_a_moment_without_processes(genuine: Sampler, session: psutil.Popen) -> None:
    genuine.follow(session.pid)
    until(lambda: any(sample.get("processes") == 2 for sample in genuine.samples()), "a sample of both")
    for member in (*session.children(), session):
        member.kill()
    session.wait()
    until(lambda: genuine.samples()[-1].get("processes") == 0, "a sample of none")
    until(genuine.ended, "its end")
    after = [sample["t"] for sample in genuine.samples() if sample.get("processes") == 0]
    assert after[-1] - after[0] >= 1, "what the devices hold after the end is on record"
