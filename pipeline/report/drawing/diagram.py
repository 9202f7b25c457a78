"""The stages as a Mermaid flowchart, each with its status and duration. Pure."""

from collections.abc import Sequence

from pipeline.message import Message, _
from pipeline.report.cells import Amount
from pipeline.report.parts import StageRow
from pipeline.report.words import Words

# Each class sets both fill and text colour, so that it is readable on light and dark pages.
CLASSES = {
    "ok": "fill:#1a7f37,stroke:#1a7f37,color:#fff",
    "failed": "fill:#cf222e,stroke:#cf222e,color:#fff",
    "skipped": "fill:#9a6700,stroke:#9a6700,color:#fff",
    "never": "fill:#59636e,stroke:#59636e,color:#fff,stroke-dasharray:4 3",
}


KINDS: dict[str, Message] = {"ok": _("ok"), "failed": _("failed"), "skipped": _("skipped"), "never": _("never ran")}


def diagram(stages: Sequence[StageRow], edges: Sequence[tuple[str, str]], words: Words) -> list[str]:
    """Return the lines of the flowchart."""
    nodes = [f'    {stage.name}["{stage.name}<br/>{state(stage, words)}"]:::{stage.kind}' for stage in stages]
    arrows = [f"    {needed} --> {needing}" for needed, needing in edges]
    seen = {stage.kind for stage in stages}
    styles = [f"    classDef {kind} {style}" for kind, style in CLASSES.items() if kind in seen]
    return ["flowchart LR", *nodes, *arrows, *styles]


def state(stage: StageRow, words: Words) -> str:
    """Return the stage's status and duration."""
    took = f", {words.text(stage.took.text)}" if isinstance(stage.took, Amount) else ""
    return f"{words.text(KINDS[stage.kind])}{took}"
