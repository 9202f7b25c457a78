"""The variables that clients of the server need, as a shell or a program reads them. Pure."""

import shlex
from dataclasses import dataclass
from pathlib import Path

KEYLESS = "EMPTY"  # clients insist on a key; a server that wants none takes any


@dataclass(frozen=True)
class Key:
    """A server's API key, and where a shell finds it: in a file, or in a variable."""

    value: str
    file: Path | None = None
    variable: str = ""

    @property
    def found(self) -> str:
        """Return what a shell replaces with the key."""
        return f'"$(cat {shlex.quote(str(self.file))})"' if self.file else f'"${self.variable}"'


def variables(base_url: str, model: str, key: str) -> dict[str, str]:
    """Return the variables by name."""
    return {"OPENAI_BASE_URL": f"{base_url}/v1", "OPENAI_API_KEY": key, "VLLM_BASE_URL": base_url, "VLLM_MODEL": model}


def lines(base_url: str, model: str, key: Key | None, show_key: bool) -> list[str]:
    """Return the lines for `eval`: a key that is not to be shown is looked up by the shell."""
    hidden = key is not None and not show_key
    words = {name: shlex.quote(value) for name, value in variables(base_url, model, key.value if key else KEYLESS).items()}
    if key is not None and hidden:
        words["OPENAI_API_KEY"] = key.found
    return [f"export {name}={word}" for name, word in words.items()]


def as_json(base_url: str, model: str, key: Key | None, show_key: bool) -> dict[str, str | None]:
    """Return the variables as data: a key that is not to be shown is null."""
    found: dict[str, str | None] = {**variables(base_url, model, key.value if key else KEYLESS)}
    return found | {"OPENAI_API_KEY": None} if key is not None and not show_key else found
