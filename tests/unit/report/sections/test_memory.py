"""The memory section: whose load, the plan, what was left, what speaks against stability."""

from typing import Any

import pytest

from pipeline.measure.figures import Figure
from pipeline.measure.memory import Gaps
from pipeline.server.state import Handle
from pipeline.stages.measure_vram import MemoryUse
from pipeline.vllm.breakdown import Breakdown
from pipeline.vllm.kv_fill import Fill
from tests.builders.house import House
from tests.builders.records import (
    PLAN,
    closing,
    figure,
    memory_use,
    server,
)


@pytest.mark.parametrize(
    ("load", "says"),
    [
        ({}, "90 samples from before the start; 15 s of load, 40 requests."),
        (
            {"seconds_by": {"test-router": 5.0, "bench": 10.0}, "requests": 0},
            "90 samples from before the start; 15 s of load count: test-router 5 s, bench 10 s; none was added.",
        ),
        (
            {"seconds_by": {"bench": 10.0, "measure-vram": 5.0}, "failed": 2, "error": "x"},
            "15 s of load count: bench 10 s; 5 s were added, 40 requests, of which 2 failed (x).",
        ),
        ({"seconds_by": {"measure-vram": 15.0}}, "15 s of load count; 15 s were added, 40 requests."),
    ],
)
def test_whose_load_the_memory_was_under_is_told(load: dict[str, Any], says: str, house: House) -> None:
    use = memory_use()
    house.results["measure-vram"] = use.model_copy(update={"load": use.load.model_copy(update=load)})
    assert says in house.text()


def test_a_memory_record_from_before_other_tests_load_counted_is_read() -> None:
    old = memory_use().model_dump(mode="json")
    del old["compiled_kernels"], old["load"]["seconds_by"]
    assert MemoryUse.model_validate(old) == memory_use()
    handle = server().handle.model_dump(mode="json")
    del handle["log_start"], handle["earlier"]
    assert Handle.model_validate(handle) == server().handle


def test_close_of_another_launch_is_not_taken_for_this_one(house: House) -> None:
    assert "ended when asked, port free" in house.text()
    assert "VRAM residual" not in house.text(), "the driver told none"
    house.results["stop"] = closing().model_copy(update={"gpu_used_before_mib": [100.0, 0.0], "gpu_used_after_mib": [112.0, 5.0]})
    assert "VRAM residual: 17 MiB above the baseline." in house.text()
    others: dict[str, Any] = {"gpu_used_before_mib": [42000.0], "gpu_used_after_mib": [185.0], "gpu_others_mib": [185.0]}
    house.results["stop"] = closing().model_copy(update=others)
    assert "VRAM residual: NOT_MEASURED, other programs freed 41815 MiB meanwhile." in house.text()
    house.results["stop"] = closing().model_copy(update={"gpu_used_before_mib": [100.0], "gpu_used_after_mib": [600.0]})
    told = "VRAM residual: NOT_MEASURED, 500 MiB more are held, by the server or by others: the driver does not tell."
    assert told in house.text()
    house.results["stop"] = closing().model_copy(update={"launch_id": "L0"})
    text = house.text()
    assert "After stop: NOT_MEASURED" in text
    assert "ended when asked" not in text


def test_plan_stands_beside_what_was_measured(house: House) -> None:
    use = memory_use()
    told = Breakdown(weights_mib=2000, kv_cache_mib=1800, kv_tokens=50000)
    figures = {**use.figures, "vram_peak_mib": figure(4500, "MiB")}
    house.results["measure-vram"] = use.model_copy(update={"figures": figures, "breakdown": told})
    house.results["serve"] = server().model_copy(update={"plan": PLAN})
    house.measured_on = house.results["serve"]
    text = house.text()
    assert "Peak: 4550 MiB planned, 4500 measured (+1.1 %)." in text
    assert "weights 1900 MiB (log: 2000), activations 200 MiB (not in the log)" in text
    assert "KV cache: 50000 tokens by the log, 45000 planned (-10.0 %)." in text


def test_of_several_devices_the_largest_stands_beside_the_plan(house: House) -> None:
    use = memory_use()
    figures = {**use.figures, "vram_peak_mib": figure(8500, "MiB")}
    house.results["measure-vram"] = use.model_copy(update={"figures": figures, "device_peaks_mib": {0: 4000.0, 2: 4500.0}})
    house.results["serve"] = server().model_copy(update={"plan": PLAN})
    house.measured_on = house.results["serve"]
    text = house.text()
    assert "VRAM, peak of each device: GPU 0 4000 MiB, GPU 2 4500 MiB." in text
    assert "Peak: 4550 MiB planned, 4500 measured (+1.1 %)." in text


def test_gaps_errors_failed_requests_and_what_speaks_against_stability_are_told(house: House) -> None:
    use = memory_use()
    unstable = Figure(value=0, unit="%", n=300, reason="rises by at least 36 MiB/h")
    house.results["measure-vram"] = use.model_copy(
        update={
            "figures": {**use.figures, "vram_stable": unstable},
            "gaps": Gaps(count=2, longest_s=3.25, total_s=5),
            "gpu_errors": {"GpuIsLost": 12},
            "load": use.load.model_copy(update={"failed": 3, "error": "HTTP 500", "preempted": 4}),
        }
    )
    text = house.text()
    assert "- Samples are missing: 2 gaps, 3.25 s the longest, 5 s in all." in text
    assert "- NVML failed in 12 samples: GpuIsLost." in text
    assert "15 s of load, 40 requests, of which 3 failed (HTTP 500)." in text
    assert "- NOT STABLE, VRAM: rises by at least 36 MiB/h." in text
    assert "- Preemptions since the start: 0." in text


def test_preemptions_and_the_filling_of_the_kv_cache_have_their_own_places(house: House) -> None:
    use = memory_use()
    filled = Fill(percent=57.6, readings=412, seconds=41.5, requests=256, preempted=0, why="256 requests of 4096 tokens are 58 % of it")
    figures = {**use.figures, "preemptions": figure(4, "", n=300), "kv_filled_percent": figure(57.6, "%", n=412)}
    house.results["measure-vram"] = use.model_copy(update={"fill": filled, "figures": figures, "pss_samples": 12})
    text = house.text()
    assert "| preemptions under load (n: seconds of load) | **4** (n = 300) |" in text
    assert "| KV cache filled once, highest reading[^filled] | **57.6 %** (n = 412) |" in text
    assert (
        "- The KV cache was filled once to 57.6 %, with 256 requests in 41.5 s: 256 requests of 4096 tokens are 58 % of it; "
        "preemptions meanwhile: 0." in text
    )
    assert "- Host memory (PSS): 12 samples under load." in text
    house.results["measure-vram"] = use.model_copy(update={"fill": Fill(why="vram.fill_s is 0")})
    assert "- The KV cache was not filled: vram.fill_s is 0." in house.text()
    house.results["measure-vram"] = use
    assert "KV cache was" not in house.text(), "an older version did not say"


def test_whole_samples_of_a_stable_server_are_no_news(house: House) -> None:
    text = house.text()
    assert all(words not in text for words in ("Samples are missing", "NVML failed", "NOT STABLE", "of which"))
