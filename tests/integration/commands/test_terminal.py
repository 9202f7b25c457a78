"""Commands on a real terminal (a pseudo one, read by an emulator), on a pipe, quiet, and for programs."""

import fcntl
import json
import os
import re
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyte
import pytest

from pipeline.stages.check_gpu import Machine
from tests.builders.project import SMALL, STAGE_NAMES, Project
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script

COLUMNS, ROWS = 80, 200
STYLE = re.compile(rb"\x1b\[[\d;]*m")
SPINNING = re.compile("\r[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏] ([\\w-]+) \\d+:\\d\\d  ([^\x1b]*)\x1b\\[K")
ANSWERS = Script(texts=('{"route": "chat"}',), first_token_s=0.1)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


class Seen:
    """What a command wrote to a terminal, and what stood on it at the end."""

    def __init__(self, code: int, raw: bytes) -> None:
        self.code, self.raw, self.text = code, raw, raw.decode()
        screen = pyte.Screen(COLUMNS, ROWS)
        pyte.ByteStream(screen).feed(raw)
        self.lines = [line.rstrip() for line in screen.display]

    @property
    def moving(self) -> list[tuple[str, str]]:
        """Return (stage, words) of each picture of the line that moves."""
        return SPINNING.findall(self.text)


def on_terminal(project: Project, *words: str, seen: Callable[[bytes], bytes] = lambda _raw: b"", **variables: str) -> Seen:
    """Run a command on a terminal; `seen` may answer what was written so far with keys that are pressed."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (ROWS, COLUMNS))

    def take() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    environment = {"PATH": os.environ["PATH"], "HOME": str(project.root / "home"), "TERM": "xterm-256color", **variables}
    command = [sys.executable, "-m", "invoke", *words]
    process = subprocess.Popen(command, cwd=project.root, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=take)
    os.close(theirs)
    raw = b""
    try:
        with suppress(OSError):  # what reading says when the last of them has closed it
            while part := os.read(ours, 65536):
                raw += part
                if keys := seen(raw):
                    os.write(ours, keys)
        code = process.wait(60)
    finally:
        process.kill()
        os.close(ours)
    assert b"Traceback" not in raw, raw.decode()
    return Seen(code, raw)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, tuple[str, ...], Seen]]:
    """A project, the options of its `all`, and what that showed on a terminal; the server is there still."""
    made = Project(tmp_path_factory.mktemp("terminal") / "project")
    with FakeVllm(ANSWERS) as fake:
        words = ("--attach", fake.base_url, "--profile", "cpu", *SMALL)
        yield made, words, on_terminal(made, "all", *words)


def test_all_on_a_terminal(measured: tuple[Project, tuple[str, ...], Seen]) -> None:
    project, _, seen = measured
    assert seen.code == 2, seen.text
    assert {stage for stage, _ in seen.moving} >= {"test-router", "bench"}
    assert any(re.match(r"bench: \d of \d, \d+ s left", said) for _, said in seen.moving)
    assert not any(re.search("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", line) for line in seen.lines), "it is gone at the end"
    ended = {line.split()[1]: line for line in seen.lines if re.match(r"[✓·▫✗] ", line)}
    assert set(ended) == set(STAGE_NAMES) - {"install", "download-model"}
    assert re.fullmatch(r"✓ bench +made +\S.*  never ran", ended["bench"])
    assert ended["measure-vram"].startswith("▫ measure-vram      left out            the memory of the server at")
    gates = project.record("report")["data"]["gates"]
    start = next(at for at, line in enumerate(seen.lines) if line.split() == ["Metric", "Target", "Measured", "Verdict"])
    starts = [seen.lines[start].index(name) for name in ("Metric", "Target", "Measured", "Verdict")]
    assert len(gates) == 17
    for at, (begin, end) in enumerate(pairwise([*starts, COLUMNS])):
        column = "".join("".join(line[begin:end] for line in seen.lines[start:]).split())
        assert all("".join(gate["cells"][at].split()) in column for gate in gates), "folded, and whole"
    assert "\x1b[32mPASS" in seen.text


def test_all_without_colours_and_on_a_terminal_that_cannot_move(measured: tuple[Project, tuple[str, ...], Seen]) -> None:
    project, words, _ = measured
    bare = on_terminal(project, "all", *words, NO_COLOR="1")
    assert {code for code in STYLE.findall(bare.raw) if re.search(rb"[349][0-7]", code)} == set(), "bold and dim are none"
    assert "· bench             unchanged" in bare.lines
    dumb = on_terminal(project, "all", *words, TERM="dumb")
    assert "\x1b" not in dumb.text
    assert "· bench unchanged" in dumb.lines


def test_ctrl_c_on_a_terminal_clears_the_line_that_moves(project: Project) -> None:
    pressed: list[bool] = []

    def press(raw: bytes) -> bytes:
        if not pressed and SPINNING.search(raw.decode(errors="ignore")) and b"test-router" in raw:
            pressed.append(True)
            return b"\x03"
        return b""

    with FakeVllm(Script(texts=('{"route": "chat"}',), first_token_s=0.2)) as fake:
        seen = on_terminal(project, "test-router", "--attach", fake.base_url, "--profile", "cpu", seen=press)
    assert seen.code == 130, seen.text
    said = [line for line in seen.lines if line]
    assert said[-1].endswith("interrupted")
    assert not any(re.search("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", line) for line in said)


def test_tables_are_folded_and_lose_nothing(project: Project) -> None:
    seen = on_terminal(project, "why", "--profile", "cpu")
    assert seen.code == 0
    assert [line.split() for line in seen.lines if line.startswith("  install")] == [["install", "never", "ran"]]
    planned = on_terminal(project, "plan", "--profile", "qwen2.5-3b-shape", "--total-mib", "6141")
    assert all(len(line) <= COLUMNS for line in planned.lines)
    assert "model" in planned.text
    assert "…" not in planned.text


def test_quiet_says_only_the_result_and_what_went_wrong(project: Project) -> None:
    done = project.invoke("check-gpu", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("processor  ")
    project.configure(model={"name": "x", "source": "path", "path": "nowhere"})
    failed = project.invoke("download-model", "--quiet", "--profile", "cpu", "--set", "model.source=path", "--set", "model.path=nowhere")
    assert failed.returncode == 2
    (line,) = failed.stderr.splitlines()
    assert line.startswith("✗ download-model failed: ")


def told(project: Project, *words: str, code: int = 0) -> Any:
    """Return the one document that a command prints for programs."""
    done = project.invoke(*words, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_json_of_a_stage_and_of_what_looks_at_the_records(project: Project) -> None:
    seen = told(project, "check-gpu", "--profile", "cpu")
    assert seen["exit_code"] == 0
    assert seen["profile"] == {"name": "cpu", "origin": "--profile"}
    assert [(stage["stage"], stage["state"]) for stage in seen["stages"]] == [("check-gpu", "made")]
    assert seen["data"] == Machine.model_validate(project.record("check-gpu")["data"]).model_dump(mode="json")
    assert seen["failure"] is None
    status = told(project, "status", "--profile", "cpu")
    assert status["server"] == {"state": "not running"}
    assert status["crashes"] == []
    assert [(stage["stage"], stage["runs"], stage["reason"]) for stage in status["stages"]][1] == ("install", True, "never ran")
    assert told(project, "why", "--profile", "cpu")["stages"] == status["stages"]
    assert told(project, "bench", "--why", "--profile", "cpu")["stages"] == [status["stages"][6]]
    gates = told(project, "gates", "--profile", "cpu", code=2)
    assert {gate["verdict"] for gate in gates["gates"]} == {"NOT_MEASURED"}
    assert gates["gates"][0]["set_at"][""].startswith("config.yaml:")
    assert gates["headline"].startswith("NOT MEASURED")
    findings = told(project, "doctor", "--profile", "cpu", code=project.invoke("doctor", "--profile", "cpu").returncode)["findings"]
    assert {"level", "name", "seen", "fix"} == set(findings[0])
    assert told(project, "stop") == {"exit_code": 0, "stopped": None}
    assert told(project, "plan", "--profile", "cpu")["profile"] == "cpu"


def test_json_of_all_is_the_report_in_short(measured: tuple[Project, tuple[str, ...], Seen]) -> None:
    project, words, _ = measured
    made = told(project, "all", *words, code=2)
    report = project.record("report")["data"]
    assert made["exit_code"] == 2
    assert (made["headline"], made["path"], made["gates"]) == (report["headline"], "REPORT.md", report["gates"])
    assert {stage["stage"]: stage["state"] for stage in made["stages"]}["bench"] == "unchanged"
    assert made["kept"] is None, "nothing in it is new"
    rendered = told(project, "report", "--only", *words, code=report["exit_code"])
    assert rendered["gates"] == report["gates"]
    served = told(project, "serve", *words)
    assert served["data"]["attached"] == words[1]


def test_an_error_is_json_too_and_still_one_line_for_people(project: Project) -> None:
    done = project.invoke("bench", "--json", "--set", "bench.ttft_request=3")
    assert done.returncode == 2
    said = json.loads(done.stdout)
    assert (said["exit_code"], set(said)) == (2, {"exit_code", "error", "hint"})
    assert f"error: {said['error']}\n  → {said['hint']}" == done.stderr.rstrip()
    refused = project.invoke("serve", "--json", "--watch", "--profile", "cpu")
    assert refused.stderr.splitlines() == [
        "error: --json is for a command that ends",
        "  → leave out --foreground and --watch, or --json",
    ]
