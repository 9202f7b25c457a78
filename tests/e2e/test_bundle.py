"""The cpu profile's bundle, made for real, and run where there is no network: a namespace with the loopback alone."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, SETTINGS

KEPT = ROOT / ".cache" / "e2e-bundle"  # so that packages are fetched once
INSIDE = """
ip link set lo up || exit 90
test -z "$(ip route)" || exit 91
exec ./inv all --bundle "$1"
"""


def isolated(*words: str) -> list[str]:
    """Return the command, to run in a network namespace of its own."""
    return ["unshare", "--map-root-user", "--net", *words]


def test_a_bundle_measures_a_server_without_a_network(tmp_path: Path) -> None:
    if subprocess.run(isolated("ip", "link"), capture_output=True).returncode != 0:
        pytest.skip("no network namespaces for this user here")
    made = subprocess.run(
        [sys.executable, "-m", "invoke", "bundle", "--profile", "cpu", "--output", str(KEPT)], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    with tarfile.open(KEPT / "pipeline.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    project, home = tmp_path / "vllm-poc", tmp_path / "home"
    home.mkdir()
    paths = [str(Path(sys.base_prefix) / "bin"), "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
    environment = {"HOME": str(home), "PATH": os.pathsep.join(paths), "LANG": "C.UTF-8"}
    # Eager, because nothing is compiled yet in a new folder, which takes most of a minute.
    settings = {**SETTINGS, "SERVE__ENFORCE_EAGER": "true"}
    environment |= {f"VLLM_POC__{name}": value for name, value in settings.items()}
    done = subprocess.run(isolated("sh", "-c", INSIDE, "inside", str(KEPT)), cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    for stage in ("install", "download-model", "serve", "bench", "measure-vram", "report"):
        assert json.loads((project / "artifacts" / f"{stage}.json").read_text(encoding="utf-8"))["status"] == "ok", done.stderr
    assert json.loads((project / "artifacts" / "serve.json").read_text(encoding="utf-8"))["data"]["real"]
    report = (project / "REPORT.md").read_text(encoding="utf-8")
    assert "tok/s" in report
    assert "SIMULATED:" not in report
