"""REPORT.md as GitHub shows it: every link leads somewhere, tables hold, footnotes meet, and it fits into a comment."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipeline.engine.record import Failure
from pipeline.publish.document import file_of, with_absolute_links
from pipeline.report.formats.markdown import LIMIT_BYTES, render, size_bytes, verbatim
from pipeline.report.gates import same_identity
from pipeline.report.parts import FailureNote
from pipeline.report.words import words
from pipeline.stages.test_determinism import REMEDY_NOTE
from pipeline.vllm.cautions import Caution
from tests.builders.house import House
from tests.builders.machines import machine
from tests.builders.records import all_good, proof, router_result, server, write_samples
from tests.builders.tables import GFM, LINK, pipes, tables_of
from tests.builders.views import text_in_every_place

ROOT = Path(__file__).resolve().parents[4]
LANGUAGES = pytest.mark.parametrize("language", ["en", "tr"])


@pytest.fixture
def house(tmp_path: Path) -> House:
    (tmp_path / "templates").symlink_to(ROOT / "templates")
    write_samples(tmp_path)
    found = House(tmp_path, {**all_good(), REMEDY_NOTE: proof()}, server())
    found.edges = (("check-gpu", "install"), ("install", "serve"), ("serve", "bench"), ("bench", "report"))
    return found


def at(data: Any, path: str) -> Any:
    """Return what stands at a key like data.figures.x."""
    for part in path.split("."):
        data = data[part]
    return data


@LANGUAGES
@pytest.mark.parametrize("output", ["REPORT.md", "docs/out/mine.md"])
def test_every_link_of_a_report_leads_to_its_figure_or_picture(house: House, output: str, language: Literal["en", "tr"]) -> None:
    house.output, house.language = output, language
    path = house.root / house.report().path
    text = path.read_text(encoding="utf-8")
    document = (path.parent / "report.json").read_text(encoding="utf-8")
    figures = {(row["stage"], row["name"]): row for row in json.loads(document)["figures"]}
    pictures, followed = 0, set()
    for bang, said, target in LINK.findall(text):
        file, _, anchor = target.partition("#L")
        assert (path.parent / file).is_file(), target
        if bang:
            pictures += 1
            ET.fromstring((path.parent / file).read_bytes())
            continue
        named = re.fullmatch(r"`artifacts/([\w-]+)\.json` → `(\w+)`", said)
        assert named, said
        entry = figures[named[1], named[2]]
        line = int(anchor) - 1
        lines = document.splitlines()[line : line + 6]
        found = json.loads("{" + "".join(lines[1:5]).rstrip(",") + "}")
        assert (found["stage"], found["name"], found["value"]) == (named[1], named[2], entry["value"])
        record = json.loads(house.results[named[1]].model_dump_json())  # type: ignore[union-attr]
        assert at({"data": record}, entry["key"])["value"] == entry["value"]
        followed.add((named[1], named[2]))
    assert pictures == 3
    sourced = {tuple(pair) for pair in re.findall(r"`artifacts/([\w-]+)\.json` → `(\w+)`", text)}
    assert followed == sourced & set(figures)
    assert len(followed) >= 7


@LANGUAGES
def test_every_footnote_is_defined_and_every_definition_used(house: House, language: Literal["en", "tr"]) -> None:
    house.language = language
    text = house.text()
    defined = re.findall(r"^\[\^(\w+)\]:", text, re.MULTILINE)
    used = re.findall(r"(?<!\n)\[\^(\w+)\]", text)
    assert len(defined) == len(set(defined))
    assert set(defined) == set(used)


@LANGUAGES
@pytest.mark.parametrize("answer", ["x", "a|b\\|c\\\\|d", "`` ` ``", "![i](http://x/y.png) @you #1 <img src=x>", "\\", "|\n|---|\n|"])
def test_tables_hold_whatever_a_model_answers(house: House, answer: str, language: Literal["en", "tr"]) -> None:
    house.language = language
    house.results["test-router"] = router_result(answer)
    text = house.text()
    tables = tables_of(text)
    assert len(tables) >= 12
    for table in tables:
        assert len({pipes(line) for line in table}) == 1, table
    html = GFM.render(text)
    assert html.count("<table>") == len(tables)
    assert html.count("<img") == 3
    assert "<p>|" not in html


@given(st.text())
def test_what_a_model_wrote_is_code_on_one_line(text: str) -> None:
    said = verbatim(text)
    assert not set(said) & {"\n", "\r"}
    assert pipes(said) == 0
    if said and "\\" not in said and "\0" not in said:
        (token,) = [token for token in MarkdownIt("commonmark").parse(f"x {said}")[1].children or [] if token.type == "code_inline"]
        assert token.content == re.sub(r"\s+", " ", text).strip()


@LANGUAGES
def test_alerts_and_details_are_blocks_of_their_own(house: House, language: Literal["en", "tr"]) -> None:
    house.language = language
    house.results["bench"] = Failure(kind="server", message="it broke", log="a.log", log_tail=["x"])
    lines = house.text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("> [!"):
            assert lines[number - 1] == ""
            assert lines[number + 1].startswith("> ")
        if line.startswith("<details>"):
            assert lines[number - 1] == lines[number + 1] == ""
    assert sum(line.startswith("<details>") for line in lines) == sum(line == "</details>" for line in lines) == 2


HUGE = "ş|<b>`&\\" * 800


@LANGUAGES
@pytest.mark.parametrize(("entries", "text"), [(600, "long"), (5, HUGE), (300, HUGE[:90]), (4, "😀" * 5000)])
def test_the_worst_report_fits_into_a_comment_and_says_what_was_cut(entries: int, text: str, language: Literal["en", "tr"]) -> None:
    t = words(language, ROOT / "templates")
    places = {"bench.ttft_ms_p95": "report.json#L1", "sweep.a": "report.json#L2"}
    made = render(ROOT / "templates", text_in_every_place(text, entries), t, places)
    assert len(made.encode()) <= size_bytes(made) <= LIMIT_BYTES
    assert len(with_absolute_links(made, "REPORT.md", f"https://github.com/{'o' * 20}/{'r' * 30}/blob/{'0' * 40}")) <= LIMIT_BYTES
    (note,) = [line for line in made.splitlines() if "[report.json](report.json)" in line]
    if entries > 200:
        assert str(entries) in note
        assert t("Performance targets") in note
    if len(text) > 4000:
        assert "…" in note
    for table in tables_of(made):
        assert len({pipes(line) for line in table}) == 1


def test_a_report_that_fits_is_not_cut(house: House) -> None:
    assert "[report.json](report.json)" not in house.text()
    assert size_bytes(house.text()) < LIMIT_BYTES


def test_the_end_of_a_log_is_what_stays(house: House) -> None:
    failure = Failure(kind="server", message="m", log="a.log", log_tail=[f"line {number} {'x' * 200}" for number in range(2000)])
    view = replace(text_in_every_place("x"), failures=[FailureNote("serve", failure)])
    made = render(ROOT / "templates", view)
    assert "line 1999" in made
    assert "line 0 " not in made


# The badge and the graph.


# What a reader must know: the machine, a soak, records of an older version.


def test_what_check_gpu_found_stands_above_every_figure_unless_the_server_is_somebody_elses(house: House) -> None:
    house.results["check-gpu"] = machine().model_copy(update={"cautions": [Caution(fact="GPU 0: it is taken", fix="close it")]})
    assert "**GPU 0: it is taken → close it**" in house.text().split("## ")[0]
    house.results["serve"] = house.measured_on = server().model_copy(update={"attached": "http://elsewhere"})
    assert "it is taken" not in house.text()


@pytest.mark.parametrize(
    ("recorded", "identity", "same"),
    [
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "later": []}, True),
        ({"a": 1}, {"a": 1, "later": ["x"]}, False),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        (None, {}, False),
    ],
)
def test_an_older_record_is_of_this_server_where_what_it_does_not_know_says_nothing(
    recorded: Any, identity: dict[str, Any], same: bool
) -> None:
    assert same_identity(recorded, identity) is same


def test_every_link_that_publishing_keeps_is_to_a_file_beside_the_report(house: House) -> None:
    assert {file_of(target) for _, _, target in LINK.findall(house.text())} == {
        "report.json",
        "report/verdict.svg",
        "report/memory.svg",
        "report/breakdown.svg",
    }
