"""Kept runs: one folder under artifacts/runs for each run of `all`; the oldest are removed beyond the limits."""

import gzip
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.schema import IMAGES, RunsConfig
from pipeline.engine.record import write_atomic
from pipeline.engine.workspace import Workspace
from pipeline.errors import PipelineError, RecordError
from pipeline.redact import redacted
from pipeline.report.formats.document import FILE_NAME, Document, read_document
from pipeline.report.noise import NOISE_NOTE, noise_in
from pipeline.server import state

RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}")
UNFINISHED_PREFIX = ".unfinished"  # prefix of a run's folder until it is complete
LIST_THEM = "`./inv history` lists the runs"


@dataclass(frozen=True)
class Run:
    """A report with its name, its document, and the folder with its records; without a folder if it comes from a commit."""

    name: str
    document: Document
    folder: Path | None


def folder_of(workspace: Workspace) -> Path:
    """Return the folder that holds all runs."""
    return workspace.artifacts / "runs"


def keep(document_path: Path, report_path: Path, settings: RunsConfig, workspace: Workspace) -> Path | None:
    """Copy the last run into a folder of its own, atomically, and prune old runs; return None if nothing ran or it is kept already.

    The folder holds the report, `records/` with the stages' records and the noise between starts where it fits, `raw/` with the
    stamps, and `logs/` with logs and memory samples.
    """
    document = read_document(document_path.read_bytes(), workspace.relative(document_path))
    parent = folder_of(workspace)
    target = parent / str(document.run_id)
    if document.run_id is None or target.exists():
        return None
    for leftover in parent.glob(f"{UNFINISHED_PREFIX}*"):  # left by a killed command: we hold the lock, so no other command is writing it
        shutil.rmtree(leftover)
    unfinished = parent / f"{UNFINISHED_PREFIX}-{target.name}"
    try:
        for path in (document_path, report_path, report_path.with_name("report.html")):
            copy(path, unfinished / (FILE_NAME if path == document_path else path.name))
        noise = noise_in(workspace.artifacts)
        fitting = [NOISE_NOTE] if noise is not None and noise.fits(document.environment) else []
        for name in (*(stage.stage for stage in document.stages), "stop", *fitting):
            copy(workspace.artifacts / f"{name}.json", unfinished / "records" / f"{name}.json")
        for path in sorted(report_path.with_name(IMAGES).glob("*.svg")):
            copy(path, unfinished / IMAGES / path.name)
        for path in sorted((workspace.artifacts / "raw").glob("*")):
            copy(path, unfinished / "raw" / path.name)
        for launch in sorted({stage.launch_id for stage in document.stages if stage.launch_id} & set(launches(workspace))):
            for name in ("server.log", state.SAMPLES):
                compress(workspace.launches / launch / name, unfinished / "logs" / f"{launch}-{name}.gz")
        for path in sorted((workspace.artifacts / "logs").glob("*")):
            compress(path, unfinished / "logs" / f"{path.name}.gz")
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    prune(target, settings)
    return target


def launches(workspace: Workspace) -> list[str]:
    """Return the ids of the launches whose folders still exist."""
    return [path.name for path in workspace.launches.glob("*")]


def copy(source: Path, target: Path) -> None:
    """Copy a file if it exists."""
    if source.is_file():
        write_atomic(target, source.read_bytes())


def compress(source: Path, target: Path) -> None:
    """Copy a text file, compressed and with secrets redacted, if it exists."""
    if source.is_file():
        write_atomic(target, gzip.compress(redacted(source.read_text(encoding="utf-8", errors="replace")).encode(), mtime=0))


def prune(newest: Path, settings: RunsConfig) -> None:
    """Remove the oldest runs beyond the limits; keep `newest` and every folder that is not named by a run id."""
    others = sorted((path for path in newest.parent.iterdir() if RUN_ID.fullmatch(path.name) and path != newest), reverse=True)
    sizes = [folder_bytes(path) for path in (newest, *others)]
    for path in others[count_to_keep(sizes, settings.keep, settings.max_mib * 2**20) - 1 :]:
        shutil.rmtree(path)


def folder_bytes(folder: Path) -> int:
    """Return the total size of the files in a folder, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def count_to_keep(sizes: Sequence[int], max_runs: int, max_bytes: int) -> int:
    """Return how many runs to keep, given their sizes, newest first: at least one, and as many as both limits allow."""
    total = 0
    for number, size in enumerate(sizes):
        total += size
        if number and (number >= max_runs or total > max_bytes):
            return number
    return len(sizes)


def kept(workspace: Workspace) -> list[Path]:
    """Return the folders of the runs, newest first; folders that a user renamed or added come last."""
    folders = [path.parent for path in folder_of(workspace).glob(f"[!.]*/{FILE_NAME}")]
    return sorted(folders, key=lambda path: (bool(RUN_ID.fullmatch(path.name)), path.name), reverse=True)


def read(folder: Path, workspace: Workspace) -> Run:
    """Return the run in that folder; raise RecordError if its report cannot be read."""
    path = folder / FILE_NAME
    return Run(folder.name, read_document(path.read_bytes(), workspace.relative(path)), folder)


def find(name: str, workspace: Workspace) -> Run:
    """Return the run called `name`: latest, previous, an id or a prefix of one, a path, or a git ref (also git:REF)."""
    folders = kept(workspace)
    if name in ("latest", "previous"):
        position = int(name == "previous")
        if len(folders) <= position:
            reason = "only one run is kept" if folders else "no run is kept yet"
            raise PipelineError(f"{reason}, so there is none that is {name}", "`./inv all` keeps one")
        return read(folders[position], workspace)
    if name.startswith("git:"):
        return load_git(name.removeprefix("git:"), workspace)
    matching = [path for path in folders if name and name in (path.name, short(path.name))] or [
        path for path in folders if name and (path.name.startswith(name) or short(path.name).startswith(name))
    ]
    if len(matching) > 1:
        raise PipelineError(f"{name} may be {' or '.join(path.name for path in matching)}", "write more of the id")
    if matching:
        return read(matching[0], workspace)
    path = workspace.root / Path(name).expanduser()
    if name and path.exists():
        return load_path(path, name)
    return load_git(name, workspace)


def short(name: str) -> str:
    """Return the short id at the end of a run's name."""
    return name.rpartition("-")[2]


def load_path(path: Path, name: str) -> Run:
    """Return the run of a report.json, or of a folder with one; raise PipelineError if there is none."""
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise PipelineError(f"{name} holds no {FILE_NAME}", LIST_THEM)
    return Run(name, read_document(file.read_bytes(), name), file.parent)


def load_git(ref: str, workspace: Workspace) -> Run:
    """Return the report in a commit; raise PipelineError if there is no such commit, or no report in it."""
    commit = git(workspace, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}") if ref else None
    if commit is None:
        raise PipelineError(f"no run, path or git ref is called {ref!r}", LIST_THEM)
    text = git(workspace, "show", f"{commit.decode().strip()}:./{FILE_NAME}")
    if text is None:
        raise PipelineError(f"git ref {ref} holds no {FILE_NAME}", f"commit {FILE_NAME} beside REPORT.md to compare with it later")
    return Run(f"git:{ref}", read_document(text, f"{FILE_NAME} of git ref {ref}"), None)


def git(workspace: Workspace, *arguments: str) -> bytes | None:
    """Return git's output; None if git fails or is not installed."""
    try:
        process = subprocess.run(["git", *arguments], cwd=workspace.root, capture_output=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return None
    return process.stdout if process.returncode == 0 else None


def readable(workspace: Workspace) -> list[Run | RecordError]:
    """Return each run, newest first, or the error if it cannot be read."""
    runs: list[Run | RecordError] = []
    for folder in kept(workspace):
        try:
            runs.append(read(folder, workspace))
        except RecordError as error:
            runs.append(error)
    return runs
