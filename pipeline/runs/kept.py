"""The runs that are kept: each `all` in a folder of its own under artifacts/runs, the oldest removed when they are too many."""

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
from pipeline.experiments.noise import NOTE, noise_in
from pipeline.redact import redacted
from pipeline.report.formats.document import FILE_NAME, Document, read_document
from pipeline.server import state

RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}")
UNFINISHED = ".unfinished"  # how the folder of a run begins that is not whole yet
LIST_THEM = "`./inv history` lists the runs"


@dataclass(frozen=True)
class Run:
    """A report to look at: what to call it, the document, and the folder that it stands in with its records, if it does."""

    name: str
    document: Document
    folder: Path | None


def folder_of(workspace: Workspace) -> Path:
    """Return the folder of all runs."""
    return workspace.artifacts / "runs"


def keep(document_path: Path, report_path: Path, settings: RunsConfig, workspace: Workspace) -> Path | None:
    """Copy what the last run left into a folder of its own, whole or not at all, and prune; None where it is kept already.

    Inside are the report, `records/` with the stages' files and the noise between starts where it fits, `raw/` with the stamps, and
    `logs/` with logs and memory samples.
    """
    document = read_document(document_path.read_bytes(), workspace.relative(document_path))
    parent = folder_of(workspace)
    target = parent / str(document.run_id)
    if document.run_id is None or target.exists():
        return None
    for rest in parent.glob(f"{UNFINISHED}*"):  # of a command that was killed; we hold the lock
        shutil.rmtree(rest)
    unfinished = parent / f"{UNFINISHED}-{target.name}"
    try:
        for path in (document_path, report_path, report_path.with_name("report.html")):
            copy(path, unfinished / (FILE_NAME if path == document_path else path.name))
        noise = noise_in(workspace.artifacts)
        fitting = [NOTE] if noise is not None and noise.fits(document.environment) else []
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
    """Return the launches of which something is left."""
    return [path.name for path in workspace.launches.glob("*")]


def copy(source: Path, target: Path) -> None:
    """Copy a file, if it is there."""
    if source.is_file():
        write_atomic(target, source.read_bytes())


def compress(source: Path, target: Path) -> None:
    """Copy a file of text compressed, without secrets, if it is there."""
    if source.is_file():
        write_atomic(target, gzip.compress(redacted(source.read_text(encoding="utf-8", errors="replace")).encode(), mtime=0))


def prune(newest: Path, settings: RunsConfig) -> None:
    """Remove the oldest runs over the limits; never `newest`, and nothing whose name is not one that we gave."""
    others = sorted((path for path in newest.parent.iterdir() if RUN_ID.fullmatch(path.name) and path != newest), reverse=True)
    sizes = [bytes_of(path) for path in (newest, *others)]
    for path in others[kept_count(sizes, settings.keep, settings.max_mib * 2**20) - 1 :]:
        shutil.rmtree(path)


def bytes_of(folder: Path) -> int:
    """Return the bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def kept_count(sizes: Sequence[int], most: int, most_bytes: int) -> int:
    """Return how many runs stay, of their sizes from the newest on: at least the first, and no more than both limits allow."""
    total = 0
    for number, size in enumerate(sizes):
        total += size
        if number and (number >= most or total > most_bytes):
            return number
    return len(sizes)


def kept(workspace: Workspace) -> list[Path]:
    """Return the folders of the runs, newest first, those that a user renamed or put there last."""
    found = [path.parent for path in folder_of(workspace).glob(f"[!.]*/{FILE_NAME}")]
    return sorted(found, key=lambda path: (bool(RUN_ID.fullmatch(path.name)), path.name), reverse=True)


def read(folder: Path, workspace: Workspace) -> Run:
    """Return the run in that folder; RecordError where its report cannot be read."""
    path = folder / FILE_NAME
    return Run(folder.name, read_document(path.read_bytes(), workspace.relative(path)), folder)


def find(words: str, workspace: Workspace) -> Run:
    """Return the run that `words` name: latest, previous, an id or the beginning of one, a path, or a git ref (also git:REF)."""
    folders = kept(workspace)
    if words in ("latest", "previous"):
        position = int(words == "previous")
        if len(folders) <= position:
            kept_now = "only one run is kept" if folders else "no run is kept yet"
            raise PipelineError(f"{kept_now}, so there is none that is {words}", "`./inv all` keeps one")
        return read(folders[position], workspace)
    if words.startswith("git:"):
        return of_git(words.removeprefix("git:"), workspace)
    matching = [path for path in folders if words and words in (path.name, short(path.name))] or [
        path for path in folders if words and (path.name.startswith(words) or short(path.name).startswith(words))
    ]
    if len(matching) > 1:
        raise PipelineError(f"{words} may be {' or '.join(path.name for path in matching)}", "write more of the id")
    if matching:
        return read(matching[0], workspace)
    path = workspace.root / Path(words).expanduser()
    if words and path.exists():
        return of_path(path, words)
    return of_git(words, workspace)


def short(name: str) -> str:
    """Return the short id at the end of a run's name."""
    return name.rpartition("-")[2]


def of_path(path: Path, words: str) -> Run:
    """Return the run of a report.json or of the folder that it stands in; PipelineError where there is none."""
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise PipelineError(f"{words} holds no {FILE_NAME}", LIST_THEM)
    return Run(words, read_document(file.read_bytes(), words), file.parent)


def of_git(ref: str, workspace: Workspace) -> Run:
    """Return the report that a commit holds; PipelineError where git knows no such commit, or it has none."""
    commit = git(workspace, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}") if ref else None
    if commit is None:
        raise PipelineError(f"no run, path or git ref is called {ref!r}", LIST_THEM)
    text = git(workspace, "show", f"{commit.decode().strip()}:./{FILE_NAME}")
    if text is None:
        raise PipelineError(f"git ref {ref} holds no {FILE_NAME}", f"commit {FILE_NAME} beside REPORT.md to compare with it later")
    return Run(f"git:{ref}", read_document(text, f"{FILE_NAME} of git ref {ref}"), None)


def git(workspace: Workspace, *words: str) -> bytes | None:
    """Return what git prints; None where it fails or is not there."""
    try:
        done = subprocess.run(["git", *words], cwd=workspace.root, capture_output=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def readable(workspace: Workspace) -> list[Run | RecordError]:
    """Return each run, newest first, or why it cannot be read."""
    result: list[Run | RecordError] = []
    for folder in kept(workspace):
        try:
            result.append(read(folder, workspace))
        except RecordError as error:
            result.append(error)
    return result
