"""The CUDA toolkit that the server sees."""

from pathlib import Path

import pytest

from pipeline.vllm import toolkit
from pipeline.vllm.toolkit import PAIRED, arranged, has_toolkit, own_packages, toolkit_environment


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The Python of an environment whose packages hold nvcc, as those of the CUDA 13 set do."""
    packages = tmp_path / "venv" / "lib" / "python3.12" / "site-packages" / "nvidia" / "cu13"
    for name in ("bin/nvcc", "include/cuda_runtime.h", "nvvm/bin/cicc", "lib/libcudart.so.13", "lib/libcudadevrt.a"):
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).touch()
    return tmp_path / "venv" / "bin" / "python"


@pytest.fixture(autouse=True)
def without_toolkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(toolkit, "MACHINE", tmp_path / "usr" / "local" / "cuda")


def nvcc_in(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "nvcc").touch(mode=0o755)
    return folder


def test_a_machine_without_a_toolkit_gets_the_environments_own(python: Path, tmp_path: Path) -> None:
    made = toolkit_environment({"PATH": ""}, python, tmp_path / "cache")
    home = Path(made["CUDA_HOME"])
    assert home.is_relative_to(tmp_path / "cache")
    for name in (
        "bin/nvcc",
        "include/cuda_runtime.h",
        "nvvm/bin/cicc",
        "lib64/libcudart.so.13",
        "lib64/libcudart.so",
        "lib/libcudadevrt.a",
    ):
        assert (home / name).is_file(), name
    assert made["NVCC_APPEND_FLAGS"] == PAIRED


def test_flags_of_the_users_own_stay(python: Path, tmp_path: Path) -> None:
    made = toolkit_environment({"PATH": "", "NVCC_APPEND_FLAGS": "-O1"}, python, tmp_path / "cache")
    assert made["NVCC_APPEND_FLAGS"] == f"-O1 {PAIRED}"


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH", "PATH"])
def test_the_machines_own_toolkit_is_left_alone(python: Path, tmp_path: Path, variable: str) -> None:
    found = nvcc_in(tmp_path / "toolkit")
    inherited = {"PATH": "", variable: str(found / "bin" if variable == "PATH" else found)}
    assert has_toolkit(inherited)
    assert toolkit_environment(inherited, python, tmp_path / "cache") == {}


def test_the_machines_own_toolkit_counts_where_nothing_names_it() -> None:
    assert not has_toolkit({"PATH": ""})
    nvcc_in(toolkit.MACHINE)
    assert has_toolkit({"PATH": ""})


def test_a_folder_without_a_compiler_is_no_toolkit(python: Path, tmp_path: Path) -> None:
    inherited = {"PATH": "", "CUDA_HOME": str(tmp_path / "gone")}
    assert "CUDA_HOME" in toolkit_environment(inherited, python, tmp_path / "cache")


def test_an_environment_without_a_compiler_has_none_to_point_at(tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    assert own_packages(python) is None
    assert toolkit_environment({"PATH": ""}, python, tmp_path / "cache") == {}


def test_the_cuda_12_set_has_no_compiler_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "venv" / "lib" / "python3.12" / "site-packages" / "nvidia"
    for name in ("cuda_nvcc/bin/ptxas", "cuda_runtime/include/cuda_runtime.h", "cuda_runtime/lib/libcudart.so.12"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert toolkit_environment({"PATH": ""}, tmp_path / "venv" / "bin" / "python", tmp_path / "cache") == {}


def test_links_follow_an_environment_that_was_made_anew(python: Path, tmp_path: Path) -> None:
    packages = own_packages(python)
    assert packages is not None
    folder = arranged(packages, tmp_path / "cache")
    (folder / "bin").unlink()
    (folder / "bin").symlink_to(tmp_path / "elsewhere")
    stands = (folder / "include").lstat().st_ino
    arranged(packages, folder)
    assert (folder / "bin" / "nvcc").is_file()
    assert (folder / "include").lstat().st_ino == stands, "a link that is right is left alone"
