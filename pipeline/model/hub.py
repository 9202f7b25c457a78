"""Download of a model from the Hugging Face hub at one commit."""

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import HubSilentError, ModelError, first_line
from pipeline.measure.units import GIB
from pipeline.model.facts import sha256_of
from pipeline.model.files import INDEX, BrokenModelError, flaw_among, loaded, some
from pipeline.values import Frozen

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

KEEPS_WHOLE_FILES = "run it again: what is whole is kept"


class HubModel(Frozen):
    """A downloaded snapshot: its folder, the commit, and the licence that the hub states."""

    folder: Path
    commit: str
    license: str | None


def fetch(repo: str, revision: str, folder: Path, min_free_gib: float, say: Callable[[str], None]) -> HubModel:
    """Download what vLLM loads of `repo` at `revision` into `folder`, keeping what is there already; raise ModelError on failure.

    The folder then holds exactly that commit's files, each with the hash that the hub states. The token comes from the
    environment (HF_TOKEN) or from `hf auth login`, as in huggingface_hub. Files are downloaded one after another in this
    thread, because `snapshot_download` with its pool cannot be interrupted, and mistakes old files for a commit's if the hub
    breaks off.
    """
    from huggingface_hub import HfApi, hf_hub_download

    with hub_troubles(repo, revision, folder):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        commit = str(info.sha)
        insist_on_model(repo, info)
        has_index = any(file.rfilename == INDEX for file in info.siblings or [])
        index = Path(hf_hub_download(repo, INDEX, revision=commit, local_dir=folder)).read_bytes() if has_index else None
        files = files_to_fetch(info, index)
        missing = sum(file.size or 0 for file in files if not (folder / file.rfilename).is_file())
        free = shutil.disk_usage(existing_parent(folder)).free
        if free < missing + min_free_gib * GIB:
            raise ModelError(
                f"{repo} needs {missing / GIB:.1f} GiB and {min_free_gib:g} GiB to spare, {free / GIB:.1f} GiB are free",
                "free some disk space, or choose a smaller model",
            )
        say(f"downloading {repo} at {commit[:12]}: {missing / GIB:.2f} GiB to go")
        for file in files:
            hf_hub_download(repo, file.rfilename, revision=commit, local_dir=folder)
    for file in files:
        check_file(repo, folder / file.rfilename, file)
    remove_others(folder, {file.rfilename for file in files})
    card = info.card_data
    return HubModel(folder=folder, commit=commit, license=str(card.license) if card and card.get("license") else None)


def access(repo: str, revision: str, timeout_s: float) -> float:
    """Return the size of the model in GiB if the hub would let us download it; raise ModelError as `fetch` does."""
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

    with hub_troubles(repo, revision, Path(repo)):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=timeout_s)
        insist_on_model(repo, info)
        files = files_to_fetch(info)
        if files:  # anyone may list the files of a gated model; only those who accepted its licence may download them
            get_hf_file_metadata(hf_hub_url(repo, files[0].rfilename, revision=revision), timeout=timeout_s)
    return sum(file.size or 0 for file in files) / GIB


def has_token() -> bool:
    """Tell whether huggingface_hub finds a token."""
    from huggingface_hub import get_token

    return bool(get_token())


def files_to_fetch(info: "ModelInfo", index: bytes | None = None) -> "list[RepoSibling]":
    """Return the files that vLLM loads; `index` is the content of the safetensors index. ModelError where files in it are missing."""
    files = {file.rfilename: file for file in info.siblings or []}
    names = loaded(files, index)
    if missing := [name for name in names if name not in files]:
        raise BrokenModelError(f"{info.id} lacks {some(missing)}, which its index names", "name another revision, or another repository")
    return [files[name] for name in names]


def insist_on_model(repo: str, info: "ModelInfo") -> None:
    """Raise BrokenModelError where the repository holds no model that vLLM can load."""
    flaw = flaw_among(repo, [file.rfilename for file in info.siblings or []], base_model(info))
    if flaw is not None:
        raise BrokenModelError(*flaw)


def base_model(info: "ModelInfo") -> str:
    """Return the model that this one was made from, by its card; empty where that does not tell, or names several."""
    base = info.card_data.get("base_model") if info.card_data else None
    names = [base] if isinstance(base, str) else base or []
    return str(names[0]) if len(names) == 1 else ""


@contextmanager
def hub_troubles(repo: str, revision: str, folder: Path) -> Iterator[None]:
    """Turn errors of the hub inside the block into a ModelError that says what to do."""
    import httpx2
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise ModelError(
            f"{repo} is gated",
            f"accept its licence on the hub page of {repo}, then set HF_TOKEN to a token of that account",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub knows no model {repo} (or it is private)",
            "check the spelling of model.repo; for a private one set HF_TOKEN",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{repo} has no revision {revision}", "set model.revision to a branch, tag or commit of it") from error
    except HFValidationError as error:
        raise ModelError(
            f"model.repo: {repo!r} is not a model's name", "write it as on the hub, as in Qwen/Qwen2.5-1.5B-Instruct"
        ) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, httpx2.TransportError) as error:
        raise HubSilentError(
            f"the hub cannot be reached: {first_line(error)}",
            f"check the network (and HF_ENDPOINT, HF_HUB_OFFLINE), then {KEEPS_WHOLE_FILES}",
        ) from error
    except HfHubHTTPError as error:
        refused = error.response.status_code in (401, 403)
        hint = "check HF_TOKEN: the hub does not take it" if refused else "try again later"
        raise ModelError(f"the hub refused {repo}: {first_line(error)}", hint) from error
    except json.JSONDecodeError as error:
        raise ModelError("what answers is not the hub", "check the network (a login page?) and HF_ENDPOINT") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ModelError("the disk is full", f"free some space, then {KEEPS_WHOLE_FILES}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ModelError(f"{folder} cannot be written: {error.strerror}", "make the folder writable") from error
        if error.errno is None:  # huggingface_hub's own consistency check after a broken transfer
            raise ModelError(f"the download of {repo} broke off: {first_line(error)}", KEEPS_WHOLE_FILES) from error
        raise


def check_file(repo: str, path: Path, file: "RepoSibling") -> None:
    """Compare a downloaded file with the hash that the hub states; if it differs, remove the file and raise ModelError."""
    if file.lfs is not None:
        kind, matches = "sha256", sha256_of(path) == file.lfs.sha256
    else:
        kind, matches = "git hash", file.blob_id is None or git_hash_of(path) == file.blob_id
    if not matches:
        path.unlink()
        raise ModelError(
            f"{repo}: {file.rfilename} does not have the {kind} that the hub states; removed it",
            "run it again to fetch that file anew",
        )


def git_hash_of(path: Path) -> str:
    """Return git's object id of the file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def remove_others(folder: Path, names: set[str]) -> None:
    """Remove files that an earlier commit or an interrupted download left."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        stale = path.suffix == ".incomplete" if name.parts[0].startswith(".") else str(name) not in names
        if path.is_file() and stale:
            path.unlink()


def existing_parent(path: Path) -> Path:
    """Return the nearest folder at or above `path` that exists."""
    return path if path.exists() else existing_parent(path.parent)
