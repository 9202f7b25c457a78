"""report.html as the stage writes it: charts from raw stamps, every figure, no secret."""

import gzip
import json
from pathlib import Path

import pytest

from pipeline.client.answer import Answer
from pipeline.config.schema import RunsConfig
from pipeline.engine.record import Failure
from pipeline.engine.workspace import Workspace
from pipeline.load.stamps import ALONE, COLD, between_ms, first_ms, raw_line, whole_ms
from pipeline.measure.statistics import percentile_figure
from pipeline.report.stage import report_present
from pipeline.runs import kept as runs
from pipeline.terminal import Silent
from tests.builders.house import House
from tests.builders.records import all_good, bench_result, router_result, server

TEMPLATES = Path(__file__).resolve().parents[3] / "templates"
EVIL = "<script>alert(1)</script>"


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
        **bench_result().figures,
        "ttft_ms_p50": percentile_figure(first_ms(cold), 0.5, "ms"),
        "itl_ms_p50": percentile_figure(between_ms(alone), 0.5, "ms"),
        "e2e_ms_p50": percentile_figure(whole_ms(alone), 0.5, "ms"),
    }
    results = all_good() | {"bench": bench_result().model_copy(update={"raw": "artifacts/raw/bench.jsonl.gz", "figures": figures})}
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
        gzip.compress(b"{}", mtime=0)[:10] + b"\xff" * 8,
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
