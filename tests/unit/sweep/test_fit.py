"""Whether a sweep's cell can run, on how many cores, and how long it may take."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster import answering
from pipeline.config.layers import load_layers
from pipeline.engine.workspace import Workspace
from pipeline.errors import MachineError
from pipeline.planning import Card, Library
from pipeline.sweep.fit import cell_fit, estimates, gpus_of, may_share, minutes
from pipeline.sweep.placing import CellOrder, cores_for, shareable, slots
from pipeline.sweep.run import largest
from tests.builders.documents import document
from tests.fakes.environment import machine

ROOT = Path(__file__).resolve().parents[3]
LAPTOP = Card(name="RTX 4050", total_mib=6141, available_mib=6141, reason="")


class Offline(Library):
    """What is known without the hub."""

    def __init__(self, root: Path) -> None:
        super().__init__(machine(), Workspace(root))
        self.trouble = "no hub"


def judged(root: Path, profile: str, *sets: str, card: Card | None = LAPTOP, gpus: int = 1) -> tuple[str, bool]:
    layers = load_layers(ROOT / "config.yaml", {}, sets)
    found = cell_fit(layers.config(profile), card, gpus, Offline(root))
    return found.words, found.runs


@pytest.mark.parametrize(
    ("profile", "sets", "words", "runs"),
    [
        ("cpu", (), "runs on the processor", True),
        ("qwen2.5-1.5b", (), "fits, peak ", True),
        ("rtx4050-6gb", (), "fits, peak ", True),
        ("qwen2.5-7b", (), "cannot fit: the plan leaves ", False),
        ("llama-3.2-3b", (), "cannot fit: ", False),
        ("qwen2.5-7b", ("serve.force_start=true",), "may not fit", True),
        ("qwen2.5-7b", ("attach.url=http://127.0.0.1:1",), "runs on a server of someone else's", True),
        ("qwen2.5-1.5b", ("serve.tensor_parallel_size=2",), "needs 2 GPUs, no node has more than 1; on the guide's ", False),
        (
            "cpu",
            ("serve.nnodes=2", "serve.master_addr=a", "serve.data_parallel_size=2"),
            "serve.nnodes is 2: a cell runs on one node",
            False,
        ),
    ],
)
def test_fit(tmp_path: Path, profile: str, sets: tuple[str, ...], words: str, runs: bool) -> None:
    found = judged(tmp_path, profile, *sets)
    assert found[0].startswith(words)
    assert found[1] is runs


def test_without_a_gpu_the_guides_card_is_told(tmp_path: Path) -> None:
    words, runs = judged(tmp_path, "qwen2.5-1.5b", card=None, gpus=0)
    assert words.startswith("needs 1 GPU, and no node has one; on the guide's NVIDIA GeForce RTX 4050 Laptop GPU: fits")
    assert not runs


@pytest.mark.parametrize(
    ("profile", "sets", "gpus"),
    [("cpu", (), 0), ("qwen2.5-1.5b", (), 1), ("qwen2.5-1.5b", ("serve.tensor_parallel_size=2", "serve.data_parallel_size=2"), 4)],
)
def test_gpus(profile: str, sets: tuple[str, ...], gpus: int) -> None:
    assert gpus_of(load_layers(ROOT / "config.yaml", {}, sets).config(profile)) == gpus


def node(cores: float, gpus: float = 0) -> dict[str, float]:
    return {"CPU": cores, "GPU": gpus}


@pytest.mark.parametrize(
    ("nodes", "gpus", "cores"),
    [
        ([node(8), node(8)], 0, 8),
        ([node(8), node(6), node(4)], 0, 6),
        ([node(64), node(8, gpus=1)], 1, 8),
        ([node(8)], 1, 0),
        ([], 0, 0),
        ([{}], 0, 0),
    ],
)
def test_cores_leave_no_room_for_a_second_cell_on_any_node(nodes: list[dict[str, float]], gpus: int, cores: float) -> None:
    found = cores_for(nodes, gpus)
    assert found == cores
    assert all(found * 2 > one.get("CPU", 0) for one in nodes if one.get("GPU", 0) >= gpus) or not found


@pytest.mark.parametrize(
    ("nodes", "gpus", "cores", "at_once"),
    [
        ([node(32, gpus=2)], 1, 16, 2),
        ([node(64, gpus=8)], 2, 16, 4),
        ([node(33, gpus=3)], 1, 11, 3),
        ([node(32, gpus=2), node(8, gpus=1)], 1, 8, 3),
        ([node(16, gpus=3)], 2, 0, 0),  # a group and a GPU that is left over: nothing to share
        ([node(7, gpus=2)], 1, 0, 0),  # too few cores for two
        ([node(16, gpus=1), node(16, gpus=1)], 1, 0, 0),
        ([node(64)], 0, 0, 0),
        ([], 1, 0, 0),
    ],
)
def test_cells_share_the_nodes_where_gpus_are_the_scarce_thing(
    nodes: list[dict[str, float]], gpus: int, cores: float, at_once: int
) -> None:
    assert shareable(nodes, gpus) is (at_once > 0)
    if at_once:
        assert cores_for(nodes, gpus, shared=True) == cores
        assert slots(nodes, [CellOrder("a", gpus, {}, shared=True)]) == at_once
        assert all(slots([each], [CellOrder("a", gpus, {}, shared=True)]) * cores <= each["CPU"] for each in nodes)


@pytest.mark.parametrize(
    ("profile", "sets", "shares"),
    [
        ("qwen2.5-1.5b", (), True),
        ("qwen2.5-1.5b", ("sweep.exclusive=false",), True),
        ("qwen2.5-1.5b", ("sweep.exclusive=true",), False),
        ("qwen2.5-1.5b", ("serve.tensor_parallel_size=2",), True),
        ("cpu", (), False),
        ("cpu", ("sweep.exclusive=false",), False),
        ("qwen2.5-1.5b", ("attach.url=http://127.0.0.1:1",), False),
        ("qwen2.5-1.5b", ("serve.env.CUDA_VISIBLE_DEVICES=0",), False),
        ("qwen2.5-1.5b", ("serve.distributed_executor_backend=ray",), False),
        ("qwen2.5-1.5b", ("bench.ray_address=auto",), False),
    ],
)
def test_only_a_cell_whose_gpus_are_given_to_it_may_share(profile: str, sets: tuple[str, ...], shares: bool) -> None:
    assert may_share(load_layers(ROOT / "config.yaml", {}, sets).config(profile)) is shares


def test_slots_are_the_nodes_that_some_cell_can_use() -> None:
    nodes = [node(8), node(8, gpus=1), node(2)]
    assert slots(nodes, [CellOrder("a", 0, {})]) == 2
    assert slots(nodes, [CellOrder("a", 1, {})]) == 1
    assert slots(nodes, [CellOrder("a", 2, {})]) == 0


def test_time_is_that_of_the_last_whole_run_of_the_profile() -> None:
    newest, older = document(number=2), document(number=1)
    broken: Any = newest.stages[0].model_copy(update={"status": "failed"})
    halves = newest.model_copy(update={"stages": [broken]})
    assert estimates([halves, newest, older, document(number=0, profile="quick")]) == {"cpu": 120.0, "quick": 120.0}
    assert estimates([halves]) == {}
    assert [minutes(seconds) for seconds in (None, 65.2, 600)] == ["not known", "about 65 s", "about 10 min"]


def test_largest_card() -> None:
    assert largest([]) is None
    found = largest([("a", 1.0), ("b", 2.0)])
    assert found is not None
    assert found.name == "b"


@pytest.mark.parametrize("address", ["ray://host:1", "host", "host:port", ":6379"])
def test_what_is_no_address_of_a_head_is_told(address: str) -> None:
    with pytest.raises(MachineError, match="expected host:port of the cluster's head, or auto"):
        answering(address, "--ray-address")
