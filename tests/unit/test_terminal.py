"""What a person sees of progress and results, and what a program gets."""

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import terminal
from pipeline.engine.workspace import Workspace
from pipeline.terminal import Lines, Moving, Output, Quiet, Silent, TextTable, aligned, give, moves, plain, screen, show, style_of

SECRET = "hf_abcdefghijkl"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_comes_after_two_seconds_and_then_every_five(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    told = Workspace(tmp_path, Lines(clock)).progress("bench", 10)
    for done in range(1, 11):
        clock.now = float(done)
        told(done)
    assert capsys.readouterr().err == "  bench: 2 of 10, 8 s left\n  bench: 7 of 10, 3 s left\n"


def test_nothing_done_yet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    told = Lines(clock).counting("bench", 2)
    clock.now = 60
    told(0)
    assert capsys.readouterr().err == ""


def walked_through(shown: Silent) -> None:
    """Show a bit of everything."""
    shown.line("a line")
    with shown.running("serve", "never ran"):
        shown.counting("requests", 2)(1)
    shown.ended("install", "unchanged", 0.0, "")
    shown.ended("serve", "made", 12.34, "never ran")
    shown.ended("test-router", "failed", 1.0, f"it died of {SECRET}")
    shown.ended("bench", "blocked", 0.0, "needs test-router, which failed")


def test_lines_that_stay_hold_state_reason_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    walked_through(Lines())
    assert capsys.readouterr().err.splitlines() == [
        "  a line",
        "▶ serve: never ran",
        "· install unchanged",
        "✓ serve made  12.3 s",
        "✗ test-router failed  1.0 s: it died of [redacted]",
        "✗ bench blocked: needs test-router, which failed",
    ]


def test_quiet_shows_what_went_wrong_and_silent_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    walked_through(Quiet())
    assert capsys.readouterr().err.splitlines() == [
        "✗ test-router failed  1.0 s: it died of [redacted]",
        "✗ bench blocked: needs test-router, which failed",
    ]
    walked_through(Silent())
    assert capsys.readouterr() == ("", "")


def test_a_long_reason_is_cut_where_something_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines().running("bench", "x" * 1000):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"▶ bench: {'x' * 160}… (`./inv why` says all)"


def drawn(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, inside: Callable[[Moving], object]) -> list[str]:
    """Return what the moving line was written over with, while `inside` ran and until three more were drawn."""
    enough, writes, genuine = threading.Event(), [], sys.stderr.write

    def write(text: str) -> int:
        writes.append(text)
        if len(writes) >= 3:
            enough.set()
        return genuine(text)

    monkeypatch.setattr(terminal, "MOVE_S", 0.001)
    monkeypatch.setenv("COLUMNS", "40")
    shown = Moving()
    with shown.running("bench", f"because of {SECRET}"):
        inside(shown)
        monkeypatch.setattr(sys.stderr, "write", write)
        assert enough.wait(60)
    capsys.readouterr()
    return writes


def test_the_moving_line_tells_stage_time_and_reason_and_is_gone_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    *lines, last = drawn(capsys, monkeypatch, lambda _: None)
    assert last == "\r\x1b[K"
    for line in lines:
        assert line.startswith("\r")
        assert line.endswith("\x1b[K")
        assert line[3:-3] == "bench 0:00  because of [redacted]"
    assert len({line[1] for line in lines}) > 1, "it turns"


def test_the_moving_line_counts_and_stays_within_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    *lines, _ = drawn(capsys, monkeypatch, lambda shown: shown.counting("x" * 80, 9)(3))
    assert all(len(line.removeprefix("\r").removesuffix("\x1b[K")) == 39 for line in lines)
    *lines, _ = drawn(capsys, monkeypatch, lambda shown: shown.counting("sent", 9)(3))
    assert all("  sent: 3 of 9, " in line for line in lines)


@contextmanager
def beside(shown: Silent, name: str) -> Iterator[Callable[[Callable[[], object]], None]]:
    """Have something run in another thread; yields what makes that thread do something there."""
    entered, done = threading.Event(), threading.Event()
    orders: SimpleQueue[Callable[[], object] | None] = SimpleQueue()

    def work() -> None:
        with shown.running(name, "never ran"):
            entered.set()
            while (order := orders.get()) is not None:
                order()
                done.set()

    def there(order: Callable[[], object]) -> None:
        done.clear()
        orders.put(order)
        assert done.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert entered.wait(60)
        yield there
    finally:
        orders.put(None)
        thread.join()


def test_lines_of_two_that_run_side_by_side_name_who_says_them(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Lines(Clock())
    with shown.running("install", "never ran"):
        shown.line("alone")
        with beside(shown, "download-model") as there:
            shown.line("making venv-vllm")
            there(lambda: shown.line("1 GiB to go"))
        shown.line("alone again")
    assert capsys.readouterr().err.splitlines() == [
        "▶ install: never ran",
        "  alone",
        "▶ download-model: never ran",
        "  install: making venv-vllm",
        "  download-model: 1 GiB to go",
        "  alone again",
    ]


def test_two_that_run_side_by_side_move_on_two_lines_and_count_each_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "MOVE_S", 0.001)
    monkeypatch.setenv("COLUMNS", "80")
    stream = pyte.Screen(80, 10)
    emulator, first, below, lock = pyte.Stream(stream), threading.Event(), threading.Event(), threading.Lock()
    moving = [r". install \d+:\d\d  packages: 1 of 4, \d+ s left", r". download-model \d+:\d\d  files: 1 of 2, \d+ s left"]

    def shows(*patterns: str) -> bool:
        lines = [line.rstrip() for line in stream.display if line.strip()]
        return len(lines) == len(patterns) and all(map(re.fullmatch, patterns, lines))

    def write(text: str) -> int:
        with lock:
            emulator.feed(text.replace("\n", "\r\n"))
            if shows(*moving):
                first.set()
            if shows("✓ check-gpu .*", *moving):
                below.set()
        return len(text)

    monkeypatch.setattr(sys.stderr, "write", write)
    shown = Moving()
    with shown.running("install", "never ran"):
        shown.counting("packages", 4)(1)
        with beside(shown, "download-model") as there:
            there(lambda: shown.counting("files", 2)(1))
            assert first.wait(60)
            shown.ended("check-gpu", "made", 1.0, "")
            assert below.wait(60), "what stays is above what moves"
    assert shows("✓ check-gpu .*"), "what moved is gone at the end"


def test_counting_only_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that has stopped reading must not hold up whoever measures."""
    told = Moving().counting("sent", 9)
    monkeypatch.setattr(sys, "stderr", None)
    told(3)


@pytest.mark.parametrize(("tty", "term", "expected"), [(True, "xterm", Moving), (True, "dumb", Lines), (False, "xterm", Lines)])
def test_only_a_terminal_that_can_move_gets_what_moves(
    tty: bool, term: str, expected: type[Silent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: tty, raising=False)
    monkeypatch.setenv("TERM", term)
    assert type(screen(quiet=False)) is expected
    assert type(screen(quiet=True)) is Quiet
    monkeypatch.delenv("TERM")
    assert not moves(sys.stderr)


# Results.


cells = st.text(st.characters(codec="ascii", exclude_characters=" \n\r", exclude_categories=["Cc"]), min_size=1, max_size=9)


@given(st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=5))
def test_columns_are_aligned_and_nothing_is_lost(rows: list[tuple[str, str, str]]) -> None:
    header = ("a", "b", "c")
    lines = aligned(TextTable(header, rows))
    assert [tuple(line.split()) for line in lines] == [header, *rows]
    for column in range(1, 3):
        width = sum(max(len(row[at]) for row in [header, *rows]) + 2 for at in range(column))
        assert all(line[width - 2 : width] == "  " and line[width] != " " for line in lines)


def test_a_table_without_a_header_or_without_rows() -> None:
    assert aligned(TextTable((), [("a", "b"), ("cc", "d")])) == ["a   b", "cc  d"]
    assert aligned(TextTable(("a", "b"), [])) == ["a  b"]
    assert plain(["one\ntwo", TextTable((), [("a", "b")])]) == ["one", "two", "a  b"]


def test_a_result_holds_no_secret_unless_it_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Output(0, [f"key {SECRET}", TextTable(("key",), [(SECRET,)])], {"key": SECRET})
    for as_json in (False, True):
        give(answer, as_json)
        assert SECRET not in capsys.readouterr().out
        give(Output(0, answer.parts, answer.data, verbatim=True), as_json)
        assert SECRET in capsys.readouterr().out


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    give(Output(1, ["for people"], {"exit_code": 1, "profile": "ş"}), as_json=True)
    said = capsys.readouterr().out
    assert json.loads(said) == {"exit_code": 1, "profile": "ş"}
    assert "ş" in said


def test_nothing_to_show_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    show([])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ("PASS", "green"),
        ("PASS: all 9 required gates pass.", "green"),
        ("NOT PASSED: 1 of 2", "bold red"),
        ("NOT_MEASURED: no GPU", "yellow"),
        ("FAIL (waived until 2999)", "bold red"),
        ("PASSING through", ""),
        ("", ""),
    ],
)
def test_a_verdict_is_known_by_its_first_word(text: str, style: str) -> None:
    assert style_of(text) == style
