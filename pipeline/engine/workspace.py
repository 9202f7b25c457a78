"""The project's folders, and how a stage shows its progress."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.terminal import Lines, OnProgress, Silent


@dataclass(frozen=True)
class Workspace:
    """The project's folders; every path that a stage uses starts here."""

    root: Path
    screen: Silent = field(default_factory=Lines, compare=False)
    bundle: Path | None = None  # the source of packages and model on a machine without a network

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
        """Return `path` as a person in the project's folder would type it."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def say(self, text: str) -> None:
        """Show one line of progress."""
        self.screen.line(text)

    def progress(self, what: str, total: int) -> OnProgress:
        """Return a callback for the number done; now and then it shows how many of `total` are done and how much time is left."""
        return self.screen.counting(what, total)
