"""Where things are, and how a stage tells what it is doing."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.redact import redacted

FIRST_S, EACH_S = 2.0, 5.0  # when progress is told first, and then how often; a terminal shows it as it comes
TERMINAL_S = 0.2


@dataclass(frozen=True)
class Workspace:
    """The project's folders; every path that a stage touches starts here."""

    root: Path
    quiet: bool = False
    bundle: Path | None = None  # where packages and model come from, on a machine without a network

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

    def progress(self, what: str, total: int, clock: Callable[[], float] = time.monotonic) -> Callable[[int], None]:
        """Return what to call with the number done: it tells, now and then, how many of `total` and how much time is left."""
        began = clock()
        terminal = sys.stderr.isatty()
        due = began + (TERMINAL_S if terminal else FIRST_S)

        def told(done: int) -> None:
            nonlocal due
            now = clock()
            over = terminal and done >= total
            if self.quiet or not done or (now < due and not over):
                return
            due = now + (TERMINAL_S if terminal else EACH_S)
            line = f"  {redacted(what)}: {done} of {total}, {(now - began) / done * (total - done):.0f} s left"
            # A terminal's line is written over by the next one, and emptied at the end.
            ending = "\r" if terminal else "\n"
            print(("\x1b[K" if over else f"{line}\x1b[K") if terminal else line, end=ending, file=sys.stderr, flush=True)

        return told
