"""A sweep in the report, by the report's own stage: rows with their sources, picture, languages, and a verdict that it leaves alone."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, Literal

import pytest
from jsonschema import Draft202012Validator

from pipeline.config.schema import PublishConfig, RunsConfig
from pipeline.engine.record import SWEEP_NOTE, Failure, Store
from pipeline.engine.workspace import Workspace
from pipeline.publish.github import HostedRepository
from pipeline.publish.publication import PublishOrder, gathered
from pipeline.publish.scrub import Private
from pipeline.report.formats.document import SCHEMA_FILE, read_document
from pipeline.report.formats.markdown import LIMIT_BYTES, size_bytes
from pipeline.report.sweep import Sweep
from pipeline.report.words import words
from pipeline.runs import kept as runs
from pipeline.terminal import Silent
from tests.builders.house import House
from tests.builders.records import WHEN, all_good, server, write_samples
from tests.builders.sweeps import SWEPT, cell, failed, sweep
from tests.builders.tables import GFM, LINK, pipes, tables_of

ROOT = Path(__file__).resolve().parents[4]
LANGUAGES = pytest.mark.parametrize("language", ["en", "tr"])


@pytest.fixture
def house(tmp_path: Path) -> House:
    (tmp_path / "templates").symlink_to(ROOT / "templates")
    write_samples(tmp_path)
    return House(tmp_path, {**all_good(), SWEEP_NOTE: SWEPT}, server())


def part(text: str) -> str:
    """Return the sweep's section."""
    return re.split(r"^##+ ", text, flags=re.MULTILINE)[[line.startswith("### Sweep") for line in headings(text)].index(True) + 1]


def headings(text: str) -> list[str]:
    return re.findall(r"^##+ .*$", text, re.MULTILINE)


def test_each_cell_has_its_row_and_the_recommendation_states_its_rule(house: House) -> None:
    text = part(house.text())
    assert "**Recommendation: b (router accuracy 90 %, p95 290 ms).** The rule: the best router accuracy among the cells that" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| Cell")]
    assert [row.split(" | ")[1].partition(":")[0] for row in rows] == [*["measured 2026-01-02 03"] * 3, "failed", "skipped"]
    assert "| failed: serve: the GPU ran out of memory | Model |" in rows[3]
    assert rows[4].count("NOT_MEASURED") == 8
    assert "n = 64" not in rows[3] + rows[4]


@LANGUAGES
@pytest.mark.parametrize("output", ["REPORT.md", "docs/out/mine.md"])
def test_every_row_leads_to_its_cell_in_the_reports_document(house: House, output: str, language: Literal["en", "tr"]) -> None:
    house.output, house.language = output, language
    path = house.root / house.report().path
    lines = (path.parent / "report.json").read_text(encoding="utf-8").splitlines()
    found = {}
    for bang, said, target in LINK.findall(path.read_text(encoding="utf-8")):
        file, _, line = target.partition("#L")
        assert (path.parent / file).is_file(), target
        if bang:
            ET.fromstring((path.parent / file).read_bytes())
        elif re.search(r"artifacts/sweep|^(no report|rapor yok)$", said):
            found[json.loads(lines[int(line) - 1].partition(": ")[2].rstrip(","))] = said
    none = words(language, ROOT / "templates")("no report")
    assert found == {one.name: f"`{one.source}`" if one.source else none for one in SWEPT.cells}
    assert (path.parent / "report" / "sweep.svg").is_file()
    assert "(report/sweep.svg)" in path.read_text(encoding="utf-8")


@LANGUAGES
def test_tables_hold_and_footnotes_meet(house: House, language: Literal["en", "tr"]) -> None:
    house.language = language
    text = house.text()
    tables = tables_of(text)
    assert all(len({pipes(line) for line in table}) == 1 for table in tables)
    assert GFM.render(text).count("<table>") == len(tables)
    defined = re.findall(r"^\[\^(\w+)\]:", text, re.MULTILINE)
    assert set(defined) == set(re.findall(r"(?<!\n)\[\^(\w+)\]", text))
    assert {"ttft", "decode"} <= set(defined)


def test_the_document_holds_the_sweep_and_fits_its_schema(house: House) -> None:
    house.report()
    text = (house.root / "report.json").read_text(encoding="utf-8")
    Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))).validate(json.loads(text))
    assert read_document(text, "report.json").sweep == SWEPT


@pytest.mark.parametrize("note", [SWEPT, sweep(failed("a")), Failure(kind="record", message="it cannot be read")])
def test_the_reports_own_verdict_and_figures_are_as_without_a_sweep(house: House, note: Any) -> None:
    def made() -> tuple[Any, ...]:
        done = house.report()
        document = json.loads((house.root / "report.json").read_text(encoding="utf-8"))
        files = [(house.root / "artifacts" / name).read_bytes() for name in ("junit.xml", "metrics.prom")]
        return done.exit_code, done.headline, done.gates, {key: value for key, value in document.items() if key != "sweep"}, files

    house.results[SWEEP_NOTE] = None
    without = made()
    house.results[SWEEP_NOTE] = note
    assert made() == without


def test_without_a_sweep_both_pages_say_so_and_how_to_have_one(house: House) -> None:
    house.report()
    assert (house.root / "report" / "sweep.svg").is_file()
    house.results[SWEEP_NOTE] = None
    text = house.text()
    assert "no sweep is on record. `./inv sweep` runs all of this" in part(text)
    assert "no sweep is on record." in (house.root / "report.html").read_text(encoding="utf-8")
    assert not (house.root / "report" / "sweep.svg").exists(), "an old picture is no picture of this report"
    assert json.loads((house.root / "report.json").read_text(encoding="utf-8"))["sweep"] is None
    house.results[SWEEP_NOTE] = Failure(kind="record", message="x is not a record")
    assert "the record of the sweep cannot be read: x is not a record. `./inv sweep` runs" in part(house.text())


@LANGUAGES
def test_the_page_shows_every_cell_and_the_picture(house: House, language: Literal["en", "tr"]) -> None:
    house.language = language
    house.report()
    page = (house.root / "report.html").read_text(encoding="utf-8").split('<h3 id="sweep">')[1].split("</section>")[0]
    assert page.count("<tr>") == 1 + len(SWEPT.cells)
    assert '<th scope="row">serve.x=&#34;a|b\\c&lt;d&gt;&#34;</th>' in page
    assert '<svg xmlns="http://www.w3.org/2000/svg"' in page
    assert "<style>" not in page
    assert "<caption" in page


def test_the_worst_sweep_fits_into_a_comment(house: House) -> None:
    many = [cell(f"serve.max_num_seqs={number} " + "x" * 200, number, 300) for number in range(64)]
    house.results[SWEEP_NOTE] = sweep(*many, *(failed("y" * 300 + str(number)) for number in range(64)))
    text = house.text()
    assert size_bytes(text) <= LIMIT_BYTES
    assert "Sweep: models and settings side by side, cells: " in text


def test_a_kept_run_and_a_publication_carry_the_picture(house: House) -> None:
    house.report()
    workspace = Workspace(house.root, Silent())
    kept = runs.keep(house.root / "report.json", house.root / "REPORT.md", RunsConfig(), workspace)
    assert kept is not None
    assert (kept / "report" / "sweep.svg").read_bytes() == (house.root / "report" / "sweep.svg").read_bytes()
    order = PublishOrder(HostedRepository("https://github.com", "o/r"), "remote", PublishConfig(), 1, house.root, None, None)
    made = gathered(house.root, "REPORT.md", "PASS: all", order, Private())
    assert "report/sweep.svg" in {str(path) for path in made.files}
    document = next(text for path, text in made.files.items() if path.name == "report.json").decode()
    assert json.loads(document)["sweep"]["recommended"] == "b"
    linked = re.search(r"\[`artifacts/sweep/b/report\.json`\]\(report\.json#L(\d+)\)", made.markdown)
    assert linked
    assert document.splitlines()[int(linked[1]) - 1] == '    "name": "b",'


def test_the_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(SWEEP_NOTE, {"axes": {}}, WHEN, 1.0, SWEPT)
    assert store.outcome(SWEEP_NOTE, Sweep).data == SWEPT
