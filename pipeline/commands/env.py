"""env: the variables that clients of the server need, for a shell or a program."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline.commands.session import Options, Session
from pipeline.engine.workspace import Workspace
from pipeline.errors import ServerError
from pipeline.server import state
from pipeline.server.keys import OTHERS, control_of, key_file, key_of
from pipeline.server.state import Handle, Launch
from pipeline.stages.serve import Server, attached_handle
from pipeline.terminal import Output

KEYLESS = "EMPTY"  # clients require a key; a server without one accepts any


@dataclass(frozen=True)
class Key:
    """A server's API key, and where a shell finds it: in a file or in a variable."""

    value: str
    file: Path | None = None
    variable: str = ""

    @property
    def lookup(self) -> str:
        """Return the shell expression for the key."""
        return f'"$(cat {shlex.quote(str(self.file))})"' if self.file else f'"${self.variable}"'


def env(root: Path, options: Options, show_key: bool) -> Output:
    """Return the variables for clients of the attached server, the running one, or the last one on record."""
    session = Session(root, options, silent=True)
    workspace, url, launch = session.workspace, session.config.attach.url, state.read(session.workspace)
    record = session.pipeline.outcome(Server).data
    server: Launch | Handle | None = launch if launch is not None and state.is_running(launch) else None
    model = server.model if isinstance(server, Launch) else ""
    if url:
        server = attached_handle(url, session.config.requests)
        is_recorded = record is not None and record.handle.base_url == url
        model = record.model if record is not None and is_recorded else first_model(server, workspace)
    elif server is None and record is not None:
        server, model = record.handle, record.model
        if not record.attached:
            print("the server is not running: start it with `./inv serve`", file=sys.stderr)
    if server is None:
        raise ServerError("there is no server yet", "start one with `./inv serve`, or name one: --set attach.url=http://host:port")
    value = key_of(server, workspace)
    variable = next((name for name in OTHERS if os.environ.get(name) == value), "")
    key = Key(value, key_file(workspace) if server.pid is not None else None, variable) if value else None
    parts = lines(server.base_url, model, key, show_key)
    return Output(0, parts, as_json(server.base_url, model, key, show_key), verbatim=True)


def first_model(server: Handle, workspace: Workspace) -> str:
    """Return the first model that the server lists; ServerError if it lists none."""
    cards = control_of(server, workspace).models()
    if not cards:
        raise ServerError(f"the server at {server.base_url} names no model", "wait until it has loaded one, or attach to another")
    return cards[0].id


def variables(base_url: str, model: str, key: str) -> dict[str, str]:
    """Return the variables by name."""
    return {"OPENAI_BASE_URL": f"{base_url}/v1", "OPENAI_API_KEY": key, "VLLM_BASE_URL": base_url, "VLLM_MODEL": model}


def lines(base_url: str, model: str, key: Key | None, show_key: bool) -> list[str]:
    """Return the lines for `eval`; without `show_key` the shell looks the key up."""
    words = {name: shlex.quote(value) for name, value in variables(base_url, model, key.value if key else KEYLESS).items()}
    if key is not None and not show_key:
        words["OPENAI_API_KEY"] = key.lookup
    return [f"export {name}={word}" for name, word in words.items()]


def as_json(base_url: str, model: str, key: Key | None, show_key: bool) -> dict[str, str | None]:
    """Return the variables as data; without `show_key` the key is null."""
    result: dict[str, str | None] = {**variables(base_url, model, key.value if key else KEYLESS)}
    return result | {"OPENAI_API_KEY": None} if key is not None and not show_key else result
