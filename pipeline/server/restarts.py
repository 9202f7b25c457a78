"""Restarts of a crashed server: the policy, and the record of the crashes."""

from datetime import datetime, timedelta
from pathlib import Path

from pipeline.config.schema import WatchConfig
from pipeline.engine.workspace import Workspace
from pipeline.values import Frozen

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


class Crash(Frozen):
    """A crash of the server: when, of which launch, why, and whether a restart followed."""

    at: datetime
    launch_id: str
    cause: str
    restart: bool


def recent(crash: datetime, now: datetime, settings: WatchConfig) -> bool:
    """Tell whether the crash is recent enough to count."""
    return now - crash <= timedelta(seconds=settings.window_s)


def pause_s(crashes: int) -> float:
    """Return the pause before the restart that follows the given number of recent crashes: 1 s, doubled each time, at most 60 s."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(crashes - 1, 16))


def crashes_file(workspace: Workspace) -> Path:
    """Return the path of the record of crashes, one line each."""
    return workspace.artifacts / "crashes.jsonl"


def note(workspace: Workspace, crash: Crash) -> None:
    """Append the crash to the record."""
    with crashes_file(workspace).open("a", encoding="utf-8") as file:
        file.write(crash.model_dump_json() + "\n")


def read_crashes(workspace: Workspace) -> list[Crash]:
    """Return the crashes on record, oldest first."""
    path = crashes_file(workspace)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Crash.model_validate_json(line) for line in lines]
