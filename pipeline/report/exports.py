"""A report for machines: junit.xml for CI, OpenMetrics text for scrapers, a job summary for GitHub Actions. Pure."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from typing import Literal

from pipeline.measure.digits import ends_of, shown
from pipeline.measure.verdicts import asked
from pipeline.report.document import Document, ReportedGate
from pipeline.report.markdown import cell
from pipeline.report.view import bounds_words

Outcome = Literal["failure", "skipped"]
SUMMARY_BYTES = 2**20  # what GitHub takes of one step
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def target_words(gate: ReportedGate) -> str:
    """Return what the gate asks."""
    return asked(gate.comparator, gate.target, gate.unit) + (f" ({gate.statistic})" if gate.statistic else "")


def measured_words(gate: ReportedGate) -> str:
    """Return what the gate found."""
    if gate.value is None:
        return "not measured"
    marks = ends_of(gate.unit) if isinstance(gate.target, str) else (gate.target, *ends_of(gate.unit))
    said = shown(gate.value, gate.low, gate.high, marks)
    bounds = bounds_words(said.low, said.high)
    return f"{said.value} {gate.unit} (n = {gate.n}{f'; 95 %: {bounds}' if bounds else ''})"


def verdict_words(gate: ReportedGate) -> str:
    """Return the verdict with its waiver and its reason."""
    waiver = f" ({gate.waiver})" if gate.waiver else ""
    aside = "" if gate.required else " (not required)"
    return f"{gate.verdict}{waiver}{aside}" + (f": {gate.reason}" if gate.reason else "")


def junit_outcome(gate: ReportedGate, inconclusive: Outcome, not_measured: Outcome) -> Outcome | None:
    """Return how a gate stands in junit.xml, None being a pass; what the exit code leaves out (waived, not required) is skipped."""
    if gate.verdict == "PASS":
        return None
    if gate.verdict == "SIMULATED":
        return "failure"
    if gate.waived or not gate.required:
        return "skipped"
    return {"INCONCLUSIVE": inconclusive, "NOT_MEASURED": not_measured}.get(gate.verdict, "failure")


def junit(document: Document, inconclusive: Outcome, not_measured: Outcome) -> str:
    """Return one test case per gate."""
    outcomes = [junit_outcome(gate, inconclusive, not_measured) for gate in document.gates]
    counts = {
        "tests": str(len(outcomes)),
        "failures": str(outcomes.count("failure")),
        "errors": "0",
        "skipped": str(outcomes.count("skipped")),
    }
    root = ET.Element("testsuites", {"name": "vllm-poc", **counts})
    suite = ET.SubElement(root, "testsuite", {"name": "gates", **counts})
    if document.started is not None:
        suite.set("timestamp", f"{document.started:%Y-%m-%dT%H:%M:%S}")
    for gate, outcome in zip(document.gates, outcomes, strict=True):
        case = ET.SubElement(suite, "testcase", classname=gate.metric.partition(".")[0], name=gate.id, time="0")
        if outcome is not None:
            told = ET.SubElement(case, outcome, message=xml_text(verdict_words(gate)))
            if outcome == "failure":
                told.set("type", gate.verdict)
        said = f"{gate.label}\ntarget: {target_words(gate)}\nmeasured: {measured_words(gate)}\nverdict: {verdict_words(gate)}"
        ET.SubElement(case, "system-out").text = xml_text(said)
    ET.SubElement(suite, "system-out").text = xml_text(document.headline)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def xml_text(text: str) -> str:
    """Return `text` without the characters that XML 1.0 cannot hold."""
    return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def openmetrics(document: Document) -> str:
    """Return the figures as gauges and the gates as 0 or 1, in the OpenMetrics text format."""
    facts = document.environment
    run = {
        "run_id": document.run_id,
        "profile": facts.profile,
        "device": facts.device,
        "model": facts.model,
        "vllm": facts.vllm,
        "verdict": document.verdict,
    }
    figures = [figure for figure in document.figures if figure.value is not None]
    of = [{"stage": figure.stage, "figure": figure.name, "unit": figure.unit} for figure in figures]
    real = [{**labels, "simulated": str(figure.simulated).lower()} for labels, figure in zip(of, figures, strict=True)]
    values = [(labels, figure.value) for labels, figure in zip(real, figures, strict=True)]
    lows = [(labels, figure.low) for labels, figure in zip(of, figures, strict=True) if figure.low is not None]
    highs = [(labels, figure.high) for labels, figure in zip(of, figures, strict=True) if figure.high is not None]
    gates = [({"gate": gate.id, "required": str(gate.required).lower(), "verdict": gate.verdict}, gate) for gate in document.gates]
    times: list[tuple[dict[str, str], float]] = [] if document.finished is None else [({}, document.finished.timestamp())]
    families = [
        family("vllm_poc_run", "info", "The run and what it ran on.", [({key: text or "" for key, text in run.items()}, 1)], "_info"),
        family("vllm_poc_exit_code", "gauge", "0 passed, 1 not passed, 2 not measured.", [({}, document.exit_code)]),
        family("vllm_poc_measured_timestamp_seconds", "gauge", "When the last measurement began.", times),
        family("vllm_poc_gate", "gauge", "1 where the gate passes, else 0.", [(of, gate.verdict == "PASS") for of, gate in gates]),
        family("vllm_poc_gate_waived", "gauge", "1 where a waiver covers the gate.", [(of, gate.waived) for of, gate in gates]),
        family("vllm_poc_figure", "gauge", "Measured value.", values),
        family("vllm_poc_figure_low", "gauge", "Lower 95 % bound.", lows),
        family("vllm_poc_figure_high", "gauge", "Upper 95 % bound.", highs),
        family("vllm_poc_figure_n", "gauge", "Sample size.", [(labels, figure.n) for labels, figure in zip(of, figures, strict=True)]),
    ]
    return "".join(families) + "# EOF\n"


def family(name: str, kind: str, words: str, samples: Iterable[tuple[dict[str, str], float | None]], suffix: str = "") -> str:
    """Return one metric family."""
    lines = [f"# TYPE {name} {kind}", f"# HELP {name} {words}"]
    for labels, value in samples:
        inner = ",".join(f'{key}="{escaped(text)}"' for key, text in labels.items())
        lines.append(f"{name}{suffix}{f'{{{inner}}}' if inner else ''} {value if isinstance(value, float) else int(value or 0)!r}")
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Return a label's value as OpenMetrics writes it."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def job_summary(document: Document, room: int = SUMMARY_BYTES) -> str:
    """Return verdict and gates in Markdown, in at most `room` bytes: rows that do not fit are counted; empty where nothing fits."""
    facts = document.environment
    mark = {0: "✅", 1: "❌"}.get(document.exit_code, "⚠️")
    on = f"Model {facts.model or 'none'}, profile {facts.profile}, on {facts.device or 'no server'}, vLLM {facts.vllm or 'not known'}."
    lines = [
        f"### {mark} {cell(document.headline)}",
        "",
        cell(on),
        "",
        "| Gate | Target | Measured | Verdict |",
        "| --- | --- | --- | --- |",
    ]
    rows = [
        "| " + " | ".join(cell(text) for text in (gate.label, target_words(gate), measured_words(gate), verdict_words(gate))) + " |"
        for gate in document.gates
    ]
    for count in range(len(rows), -1, -1):
        left = [] if count == len(rows) else ["", f"{len(rows) - count} more in report.json."]
        text = "\n".join([*lines, *rows[:count], *left]) + "\n\n"
        if len(text.encode()) <= room:
            return text
    return ""
