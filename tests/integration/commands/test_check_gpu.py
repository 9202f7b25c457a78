"""check-gpu, and a stage that it blocks."""

import pytest

from pipeline.gpu import nvml
from tests.builders.project import Project


def needs_no_gpu() -> None:
    if nvml.read().trouble is None:
        pytest.skip("this machine has a GPU")


def test_check_gpu_without_a_gpu_says_so_and_chooses_the_processor(project: Project) -> None:
    needs_no_gpu()
    lines = project.says("check-gpu")
    assert lines[0].startswith("processor  ")
    assert any(line.startswith("no usable GPU: ") for line in lines)
    assert lines[-1].startswith("profile cpu (auto: no usable GPU: ")
    assert project.record("check-gpu")["data"]["profile"] == "cpu"


def test_check_gpu_that_must_find_one_fails_with_one_line(project: Project) -> None:
    needs_no_gpu()
    done = project.invoke("check-gpu", "--set", "gpu.required=true")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("✗")]
    assert line.startswith("✗ check-gpu failed")
    assert "no usable GPU: " in line
    assert line.endswith("; or set gpu.required: false)")
    assert project.record("check-gpu")["failure"]["kind"] == "machine"


def test_stage_whose_need_failed_is_blocked_and_does_not_run(project: Project) -> None:
    needs_no_gpu()
    done = project.invoke("download-model", "--profile", "cpu", "--set", "gpu.required=true")
    assert done.returncode == 2
    assert "✗ download-model blocked: needs check-gpu, which failed" in done.stderr
    assert not (project.root / "models").exists()
