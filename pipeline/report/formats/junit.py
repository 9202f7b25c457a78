"""junit.xml: the gates as test cases, for CI. Pure."""

import re
import xml.etree.ElementTree as ET
from typing import Literal

from pipeline.report.formats.document import Document, ReportedGate
from pipeline.report.formats.reported import measured_words, target_words, verdict_words

CaseOutcome = Literal["failure", "skipped"]
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_outcome(gate: ReportedGate, inconclusive: CaseOutcome, not_measured: CaseOutcome) -> CaseOutcome | None:
    """Return the gate's outcome in junit.xml, None for a pass; gates that do not count for the exit code are skipped."""
    if gate.verdict == "PASS":
        return None
    if gate.verdict == "SIMULATED":
        return "failure"
    if gate.waived or not gate.required:
        return "skipped"
    return {"INCONCLUSIVE": inconclusive, "NOT_MEASURED": not_measured}.get(gate.verdict, "failure")


def junit(document: Document, inconclusive: CaseOutcome, not_measured: CaseOutcome) -> str:
    """Return the gates as JUnit XML, one test case per gate."""
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
            entry = ET.SubElement(case, outcome, message=xml_text(verdict_words(gate)))
            if outcome == "failure":
                entry.set("type", gate.verdict)
        details = f"{gate.label}\ntarget: {target_words(gate)}\nmeasured: {measured_words(gate)}\nverdict: {verdict_words(gate)}"
        ET.SubElement(case, "system-out").text = xml_text(details)
    ET.SubElement(suite, "system-out").text = xml_text(document.headline)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def xml_text(text: str) -> str:
    """Replace the characters that XML 1.0 does not allow."""
    return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
