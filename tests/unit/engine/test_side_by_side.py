"""Stages that do not need each other run side by side, where they are not exclusive; held by events, not by clocks."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.engine import stage_run
from pipeline.engine.pipeline import Pipeline
from pipeline.engine.record import Artifact
from pipeline.engine.stage import Result, Stage
from pipeline.engine.workspace import Workspace
from pipeline.errors import InstallError
from pipeline.terminal import Silent

PATIENCE_S = 60.0


class Base(Artifact):
    """What both sides need."""


class Left(Artifact):
    pass


class Right(Artifact):
    pass


class Alone(Artifact):
    pass


class Both(Artifact):
    pass


class House:
    """base → left and right, which may run side by side; base → alone, which may not; both needs left and right."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.left: Callable[[], None] = lambda: None
        self.right: Callable[[], None] = lambda: None
        self.threads: dict[str, threading.Thread] = {}
        self.running: set[str] = set()
        self.beside: dict[str, set[str]] = {}
        self.reported: list[Result] = []

    def pipeline(self, exclusive: bool = False) -> Pipeline:
        def base() -> Base:
            return Base()

        def left(base: Base) -> Left:
            with self.entered("left"):
                self.left()
            return Left()

        def alone(base: Base) -> Alone:
            with self.entered("alone"):
                return Alone()

        def right(base: Base) -> Right:
            with self.entered("right"):
                self.right()
            return Right()

        def both(left: Left, right: Right, alone: Alone) -> Both:
            return Both()

        stages = [Stage(base), Stage(left, exclusive=exclusive), Stage(alone), Stage(right, exclusive=exclusive), Stage(both)]
        return Pipeline(stages, Workspace(self.root, Silent()), lambda kind: kind(), report=self.reported.append)

    @contextmanager
    def entered(self, name: str) -> Iterator[None]:
        self.threads[name] = threading.current_thread()
        self.running.add(name)
        try:
            yield
        finally:
            self.beside[name] = self.running - {name}
            self.running.discard(name)

    def states(self, *names: str, force: tuple[str, ...] = ()) -> dict[str, str]:
        return {result.stage: result.state for result in self.pipeline().ensure(names or ("both",), force=force)}

    def recorded(self) -> set[str]:
        return {path.stem for path in (self.root / "artifacts").glob("[a-z]*.json")}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def meet(first: threading.Event, second: threading.Event) -> Callable[[], None]:
    """Return what says that it is there and waits for the other."""

    def wait() -> None:
        first.set()
        assert second.wait(PATIENCE_S), "the other did not start"

    return wait


def test_both_run_at_the_same_time_and_an_exclusive_one_beside_none(house: House) -> None:
    here, there = threading.Event(), threading.Event()
    house.left, house.right = meet(here, there), meet(there, here)
    assert house.states() == dict.fromkeys(("base", "left", "alone", "right", "both"), "made")
    assert house.threads["alone"] is threading.main_thread()
    assert house.beside["alone"] == set()
    assert threading.main_thread() not in (house.threads["left"], house.threads["right"])


def test_results_stand_in_the_order_of_the_stages_and_are_reported_as_they_come(house: House) -> None:
    ended = threading.Event()
    report = house.reported.append

    def waiting() -> None:
        assert ended.wait(PATIENCE_S)

    def reported(result: Result) -> None:
        report(result)
        if result.stage == "right":
            assert (house.root / "artifacts" / "right.json").is_file(), "recorded already"
            ended.set()

    house.left = waiting
    pipeline = house.pipeline()
    pipeline._report = reported
    results = pipeline.ensure(["both"])
    assert [result.stage for result in results] == ["base", "left", "alone", "right", "both"]
    assert [result.stage for result in house.reported] == ["base", "right", "left", "alone", "both"]


def test_exclusive_stages_run_one_after_the_other_in_the_main_thread(house: House) -> None:
    house.pipeline(exclusive=True).ensure(["both"])
    assert set(house.threads.values()) == {threading.main_thread()}
    assert house.beside == {"left": set(), "alone": set(), "right": set()}


def test_one_that_has_nothing_to_run_beside_runs_in_the_main_thread(house: House) -> None:
    house.states()
    assert house.states("both", force=("left",))["left"] == "made"
    assert house.threads["left"] is threading.main_thread()


def test_where_one_fails_the_other_finishes_and_what_needs_both_is_blocked(house: House) -> None:
    failed = threading.Event()
    report = house.reported.append

    def fail() -> None:
        raise InstallError("the disk is full", "free some")

    def finish() -> None:
        assert failed.wait(PATIENCE_S)

    def reported(result: Result) -> None:
        report(result)
        if result.state == "failed":
            failed.set()

    house.left, house.right = fail, finish
    pipeline = house.pipeline()
    pipeline._report = reported
    states = {result.stage: result.state for result in pipeline.ensure(["both"])}
    assert states == {"base": "made", "left": "failed", "alone": "made", "right": "made", "both": "blocked"}
    record = pipeline.store.read("left")
    assert record is not None
    assert record.failure is not None
    assert (record.failure.message, record.failure.hint) == ("the disk is full", "free some")
    assert house.pipeline().why(pipeline.stage("left")) == "failed last time: the disk is full"
    assert house.pipeline().why(pipeline.stage("right")) == ""


def test_both_may_fail(house: House) -> None:
    def fail() -> None:
        raise InstallError("no")

    house.left = house.right = fail
    states = house.states()
    assert (states["left"], states["right"], states["both"]) == ("failed", "failed", "blocked")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Have Ctrl-C raise KeyboardInterrupt here, whatever the runner of the tests made of it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_both_and_leaves_no_record_of_either(house: House) -> None:
    here, there, endings = threading.Event(), threading.Event(), []

    def busy(name: str, meeting: Callable[[], None], interrupts: bool) -> None:
        try:
            meeting()
            if interrupts:
                os.kill(os.getpid(), signal.SIGINT)
            while True:
                time.sleep(0.001)
        finally:
            endings.append(name)

    house.left = lambda: busy("left", meet(here, there), False)
    house.right = lambda: busy("right", meet(there, here), True)
    with pytest.raises(KeyboardInterrupt):
        house.pipeline().ensure(["both"])
    for name in ("left", "right"):
        house.threads[name].join(PATIENCE_S)
        assert not house.threads[name].is_alive()
    assert sorted(endings) == ["left", "right"]
    assert house.recorded() == {"base"}
    assert house.pipeline().why(house.pipeline().stage("left")) == "never ran"


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_keeps_the_record_of_one_that_was_done_and_does_not_wait_for_one_that_cannot_be_ended(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_run, "ENDING_S", 0.0)
    release = threading.Event()

    def waiting() -> None:  # outside of Python, as a library may
        release.wait(PATIENCE_S)

    house.right = waiting
    pipeline = house.pipeline()

    def reported(result: Result) -> None:
        if result.stage == "left":
            os.kill(os.getpid(), signal.SIGINT)

    pipeline._report = reported
    with pytest.raises(KeyboardInterrupt):
        pipeline.ensure(["both"])
    assert house.recorded() == {"base", "left"}
    release.set()
    house.threads["right"].join(PATIENCE_S)
    assert house.recorded() == {"base", "left"}, "what ends after the command leaves no record"


def test_a_bug_in_one_is_not_hidden_and_ends_the_other(house: House) -> None:
    started = threading.Event()

    def bug() -> None:
        assert started.wait(PATIENCE_S)
        raise ZeroDivisionError

    def endless() -> None:
        started.set()
        while True:
            time.sleep(0.001)

    house.left, house.right = bug, endless
    with pytest.raises(ZeroDivisionError):
        house.pipeline().ensure(["both"])
    house.threads["right"].join(PATIENCE_S)
    assert not house.threads["right"].is_alive()
    assert house.recorded() == {"base"}
