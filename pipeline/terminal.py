"""What commands show: progress and tables on a terminal for a person, JSON for a program."""

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from pipeline.redact import redacted

FIRST_S, EACH_S = 2.0, 5.0  # until progress is first shown, and between later lines, where lines stay
MOVE_S = 0.2
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
MARKS = {"made": "✓", "unchanged": "·", "left out": "▫", "failed": "✗", "blocked": "✗"}
TROUBLE = ("left out", "failed", "blocked")
REASON_CHARACTERS = 160
SHOWN_S = 0.05  # shorter durations are not shown
STYLES = {
    **dict.fromkeys(("PASS", "OK", "better", "made"), "green"),
    **dict.fromkeys(("FAIL", "NOT", "worse", "failed", "blocked"), "bold red"),
    **dict.fromkeys(("INCONCLUSIVE", "NOT_MEASURED", "INVALID", "SIMULATED", "TRIAL", "WARN", "caution"), "yellow"),
    **dict.fromkeys(("unchanged", "same"), "dim"),
}
OnProgress = Callable[[int], None]


@dataclass(frozen=True)
class TextTable:
    """Cells below a header; a terminal folds what is too wide for it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


OutputPart = str | TextTable


@dataclass(frozen=True)
class Output:
    """The result of a command: its exit code, the parts that a person sees, and the data for a program.

    `verbatim` output is for a shell or a file: it is not folded, and secrets stay in it.
    """

    code: int
    parts: Sequence[OutputPart]
    data: object
    verbatim: bool = False


FAILED = Output(2, [], {"exit_code": 2})  # the failed stage has already reported


class Silent:
    """Shows no progress."""

    @contextmanager
    def running(self, name: str, reason: str) -> Iterator[None]:  # noqa: ARG002  # for subclasses
        """Show that something runs in this thread, and why, until it ends."""
        yield

    def ended(self, name: str, state: str, took_s: float, reason: str) -> None:
        """Show how a stage ended."""

    def line(self, text: str) -> None:
        """Show one line of progress."""

    def counting(self, what: str, total: int) -> OnProgress:  # noqa: ARG002
        """Return a callback for the number done; it shows how many of `total` are done and how much time is left."""
        return lambda _done: None


class Quiet(Silent):
    """Shows what went wrong, and nothing else."""

    def ended(self, name: str, state: str, took_s: float, reason: str) -> None:
        if state in TROUBLE:
            write(sys.stderr, f"{MARKS[state]} {name} {state}{duration(took_s)}: {reason}")


@dataclass
class Count:
    """How far a count is."""

    what: str
    total: int
    began: float
    done: int = 0

    def words(self, now: float) -> str:
        """Return how many are done, and how much time is left."""
        left_s = (now - self.began) / self.done * (self.total - self.done) if self.done else None
        return f"{self.what}: {self.done} of {self.total}" + ("" if left_s is None else f", {left_s:.0f} s left")


@dataclass(eq=False)
class Activity:
    """Something that runs: why, since when, and how far it is."""

    name: str
    reason: str
    began: float
    count: Count | None = None

    def words(self, now: float) -> str:
        """Return how far it is if that is counted, else why it runs."""
        return self.count.words(now) if self.count else self.reason


class Activities:
    """The activities that run now, each in its own thread."""

    def __init__(self) -> None:
        self._all: list[Activity] = []
        self._thread = threading.local()

    def __iter__(self) -> Iterator[Activity]:
        return iter(tuple(self._all))

    @property
    def own(self) -> Activity | None:
        """Return the activity of this thread."""
        return getattr(self._thread, "activity", None)

    @contextmanager
    def with_own(self, activity: Activity) -> Iterator[None]:
        """Register `activity` as that of this thread."""
        self._all.append(activity)
        self._thread.activity = activity
        try:
            yield
        finally:
            self._thread.activity = None
            self._all.remove(activity)

    def labelled(self, text: str) -> str:
        """Return a line of progress, with the activity's name if several run."""
        return f"{self.own.name}: {text}" if self.own is not None and len(self._all) > 1 else text


class Lines(Silent):
    """Shows progress as lines that stay, for files and for terminals that cannot move the cursor."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._activities = Activities()

    @contextmanager
    def running(self, name: str, reason: str) -> Iterator[None]:
        write(sys.stderr, f"▶ {name}{f': {clip(reason)}' if reason else ''}")
        with self._activities.with_own(Activity(name, reason, self._clock())):
            yield

    def ended(self, name: str, state: str, took_s: float, reason: str) -> None:
        write(sys.stderr, f"{MARKS[state]} {name} {state}{duration(took_s)}{f': {reason}' if state in TROUBLE else ''}")

    def line(self, text: str) -> None:
        write(sys.stderr, f"  {self._activities.labelled(text)}")

    def counting(self, what: str, total: int) -> OnProgress:
        count = Count(what, total, self._clock())
        due = count.began + FIRST_S

        def on_progress(done: int) -> None:
            nonlocal due
            now = self._clock()
            if done and now >= due:
                due = now + EACH_S
                count.done = done
                self.line(count.words(now))

        return on_progress


class Moving(Silent):
    """Shows a moving line for each activity, and a permanent line for each that has ended.

    A separate thread draws the lines from stored values only, so that neither drawing nor a terminal that has stopped reading delays a
    measurement. A library's live display takes many times as long for each picture (benchmarks/moving_line.py).
    """

    def __init__(self) -> None:
        from rich.console import Console  # slow to import, needed only on a terminal

        self._console = Console(stderr=True, highlight=False)
        self._lock = threading.Lock()
        self._activities = Activities()
        self._height = 0  # number of lines on the terminal that will be redrawn

    @contextmanager
    def running(self, name: str, reason: str) -> Iterator[None]:
        activity, finished = Activity(name, clip(reason), time.monotonic()), threading.Event()
        drawing = threading.Thread(target=self._draw, args=(activity, finished), daemon=True)
        with self._activities.with_own(activity):
            drawing.start()
            try:
                yield
            finally:
                finished.set()
                drawing.join()

    def _draw(self, activity: Activity, finished: threading.Event) -> None:
        """Draw all activities until `finished` is set, whenever `activity` is the oldest of them."""
        turn = 0
        while not finished.wait(MOVE_S):
            turn += 1
            activities = list(self._activities)
            if activities[0] is activity:
                now, columns = time.monotonic(), shutil.get_terminal_size().columns
                pictures = [picture(one.name, one.words(now), now - one.began, turn, columns) for one in activities]
                with self._lock:
                    sys.stderr.write(up(self._height) + "\n".join(pictures))
                    sys.stderr.flush()
                    self._height = len(pictures)
        with self._lock:
            self._erase()

    def _erase(self) -> None:
        if self._height:
            sys.stderr.write(f"{up(self._height)}\r\x1b[J" if self._height > 1 else "\r\x1b[K")
            sys.stderr.flush()
            self._height = 0

    def ended(self, name: str, state: str, took_s: float, reason: str) -> None:
        took = duration(took_s).strip()
        with self._lock:
            self._print(f"{MARKS[state]} {name:<17} {state:<9} {took:>8}  {reason}".rstrip(), state, folded=state in TROUBLE)

    def line(self, text: str) -> None:
        with self._lock:
            self._print(f"  {self._activities.labelled(text)}", "unchanged", folded=True)

    def _print(self, text: str, state: str, folded: bool) -> None:
        from rich.text import Text

        self._erase()
        styled = Text(redacted(text), style=STYLES.get(state, ""))
        if folded:
            self._console.print(styled)
        else:
            self._console.print(styled, no_wrap=True, overflow="ellipsis")

    def counting(self, what: str, total: int) -> OnProgress:
        count = Count(what, total, time.monotonic())
        if self._activities.own is not None:
            self._activities.own.count = count

        def on_progress(done: int) -> None:
            count.done = done

        return on_progress


def up(lines: int) -> str:
    """Return the escape sequence that moves the cursor from the last to the first of that many lines."""
    return f"\x1b[{lines - 1}A" if lines > 1 else ""


def picture(name: str, what: str, running_s: float, turn: int, columns: int) -> str:
    """Return the text that draws the moving line over its predecessor."""
    words = redacted(f"{SPINNER[turn % len(SPINNER)]} {name} {clock_words(running_s)}  {what}")
    return f"\r{words[: columns - 1]}\x1b[K"


def screen(quiet: bool) -> Silent:
    """Return the display of progress for standard error."""
    return Quiet() if quiet else Moving() if moves(sys.stderr) else Lines()


def moves(stream: TextIO) -> bool:
    """Tell whether the stream is a terminal that can move the cursor."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def give(output: Output, as_json: bool) -> None:
    """Print a command's output."""
    if as_json:
        text = json.dumps(output.data, indent=1, ensure_ascii=False, default=str)
        print(text if output.verbatim else redacted(text), flush=True)
    elif output.verbatim:
        print("\n".join(plain(output.parts)), flush=True)
    else:
        show(output.parts)


def show(parts: Sequence[OutputPart]) -> None:
    """Print a result; on a terminal with colours, unless NO_COLOR is set, and with tables folded to its width."""
    if moves(sys.stdout):
        show_rich(parts)
    elif parts:
        write(sys.stdout, "\n".join(plain(parts)))


def plain(parts: Iterable[OutputPart]) -> list[str]:
    """Return a result as lines."""
    return [line for part in parts for line in (part.splitlines() if isinstance(part, str) else aligned(part))]


def aligned(table: TextTable) -> list[str]:
    """Return the table as lines with their columns aligned."""
    rows = [row for row in (table.header, *table.rows) if row]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def show_rich(parts: Sequence[OutputPart]) -> None:
    """Print a result with rich."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False)
    for part in parts:
        if isinstance(part, str):
            console.print(Text(redacted(part), style=style_of(part)))
            continue
        drawn = RichTable(box=box.SIMPLE_HEAD, show_header=bool(part.header), pad_edge=False, show_edge=False)
        for name in part.header or part.rows[0]:
            drawn.add_column(Text(name), overflow="fold")
        for row in part.rows:
            drawn.add_row(*(Text(redacted(cell), style=style_of(cell)) for cell in row))
        console.print(drawn)


def style_of(text: str) -> str:
    """Return the style of a text, chosen by its first word."""
    return STYLES.get(text.partition(" ")[0].rstrip(":,"), "")


def write(stream: TextIO, text: str) -> None:
    """Print a line immediately, without secrets."""
    print(redacted(text), file=stream, flush=True)


def clip(reason: str) -> str:
    """Return the reason, cut if it is long."""
    return reason if len(reason) <= REASON_CHARACTERS else f"{reason[:REASON_CHARACTERS]}… (`./inv why` says all)"


def duration(took_s: float) -> str:
    """Return the duration as text, empty if it is too short to show."""
    return f"  {took_s:.1f} s" if took_s >= SHOWN_S else ""


def clock_words(seconds: float) -> str:
    """Return an elapsed time as in 1:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
