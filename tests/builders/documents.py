"""Documents of runs as tests want them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from prometheus_client.openmetrics import parser

from pipeline.config.gates import Gate
from pipeline.measure.figures import Figure
from pipeline.measure.verdicts import Judgement
from pipeline.report.formats.document import Document, Environment, StageOutcome, reported_figure, reported_gate
from pipeline.report.gates import JudgedGate
from pipeline.report.headline import WORDS

families: Any = parser.text_string_to_metric_families  # it has no types
WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def figure(value: float | None, unit: str = "ms", n: int = 64, low: float | None = None, high: float | None = None) -> Figure:
    reason = "no driver" if value is None else ""
    return Figure(value=value, unit=unit, n=n, low=low, high=high, reason=reason)


def gate(
    name: str = "ttft", verdict: Any = "PASS", reason: str = "", *, required: bool = True, waived: bool = False, **settings: Any
) -> JudgedGate:
    asked = {"label": "First token", "metric": "bench.ttft_ms_p95", "comparator": "<", "target": 500, "unit": "ms", **settings}
    of = None if verdict == "NOT_MEASURED" else figure(40.0, high=45.0)
    waiver = "waived until 2027-01-01: no card" if waived else ""
    return JudgedGate(name, Gate(required=required, **asked), of, Judgement(verdict, reason), waiver, waived)


def document(
    figures: dict[str, Figure] | None = None,
    gates: tuple[JudgedGate, ...] = (),
    *,
    number: int = 0,
    settings: dict[str, Any] | None = None,
    simulated: bool = False,
    exit_code: int = 0,
    **environment: Any,
) -> Document:
    """Return the document of a run, the later the higher its number; figures by names as in bench.ttft_ms_p50."""
    began = WHEN + timedelta(hours=number)
    facts: dict[str, Any] = {
        "device": "A card",
        "model": "SmolLM2",
        "revision": "r",
        "vllm": "0.32.0",
        "distribution": "vllm",
        "set": "vllm-cuda13",
        "profile": "cpu",
        "host": "Linux",
        "attached": None,
        "random_weights": False,
    }
    stages = [
        StageOutcome(
            stage=name,
            status="ok",
            reason="",
            started=began,
            duration_s=60,
            launch_id="L1",
            settings=settings or {},
        )
        for name in ("test-router", "bench")
    ]
    shown = {name.partition("."): one for name, one in (figures or {}).items()}
    return Document(
        schema_version=1,
        run_id=f"{began:%Y%m%dT%H%M%SZ}-{number:06x}",
        verdict=WORDS[exit_code],
        headline="PASS: all 1 required gates pass.",
        exit_code=exit_code,
        started=began,
        finished=began + timedelta(minutes=1),
        environment=Environment(**{**facts, **environment}),
        gates=[reported_gate(row) for row in gates],
        figures=[reported_figure(stage, name, one, simulated) for (stage, _, name), one in shown.items()],
        stages=stages,
    )
