"""The command line: one Invoke task per stage, and a few for the whole."""

import gc
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any, cast

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import Task, task

from pipeline.errors import PipelineError, machine_error

ROOT = Path(__file__).resolve().parent
INTERRUPTED = 130
BROKEN_PIPE = 141
HELP = {
    "profile": "profile from config.yaml, or auto",
    "set": "one setting, as in serve.port=8001; may be repeated",
    "attach": "measure the server at this URL, which someone else runs, instead of one of ours",
    "force": "run even if nothing changed",
    "why": "say why it would run, and do not run",
    "bundle": "take packages and model from this folder of `bundle`, without a network",
    "quiet": "no progress: only the result, and what went wrong",
    "json": "the result as JSON, for programs; errors too",
}
DEFAULTS: dict[str, Any] = {"profile": None, "set": [], "attach": None, "bundle": None}  # of the others: False
SETTINGS = ("profile", "set")
STAGE = (*SETTINGS, "attach", "force", "why")
Run = Callable[..., Any]


def finish(run: Run, as_json: bool = False) -> None:
    """Run `run` with the commands and print its answer; turn what a person can act on into one line and an exit code."""
    gc.disable()
    from pipeline import commands  # a fifth of a second that `--list` does without

    # What imports made lives to the end; walking it again and again, at exit too, takes another tenth of a second.
    gc.freeze()
    gc.enable()
    # A task that is asked to end cleans up, also one whose shell started it with interrupts ignored.
    for request in (signal.SIGINT, signal.SIGTERM):
        signal.signal(request, signal.default_int_handler)
    try:
        answer = run(commands)
        commands.give(answer, as_json)
    except BrokenPipeError:  # whoever read what is printed has gone, as in `./inv logs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Exit(code=BROKEN_PIPE) from None
    except (PipelineError, OSError) as caught:
        error = machine_error(caught) if isinstance(caught, OSError) else caught
        if error is None:
            raise
        hint = f"\n  → {error.hint}" if error.hint else ""
        raise failed(f"error: {error.message}{hint}", error.exit_code, error.message, error.hint, as_json) from caught
    except KeyboardInterrupt:
        raise failed("interrupted", INTERRUPTED, "interrupted", "", as_json) from None
    if answer.code:
        raise Exit(code=answer.code)


def failed(words: str, code: int, message: str, hint: str, as_json: bool) -> Exit:
    """Return the end of a command that has no answer, which a program is told of too."""
    if as_json:
        print(json.dumps({"exit_code": code, "error": message, "hint": hint}, indent=1), flush=True)
    return Exit(words, code=code)


def command(*shared: str, name: str | None = None, **own_help: str) -> Callable[[Run], "Task[Any]"]:
    """Return what makes a task of a function that takes the commands, and options of its own by keyword.

    `shared` names options that several tasks have: those of `pipeline.commands.options` come as the argument `options`.
    """

    def made(function: Run) -> "Task[Any]":
        takes = signature(function).parameters
        own = [parameter for key, parameter in takes.items() if key not in ("commands", "options")]
        common = [Parameter(key, Parameter.KEYWORD_ONLY, default=DEFAULTS.get(key, False)) for key in shared]
        first = [option for option in common if option.name not in ("quiet", "json")]

        def body(context: Context, **given: Any) -> None:
            asked = {key: given.pop(key) for key in shared}

            def run(commands: Any) -> Any:
                options = {"options": commands.options(**asked)} if "options" in takes else {}
                return function(commands, **options, **given)

            finish(run, asked.get("json", False))

        options = [*first, *own, *(option for option in common if option not in first)]
        body.__name__, body.__doc__ = function.__name__, function.__doc__
        body.__signature__ = Signature(  # type: ignore[attr-defined]  # where inspect, and so Invoke, looks first
            [Parameter("context", Parameter.POSITIONAL_OR_KEYWORD), *(one.replace(kind=Parameter.KEYWORD_ONLY) for one in options)]
        )
        helps = {key: HELP[key] for key in shared} | {key.replace("_", "-"): text for key, text in own_help.items()}
        called = name or function.__name__.replace("_", "-")
        return cast("Task[Any]", task(body, name=called, iterable=["set"] if "set" in shared else [], help=helps))

    return made


def stage_task(name: str, summary: str) -> "Task[Any]":
    """Return the task of a stage."""

    def run(commands: Any, options: Any) -> Any:
        return commands.run_stage(ROOT, name, options)

    run.__doc__ = summary
    return command(*STAGE, "quiet", "json", name=name)(run)


@command(*STAGE, "bundle", "quiet", "json", name="all")
def all_stages(commands: Any, options: Any) -> Any:
    """Run the whole chain and end with REPORT.md (--force measures again)."""
    return commands.run_all(ROOT, options)


@command(
    *SETTINGS,
    "quiet",
    python="version of the Python that runs the pipeline there, as in 3.12 (else the one that vLLM needs anyhow)",
    platform="of the other machine, as in manylinux_2_35_x86_64 (glibc 2.35)",
    output="folder, as seen from the project's",
    part_mib="in parts of at most so many MiB",
)
def bundle(
    commands: Any, options: Any, python: str | None = None, platform: str | None = None, output: str = "bundle", part_mib: str | None = None
) -> Any:
    """Make a folder with every package, the model and the pipeline, for `all --bundle` on a machine without a network."""
    return commands.bundle(ROOT, options, python, platform, output, part_mib)


@command(
    *STAGE,
    "quiet",
    "json",
    foreground="follow the log; Ctrl-C stops the server",
    watch="stay, and start the server again when it crashes; Ctrl-C stops it",
)
def serve(commands: Any, options: Any, foreground: bool = False, watch: bool = False) -> Any:
    """Start the server, prove that it is ours, and leave it running."""
    return commands.serve(ROOT, options, foreground, watch)


@command(*SETTINGS, "quiet")
def join(commands: Any, options: Any) -> Any:
    """Start this host's share of a model over several hosts (serve.nnodes), which `serve` on node 0 answers for."""
    return commands.join(ROOT, options)


@command(*SETTINGS)
def systemd_unit(commands: Any, options: Any) -> Any:
    """Print a systemd unit for this user that keeps the server running."""
    return commands.systemd_unit(ROOT, options)


@command(*STAGE, "quiet", "json", only="render what is on record, run nothing else")
def report(commands: Any, options: Any, only: bool = False) -> Any:
    """Render REPORT.md from whatever is on record."""
    return commands.report(ROOT, options, only)


@command(*SETTINGS, "quiet", "json")
def restart(commands: Any, options: Any) -> Any:
    """Stop the server, if there is one, and start it anew."""
    return commands.restart(ROOT, options)


@command("json")
def stop(commands: Any) -> Any:
    """Stop the server that we started."""
    return commands.stop(ROOT)


@command(*SETTINGS, "quiet", "json")
def determinism_remedy(commands: Any, options: Any) -> Any:
    """Measure agreement and speed without and with the setting that makes answers independent of the load."""
    return commands.determinism_remedy(ROOT, options)


@command(*STAGE, "quiet", "json", hours="hours of load in all, pauses left out (--force starts anew and keeps the old record beside)")
def soak(commands: Any, options: Any, hours: str = "1") -> Any:
    """Keep load on the server for hours and watch its memory; interrupted, the same command goes on (artifacts/soak.json)."""
    return commands.soak(ROOT, options, hours)


@command(*SETTINGS, "json")
def doctor(commands: Any, options: Any) -> Any:
    """Check everything that can be checked without starting: each line OK, WARN or FAIL, with the fix."""
    return commands.doctor(ROOT, options)


@command(*SETTINGS, "json", total_mib="plan for a GPU of so many MiB instead of this machine's")
def plan(commands: Any, options: Any, total_mib: str | None = None) -> Any:
    """Say which models and settings fit the GPU's memory, before anything is downloaded."""
    return commands.plan(ROOT, options, total_mib)


@command(*SETTINGS, "json")
def status(commands: Any, options: Any) -> Any:
    """Show the server and each stage's state."""
    return commands.status(ROOT, options)


@command(*SETTINGS, "json")
def gates(commands: Any, options: Any) -> Any:
    """Judge the gates on what is on record, and say where each value stands (runs nothing)."""
    return commands.gates(ROOT, options)


@command(*SETTINGS, "json")
def why(commands: Any, options: Any) -> Any:
    """Say which stages would run now, and why."""
    return commands.why(ROOT, options)


@command(
    *SETTINGS,
    issue="number of the issue that gets the comment",
    repo="owner/name on GitHub, instead of the git remote origin's",
    branch="branch that the report is committed to",
    dry_run="show what would be published, and publish nothing; so it is anyhow without a token or gh",
)
def publish(
    commands: Any, options: Any, issue: str | None = None, repo: str | None = None, branch: str | None = None, dry_run: bool = False
) -> Any:
    """Commit the report with its images to a branch on GitHub, and show it in one comment on an issue."""
    return commands.publish(ROOT, options, issue, repo, branch, dry_run)


@command(*SETTINGS, "json", show_key="print the API key, instead of how a shell finds it")
def env(commands: Any, options: Any, show_key: bool = False) -> Any:
    """Print the variables that clients of the server need: eval "$(./inv env)"."""
    return commands.env(ROOT, options, show_key)


@command(follow="go on until the server ends or Ctrl-C")
def logs(commands: Any, follow: bool = False) -> Any:
    """Print the server's log."""
    return commands.logs(ROOT, follow)


@command()
def graph(commands: Any) -> Any:
    """Print the stages and their edges as a mermaid flowchart."""
    return commands.graph()


@command("json")
def history(commands: Any) -> Any:
    """List the runs that are kept, newest first, with their verdicts."""
    return commands.history(ROOT)


@command(
    "json",
    first="the reference: latest, previous, an id or its beginning, a path, or a git ref (git:REF) that holds a report.json",
    second="the run to judge, named the same way",
    anyway="compare runs on different devices, models or vLLM versions too",
)
def compare(commands: Any, first: str, second: str, anyway: bool = False) -> Any:
    """Compare two runs figure by figure; exit code 1 when the second is worse beyond chance and noise."""
    return commands.compare(ROOT, first, second, anyway)


@command(*SETTINGS, "quiet", "json", starts="how often the server is started and measured")
def calibrate_noise(commands: Any, options: Any, starts: str = "3") -> Any:
    """Measure how far figures move from one start of the server to the next, for `compare` (artifacts/noise.json)."""
    return commands.calibrate_noise(ROOT, options, starts)


@command(
    *SETTINGS,
    "force",
    "quiet",
    "json",
    grid="axes in place of sweep.grid, as in 'profile=cpu,quick;serve.max_num_seqs=16,32'",
    dry_run="only show the cells, whether they fit, and how long they may take",
    ray_address="host:port of a Ray cluster's head, or auto; without it Ray runs on this machine alone",
)
def sweep(commands: Any, options: Any, grid: str | None = None, dry_run: bool = False, ray_address: str | None = None) -> Any:
    """Run the whole chain for each cell of a matrix of models and settings (artifacts/sweep/SWEEP.md)."""
    return commands.sweep(ROOT, options, grid, dry_run, ray_address)


@command(everything="also the kept runs, the server's environment, models and caches")
def clean(commands: Any, everything: bool = False) -> Any:
    """Remove records, logs and samples; the kept runs stay."""
    return commands.clean(ROOT, everything)


@task(help={"fast": "leave out the end-to-end tests on the real server"})
def test(context: Context, fast: bool = False) -> None:
    """Run the tests."""
    quick = [sys.executable, "-m", "pytest", "-q", "-n", "5", "--dist", "worksteal", "tests/unit", "tests/integration"]
    real = [sys.executable, "-m", "pytest", "-q", "tests/e2e"]
    run_each([quick] if fast else [quick, real])


@task
def lint(context: Context) -> None:
    """Run ruff, mypy and the import contracts."""
    import yaml  # `--list` does without

    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    run_each([shlex.split(hook["entry"]) for repo in config["repos"] for hook in repo["hooks"]])


def run_each(programs: list[list[str]]) -> None:
    """Run the programs in the project's folder; end with the first exit code that is not 0."""
    for program in programs:
        code = subprocess.run(program, cwd=ROOT).returncode
        if code:
            raise Exit(code=code)


def stage_summaries() -> dict[str, str]:
    """Return each stage's task name and summary: the first line of its file, as in "serve: the server, started"."""
    summaries = {}
    for path in (*sorted((ROOT / "pipeline" / "stages").glob("[a-z]*.py")), ROOT / "pipeline" / "report" / "stage.py"):
        with path.open(encoding="utf-8") as file:
            name, _, summary = file.readline().strip().strip('"').partition(": ")
        summaries[name] = summary
    return summaries


namespace = Collection(all_stages, doctor, restart, stop, status, gates, systemd_unit, why, logs, graph, clean, test, lint)
namespace.add_task(determinism_remedy)
namespace.add_task(soak)
namespace.add_task(bundle)
namespace.add_task(join)
namespace.add_task(plan)
namespace.add_task(publish)
namespace.add_task(env)
namespace.add_task(history)
namespace.add_task(compare)
namespace.add_task(calibrate_noise)
namespace.add_task(sweep)
for name, summary in stage_summaries().items():
    namespace.add_task({"serve": serve, "report": report}.get(name) or stage_task(name, summary))
