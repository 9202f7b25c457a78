"""The stages as a mermaid graph: how each ended and how long it took. Pure."""

from collections.abc import Sequence

from pipeline.report.language import Words
from pipeline.report.view import StageRow

# Fill and letters are given together, so that they are readable on a light page and on a dark one.
CLASSES = {
    "ok": "fill:#1a7f37,stroke:#1a7f37,color:#fff",
    "failed": "fill:#cf222e,stroke:#cf222e,color:#fff",
    "skipped": "fill:#9a6700,stroke:#9a6700,color:#fff",
    "never": "fill:#59636e,stroke:#59636e,color:#fff,stroke-dasharray:4 3",
}


def diagram(stages: Sequence[StageRow], edges: Sequence[tuple[str, str]], t: Words) -> list[str]:
    """Return the lines of the graph."""
    kinds = {"ok": t("ok"), "failed": t("failed"), "skipped": t("skipped"), "never": t("never ran")}
    nodes = [
        f'    {stage.name}["{stage.name}<br/>{kinds[stage.kind]}{f", {stage.took}" if stage.took else ""}"]:::{stage.kind}'
        for stage in stages
    ]
    arrows = [f"    {needed} --> {needing}" for needed, needing in edges]
    seen = {stage.kind for stage in stages}
    styles = [f"    classDef {kind} {style}" for kind, style in CLASSES.items() if kind in seen]
    return ["flowchart LR", *nodes, *arrows, *styles]
