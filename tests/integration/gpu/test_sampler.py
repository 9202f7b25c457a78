"""The memory sampler as the process that it is."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.server.launch import start_sampler
from tests.fakes.environment import QUICK, FakeProject, until
from tests.fakes.nvml import LIBRARY, ROOT, RTX_4050, SYSTEM, FakeNvml

STOPPED = "import sys; from pipeline.gpu import nvml; print(nvml.device_used_mib(sys.argv[1]))"

HOLD = "import os, time\nheld = bytearray(64 << 20)\nheld[::4096] = b'x' * len(held[::4096])\n"
FORKING = f"{HOLD}if os.fork() == 0: time.sleep(60)\nprint('ready', flush=True)\ntime.sleep(60)"


class Sampler:
    """A sampler on a folder, started as the server room starts it."""

    def __init__(self, project: FakeProject, environment: Mapping[str, str] = os.environ) -> None:
        self.folder = project.root / "artifacts" / "launches" / "one"
        self.folder.mkdir(parents=True)
        words = [sys.executable, "-m", "pipeline.gpu.sampler", str(self.folder), "50"]
        self.process = subprocess.Popen(words, cwd=project.root, env=dict(environment), start_new_session=True)

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


def test_pss_is_taken_as_rarely_as_its_cost_asks(tmp_path: Path, session: psutil.Popen) -> None:
    sampler = Sampler(FakeProject(tmp_path, waits={**QUICK, "SHARE_AT_MOST": 0.00001}))  # a millisecond then asks for 100 s
    try:
        sampler.follow(session.pid)
        until(lambda: sum("processes" in sample for sample in sampler.samples()) >= 40, "samples of four times SHARE_EVERY_S")
    finally:
        sampler.process.kill()
        sampler.process.wait()
    assert sum("pss_mib" in sample for sample in sampler.samples()) == 1


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


# The devices, through the real pynvml on a stand-in for the driver's library.

Started = Callable[..., Sampler]


@pytest.fixture
def started(project: FakeProject, nvml: FakeNvml) -> Iterator[Started]:
    """Start a sampler on a library that plays this script."""
    made: list[Sampler] = []

    def start(script: str, library: FakeNvml = nvml, visible: str | None = None) -> Sampler:
        library.play(script)
        made.append(Sampler(project, library.environment(visible)))
        until(made[0].samples, "a first sample")
        return made[0]

    yield start
    for sampler in made:
        sampler.process.kill()
        sampler.process.wait()


def seen(sampler: Sampler, wanted: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
    """Wait for a new sample like that, and return it."""
    old = len(sampler.samples())
    until(lambda: any(wanted(sample) for sample in sampler.samples()[old:]), what)
    return next(sample for sample in sampler.samples()[old:] if wanted(sample))


def test_a_device_is_sampled_whole(started: Started) -> None:
    first = started(SYSTEM + RTX_4050.replace("power", "throttle=0x65 power")).samples()[0]
    assert first["gpu_used_mib"] == [100]
    assert first["gpu_tree_mib"] == [None]
    state = {"util_percent": 37, "temperature_c": 61, "power_w": 35.2, "sm_clock_mhz": 1755}
    assert first["devices"] == [{**state, "throttle": ["sw_power_cap", "sw_thermal_slowdown", "hw_thermal_slowdown"]}]
    assert "gpu_error" not in first


def test_memory_over_time_is_followed(started: Started) -> None:
    sampler = started(SYSTEM + RTX_4050.replace("used=100", "used=100,2100,4100"))
    until(lambda: len(sampler.samples()) >= 4, "four samples")
    assert [sample["gpu_used_mib"] for sample in sampler.samples()[:4]] == [[100], [2100], [4100], [4100]]


def test_the_trees_part_is_summed_without_strangers(started: Started, nvml: FakeNvml, session: psutil.Popen) -> None:
    (child,) = session.children()
    lines = f"process pid={session.pid} used=500\nprocess pid={child.pid} used=1500\nprocess pid=1 used=70\n"
    sampler = started(SYSTEM + RTX_4050 + lines)
    sampler.follow(session.pid)
    assert seen(sampler, lambda sample: sample.get("processes") == 2, "the tree")["gpu_tree_mib"] == [2000]
    nvml.play(SYSTEM + RTX_4050 + lines.replace("1500", "-"))
    seen(sampler, lambda sample: sample["gpu_tree_mib"] == [None], "a tree whose use is not told")


def test_what_the_driver_does_not_tell_is_absent(started: Started) -> None:
    silent = {"nvmlDeviceGetUtilizationRates": 3, "nvmlDeviceGetPowerUsage": 4, "nvmlDeviceGetClockInfo": 999}
    lines = "".join(f"error fn={function} code={code}\n" for function, code in silent.items())
    sampler = started(SYSTEM + RTX_4050 + lines)
    until(lambda: len(sampler.samples()) >= 3, "three samples")
    for sample in sampler.samples():
        assert sample["devices"] == [{"temperature_c": 61, "throttle": []}]
        assert "gpu_error" not in sample


def test_an_old_driver_is_asked_by_the_older_names(started: Started, old_nvml: FakeNvml) -> None:
    first = started(SYSTEM + RTX_4050.replace("power", "throttle=0x8 power"), old_nvml).samples()[0]
    assert first["gpu_used_mib"] == [400], "with what the driver keeps, which it does not tell apart"
    assert first["devices"][0]["throttle"] == ["hw_slowdown"]


def test_an_instance_has_its_own_memory_and_its_boards_sensors(started: Started) -> None:
    board = RTX_4050.replace("cc=8.9", "cc=8.0 mig=1")
    instances = "instance uuid=MIG-1 name=A total=1000 used=10\ninstance uuid=MIG-2 name=B total=1000 used=20\n"
    first = started(SYSTEM + board + instances, visible="MIG-2").samples()[0]
    assert (first["gpu_used_mib"], first["devices"][0]["temperature_c"]) == ([20], 61)


def test_memory_that_the_processor_shares_is_sampled_as_the_machines(started: Started) -> None:
    silent = "error fn=nvmlDeviceGetMemoryInfo_v2 code=3\nerror fn=nvmlDeviceGetMemoryInfo code=3\n"
    first = started(SYSTEM + RTX_4050 + silent).samples()[0]
    (used,) = first["gpu_used_mib"]
    assert 0 < used < psutil.virtual_memory().total / 2**20
    assert "gpu_error" not in first


def test_only_visible_devices_are_sampled(started: Started) -> None:
    other = RTX_4050.replace("GPU-a1b2", "GPU-c3d4").replace("used=100", "used=900")
    assert started(SYSTEM + RTX_4050 + other, visible="GPU-c").samples()[0]["gpu_used_mib"] == [900]


def test_the_devices_of_the_server_are_sampled_and_counted_after_its_stop(
    project: FakeProject, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = RTX_4050.replace("GPU-a1b2", "GPU-c3d4").replace("used=100", "used=900")
    nvml.play(SYSTEM + RTX_4050 + other)
    for name, value in nvml.environment("0").items():
        monkeypatch.setenv(name, value)
    settings = project.settings()
    settings = settings.model_copy(update={"env": {**settings.env, "CUDA_VISIBLE_DEVICES": "1"}})
    folder = project.root / "artifacts" / "launches" / "one"
    folder.mkdir(parents=True)
    sampler = start_sampler(folder, settings, project.workspace)
    sampler.kill()
    sampler.wait()
    first = json.loads((folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["gpu_used_mib"] == [900]
    told = subprocess.run([sys.executable, "-c", STOPPED, "1"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert told.stdout.strip() == "[900.0]"


@pytest.mark.parametrize(("code", "name"), [(15, "GpuIsLost"), (16, "ResetRequired"), (1, "Uninitialized"), (777, "code 777")])
def test_a_device_that_fails_is_named_and_comes_back(started: Started, nvml: FakeNvml, session: psutil.Popen, code: int, name: str) -> None:
    sampler = started(SYSTEM + RTX_4050)
    sampler.follow(session.pid)
    nvml.play(f"{SYSTEM}{RTX_4050}error fn=nvmlDeviceGetMemoryInfo_v2 code={code}\n")
    bad = seen(sampler, lambda sample: "gpu_error" in sample and "rss_mib" in sample, "an error beside the host's memory")
    assert (bad["gpu_error"], bad["gpu_used_mib"], bad["gpu_tree_mib"], bad["devices"]) == (name, [None], [None], [{}])
    nvml.play(SYSTEM + RTX_4050)
    assert seen(sampler, lambda sample: "gpu_error" not in sample, "the device's return")["gpu_used_mib"] == [100]
    assert not sampler.ended()


def test_a_sensor_that_finds_the_device_gone_fails_it_and_another_error_passes(started: Started, nvml: FakeNvml) -> None:
    sampler = started(SYSTEM + RTX_4050)
    nvml.play(f"{SYSTEM}{RTX_4050}error fn=nvmlDeviceGetPowerUsage code=10\n")
    passing = seen(sampler, lambda sample: "power_w" not in sample["devices"][0], "a sensor's timeout")
    assert (passing["gpu_used_mib"], "gpu_error" in passing, passing["devices"][0]["temperature_c"]) == ([100], False, 61)
    nvml.play(SYSTEM + RTX_4050)
    seen(sampler, lambda sample: "power_w" in sample["devices"][0], "the sensor's return")
    nvml.play(f"{SYSTEM}{RTX_4050}error fn=nvmlDeviceGetPowerUsage code=15\n")
    assert seen(sampler, lambda sample: "gpu_error" in sample, "the loss")["gpu_error"] == "GpuIsLost"


def test_one_device_of_two_that_is_lost_leaves_the_other(started: Started, nvml: FakeNvml) -> None:
    two = SYSTEM + RTX_4050 + RTX_4050.replace("GPU-a1b2", "GPU-c3d4").replace("used=100", "used=900")
    sampler = started(two)
    nvml.play(f"{two}error fn=nvmlDeviceGetMemoryInfo_v2 code=15 device=0\n")
    bad = seen(sampler, lambda sample: "gpu_error" in sample, "the loss")
    assert (bad["gpu_used_mib"], bad["devices"][0], bad["devices"][1]["util_percent"]) == ([None, 900], {}, 37)


def test_a_device_that_is_missing_after_a_reset_keeps_its_place(started: Started, nvml: FakeNvml) -> None:
    other = RTX_4050.replace("GPU-a1b2", "GPU-c3d4").replace("used=100", "used=900")
    sampler = started(SYSTEM + RTX_4050 + other)
    nvml.play(f"{SYSTEM}{RTX_4050}{other}error fn=nvmlDeviceGetMemoryInfo_v2 code=15\n")
    seen(sampler, lambda sample: sample["gpu_used_mib"] == [None, None], "the loss of both")
    nvml.play(SYSTEM + other)
    back = seen(sampler, lambda sample: sample["gpu_used_mib"][1] is not None, "the return of one")
    assert (back["gpu_used_mib"], back["gpu_error"]) == ([None, 900], "NotFound")


def test_a_call_that_hangs_holds_up_no_host_sample_and_the_device_comes_back(
    started: Started, nvml: FakeNvml, session: psutil.Popen
) -> None:
    sampler = started(SYSTEM + RTX_4050)
    sampler.follow(session.pid)
    nvml.play(f"{SYSTEM}{RTX_4050}hang fn=nvmlDeviceGetMemoryInfo_v2\n")
    first = seen(sampler, lambda sample: sample.get("gpu_error") == "Hangs", "a call that hangs")
    assert "gpu_used_mib" not in first
    old = len(sampler.samples())
    until(lambda: len(sampler.samples()) >= old + 20, "host samples meanwhile")
    assert all(sample["gpu_error"] == "Hangs" and sample["processes"] == 2 for sample in sampler.samples()[old:])
    nvml.play(SYSTEM + RTX_4050)
    assert seen(sampler, lambda sample: "gpu_error" not in sample, "the device's return")["gpu_used_mib"] == [100]


def test_a_driver_that_hangs_at_the_start_leaves_the_host_sampled(tmp_path: Path, nvml: FakeNvml, session: psutil.Popen) -> None:
    project = FakeProject(tmp_path / "project", waits={**QUICK, "OPEN_S": 0.2})
    nvml.play(f"{SYSTEM}{RTX_4050}hang fn=nvmlInitWithFlags\n")
    sampler = Sampler(project, nvml.environment())
    try:
        sampler.follow(session.pid)
        until(lambda: any(sample.get("processes") == 2 for sample in sampler.samples()), "the host's memory")
        assert all(sample["gpu_error"] == "Hangs" for sample in sampler.samples())
        session.kill()
        for child in session.children():
            child.kill()
        session.wait()
    finally:
        sampler.process.kill()
        sampler.process.wait()


@pytest.mark.parametrize(("code", "name"), [(15, "GpuIsLost"), (18, "LibRmVersionMismatch"), (4, "NoPermission")])
def test_nvml_that_fails_at_the_start_is_named_and_tried_again(started: Started, nvml: FakeNvml, code: int, name: str) -> None:
    sampler = started(f"{SYSTEM}{RTX_4050}error fn=nvmlInitWithFlags code={code}\n")
    assert {key: value for key, value in sampler.samples()[0].items() if key != "t"} == {"gpu_error": name}
    nvml.play(SYSTEM + RTX_4050)
    assert seen(sampler, lambda sample: "gpu_error" not in sample, "the device")["gpu_used_mib"] == [100]


def test_a_driver_that_goes_in_mid_run_is_named(started: Started, nvml: FakeNvml) -> None:
    sampler = started(SYSTEM + RTX_4050)
    nvml.play(f"{SYSTEM}{RTX_4050}error fn=nvmlDeviceGetMemoryInfo_v2 code=15\nerror fn=nvmlInitWithFlags code=9\n")
    bad = seen(sampler, lambda sample: sample.get("gpu_error") == "DriverNotLoaded", "the driver's going")
    assert bad["gpu_used_mib"] == [None]


def test_without_a_gpu_samples_say_nothing_of_one(started: Started, project: FakeProject, tmp_path: Path) -> None:
    sampler = started(f"{SYSTEM}{RTX_4050}error fn=nvmlInitWithFlags code=9\n")
    until(lambda: len(sampler.samples()) >= 30, "samples past the time of a new try")
    assert all(sample.keys() == {"t"} for sample in sampler.samples())


def test_without_the_library_samples_say_nothing_of_one(project: FakeProject, tmp_path: Path) -> None:
    (tmp_path / LIBRARY).write_text("no library", encoding="utf-8")
    sampler = Sampler(project, {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)})
    try:
        until(sampler.samples, "a first sample")
    finally:
        sampler.process.kill()
        sampler.process.wait()
    assert sampler.samples()[0].keys() == {"t"}
