"""What each figure is to a comparison: which direction is better, which differences matter, what it was measured under. Pure.

A figure that is not listed here is not compared; a test fails for one that a stage makes and that nobody has listed.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Kind:
    """A kind of figure: its unit, what is too small to matter, and how far it moves from start to start where nobody measured that.

    A difference matters above `absolute`, in the unit, and above `relative`, as a share of the smaller value. `noise` is a standard
    deviation between starts: of the logarithm, or in the unit where figures are compared `by` their difference; 0 of what is counted.
    """

    unit: str
    absolute: float
    relative: float = 0.0
    noise: float = 0.0
    by: Literal["ratio", "difference"] = "ratio"


# Two starts on an H100 decoded at 394 and 500 tok/s, two others at 364 and 405: standard deviations of 17 and 8 %.
TIMED = 0.1
LATENCY = Kind("ms", absolute=1, relative=0.02, noise=TIMED)
TOKEN_TIME = Kind("ms", absolute=0.1, relative=0.02, noise=TIMED)
THROUGHPUT = Kind("tok/s", absolute=0.5, relative=0.02, noise=TIMED)
REQUEST_RATE = Kind("requests/s", absolute=0.01, relative=0.02, noise=TIMED)
# PSS at its peak was 2552, 2633 and 2658 MiB in three runs of the embedded model: a standard deviation of 2 %.
MEMORY = Kind("MiB", absolute=64, relative=0.02, noise=0.03)
# A range of 64 MiB is what counts as memory that holds still, so one start may show none of it and the next one all.
MOVEMENT = Kind("MiB", absolute=64, noise=64, by="difference")
ANSWERS = Kind("%", absolute=1, by="difference")
COUNT = Kind("", absolute=0.5, by="difference")
IN_TIME = Kind("%", absolute=1, noise=100 * TIMED, by="difference")  # a share that rests on time, such as goodput


@dataclass(frozen=True)
class Direction:
    """Which value of the figures `<stage>.<figure>` that match `pattern` is better, or why neither is.

    Figures are of the same thing only where the settings in `under` agree: SECTION.NAME, or a whole section.
    """

    pattern: str
    better: Better | None
    kind: Kind | None = None
    under: tuple[str, ...] = ()
    why: str = ""


LENGTH = ("bench.output_tokens",)
LOOPS = (*LENGTH, "bench.concurrency", "bench.open_loop")
MEETING = (*LENGTH, "limits")
PROMPTS = ("determinism.prompts", "determinism.count", "determinism.runs", "determinism.max_tokens")
LOAD = ("vram.load_s", "vram.concurrency")
SUITE = ("router.suite", "router.system", "router.max_tokens")
BOUND = (*SUITE, "determinism.constrained", "determinism.constrained_runs")
CASES = (*SUITE, "router.cases")
UNARY = (*SUITE, "router.unary_cases")
ARM = r"test-router\.(prompt_only|constrained)"
RIGHT = "(answered|json_strict|json_lenient|schema_valid|route_accuracy|route_macro_f1|tool_plan_accuracy|joint_accuracy)"
SERIES = r"measure-vram\.(vram|host_pss|host_rss)"

DIRECTIONS = (
    Direction(r"bench\.answered", "higher", ANSWERS, LOOPS),
    Direction(r"bench\.(ttft|ttfat|ttft_warm|first_byte)_ms_p\d\d", "lower", LATENCY),
    Direction(r"bench\.e2e_ms_p\d\d", "lower", LATENCY, LENGTH),
    Direction(r"bench\.(tpot|itl)_ms_p\d\d", "lower", TOKEN_TIME, LENGTH),
    Direction(r"bench\.decode_tok_s_p\d\d", "higher", THROUGHPUT, LENGTH),
    Direction(r"bench\.system_tok_s_c\d+", "higher", THROUGHPUT, LENGTH),
    Direction(r"bench\.goodput_c\d+", "higher", IN_TIME, MEETING),
    Direction(r"bench\.(poisson|constant)_(ttft|e2e)_ms_p\d\d", "lower", LATENCY, LENGTH),
    Direction(r"bench\.(poisson|constant)_goodput", "higher", IN_TIME, MEETING),
    Direction(r"bench\.(poisson|constant)_rate_req_s", None, why="it is the load that was offered"),
    Direction(r"bench\.capacity_req_s", "higher", REQUEST_RATE, (*MEETING, "bench.capacity_goodput")),
    Direction(rf"{ARM}_{RIGHT}", "higher", ANSWERS, CASES),
    Direction(rf"{ARM}_(repair_rate|truncated)", "lower", ANSWERS, CASES),
    Direction(rf"{ARM}_(ttft|latency)_ms_p\d\d", "lower", LATENCY, CASES),
    Direction(rf"{ARM}_unary_({RIGHT}|same_text)", "higher", ANSWERS, UNARY),
    Direction(rf"{ARM}_unary_(repair_rate|truncated)", "lower", ANSWERS, UNARY),
    Direction(rf"{ARM}_unary_latency_ms_p\d\d", "lower", LATENCY, UNARY),
    Direction(rf"{ARM}(_unary)?_route_gain_points", None, why="it is route accuracy less a share that the suite fixes"),
    Direction(r"test-router\.majority_baseline", None, why="it is the suite's"),
    Direction(r"test-router\.constraint_\w+", None, why="it compares two arms of the same run"),
    Direction(r"test-determinism\.(identical|tarr|tara|d4_identical)", "higher", ANSWERS, PROMPTS),
    Direction(r"test-determinism\.d2_identical", "higher", ANSWERS, (*PROMPTS, "determinism.cache_runs")),
    Direction(r"test-determinism\.d3_identical", "higher", ANSWERS, (*PROMPTS, "determinism.load", "determinism.load_runs")),
    Direction(r"test-determinism\.constrained_(identical|tarr|tara|d4_identical)", "higher", ANSWERS, BOUND),
    Direction(r"test-determinism\.constrained_d2_identical", "higher", ANSWERS, (*BOUND, "determinism.cache_runs")),
    Direction(r"test-determinism\.constrained_d3_identical", "higher", ANSWERS, (*BOUND, "determinism.load", "determinism.load_runs")),
    Direction(r"test-determinism\.d5_same_seed_identical", "higher", ANSWERS, (*PROMPTS, "determinism.control_temperature")),
    Direction(r"test-determinism\.d5_other_seed_identical", None, why="it is a control"),
    Direction(rf"{SERIES}_(peak|steady)_mib", "lower", MEMORY, LOAD),
    Direction(rf"{SERIES}_range_mib", "lower", MOVEMENT, LOAD),
    Direction(rf"{SERIES}_(change_mib|drift_mib_h)", None, why="it may be below 0, and how far from 0 it may be is for a gate to say"),
    Direction(rf"{SERIES}_stable", None, why="it is a verdict; peak, steady and range are compared"),
    Direction(r"measure-vram\.gpu_throttled", "lower", IN_TIME, LOAD),
    Direction(r"measure-vram\.(gpu_utilization|gpu_temperature_c|gpu_power_w|gpu_clock_mhz)", None, why="it is a state of the card"),
    Direction(r"measure-vram\.kv_cache_peak", None, why="it is how full the load made the cache"),
    Direction(r"measure-vram\.kv_filled_percent", None, why="it is how full the cache was made on purpose"),
    Direction(r"measure-vram\.preemptions", "lower", COUNT, LOAD),
    Direction(r"measure-vram\.plan_error", None, why="it is the plan's"),
)


@cache
def direction_of(metric: str) -> Direction | None:
    """Return what <stage>.<figure> is to a comparison; None of a figure that is not listed."""
    return next((entry for entry in DIRECTIONS if re.fullmatch(entry.pattern, metric)), None)
