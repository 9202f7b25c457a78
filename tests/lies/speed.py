"""Lies about speed: the pace of tokens, their number, and what happens in company or after a while."""

from typing import Any

from pipeline.measure.verdicts import Verdict
from tests.fakes.script import Script
from tests.lies.front import Front, Twist
from tests.lies.lie import FAILS, INVALID, LONG_MS, NO_PASS, UNBELIEVED, Lie, Situation, Twin, gate, gate_on
from tests.lies.neighbour import late_client, wall_clock_jumps
from tests.lies.servers import BlankFirst, Counts, Drops, Flushes, Hides, Pauses, Queues, Restarts, renamed

# One request at a time, and nothing else that takes time.
ALONE: dict[str, Any] = {"ttft_requests": 3, "decode_requests": 5, "output_tokens": 16, "concurrency": (1,), "open_loop": ()}
IN_PAIRS: dict[str, Any] = {**ALONE, "output_tokens": 4, "concurrency": (1, 2), "limits": {"tpot_ms": 120}}
FIRST_AT_TWO = 14  # the number of the first request at concurrency 2 with these settings
FIRST_COLD = 2
TOO_FAST = 1.5  # a lie is after a rate that is so many times the true one, which no jitter of a loaded machine shows
HONEST_RATE = gate("throughput", target=1)  # n = 5 requests


def paced(each_s: float, twist: Any = None, **script: Any) -> Situation:
    """Return a server that takes so long for each token."""
    return Situation(lambda: Script(first_token_s=each_s, inter_token_s=each_s, **script), twist)


def of_rate(name: str, says: str, each_s: float, twist: Any, output_tokens: int = 16, **more: Any) -> Lie:
    """Return a lie that makes a server look faster than it is."""
    fast = TOO_FAST / each_s
    target = gate("throughput", target=round(fast, 1))
    settings = {**ALONE, "output_tokens": output_tokens}
    lie: dict[str, Any] = {"allowed": NO_PASS, "truth": (0, fast), "settings": settings, **more}
    return Lie(name, says, "bench", target, paced(each_s, twist), twin=Twin(paced(each_s, Twist), HONEST_RATE), **lie)


def of_usage(name: str, says: str, change: Any) -> Lie:
    """Return a lie about the number of tokens."""
    return Lie(name, says, "bench", gate("throughput", target=1), paced(0.005, lambda: Counts(change)), NO_PASS, settings=ALONE)


def counted(tokens: Any) -> Any:
    """Return what counts an answer's tokens as `tokens` of them."""
    return lambda usage: {**usage, "completion_tokens": tokens(usage["completion_tokens"])}


FLUSHES = [
    of_rate(
        f"flush-{count}",
        f"holds tokens back and sends {count} at once, so that the first of them seem late and all others free",
        each_s,
        lambda count=count: Flushes(count),
        2 * count,
    )
    for count, each_s in ((4, 0.02), (16, 0.008), (32, 0.004))
]

HIDDEN = [
    of_rate("hidden-leading-chunks", "half of the tokens come first, in empty chunks", 0.01, lambda: Hides(leading=8, in_chunks=True)),
    of_rate("hidden-leading", "half of the tokens come first, in no chunk at all", 0.01, lambda: Hides(leading=8)),
    of_rate("hidden-trailing-chunks", "half of the tokens come last, in empty chunks", 0.01, lambda: Hides(trailing=8, in_chunks=True)),
    of_rate("hidden-trailing", "half of the tokens come last, in no chunk at all", 0.01, lambda: Hides(trailing=8)),
]

USAGES = [
    of_usage("usage-doubled", "counts each token twice", counted(lambda tokens: 2 * tokens)),
    of_usage("usage-missing", "counts no tokens at all", lambda _usage: None),
    of_usage("usage-negative", "counts the tokens below zero", counted(lambda tokens: -tokens)),
    of_usage("usage-zero", "counts 0 tokens", counted(lambda _tokens: 0)),
    of_usage("usage-huge", "counts 10^30 tokens", counted(lambda _tokens: 10**30)),
    of_usage("usage-large", "counts 10^12 tokens", counted(lambda _tokens: 10**12)),
    of_usage("usage-text", "gives the count of tokens as a text", counted(str)),
    of_usage("prompt-halved", "counts half of the prompt's tokens", lambda usage: {**usage, "prompt_tokens": usage["prompt_tokens"] // 2}),
]

LENGTHS = [
    of_rate("ignores-ignore-eos", "stops where it likes to", 0.005, lambda: Drops("ignore_eos"), truth=None, allowed=UNBELIEVED),
    of_rate("too-short", "stops at half of max_tokens", 0.005, lambda: Drops(max_tokens=8), truth=None, allowed=UNBELIEVED),
    of_rate("too-long", "goes on to twice max_tokens", 0.005, lambda: Drops(max_tokens=32), truth=None, allowed=UNBELIEVED),
]


def blank(name: str, says: str, told: bool, allowed: frozenset[Verdict]) -> Lie:
    slow = Situation(lambda: Script(first_token_s=0.1), lambda: BlankFirst(told))
    early = gate("first_token_latency", target=50, judge_by="point", min_n=3)
    honest = Situation(lambda: Script(first_token_s=0.1), Twist)
    twin = Twin(honest, early.model_copy(update={"target": LONG_MS}))
    return Lie(name, says, "bench", early, slow, allowed, (100, LONG_MS), twin, {**ALONE, "decode_requests": 1})


FIRSTS = [
    blank("blank-first", "sends a blank before it has read the prompt", False, NO_PASS),
    blank("blank-first-told", "sends a token's id with the blank, while the engine's own histogram tells the true TTFT", True, INVALID),
    Lie(
        "salt-ignored",
        "has a prefix cache that ignores the salt: the cold arm is warm from an earlier measurement",
        "bench",
        gate("first_token_latency", target=LONG_MS, judge_by="point", min_n=3),
        Situation(lambda: Script(cached_tokens=None), lambda: Drops("cache_salt"), visits=2),
        UNBELIEVED,
        twin=Twin(Situation(lambda: Script(cached_tokens=None), Twist, visits=2)),
        settings={**ALONE, "decode_requests": 1},
    ),
    Lie(
        "warm-unseen",
        "calls a cache warm whose counter of hits was renamed: it may be cold",
        "bench",
        gate_on("bench.ttft_warm_ms_p50", "<", LONG_MS, "ms"),
        Situation(lambda: Script(cached_tokens=None), lambda: renamed("vllm:prefix_cache_hits_total")),
        frozenset({"NOT_MEASURED"}),
        twin=Twin(Situation(lambda: Script(cached_tokens=None), Twist)),
        settings=ALONE,
    ),
    Lie(
        "survivors",
        "fails the 3 of 64 requests that would have been slow, so that p95 is that of the others",
        "bench",
        gate("first_token_latency", target=LONG_MS),
        Situation(lambda: Script(by_number={str(FIRST_COLD + number): {"status": 500} for number in (9, 30, 51)})),
        frozenset({"FAIL", "INVALID", "INCONCLUSIVE"}),
        settings={**ALONE, "ttft_requests": 64, "decode_requests": 1},
    ),
]


def slow_where(name: str, says: str, when: Any, each_s: float = 0.002, requests: int = 4) -> Lie:
    """Return a lie of a server that is slow where it hopes that nobody looks."""
    settings = {**IN_PAIRS, "requests_per_level": requests}
    goodput = gate_on("bench.goodput_c2", ">=", 80)
    slow = paced(each_s, lambda: Pauses(0.15, when))
    return Lie(name, says, "bench", goodput, slow, FAILS, (0, 80), Twin(paced(each_s)), settings)


def in_company(front: Front, _number: int) -> bool:
    return front.in_flight > 1


OTHERS = [
    slow_where("slow-in-company", "is fast alone and slow as soon as a second request comes", in_company),
    of_rate("slow-alone", "is slow alone and fast in company", 0.02, lambda: Pauses(0.02, lambda front, _number: front.in_flight == 1)),
    slow_where("tires-after-requests", "slows down after 14 requests", lambda _front, number: number >= FIRST_AT_TWO),
    # In place of 10 s or a minute: the load of this test lasts 1.2 s at least.
    slow_where("tires-after-a-second", "slows down after a second", lambda front, _number: front.running_s > 1, 0.03, 12),
]


COUNTERS = [
    Lie("counters-still", "has counters that stand still", "bench", HONEST_RATE, paced(0.002, counting=0), UNBELIEVED, settings=ALONE),
    Lie(
        "counters-ahead", "has counters that run twice as fast", "bench", HONEST_RATE, paced(0.002, counting=2), UNBELIEVED, settings=ALONE
    ),
    Lie(
        "counters-reset",
        "sets its counters back in mid-run",
        "bench",
        HONEST_RATE,
        paced(0.002, lambda: Restarts(6, new_start=False)),
        UNBELIEVED,
        settings=ALONE,
    ),
    Lie(
        "restart",
        "is started again in mid-run: the counters begin at 0, by another process",
        "bench",
        HONEST_RATE,
        paced(0.002, lambda: Restarts(6)),
        UNBELIEVED,
        settings=ALONE,
    ),
]


CLIENT = [
    Lie(
        "busy-neighbour",
        "shares the client's core with a neighbour: the client stamps each block 3 ms late",
        "bench",
        HONEST_RATE,
        Situation(lambda: Script(inter_token_s=0.002), around=late_client),
        INVALID,
        # A real calibration too, with a budget that a loaded machine keeps.
        twin=Twin(Situation(lambda: Script(inter_token_s=0.002)), settings={"client_delay_ms": 500.0}),
        settings={**ALONE, "calibrate": True},
    ),
    Lie(
        "clock-step",
        "has a wall clock that jumps by an hour to and fro; nothing may follow from it, because durations come from another clock",
        "bench",
        HONEST_RATE,
        Situation(lambda: Script(inter_token_s=0.005), around=wall_clock_jumps),
        frozenset({"PASS"}),
        (0, TOO_FAST / 0.005),
        Twin(paced(0.005)),
        ALONE,
    ),
    Lie(
        "one-start",
        "passes by 5 % on one start, where starts differ by 10 %",
        "bench",
        gate("throughput", judge_by="point"),
        paced(0.005),
        frozenset({"INCONCLUSIVE"}),
        twin=Twin(paced(0.005), margin=0.5),
        settings=ALONE,
        margin=0.05,
    ),
    Lie(
        "falls-behind",
        "cannot keep up with the open loop: each request waits longer than the one before, so latency says how long it lasted",
        "bench",
        gate_on("bench.constant_e2e_ms_p95", "<", LONG_MS, "ms"),
        Situation(twist=lambda: Queues(0.25)),
        # On a loaded machine the closed loop, and so the offered rate, may be so slow that the server keeps up: then nobody waits for long.
        frozenset({"INVALID", "FAIL", "PASS"}),
        (0, 2000),
        # At half of the closed loop's rate nobody waits for long.
        twin=Twin(Situation(twist=lambda: Queues(0.25)), settings={"open_share": 0.5, "open_requests": 8}),
        settings={**ALONE, "decode_requests": 2, "open_loop": ("constant",), "open_requests": 40, "open_share": 2.3},
    ),
]

LIES = [*FLUSHES, *HIDDEN, *USAGES, *LENGTHS, *FIRSTS, *OTHERS, *COUNTERS, *CLIENT]
