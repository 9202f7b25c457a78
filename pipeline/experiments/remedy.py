"""determinism-remedy: determinism and speed of a server without the remedy and of one with it, side by side."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pipeline.config.schema import BenchConfig, ServeConfig
from pipeline.engine.record import Failure, Store, write_atomic
from pipeline.engine.workspace import Workspace
from pipeline.errors import MeaninglessError, MeasureError, PipelineError, ServerError
from pipeline.experiments.inputs import ServerInputs
from pipeline.load.calibration import Calibration, calibrate
from pipeline.load.levels import judged_valid, level_of
from pipeline.load.phases import LoadPhases, processes_of
from pipeline.load.stamps import NO_GAP, per_token_ms
from pipeline.measure.figures import Figure, not_measured
from pipeline.measure.statistics import percentile_figure
from pipeline.message import _
from pipeline.report.cells import Cell
from pipeline.report.formats.plain import Plain
from pipeline.report.sections.remedy import remedy_table
from pipeline.server import state
from pipeline.server.start import clear_old, relaunch
from pipeline.server.state import Launch
from pipeline.server.stop import STOP_NOTE, stop_current, stop_server
from pipeline.server.watch import watched
from pipeline.stages.serve import Server, device_of
from pipeline.stages.test_determinism import ALONE, REMEDY_NOTE, Arm, Remedied, Side, all_arms
from pipeline.suite import load_prompts, load_suite
from pipeline.terminal import OutputPart, TextTable
from pipeline.vllm.remedies import NoRemedy, Remedy, remedy_for
from pipeline.vllm.settle import settle

PROVEN = ("D1", "D2", "D3", "D4")
TOK_S = "tok/s"
Client = tuple[list[Calibration], float]  # the result of `calibrate`


def remedy_of(inputs: ServerInputs, inherited: Mapping[str, str]) -> Remedy:
    """Return the remedy to prove; PipelineError if there is none, or if a comparison would be meaningless."""
    remedy = remedy_for(inputs.installation.distribution, inputs.machine.gpus)
    if isinstance(remedy, NoRemedy):
        raise PipelineError(f"no remedy is known for this device: {remedy.reason}")
    if remedy.variable in inherited:
        raise PipelineError(f"{remedy.variable} is set in the shell, so no server would be without it", f"unset {remedy.variable}")
    if inputs.config.serve.load_format == "dummy":
        raise MeaninglessError(_("the weights are random (serve.load_format: dummy), so the answers are noise"))
    load_prompts(inputs.workspace.root / inputs.config.determinism.prompts)  # fail now, not after two starts
    if inputs.config.determinism.constrained:
        load_suite(inputs.workspace.root / inputs.config.router.suite)
    return remedy


def prove(remedy: Remedy, inputs: ServerInputs) -> Remedied:
    """Measure a server without the remedy and one with it, with settings that are otherwise equal."""
    installation, machine = inputs.installation, inputs.machine
    settings = settle(inputs.config.serve, machine.host, installation.distribution, installation.versions, machine.gpus)
    bare = {name: value for name, value in settings.env.items() if name != remedy.variable}
    inputs.workspace.say("the client itself, against a stub")
    client = calibrate(sorted({1, inputs.concurrency}), inputs.config.bench.client_delay_ms)
    sides = []
    for words, env in ((f"without {remedy.variable}", bare), (f"with {remedy}", {**bare, remedy.variable: remedy.value})):
        inputs.workspace.say(f"measuring a server {words}")
        sides.append(measured(settings.model_copy(update={"env": env}), client, inputs))
    return Remedied(
        variable=remedy.variable,
        value=remedy.value,
        why=remedy.why,
        in_settings=remedy.in_force(settings.env),
        model=inputs.model.name,
        vllm=inputs.installation.vllm,
        distribution=inputs.installation.distribution,
        device=device_of(inputs.machine, inputs.installation),
        seed=inputs.config.determinism.seed,
        concurrency=inputs.concurrency,
        without=sides[0],
        remedied=sides[1],
    )


def measured(settings: ServeConfig, client: Client, inputs: ServerInputs) -> Side:
    """Measure a server with these settings and stop it; a failure is part of the result."""
    workspace = inputs.workspace
    results: dict[str, Any] = {name: not_measured(TOK_S, "no server") for name in ("decode_tok_s", "system_tok_s")}
    launch_ids: list[str] = []
    errors: list[PipelineError] = []

    def restart(server: Server, workspace: Workspace) -> Server:
        """Restart the server for arm D4 from its launch: `serve`'s record describes another server."""
        launch = state.current(workspace, server.handle.launch_id)
        assert launch is not None, "nobody else stops it while we hold the lock"
        workspace.say(f"restarting the server (pid {launch.pid})")
        stop_server(launch, workspace)
        try:
            restarted = server.model_copy(update=relaunch(launch, server.vllm, workspace)._asdict())
        except PipelineError as error:  # the test goes on without the arm
            errors.append(error)
            raise
        launch_ids.append(restarted.handle.launch_id)
        return restarted

    try:
        server = inputs.serve(settings)
        launch_ids.append(server.handle.launch_id)
        results |= {"simulated": not server.real, "attempts": server.attempts}
        results |= speed(inputs.config.bench, server, client, workspace)
        determinism = all_arms(inputs.config.determinism, inputs.config.router, server, workspace, restart)
        results["arms"] = [Arm(arm="D1", what=ALONE, prompts=determinism.prompts), *determinism.arms]
        if doubt := determinism.figures["identical"].invalid:
            errors.append(MeasureError(doubt))
    except PipelineError as error:
        errors.append(error)
    finally:
        stop_current(workspace)
    if errors:
        results["failure"] = failure_of(errors[0], workspace)
    return Side(environment=settings.env, launch_ids=launch_ids, **results)


def failure_of(error: PipelineError, workspace: Workspace) -> Failure:
    """Return the error in the form that records store."""
    return Failure(kind=error.kind, message=error.message, hint=error.hint, log=workspace.relative(error.log) if error.log else None)


def speed(settings: BenchConfig, server: Server, client: Client, workspace: Workspace) -> dict[str, Any]:
    """Return decode throughput at concurrency 1, system throughput at the highest concurrency, and the errors, measured as in `bench`."""
    calibrations, ceiling = client
    alone, full = calibrations[0], calibrations[-1]
    with watched(server.handle, workspace) as target:
        phases = LoadPhases(server.model, target, settings, workspace, {entry.concurrency: processes_of(entry) for entry in calibrations})
        phases.closed_loop("warm-up", phases.new_numbers(1), settings.output_tokens, 1)
        decode = phases.closed_loop("decode", phases.new_numbers(settings.decode_requests), settings.output_tokens, 1)
        loop = phases.level(full.concurrency)
    rates = [1000 / value for value in per_token_ms(decode.answers) if value > 0]
    filled = level_of(full, loop, settings.client_delay_ms, ceiling)
    return {
        **judged_valid(
            level_of(alone, decode, settings.client_delay_ms, ceiling), {"decode_tok_s": percentile_figure(rates, 0.5, TOK_S, NO_GAP)}
        ),
        **judged_valid(filled, {"system_tok_s": Figure(value=filled.throughput_tok_s, unit=TOK_S, n=len(loop.good))}),
        "errors": [answer.error for batch in (decode, loop) for answer in batch.answers if not answer.ok],
    }


def verdict(proof: Remedied) -> int:
    """Return 2 when a side failed or D3 was not measured, 0 when every answer of arms D1 to D4 agrees with the remedy, else 1."""
    sides = (proof.without, proof.remedied)
    if any(side.failure or any(arm.reason for arm in side.arms if arm.arm == "D3") for side in sides):
        return 2
    return int(any(arm.agreeing < arm.runs for arm in proof.remedied.arms if arm.arm in PROVEN))


def lines(proof: Remedied) -> list[OutputPart]:
    """Return the proof for the terminal: the report's table, then what went wrong."""
    table = remedy_table(proof)
    plain, body = Plain(), list[list[Cell]]([list(table.header), *table.rows])
    header, *rows = ([plain.text(cell).replace("`", "") for cell in line] for line in body)
    return [
        f"remedy {proof.variable}={proof.value}: {proof.why}",
        *(["serve.env has it already; both sides were measured all the same"] if proof.in_settings else []),
        TextTable(header, rows),
        *(
            failure_line(words, side.failure)
            for words, side in zip(table.header[1:], (proof.without, proof.remedied), strict=True)
            if side.failure
        ),
        f"artifacts/{REMEDY_NOTE}.json; `./inv report --only` shows it too",
    ]


def failure_line(words: str, failure: Failure) -> str:
    """Return what went wrong on a side, with the hint."""
    hint = f"\n  → {failure.hint}" if failure.hint else ""
    return f"not measured {words.replace('`', '')}: {failure.message}{hint}"


@contextmanager
def set_aside(version: str, workspace: Workspace) -> Iterator[None]:
    """Stop the running server; afterwards stop what was started meanwhile and restart the server that `serve` had left running."""
    before = state.read(workspace)
    returns = before is not None and before.stays and state.is_running(before)
    try:
        clear_old(workspace)
        with keep_stop_note(workspace):
            yield
    finally:
        stop_current(workspace)
        if returns and before is not None:
            bring_back(before, version, workspace)


@contextmanager
def keep_stop_note(workspace: Workspace) -> Iterator[None]:
    """Preserve the note of the last stop, which the report reads together with the records of the measured server."""
    path = Store(workspace.artifacts).path(STOP_NOTE)
    note = path.read_bytes() if path.exists() else None
    try:
        yield
    finally:
        stop_current(workspace)
        if note is None:
            path.unlink(missing_ok=True)
        else:
            write_atomic(path, note)


def bring_back(before: Launch, version: str, workspace: Workspace) -> None:
    """Restart the server that ran before, with the same settings, and record its new handle; ServerError if it does not start."""
    workspace.say(f"starting again the server that was up before, on port {before.port}; Ctrl-C leaves it stopped")
    store = Store(workspace.artifacts)
    try:
        ready = relaunch(before, version, workspace)
        outcome = store.outcome("serve", Server)
        if outcome.data is not None and outcome.envelope is not None and outcome.data.handle.launch_id == before.id:
            because, started, took_s = outcome.envelope.because, outcome.envelope.started, outcome.envelope.duration_s
            store.write("serve", because, started, took_s, outcome.data.model_copy(update=ready._asdict()))
    except PipelineError as error:
        message = f"the server that was up before did not come back: {error.message}"
        raise ServerError(message, "start it with `./inv serve`", error.log) from error
    except KeyboardInterrupt:
        workspace.say("the server that was up before is stopped; `./inv serve` starts it")
        raise
