"""Memory samples: gaps, what is stable and what is not, and the GPU's state."""

import math
from itertools import pairwise
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.measure.figures import Figure
from pipeline.measure.memory import (
    Budget,
    Digest,
    Sample,
    States,
    gaps,
    gpu_points,
    host_points,
    latest,
    series_figures,
    settled,
    shared,
    told_apart,
    total_s,
    under_load,
    united,
    warmed_s,
    with_warm_up_s,
)
from pipeline.measure.verdicts import judge

LOAD_S = 900.0
BUDGET = Budget(mib=224, horizon_h=24)  # as shipped


def series(rise_s: float = 0.0, steps: int = 0, size: float = 1.0, until: float = LOAD_S) -> list[tuple[float, float]]:
    """Return five samples a second of 4000 MiB that rises, and stands higher by `size` after each of so many moments."""
    first, last = 60.0, until
    moments = [first + (last - first) * (number + 1) / (steps + 1) for number in range(steps)]
    return [(at / 5, 4000 + rise_s * at / 5 + size * sum(at / 5 >= each for each in moments)) for at in range(-100, int(5 * until) + 1)]


def figures(points: list[tuple[float, float]], span: float = LOAD_S, name: str = "vram", budget: Budget = BUDGET) -> dict[str, Figure]:
    return series_figures(name, [points], [(0.0, span)], settled([(0.0, span)]), budget, "no GPU")


def verdict(figure: Figure) -> str:
    """Return how the shipped gate would judge it."""
    return judge(figure, "==", 100, 300, by_bound=False, simulated=False).verdict


@pytest.mark.parametrize(
    ("found", "said", "why"),
    [
        (figures(series()), "PASS", ""),
        (figures(series(rise_s=-0.1)), "PASS", ""),
        (figures(series(rise_s=0.1)), "FAIL", "rises by at least 8434 MiB in 24 h of load; 224 are allowed"),
        (figures(series(rise_s=7.9, until=10), span=10), "FAIL", "rises by at least 660"),  # 27.8 GiB an hour
        (figures(series(until=10), span=10), "NOT_MEASURED", "between -21600 and 21600 MiB in 24 h; about 840 s of load"),
        (figures(series(until=300), span=300), "NOT_MEASURED", "between -720 and 720 MiB in 24 h; about 840 s of load after one start"),
        (figures(series(steps=1, until=300), span=300), "NOT_MEASURED", "the load was too short to say so"),
        (figures(series(steps=1)), "NOT_MEASURED", "between -205.7 and 519.5 MiB in 24 h; about 5500 s of load"),
        (figures(series(steps=1, size=70)), "NOT_MEASURED", "the load was too short to say so"),
        (figures(series(steps=3)), "NOT_MEASURED", "the load was too short to say so"),
        (figures(series(steps=9)), "FAIL", "MiB in 24 h of load; 224 are allowed"),
        (figures(series(), name="host_rss"), "PASS", ""),
        (figures(series(until=60), span=60, name="host_rss"), "INCONCLUSIVE", ""),
        (figures(series(until=40), span=40, name="host_rss"), "NOT_MEASURED", "between -270 and 270 MiB in 24 h; about 49 s of load"),
        (figures(series(until=300), span=300, budget=Budget(mib=768, horizon_h=24)), "PASS", ""),
        (figures(series(rise_s=0.1), budget=Budget(mib=224, horizon_h=0.5)), "PASS", ""),
    ],
)
def test_stable_is_the_drift_over_a_horizon_within_a_budget(found: dict[str, Figure], said: str, why: str) -> None:
    assert verdict(found["vram_stable" if "vram_stable" in found else "host_rss_stable"]) == said
    assert why in found["vram_stable" if "vram_stable" in found else "host_rss_stable"].reason


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (figures(series(until=850)), "samples are missing for 50 s of 900 s of load"),
        (figures([(100.0, 4000.0), (200.0, 4000.0)]), "n = 2 samples are too few for a bound of the slope"),
        (figures([]), "no GPU"),
        (figures([(-1.0, 4000.0)]), "no GPU"),
    ],
)
def test_what_is_not_known_is_not_stable(found: dict[str, Figure], why: str) -> None:
    assert found["vram_stable"].value is None
    assert found["vram_stable"].reason == why
    assert verdict(found["vram_stable"]) == "NOT_MEASURED"


@given(st.integers(10, 1200), st.sampled_from([0, 1, 4]))
def test_no_load_that_could_hide_a_leak_passes_whatever_the_samples(span: int, rise: int) -> None:
    points = [(float(at), 4000.0 + rise * at) for at in range(span + 1)]
    assert (verdict(figures(points, float(span))["vram_stable"]) == "PASS") == (span >= 833 and rise == 0)


@pytest.mark.parametrize("slowness_s", [10, 60, 100])
def test_a_warm_up_that_goes_on_is_no_leak(slowness_s: float) -> None:
    curve = [(at / 5, 4000 - 50 * math.exp(-at / 5 / slowness_s)) for at in range(1501)]
    found = figures(curve, 300.0)["vram_stable"]
    assert found.value is None
    assert "it may still be settling" in found.reason or "too short" in found.reason


def test_the_load_that_the_shipped_budget_needs_is_less_than_the_shipped_load() -> None:
    assert BUDGET.load_s("vram") < 900
    assert Budget(mib=768, horizon_h=24).load_s("vram") < 300
    points = [(at / 5, 4000.0) for at in range(int(5 * BUDGET.load_s("vram")))]
    assert figures(points, BUDGET.load_s("vram"))["vram_stable"].value == 100


def test_a_night_between_two_loads_thins_no_leak() -> None:
    spans = [(0.0, 400.0), (30_000.0, 30_400.0)]
    points = [(at, 4000 + 0.1 * (at if at < 500 else at - 29_600)) for at in (*map(float, range(401)), *map(float, range(30_000, 30_401)))]
    assert under_load(points, spans)[-1] == pytest.approx((800 / 3600, 4080))
    drift = series_figures("vram", [points], spans, spans, BUDGET, "")["vram_drift_mib_h"]
    assert drift.value == pytest.approx(360, rel=0.01)


@given(st.floats(0.1, 5000))
def test_a_load_with_its_warm_up_leaves_what_was_asked(settled_s: float) -> None:
    assert warmed_s(with_warm_up_s(settled_s)) == pytest.approx(settled_s)


def test_figures_of_a_load_leave_its_warm_up_out_and_the_peak_in() -> None:
    warm = [(float(at), 9000.0 if at < 60 else 4000.0 + at % 2) for at in range(301)]
    found = figures(warm, 300.0)
    assert (found["vram_peak_mib"].value, found["vram_peak_mib"].n) == (9000, 301)
    assert (found["vram_range_mib"].value, found["vram_range_mib"].n) == (1, 241)
    assert found["vram_steady_mib"].value in (4000, 4000.5, 4001)
    assert found["vram_change_mib"].value in (-0.5, 0, 0.5)


def test_drift_is_told_per_hour_with_its_interval() -> None:
    drift = figures(series(rise_s=0.01, until=300), span=300)["vram_drift_mib_h"]
    assert drift.value == pytest.approx(36)
    assert (drift.low, drift.high) == pytest.approx((36 - 30, 36 + 30), abs=0.1), "one step of 2 MiB in 240 s"
    assert (drift.unit, drift.n) == ("MiB/h", 1201)


@pytest.mark.parametrize(("span", "calm"), [((0, 300), (60, 300)), ((0, 7200), (60, 7200)), ((100, 110), (102, 110))])
def test_warm_up_is_a_minute_or_a_fifth_of_a_short_load(span: tuple[float, float], calm: tuple[float, float]) -> None:
    assert settled([span]) == [calm]


SPANS = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 20)), max_size=12).map(
    lambda drawn: [(float(begin), float(begin + length)) for begin, length in drawn]
)


def moments(spans: list[tuple[float, float]]) -> set[int]:
    """Return the whole seconds that begin within the spans."""
    return {second for begin, end in spans for second in range(int(begin), int(end))}


@given(SPANS)
def test_united_spans_are_the_same_times_apart_and_in_order(spans: list[tuple[float, float]]) -> None:
    found = united(spans)
    assert moments(found) == moments(spans)
    assert total_s(found) == len(moments(spans))
    assert all(end < begin for (_, end), (begin, _) in pairwise(found))


def test_a_moment_between_two_requests_parts_no_load_and_a_pause_does() -> None:
    assert united([(0.0, 1.0), (1.04, 2.0), (2.3, 3.0)]) == [(0.0, 2.0), (2.3, 3.0)]


@given(SPANS, st.integers(1, 300))
def test_the_latest_seconds_are_those_of_the_end(spans: list[tuple[float, float]], seconds: int) -> None:
    found = latest(united(spans), seconds)
    assert moments(found) == set(sorted(moments(spans))[-seconds:])
    assert total_s(found) == min(seconds, len(moments(spans)))


@given(SPANS, SPANS)
def test_shared_times_are_those_of_both(some: list[tuple[float, float]], others: list[tuple[float, float]]) -> None:
    assert moments(shared(united(some), united(others))) == moments(some) & moments(others)


@pytest.mark.parametrize(("load_s", "left_s"), [(300, 240), (7200, 7140), (10, 8), (0, 0)])
def test_a_launchs_warm_up_is_dropped_once(load_s: float, left_s: float) -> None:
    assert warmed_s(load_s) == left_s


WIDE = Budget(mib=1100, horizon_h=24)


def over_a_restart(second: float, rise_s: float = 0.0) -> dict[str, Figure]:
    """Return the figures of a launch at 4000 MiB and, after a restart, of one at another level, each with 200 s of load."""
    first = [(at / 5, 4000 + rise_s * at / 5) for at in range(1000)]
    again = [(at / 5, second + rise_s * (at / 5 - 300)) for at in range(1500, 2500)]
    return series_figures("vram", [first, again], [(0.0, 200.0), (300.0, 500.0)], [(40.0, 200.0), (340.0, 500.0)], WIDE, "no GPU")


def test_a_restart_at_another_level_is_neither_range_nor_drift_and_its_peak_counts() -> None:
    found = over_a_restart(4500)
    assert (found["vram_range_mib"].value, found["vram_drift_mib_h"].value, found["vram_change_mib"].value) == (0, 0, 0)
    assert (found["vram_peak_mib"].value, found["vram_peak_mib"].n) == (4500, 2000)
    assert (verdict(found["vram_stable"]), found["vram_stable"].n) == ("PASS", 400)


def test_a_rise_within_each_launch_is_a_drift_though_the_restart_takes_it_back() -> None:
    found = over_a_restart(4000, rise_s=0.1)
    assert found["vram_drift_mib_h"].value == pytest.approx(360)
    assert verdict(found["vram_stable"]) == "FAIL"


def test_load_of_a_launch_whose_samples_are_gone_is_missing() -> None:
    points = [(at / 5, 4000.0) for at in range(1500, 2500)]
    found = series_figures("vram", [[], points], [(0.0, 200.0), (300.0, 500.0)], [(0.0, 200.0), (300.0, 500.0)], WIDE, "no GPU")
    assert found["vram_stable"].reason == "samples are missing for 200 s of 400 s of load"
    assert found["vram_range_mib"].value == 0


def test_a_sum_of_spans_that_lacks_a_billionth_is_the_whole_seconds() -> None:
    spans = [(at + 0.1, at + 0.2) for at in range(3000)]
    points = [(at / 20, 4000.0) for at in range(60_000)]
    assert series_figures("vram", [points], spans, spans, WIDE, "")["vram_stable"].n == 300


def test_a_gap_is_more_than_three_periods_and_ends_count() -> None:
    times = [at / 5 for at in range(100) if not 20 <= at < 30 and not 50 <= at < 52]
    found = gaps(times, [(0.0, 25.0)])
    assert found.count == 2, "0.6 s is no gap at 5 Hz, 2.2 s within and 5.2 s at the end are"
    assert found.longest_s == pytest.approx(5.2)
    assert found.total_s == pytest.approx(7.4)


@given(st.integers(2, 200), st.floats(0.05, 5))
def test_even_samples_have_no_gap(n: int, period: float) -> None:
    times = [number * period for number in range(n)]
    assert gaps(times, [(times[0], times[-1])]).count == 0


def test_pauses_between_loads_are_no_gaps() -> None:
    times = [float(at) for at in [*range(60), *range(1000, 1060)]]
    assert gaps(times, [(0.0, 59.0), (1000.0, 1059.0)]).count == 0
    assert gaps(times, [(0.0, 1059.0)]).count == 1


def state(**fields: Any) -> Sample:
    return {"t": 0.0, "devices": [fields]}


COOL = state(util_percent=90, temperature_c=60, power_w=100.5, sm_clock_mhz=2000, throttle=["gpu_idle"])
HOT = state(util_percent=99, temperature_c=87, power_w=115.0, sm_clock_mhz=900, throttle=["sw_thermal_slowdown", "sw_power_cap"])


def states(*samples: Sample) -> States:
    made = States()
    for sample in samples:
        made.add(sample)
    return made


def test_states_are_medians_and_the_share_of_throttled_samples() -> None:
    found = states(HOT, HOT, COOL).figures("none")
    assert {name: figure.value for name, figure in found.items()} == {
        "gpu_utilization": 99,
        "gpu_temperature_c": 87,
        "gpu_power_w": 115,
        "gpu_clock_mhz": 900,
        "gpu_throttled": pytest.approx(200 / 3),
    }
    assert states(HOT, HOT, COOL).reasons == {"sw_power_cap": 2, "sw_thermal_slowdown": 2}


def test_states_of_two_launches_are_those_of_all_their_samples() -> None:
    both, whole = states(HOT) + states(HOT, COOL), states(HOT, HOT, COOL)
    assert both.figures("") == whole.figures("")
    assert both.reasons == whole.reasons


def test_states_that_the_driver_does_not_tell_are_not_measured() -> None:
    found = states(state(util_percent=50), {"t": 1.0}).figures("the driver does not tell")
    assert found["gpu_utilization"].n == 1
    assert {figure.reason for name, figure in found.items() if name != "gpu_utilization"} == {"the driver does not tell"}


def test_of_two_devices_the_one_with_the_servers_memory_counts() -> None:
    both = {"t": 0.0, "devices": [*HOT["devices"], *COOL["devices"]]}
    assert states(both).figures("")["gpu_temperature_c"].value == 87
    assert states({**both, "gpu_tree_mib": [None, 3000.0]}).figures("")["gpu_temperature_c"].value == 60
    assert states({**both, "gpu_tree_mib": [None, 3000.0]}).reasons == {}


def test_each_device_has_a_peak_of_its_own() -> None:
    digest = Digest()
    samples: list[Sample] = [
        {"t": 0.0, "gpu_used_mib": [100.0, 50.0, None], "gpu_tree_mib": [None, None, None]},
        {"t": 1.0, "processes": 2, "gpu_used_mib": [4100.0, 3050.0, None], "gpu_tree_mib": [None, None, None]},
        {"t": 2.0, "processes": 2, "gpu_used_mib": [4000.0, 3150.0, None], "gpu_tree_mib": [None, None, None]},
    ]
    digest.take(samples, [(0.0, 9.0)])
    assert digest.device_peaks_mib() == {0: 4000.0, 1: 3100.0}
    told = Digest()
    told.take([*samples, {"t": 3.0, "processes": 2, "gpu_used_mib": [1.0, 1.0], "gpu_tree_mib": [None, 2900.0]}], [(0.0, 9.0)])
    assert told.device_peaks_mib() == {1: 2900.0}, "the first one's memory is others'"


def test_errors_are_counted_by_name_and_leave_the_values_from_before() -> None:
    lost = [{"t": float(at), "processes": 2, "gpu_error": "GpuIsLost"} for at in range(3)]
    samples = [{"t": -1.0, "processes": 2, "gpu_used_mib": [500.0]}, *lost]
    digest = Digest()
    digest.take(samples, [(0.0, 1.0)])
    assert digest.errors == {"GpuIsLost": 3}
    assert told_apart(digest.own, digest.used, 100.0) == gpu_points(samples, 100.0)
    assert gpu_points(samples, 100.0)[1] == [(-1.0, 400.0)]


def test_host_memory_counts_from_the_first_process_on() -> None:
    samples: list[Sample] = [{"t": 0.0}, {"t": 1.0, "processes": 0, "rss_mib": 0.0}, {"t": 2.0, "processes": 1, "rss_mib": 5.0}]
    assert host_points(samples, "rss_mib") == [(2.0, 5.0)]


@given(st.lists(st.sampled_from([50.0, 60.0, 60.5, 87.0]), min_size=1))
def test_a_median_of_counted_values_is_their_median(values: list[float]) -> None:
    assert states(*(state(temperature_c=value) for value in values)).figures("")["gpu_temperature_c"].value == median(values)


@given(st.integers(1, 40))
def test_a_digest_is_the_same_in_one_piece_and_in_many(piece: int) -> None:
    samples: list[Sample] = [{"t": 0.0, "gpu_used_mib": [100.0]}]
    samples += [
        {**(HOT if at % 3 else COOL), "t": float(at), "processes": 2, "rss_mib": 1.0 * at, "gpu_used_mib": [9.0 * at]}
        for at in range(1, 90)
    ]
    whole, parts = Digest(), Digest()
    whole.take(samples, [(10.0, 20.0), (30.0, 80.0)])
    for begin in range(0, len(samples), piece):
        end = samples[min(begin + piece, len(samples)) - 1]["t"] - 0.5  # the load is always a little behind
        parts.take(samples[begin : begin + piece], [(10.0, min(end, 20.0)), *([(30.0, min(end, 80.0))] if end > 30 else [])])
    parts.take([], [(10.0, 20.0), (30.0, 80.0)])
    assert parts.states.figures("") == whole.states.figures("")
    assert (parts.loaded, parts.times, parts.used, parts.host, parts.baseline) == (62, whole.times, whole.used, whole.host, 100.0)
