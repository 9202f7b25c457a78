"""docs/adding-a-stage.md: its example is put into a copy of the pipeline as the page says, and does there what the page says."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders.project import ROOT, STAGE_NAMES, Project
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.forkserver import Process

PAGE = (ROOT / "docs" / "adding-a-stage.md").read_text(encoding="utf-8")
STAGE, REST = PAGE.split("## A figure and a format")
FILES = {"pipeline/stages/ping.py", "pipeline/report/sections/ping.py"}
CHANGED = {"pipeline/dag.py", "pipeline/report/sections/list.py", "config.yaml"}
MOST_FILES = 5
NAME = r"`((?:pipeline/[a-z_/]+\.py)|config\.yaml)`"
FORMAT = '''"""figures.csv: the figures as a table."""

from pipeline.report.formats.content import Content


def figures_csv(of: Content) -> str:
    """Return a line for each figure."""
    return "".join(f"{figure.metric},{figure.value}\\n" for figure in of.document.figures)
'''


def blocks(language: str, text: str = STAGE) -> list[tuple[str, str]]:
    """Return the page's blocks in that language, each with the file that was named last before it."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(re.findall(NAME, text[: block.start()])[-1], block[1]) for block in found]


def applied(text: str, diff: str) -> str:
    """Return `text` with the lines added; the lines around them must stand there, once."""
    lines = diff.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line.startswith(" "))
    assert text.count(old) == 1, old
    return text.replace(old, "".join(line[1:] for line in lines))


def change(project: Project, name: str, diff: str) -> None:
    path = project.root / name
    path.write_text(applied(path.read_text(encoding="utf-8"), diff), encoding="utf-8")


class Extended(Project):
    """A project with a pipeline of its own that has the page's stage, and a server of somebody else."""

    def __init__(self, root: Path, url: str) -> None:
        super().__init__(root)
        self.url = url
        self.copy_pipeline()
        for name, diff in blocks("diff"):
            change(self, name, diff)
        for name, code in blocks("python"):
            (root / name).write_text(code, encoding="utf-8")

    def start(self, *words: str, **variables: str) -> Process:
        return super().start(*words, VLLM_POC__ATTACH__URL=self.url, VLLM_POC__PROFILE="cpu", **variables)

    def reported(self) -> dict[str, Any]:
        """Render the report; return what it says for programs."""
        assert (self.root / "artifacts" / "ping.json").is_file()
        self.invoke("report", "--only")
        document: dict[str, Any] = json.loads((self.root / "report.json").read_text(encoding="utf-8"))
        return document


@pytest.fixture
def extended(tmp_path: Path) -> Iterator[Extended]:
    with FakeVllm() as fake:
        yield Extended(tmp_path / "project", fake.base_url)


def test_the_example_takes_few_files_which_the_page_names() -> None:
    assert {name for name, _ in blocks("python")} == FILES
    assert {name for name, _ in blocks("diff")} == CHANGED
    assert len(FILES | CHANGED) <= MOST_FILES
    for name in re.findall(NAME, PAGE):
        assert name in FILES or (ROOT / name).is_file(), name
    assert len(PAGE.splitlines()) < 170


def test_each_command_says_what_stands_behind_it(extended: Extended) -> None:
    commands = re.findall(r"^    \./inv (.+?) +# (.+)$", STAGE, re.MULTILINE)
    assert len(commands) > 5
    for words, said in commands:
        done = extended.invoke(*words.split())
        assert said in done.stdout + done.stderr, words
        assert done.returncode == (2 if words.split()[0] in ("gates", "report") else 0), words


def test_its_figure_its_gate_and_its_section_are_in_every_form_of_the_report(extended: Extended) -> None:
    assert extended.invoke("ping").returncode == 0
    document = extended.reported()
    (figure,) = document["figures"]
    assert (figure["stage"], figure["name"], figure["n"]) == ("ping", "round_trip_ms_p50", 50)
    (gate,) = [gate for gate in document["gates"] if gate["id"] == "round_trip"]
    assert gate["verdict"] == "PASS"
    text = (extended.root / "REPORT.md").read_text(encoding="utf-8")
    section = text.split("### Round trip\n")[1].split("\n### ")[0]
    assert "- 50 requests for `/v1/models`, one after the other.\n" in section
    assert re.search(
        r"\| round trip, median \| \*\*[\d.]+ ms\*\* \(n = 50; .+\) \| \[`artifacts/ping\.json` → `round_trip_ms_p50`\]", section
    )
    assert "50 requests for <code>/<wbr>v1/<wbr>models</code>" in (extended.root / "report.html").read_text(encoding="utf-8")
    assert 'name="round_trip"' in (extended.root / "artifacts" / "junit.xml").read_text(encoding="utf-8")
    assert 'figure="round_trip_ms_p50"' in (extended.root / "artifacts" / "metrics.prom").read_text(encoding="utf-8")


def test_it_runs_again_when_its_code_changes_but_not_its_comments_nor_the_report(extended: Extended) -> None:
    assert extended.invoke("ping").returncode == 0
    record = extended.record("ping")
    assert set(record["because"]) == {"schema", "code", "serve"}
    stage, section = (extended.root / "pipeline" / folder / "ping.py" for folder in ("stages", "report/sections"))
    code = stage.read_text(encoding="utf-8")
    stage.write_text(f"{code}\n# as it was\n", encoding="utf-8")
    section.write_text(section.read_text(encoding="utf-8").replace("one after the other", "in turn"), encoding="utf-8")
    assert "· ping unchanged" in extended.invoke("ping").stderr
    assert extended.record("ping") == record
    stage.write_text(f"{code}\nKIB = 1 << 10\n", encoding="utf-8")
    assert ["ping", "code changed"] in [line.split(maxsplit=1) for line in extended.says("ping", "--why")]


def test_it_stands_among_the_other_stages_where_the_page_puts_it(extended: Extended) -> None:
    listed = [line.split()[0] for line in extended.says("status")[1:-1]]
    at = STAGE_NAMES.index("serve") + 1
    assert listed == [*STAGE_NAMES[:at], "ping", *STAGE_NAMES[at:]]
    told = json.loads("\n".join(extended.says("--list", "--list-format", "json")))
    (help_,) = [task["help"] for task in told["tasks"] if task["name"] == "ping"]
    assert help_ == "Measure how long the server takes to answer a request that computes nothing."


def test_a_figure_takes_the_stage_and_its_section_alone(extended: Extended) -> None:
    stage, section = (extended.root / "pipeline" / folder / "ping.py" for folder in ("stages", "report/sections"))
    for path, old, new in (
        (stage, '0.5, "ms")}', '0.5, "ms"), "round_trip_ms_p95": percentile_figure(times_ms, 0.95, "ms")}'),
        (section, '_("round trip, median")}', '_("round trip, median"), "round_trip_ms_p95": _("round trip, p95")}'),
    ):
        code = path.read_text(encoding="utf-8")
        assert code.count(old) == 1
        path.write_text(code.replace(old, new), encoding="utf-8")
    assert extended.invoke("ping").returncode == 0
    assert [figure["name"] for figure in extended.reported()["figures"]] == ["round_trip_ms_p50", "round_trip_ms_p95"]
    assert "| round trip, p95 | **" in (extended.root / "REPORT.md").read_text(encoding="utf-8")


def test_a_format_takes_its_file_and_a_line_of_the_list(extended: Extended) -> None:
    ((name, diff),) = blocks("diff", REST)
    assert name == "pipeline/report/formats/list.py"
    change(extended, name, diff)
    change(
        extended,
        name,
        " from pipeline.report.formats.content import Format\n+from pipeline.report.formats.figures_csv import figures_csv\n",
    )
    (extended.root / "pipeline" / "report" / "formats" / "figures_csv.py").write_text(FORMAT, encoding="utf-8")
    assert extended.invoke("ping").returncode == 0
    (figure,) = extended.reported()["figures"]
    text = (extended.root / "artifacts" / "figures.csv").read_text(encoding="utf-8")
    assert text == f"ping.round_trip_ms_p50,{figure['value']}\n"


def test_its_code_is_clean(extended: Extended) -> None:
    ruff, settings = str(Path(sys.executable).with_name("ruff")), ["--no-cache", "--config", str(ROOT / "pyproject.toml")]
    for task in (["check"], ["format", "--check"]):
        checked = subprocess.run([ruff, *task, *settings, *sorted(FILES)], cwd=extended.root, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr
