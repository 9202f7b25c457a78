"""One model over three nodes of this machine: they join, node 0 is proven and answers, and after its stop nothing is left."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import PATIENCE_S, Project, free_port, fresh_project

NODES = 3  # the embedded model's KV heads


@pytest.fixture
def others(project: Project) -> Iterator[list[Project]]:
    """The other nodes' folders, with the first one's environment and model."""
    code, output = project.run("download-model")
    assert code == 0, output
    made = [fresh_project(f"e2e-node{rank}") for rank in range(1, NODES)]
    for node in made:
        node.env["VLLM_POC__INSTALL__PYTHON"] = str(project.root / "venv-vllm" / "bin" / "python")
        if not (node.root / "models").exists():
            (node.root / "models").symlink_to(project.root / "models")
    for node in made:  # one after the other: they share the folder of models
        code, output = node.run("download-model")
        assert code == 0, output
    yield made
    for node in made:
        node.run("stop")
    left = [process for node in made for process in node.processes()]
    for process in left:
        process.kill()
    assert not left, f"left running: {left}"


def settings(port: int, rank: int) -> list[str]:
    values = {
        "tensor_parallel_size": NODES,
        "nnodes": NODES,
        "node_rank": rank,
        "master_addr": "127.0.0.1",
        "master_port": port,
        "enforce_eager": "true",
        # Three workers share this machine's cores, which vLLM would deal out to one host's workers alone.
        "env.VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "env.OMP_NUM_THREADS": '"1"',
    }
    return [word for name, value in values.items() for word in ("--set", f"serve.{name}={value}")]


def ended(task: "subprocess.Popen[str]") -> tuple[int, str]:
    """Return (exit code, output) of a task after Ctrl-C."""
    os.killpg(task.pid, signal.SIGINT)
    output, _ = task.communicate(timeout=PATIENCE_S)
    return task.returncode, output


def test_nodes_join_and_the_first_one_answers(project: Project, others: list[Project]) -> None:
    port = free_port()
    joining = [node.start("join", *settings(port, rank)) for rank, node in enumerate(others, 1)]
    try:
        code, output = project.run("serve", *settings(port, 0))
        assert code == 0, output
        server = project.record("serve")["data"]
        assert server["real"]
        assert f"--tensor-parallel-size {NODES}" in " ".join(server["command"])
        assert [node.launch() is not None for node in others] == [True] * len(others)
        code, output = project.run("stop")
        assert code == 0, output
    finally:
        endings = [ended(task) for task in joining]
    for code, said in endings:
        assert code in (2, 130), said
        assert f"of {NODES} joins 127.0.0.1:{port}" in said
    assert [node.launch() for node in others] == [None] * len(others)
