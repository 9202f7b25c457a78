"""The page of a sweep (artifacts/sweep/SWEEP.md), with links to the cells' reports. Pure."""

from collections.abc import Mapping

from pipeline.report.formats.markdown import TableCells
from pipeline.report.parts import SweepPart

PARETO_PLOT = "pareto.svg"


def page(sweep: SweepPart, reports: Mapping[str, str], plot: str | None) -> str:
    """Return the sweep as Markdown; `reports` maps the name of each cell that has a report to the link to it."""
    cells = TableCells()
    head = ["Cell", "State", "Model", *sweep.header, "Verdict", "Report"]
    lines = ["# Sweep", "", f"**Recommendation: {cells.cell(sweep.recommendation)}.** The rule: {cells.cell(sweep.rule)}", ""]
    lines += [*(f"- {cells.cell(fact)}" for fact in sweep.facts), "", row(head), row(["---"] * len(head))]
    for shown in sweep.rows:
        link = f"[REPORT.md]({reports[shown.name]})" if shown.name in reports else "no report"
        columns = (shown.name, shown.state, shown.model, *shown.figures, shown.ruling)
        lines.append(row([*map(cells.figure, columns), link]))
    lines += ["", "NOT_MEASURED: the cell's own report says why.", ""]
    if plot is not None:
        lines += [f"![{cells.cell(sweep.title)}]({plot})", ""]
    return "\n".join(lines)


def row(cells: list[str]) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(cells)} |"
