"""The command line: one Invoke task per stage, and a few for the whole."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable
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
}


def finish(command: Callable[[Any], int]) -> None:
    """Run `command` with the commands; turn what a person can act on into one line and an exit code."""
    gc.disable()
    from pipeline import commands  # a fifth of a second that `--list` does without

    # What imports made lives to the end; walking it again and again, at exit too, takes another tenth of a second.
    gc.freeze()
    gc.enable()
    # A task that is asked to end cleans up, also one whose shell started it with interrupts ignored.
    for request in (signal.SIGINT, signal.SIGTERM):
        signal.signal(request, signal.default_int_handler)
    try:
        code = command(commands)
    except BrokenPipeError:  # whoever read what is printed has gone, as in `./inv logs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Exit(code=BROKEN_PIPE) from None
    except (PipelineError, OSError) as caught:
        error = machine_error(caught) if isinstance(caught, OSError) else caught
        if error is None:
            raise
        hint = f"\n  → {error.hint}" if error.hint else ""
        raise Exit(f"error: {error.message}{hint}", code=error.exit_code) from caught
    except KeyboardInterrupt:
        raise Exit("interrupted", code=INTERRUPTED) from None
    if code:
        raise Exit(code=code)


def pipeline_task(name: str, summary: str, run: Callable[[Any, Any], int]) -> "Task[Any]":
    """Return a task with the options of a stage; `run` gets the commands and these options."""

    def body(
        context: Context,
        profile: str | None = None,
        set: list[str] = [],
        attach: str | None = None,
        force: bool = False,
        why: bool = False,
    ) -> None:
        finish(lambda commands: run(commands, commands.options(profile, set, attach, force, why)))

    body.__doc__ = summary
    return cast("Task[Any]", task(body, name=name, iterable=["set"], help=HELP))


def stage_task(name: str, summary: str) -> "Task[Any]":
    """Return the task of a stage."""
    return pipeline_task(name, summary, lambda commands, options: commands.run_stage(ROOT, name, options))


@task(name="all", iterable=["set"], help={**HELP, "bundle": "take packages and model from this folder of `bundle`, without a network"})
def all_stages(
    context: Context,
    profile: str | None = None,
    set: list[str] = [],
    attach: str | None = None,
    force: bool = False,
    why: bool = False,
    bundle: str | None = None,
) -> None:
    """Run the whole chain and end with REPORT.md (--force measures again)."""
    finish(lambda commands: commands.run_all(ROOT, commands.options(profile, set, attach, force, why, bundle)))


BUNDLE_HELP = {
    **{key: HELP[key] for key in ("profile", "set")},
    "python": "version of the Python that runs the pipeline there, as in 3.12 (else the one that vLLM needs anyhow)",
    "platform": "of the other machine, as in manylinux_2_35_x86_64 (glibc 2.35)",
    "output": "folder, as seen from the project's",
    "part-mib": "in parts of at most so many MiB",
}


@task(iterable=["set"], help=BUNDLE_HELP)
def bundle(
    context: Context,
    profile: str | None = None,
    set: list[str] = [],
    python: str | None = None,
    platform: str | None = None,
    output: str = "bundle",
    part_mib: str | None = None,
) -> None:
    """Make a folder with every package, the model and the pipeline, for `all --bundle` on a machine without a network."""
    finish(lambda commands: commands.bundle(ROOT, commands.Options(profile, tuple(set)), python, platform, output, part_mib))


SERVE_HELP = {
    **HELP,
    "foreground": "follow the log; Ctrl-C stops the server",
    "watch": "stay, and start the server again when it crashes; Ctrl-C stops it",
}


@task(name="serve", iterable=["set"], help=SERVE_HELP)
def serve(
    context: Context,
    profile: str | None = None,
    set: list[str] = [],
    attach: str | None = None,
    force: bool = False,
    why: bool = False,
    foreground: bool = False,
    watch: bool = False,
) -> None:
    """Start the server, prove that it is ours, and leave it running."""
    finish(lambda commands: commands.serve(ROOT, commands.options(profile, set, attach, force, why), foreground, watch))


@task(iterable=["set"], help={key: HELP[key] for key in ("profile", "set")})
def join(context: Context, profile: str | None = None, set: list[str] = []) -> None:
    """Start this host's share of a model over several hosts (serve.nnodes), which `serve` on node 0 answers for."""
    finish(lambda commands: commands.join(ROOT, commands.Options(profile, tuple(set))))


@task(name="systemd-unit", iterable=["set"], help={key: HELP[key] for key in ("profile", "set")})
def systemd_unit(context: Context, profile: str | None = None, set: list[str] = []) -> None:
    """Print a systemd unit for this user that keeps the server running."""
    finish(lambda commands: commands.systemd_unit(ROOT, commands.Options(profile, tuple(set))))


@task(name="report", iterable=["set"], help={**HELP, "only": "render what is on record, run nothing else"})
def report(
    context: Context,
    profile: str | None = None,
    set: list[str] = [],
    attach: str | None = None,
    force: bool = False,
    why: bool = False,
    only: bool = False,
) -> None:
    """Render REPORT.md from whatever is on record."""
    finish(lambda commands: commands.report(ROOT, commands.options(profile, set, attach, force, why), only))


@task(iterable=["set"], help={key: HELP[key] for key in ("profile", "set")})
def restart(context: Context, profile: str | None = None, set: list[str] = []) -> None:
    """Stop the server, if there is one, and start it anew."""
    finish(lambda commands: commands.restart(ROOT, commands.Options(profile, tuple(set))))


@task
def stop(context: Context) -> None:
    """Stop the server that we started."""
    finish(lambda commands: commands.stop(ROOT))


@task(name="determinism-remedy", iterable=["set"], help={key: HELP[key] for key in ("profile", "set")})
def determinism_remedy(context: Context, profile: str | None = None, set: list[str] = []) -> None:
    """Measure agreement and speed without and with the setting that makes answers independent of the load."""
    finish(lambda commands: commands.determinism_remedy(ROOT, commands.Options(profile, tuple(set))))


SOAK_HELP = {**HELP, "force": "start anew, and keep the old record beside", "hours": "hours of load in all, pauses left out"}


@task(iterable=["set"], help=SOAK_HELP)
def soak(
    context: Context,
    profile: str | None = None,
    set: list[str] = [],
    attach: str | None = None,
    force: bool = False,
    why: bool = False,
    hours: str = "1",
) -> None:
    """Keep load on the server for hours and watch its memory; interrupted, the same command goes on (artifacts/soak.json)."""
    finish(lambda commands: commands.soak(ROOT, commands.options(profile, set, attach, force, why), hours))


@task(iterable=["set"], help={key: HELP[key] for key in ("profile", "set")})
def doctor(context: Context, profile: str | None = None, set: list[str] = []) -> None:
    """Check everything that can be checked without starting: each line OK, WARN or FAIL, with the fix."""
    finish(lambda commands: commands.doctor(ROOT, commands.Options(profile, tuple(set))))


PLAN_HELP = {**{key: HELP[key] for key in ("profile", "set")}, "total-mib": "plan for a GPU of so many MiB instead of this machine's"}


@task(iterable=["set"], help=PLAN_HELP)
def plan(context: Context, profile: str | None = None, set: list[str] = [], total_mib: str | None = None) -> None:
    """Say which models and settings fit the GPU's memory, before anything is downloaded."""
    finish(lambda commands: commands.plan(ROOT, commands.Options(profile, tuple(set)), total_mib))


@task(iterable=["set"], help={key: HELP[key] for key in ("profile", "set")})
def status(context: Context, profile: str | None = None, set: list[str] = []) -> None:
    """Show the server and each stage's state."""
    finish(lambda commands: commands.status(ROOT, commands.Options(profile, tuple(set))))


@task(iterable=["set"], help={key: HELP[key] for key in ("profile", "set")})
def gates(context: Context, profile: str | None = None, set: list[str] = []) -> None:
    """Judge the gates on what is on record, and say where each value stands (runs nothing)."""
    finish(lambda commands: commands.gates(ROOT, commands.Options(profile, tuple(set))))


@task(iterable=["set"], help={key: HELP[key] for key in ("profile", "set")})
def why(context: Context, profile: str | None = None, set: list[str] = []) -> None:
    """Say which stages would run now, and why."""
    finish(lambda commands: commands.why(ROOT, commands.Options(profile, tuple(set))))


PUBLISH_HELP = {
    **{key: HELP[key] for key in ("profile", "set")},
    "issue": "number of the issue that gets the comment",
    "repo": "owner/name on GitHub, instead of the git remote origin's",
    "branch": "branch that the report is committed to",
    "dry-run": "show what would be published, and publish nothing; so it is anyhow without a token or gh",
}


@task(iterable=["set"], help=PUBLISH_HELP)
def publish(
    context: Context,
    profile: str | None = None,
    set: list[str] = [],
    issue: str | None = None,
    repo: str | None = None,
    branch: str | None = None,
    dry_run: bool = False,
) -> None:
    """Commit the report with its images to a branch on GitHub, and show it in one comment on an issue."""
    finish(lambda commands: commands.publish(ROOT, commands.Options(profile, tuple(set)), issue, repo, branch, dry_run))


ENV_HELP = {
    **{key: HELP[key] for key in ("profile", "set")},
    "show-key": "print the API key, instead of how a shell finds it",
    "json": "as JSON",
}


@task(iterable=["set"], help=ENV_HELP)
def env(context: Context, profile: str | None = None, set: list[str] = [], show_key: bool = False, json: bool = False) -> None:
    """Print the variables that clients of the server need: eval "$(./inv env)"."""
    finish(lambda commands: commands.env(ROOT, commands.Options(profile, tuple(set)), show_key, json))


@task(help={"follow": "go on until the server ends or Ctrl-C"})
def logs(context: Context, follow: bool = False) -> None:
    """Print the server's log."""
    finish(lambda commands: commands.logs(ROOT, follow))


@task
def graph(context: Context) -> None:
    """Print the stages and their edges as a mermaid flowchart."""
    finish(lambda commands: print(commands.graph()) or 0)


@task(help={"json": "as JSON, for programs"})
def history(context: Context, json: bool = False) -> None:
    """List the runs that are kept, newest first, with their verdicts."""
    finish(lambda commands: commands.history(ROOT, json))


COMPARE_HELP = {
    "first": "the reference: latest, previous, an id or its beginning, a path, or a git ref (git:REF) that holds a report.json",
    "second": "the run to judge, named the same way",
    "anyway": "compare runs on different devices, models or vLLM versions too",
    "json": "as JSON, for programs",
}


@task(positional=["first", "second"], help=COMPARE_HELP)
def compare(context: Context, first: str, second: str, anyway: bool = False, json: bool = False) -> None:
    """Compare two runs figure by figure; exit code 1 when the second is worse beyond chance and noise."""
    finish(lambda commands: commands.compare(ROOT, first, second, anyway, json))


NOISE_HELP = {**{key: HELP[key] for key in ("profile", "set")}, "starts": "how often the server is started and measured"}


@task(name="calibrate-noise", iterable=["set"], help=NOISE_HELP)
def calibrate_noise(context: Context, profile: str | None = None, set: list[str] = [], starts: str = "3") -> None:
    """Measure how far figures move from one start of the server to the next, for `compare` (artifacts/noise.json)."""
    finish(lambda commands: commands.calibrate_noise(ROOT, commands.Options(profile, tuple(set)), starts))


SWEEP_HELP = {
    **{key: HELP[key] for key in ("profile", "set")},
    "grid": "axes in place of sweep.grid, as in 'profile=cpu,quick;serve.max_num_seqs=16,32'",
    "dry-run": "only show the cells, whether they fit, and how long they may take",
    "ray-address": "host:port of a Ray cluster's head, or auto; without it Ray runs on this machine alone",
    "force": "run every cell again",
}


@task(iterable=["set"], help=SWEEP_HELP)
def sweep(
    context: Context,
    profile: str | None = None,
    set: list[str] = [],
    grid: str | None = None,
    dry_run: bool = False,
    ray_address: str | None = None,
    force: bool = False,
) -> None:
    """Run the whole chain for each cell of a matrix of models and settings (artifacts/sweep/SWEEP.md)."""
    finish(lambda commands: commands.sweep(ROOT, commands.Options(profile, tuple(set), force), grid, dry_run, ray_address))


@task(help={"everything": "also the kept runs, the server's environment, models and caches"})
def clean(context: Context, everything: bool = False) -> None:
    """Remove records, logs and samples; the kept runs stay."""
    finish(lambda commands: commands.clean(ROOT, everything))


@task(help={"fast": "leave out the end-to-end tests on the real server"})
def test(context: Context, fast: bool = False) -> None:
    """Run the tests."""
    quick = [sys.executable, "-m", "pytest", "-q", "-n", "5", "--dist", "worksteal", "tests/unit", "tests/integration"]
    real = [sys.executable, "-m", "pytest", "-q", "tests/e2e"]
    finish(lambda _: run_each([quick] if fast else [quick, real]))


@task
def lint(context: Context) -> None:
    """Run ruff, mypy and the import contracts."""
    programs = [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["lint-imports", "--no-cache"]]
    finish(lambda _: run_each([[str(Path(sys.executable).with_name(name)), *arguments] for name, *arguments in programs]))


def run_each(programs: list[list[str]]) -> int:
    """Run the programs in the project's folder; return the first exit code that is not 0."""
    for program in programs:
        code = subprocess.run(program, cwd=ROOT).returncode
        if code:
            return code
    return 0


def stage_summaries() -> dict[str, str]:
    """Return each stage's task name and summary: the first line of its file, as in "serve: the server, started"."""
    summaries = {}
    for path in sorted((ROOT / "pipeline" / "stages").glob("[a-z]*.py")):
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
