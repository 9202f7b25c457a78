"""Views of reports, built without records: one with something in every place, and one that is too large."""

from dataclasses import replace
from typing import Any

from pipeline.engine.record import Failure
from pipeline.message import Code, Digits, _
from pipeline.report.cells import Amount, Measured, Ruling, Source, Target, glued, source
from pipeline.report.definitions import Definition
from pipeline.report.drawing.badge import badge
from pipeline.report.parts import (
    AlternativeRow,
    CellRow,
    Chart,
    FailureNote,
    FigureRow,
    GateRow,
    Picture,
    Scenario,
    StageRow,
    SweepPart,
    Table,
)
from pipeline.report.view import View

HEADER = ["Model files", "Memory, peak", "TTFT, cold prefix cache, p95", "Decode, median", "Accuracy", "Latency, p95", "Determinism"]
FIGURES = [Measured(5.0, "MiB"), Measured(9.0, "MiB", 2, aside="PSS"), *[Measured(60.0, "tok/s", 9, 40.0, 80.0)] * 5]
NONE = Measured(None)
GATE = GateRow(
    "First token latency",
    Target("<", 500.0, "ms", ("p95",)),
    Measured(46.0, "ms", 64, 42.0, 54.0),
    Ruling("PASS"),
    source("a", "x"),
    ("ttft",),
)


def sweep_of(*rows: CellRow, charts: list[Chart] | None = None) -> SweepPart:
    return SweepPart("Sweep", "", ["2 cells"], "a=1", "the best", list(HEADER), list(rows), charts or [], None, ("ttft",))


def sweep_rows() -> list[CellRow]:
    both, one = (_("{passed} of {gates} gates", passed=passed, gates=2) for passed in (2, 1))
    report = Source(Code("a/r.json"), "sweep.a")
    return [
        CellRow("a=1", "measured today", "Small", FIGURES, Ruling("PASS", both), report),
        CellRow("a=2", "skipped: cannot fit", "Large", [NONE] * 7, Ruling("NOT_MEASURED"), Source("no report")),
        CellRow("a=3", "measured today", "Large", FIGURES, Ruling("NOT PASSED", one), report),
    ]


def scenarios() -> list[Scenario]:
    table = Table("Routes", ["Golden", "a", "b"], [["a", 3, 1], ["b", 0, 4]], shaded=True)
    return [
        Scenario(
            "Test 1",
            facts=[glued("Suite ", Code("en"))],
            figures=[FigureRow("answered", Measured(100.0, "%", 9), source("a", "x"))],
            examples=[("en-1", "arm", "not JSON", "sorry")],
            tables=[table],
        ),
        Scenario("Test 2", "the stage never ran"),
        Scenario("Speed", figures=[FigureRow("TTFT", replace(NONE, reason="no card"), source("b", "y"))]),
        Scenario("Memory"),
    ]


def view(**changes: Any) -> View:
    """Return a view with something in every place."""
    made = View(
        title="vLLM PoC",
        verdict="NOT PASSED",
        summary="1 of 2 required gates pass.",
        alert="CAUTION",
        profile="cpu",
        again="./inv all",
        model="SmolLM2",
        device="a card",
        measured_on="measured today",
        cautions=[glued("Mind ", Code("this"), ".")],
        targets=[GATE, replace(GATE, label="Throughput", measured=NONE, ruling=Ruling("NOT_MEASURED", reason="no card"), notes=())],
        criteria=[replace(GATE, ruling=Ruling("FAIL", reason="600 is not < 500", required=False), notes=())],
        scenarios=scenarios(),
        alternatives=[
            AlternativeRow("Small", "1B", "~2GB", "Router", (Measured(5.0, "MiB", 1),)),
            AlternativeRow("Large", "7B", "~8GB", "Chat", "no"),
        ],
        stages=[
            StageRow("serve", "ok", Amount(glued(Digits("12"), " s"), 12.0), "today", "ok"),
            StageRow("bench", "failed: it died", Amount(glued(Digits("3"), " s"), 3.0), "today", "failed"),
        ],
        failures=[
            FailureNote(
                "bench",
                Failure(kind="server", message="it died", hint="see the log", log="l.log", log_tail=["one", "two"]),
            )
        ],
        environment=[("GPU", "a card")],
        command="python -m vllm",
        proofs=[("our child listens", "yes", "pid 7"), ("it answers", "yes", "200")],
        not_measured=[("VRAM", "no card")],
        definitions=[Definition("ttft", "TTFT", _("first chunk, from {field}", field=Code("usage")))],
        edges=[("serve", "bench")],
        badge=Picture("verdict.svg", lambda _words: badge("PASS 1/2", "NOT PASSED")),
        sweep=sweep_of(*sweep_rows()),
    )
    return replace(made, **changes)


def text_in_every_place(text: str, entries: int = 1) -> View:
    """Return a view in which every text is this one, titles begin so, and every list has so many entries."""
    title = text[:40]
    metric, notes = "bench.ttft_ms_p95", ("ttft",)
    found, wanted, verdict = Measured(1.0, text, 1, aside=text), Target("<", 1.0, text, (text,)), Ruling("FAIL", text, text)
    place = Source(text, metric)
    table = Table(text, [text] * 9, [[text] * 9] * entries)
    scenario = Scenario(
        title,
        facts=[text] * entries,
        figures=[FigureRow(text, found, place, notes), FigureRow(text, Measured(None, reason=text), place, notes)] * entries,
        examples=[(text, text, text, text)] * entries,
        tables=[table] * 2,
        charts=[Chart("c", text, text, [text], [], [Table(text, [text], [[text]])])],
        pictures=[Picture("p.svg", lambda _words: "")],
    )
    failure = Failure(kind="server", message=text, hint=text, log=text, log_tail=[text] * entries)
    gate = GateRow(text, wanted, found, verdict, place, notes)
    cells = [CellRow(text, text, text, [found] * 7, verdict, Source(text, "sweep.a"))] * entries
    picture = Picture("s.svg", lambda _words: "")
    names = ("check-gpu", "install", "download-model", "serve", "test-router", "test-determinism", "bench", "measure-vram")
    return View(
        title=text,
        verdict=text,
        summary=text,
        alert="TIP",
        profile=text,
        again=text,
        model=text,
        device=text,
        measured_on=text,
        cautions=[text] * entries,
        targets=[gate] * entries,
        criteria=[gate] * entries,
        scenarios=[scenario, replace(scenario, reason=text, charts=[]), replace(scenario, charts=[]), replace(scenario, charts=[])],
        alternatives=[AlternativeRow(text, text, text, text, text)] * entries,
        stages=[StageRow(name, text, Amount(text, 1.0), text, "ok") for name in names],
        failures=[FailureNote(name, failure) for name in names],
        environment=[(text, text)] * entries,
        command=text,
        proofs=[(text, text, text)] * entries,
        not_measured=[(text, text)] * entries,
        licence=text,
        sweep=SweepPart(title, "", [text] * 4, text, text, [text] * 7, cells, [], picture, notes),
    )
