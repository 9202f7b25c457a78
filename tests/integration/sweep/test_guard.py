"""A cell's own process on its node: its commands, its folder, and the end of all that it started."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster import pack as packed_files
from pipeline.sweep import node
from pipeline.sweep.node import Runner, arrange, packed, unpacked
from pipeline.sweep.placing import PROJECT, unpack
from pipeline.vllm.environment import SLOT, base_environment
from tests.fakes.environment import dead, until

ROOT = Path(__file__).resolve().parents[3]
# Starts a process in a session of its own, as a server is started, notes both pids, and waits to be interrupted.
HOLD = """
import os, pathlib, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
try:
    pathlib.Path("pids.new").write_text(f"{os.getpid()} {child.pid}")
    os.rename("pids.new", "pids")
    time.sleep(600)
except KeyboardInterrupt:
    pathlib.Path("interrupted").touch()
"""
DEAF = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{HOLD}"


def python(code: str, shared: bool = False) -> dict[str, Any]:
    return {"words": [sys.executable, "-c", code], "shared": shared}


class Guarded:
    """A guard in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "pipeline").symlink_to(ROOT / "pipeline")
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *steps: dict[str, Any], stop_s: float = 30, patience_s: float = 0) -> "subprocess.Popen[bytes]":
        order = {
            "steps": list(steps),
            "log": "cell.log",
            "folder_lock": ".cell.lock",
            "shared_lock": "shared.lock",
            "patience_s": patience_s,
            "stop_s": stop_s,
        }
        (self.folder / "order.json").write_text(json.dumps(order), encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.sweep.guard", "order.json"],
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def held(self) -> list[int]:
        """Return the pids of HOLD's processes, once it has noted them."""
        until((self.folder / "pids").exists, "the command's pids")
        return [int(pid) for pid in (self.folder / "pids").read_text(encoding="ascii").split()]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    made = Guarded(tmp_path)
    yield made
    for process in made.processes:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


def test_steps_run_in_order_and_the_last_ones_code_counts(guarded: Guarded) -> None:
    process = guarded.start(python("print(1, flush=True); raise SystemExit(3)", shared=True), python("print(2); raise SystemExit(1)"))
    assert process.wait(60) == 1
    assert (guarded.folder / "cell.log").read_text(encoding="utf-8") == "1\n2\n"


def test_what_a_command_leaves_behind_does_not_outlive_the_cell(guarded: Guarded) -> None:
    leaves = HOLD.replace("time.sleep(600)\nexcept", "pass\nexcept")
    assert guarded.start(python(leaves)).wait(60) == 0
    assert dead(map(int, (guarded.folder / "pids").read_text(encoding="ascii").split()))


@pytest.mark.parametrize(("code", "interrupted"), [(HOLD, True), (DEAF, False)])
def test_all_that_was_started_ends_when_the_worker_does(guarded: Guarded, code: str, interrupted: bool) -> None:
    process = guarded.start(python(code), python("open('second', 'w')"), stop_s=30 if interrupted else 0.2)
    held = guarded.held()
    assert process.stdin is not None
    process.kill()  # as Ray does to the children of a worker that ends
    process.stdin.close()  # as the kernel does for it
    until(lambda: dead(held), "the end of what was started")
    assert (guarded.folder / "interrupted").exists() is interrupted
    assert not (guarded.folder / "second").exists()


def test_interrupts_that_ray_blocks_reach_the_command(guarded: Guarded) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process = guarded.start(python(HOLD))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    guarded.held()
    assert process.stdin is not None
    process.stdin.close()
    process.wait(60)
    assert (guarded.folder / "interrupted").exists()


def test_a_second_run_of_the_same_cell_waits_and_then_says_why_not(guarded: Guarded, tmp_path: Path) -> None:
    first = guarded.start(python(HOLD))
    held = guarded.held()
    second = guarded.start(python("open('second', 'w')"))
    assert second.stderr is not None
    assert second.wait(60) == 75
    assert b"another run of this cell still holds its folder" in second.stderr.read()
    third = guarded.start(python("open('second', 'w')"), patience_s=60)
    assert first.stdin is not None
    first.stdin.close()
    assert first.wait(60) == 130
    assert third.wait(60) == 0, "a run that was lost lets go"
    assert dead(held)
    assert (guarded.folder / "second").exists()


# The runner, without Ray.


def project(root: Path) -> Path:
    """Make a project with the links that a cell needs."""
    root.mkdir()
    for name in ("tasks.py", "config.yaml", "pipeline", "templates", "suites", "requirements"):
        (root / name).symlink_to(ROOT / name)
    return root


def order_of(root: Path, code: str, **changes: Any) -> dict[str, Any]:
    return {
        "cell": "a.b",
        "root": str(root),
        "local": str(root.parent / "local"),
        "code": "c0de",
        "environment": "venv-vllm",
        "steps": [{"words": ["{python}", "-c", code, "--port={port}"], "shared": False}],
        "variables": {"VLLM_POC__ROUTER__CASES": "1"},
        "patience_s": 5,
        "stop_s": 30,
        "most_bytes": 2**20,
        **changes,
    }


NOTE = "import os, sys; open('seen', 'w').write(repr((sys.argv[1], dict(os.environ)))); os.makedirs('artifacts/raw', exist_ok=True)"


def seen(folder: Path) -> tuple[str, dict[str, str]]:
    found: tuple[str, dict[str, str]] = eval((folder / "seen").read_text(encoding="utf-8"))
    return found


def test_runner_gives_a_cell_its_own_port_and_the_drivers_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_JOB_ID", "OMP_NUM_THREADS", "VLLM_POC__SERVE__PORT"):
        monkeypatch.setenv(name, "1")
    root = project(tmp_path / "project")
    folder = root / node.SWEEPS / "a.b"
    told = Runner(lambda: ("n", "h")).run(order_of(root, NOTE), None)
    assert (told["code"], told["archive"]) == (0, None)
    port, variables = seen(folder)
    assert variables["VLLM_POC__ROUTER__CASES"] == "1"
    assert not {"RAY_JOB_ID", "OMP_NUM_THREADS", "VLLM_POC__SERVE__PORT"} & set(variables)
    assert (folder / "venv-vllm").resolve() == root / "venv-vllm"
    assert Runner(lambda: ("n", "h")).run(order_of(root, NOTE), None)["code"] == 0
    assert seen(folder)[0] == port, "a cell that goes on keeps its port while it is free"


def test_runner_sees_whether_the_folder_is_shared(tmp_path: Path) -> None:
    token = tmp_path / "token"
    runner = Runner(lambda: ("n", "h"))
    assert not runner.where(str(token), "word")["shared"]
    token.write_text("word", encoding="utf-8")
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    found = runner.where(str(token), "word")
    assert found.pop("gpus") == os.environ.get("CUDA_VISIBLE_DEVICES", "")
    assert found == {"node": "n", "host": "h", "shared": True, "niceness": niceness}


def test_a_node_of_its_own_works_on_a_copy_and_sends_back_what_it_made(tmp_path: Path) -> None:
    root = project(tmp_path / "project")
    project_bytes = packed_files(root, PROJECT)
    told = Runner(lambda: ("n", "h")).run(order_of(root, NOTE), project_bytes)
    assert (told["code"], told["left"]) == (0, [])
    local = tmp_path / "local" / "c0de"
    assert (local / "pipeline" / "sweep" / "node.py").is_file()
    assert not (root / node.SWEEPS).exists()
    target = tmp_path / "back"
    unpack(told["archive"], target)
    assert (target / "seen").is_file()
    assert not (target / "pipeline").exists(), "what is linked is not sent"
    assert unpacked(b"not needed any more", tmp_path / "local", "c0de") == local


def test_what_is_too_large_to_come_back_is_left_and_named(tmp_path: Path) -> None:
    for name in ("launches", "raw", "logs"):
        (tmp_path / "artifacts" / name).mkdir(parents=True)
        (tmp_path / "artifacts" / name / "file").write_bytes(os.urandom(20_000))
    archive, left = packed(tmp_path, 30_000)
    assert left == ["launches", "raw"]
    assert len(archive) < 30_000


def test_no_archive_is_larger_than_its_limit_and_the_report_is_the_last_to_be_left(tmp_path: Path) -> None:
    for name, size in (("a.log", 50_000), ("report.json", 9_000), ("b.bin", 20_000), ("c.log", 60_000)):
        (tmp_path / name).write_bytes(os.urandom(size))
    archive, left = packed(tmp_path, 31_000)
    assert left == ["c.log", "a.log"]
    assert len(archive) <= 31_000
    target = tmp_path / "back"
    unpack(archive, target)
    assert {path.name for path in target.iterdir()} == {"report.json", "b.bin"}
    archive, left = packed(tmp_path, 1000)
    assert "report.json" in left
    assert len(archive) <= 1000


def test_two_cells_never_get_the_same_port_nor_one_that_a_client_may_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zlib.crc32", lambda _: 7)  # cells whose first choice is the same
    limit = tmp_path / "range"
    limit.write_text("32768\t60999\n", encoding="ascii")
    monkeypatch.setattr(node, "CLIENT_PORTS", limit)
    folders = [tmp_path / "cells" / name for name in "abc"]
    for folder in folders:
        folder.mkdir(parents=True)
    ports = [node.port_of(folder) for folder in folders]
    assert len(set(ports)) == 3
    assert all(node.FIRST_PORT <= port < 32768 for port in ports)
    assert [node.port_of(folder) for folder in folders] == ports
    limit.unlink()
    (folders[0] / node.PORT_FILE).write_text(str(ports[1]), encoding="ascii")
    assert node.port_of(folders[0]) not in ports[1:], "a neighbour's port, and nothing known of the kernel's range"


TOPOLOGY = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("total", "slots", "cores"),
    [
        (2, (0,), [0, 1, 2, 6, 7, 8]),
        (2, (1,), [3, 4, 5, 9, 10, 11]),
        (4, (1, 2), [1, 2, 7, 8]),
        (4, (3,), [3, 9]),
        (1, (0,), list(range(12))),
    ],
)
def test_a_slot_has_whole_cores_of_its_own(monkeypatch: pytest.MonkeyPatch, total: int, slots: tuple[int, ...], cores: list[int]) -> None:
    monkeypatch.setattr(node, "place_of_core", lambda core: TOPOLOGY[core])
    assert node.cores_of(slots, total, set(range(12))) == cores
    shares = [set(node.cores_of((slot,), total, set(range(12)))) for slot in range(total)]
    assert sum(map(len, shares)) == len(set.union(*shares)), "no core is in two shares"


SEES = "import os; open('seen', 'w').write(repr((os.sched_getaffinity(0), dict(os.environ))))"


def test_a_cell_that_shares_its_node_keeps_to_its_cores_and_caches(tmp_path: Path) -> None:
    every = sorted(os.sched_getaffinity(0))
    if len(every) < 2:
        pytest.skip("one core cannot be shared")
    root = project(tmp_path / "project")

    def seen_by(**changes: Any) -> tuple[set[int], str]:
        Runner(lambda: ("n", "h")).run(order_of(root, SEES, **changes), None)
        cores, variables = eval((root / node.SWEEPS / "a.b" / "seen").read_text(encoding="utf-8"))
        caches = base_environment(variables, root / ".cache", root / "venv-vllm" / "bin" / "python")
        assert node.SLOT not in caches
        return cores, caches["TRITON_CACHE_DIR"]

    first, second, alone = (seen_by(slots=(0,), slots_of=2), seen_by(slots=(1,), slots_of=2), seen_by())
    assert first[0] & second[0] == set()
    assert alone[0] == set(every)
    assert (first[1], second[1], alone[1]) == tuple(str(root / ".cache" / name) for name in ("triton", "slots/1/triton", "triton"))


def test_links_are_made_anew_where_they_point_elsewhere(tmp_path: Path) -> None:
    root = project(tmp_path / "project")
    folder = root / node.SWEEPS / "a"
    arrange(root, folder, ".cache/sweep/venv-x")
    arrange(root, folder, "venv-vllm")
    assert (folder / "venv-vllm").resolve() == root / "venv-vllm"
    assert {path.name for path in folder.iterdir()} == {*node.COPIED, *node.SHARED, "venv-vllm"}


def test_stop_before_the_start_starts_nothing(tmp_path: Path) -> None:
    root = project(tmp_path / "project")
    runner = Runner(lambda: ("n", "h"))
    runner.stop()
    assert runner.run(order_of(root, NOTE), None)["code"] == 130
    assert not (root / node.SWEEPS / "a.b" / "seen").exists()


def test_runner_travels_without_the_project(tmp_path: Path) -> None:
    """Nodes that do not see the project's folder get this module by value: it may import nothing of the project's."""
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); print(sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, node.__file__], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "'tarfile'" in done.stdout


def test_both_sides_have_one_name_for_the_slot() -> None:
    assert node.SLOT == SLOT
