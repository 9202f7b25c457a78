"""report.html's pure parts: what is marked up and what is escaped, the charts, and the same bytes each time."""

import gzip
import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.client.answer import Answer
from pipeline.config.schema import RunsConfig
from pipeline.engine.record import Failure
from pipeline.engine.workspace import Workspace
from pipeline.load.stamps import ALONE, COLD, between_ms, first_ms, raw_line, whole_ms
from pipeline.measure.figures import not_measured
from pipeline.measure.statistics import percentile_figure
from pipeline.report.charts import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Chart,
    Series,
    bench_charts,
    bins,
    end_of,
    inlined,
    latency_charts,
    memory_charts,
    per_bin,
    stairs,
    sweep_charts,
    throughput_chart,
)
from pipeline.report.definitions import Definition
from pipeline.report.html import digest, inline, key, measured, numeric, render_html, shade, split_target, verdict
from pipeline.report.language import Words, words
from pipeline.report.stage import report_present
from pipeline.report.view import CellRow, FailureNote, FigureRow, GateRow, Scenario, StageRow, SweepSection, Table, View
from pipeline.runs import kept as runs
from pipeline.terminal import Silent
from tests.builders.house import House
from tests.builders.records import all_good, bench_result, memory_use, router_result, server

TEMPLATES = Path(__file__).resolve().parents[3] / "templates"
EN = words("en", TEMPLATES)

HEADER = ["Model files", "Memory, peak", "TTFT, cold prefix cache, p95", "Decode, median", "Accuracy", "Latency, p95", "Determinism"]
FIGURES = ["**5 MiB**", "**9 MiB** (n = 2; PSS)", *["**60 tok/s** (n = 9; 95 %: 40 to 80)"] * 5]
EVIL = "<script>alert(1)</script>"
LATENCIES = st.lists(st.floats(0.01, 1e5), min_size=1, max_size=200)


def view(**changes: Any) -> View:
    """Return a view with something in every place."""
    row = GateRow(
        "First token latency", "< 500 ms (p95)", "**46 ms** (n = 64; 95 %: 42 to 54)", "✅ PASS", "`a.json` → `x`", notes=("ttft",)
    )
    scenarios = [
        Scenario("Test 1", "", ["Suite `en`"], [FigureRow("answered", "**100 %** (n = 9)", "`a`")], [("en-1", "arm", "not JSON", "sorry")]),
        Scenario("Test 2", "the stage never ran", [], []),
        Scenario("Speed", "", [], [FigureRow("TTFT", "NOT_MEASURED", "`b`")]),
        Scenario("Memory", "", [], []),
    ]
    scenarios[0].tables.append(Table("Routes", ["Golden", "a", "b"], [["a", "3", "1"], ["b", "0", "4"]], shaded=True))
    made = View(
        title="vLLM PoC",
        headline="NOT PASSED: 1 of 2 required gates pass.",
        alert="CAUTION",
        profile="cpu",
        again="./inv all",
        model="SmolLM2",
        device="a card",
        measured_on="measured today",
        cautions=["Mind **this**."],
        targets=[row, replace(row, label="Throughput", measured="NOT_MEASURED", verdict="▫️ NOT_MEASURED: no card", notes=())],
        criteria=[replace(row, verdict="❌ FAIL: 600 is not < 500 (not required by this profile)", notes=())],
        scenarios=scenarios,
        alternatives=[("Small", "1B", "~2GB", "Router", "**5 MiB** (n = 1)"), ("Large", "7B", "~8GB", "Chat", "no")],
        stages=[StageRow("serve", "ok", "12 s", "today", "ok"), StageRow("bench", "failed: it died", "3 s", "today", "failed")],
        failures=[FailureNote("bench", Failure(kind="server", message="it died", hint="see `log`", log="l.log", log_tail=["one", "two"]))],
        environment=[("GPU", "a card")],
        command="python -m vllm",
        proofs=[("our child listens", "yes", "pid 7"), ("it answers", "yes", "200")],
        not_measured=[("VRAM", "no card")],
        definitions=[Definition("ttft", "TTFT", "first chunk, from `usage`")],
        edges=[("serve", "bench")],
        sweep=sweep_of(
            CellRow("a=1", "measured today", "Small", FIGURES, "✅ PASS (2 of 2 gates)", "`a/r.json`", "sweep.a=1"),
            CellRow("a=2", "skipped: cannot fit", "Large", ["NOT_MEASURED"] * 7, "▫️ NOT_MEASURED", "no report", "sweep.a=2"),
            CellRow("a=3", "measured today", "Large", FIGURES, "❌ NOT PASSED (1 of 2 gates)", "`a/r.json`", "sweep.a=3"),
        ),
    )
    return replace(made, **changes)


def sweep_of(*rows: CellRow) -> SweepSection:
    return SweepSection("Sweep", "", ["2 cells"], "a=1", "the best", HEADER, list(rows), "report/sweep.svg", ("ttft",))


def bench(**changes: Any) -> Any:
    return bench_result().model_copy(update=changes)


def test_inline_marks_up_code_emphasis_and_links_beside_the_report() -> None:
    assert inline("a `b/c` **d** [e](f.json#g)") == 'a <code>b/<wbr>c</code> <strong>d</strong> <a href="f.json#g">e</a>'
    assert inline("said[^ttft]") == "said"


@pytest.mark.parametrize("href", ["javascript:alert(1)", "https://x.org", "//x.org", "/etc/passwd", "data:text/html,x", "JAVASCRIPT:x"])
def test_inline_makes_no_link_that_leaves_the_folder(href: str) -> None:
    assert "<a" not in inline(f"[x]({href})")


@given(st.text())
def test_inline_lets_no_markup_of_the_text_through(text: str) -> None:
    bare = re.sub(r"</?(?:code|strong|wbr)>|<a href=\"[^\"<>]*\">|</a>", "", str(inline(text)))
    assert "<" not in bare
    assert ">" not in bare


@pytest.mark.parametrize(
    ("text", "word", "note"),
    [
        ("✅ PASS", "PASS", ""),
        ("❌ FAIL: 600 is not < 500", "FAIL", "600 is not < 500"),
        ("▫️ NOT_MEASURED (waived: x): y", "NOT_MEASURED", "(waived: x): y"),
        ("something else", "", "something else"),
    ],
)
def test_verdict(text: str, word: str, note: str) -> None:
    assert verdict(text) == (word, note)


def test_measured_and_target_fall_into_their_parts() -> None:
    assert measured("**46 ms** (n = 64; 95 %: 42 to 54)") == ("46 ms", ["n = 64", "95 %: 42 to 54"])
    assert measured("NOT_MEASURED") == ("NOT_MEASURED", [])
    assert split_target("< 500 ms (p95, cold)") == ("< 500 ms", "p95, cold")
    assert split_target("< 500 ms") == ("< 500 ms", "")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("**46.4 ms** (n = 3)", "46.4"),
        ("< 500 ms", "500"),
        ("-1.6 ms", "-1.6"),
        ("~8GB", "8"),
        ("NOT_MEASURED", ""),
        ("2026-01-02", ""),
        ("12:30", ""),
    ],
)
def test_key_is_the_number_that_a_cell_begins_with(text: str, number: str) -> None:
    assert key(text) == number


def test_a_column_is_numeric_where_each_cell_is_a_number_or_empty() -> None:
    rows = [["1 s", "yes", "–"], ["–", "2", "–"]]
    assert [numeric(rows, column) for column in range(3)] == [True, False, False]


def test_shade_is_the_share_of_the_row() -> None:
    assert [shade(cell, ["0", "1", "8"]) for cell in ("0", "1", "8")] == [0, 1, 8]
    assert shade("0", ["0", "0"]) == shade("x", ["x"]) == 0


def page(changed: View | None = None, charts: dict[str, list[Chart]] | None = None, t: Words = EN) -> str:
    return render_html(TEMPLATES, changed or view(), charts or {}, t)


class Echo(dict[str, str]):
    """A catalogue in which every text stands for itself."""

    def __missing__(self, text: str) -> str:
        return text


def test_the_same_records_give_the_same_bytes() -> None:
    assert page() == page()


def test_the_title_says_the_verdict_and_the_language_is_told() -> None:
    assert "<title>NOT PASSED: vLLM PoC, SmolLM2</title>" in page()
    assert '<html lang="en">' in page()
    assert '<html lang="tr">' in page(t=Words("tr", Echo()))


def test_the_policy_allows_this_style_and_script_alone() -> None:
    text = page()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    (style,), (script,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL), re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert policy.startswith("default-src &#39;none&#39;")
    assert digest(style) in policy.replace("&#43;", "+")
    assert digest(script) in policy.replace("&#43;", "+")
    assert "style=" not in text.replace("font-style=", "")


def test_whatever_others_wrote_is_escaped_wherever_it_stands() -> None:
    row = GateRow(EVIL, EVIL, EVIL, EVIL, EVIL)
    scenario = Scenario(EVIL, "", [EVIL], [FigureRow(EVIL, EVIL, EVIL)], [(EVIL,) * 4], [Table(EVIL, [EVIL] * 2, [[EVIL] * 2] * 2)])
    names = ("title", "headline", "profile", "again", "model", "device", "measured_on", "command")
    told = view(
        **dict.fromkeys(names, EVIL),
        cautions=[EVIL],
        targets=[row],
        criteria=[row],
        scenarios=[scenario, replace(scenario, reason=EVIL)],
        alternatives=[(EVIL,) * 5],
        stages=[StageRow(EVIL, EVIL, EVIL, EVIL, "ok")],
        failures=[FailureNote(EVIL, Failure(kind="x", message=EVIL, hint=EVIL, log=EVIL, log_tail=[EVIL]))],
        environment=[(EVIL, EVIL)],
        proofs=[(EVIL, EVIL, EVIL)],
        not_measured=[(EVIL, EVIL)],
        definitions=[Definition("x", EVIL, EVIL)],
        sweep=SweepSection(EVIL, "", [EVIL], EVIL, EVIL, [EVIL], [CellRow(EVIL, EVIL, EVIL, [EVIL], EVIL, EVIL, EVIL)]),
    )
    chart = Chart("c", EVIL, EVIL, [EVIL], [], [Table(EVIL, [EVIL], [[EVIL]])])
    text = page(told, {EVIL: [chart]})
    assert text.count("<script>") == 1
    assert text.count("alert(1)") > 40


def test_a_sweep_is_a_table_with_its_picture_and_without_one_the_page_says_how_to_have_one() -> None:
    plot = "<svg><style>x</style><circle/></svg>"
    text = page(charts={"Sweep": sweep_charts(plot, EN)})
    part = text.split('<h3 id="sweep">')[1].split("</section>")[0]
    assert "Recommendation: a=1." in part
    assert "The rule: the best" in part
    assert "<svg><circle/></svg>" in part
    head, *rows = [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", row)).strip() for row in re.findall(r"<tr>.*?</tr>", part, re.DOTALL)]
    assert head == f"Cell State Verdict {' '.join(HEADER)} Model Source"
    assert rows[0].startswith("a=1 measured today PASS (2 of 2 gates) 5 MiB 9 MiB n = 2; PSS 60 tok/s n = 9; 95 %: 40 to 80 ")
    assert rows[0].endswith("n = 9; 95 %: 40 to 80 Small a/ r.json")
    assert rows[1] == f"a=2 skipped: cannot fit{' NOT MEASURED' * 8} Large no report"
    assert rows[2].startswith("a=3 measured today NOT PASSED (1 of 2 gates) 5 MiB")
    none = page(view(sweep=SweepSection("Sweep", "no sweep is on record. `./inv sweep` runs it")))
    assert "no sweep is on record. <code>./<wbr>inv sweep</code> runs it" in none
    assert "Recommendation" not in none
    assert sweep_charts("", EN) == []


def test_every_link_of_the_page_leads_somewhere_and_no_id_is_there_twice() -> None:
    data = bench()
    text = page(charts={"Speed": bench_charts(data, {}, EN)})
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)
    assert set(re.findall(r'aria-labelledby="([^" ]+)"', text)) <= set(ids)


def test_without_a_gate_or_a_figure_the_page_still_stands() -> None:
    text = page(
        view(targets=[], criteria=[], failures=[], alternatives=[], environment=[], command="", proofs=[], not_measured=[], definitions=[])
    )
    assert "Nothing was left out." in text


@given(st.lists(LATENCIES, min_size=1, max_size=2))
def test_every_value_is_in_one_bin(series: list[list[float]]) -> None:
    found = [Series("s", sorted(values)) for values in series]
    highest = end_of(found)
    edges = bins(found, highest)
    assert 2 <= len(edges) <= 60
    assert edges == sorted(set(edges))
    for one in found:
        drawn = [value for value in one.values if value <= edges[-1]]
        assert sum(per_bin(one.values, edges)) == len(drawn)
        assert all(value <= edges[-1] * (1 + 1e-9) for value in one.values if value <= highest)


def test_per_bin_counts_edges_once() -> None:
    assert per_bin([0, 1, 1.5, 2, 3, 9], [0, 1, 2, 3]) == [1, 2, 2]


@given(LATENCIES)
def test_the_stairs_end_with_all_values_and_never_fall(values: list[float]) -> None:
    made = stairs(sorted(values))
    assert made[-1] == (max(values), 1.0)
    assert made == sorted(made)


def test_of_many_values_the_stairs_keep_their_quantiles() -> None:
    source = random.Random(1)
    values = sorted(source.uniform(0, 9) for _ in range(5000))
    made = stairs(values)
    assert len(made) == 300
    assert all(share == (values.index(value) + 1) / 5000 for value, share in made)


def spoken(svg: str) -> str:
    tree = ElementTree.fromstring(svg)
    return " ".join(child.text or "" for child in tree if child.tag in ("title", "desc"))


def test_a_latency_chart_shows_the_values_behind_the_figure() -> None:
    values = [float(value) for value in range(40, 104)]
    data = bench(figures={"ttft_ms_p50": percentile_figure(values, 0.5, "ms"), "ttft_warm_ms_p50": not_measured("ms", "no hit")})
    chart = latency_charts(data, {"ttft_ms": values}, EN)[0]
    assert chart.keys == ["cold prefix cache"]
    assert chart.note == "warm prefix cache: no hit."
    assert "n = 64, from 40 to 103 ms, median 71 ms" in spoken(chart.drawings[0])
    assert chart.tables[0].rows == [["cold prefix cache", "64", "40", "43", "55", "71", "87", "100", "103", "103"]]
    assert sum(int(row[1]) for row in chart.tables[1].rows) == 64
    for svg in chart.drawings:
        ((path,),) = [[each.attrib["d"] for each in ElementTree.fromstring(svg).iter("path")]]
        points = [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]
        assert all(LEFT <= x <= RIGHT and TOP - 0.1 <= y <= BOTTOM for x, y in points)


def test_a_chart_without_its_stamps_says_so() -> None:
    data = bench(figures={"ttft_ms_p50": percentile_figure([1.0, 2.0], 0.5, "ms")})
    ttft, itl, _ = latency_charts(data, {}, EN)
    assert ttft.drawings == []
    assert "the raw stamps (artifacts/raw/bench.jsonl) are gone or cannot be read" in ttft.note
    assert itl.note == "Not drawn: concurrency 1: not measured."


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.5], [8.0, 9.0]])
def test_stamps_of_another_run_are_not_drawn(values: list[float]) -> None:
    data = bench(figures={"ttft_ms_p50": percentile_figure([1.0, 2.0, 2.0], 0.5, "ms")})
    assert "are not those of the figures" in latency_charts(data, {"ttft_ms": values}, EN)[0].note


def test_a_far_tail_is_told_not_drawn() -> None:
    values = [10.0 + number / 100 for number in range(400)] + [900.0]
    chart = latency_charts(bench(figures={"itl_ms_p50": percentile_figure(values, 0.5, "ms")}), {"itl_ms": values}, EN)[1]
    assert chart.note.startswith("1 values beyond 27.9 ms are not drawn, the highest 900 ms")
    assert len(chart.drawings) == 2


def test_throughput_leaves_out_what_is_invalid_and_says_so() -> None:
    (level,) = bench().levels
    levels = [
        level.model_copy(update={"concurrency": 1, "throughput_tok_s": 55.0}),
        level,
        level.model_copy(update={"concurrency": 8, "invalid": "slow"}),
    ]
    chart = throughput_chart(bench(levels=levels), EN)
    assert chart.note == "Left out as INVALID: concurrency 8."
    assert [row[:2] for row in chart.tables[0].rows] == [["1", "55"], ["4", "110"]]
    assert "whole loop: 1: 55 tok/s, 4: 110 tok/s" in spoken(chart.drawings[0])
    assert throughput_chart(bench(levels=levels[2:]), EN).drawings == []
    assert throughput_chart(bench(levels=[]), EN).note.startswith("Not drawn")


def test_nothing_measured_no_charts() -> None:
    assert bench_charts(None, {}, EN) == memory_charts(None, None, [], {}, EN) == []


def test_memory_without_samples_says_so_and_shows_the_parts() -> None:
    over_time, parts = memory_charts(memory_use(), None, [], {"breakdown.svg": "<svg><style>x\ny</style><g/></svg>"}, EN)
    assert "samples.jsonl" in over_time.note
    assert parts.drawings == ["<svg><g/></svg>"]
    assert parts.tables[0].rows[0] == ["weights", "–", "258"]
    assert inlined("<svg><style>a</style></svg>") == "<svg></svg>"


def answer(number: int, tokens: int) -> Answer:
    """Return a good answer: each token some ms after the one before."""
    sent = number * 10**9
    chunks = [sent + (30 + number) * 10**6 + at * 14 * 10**6 for at in range(tokens)]
    return Answer(sent, chunks[0], chunks[-1], chunks, "text", None, 9, 0, tokens, scheduled_ns=sent, first_byte_ns=chunks[0])


@pytest.fixture
def house(tmp_path: Path) -> House:
    """A project folder whose bench record and raw stamps belong together."""
    (tmp_path / "templates").symlink_to(TEMPLATES)
    cold, alone = [answer(number, 1) for number in range(64)], [answer(number, 8) for number in range(5)]
    lines = [raw_line(phase, one, 0) for phase, sent in ((COLD, cold), (ALONE, alone)) for one in sent]
    path = tmp_path / "artifacts" / "raw" / "bench.jsonl.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    figures = {
        **bench().figures,
        "ttft_ms_p50": percentile_figure(first_ms(cold), 0.5, "ms"),
        "itl_ms_p50": percentile_figure(between_ms(alone), 0.5, "ms"),
        "e2e_ms_p50": percentile_figure(whole_ms(alone), 0.5, "ms"),
    }
    results = all_good() | {"bench": bench(raw="artifacts/raw/bench.jsonl.gz", figures=figures)}
    return House(tmp_path, results, server())


def written(house: House) -> str:
    house.report()
    return (house.root / "report.html").read_text(encoding="utf-8")


def test_the_stage_draws_what_the_raw_stamps_say(house: House) -> None:
    text = written(house)
    assert "n = 64, from 30 to 93 ms, median 61 ms" in text
    assert "n = 35, from 14 to 14 ms" in text
    assert text.count('id="e2e-') >= 4
    assert text == written(house)


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"not gzip",
        gzip.compress(b"{}", mtime=0),
        gzip.compress(b"[1]", mtime=0),
        gzip.compress(b'{"phase": "decode c1"}', mtime=0),
    ],
)
def test_stamps_that_are_gone_or_broken_are_told(house: House, content: bytes | None) -> None:
    path = house.root / "artifacts" / "raw" / "bench.jsonl.gz"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert "the raw stamps (artifacts/raw/bench.jsonl.gz) are gone or cannot be read" in written(house)


def test_the_page_has_every_figure_gate_and_failure_of_the_report(house: House) -> None:
    house.results["test-router"] = router_result(EVIL)
    house.results["measure-vram"] = Failure(kind="memory", message=f"no {EVIL}", hint="look", log="s.log", log_tail=["one", EVIL])
    text = written(house)
    assert text.count("<script>") == 1
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3
    for said in (
        "First token",
        "JSON | parses",
        "system throughput, closed loop, concurrency 4",
        "./inv all --profile cpu",
        "our child listens",
    ):
        assert said in text


def test_a_report_without_its_page_is_made_anew(house: House) -> None:
    made = house.report()
    assert report_present(made, Workspace(house.root, Silent()))
    (house.root / "report.html").unlink()
    assert not report_present(made, Workspace(house.root, Silent()))


def test_secrets_are_hidden_in_the_page(house: House) -> None:
    house.results["bench"] = Failure(kind="server", message="it died of hf_abcdefghijklmnop")
    text = written(house)
    assert "hf_abcdefgh" not in text
    assert "[redacted]" in text


def test_a_kept_run_has_its_page(house: House) -> None:
    text = written(house)
    folder = runs.keep(house.root / "report.json", house.root / "REPORT.md", RunsConfig(), Workspace(house.root, Silent()))
    assert folder is not None
    assert (folder / "report.html").read_text(encoding="utf-8") == text
