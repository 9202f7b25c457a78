"""Sweeps on a real Ray cluster of several nodes on this machine, one of which is killed; cells are stand-ins, or meet the fake server."""

import _thread
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.layers import load_layers
from pipeline.config.schema import ServeConfig
from pipeline.engine.record import SWEEP_NOTE, Store, now
from pipeline.engine.workspace import Workspace
from pipeline.errors import MachineError
from pipeline.report.formats.document import text_of
from pipeline.report.sweep import ACCURACY, LATENCY, Sweep
from pipeline.server import state
from pipeline.sweep.node import SWEEPS
from pipeline.sweep.placing import Nodes
from pipeline.sweep.results import read_cell
from pipeline.sweep.run import Job, Sweeping, SweepOptions
from pipeline.terminal import Silent
from tests.builders.documents import document, figure, gate
from tests.builders.project import SMALL, Project
from tests.fakes.cluster import Cluster, in_the_background
from tests.fakes.environment import dead, machine, until
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script

# Stands in for a cell's pipeline: notes its pids and a child's, holds until it may go on, and leaves the report of its seed.
STAND_IN = """
import os, pathlib, shutil, subprocess, sys, time
seed, folder = sys.argv[1], pathlib.Path(sys.argv[2])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
with open(folder / f"pids-{seed}", "a") as file:
    file.write(f"{os.getpid()} {child.pid}\\n")
while (folder / f"hold-{seed}").exists():
    time.sleep(0.05)
child.kill()
child.wait()
report = folder / f"report-{seed}.json"
if not report.exists():
    sys.exit("error: this cell is made to fail")
shutil.copy(report, "report.json")
pathlib.Path("REPORT.md").touch()
"""
pytestmark = pytest.mark.timeout(180)
AXES = "profile=quick;serve.seed={}"


def swept(project: Project) -> Sweep:
    """Return the sweep on record."""
    made = Store(project.root / "artifacts").outcome(SWEEP_NOTE, Sweep).data
    assert made is not None
    return made


class House(Project):
    """A project whose sweeps run stand-ins; what they did stands in `notes`."""

    def __init__(self, root: Path, address: str) -> None:
        super().__init__(root)
        self.address = address
        self.notes = root.parent / "notes"
        self.notes.mkdir()
        self.said: list[str] = []
        self.on_line: Callable[[str], None] = lambda _line: None

    def report(self, seed: int, accuracy: float, exit_code: int = 0) -> None:
        """Let the cell of that seed leave such a report."""
        figures = {ACCURACY: figure(accuracy, "%"), LATENCY: figure(300.0)}
        made = document(figures, (gate(verdict="PASS" if exit_code == 0 else "FAIL"),), exit_code=exit_code)
        (self.notes / f"report-{seed}.json").write_text(text_of(made), encoding="utf-8")

    def hold(self, seed: int) -> Path:
        path = self.notes / f"hold-{seed}"
        path.touch()
        return path

    def pids(self, seed: int) -> list[list[int]]:
        """Return the pids of each run of the cell."""
        path = self.notes / f"pids-{seed}"
        return [[int(pid) for pid in line.split()] for line in path.read_text().splitlines()] if path.exists() else []

    def sweep(self, seeds: str, force: bool = False, shared: bool = True) -> tuple[int, Sweep]:
        def say(line: str) -> None:
            self.said.append(line)
            self.on_line(line)

        def command(job: Job, asked: SweepOptions) -> list[dict[str, Any]]:
            return [{"words": ["{python}", "-c", STAND_IN, str(job.config.serve.seed), str(self.notes)], "shared": False}]

        sets = (f"sweep.node_folder={json.dumps(str(self.root.parent / 'node'))}",)
        layers = load_layers(self.root / "config.yaml", {}, sets)
        asked = SweepOptions(AXES.format(seeds), self.address, force=force, sets=sets)
        workspace = Workspace(self.root, Silent())
        workspace.artifacts.mkdir(exist_ok=True)
        answer = Sweeping(layers, machine(), asked, workspace, say, command, shared).run()
        assert answer.data == self.read().model_dump(mode="json")
        return answer.code, self.read()

    def read(self) -> Sweep:
        return swept(self)

    def node_of(self, seed: int) -> str:
        """Return the beginning of the id of the node that the cell was last started on."""
        lines = [line for line in self.said if line.startswith(f"▶ profile=quick serve.seed={seed}:")]
        return lines[-1].partition("(node ")[2].partition(")")[0]


@pytest.fixture
def house(tmp_path: Path, cluster: Cluster) -> House:
    return House(tmp_path / "project", cluster.ray.address)


def test_a_node_that_is_lost_in_mid_sweep_loses_no_cell_and_leaves_no_process(house: House, cluster: Cluster) -> None:
    for seed, accuracy in ((1, 80.0), (2, 90.0), (4, 95.0)):
        house.report(seed, accuracy, exit_code=1 if seed == 4 else 0)
    holds = [house.hold(seed) for seed in (1, 2)]
    ends: list[str] = []

    def lose() -> None:
        until(lambda: house.pids(1) and house.pids(2), "both cells at work")
        try:
            cluster.kill(house.node_of(1))
            until(lambda: dead(house.pids(1)[0]), "the end of what the lost cell had started")
            ends.append("in time")
        finally:
            for hold in holds:
                hold.unlink()

    killer = in_the_background(lose)
    try:
        code, made = house.sweep("1,2,3,4")
    finally:
        killer.join(60)
        cluster.add()
    assert ends == ["in time"]
    cells = {cell.values["serve.seed"]: cell for cell in made.cells}
    assert [cells[seed].state for seed in (1, 2, 3, 4)] == ["measured", "measured", "failed", "measured"]
    assert [cells[seed].lost for seed in (1, 2, 3, 4)] == [1, 0, 0, 0]
    assert (len(house.pids(1)), len(house.pids(2))) == (2, 1)
    assert all(dead(pids) for seed in (1, 2, 3, 4) for pids in house.pids(seed))
    assert cells[3].reason == "this cell is made to fail"
    assert any(line.startswith(f"{cells[1].folder}: lost on ") for line in house.said)
    assert (code, made.exit_code, made.recommended) == (0, 0, "profile=quick serve.seed=2")
    one_at_a_time(house)
    assert "| profile=quick serve.seed=3 |" in (house.root / SWEEPS / "SWEEP.md").read_text(encoding="utf-8")
    assert (house.root / SWEEPS / "pareto.svg").is_file()


def one_at_a_time(house: House) -> None:
    """Assert by what was told that no node had two cells at once."""
    busy: dict[str, str] = {}
    for line in house.said:
        mark, _, rest = line.partition(" ")
        name = rest.partition(":")[0]
        if mark == "▶":
            node = line.partition("(node ")[2].partition(")")[0]
            assert node not in busy.values(), line
            busy[name] = node
        elif mark in ("✓", "✗"):
            busy.pop(name, None)
        elif ": lost on " in line:
            busy = {cell: node for cell, node in busy.items() if f"(node {node})" not in line}


def test_interrupted_it_ends_what_it_started_and_goes_on_later(house: House) -> None:
    for seed in (1, 2):
        house.report(seed, 80.0, exit_code=1)
    hold = house.hold(2)

    def interrupt() -> None:
        until(lambda: house.pids(2) and any(line.startswith("✓") for line in house.said), "one cell done, one at work")
        _thread.interrupt_main()

    waiting = in_the_background(interrupt)
    with pytest.raises(KeyboardInterrupt):
        house.sweep("1,2")
    waiting.join(60)
    assert all(dead(pids) for pids in house.pids(2))
    made = house.read()
    assert [cell.state for cell in made.cells] == ["measured", "interrupted"]
    assert (made.finished, made.exit_code) == (None, None)
    hold.unlink()
    code, made = house.sweep("1,2")
    assert [cell.state for cell in made.cells] == ["measured", "measured"]
    assert (code, made.recommended) == (1, None)
    assert (len(house.pids(1)), len(house.pids(2))) == (1, 2), "what is done is not run again"
    changed = house.root / "config.yaml"
    changed.write_text(changed.read_text(encoding="utf-8").replace("max_model_len: 4096", "max_model_len: 2048"), encoding="utf-8")
    house.sweep("1")
    assert len(house.pids(1)) == 2, "other settings, another cell"
    house.sweep("1", force=True)
    assert len(house.pids(1)) == 3


def test_a_node_that_does_not_see_the_folder_sends_its_cell_back(house: House) -> None:
    house.report(1, 80.0)
    code, made = house.sweep("1", shared=False)
    folder = house.root / SWEEPS / made.cells[0].folder
    assert (code, made.cells[0].state) == (0, "measured")
    assert (folder / "report.json").is_file()
    assert not (folder / "pipeline").exists()
    (copy,) = (house.root.parent / "node").iterdir()
    assert (copy / SWEEPS / made.cells[0].folder / "cell.log").is_file()
    found = read_cell(folder)
    assert found is not None
    assert found.passed
    behind = os.getpriority(os.PRIO_PROCESS, 0) < 15  # what Ray gives its workers, unless told otherwise
    assert any(line.endswith("start Ray there with RAY_worker_niceness=0") for line in house.said) is behind


def test_a_cell_that_no_node_can_run_is_left_out_with_the_reason(house: House) -> None:
    layers = load_layers(house.root / "config.yaml", {}, ())
    (house.root / "artifacts").mkdir(exist_ok=True)
    asked = SweepOptions("profile=qwen2.5-1.5b", house.address)
    said: list[str] = []
    workspace = Workspace(house.root, Silent())
    assert Sweeping(layers, machine(), asked, workspace, said.append).run().code == 2
    assert said[0].startswith("▫ profile=qwen2.5-1.5b: left out: needs 1 GPU, and no node has one")
    assert house.read().cells[0].state == "skipped"
    dry = Sweeping(layers, machine(), SweepOptions("profile=quick", house.address, dry_run=True), workspace, said.append).dry_run()
    assert dry.code == 0
    assert dry.parts[0] == "1 cell, planned for 3 nodes, the largest GPU none"
    data: Any = dry.data
    assert data["cells"] == [{"cell": "profile=quick", "state": "to run", "estimate_s": None, "fit": data["cells"][0]["fit"]}]


# By the command line.


def test_a_cell_is_the_whole_pipeline(tmp_path: Path) -> None:
    """On a Ray of its own, against the fake server: its figures come back."""
    project = Project(tmp_path / "project")
    with FakeVllm(Script(texts=('{"route": "chat"}',))) as fake:
        grid = f"profile=cpu;attach.url={fake.base_url}"
        done = project.invoke("sweep", "--grid", grid, *SMALL)
        again = project.invoke("sweep", "--grid", grid, *SMALL)
        told = project.invoke("sweep", "--grid", grid, "--json", "--quiet", *SMALL)
    made = swept(project)
    (cell,) = made.cells
    assert (cell.state, cell.passed) == ("measured", False), done.stdout + done.stderr
    assert (done.returncode, made.exit_code, made.recommended) == (1, 1, None)
    assert cell.value("bench.ttft_ms_p95") is not None
    assert cell.report is not None
    assert (project.root / cell.report).is_file()
    assert not (project.root / "venv-vllm").exists() or not any((project.root / "venv-vllm").iterdir())
    assert again.stderr.splitlines()[0].startswith(f"· {cell.name}: done already, NOT MEASURED"), again.stderr
    assert again.stdout.splitlines()[0] == "recommendation: none, because no cell passes every gate (1 of 1 were measured)"
    assert (told.returncode, told.stderr) == (1, "")
    assert json.loads(told.stdout)["cells"] == made.model_dump(mode="json")["cells"]
    assert again.stdout.splitlines()[-1].startswith("REPORT.md: left alone, as there is no report on record here"), again.stdout
    assert (cell.source, cell.model) == (f"artifacts/sweep/{cell.folder}/report.json", "fake-model")
    assert cell.measured_at is not None
    dry = project.invoke("sweep", "--grid", f"profile=cpu,quick;attach.url={fake.base_url}", "--dry-run", *SMALL)
    assert dry.returncode == 0
    lines = dry.stdout.splitlines()
    assert [line.split(": ")[1].split(";")[0] for line in lines[1:3]] == ["done", "not known"]
    assert lines[-1] == "to run: 1 cell, not known one after the other"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--grid", "serve.max_num_seq=1"), "error: --grid: serve.max_num_seq: unknown setting; did you mean 'max_num_seqs'?"),
        (("--grid", "profile=quik"), "error: --grid: no profile 'quik'; did you mean 'quick'?"),
        (("--grid", "profile=cpu", "--ray-address", "127.0.0.1:1"), "error: --ray-address 127.0.0.1:1: no Ray cluster answers there"),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    project = Project(tmp_path / "project")
    first, hint = project.refuses("sweep", *words)
    assert first.startswith(told)
    assert hint


def test_a_server_of_ours_that_runs_is_not_disturbed(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    (project.root / "artifacts").mkdir()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        running(project.root, process.pid)
        assert project.refuses("sweep", "--grid", "profile=quick")[0].startswith(f"error: our server runs (pid {process.pid})")
        process.kill()


def running(root: Path, pid: int) -> None:
    """Leave the note of a server that runs under that pid."""
    launch = state.Launch(
        id="a", pid=pid, created=state.created_s(pid), boot=state.boot_id(), host="127.0.0.1", port=8000, model="m", log="l",
        command=[], settings=ServeConfig(), started=now(), stays=True,
    )  # fmt: skip
    state.write(Workspace(root), launch)


def test_without_ray_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MachineError, match="Ray is not installed") as caught:
        Nodes(None, 0, 128)
    assert "./inv sweep" in caught.value.hint
