"""What a command says, as data."""

from tests.builders.project import Project


def rendered(project: Project) -> str:
    return (project.root / "REPORT.md").read_text(encoding="utf-8")


def verdicts(text: str) -> list[tuple[str, str]]:
    """Return (metric, verdict) of each row of the two tables of gates."""
    tables = text[text.index("## Performance targets") : text.index("## Test scenarios")].split("## Failures")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables.splitlines() if line.startswith("|")]
    return [(row[0].split("[^")[0], row[3]) for row in rows if row[0] != "Metric" and not row[0].startswith("-")]


def blocks(said: str) -> dict[str, dict[str, str]]:
    """Return what `gates` says of each gate, line by line."""
    told: dict[str, dict[str, str]] = {}
    for line in said.splitlines():
        if line.startswith("  "):
            name, _, text = line.strip().partition(" ")
            told[list(told)[-1]][name] = text.strip()
        else:
            told[line.partition(":")[0]] = {}
    return told
