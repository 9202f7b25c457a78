"""A report as a job summary of GitHub Actions. Pure."""

from pipeline.report.formats.document import Document
from pipeline.report.formats.markdown import TableCells
from pipeline.report.formats.reported import measured_words, target_words, verdict_words

SUMMARY_BYTES = 2**20  # GitHub's limit for one step


def job_summary(document: Document, room: int = SUMMARY_BYTES) -> str:
    """Return verdict and gates as Markdown of at most `room` bytes; rows that do not fit are counted. Empty if nothing fits."""
    facts, cell = document.environment, TableCells().cell
    mark = {0: "✅", 1: "❌"}.get(document.exit_code, "⚠️")
    subject = f"Model {facts.model or 'none'}, profile {facts.profile}, on {facts.device or 'no server'}, vLLM {facts.vllm or 'not known'}."
    lines = [
        f"### {mark} {cell(document.headline)}",
        "",
        cell(subject),
        "",
        "| Gate | Target | Measured | Verdict |",
        "| --- | --- | --- | --- |",
    ]
    rows = [
        "| " + " | ".join(cell(text) for text in (gate.label, target_words(gate), measured_words(gate), verdict_words(gate))) + " |"
        for gate in document.gates
    ]
    for count in range(len(rows), -1, -1):
        remainder = [] if count == len(rows) else ["", f"{len(rows) - count} more in report.json."]
        text = "\n".join([*lines, *rows[:count], *remainder]) + "\n\n"
        if len(text.encode()) <= room:
            return text
    return ""
