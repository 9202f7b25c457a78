"""The command line as a person meets it: each command in a project of its own, by Invoke's own program."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.commands import session
from pipeline.commands.chain import graph
from pipeline.commands.session import Options, Session
from pipeline.dag import STAGES
from pipeline.engine.record import Failure, Store, now
from pipeline.gpu import nvml
from tests.fakes.fake_hub import GATED, FakeHub, HubFile
from tests.fakes.fake_vllm import FakeVllm, Script

ROOT = Path(__file__).resolve().parents[3]
ENGLISH = ("check-gpu", "install", "download-model", "serve", "test-router", "test-determinism", "bench", "measure-vram", "report")
COMMANDS = (
    *("all", "determinism-remedy", "soak", "doctor", "restart", "stop", "status", "plan", "gates", "systemd-unit", "why", "logs", "graph"),
    *("clean", "test", "lint", "history", "compare", "calibrate-noise", "sweep", "publish", "env", "join", "bundle"),
)
HEAVY = ("pydantic", "numpy", "requests", "jsonschema", "jinja2", "huggingface_hub", "pynvml", "psutil")


class Project:
    """A project folder with this checkout's code and configuration, and nothing on record."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        for name in ("tasks.py", "config.yaml"):
            shutil.copy(ROOT / name, root)
        for name in ("pipeline", "templates", "suites", "requirements"):
            (root / name).symlink_to(ROOT / name)

    def start(self, *words: str, **variables: str) -> "subprocess.Popen[str]":
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.root / "home"), "COLUMNS": "200", **variables}
        command = [sys.executable, "-m", "invoke", *words]
        return subprocess.Popen(command, cwd=self.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def invoke(self, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end; no command may end in a traceback."""
        process = self.start(*words, **variables)
        try:
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
        assert "Traceback" not in out + err, err
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def says(self, *words: str, **variables: str) -> list[str]:
        """Return the lines that a command prints that must succeed."""
        done = self.invoke(*words, **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def refuses(self, *words: str, **variables: str) -> list[str]:
        """Return what a command that must be refused says: one line, and one with the hint where there is one."""
        done = self.invoke(*words, **variables)
        assert (done.returncode, done.stdout) == (2, "")
        lines = done.stderr.splitlines()
        assert lines[0].startswith("error: ")
        assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("  → "))
        return lines

    def configure(self, **sections: Any) -> None:
        """Change these settings in config.yaml."""
        path = self.root / "config.yaml"
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, values in sections.items():
            settings[name] = {**settings[name], **values} if isinstance(values, dict) else values
        path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")

    def replace(self, old: str, new: str) -> int:
        """Replace text in config.yaml, where it must be the only one of its kind; return its line."""
        path = self.root / "config.yaml"
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, old
        path.write_text(text.replace(old, new), encoding="utf-8")
        start = text.index(old) + len(old) - len(old.lstrip())
        return text[:start].count("\n") + 1

    def record(self, stage: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.root / "artifacts" / f"{stage}.json").read_text(encoding="utf-8"))
        return loaded

    def fail(self, stage: str, message: str, hint: str = "", log_tail: tuple[str, ...] = ()) -> None:
        """Leave the record of a stage that failed."""
        failure = Failure(kind="server", message=message, hint=hint, log="server.log" if log_tail else None, log_tail=list(log_tail))
        Store(self.root / "artifacts").write(stage, {}, now(), 1.0, failure)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project for commands that must leave nothing behind."""
    return Project(tmp_path_factory.mktemp("cli") / "project")


# The list and the options.


def test_list_names_every_stage_and_command_and_loads_nothing_heavy(untouched: Project) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPROFILEIMPORTTIME": "1"}
    words = [sys.executable, "-m", "invoke", "--list", "--list-format", "json"]
    done = subprocess.run(words, cwd=untouched.root, env=environment, capture_output=True, text=True, check=True)
    listed = [task["name"] for task in json.loads(done.stdout)["tasks"]]
    assert sorted(listed) == sorted((*ENGLISH, *COMMANDS))
    assert all(task["help"] for task in json.loads(done.stdout)["tasks"])
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert {"invoke", "pipeline.errors"} <= loaded
    assert {name.partition(".")[0] for name in loaded} & set(HEAVY) == set()
    assert {name for name in loaded if name.startswith("pipeline")} == {"pipeline", "pipeline.errors"}


def test_every_stage_task_has_the_same_options(untouched: Project) -> None:
    code = (
        "import tasks\n"
        "for name in tasks.namespace.task_names:\n"
        "    print(name, *(flag for argument in tasks.namespace[name].get_arguments() for flag in argument.names if len(flag) > 1))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=untouched.root, capture_output=True, text=True, check=True)
    options = {line.split()[0]: set(line.split()[1:]) for line in done.stdout.splitlines()}
    for name in (*ENGLISH, "all"):
        assert {"profile", "set", "force", "why"} <= options[name], name
    assert options["serve"] - options["bench"] == {"foreground", "watch"}
    assert options["report"] - options["bench"] == {"only"}
    assert {name for name in COMMANDS if "force" in options[name]} == {"all", "soak", "sweep"}
    assert options["soak"] - options["bench"] == {"hours"}
    assert options["all"] - options["bench"] == {"bundle"}
    assert {name for name in options if "json" not in options[name]} == {
        *("bundle", "clean", "graph", "join", "lint", "logs", "publish", "systemd-unit", "test")
    }
    assert {name for name in options if "quiet" in options[name]} == {
        *(*ENGLISH, "all", "bundle", "calibrate-noise", "determinism-remedy", "join", "restart", "soak", "sweep")
    }


def test_help_of_a_stage_says_what_each_option_does(untouched: Project) -> None:
    said = " ".join(untouched.says("--help", "bench"))
    for option in ("--profile=STRING", "--set", "--force", "--why"):
        assert option in said
    assert "serve.port=8001" in said


def test_unknown_task_is_told(untouched: Project) -> None:
    done = untouched.invoke("chek-gpu")
    assert done.returncode != 0
    assert "chek-gpu" in done.stderr


# The graph.


def test_graph_is_the_order_and_edges_of_the_stages(untouched: Project) -> None:
    lines = untouched.says("graph")
    assert lines == graph(untouched.root).parts
    names = {stage.makes: stage.name for stage in STAGES}
    edges = {(names[kind], "-->", stage.name) for stage in STAGES for kind in stage.needs.values()}
    edges |= {(names[kind], "-.->", stage.name) for stage in STAGES for kind in stage.reads.values() if kind in names}
    assert lines[0] == "flowchart LR"
    assert sorted(tuple(line.split()) for line in lines[1:]) == sorted(edges)
    assert ("serve", "-->", "bench") in edges
    assert {name for edge in edges for name in (edge[0], edge[2])} == set(ENGLISH)


# Wrong settings.


def test_misspelt_setting_in_the_file(project: Project) -> None:
    line = project.replace("start_timeout_s", "start_timout_s")
    first, hint = project.refuses("status")
    assert first == f"error: config.yaml:{line}: serve.start_timout_s: unknown setting; did you mean 'start_timeout_s'?"
    assert hint.startswith("  → known here: host, port, ")


def test_misspelt_section_in_the_file(project: Project) -> None:
    line = project.replace("\ndeterminism:\n", "\ndeterminsm:\n")
    first, _ = project.refuses("status")
    assert first == f"error: config.yaml:{line}: determinsm: unknown setting; did you mean 'determinism'?"


def test_wrong_value_in_the_file(project: Project) -> None:
    line = project.replace("load_s: 300", "load_s: -1")
    (first,) = project.refuses("status")
    assert first == f"error: config.yaml:{line}: vram.load_s: input should be greater than 0, got -1"


def test_file_that_is_not_yaml(project: Project) -> None:
    line = project.replace("load_s: 300", "load_s: [300")
    first, hint = project.refuses("status")
    assert first.startswith("error: config.yaml:")
    assert int(first.split(":")[2]) >= line
    assert "indentation, colons and quotes" in hint


def test_missing_file(project: Project) -> None:
    (project.root / "config.yaml").unlink()
    assert project.refuses("status") == [
        "error: config.yaml: No such file or directory",
        "  → restore it with `git checkout config.yaml`",
    ]


def test_misspelt_setting_in_the_environment(untouched: Project) -> None:
    first, _ = untouched.refuses("status", VLLM_POC__SERVE__PROT="8001")
    assert first == "error: environment VLLM_POC__SERVE__PROT: serve.prot: unknown setting; did you mean 'port'?"


def test_misspelt_setting_on_the_command_line(untouched: Project) -> None:
    first, _ = untouched.refuses("bench", "--set", "bench.ttft_request=3")
    assert first == "error: --set bench.ttft_request: bench.ttft_request: unknown setting; did you mean 'ttft_requests'?"
    assert not (untouched.root / "artifacts").exists()


def test_wrong_value_on_the_command_line(untouched: Project) -> None:
    (first,) = untouched.refuses("status", "--set", "serve.port=high")
    assert first.startswith("error: --set serve.port: serve.port: input should be a valid integer")
    assert first.endswith(", got 'high'")


def test_set_without_a_value(untouched: Project) -> None:
    assert untouched.refuses("status", "--set", "serve.port") == [
        "error: --set serve.port: expected key=value",
        "  → for example --set serve.port=8001",
    ]


def test_set_may_be_repeated_and_the_last_wins(untouched: Project) -> None:
    (first,) = untouched.refuses("status", "--set", "serve.port=8001", "--set", "vram.concurrency=2", "--set", "serve.port=0")
    assert first.startswith("error: --set serve.port: serve.port: ")


def test_unknown_profile(untouched: Project) -> None:
    first, hint = untouched.refuses("all", "--profile", "qwen-7b")
    assert first == "error: --profile: no profile 'qwen-7b'; did you mean 'qwen2.5-7b'?"
    assert hint == (
        "  → profiles: cpu, gpu-12gb, gpu-16gb, gpu-24gb, gpu-48gb, gpu-80gb, gpu-8gb, gpu-embedded, llama-3.2-3b, quick, "
        "qwen2.5-1.5b, qwen2.5-3b-shape, qwen2.5-7b, rtx4050-6gb, auto"
    )


def test_wrong_setting_of_the_profile_that_check_gpu_chose_is_told_before_it_is_used(project: Project) -> None:
    profiles = yaml.safe_load((project.root / "config.yaml").read_text(encoding="utf-8"))["profiles"]
    project.configure(profile="auto", profiles={name: {"bench": {"decode_request": 1}} for name in profiles})
    done = project.invoke("install")
    assert done.returncode == 2
    assert "bench.decode_request: unknown setting; did you mean 'decode_requests'?" in done.stderr
    assert not (project.root / "venv-vllm").exists()
    assert not (project.root / "artifacts" / "install.json").exists()


# An empty project.


def test_status_of_an_empty_project(untouched: Project) -> None:
    lines = untouched.says("status", "--profile", "cpu")
    assert lines[0] == "server: not running"
    states = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[1:-1]}
    assert tuple(states) == ENGLISH
    assert states.pop("check-gpu") == "looks at the machine each time"
    assert set(states.values()) == {"never ran"}
    assert lines[-1] == "profile cpu (--profile)"


def test_status_without_a_profile_chosen_yet(untouched: Project) -> None:
    assert untouched.says("status")[-1] == "profile auto (check-gpu has not chosen one)"


def test_why_of_an_empty_project(project: Project) -> None:
    lines = project.says("why", "--profile", "cpu")
    assert [line.split()[0] for line in lines[:-1]] == list(ENGLISH)
    assert [line.split(maxsplit=1)[1] for line in lines[1:-1]] == ["never ran"] * 8
    assert [path.name for path in (project.root / "artifacts").glob("[a-z]*.json")] == ["check-gpu.json"]


def test_why_of_one_stage_names_that_stage_alone(project: Project) -> None:
    lines = project.says("download-model", "--why", "--profile", "cpu")
    assert [line.split() for line in lines[:-1]] == [["download-model", "never", "ran"]]
    assert not (project.root / "models").exists()


@pytest.mark.parametrize("task", ["stop", "status", "logs"])
def test_a_note_of_the_server_that_cannot_be_read_is_not_taken_for_no_server(project: Project, task: str) -> None:
    (project.root / "artifacts").mkdir(exist_ok=True)
    note = project.root / "artifacts" / "launch.json"
    note.write_text('{"pid": 7}', encoding="utf-8")
    assert project.refuses(task)[0].startswith("error: artifacts/launch.json does not tell which server runs here")
    assert note.exists()


def test_logs_before_the_first_server(untouched: Project) -> None:
    assert untouched.refuses("logs") == ["error: no server log yet", "  → start a server with `./inv serve`"]


def test_logs_of_the_last_server(project: Project) -> None:
    for launch, text in (("2026-01-01", "old\n"), ("2026-01-02", "new\n")):
        folder = project.root / "artifacts" / "launches" / launch
        folder.mkdir(parents=True)
        (folder / "server.log").write_text(text, encoding="utf-8")
    assert project.says("logs", "--follow") == ["new"]


def test_a_reader_who_leaves_is_no_error(project: Project) -> None:
    """As in `./inv logs | head`."""
    process = project.start("status")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Have a small file system of its own mounted there."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting needs rights that this user lacks: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_enough_room_is_all_it_takes(project: Project) -> None:
    folder = project.root / "artifacts"
    with mounted(folder, "size=256k"):
        project.says("check-gpu")
        filler = folder / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        done = project.invoke("check-gpu")
        assert done.returncode == 2
        assert done.stderr.splitlines()[-2:] == [
            "error: No space left on device",
            "  → free some disk space, then run the same command again",
        ]
        filler.unlink()
        project.says("check-gpu")


def test_a_read_only_disk_is_one_line(project: Project) -> None:
    with mounted(project.root / "artifacts", "ro"):
        assert project.refuses("check-gpu") == [
            f"error: {project.root}/artifacts/.lock: Read-only file system",
            "  → the file system is mounted read-only: mount it for writing, or move the project",
        ]


def test_a_folder_where_the_report_belongs_is_one_line(project: Project) -> None:
    (project.root / "REPORT.md").mkdir()
    done = project.invoke("report", "--only", "--profile", "cpu")
    assert done.returncode == 2
    assert "REPORT.md: Is a directory (move it away: a file is to stand there)" in done.stderr


def test_stop_with_nothing_running(untouched: Project) -> None:
    assert untouched.says("stop") == ["no server of ours is running"]


def test_the_remedy_of_a_server_of_somebody_else_is_refused(untouched: Project) -> None:
    assert untouched.refuses("determinism-remedy", "--set", "attach.url=http://gpu-box:8000") == [
        "error: the server at http://gpu-box:8000 is not ours to start with another environment",
        "  → unset attach.url for a server of our own",
    ]


def test_the_memory_of_a_server_of_somebody_else_is_not_soaked(untouched: Project) -> None:
    assert untouched.refuses("soak", "--attach", "http://gpu-box:8000") == [
        "error: the server at http://gpu-box:8000 is not ours to measure the memory of",
        "  → unset attach.url for a server of our own",
    ]


def test_a_soak_of_no_hours_is_refused(untouched: Project) -> None:
    assert untouched.refuses("soak", "--hours", "a few") == [
        "error: --hours: expected a number above 0, got 'a few'",
        "  → for example --hours 4, or --hours 0.5",
    ]


def test_clean_of_an_empty_project(project: Project) -> None:
    assert project.says("clean") == ["removed nothing"]


def test_clean_removes_records_and_keeps_what_was_dear(project: Project) -> None:
    project.fail("serve", "it died")
    (project.root / "artifacts" / ".gitignore").write_text("*\n", encoding="utf-8")
    (project.root / "artifacts" / "launches" / "one").mkdir(parents=True)
    dear = [project.root / name for name in ("models", "venv-vllm", ".cache")]
    for folder in dear:
        (folder / "inner").mkdir(parents=True)
    project.says("clean")
    assert {path.name for path in (project.root / "artifacts").iterdir()} <= {".gitignore", ".lock"}
    assert all((folder / "inner").is_dir() for folder in dear)
    project.says("clean", "--everything")
    assert not any(folder.exists() for folder in dear)
    assert (project.root / "artifacts" / ".gitignore").exists()


# check-gpu.


def needs_no_gpu() -> None:
    if nvml.read().trouble is None:
        pytest.skip("this machine has a GPU")


def test_check_gpu_without_a_gpu_says_so_and_chooses_the_processor(project: Project) -> None:
    needs_no_gpu()
    lines = project.says("check-gpu")
    assert lines[0].startswith("processor  ")
    assert any(line.startswith("no usable GPU: ") for line in lines)
    assert lines[-1].startswith("profile cpu (auto: no usable GPU: ")
    assert project.record("check-gpu")["data"]["profile"] == "cpu"


def test_check_gpu_that_must_find_one_fails_with_one_line(project: Project) -> None:
    needs_no_gpu()
    done = project.invoke("check-gpu", "--set", "gpu.required=true")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("✗")]
    assert line.startswith("✗ check-gpu failed")
    assert "no usable GPU: " in line
    assert line.endswith("; or set gpu.required: false)")
    assert project.record("check-gpu")["failure"]["kind"] == "machine"


def test_stage_whose_need_failed_is_blocked_and_does_not_run(project: Project) -> None:
    needs_no_gpu()
    done = project.invoke("download-model", "--profile", "cpu", "--set", "gpu.required=true")
    assert done.returncode == 2
    assert "✗ download-model blocked: needs check-gpu, which failed" in done.stderr
    assert not (project.root / "models").exists()


# report --only.


def rendered(project: Project) -> str:
    return (project.root / "REPORT.md").read_text(encoding="utf-8")


def verdicts(text: str) -> list[tuple[str, str]]:
    """Return (metric, verdict) of each row of the two tables of gates."""
    tables = text[text.index("## Performance targets") : text.index("## Test scenarios")].split("## Failures")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables.splitlines() if line.startswith("|")]
    return [(row[0].split("[^")[0], row[3]) for row in rows if row[0] != "Metric" and not row[0].startswith("-")]


def test_report_of_nothing_says_that_nothing_was_measured(project: Project) -> None:
    done = project.invoke("report", "--only", "--profile", "cpu")
    assert done.returncode == 2
    text = rendered(project)
    gates = yaml.safe_load((project.root / "config.yaml").read_text(encoding="utf-8"))["gates"]
    rows = verdicts(text)
    assert sorted(label for label, _ in rows) == sorted(gate["label"] for gate in gates.values())
    assert all("NOT_MEASURED" in verdict and "never ran" in verdict for _, verdict in rows)
    assert "PASS" not in "".join(verdict for _, verdict in rows)
    assert text.count("NOT_MEASURED: this stage never ran") == 4
    assert "TBD" not in text
    assert "NOT MEASURED: 0 of 9 required gates pass" in text
    assert "NOT MEASURED: 0 of 9 required gates pass" in done.stdout
    assert "REPORT.md" in done.stdout.splitlines()
    assert {path.name for path in (project.root / "artifacts").glob("[a-z]*.json")} == {"report.json"}


def test_report_of_a_failure_shows_it_with_its_hint(project: Project) -> None:
    project.fail("serve", "the server ran out of | memory", "set serve.max_num_seqs lower", ("first", "last <b>word</b>"))
    project.fail("bench", "needs serve, which failed")
    done = project.invoke("report", "--only", "--profile", "cpu")
    assert done.returncode == 2
    text = rendered(project)
    failures = text[text.index("## Failures") : text.index("## Test scenarios")]
    assert "**serve**: the server ran out of | memory\n" in failures
    assert "→ set serve.max_num_seqs lower" in failures
    assert "first\nlast <b>word</b>\n" in failures
    assert "serve failed: the server ran out of | memory" in done.stdout
    assert dict(verdicts(text))["Throughput"].endswith("NOT_MEASURED: needs serve, which failed")
    assert "TBD" not in text


def test_report_goes_where_the_settings_say_and_is_unchanged_the_second_time(project: Project) -> None:
    words = ("report", "--only", "--profile", "cpu", "--set", "report.output=out/mine.md")
    assert project.invoke(*words).returncode == 2
    first = (project.root / "out" / "mine.md").read_text(encoding="utf-8")
    assert not (project.root / "REPORT.md").exists()
    assert project.invoke(*words).returncode == 2
    assert (project.root / "out" / "mine.md").read_text(encoding="utf-8") == first


def test_report_names_the_settings_that_a_repetition_needs(project: Project) -> None:
    words = ("report", "--only", "--profile", "cpu", "--set", "bench.concurrency=[1, 2]")
    assert project.invoke(*words, VLLM_POC__SERVE__PORT="8123").returncode == 2
    command = "./inv all --profile cpu --set serve.port=8123 --set 'bench.concurrency=[1, 2]'"
    assert f"To do it again:\n\n```bash\n{command}\n```\n" in rendered(project)


def test_record_of_a_later_version_is_not_taken_for_ours(project: Project) -> None:
    project.fail("serve", "it died")
    path = project.root / "artifacts" / "serve.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"schema_version": 1', '"schema_version": 99'), encoding="utf-8")
    done = project.invoke("report", "--only", "--profile", "cpu")
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()[-2:]
    assert error == f"error: {path} has record schema 99, this program reads 1"
    assert "remove the file to run the stage again" in hint
    assert not (project.root / "REPORT.md").exists()


# gates and waivers.

WAIVER = "waivers.throughput={reason: no card yet, expires: 2999-12-31}"


def blocks(said: str) -> dict[str, dict[str, str]]:
    """Return what `gates` says of each gate, line by line."""
    told: dict[str, dict[str, str]] = {}
    for line in said.splitlines():
        if line.startswith("  "):
            name, _, text = line.strip().partition(" ")
            told[list(told)[-1]][name] = text.strip()
        else:
            told[line.partition(":")[0]] = {}
    return told


def test_gates_of_nothing_are_not_measured_and_leave_nothing_behind(project: Project) -> None:
    done = project.invoke("gates", "--profile", "cpu", "--set", "gates.throughput.target=40")
    assert done.returncode == 2
    told = blocks(done.stdout)
    path = project.root / "config.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    names = list(yaml.safe_load("\n".join(lines))["gates"])
    assert list(told)[: len(names)] == names
    for name in names:
        assert told[name]["verdict"].startswith("NOT_MEASURED: ")
        assert told[name]["verdict"].endswith(" never ran")
        assert told[name]["figure"].endswith(", nothing on record")
        number = int(told[name]["gate"].partition(";")[0].removeprefix("config.yaml:"))
        assert lines[number - 1] == f"  {name}:"
    assert told["throughput"]["target"].startswith("> 40 tok/s")
    assert told["throughput"]["gate"].endswith("; target: --set gates.throughput.target")
    assert told["vram_usage"]["gate"].endswith(" (profile cpu)")
    assert told["vram_usage"]["target"].endswith("; not required")
    assert done.stdout.splitlines()[-2].startswith("NOT MEASURED: 0 of 9 required gates pass. Open: ")
    assert done.stdout.splitlines()[-1] == "profile cpu (--profile)"
    assert not (project.root / "artifacts").exists()


def test_gates_say_what_the_report_says_of_a_crash_that_is_waived(project: Project) -> None:
    project.fail("bench", "the server died")
    words = ("--profile", "cpu", "--set", WAIVER)
    rendering, listing = project.invoke("report", "--only", *words), project.invoke("gates", *words)
    assert (rendering.returncode, listing.returncode) == (2, 2)
    waived = "NOT_MEASURED (waived until 2999-12-31: no card yet)"
    assert f"{waived}: the server died\n" in rendering.stdout
    assert f"{waived}: the server died" in dict(verdicts(rendered(project)))["Throughput"]
    told = blocks(listing.stdout)["throughput"]
    assert told["verdict"] == f"{waived}: the server died"
    assert told["waiver"] == "--set waivers.throughput"
    said = "NOT MEASURED: 0 of 9 required gates pass, 1 is waived. bench failed: the server died."
    assert said in rendering.stdout.splitlines()
    assert said in listing.stdout.splitlines()
    (gate,) = [gate for gate in project.record("report")["data"]["gates"] if gate["gate"] == "throughput"]
    assert (gate["verdict"], gate["waiver"]) == ("NOT_MEASURED", "waived until 2999-12-31: no card yet")


def test_gates_of_a_record_that_cannot_be_read(project: Project) -> None:
    project.fail("bench", "it died")
    (project.root / "artifacts" / "bench.json").write_text("{", encoding="utf-8")
    done = project.invoke("gates", "--profile", "cpu")
    assert done.returncode == 2
    assert "bench.json is not readable JSON" in blocks(done.stdout)["throughput"]["verdict"]
    (project.root / "artifacts" / "bench.json").write_text('{"schema_version": 99}', encoding="utf-8")
    assert "has record schema 99" in project.refuses("gates", "--profile", "cpu")[0]


def test_waiver_of_an_unknown_gate_is_one_line(untouched: Project) -> None:
    first, hint = untouched.refuses("gates", "--set", WAIVER.replace("throughput", "troughput"))
    assert first == "error: --set waivers.troughput: waivers.troughput: unknown gate; did you mean 'throughput'?"
    assert hint.startswith("  → gates: first_token_latency, ")


def test_the_report_is_stale_when_a_waiver_comes_or_expires_and_not_before(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def why(*sets: str) -> str:
        session = Session(project.root, Options("cpu", sets), silent=True)
        return session.pipeline.why(session.pipeline.stage("report"))

    project.invoke("report", "--only", "--profile", "cpu")
    assert why() == ""
    assert "waived.in_force.throughput is new: {'reason': 'no card yet', 'expires': '2999-12-31'}" in why(WAIVER)
    project.invoke("report", "--only", "--profile", "cpu", "--set", WAIVER)
    for day, stale in ((datetime(2999, 12, 31, 23, 59, tzinfo=UTC), False), (datetime(3000, 1, 1, tzinfo=UTC), True)):
        monkeypatch.setattr(session, "now", lambda day=day: day)
        assert why(WAIVER).startswith("waived.in_force.throughput is gone") == stale
        assert ("waived.expired.throughput is new" in why(WAIVER)) == stale
        assert bool(why(WAIVER)) == stale


# Two commands at once.


@contextmanager
def busy(project: Project, hub: FakeHub) -> Iterator["subprocess.Popen[str]"]:
    """Have a command at work that waits for the hub until `go_on` is set."""
    model = {"name": "tiny", "source": "hub", "repo": hub.repo, "min_free_gib": 0.01}
    project.configure(profile="cpu", profiles={"cpu": {"model": model}})
    first = project.start("download-model", HF_ENDPOINT=hub.endpoint)
    try:
        assert hub.stalling.wait(60)
        yield first
    finally:
        first.kill()
        first.communicate()


def tiny_hub() -> FakeHub:
    hub = FakeHub(stalled={"model.safetensors"})
    hub.commit({"config.json": HubFile(b"{}"), "model.safetensors": HubFile(b"0123456789", lfs=True)})
    return hub


def test_second_command_says_who_is_at_work_and_leaves_the_first_alone(project: Project) -> None:
    with tiny_hub() as hub, busy(project, hub) as first:
        assert project.refuses("check-gpu") == [
            f"error: another command is at work here (pid {first.pid}: download-model)",
            "  → wait for it, or stop it with Ctrl-C in its terminal",
        ]
        for task in ("clean", "stop", "serve", "restart"):
            assert project.refuses(task)[0].startswith("error: another command is at work here")
        assert project.says("status")[0] == "server: not running"
        hub.go_on.set()
        _, said = first.communicate(timeout=60)
        assert first.returncode == 0, said
    assert project.record("download-model")["status"] == "ok"
    assert project.invoke("check-gpu").returncode == 0


def test_lock_of_a_killed_command_does_not_stay(project: Project) -> None:
    with tiny_hub() as hub, busy(project, hub) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        project.says("check-gpu")
    assert project.says("status")[3].split(maxsplit=1) == ["download-model", "never ran"]


SMALL = (
    *("--set", "router.cases=2", "--set", "determinism.count=1", "--set", "determinism.runs=2", "--set", "determinism.load=[]"),
    *("--set", "bench.ttft_requests=2", "--set", "bench.decode_requests=2", "--set", "bench.requests_per_level=2"),
    *("--set", "bench.client_delay_ms=1000"),  # tests run side by side, and the client with them
)


def test_all_on_a_server_of_somebody_else_installs_nothing_and_says_so(project: Project) -> None:
    with FakeVllm(Script(texts=('{"route": "chat"}',))) as fake:
        done = project.invoke("all", "--attach", fake.base_url, "--profile", "cpu", *SMALL)
        assert done.returncode == 2, f"its memory is not ours to measure: {done.stdout} {done.stderr}"
        here = ("--set", f"attach.url={fake.base_url}", "--profile", "cpu", *SMALL)
        gates = project.invoke("gates", *here)
        assert (gates.returncode, gates.stdout.splitlines()[-2]) == (done.returncode, project.record("report")["data"]["headline"])
        open_gates = [gate["gate"] for gate in project.record("report")["data"]["gates"] if gate["required"] and gate["verdict"] != "PASS"]
        assert f", launch {project.record('bench')['data']['launch_id']}" in blocks(gates.stdout)[open_gates[0]]["figure"]
        waived = [word for name in open_gates for word in ("--set", f"waivers.{name}={{reason: so small a run, expires: 2999-12-31}}")]
        rendering, gates = project.invoke("report", "--only", *here, *waived), project.invoke("gates", *here, *waived)
        assert (rendering.returncode, gates.returncode) == (0, 0)
        assert gates.stdout.splitlines()[-2] == project.record("report")["data"]["headline"]
        assert gates.stdout.splitlines()[-2].startswith("PASS: ")
        assert f"required gates pass, {len(open_gates)} " in gates.stdout
        assert "▫ measure-vram left out: the memory of the server" in done.stderr
        again = project.invoke("all", "--attach", fake.base_url, "--profile", "cpu", *SMALL)
        assert "· measure-vram unchanged" in again.stderr
        report = (project.root / "REPORT.md").read_text(encoding="utf-8")
        assert f"**Measured on the server at {fake.base_url}, which someone else runs" in report
        assert f"attach.url={fake.base_url}" in report, "the command to do it again"
        assert "What the endpoint shows of itself:" in report
        assert "was started in the project's folder" not in report
        assert f"the memory of the server at {fake.base_url} is not ours to measure" in report
        assert {path.name for path in (project.root / "artifacts").glob("*.json")} == {
            f"{stage}.json" for stage in ("check-gpu", "serve", "test-router", "test-determinism", "bench", "measure-vram", "report")
        } | {".code.json"}
        assert project.record("bench")["data"]["simulated"] is False
        assert project.says("status", "--set", f"attach.url={fake.base_url}")[0].startswith(f"server: attached to {fake.base_url}")
        assert "attached: neither started nor stopped by us" in project.says("serve", "--attach", fake.base_url)
        for task in (("restart",), ("serve", "--watch"), ("serve", "--foreground")):
            assert project.refuses(*task, "--set", f"attach.url={fake.base_url}")[0].startswith(
                f"error: the server at {fake.base_url} is not ours"
            )
        assert project.says("stop") == ["no server of ours is running"]


def test_a_mock_cannot_pass(project: Project) -> None:
    with FakeVllm(Script(owned_by="a mock")) as fake:
        project.invoke("bench", "--attach", fake.base_url, "--profile", "cpu", *SMALL)
        assert project.invoke("report", "--only", "--attach", fake.base_url).returncode != 0
        report = (project.root / "REPORT.md").read_text(encoding="utf-8")
        assert "SIMULATED" in report
        assert "✅ PASS" not in report


def test_a_wrong_address_is_one_line(project: Project) -> None:
    assert (
        project.refuses("bench", "--attach", "gpu-box:8000")[0]
        == "error: --set attach.url: attach.url: expected http://host:port or https://host"
    )


def test_doctor_names_what_must_be_mended(project: Project) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = project.invoke("doctor", "--profile", "cpu", "--set", f"serve.port={port}")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0] == "OK    configuration    profile cpu (--profile)"
    assert f"FAIL  port             {port} is taken by pid {os.getpid()}" in done.stdout
    assert [line for line in lines if line.startswith("FAIL")] == [line for line in lines if " is taken by " in line]
    assert not (project.root / "artifacts" / "check-gpu.json").exists(), "a look leaves no record"


def test_doctor_goes_on_with_a_configuration_that_is_wrong(project: Project) -> None:
    done = project.invoke("doctor", "--set", "serve.prot=1")
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL  configuration    --set serve.prot: serve.prot: unknown setting; did you mean 'port'?")
    assert "\nOK    /dev/shm" in done.stdout or "\nWARN  /dev/shm" in done.stdout


def test_doctor_says_who_is_at_work(project: Project) -> None:
    with tiny_hub() as hub, busy(project, hub) as first:
        assert (
            f"WARN  lock             another command is at work here (pid {first.pid}: download-model)" in project.invoke("doctor").stdout
        )


def test_doctor_asks_the_hub_without_downloading(project: Project) -> None:
    hub = FakeHub()
    hub.commit({"config.json": HubFile(b"{}"), "model.safetensors": HubFile(b"0123456789", lfs=True)})
    with hub:
        project.configure(profile="cpu", profiles={"cpu": {"model": {"name": "tiny", "source": "hub", "repo": hub.repo}}})
        assert "OK    model            " + hub.repo in project.invoke("doctor", HF_ENDPOINT=hub.endpoint).stdout
        hub.refusals["resolve"] = GATED
        said = project.invoke("doctor", HF_ENDPOINT=hub.endpoint).stdout
        assert f"FAIL  model            {hub.repo} is gated; no token is set" in said
    assert not (project.root / "models").exists()
