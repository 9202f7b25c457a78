"""The list of the commands, their options and help, and the graph."""

import json
import os
import signal
import subprocess
import sys

import pytest

from pipeline.commands.chain import graph
from pipeline.dag import STAGES
from tests.builders.project import COMMAND_NAMES, STAGE_NAMES, Project

HEAVY = ("pydantic", "numpy", "requests", "jsonschema", "jinja2", "huggingface_hub", "pynvml", "psutil")
NEW_COMMAND = '''"""hello: a greeting."""

from pathlib import Path

from pipeline.commands.session import Options, Session
from pipeline.terminal import Output


def hello(root: Path, options: Options, who: str, loud: bool) -> Output:
    """Greet."""
    text = f"hello {who}, {Session(root, options, silent=True).profile_words()}"
    return Output(0, [text.upper() if loud else text], {"who": who})
'''
NEW_LINE = 'command("hello:hello", "Greet the profile.", *SETTINGS, "json", who=Option("whom", "world"), loud=flag("in capitals")),'


def test_list_names_every_stage_and_command_and_loads_nothing_heavy(untouched: Project) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPROFILEIMPORTTIME": "1"}
    words = [sys.executable, "-m", "invoke", "--list", "--list-format", "json"]
    done = subprocess.run(words, cwd=untouched.root, env=environment, capture_output=True, text=True, check=True)
    listed = [task["name"] for task in json.loads(done.stdout)["tasks"]]
    assert sorted(listed) == sorted((*STAGE_NAMES, *COMMAND_NAMES))
    assert all(task["help"] for task in json.loads(done.stdout)["tasks"])
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "invoke" in loaded
    assert {name.partition(".")[0] for name in loaded} & {"pipeline", *HEAVY} == set()


@pytest.mark.parametrize("words", [("--list",), ("--help", "bench"), ("status",)])
def test_a_reader_who_leaves_is_no_error(untouched: Project, words: tuple[str, ...]) -> None:
    """As in `./inv --list | head`."""
    process = untouched.start(*words)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(60) in (-signal.SIGPIPE, 128 + signal.SIGPIPE)
    assert process.stderr.read() == ""
    process.stderr.close()


def test_a_new_command_is_a_function_and_a_line(project: Project) -> None:
    project.copy_pipeline()
    (project.root / "pipeline" / "commands" / "hello.py").write_text(NEW_COMMAND, encoding="utf-8")
    path = project.root / "tasks.py"
    tasks = path.read_text(encoding="utf-8")
    assert tasks.count("\nCOMMANDS = [\n") == 1
    path.write_text(tasks.replace("\nCOMMANDS = [\n", f"\nCOMMANDS = [\n    {NEW_LINE}\n"), encoding="utf-8")
    assert any(line.split(maxsplit=1) == ["hello", "Greet the profile."] for line in project.says("--list"))
    assert project.says("hello", "--profile", "cpu", "--loud", "--who", "you") == ["HELLO YOU, PROFILE CPU (--PROFILE)"]
    assert json.loads("\n".join(project.says("hello", "--profile", "cpu", "--json"))) == {"who": "world"}
    assert project.refuses("hello", "--profile", "nowhere")[0].startswith("error: --profile: no profile 'nowhere'")


def test_every_stage_task_has_the_same_options(untouched: Project) -> None:
    code = (
        "import tasks\n"
        "for name in tasks.namespace.task_names:\n"
        "    print(name, *(flag for argument in tasks.namespace[name].get_arguments() for flag in argument.names if len(flag) > 1))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=untouched.root, capture_output=True, text=True, check=True)
    options = {line.split()[0]: set(line.split()[1:]) for line in done.stdout.splitlines()}
    for name in (*STAGE_NAMES, "all"):
        assert {"profile", "set", "force", "why"} <= options[name], name
    assert options["serve"] - options["bench"] == {"foreground", "watch"}
    assert options["report"] - options["bench"] == {"only"}
    assert {name for name in COMMAND_NAMES if "force" in options[name]} == {"all", "soak", "sweep"}
    assert options["soak"] - options["bench"] == {"hours"}
    assert options["all"] - options["bench"] == {"bundle"}
    assert {name for name in options if "json" not in options[name]} == {
        *("bundle", "clean", "graph", "join", "lint", "logs", "publish", "systemd-unit", "test")
    }
    assert {name for name in options if "quiet" in options[name]} == {
        *(*STAGE_NAMES, "all", "bundle", "calibrate-noise", "determinism-remedy", "join", "restart", "soak", "sweep")
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
    edges |= {(other.name, "-.->", stage.name) for stage in STAGES if stage.gathers for other in STAGES if other != stage}
    assert lines[0] == "flowchart LR"
    assert sorted(tuple(line.split()) for line in lines[1:]) == sorted(edges)
    assert ("serve", "-->", "bench") in edges
    assert {name for edge in edges for name in (edge[0], edge[2])} == set(STAGE_NAMES)
