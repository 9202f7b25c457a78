"""Cells that share a node of several GPUs: at once, each on its own GPUs, cores, port and caches; a disturbed one again and alone."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.shape import config_of
from pipeline.config.layers import load_layers
from pipeline.engine.record import SWEEP_NOTE, Store, now
from pipeline.engine.workspace import Workspace
from pipeline.report.formats.document import text_of
from pipeline.report.sweep import ACCURACY, LATENCY, CellRecord, Sweep
from pipeline.sweep import node, placing
from pipeline.sweep.node import SWEEPS, Runner
from pipeline.sweep.placing import CellOrder, Ended, Listener, Nodes, Placing
from pipeline.sweep.run import Job, Sweeping, SweepOptions
from pipeline.terminal import Silent
from tests.builders.documents import document, figure, gate
from tests.builders.project import SMALL, Project
from tests.builders.records import bench_result
from tests.fakes import fake_vllm
from tests.fakes.cluster import Cluster
from tests.fakes.environment import MODEL_NAME, machine, make_server_environment
from tests.fakes.nvml import SYSTEM, FakeNvml
from tests.fakes.script import Script

pytestmark = pytest.mark.timeout(240)
CARD = ("Fake H100", 81559.0)
TWO = SYSTEM + "".join(
    f"device uuid=GPU-{number} name=Fake_H100 total=81559 used={used} cc=9.0 util=5 temp=40 power=90000 clock=1500\n"
    for number, used in ((0, 100), (1, 700))
)
# Stands in for a cell's pipeline: notes what it may use, waits for as many neighbours as it is told to, and leaves the records of its seed.
STAND_IN = """
import json, os, pathlib, shutil, sys, time
seed, folder, port, forced = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3], "--force" in sys.argv
note = {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "cores": sorted(os.sched_getaffinity(0)), "port": port, "forced": forced,
        "slot": os.environ.get("VLLM_POC_SLOT", "")}
running = folder / f"running-{seed}"
running.touch()
needed, deadline = int((folder / "needed").read_text()), time.monotonic() + 100
while not forced and len(list(folder.glob("running-*"))) < needed and time.monotonic() < deadline:
    time.sleep(0.02)
note["beside"] = sorted(path.name for path in folder.glob("running-*") if path != running)
with open(folder / f"notes-{seed}", "a") as file:
    file.write(json.dumps(note) + "\\n")
while not forced and len(list(folder.glob("notes-*"))) < needed and time.monotonic() < deadline:
    time.sleep(0.02)
running.unlink()
shutil.copy(folder / "report.json", "report.json")
pathlib.Path("REPORT.md").touch()
pathlib.Path("artifacts").mkdir(exist_ok=True)
late = folder / f"late-{seed}.json"
if late.exists():
    shutil.copy(late, "artifacts/bench.json")
    late.unlink()
else:
    pathlib.Path("artifacts/bench.json").unlink(missing_ok=True)
"""


class House(Project):
    """A project whose sweeps run stand-ins on a node of two GPUs."""

    def __init__(self, root: Path, address: str) -> None:
        super().__init__(root)
        self.address, self.notes, self.said = address, root.parent / "notes", list[str]()
        self.notes.mkdir()
        made = document({ACCURACY: figure(80.0, "%"), LATENCY: figure(300.0)}, (gate(),))
        (self.notes / "report.json").write_text(text_of(made), encoding="utf-8")

    def sweep(self, seeds: str, needed: int, exclusive: str = "auto") -> Sweep:
        """Run the sweep; each stand-in waits until so many have run at once."""

        def command(job: Job, asked: SweepOptions) -> list[dict[str, Any]]:
            words = ["{python}", "-c", STAND_IN, str(job.config.serve.seed), str(self.notes), "{port}"]
            return [{"words": [*words, *(["--force"] if asked.force else [])], "shared": False}]

        (self.notes / "needed").write_text(str(needed), encoding="ascii")
        sets = (f"sweep.exclusive={exclusive}",)
        workspace = Workspace(self.root, Silent())
        workspace.artifacts.mkdir(exist_ok=True)
        options = SweepOptions(f"profile=gpu-embedded;serve.seed={seeds}", self.address, sets=sets)
        layers = load_layers(self.root / "config.yaml", {}, sets)
        Sweeping(layers, machine(), options, workspace, self.said.append, command).run()
        made = Store(workspace.artifacts).outcome(SWEEP_NOTE, Sweep).data
        assert made is not None
        return made

    def late(self, seed: int) -> None:
        """Let the cell's first run find its client late."""
        result = bench_result()
        levels = [level.model_copy(update={"invalid": "the client saw chunks 9 ms late"}) for level in result.levels]
        store = Store(self.notes)
        store.write("bench", {}, now(), 1.0, result.model_copy(update={"levels": levels}))
        store.path("bench").rename(self.notes / f"late-{seed}.json")

    def runs(self, seed: int) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.notes / f"notes-{seed}").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def address(cluster: Cluster, nvml: FakeNvml) -> Iterator[str]:
    """The address of a cluster with a node of two GPUs, which NVML there shows."""
    nvml.play(TWO)
    with cluster.gpus(2, 8, **{name: nvml.environment()[name] for name in ("LD_LIBRARY_PATH", "NVML_SCRIPT")}):
        yield cluster.ray.address


@pytest.fixture
def house(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(Nodes, "cards", lambda _: [CARD, CARD])
    return House(tmp_path / "project", address)


def cells_of(made: Sweep) -> dict[int, CellRecord]:
    return {cell.values["serve.seed"]: cell for cell in made.cells}


def test_two_cells_at_once_have_nothing_in_common(house: House) -> None:
    made = house.sweep("1,2,3", needed=2)
    first, second, third = (house.runs(seed)[0] for seed in (1, 2, 3))
    assert (first["beside"], second["beside"]) == (["running-2"], ["running-1"])
    assert {first["gpus"], second["gpus"]} == {"0", "1"}
    assert len({first["slot"], second["slot"]} & {"", "1"}) == 2
    assert len({first["port"], second["port"], third["port"]}) == 3
    if len(os.sched_getaffinity(0)) > 1:
        assert not set(first["cores"]) & set(second["cores"])
    assert all((cell.state, cell.shared, cell.again) == ("measured", True, "") for cell in made.cells)
    assert sorted(str(cell.where).rpartition(", ")[2] for cell in made.cells[:2]) == ["GPU 0", "GPU 1"]


def test_a_cell_that_its_neighbour_disturbs_is_run_again_alone(house: House) -> None:
    house.late(2)
    made = house.sweep("1,2", needed=2)
    first, again = house.runs(2)
    assert (first["beside"], first["forced"]) == (["running-1"], False)
    assert (again["beside"], again["forced"], again["slot"]) == ([], True, "")
    assert again["cores"] == sorted(os.sched_getaffinity(0)), "alone it has every core"
    cell = cells_of(made)[2]
    assert (cell.state, cell.shared, cell.again) == ("measured", False, "the client saw chunks 9 ms late")
    assert cells_of(made)[1].shared
    assert any("INVALID beside its neighbour, to be run again alone: the client saw chunks 9 ms late" in line for line in house.said)


def test_where_sharing_is_forced_what_is_invalid_stays_so(house: House) -> None:
    house.late(2)
    assert cells_of(house.sweep("1,2", needed=2, exclusive="false"))[2].shared
    assert len(house.runs(2)) == 1


def test_exclusive_cells_are_one_at_a_time(house: House) -> None:
    house.late(2)
    made = house.sweep("1,2", needed=1, exclusive="true")
    assert all(house.runs(seed)[0]["beside"] == [] for seed in (1, 2))
    assert not any(cell.shared or cell.again for cell in made.cells)


def test_two_whole_pipelines_side_by_side_each_measure_their_own_gpu(tmp_path: Path, address: str, nvml: FakeNvml) -> None:
    """The whole chain of each cell against a fake server of its own; the second GPU has more in use before the start."""
    project = Project(tmp_path / "project")
    environment = tmp_path / "elsewhere"
    make_server_environment(environment)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "torch.py").touch()
    for name in ("vllm", "torch"):
        (site / f"{name}-{fake_vllm.VERSION}.dist-info").mkdir()
        (site / f"{name}-{fake_vllm.VERSION}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {fake_vllm.VERSION}\n")
    model = tmp_path / "shape"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config_of("Qwen/Qwen2.5-1.5B-Instruct")), encoding="utf-8")
    Script(texts=('{"route": "chat"}',)).save(tmp_path / "script.json")
    sets = (
        *(word for word in SMALL if word != "--set"),
        *(f"install.python={environment}/bin/python", "model.source=path", f"model.path={model}", f"model.name={MODEL_NAME}"),
        *(f"serve.env.{fake_vllm.SCRIPT_VARIABLE}={tmp_path}/script.json", "serve.load_format=dummy", "serve.drain_timeout_s=0"),
        *("bench.concurrency=[1,2]", "bench.open_loop=[]", "vram.load_s=1", "vram.fill_s=0", "serve.max_num_seqs=16"),
    )
    workspace, said = Workspace(project.root, Silent()), list[str]()
    workspace.artifacts.mkdir()
    layers = load_layers(project.root / "config.yaml", {}, sets)
    options = SweepOptions("profile=gpu-embedded;serve.seed=1,2", address, sets=sets)
    Sweeping(layers, machine(), options, workspace, said.append).run()
    made = Store(workspace.artifacts).outcome(SWEEP_NOTE, Sweep).data
    assert made is not None
    logs = {cell.name: (project.root / SWEEPS / cell.folder / "cell.log").read_text(encoding="utf-8")[-2000:] for cell in made.cells}
    assert [(cell.state, cell.shared) for cell in made.cells] == [("measured", True)] * 2, (said, logs)
    assert [line[:1] for line in said[:2]] == ["▶", "▶"], said
    found = {}
    for cell in made.cells:
        store = Store(project.root / SWEEPS / cell.folder / "artifacts")
        serve, memory, bench, closing = (store.read(name) for name in ("serve", "measure-vram", "bench", "stop"))
        assert serve is not None and memory is not None and bench is not None and closing is not None  # noqa: PT018
        assert serve.data is not None and memory.data is not None and bench.data is not None and closing.data is not None  # noqa: PT018
        gpu = str(cell.where)[-1]
        found[gpu] = (memory.data["baseline_gpu_mib"], len(closing.data["gpu_used_before_mib"]), closing.data["gpu_used_before_mib"])
        assert serve.data["plan"]["total_mib"] == 81559
        assert all(entry["client"] == entry["server"] for entry in bench.data["ledger"])
        assert cell.random_weights
        assert not cell.speed_passed, "it is simulated"
    assert found == {"0": (100.0, 1, [100.0]), "1": (700.0, 1, [700.0])}


def test_a_cell_that_is_lost_before_it_starts_is_placed_again_after_a_pause(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies at once, as on a node that Ray still believes in, four times."""
    monkeypatch.setattr(placing, "BELIEVED_S", 0.05)
    tries = tmp_path / "tries"

    class Dying(Runner):
        def where(self, token: str, word: str) -> dict[str, Any]:
            with tries.open("a") as file:
                file.write("x")
            if tries.stat().st_size <= 4:
                os._exit(1)
            return super().where(token, word)

        def run(self, order: dict[str, Any], project: bytes | None) -> dict[str, Any]:
            return {"code": 0, "took_s": 0.1, "said": "", "archive": None, "left": []}

    monkeypatch.setattr(node, "Runner", Dying)
    ends: list[Ended] = []
    said: list[str] = []
    (tmp_path / SWEEPS).mkdir(parents=True)
    nodes = Nodes(cluster.ray.address, 0, 128)
    nodes.ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        listener = Listener(said.append, lambda *_: None, lambda _, how: ends.append(how))
        Placing(nodes, tmp_path, 0, 5, listener).run([CellOrder("a", 0, {})])
    finally:
        nodes.close()
    assert [how.code for how in ends] == [0]
    assert (ends[0].lost, sum(": lost" in line for line in said)) == (0, 4)
