"""The API key of an open server: generated here and kept in a file that only its owner can read."""

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pipeline.client.control import Control
from pipeline.engine.workspace import Workspace
from pipeline.errors import ServerError
from pipeline.redact import KEY_PREFIX
from pipeline.server.state import Handle, Launch
from pipeline.vllm.environment import API_KEY

OTHERS = (API_KEY, "OPENAI_API_KEY")  # variables that may hold the key of an attached server


def key_file(workspace: Workspace) -> Path:
    """Return the file that holds our server's key."""
    return workspace.root / ".api-key"


def make_or_read_key(workspace: Workspace) -> str:
    """Return the key in the file, which is created when missing; ServerError when others can read it."""
    path = key_file(workspace)
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(KEY_PREFIX + secrets.token_urlsafe(32) + "\n")
    return read_key(path)


def read_key(path: Path) -> str:
    """Return the key in the file; ServerError when it is missing, empty, or others can read it."""
    try:
        mode, key = path.stat().st_mode, path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise ServerError(f"{path.name} is gone, and with it the key of the running server", "stop it and start it anew") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(f"{path.name} cannot be read: {error}", "remove it for a new key") from error
    if mode & 0o077:
        raise ServerError(f"{path.name} can be read by other users", f"chmod 600 {path.name}, or remove it for a new key")
    if not key:
        raise ServerError(f"{path.name} is empty", "remove it for a new key, or write one into it")
    return key


def key_of(server: Launch | Handle, workspace: Workspace, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the key for requests to that server, None where it needs none; an attached server's key is in the environment."""
    if server.pid is None:
        return next((environment[name] for name in OTHERS if environment.get(name)), None)
    return read_key(key_file(workspace)) if server.keyed else None


def control_of(server: Launch | Handle, workspace: Workspace) -> Control:
    """Return the control client of that server."""
    return Control(server.base_url, key_of(server, workspace), server.request_fields)
