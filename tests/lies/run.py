"""Measuring a lie and its twin with small settings, and judging both on the gate that the lie is after."""

import inspect
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from pipeline.client.control import Control
from pipeline.config.attach import AttachConfig
from pipeline.config.gates import Gate
from pipeline.config.requests import RequestsConfig
from pipeline.config.schema import ModelConfig, RouterConfig
from pipeline.engine.record import Failure, Measurement
from pipeline.engine.workspace import Workspace
from pipeline.errors import PipelineError
from pipeline.load.calibration import Calibration, calibrate
from pipeline.measure.figures import Figure
from pipeline.measure.verdicts import Verdict
from pipeline.report.gates import JudgedGate, judge_all
from pipeline.server.loads import LOADS_FILE
from pipeline.stages import bench, measure_vram, test_determinism, test_router
from pipeline.stages.serve import Server, attach_server
from pipeline.terminal import Silent
from pipeline.vllm.identity import is_real, serves
from tests.builders.house import outcomes_of
from tests.builders.records import outcome
from tests.builders.stages import BENCH, DETERMINISM, LIMITS, ROUTER, SCHEMA, VRAM, forgive_the_machine, write_samples
from tests.fakes.environment import machine, simulated_server
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import VERSION
from tests.lies.front import Front
from tests.lies.lie import Lie, Situation
from tests.lies.speakers import CASES, ROUTES, utterance

PROMPTS = 20
SAMPLE_EVERY_S = 1.0


@dataclass(frozen=True)
class Told:
    """What the report says of a gate."""

    verdict: Verdict
    reason: str
    figure: Figure | None

    @property
    def value(self) -> str:
        figure = self.figure
        return "" if figure is None or figure.value is None else f"{figure.value:.4g} {figure.unit}".strip()


@dataclass(frozen=True)
class Result:
    """What the report says of a lie and of its twin."""

    lie: Lie
    told: Told
    twin: Told

    @property
    def caught(self) -> bool:
        """Tell whether the verdict is one of those allowed, and a figure that stands is near the truth."""
        return self.told.verdict in self.lie.allowed and self.near_truth

    @property
    def near_truth(self) -> bool:
        figure, truth = self.told.figure, self.lie.truth
        if truth is None or figure is None or figure.valid is None:
            return True
        return truth[0] <= figure.valid <= truth[1]

    @property
    def flagged(self) -> bool:
        """Tell whether the honest twin got anything but PASS."""
        return self.twin.verdict != "PASS"


def examine(lie: Lie) -> Result:
    """Measure a lie and its twin."""
    return Result(lie, told_of(lie), told_of_twin(lie))


def told_of(lie: Lie) -> Told:
    """Return what the report says of the lie."""
    return judge(lie.stage, lie.gate, measured(lie.stage, lie.server, frozen(lie.settings)), lie.margin)


def told_of_twin(lie: Lie) -> Told:
    """Return what the report says of its honest twin."""
    twin = lie.twin
    outcome_of_twin = measured(lie.stage, twin.server, frozen({**lie.settings, **twin.settings}))
    return judge(lie.stage, twin.gate or lie.gate, outcome_of_twin, twin.margin or lie.margin)


def judge(stage: str, gate: Gate, result: Measurement | Failure, margin: float | None) -> Told:
    """Return the verdict on the gate; with a `margin`, its target is the figure less so much."""
    if margin is not None and isinstance(result, Measurement):
        value = result.figures[gate.metric.partition(".")[2]].value or 0.0
        gate = gate.model_copy(update={"target": value * (1 - margin)})
    (row,) = judge_all({"the gate": gate}, outcomes_of({stage: outcome(stage, result)}))
    return told(row)


def told(row: JudgedGate) -> Told:
    return Told(row.judgement.verdict, str(row.judgement.reason), row.figure)


def frozen(settings: Mapping[str, Any]) -> str:
    """Return the settings as a key of the cache."""
    return json.dumps(settings, sort_keys=True)


@cache
def measured(stage: str, situation: Situation, settings_json: str) -> Measurement | Failure:
    """Return the record of a stage, or its failure; the same situation with the same settings is measured once."""
    settings = json.loads(settings_json)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        workspace = make_workspace(Path(folder), situation)
        forgive_the_machine(stack.enter_context(pytest.MonkeyPatch.context()))
        stack.enter_context(patch.object(bench, "calibrate", calibrate if settings.pop("calibrate", False) else calibrated))
        stack.enter_context(patch.object(bench, "contention", lambda _: []))
        fake = stack.enter_context(FakeVllm(situation.script()))
        base_url = fake.base_url
        if situation.twist is not None:
            base_url = stack.enter_context(Front(fake, situation.twist())).base_url
        stack.enter_context(situation.around())
        try:
            server = server_of(situation, fake, base_url, workspace)
            results = [run_stage(stage, settings, server, workspace) for _visit in range(situation.visits)]
        except PipelineError as error:
            return Failure(kind=error.kind, message=error.message, hint=error.hint)
    return results[-1]


def calibrated(concurrencies: Sequence[int], *_: object) -> tuple[list[Calibration], float]:
    """Return the calibrations of a client that is good enough, without the seconds that they take."""
    made = [Calibration(concurrency=number, chunks=9, delay_ms_p50=0.1, delay_ms_p95=0.1, cpu_us_per_chunk=10) for number in concurrencies]
    return made, 1e6


def server_of(situation: Situation, fake: FakeVllm, base_url: str, workspace: Workspace) -> Server:
    """Return the record of the server, real as far as its identity is proven; ServerError where it cannot be used."""
    if situation.identity == "attached":
        return attach_server(AttachConfig(url=base_url, warm_up=False), RequestsConfig(), ModelConfig(name=fake.model), workspace)
    server = simulated_server(fake, workspace)
    real = True
    if situation.identity == "started":
        real = is_real(serves(fake.model, Path(fake.folder), fake.max_model_len, VERSION, Control(base_url)))
    return server.model_copy(update={"real": real, "handle": server.handle.model_copy(update={"base_url": base_url})})


def run_stage(stage: str, settings: Mapping[str, Any], server: Server, workspace: Workspace) -> Measurement:
    """Run a stage, which gets what its parameters ask for, as from the engine."""
    changes: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    limits = LIMITS.model_copy(update=changes.pop("limits", {}))
    router = ROUTER.model_copy(update={"cases": CASES, "max_tokens": 64})
    stages: dict[str, tuple[Callable[..., Measurement], Any]] = {
        "bench": (bench.bench, BENCH),
        "test-router": (test_router.test_router, router),
        "test-determinism": (test_determinism.test_determinism, DETERMINISM),
        "measure-vram": (measure_vram.measure_vram, VRAM),
    }
    function, base = stages[stage]
    parts = {
        "settings": base.model_copy(update=changes),
        "router": RouterConfig(suite="suite"),
        "limits": limits,
        "machine": machine(),
        "server": server,
        "workspace": workspace,
    }
    return function(**{name: parts[name] for name in inspect.signature(function).parameters})


def make_workspace(root: Path, situation: Situation) -> Workspace:
    """Return a project folder with a suite, prompts, an empty log, and the samples and the load of the server's memory."""
    workspace = Workspace(root, Silent())
    (root / "server.log").write_text("", encoding="utf-8")
    (root / "prompts.txt").write_text("".join(f"Question number {number}?\n" for number in range(PROMPTS)), encoding="utf-8")
    suite = root / "suite"
    suite.mkdir()
    head = "name: tiny\nlanguage: en\ndescription: A test.\nprompt: prompt.j2\nschema: schema.json\ncases: cases.jsonl\n"
    (suite / "suite.yaml").write_text(head, encoding="utf-8")
    (suite / "prompt.j2").write_text("Answer with JSON.", encoding="utf-8")
    routes = {"enum": sorted(set(ROUTES))}
    properties: dict[str, Any] = SCHEMA["properties"]  # type: ignore[assignment]  # one of the values of several types
    schema = {**SCHEMA, "properties": {**properties, "route": routes}}
    (suite / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    golden = {"calendar_intent": "none", "slots": {}}
    cases = [{"id": f"c{at}", "text": utterance(at), "route": ROUTES[at % len(ROUTES)], **golden} for at in range(CASES)]
    (suite / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")
    if situation.host_mib is None:
        write_samples(workspace)
    else:
        write_memory(root, situation.host_mib, situation.load_s)
    return workspace


def write_memory(root: Path, host_mib: Callable[[float], float], load_s: float) -> None:
    """Write the sampler's lines of a load that ended a moment ago, and what the load's senders wrote of it."""
    begin = time.monotonic() - load_s
    lines = [{"t": begin - 1}]
    for number in range(round(load_s / SAMPLE_EVERY_S) + 60):
        at = number * SAMPLE_EVERY_S
        lines.append({"t": begin + at, "processes": 2, "rss_mib": host_mib(at), "pss_mib": host_mib(at)})
    (root / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    load = [{"who": "bench", "begin": begin, "end": begin + load_s}, {"who": "bench", "at": begin, "preemptions": 0}]
    (root / LOADS_FILE).write_text("".join(json.dumps(line) + "\n" for line in load), encoding="utf-8")
