"""The speed section: the ledger, the loops, the client, kernels."""

import pytest

from pipeline.measure.figures import invalidated
from pipeline.vllm.ledger import LedgerEntry, MeanCheck
from tests.builders.house import House
from tests.builders.records import (
    bench_result,
    level_figures,
    memory_use,
)


def test_failed_requests_and_unequal_ledger_are_told(house: House) -> None:
    assert "- 2 requests under load failed." in house.text()
    assert "did not count the same" not in house.text()
    house.results["bench"] = bench_result().model_copy(update={"ledger": [LedgerEntry(name="output tokens", client=10, server=9)]})
    assert "NOT EQUAL" in house.text()
    assert "**Client and server did not count the same (output tokens 10 and 9)" in house.text().split("## ")[0]


@pytest.mark.parametrize(
    ("kernels", "says"),
    [
        ([], "- No kernel compiled while measuring.\n"),
        (["_a"], "- 1 kernel compiled while measuring (`_a`): the first requests that needed them were slower.\n"),
        (["_a", "_b"], "- 2 kernels compiled while measuring (`_a`, `_b`): the first requests that needed them were slower.\n"),
    ],
)
def test_kernels_that_compiled_in_mid_run_are_told(kernels: list[str], says: str, house: House) -> None:
    assert "compiled while measuring" not in house.text(), "nobody watched for them"
    house.results["measure-vram"] = memory_use().model_copy(update={"compiled_kernels": kernels})
    assert says in house.text()
    house.results["measure-vram"] = memory_use().model_copy(update={"compiled_kernels": kernels, "launch_id": "L2"})
    assert "compiled while measuring" not in house.text(), "of another launch"


def test_client_and_server_stand_side_by_side(house: House) -> None:
    text = house.text()
    assert "Ledger, output tokens: 10 by the client, 10 by the server's counter, equal." in text
    assert "Ledger, prompt tokens: 20 by the client, not available by the server's counter." in text
    assert "Tokens from the prefix cache by the server's own counter: cold 0, warm not available." in text
    assert "Mean TTFT: 42.5 ms by the client, 41.25 ms by the server's metrics (within 7 ms)." in text
    for server_ms, words in ((None, "not available by the server's metrics."), (30, "30 ms by the server's metrics (OUTSIDE 7 ms).")):
        check = MeanCheck(name="TTFT", requests=64, client_ms=42.5, server_ms=server_ms, tolerance_ms=7)
        house.results["bench"] = bench_result().model_copy(update={"means": [check]})
        assert words in house.text()


def test_load_and_the_client_there_are_tables(house: House) -> None:
    text = house.text()
    assert "| 4 | 16 (4) | 2 | 110 | 121 | 0.08, 0.21 ms | 41 µs | 3.1 % of a core, 2 processes |" in text
    data = bench_result()
    level, own = data.levels[0], data.calibrations[0]
    changed = {"levels": [level.model_copy(update={"clock_ms": 0.4})], "calibrations": [own.model_copy(update={"nodes": 3})]}
    house.results["bench"] = data.model_copy(update=changed)
    assert "3.1 % of a core, 2 clients on 3 nodes, times between them within 0.4 ms |" in house.text()
    assert "| poisson | 1.2 | 1.25 | 16 | 0 | 5 | 0.4, 1.1 ms | yes |" in text
    assert "| 2.5 | – | 90 | 75 % | ≥ 65.2 % | NO | NO |" in text
    assert "The client while the server answered 4 at once: a stub's chunks 0.3, 0.9 ms late (p50, p95)." in text
    assert "TTFT < 500 ms, TPOT < 20 ms (the gates' limits)" in text
    assert "OVER-SATURATED" not in text


def test_each_level_has_a_row_and_what_is_invalid_or_too_few_is_told(house: House) -> None:
    assert "| 4 in flight | 9 s | 16 | 2 | 87.5 % | 18.5 | 110, 150, 155, – | – | 111, 151, 156, – |" in house.text()
    assert "| poisson, 1.2 requests/s | 13 s | 16 | 0 | 87.5 % | 1.1 | 130, 170, 175, – |" in house.text()
    made = bench_result()
    levels = [made.levels[0].model_copy(update={"figures": level_figures(18.5, 60, "the client was late")})]
    house.results["bench"] = made.model_copy(update={"levels": levels, "open_levels": []})
    assert "| 4 in flight | 9 s | 16 | 2 | INVALID | INVALID | INVALID | – | INVALID | INVALID | INVALID |" in house.text()
    house.results["bench"] = made.model_copy(update={"levels": [levels[0].model_copy(update={"figures": {}})], "open_levels": []})
    assert "By level" not in house.text(), "an older version recorded none"


def test_a_figure_that_is_invalid_is_so_on_the_page_too(house: House) -> None:
    made = bench_result()
    house.results["bench"] = made.model_copy(update={"figures": invalidated(made.figures, "the client was late")})
    house.report()
    chip = '<span class="chip invalid">INVALID</span> <span class="note">the client was late</span>'
    assert chip in (house.root / "report.html").read_text(encoding="utf-8")


def test_a_rate_that_was_tried_again_says_so(house: House) -> None:
    trial = bench_result().trials[0].model_copy(update={"meets": True, "confirms": True, "overloaded": False, "came_per_s": 2.49})
    house.results["bench"] = bench_result().model_copy(update={"trials": [trial]})
    assert "| 2.5 | 2.49 | 90 | 75 % | ≥ 65.2 % | yes | yes, second trial |" in house.text()


def test_a_client_over_budget_and_a_server_that_falls_behind_are_told(house: House) -> None:
    made = bench_result()
    levels = [made.levels[0].model_copy(update={"invalid": "the client was late"})]
    opened = [made.open_levels[0].model_copy(update={"overloaded": True})]
    house.results["bench"] = made.model_copy(update={"levels": levels, "open_levels": opened, "trials": []})
    text = house.text()
    assert "- INVALID at concurrency 4: the client was late." in text
    assert "- OVER-SATURATED at 1.2 requests/s (poisson): latency kept rising." in text
    assert "Search for capacity" not in text


def test_arrivals_that_ended_too_soon_to_tell_are_told_with_what_to_do(house: House) -> None:
    made = bench_result()
    opened = [made.open_levels[0].model_copy(update={"overloaded": None})]
    house.results["bench"] = made.model_copy(update={"open_levels": opened})
    text = house.text()
    assert "- INVALID at 1.2 requests/s (poisson): latency rose until the arrivals ended, too soon to tell" in text
    assert "lower bench.open_share, or raise bench.open_min_s" in text
    assert "OVER-SATURATED" not in text
    assert [line.split("|")[-2].strip() for line in text.splitlines() if line.startswith("| poisson | ")] == ["–"]
