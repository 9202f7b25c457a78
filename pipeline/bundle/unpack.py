"""Check a bundle and join its parts. Standard library only: `./inv` runs it before anything is installed."""

import hashlib
import io
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import BundleError

FORMAT = 1
MANIFEST = "vllm-poc-bundle.json"
SUMS = "SHA256SUMS"
UNFINISHED = "UNFINISHED"
PIPELINE = "pipeline.tar.gz"
WHEELS, MODELS = "wheels", "models"
PART = "bundle.tar."
JOINED_FROM = "JOINED-FROM"
VARIABLE = "VLLM_POC_BUNDLE"
CHUNK_BYTES = 1 << 20
AGAIN = "copy it from the other side again"
VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"


def open_bundle(folder: Path, root: Path) -> Path:
    """Check the bundle, join its parts (if it has any) below `root`, and return its folder; BundleError says what is wrong."""
    about = manifest(folder)
    check_machine(about)
    find_python(about)
    check_server_python(about, os.environ)
    check_requirements(about, root / "requirements")
    whole = root / ".cache" / "bundle"
    sums = (folder / SUMS).read_text(encoding="utf-8") if (folder / SUMS).is_file() else ""
    if about.get("parts") is None:
        check_sums(folder)
        return folder
    if not is_joined(whole, sums):
        check_sums(folder)
        join(folder, about, whole)
        (whole / JOINED_FROM).write_text(sums, encoding="utf-8")
    return whole


def manifest(folder: Path) -> dict[str, Any]:
    """Return the bundle's manifest; BundleError if the bundle is incomplete or its manifest damaged."""
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder", "name the folder that `./inv bundle` made")
    if (folder / UNFINISHED).exists():
        raise BundleError(f"the bundle in {folder} was not finished", "run the same `./inv bundle` again where it was made")
    try:
        about = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{folder} is no bundle: it holds no {MANIFEST}", "name the folder that `./inv bundle` made") from None
    except ValueError:
        raise BundleError(f"{MANIFEST} is damaged", AGAIN) from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise BundleError(
            f"the bundle in {folder} is of a format that this pipeline does not read",
            f"run the pipeline that came with it: tar -xf {folder / PIPELINE}",
        )
    missing = [name for name in ("platform", "glibc", "python", "server_python", "requirements") if name not in about]
    if missing:
        raise BundleError(f"{MANIFEST} is damaged: it has no {missing[0]}", AGAIN)
    return about


def check_machine(about: Mapping[str, Any]) -> None:
    """Raise BundleError if this machine is not of the bundle's platform."""
    here = f"{platform.system()} {platform.machine()}"
    if here != about["platform"]:
        raise BundleError(f"the bundle is for {about['platform']}, this machine is {here}", "take it to such a machine")
    name, version = platform.libc_ver()
    if name != "glibc" or as_numbers(version) < as_numbers(about["glibc"]):
        found = f"{name} {version}".strip() or "another C library"
        raise BundleError(
            f"the bundle needs glibc {about['glibc']} or newer, this machine has {found}", "make one with `./inv bundle --platform …`"
        )


def as_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, as (2, 28) of "2.28"."""
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def find_python(about: Mapping[str, Any]) -> str:
    """Return the path of a Python of the bundle's version; BundleError if there is none."""
    version = str(about["python"])
    if version == "{}.{}".format(*sys.version_info[:2]):
        return sys.executable
    path = find_command(version)
    if path is None:
        here = "{}.{}".format(*sys.version_info[:2])
        raise BundleError(
            f"the bundle's packages are for Python {version}, this machine has {here}",
            f"install Python {version}, or make the bundle with --python {here}",
        )
    return path


def check_server_python(about: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Raise BundleError if there is no Python of the version that the server's packages are for."""
    version = str(about["server_python"])
    data = Path(environment.get("XDG_DATA_HOME") or Path(environment.get("HOME", "/")) / ".local" / "share")
    managed = Path(environment.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python")
    here = version == "{}.{}".format(*sys.version_info[:2])
    if not here and find_command(version) is None and not any(managed.glob(f"cpython-{version}.*")):
        raise BundleError(
            f"the bundle's vLLM is for Python {version}, which this machine lacks",
            f"install Python {version} (a bundle brings packages, and no Python)",
        )


def find_command(version: str) -> str | None:
    """Return the path of `python3.x` if it runs and has that version; pyenv's shims may do neither."""
    path = shutil.which(f"python{version}")
    if path is None:
        return None
    result = subprocess.run([path, "-c", VERSION], capture_output=True, text=True)
    return path if result.stdout.strip() == version else None


def check_requirements(about: Mapping[str, Any], requirements: Path) -> None:
    """Raise BundleError if this pipeline pins other packages than the bundle holds."""
    for name, sha256 in about["requirements"].items():
        path = requirements / name
        if not path.is_file() or sha256_of(path) != sha256:
            raise BundleError(
                f"the bundle is of another version of the pipeline: requirements/{name} differs",
                f"run the pipeline that came with it (tar -xf {PIPELINE} in the bundle), or make a new bundle",
            )


def read_sums(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file in SHA256SUMS; BundleError if it is missing or damaged."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise BundleError(f"{SUMS} is missing", AGAIN) from None
    except ValueError:
        raise BundleError(f"{SUMS} is damaged", AGAIN) from None
    sums = {path: sha256 for sha256, mark, path in (line.partition("  ") for line in lines) if mark and len(sha256) == 64}
    if len(sums) != len(lines) or MANIFEST not in sums or any(".." in Path(path).parts or path.startswith("/") for path in sums):
        raise BundleError(f"{SUMS} is damaged", AGAIN)
    return sums


def check_sums(folder: Path) -> None:
    """Raise BundleError for the first file that is missing or has the wrong checksum."""
    sums = read_sums(folder)
    for path in sums:  # before the slow hashing
        if not (folder / path).is_file():
            raise BundleError(f"{kind_of(path)} {path} is missing", AGAIN)
    for path, sha256 in sums.items():
        if sha256_of(folder / path) != sha256:
            raise BundleError(f"{kind_of(path)} {path} has the wrong checksum", AGAIN)


def kind_of(path: str) -> str:
    return "part" if path.startswith(PART) else "file"


def sha256_of(path: Path) -> str:
    """Return the file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_joined(whole: Path, sums: str) -> bool:
    """Tell whether `whole` was joined from the parts with these checksums and is still intact."""
    try:
        if (whole / JOINED_FROM).read_text(encoding="utf-8") != sums:
            return False
        check_sums(whole)
    except (OSError, BundleError):
        return False
    return True


def join(folder: Path, about: Mapping[str, Any], whole: Path) -> None:
    """Join the parts in `folder` into `whole`."""
    fresh = whole.with_name(f".{whole.name}.new")
    for old in (fresh, whole):
        shutil.rmtree(old, ignore_errors=True)
    fresh.mkdir(parents=True)
    parts = sorted(path for path in read_sums(folder) if path.startswith(PART))
    needed, free = sum((folder / part).stat().st_size for part in parts), shutil.disk_usage(fresh).free
    if free < needed:
        raise BundleError(f"joining the parts takes {needed >> 20} MiB, {free >> 20} MiB are free", "free some disk space")
    print(f"inv: joining {about['parts']} parts in {whole}", file=sys.stderr, flush=True)
    with io.BufferedReader(Joined([folder / part for part in parts]), CHUNK_BYTES) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                # The filter keeps members inside `fresh`, as later Pythons do by default; the contents are checked below.
                archive.extraction_filter = getattr(tarfile, "data_filter", None)
                for member in archive:
                    archive.extract(member, fresh)
        except tarfile.TarError as error:
            raise BundleError(f"the parts do not join: {error}", "make the bundle again") from error
    check_sums(fresh)
    fresh.rename(whole)


class Joined(io.RawIOBase):
    """Files concatenated into one stream."""

    def __init__(self, paths: list[Path]) -> None:
        self.chunks = self._chunks(paths)
        self.rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.rest = self.rest or memoryview(next(self.chunks, b""))
        length = min(len(buffer), len(self.rest))
        buffer[:length] = self.rest[:length]
        self.rest = self.rest[length:]
        return length

    @staticmethod
    def _chunks(paths: list[Path]) -> Iterator[bytes]:
        for path in paths:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk


def environment(folder: Path) -> dict[str, str]:
    """Return the variables that make pip, uv and the hub's client take everything from the bundle, without a network."""
    return {
        VARIABLE: str(folder),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": (folder / WHEELS).as_uri(),  # a URL, because pip would split a path at its spaces
        "UV_OFFLINE": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "HF_HUB_OFFLINE": "1",
    }


def main(folder: Path, root: Path) -> None:
    """Print shell code that sets what `./inv` continues with."""
    folder = open_bundle(folder, root)
    about = manifest(folder)
    print(f"bundle_version={shlex.quote(str(about['python']))} python={shlex.quote(find_python(about))}")
    for name, value in environment(folder).items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]).absolute(), Path.cwd())
    except BundleError as error:
        print(f"inv: {error.message}\n  → {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"inv: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
