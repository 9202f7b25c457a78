"""The verdict of a run in one line, and as the text of the badge. Pure."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

from pipeline.measure.verdicts import UNKNOWN
from pipeline.message import Message, _, joined, plural
from pipeline.report.cells import Text, comma_separated, glued, of_settings
from pipeline.report.gates import Judged, JudgedGate
from pipeline.stages.serve import Server

Word: TypeAlias = Literal["PASS", "TRIAL", "NOT PASSED", "NOT MEASURED"]
WORDS: dict[int, Word] = {0: "PASS", 1: "NOT PASSED", 2: "NOT MEASURED"}  # by exit code


def word(judged: Judged) -> Word:
    """Return the verdict in one word; a run that only tries the pipeline never passes."""
    return "TRIAL" if judged.trial and judged.code == 0 else WORDS[judged.code]


def headline(judged: Judged) -> Message:
    """Return the verdict in one line."""
    return glued(word(judged), ": ", summary(judged))


def summary(judged: Judged) -> Message:
    """Return the rest of the headline, after the verdict."""
    required, failures = [row for row in judged.gates if row.gate.required], judged.failures
    if judged.code == 2 and not required and not failures:
        return _("no gate is required.")
    counts = glued(counts_of(judged, required), others(judged.gates))
    if failures:
        stage, failure = failures[0]
        return glued(counts, ". ", _("{stage} failed: {message}.", stage=stage, message=failure.message))
    sentences: list[Text] = [counts]
    if judged.code:
        # If every open gate is waived and the run still does not pass, list the waived ones.
        open_gates = [row for row in required if row.counts and row.judgement.verdict != "PASS"] or [row for row in required if row.waived]
        gates = comma_separated(glued(of_settings(row.gate.label), " (", row.judgement.verdict, ")") for row in open_gates)
        sentences.append(_("Open: {gates}", gates=gates))
    server = judged.outcomes[Server].data
    if server is not None and server.attached:
        sentences.append(_("The server at {address} is somebody else's: it could hide what HTTP does not show", address=server.attached))
    if server is not None and not server.real:
        sentences += unproven(server)
    text = glued(joined(". ", sentences), ".")
    return glued(text, " ", judged.trial) if judged.trial else text


def unproven(server: Server) -> list[Text]:
    """Return why the figures are simulated, by the first proof that the server lacks, and what to change."""
    missing = next((proof for proof in server.proofs if not proof.holds), None)
    if missing is None:
        return []
    why = _("Simulated, because it is not proven that {claim}: {seen}", claim=missing.claim, seen=missing.seen)
    return [why, missing.fix] if missing.fix else [why]


def counts_of(judged: Judged, required: Sequence[JudgedGate]) -> Message:
    """Return how many of the required gates pass, and how many are waived."""
    waived, passed = sum(row.waived for row in required), passing(required)
    if word(judged) == "TRIAL":
        counts = _("the pipeline works here, {passed} of {required} required gates pass", passed=passed, required=len(required))
    elif passed == len(required) and judged.code == 0:
        counts = _("all {passed} required gates pass", passed=passed)
    else:
        counts = _("{passed} of {required} required gates pass", passed=passed, required=len(required))
    return glued(counts, plural(", 1 is waived", ", {count} are waived", waived)) if waived else counts


def others(gates: Sequence[JudgedGate]) -> Message:
    """Return what became of the gates that are not required; empty where there are none."""
    rest = [row for row in gates if not row.gate.required]
    if not rest:
        return glued()
    unknown = sum(row.judgement.verdict in UNKNOWN for row in rest)
    passed = passing(rest)
    missed = len(rest) - passed - unknown
    counts = [
        *([plural("{count} passes", "{count} pass", passed)] if passed else []),
        *([plural("{count} does not", "{count} do not", missed)] if missed else []),
        *([plural("{count} has no valid measurement", "{count} have no valid measurement", unknown)] if unknown else []),
    ]
    return _("; not required: {counts}", counts=comma_separated(counts))


def passing(gates: Sequence[JudgedGate]) -> int:
    """Return the number of gates that pass."""
    return sum(row.judgement.verdict == "PASS" for row in gates)


def badge_words(judged: Judged) -> str:
    """Return the text of the badge: the verdict, and how many of the required gates pass."""
    required = [row for row in judged.gates if row.gate.required]
    return f"{word(judged)} {passing(required)}/{len(required)}"
