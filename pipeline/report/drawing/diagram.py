"""The stages as a mermaid graph: how each ended and how long it took. Pure."""

from collections.abc import Sequence

from pipeline.message import Message, _
from pipeline.report.cells import Amount
from pipeline.report.parts import StageRow
from pipeline.report.words import Words

# Fill and letters are given together, so that they are readable on a light page and on a dark one.
CLASSES = {
    "ok": "fill:#1a7f37,stroke:#1a7f37,color:#fff",
    "failed": "fill:#cf222e,stroke:#cf222e,color:#fff",
    "skipped": "fill:#9a6700,stroke:#9a6700,color:#fff",
    "never": "fill:#59636e,stroke:#59636e,color:#fff,stroke-dasharray:4 3",
}


KINDS: dict[str, Message] = {"ok": _("ok"), "failed": _("failed"), "skipped": _("skipped"), "never": _("never ran")}


def diagram(stages: Sequence[StageRow], edges: Sequence[tuple[str, str]], words: Words) -> list[str]:
    """Return the lines of the graph."""
    nodes = [f'    {stage.name}["{stage.name}<br/>{state(stage, words)}"]:::{stage.kind}' for stage in stages]
    arrows = [f"    {needed} --> {needing}" for needed, needing in edges]
    seen = {stage.kind for stage in stages}
    styles = [f"    classDef {kind} {style}" for kind, style in CLASSES.items() if kind in seen]
    return ["flowchart LR", *nodes, *arrows, *styles]


def state(stage: StageRow, words: Words) -> str:
    """Return how the stage ended and how long it took."""
    took = f", {words.text(stage.took.text)}" if isinstance(stage.took, Amount) else ""
    return f"{words.text(KINDS[stage.kind])}{took}"
