"""The verdict of a run in one line, and as the text of the badge. Pure."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

from pipeline.message import Message, _, plural
from pipeline.report.cells import comma_separated, glued, of_settings
from pipeline.report.gates import Judged, JudgedGate

Word: TypeAlias = Literal["PASS", "NOT PASSED", "NOT MEASURED"]
WORDS: dict[int, Word] = {0: "PASS", 1: "NOT PASSED", 2: "NOT MEASURED"}  # by exit code


def headline(judged: Judged) -> Message:
    """Return the verdict in one line."""
    return glued(WORDS[judged.code], ": ", summary(judged))


def summary(judged: Judged) -> Message:
    """Return the rest of the headline, after the verdict."""
    required, failures = [row for row in judged.gates if row.gate.required], judged.failures
    if judged.code == 2 and not required and not failures:
        return _("no gate is required.")
    waived = [row for row in required if row.waived]
    passed = passing(required)
    if passed == len(required) and judged.code == 0:
        counts = _("all {passed} required gates pass", passed=passed)
    else:
        counts = _("{passed} of {required} required gates pass", passed=passed, required=len(required))
    if waived:
        counts = glued(counts, plural(", 1 is waived", ", {count} are waived", len(waived)))
    if failures:
        stage, failure = failures[0]
        return glued(counts, ". ", _("{stage} failed: {message}.", stage=stage, message=failure.message))
    if not judged.code:
        return glued(counts, ".")
    # If every open gate is waived and the run still does not pass, list the waived ones.
    open_gates = [row for row in required if row.counts and row.judgement.verdict != "PASS"] or waived
    gates = comma_separated(glued(of_settings(row.gate.label), " (", row.judgement.verdict, ")") for row in open_gates)
    return glued(counts, ". ", _("Open: {gates}.", gates=gates))


def passing(gates: Sequence[JudgedGate]) -> int:
    """Return the number of gates that pass."""
    return sum(row.judgement.verdict == "PASS" for row in gates)


def badge_words(judged: Judged) -> str:
    """Return the text of the badge: the verdict, and how many of the required gates pass."""
    required = [row for row in judged.gates if row.gate.required]
    return f"{WORDS[judged.code]} {passing(required)}/{len(required)}"
