"""Each check of the doctor by the facts it is given: how it stands, and the fix."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.commands import doctor
from pipeline.commands.doctor import Finding
from pipeline.config.schema import Config, GpuConfig, ModelConfig, Profile, ServeConfig
from pipeline.engine.workspace import Workspace
from pipeline.errors import HubSilentError, ModelError
from pipeline.gpu.nvml import Driver, GpuProcess
from pipeline.model import hub, published
from pipeline.model.shape import shape_of
from pipeline.stages.check_gpu import Machine
from pipeline.vllm.plan import Demand, Plan
from pipeline.vllm.sets import CPU_SET, VllmSet, set_named
from tests.fakes.environment import machine

CUDA13, CUDA12 = set_named("vllm-cuda13"), set_named("vllm-cuda12")
QWEN_3B = shape_of(json.dumps(published.QWEN_3B))


def with_gpu(**changes: object) -> Machine:
    """Return a machine with a GPU that is changed so."""
    found = machine(gpu=True)
    return found.model_copy(update={"gpus": [found.gpus[0].model_copy(update=changes)]})


def on(profile: str, required: bool = False) -> Config:
    return Config(profile=Profile(profile), gpu=GpuConfig(required=required))


@pytest.mark.parametrize(
    ("config", "by_hand", "level"),
    [(on("cpu"), True, "OK"), (on("cpu"), False, "WARN"), (on("rtx4050-6gb"), True, "WARN"), (on("cpu", True), False, "FAIL")],
)
def test_no_gpu_is_trouble_by_what_was_asked(config: Config, by_hand: bool, level: str) -> None:
    (found,) = doctor.gpu(machine(), config, by_hand)
    assert (found.level, "no NVIDIA driver is installed" in found.seen) == (level, True)


def test_who_else_uses_the_gpu_is_named() -> None:
    (alone,) = doctor.gpu(machine(gpu=True), on("rtx4050-6gb"), False)
    assert alone.level == "OK"
    other = GpuProcess(pid=7, name="game", used_mib=900)
    (shared,) = doctor.gpu(with_gpu(processes=[other]), on("rtx4050-6gb"), False)
    assert (shared.level, "pid 7 (game)" in shared.seen) == ("WARN", True)


def test_a_driver_too_old_for_the_named_set_fails() -> None:
    assert CUDA13 is not None
    old = machine(gpu=True).model_copy(update={"driver": Driver(version="535.1", cuda="12.2")})
    found = doctor.vllm(CUDA13, "chosen by install.set", old)
    assert (found.level, "the driver is 535.1, CUDA 12.2" in found.seen, "580" in found.fix) == ("FAIL", True, True)


def test_a_gpu_without_bfloat16_is_told() -> None:
    assert CUDA12 is not None
    assert doctor.vllm(CUDA12, "x", machine(gpu=True)).level == "OK"
    found = doctor.vllm(CUDA12, "x", with_gpu(compute_capability="7.5"))
    assert (found.level, found.fix) == ("WARN", "leave serve.dtype at auto, which takes float16 there")


@pytest.mark.parametrize(
    ("free", "for_vllm", "level"), [(30, 20, "OK"), (21, 20, "OK"), (20.9, 20, "FAIL"), (1, 0, "OK"), (0.9, 0, "FAIL")]
)
def test_disk_space(free: float, for_vllm: float, level: str) -> None:
    assert doctor.disk(free, for_vllm, 1).level == level


def plan_with(weights_mib: int, share: float) -> Plan:
    """Return the plan of a model with such weights on the guide's card."""
    asked = Demand(
        shape=QWEN_3B, weights_bytes=weights_mib * 2**20, weights_from="a test", total_mib=6141, max_model_len=4096, max_num_seqs=16
    )
    return asked.at(share)


def test_memory_of_the_host() -> None:
    assert doctor.memory_finding(8000, 300, 1).level == "OK"
    short = doctor.memory_finding(3000, 300, 1)
    assert (short.level, "about 3372 needed" in short.seen, "VLLM_CPU_KVCACHE_SPACE" in short.fix) == ("FAIL", True, True)


@pytest.mark.parametrize(
    ("weights_mib", "share", "target", "level", "says"),
    [
        (5888, 0.92, None, "FAIL", "no room for one request of 4096 tokens"),
        (5200, 0.92, None, "WARN", "tokens of cache for requests of 4096"),
        (4500, 0.92, None, "WARN", "more than there is"),
        (1950, 0.8, 4768, "WARN", "the target is 4768"),
        (1950, 0.65, 4768, "OK", "peak"),
    ],
)
def test_memory_of_the_device(weights_mib: int, share: float, target: float | None, level: str, says: str) -> None:
    fit = plan_with(weights_mib, share)
    found = doctor.device_memory(fit, target)
    assert (found.level, says in found.seen) == (level, True), found


def test_the_target_of_the_peak_is_any_gates_of_that_metric(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert CUDA12 is not None
    fit = plan_with(1950, 0.8)
    monkeypatch.setattr(doctor, "plan_of", lambda *_: fit)
    gate = {"label": "x", "metric": "measure-vram.vram_peak_mib", "statistic": "peak", "comparator": "<", "target": 4000, "unit": "MiB"}
    config = Config.model_validate({"gates": {"of_another_name": gate}})
    (found,) = doctor.memory(config, CUDA12, machine(gpu=True), tmp_path, Workspace(tmp_path))
    assert (found.level, "the target is 4000" in found.seen) == ("WARN", True)


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.shared_memory(tmp_path).level == "OK"
    assert doctor.shared_memory(tmp_path / "gone").level == "FAIL"
    monkeypatch.setattr(doctor, "SHM_MIB", 10**9)
    assert (doctor.shared_memory(tmp_path).level, "--shm-size" in doctor.shared_memory(tmp_path).fix) == ("WARN", True)


def test_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        found = doctor.port(ServeConfig(port=number), Workspace(tmp_path))
        assert (found.level, f"{number} is taken by pid" in found.seen) == ("FAIL", True)
    assert doctor.port(ServeConfig(port=number), Workspace(tmp_path)).level == "OK"


def test_host() -> None:
    assert doctor.host(ServeConfig()).level == "OK"
    assert doctor.host(ServeConfig(host="0.0.0.0")).level == "WARN"


def test_left_over(tmp_path: Path) -> None:
    assert doctor.left_over(Workspace(tmp_path)).level == "OK"
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "launch.json").write_text("{}", encoding="utf-8")
    assert doctor.left_over(Workspace(tmp_path)).level == "FAIL"
    assert doctor.port(ServeConfig(port=1024), Workspace(tmp_path)).name == "port"


@pytest.mark.parametrize(("free_mib", "level"), [(6000, "OK"), (4000, "FAIL")])
def test_a_full_card_is_told_before_the_start(tmp_path: Path, free_mib: float, level: str) -> None:
    assert CUDA13 is not None
    config = Config(serve=ServeConfig(gpu_memory_utilization=0.75))
    found = next(doctor.memory(config, CUDA13, with_gpu(free_mib=free_mib, reserved_mib=200), tmp_path, Workspace(tmp_path)))
    assert (found.name, found.level) == ("memory", level)
    assert ("4000 of 5941 MiB are free" in found.seen) == (level == "FAIL")


def compiler(chosen: VllmSet = CPU_SET, root: Path = Path("/nowhere"), **settings: object) -> list[Finding]:
    workspace = Workspace(root)
    return list(doctor.compiler(Config(serve=ServeConfig.model_validate(settings)), chosen, machine(gpu=chosen != CPU_SET), workspace))


def test_a_compiler_is_needed_only_where_something_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name, **_: name if name.startswith("/") else None)
    monkeypatch.setattr(doctor, "fastest", lambda versions, _: versions[0])
    assert [found.level for found in compiler(enforce_eager=True)] == ["OK"]
    missing, headers = compiler(enforce_eager=False)
    assert (missing.level, "apt install g++" in missing.fix) == ("FAIL", True)
    assert headers == Finding("OK", "Python headers", "uv fetches Python 3.11, which brings them")
    monkeypatch.setenv("CXX", "/opt/bin/g++")
    assert compiler(enforce_eager=False)[0] == Finding("OK", "compiler", "/opt/bin/g++")


@pytest.mark.parametrize(("prints", "level"), [("True", "OK"), ("False", "FAIL")])
def test_python_headers_are_those_of_the_servers_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prints: str, level: str) -> None:
    monkeypatch.delenv("CPATH", raising=False)
    monkeypatch.delenv("C_INCLUDE_PATH", raising=False)
    workspace = Workspace(tmp_path)
    workspace.server_python.parent.mkdir(parents=True)
    workspace.server_python.write_text(f"#!/bin/sh\necho {prints}\n", encoding="utf-8")
    workspace.server_python.chmod(0o755)
    headers = compiler(root=tmp_path, enforce_eager=False)[1]
    assert (headers.level, str(workspace.server_python) in headers.seen) == (level, True)


@pytest.mark.parametrize(("prints", "level"), [("True", "OK"), ("False", "FAIL")])
def test_before_vllm_is_installed_the_python_that_install_would_take_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prints: str, level: str
) -> None:
    python = tmp_path / "python3.12"
    python.write_text(f"#!/bin/sh\necho {prints}\n", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.delenv("CPATH", raising=False)
    monkeypatch.delenv("C_INCLUDE_PATH", raising=False)
    monkeypatch.setattr(doctor, "fastest", lambda versions, _: {"3.12": str(python)}[versions[0]])
    assert CUDA13 is not None
    headers = compiler(CUDA13)[1]
    assert (headers.level, str(python) in headers.seen) == (level, True)


def test_a_gpu_needs_a_c_compiler_whatever_is_compiled_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _, **__: None)
    monkeypatch.setattr(doctor, "fastest", lambda versions, _: versions[0])
    assert CUDA13 is not None
    missing, _ = compiler(CUDA13, enforce_eager=True)
    assert missing.level == "FAIL"
    assert missing.seen == "there is no C compiler, which Triton needs (no gcc or clang on the PATH)"
    assert missing.fix == "Debian, Ubuntu: sudo apt install gcc python3-dev; Fedora: sudo dnf install gcc python3-devel"
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/usr/bin/{name}" if name == "clang" else None)
    assert compiler(CUDA13)[0] == Finding("OK", "compiler", "/usr/bin/clang")


def raising(error: Exception) -> Callable[..., float]:
    def access(*_: object) -> float:
        raise error

    return access


@pytest.mark.parametrize(
    ("access", "level", "says"),
    [
        (lambda *_: 1.9, "OK", "1.9 GiB to download"),
        (raising(HubSilentError("the hub cannot be reached: no route", "check the network")), "WARN", "the hub cannot be reached"),
        (raising(ModelError("a/b is gated", "accept its licence")), "FAIL", "a/b is gated; no token is set"),
    ],
)
def test_the_hub_is_asked_for_what_is_not_on_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, access: Callable[..., float], level: str, says: str
) -> None:
    monkeypatch.setattr(hub, "access", access)
    monkeypatch.setattr(hub, "has_token", lambda: False)
    found = doctor.model(Config(model=ModelConfig(source="hub", repo="a/b")), tmp_path)
    assert (found.level, says in found.seen) == (level, True), found


def test_a_model_on_disk_is_not_asked_for(tmp_path: Path) -> None:
    settings = Config(model=ModelConfig(source="path", path=str(tmp_path)))
    assert doctor.model(settings, tmp_path).level == "FAIL"
    (tmp_path / "config.json").touch()
    (tmp_path / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    assert doctor.model(settings, tmp_path).level == "OK"


def test_a_finding_is_one_line_with_its_fix_beneath() -> None:
    assert doctor.words(Finding("OK", "a", "fine")) == "OK    a                fine"
    assert doctor.words(Finding("FAIL", "c", "bad", "mend it")) == "FAIL  c                bad\n                       → mend it"


def test_a_host_without_an_address_is_a_finding(tmp_path: Path) -> None:
    finding = doctor.port(ServeConfig(host="nosuch.invalid"), Workspace(tmp_path))
    assert finding.level == "FAIL"
    assert "serve.host: nosuch.invalid has no address on this machine" in finding.seen
