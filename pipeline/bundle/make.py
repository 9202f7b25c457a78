"""Make a bundle: all packages, the model and the pipeline for a machine without a network, with checksums."""

import gzip
import io
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.bundle.content import BundledModel, Manifest, copy_tree, files_of, wanted
from pipeline.bundle.unpack import MANIFEST, MODELS, PART, PIPELINE, SUMS, UNFINISHED, WHEELS, check_sums, sha256_of
from pipeline.bundle.wheels import Platform, fetch, pins, with_places
from pipeline.config.schema import ModelConfig
from pipeline.engine.record import now
from pipeline.engine.workspace import Workspace
from pipeline.errors import BundleError, ModelError
from pipeline.measure.units import MIB
from pipeline.model import hub
from pipeline.vllm.sets import VllmSet

README = "README.txt"
TOP = "vllm-poc"
AIM = """\
vllm-poc for a machine without a network: profile {profile} ({vllm}, {model}).
It needs {platform} with glibc {glibc} or newer, Python {pythons} with venv{more}.

    tar -xf pipeline.tar.gz
    cd {top}
    ./inv all --bundle THIS_FOLDER

`sha256sum -c SHA256SUMS` checks this folder; `./inv all --bundle` does so too.
"""


@dataclass(frozen=True)
class BundleOrder:
    """What to bundle, and for which machine; `part_mib` splits the bundle into parts."""

    profile: str
    model: ModelConfig
    chosen: VllmSet
    target: Platform
    part_mib: int | None


def make(order: BundleOrder, output: Path, workspace: Workspace) -> Manifest:
    """Make the bundle in `output`, keeping complete files of an earlier try; BundleError if the folder holds something else."""
    claim(output)
    sets = ["uv.txt", "pipeline.txt", f"{order.chosen.name}.txt", *(["smollm2.txt"] if order.model.source == "wheel" else [])]
    archive = pipeline_archive(workspace.root)
    if order.part_mib is not None and len(archive) > order.part_mib * MIB:
        raise BundleError(f"the pipeline alone takes {len(archive) / MIB:.1f} MiB", f"name at least --part-mib {-(-len(archive) // MIB)}")
    whole = output if order.part_mib is None else output / ".whole"
    whole.mkdir(exist_ok=True)
    remove_other_form(output, in_parts=order.part_mib is not None)
    (output / UNFINISHED).write_text("Run the same `./inv bundle` again: what is whole is kept.\n", encoding="utf-8")
    (whole / PIPELINE).write_bytes(archive)
    wheels = fetch_wheels(order, sets, whole / WHEELS, workspace)
    model = fetch_model(order.model, whole / MODELS, workspace)
    manifest = Manifest(
        format=1,
        made=now(),
        commit=commit_of(workspace.root),
        pipeline_sha256=sha256_of(whole / PIPELINE),
        profile=order.profile,
        set=order.chosen.name,
        vllm=f"{order.chosen.distribution} {order.chosen.vllm}",
        platform="Linux x86_64",
        glibc=f"2.{order.target.glibc_minor}",
        python=order.target.python,
        server_python=order.chosen.python,
        model=model,
        requirements={name: sha256_of(workspace.requirements / name) for name in sets},
        wheels=wheels,
        bytes=sum((whole / name).stat().st_size for name in files_of(whole)),
        parts=None,
    )
    (whole / README).write_text(aim(manifest), encoding="utf-8")
    finish(whole, manifest)
    if order.part_mib is not None:
        manifest = manifest.model_copy(update={"parts": split(whole, output, order.part_mib * MIB)})
        for name in (PIPELINE, README):
            shutil.copyfile(whole / name, output / name)
        shutil.rmtree(whole)
        finish(output, manifest)
    (output / UNFINISHED).unlink()
    check_sums(output)
    return manifest


def claim(output: Path) -> None:
    """Create `output` if it is missing; BundleError if it holds anything but a bundle."""
    if output.is_dir() and any(output.iterdir()) and not any((output / mark).is_file() for mark in (MANIFEST, UNFINISHED)):
        raise BundleError(f"{output} holds something else than a bundle", "name another folder with --output")
    if output.exists() and not output.is_dir():
        raise BundleError(f"{output} is not a folder", "name another with --output")
    output.mkdir(parents=True, exist_ok=True)


def remove_other_form(output: Path, in_parts: bool) -> None:
    """Remove what an earlier bundle of the other form left in `output`: its wheels and models, or its parts."""
    for path in output.iterdir():
        if in_parts and path.name in (WHEELS, MODELS):
            shutil.rmtree(path)
        elif not in_parts and (path.name.startswith(PART) or path.name == ".whole"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def fetch_wheels(order: BundleOrder, sets: list[str], folder: Path, workspace: Workspace) -> int:
    """Make `folder` hold exactly the wheels of the sets; return their number."""
    folder.mkdir(exist_ok=True)
    wheels: set[Path] = set()
    for name in sets:
        server = name == f"{order.chosen.name}.txt"
        target = Platform(order.chosen.python, order.target.glibc_minor) if server else order.target
        found = pins((workspace.requirements / name).read_text(encoding="utf-8"), target)
        if server:
            found = with_places(found, order.chosen, target, os.environ)
        workspace.say(f"{name}: {len(found)} packages for Python {target.python}")
        wheels |= fetch(found, target, folder, workspace.progress(name, len(found)))
    for path in folder.iterdir():
        if path not in wheels:
            path.unlink()
    return len(wheels)


def fetch_model(settings: ModelConfig, models: Path, workspace: Workspace) -> BundledModel:
    """Make `models` hold exactly the model, and return its description."""
    origin, requested_revision = wanted(settings)
    folder: str | None = None
    revision, licence = "local", None
    if settings.source == "hub":
        folder = origin.replace("/", "--")
        fetched = hub.fetch(origin, settings.revision, workspace.models / folder, settings.min_free_gib, workspace.say)
        revision, licence = fetched.commit, fetched.license
        copy_tree(fetched.folder, models / folder)
    elif settings.source == "path":
        source = workspace.root / Path(origin).expanduser()
        if not (source / "config.json").is_file():
            raise ModelError(f"model.path: {source} holds no config.json", "name a folder with a Hugging Face model in it")
        folder = source.resolve().name
        copy_tree(source, models / folder)
    else:
        revision = "as the wheel is pinned"
    for other in models.iterdir() if models.is_dir() else ():
        if other.name != folder:
            shutil.rmtree(other)
    return BundledModel(
        source=settings.source, origin=origin, asked_revision=requested_revision, revision=revision, folder=folder, license=licence
    )


def git(root: Path, *words: str) -> str:
    """Return git's output; BundleError if the folder is no checkout."""
    try:
        result = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        raise BundleError("git is not installed", "install it (Debian, Ubuntu: `sudo apt install git`)") from None
    if result.returncode != 0:
        raise BundleError(
            "the project's folder is no git checkout, so which files are its own is not known",
            "make the bundle in a clone of the project",
        )
    return result.stdout


def commit_of(root: Path) -> str:
    """Return the id of HEAD, with a plus if tracked files differ from it."""
    return git(root, "rev-parse", "HEAD").strip() + ("+" if git(root, "status", "--porcelain", "--untracked-files=no") else "")


def pipeline_archive(root: Path) -> bytes:
    """Return the tracked files in their current state, as a reproducible tar.gz."""
    names = [name for name in git(root, "ls-files", "-z").split("\0") if name and (root / name).is_file()]
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as stream, tarfile.open(fileobj=stream, mode="w") as archive:
        for name in sorted(names):
            archive.add(root / name, f"{TOP}/{name}", recursive=False, filter=plain)
    return buffer.getvalue()


def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Remove owner and time from the member and normalize its mode."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.mode & 0o100 else 0o644
    return member


def aim(manifest: Manifest) -> str:
    """Return the README for whoever unpacks the bundle."""
    pythons = dict.fromkeys((manifest.python, manifest.server_python))
    gpu = manifest.set != "vllm-cpu"
    return AIM.format(
        **manifest.model_dump(include={"profile", "vllm", "platform", "glibc"}),
        model=manifest.model.origin,
        pythons=" and ".join(pythons),
        more=", an NVIDIA driver, a C compiler and Python's headers" if gpu else ", a C++ compiler and Python's headers",
        top=TOP,
    )


def finish(folder: Path, manifest: Manifest) -> None:
    """Write the manifest and the checksums of all files in `folder`."""
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    names = [name for name in files_of(folder) if name not in (SUMS, UNFINISHED)]
    (folder / SUMS).write_text("".join(f"{sha256_of(folder / name)}  {name}\n" for name in names), encoding="utf-8")


def split(whole: Path, output: Path, part_bytes: int) -> int:
    """Write the files of `whole` as one tar, in parts of at most `part_bytes`; return the number of parts."""
    for old in output.iterdir():
        if old.name.startswith(PART):
            old.unlink()
    with Parts(output, part_bytes) as parts, tarfile.open(fileobj=parts, mode="w|") as archive:
        for name in files_of(whole):
            archive.add(whole / name, name, recursive=False, filter=plain)
    return parts.number


class Parts(io.RawIOBase):
    """A stream that continues in a new file after `part_bytes` bytes."""

    def __init__(self, folder: Path, part_bytes: int) -> None:
        self.folder, self.part_bytes = folder, part_bytes
        self.number, self.left = 0, 0
        self.file: io.BufferedWriter | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        rest = memoryview(data)  # type: ignore[arg-type]  # tarfile writes bytes
        size = len(rest)
        while rest:
            if not self.left:
                if self.file:
                    self.file.close()
                self.number, self.left = self.number + 1, self.part_bytes
                self.file = (self.folder / f"{PART}{self.number:03d}").open("wb")
            assert self.file is not None
            count = self.file.write(rest[: self.left])
            rest, self.left = rest[count:], self.left - count
        return size

    def close(self) -> None:
        if self.file:
            self.file.close()
        super().close()
