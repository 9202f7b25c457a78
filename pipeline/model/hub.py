"""Fetch a model from the Hugging Face hub at one commit."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipeline.errors import ModelError
from pipeline.model.facts import sha256_of

GIB = 2**30
# Weights in other frameworks' formats, and the original consolidated files, would be fetched for nothing.
LEFT_OUT = ("*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.pth", "original/*", "onnx/*")


class HubModel(BaseModel):
    """A fetched snapshot: its folder, the commit and the licence that the hub states."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    folder: Path
    commit: str
    license: str | None


def fetch(repo: str, revision: str, folder: Path, min_free_gib: float, say: Callable[[str], None]) -> HubModel:
    """Download `repo` at `revision` into `folder`, resuming what is there; ModelError names what went wrong.

    The token is taken from the environment (HF_TOKEN) or from `hf auth login`, as huggingface_hub does.
    """
    import httpx2
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        commit = str(info.sha)
        files = [file for file in info.siblings or [] if not any(Path(file.rfilename).match(glob) for glob in LEFT_OUT)]
        missing = sum(file.size or 0 for file in files if not (folder / file.rfilename).is_file())
        free = shutil.disk_usage(existing_parent(folder)).free
        if free < missing + min_free_gib * GIB:
            raise ModelError(
                f"{repo} needs {missing / GIB:.1f} GiB and {min_free_gib:g} GiB to spare, {free / GIB:.1f} GiB are free",
                "free some disk space, or choose a smaller model",
            )
        say(f"downloading {repo} at {commit[:12]}: {missing / GIB:.2f} GiB to go")
        snapshot_download(repo, revision=commit, local_dir=folder, ignore_patterns=list(LEFT_OUT))
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
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, httpx2.TransportError) as error:
        raise ModelError(
            f"the hub cannot be reached: {first_line(error)}",
            "check the network (and HF_ENDPOINT, HF_HUB_OFFLINE), then run it again: the download resumes",
        ) from error
    except HfHubHTTPError as error:
        raise ModelError(f"the hub refused {repo}: {first_line(error)}", "try again later") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ModelError("the disk is full", "free some space, then run it again: the download resumes") from error
        if error.errno is None:  # huggingface_hub's own consistency check after a broken transfer
            raise ModelError(f"the download of {repo} broke off: {first_line(error)}", "run it again: the download resumes") from error
        raise
    for file in files:
        if file.lfs is not None and sha256_of(folder / file.rfilename) != file.lfs.sha256:
            (folder / file.rfilename).unlink()
            raise ModelError(
                f"{repo}: {file.rfilename} does not have the sha256 that the hub states; removed it",
                "run it again to fetch that file anew",
            )
    card = info.card_data
    return HubModel(folder=folder, commit=commit, license=str(card.license) if card and card.get("license") else None)


def existing_parent(path: Path) -> Path:
    """Return the nearest folder at or above `path` that exists."""
    return path if path.exists() else existing_parent(path.parent)


def first_line(error: Exception) -> str:
    """Return the error's first line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
