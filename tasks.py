"""The command line: for each command its function in pipeline/commands and its options."""

import gc
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, cast

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import Task, task

if TYPE_CHECKING:
    from pipeline.terminal import Output

    Command = Task[Callable[..., None]]

ROOT = Path(__file__).resolve().parent
INTERRUPTED = 130
BROKEN_PIPE = 141
# Invoke prints lists and help itself: a closed pipe, as in `./inv --list | head`, must end it without a traceback.
if "invoke" in Path(sys.argv[0]).parts[-2:]:  # not if this file is only imported
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


@dataclass(frozen=True)
class Option:
    """An option's help and default: None for one with a value, False for a flag, Parameter.empty for a required word."""

    help: str
    default: object = None


def flag(text: str) -> Option:
    """Return an option without a value."""
    return Option(text, False)


SHARED = {
    "profile": Option("profile from config.yaml, or auto"),
    "set": Option("one setting, as in serve.port=8001; may be repeated", []),
    "attach": Option("measure the server at this URL, which someone else runs, instead of one of ours"),
    "force": flag("run even if nothing changed"),
    "why": flag("explain why it would run, without running it"),
    "bundle": Option("take packages and model from this folder of `bundle`, without a network"),
    "quiet": flag("show no progress, only the result and what went wrong"),
    "json": flag("print the result as JSON, for programs; errors too"),
}
SETTINGS = ("profile", "set")
STAGE = (*SETTINGS, "attach", "force", "why")
LAST = ("quiet", "json")


def command(
    target: str, summary: str, *shared: str, name: str = "", constants: Mapping[str, str] | None = None, **own: Option
) -> "Command":
    """Return the task that calls `target`, "module:function" of pipeline/commands.

    `shared` names options of SHARED. The function gets the project's folder, `Options` if settings are shared, and by keyword its
    `own` options and `constants`.
    """
    first = {key: SHARED[key] for key in shared if key not in LAST}
    options = first | own | {key: SHARED[key] for key in shared if key in LAST}

    def body(context: Context, **values: object) -> None:
        common = {key: values.pop(key) for key in shared}
        run(target, common if "set" in common else None, {**values, **(constants or {})}, as_json=bool(common.get("json")))

    body.__doc__ = summary
    parameters = [Parameter(key, Parameter.KEYWORD_ONLY, default=option.default) for key, option in options.items()]
    body.__signature__ = Signature(  # type: ignore[attr-defined]  # where inspect, and so Invoke, looks first
        [Parameter("context", Parameter.POSITIONAL_OR_KEYWORD), *parameters]
    )
    helps = {key.replace("_", "-"): option.help for key, option in options.items()}
    task_name = name or target.partition(":")[2].replace("_", "-")
    return cast("Command", task(body, name=task_name, iterable=["set"] if "set" in shared else [], help=helps))


def run(target: str, common: Mapping[str, object] | None, values: Mapping[str, object], as_json: bool) -> None:
    """Call the function and print its output; turn errors that a person can act on into one line and an exit code."""
    module, _, name = target.partition(":")
    gc.disable()
    function = getattr(import_module(f"pipeline.commands.{module}"), name)  # takes 0.2 s, which `--list` avoids
    options = import_module("pipeline.commands.session").options
    from pipeline.errors import PipelineError, machine_error
    from pipeline.terminal import give

    # Imported objects live to the end; collecting them repeatedly, at exit too, would take another 0.1 s.
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # so that a closed connection raises an error
    # Either signal lets a command clean up, also if its shell started it with interrupts ignored.
    for end_signal in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end_signal, signal.default_int_handler)
    try:
        output: Output = function(ROOT, *([options(**common)] if common is not None else []), **values)
        give(output, as_json)
    except BrokenPipeError:  # the reader of the output has gone, as in `./inv logs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Exit(code=BROKEN_PIPE) from None
    except (PipelineError, OSError) as caught:
        error = machine_error(caught) if isinstance(caught, OSError) else caught
        if error is None:
            raise
        raise failure(error.message, error.hint, error.exit_code, as_json) from caught
    except KeyboardInterrupt:
        raise failure("interrupted", "", INTERRUPTED, as_json) from None
    if output.code:
        raise Exit(code=output.code)


def failure(message: str, hint: str, code: int, as_json: bool) -> Exit:
    """Return the exit of a command that has no output; with `as_json`, print the error for a program."""
    if as_json:
        print(json.dumps({"exit_code": code, "error": message, "hint": hint}, indent=1), flush=True)
    prefix = "" if code == INTERRUPTED else "error: "
    return Exit(f"{prefix}{message}" + (f"\n  → {hint}" if hint else ""), code=code)


def stages() -> dict[str, str]:
    """Return each stage's task name and summary: the first line of its file, as in "serve: the server, started"."""
    summaries = {}
    for path in (*sorted((ROOT / "pipeline" / "stages").glob("[a-z]*.py")), ROOT / "pipeline" / "report" / "stage.py"):
        with path.open(encoding="utf-8") as file:
            name, is_stage, summary = file.readline().strip().strip('"').partition(": ")
        if is_stage:
            summaries[name] = summary
    return summaries


def stage_commands() -> "list[Command]":
    """Return a command for each stage that has none in COMMANDS."""
    return [
        command("chain:run_stage", summary, *STAGE, *LAST, name=name, constants={"name": name})
        for name, summary in stages().items()
        if name not in {own.name for own in COMMANDS}
    ]


COMMANDS = [
    command("report:run_all", "Run the whole chain and end with REPORT.md (--force measures again).", *STAGE, "bundle", *LAST, name="all"),
    command(
        "server:serve",
        "Start the server, prove that it is ours, and leave it running.",
        *(*STAGE, *LAST),
        foreground=flag("follow the log; Ctrl-C stops the server"),
        watch=flag("stay, and start the server again when it crashes; Ctrl-C stops it"),
    ),
    command(
        "report:render",
        "Render REPORT.md from whatever is on record.",
        *(*STAGE, *LAST),
        name="report",
        only=flag("render what is on record, run nothing else"),
    ),
    command("chain:status", "Show the server and each stage's state.", *SETTINGS, "json"),
    command("chain:why", "Explain which stages would run now, and why.", *SETTINGS, "json"),
    command("chain:graph", "Print the stages and their edges as a mermaid flowchart."),
    command("report:gates", "Judge the gates on what is on record, and say where each value is defined (runs nothing).", *SETTINGS, "json"),
    command("server:restart", "Stop the server, if there is one, and start it anew.", *SETTINGS, *LAST),
    command("server:stop", "Stop the server that we started.", "json"),
    command(
        "server:join",
        "Start this host's share of a model over several hosts (serve.nnodes); `serve` on node 0 answers for it.",
        *SETTINGS,
        "quiet",
    ),
    command("server:logs", "Print the server's log.", follow=flag("go on until the server ends or Ctrl-C")),
    command("server:systemd_unit", "Print a systemd unit for this user that keeps the server running.", *SETTINGS),
    command(
        "env:env",
        'Print the variables that clients of the server need: eval "$(./inv env)".',
        *(*SETTINGS, "json"),
        show_key=flag("print the API key, instead of how a shell finds it"),
    ),
    command(
        "doctor:doctor",
        "Check everything that can be checked without starting: each line OK, WARN or FAIL, with the fix.",
        *SETTINGS,
        "json",
    ),
    command(
        "plan:plan",
        "Say which models and settings fit the GPU's memory, before anything is downloaded.",
        *(*SETTINGS, "json"),
        total_mib=Option("plan for a GPU with this much memory, in MiB, instead of this machine's"),
    ),
    command(
        "clean:clean",
        "Remove records, logs and samples; the kept runs stay.",
        everything=flag("also the kept runs, the server's environment, models and caches"),
    ),
    command("runs:history", "List the runs that are kept, newest first, with their verdicts.", "json"),
    command(
        "runs:compare",
        "Compare two runs figure by figure; exit code 1 when the second is worse beyond chance and noise.",
        *(*SETTINGS, "json"),
        first=Option(
            "the reference: latest, previous, an id or its beginning, a path, or a git ref (git:REF) that holds a report.json",
            Parameter.empty,
        ),
        second=Option("the run to judge, named the same way", Parameter.empty),
        only=Option("figures that decide, as in bench.ttft_ms_p95,bench.decode_tok_s_p50, in place of compare.figures"),
        anyway=flag("compare runs on different devices, models or vLLM versions too"),
    ),
    command(
        "experiments:determinism_remedy",
        "Measure agreement and speed without and with the setting that makes answers independent of the load.",
        *(*SETTINGS, *LAST),
    ),
    command(
        "experiments:soak",
        "Keep load on the server for hours and watch its memory; interrupted, the same command goes on (artifacts/soak.json).",
        *(*STAGE, *LAST),
        hours=Option("hours of load in all, pauses left out (--force starts anew and keeps the old record beside)", "1"),
    ),
    command(
        "experiments:calibrate_noise",
        "Measure how far figures move from one start of the server to the next, for `compare` (artifacts/noise.json).",
        *(*SETTINGS, *LAST),
        starts=Option("how often the server is started and measured", "5"),
    ),
    command(
        "sweep:sweep",
        "Run the whole chain for each cell of a matrix of models and settings (artifacts/sweep/SWEEP.md).",
        *(*SETTINGS, "force", *LAST),
        grid=Option("axes in place of sweep.grid, as in 'profile=cpu,quick;serve.max_num_seqs=16,32'"),
        dry_run=flag("only show the cells, whether they fit, and how long they may take"),
        ray_address=Option("host:port of a Ray cluster's head, or auto; without it Ray runs on this machine alone"),
    ),
    command(
        "bundle:bundle",
        "Make a folder with every package, the model and the pipeline, for `all --bundle` on a machine without a network.",
        *(*SETTINGS, "quiet"),
        python=Option("version of the Python that runs the pipeline there, as in 3.12 (default: the one that vLLM needs)"),
        platform=Option("of the other machine, as in manylinux_2_35_x86_64 (glibc 2.35)"),
        output=Option("folder, as seen from the project's", "bundle"),
        part_mib=Option("split it into parts of at most this size, in MiB"),
    ),
    command(
        "publish:publish",
        "Commit the report with its images to a branch on GitHub, and show it in one comment on an issue.",
        *SETTINGS,
        issue=Option("number of the issue that gets the comment"),
        repo=Option("owner/name on GitHub, instead of the git remote origin's"),
        branch=Option("branch that the report is committed to"),
        dry_run=flag("show what would be published, without publishing it; this is the default without a token or gh"),
    ),
]


@task(help={"fast": "run only the unit tests, which need no server"})
def test(context: Context, fast: bool = False) -> None:
    """Run the tests."""
    pytest = [sys.executable, "-m", "pytest", "-q"]
    side_by_side = [*pytest, "-n", "5", "--dist", "worksteal", "tests/unit"]
    run_each([side_by_side] if fast else [[*side_by_side, "tests/integration"], [*pytest, "tests/e2e"]])


@task
def lint(context: Context) -> None:
    """Run ruff, mypy and the import contracts."""
    import yaml  # not needed by `--list`

    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    run_each([shlex.split(hook["entry"]) for repo in config["repos"] for hook in repo["hooks"]])


def run_each(programs: list[list[str]]) -> None:
    """Run the programs in the project's folder; stop at the first exit code that is not 0."""
    for program in programs:
        code = subprocess.run(program, cwd=ROOT).returncode
        if code:
            raise Exit(code=code)


namespace = Collection(*COMMANDS, *stage_commands(), test, lint)
