"""A sweep as a page of its own (artifacts/sweep/SWEEP.md), with links to the cells' reports. Pure."""

from collections.abc import Mapping

from pipeline.report.language import ENGLISH
from pipeline.report.markdown import cell
from pipeline.report.view import SweepSection

PLOT = "pareto.svg"


def page(section: SweepSection, reports: Mapping[str, str], plot: str | None) -> str:
    """Return the section as Markdown; `reports` holds the link to the report of each cell that has one, by the cell's name."""
    t = ENGLISH
    head = [t("Cell"), t("State"), t("Model"), *section.header, t("Verdict"), "Report"]
    lines = ["# Sweep", "", f"**Recommendation: {cell(section.recommendation)}.** The rule: {section.rule}", ""]
    lines += [*(f"- {cell(fact)}" for fact in section.facts), "", row(head), row(["---"] * len(head))]
    for shown in section.rows:
        link = f"[REPORT.md]({reports[shown.name]})" if shown.name in reports else t("no report")
        lines.append(row([*map(cell, (shown.name, shown.state, shown.model, *shown.figures, shown.gates)), link]))
    lines += ["", "NOT_MEASURED: the cell's own report says why.", ""]
    if plot is not None:
        lines += [f"![{section.title}]({plot})", ""]
    return "\n".join(lines)


def row(cells: list[str]) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(cells)} |"
