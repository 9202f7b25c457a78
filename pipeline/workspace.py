"""Where things are, and how a stage tells what it is doing."""

import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline.redact import redacted


@dataclass(frozen=True)
class Workspace:
    """The project's folders; every path that a stage touches starts here."""

    root: Path
    quiet: bool = False

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def launches(self) -> Path:
        return self.artifacts / "launches"

    @property
    def cache(self) -> Path:
        return self.root / ".cache"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def server_environment(self) -> Path:
        return self.root / "venv-vllm"

    @property
    def server_python(self) -> Path:
        return self.server_environment / "bin" / "python"

    @property
    def requirements(self) -> Path:
        return self.root / "requirements"

    def relative(self, path: Path) -> str:
        """Return `path` as a person in the project folder would type it."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def say(self, text: str) -> None:
        """Print one line of progress."""
        if not self.quiet:
            print(f"  {redacted(text)}", file=sys.stderr, flush=True)
