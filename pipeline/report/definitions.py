"""Definitions of the figures, each with a pattern of the figures it explains. A report shows those that it refers to."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from pipeline.message import Code, _
from pipeline.report.cells import Text

ALWAYS = ("bounds", "verdicts", "source")  # they explain columns of the tables
# Patterns of the figures that each definition explains, searched for in <stage>.<figure>.
FIGURES = {
    "ttft": r"ttft",
    "ttfat": r"ttfat",
    "send": r"ttf|e2e|[.]\w*latency_ms",
    "tpot": r"tpot",
    "itl": r"itl",
    "e2e": r"e2e|latency_ms|ms_per_token",
    "decode": r"decode_tok_s",
    "system": r"system_tok_s",
    "closed": r"system_tok_s|goodput_c\d",
    "open": r"(poisson|constant)_",
    "behind": r"(poisson|constant)_",
    "goodput": r"goodput|capacity",
    "capacity": r"capacity",
    "strict": r"json_strict",
    "valid": r"schema_valid",
    "f1": r"macro_f1",
    "cost": r"constraint_",
    "tar": r"tarr|tara|test-determinism",
    "load": r"_(steady|range|change)_mib|drift_mib_h",
    "stable": r"_stable$",
    "filled": r"kv_filled_percent",
    "pss": r"_pss_",
    "rss": r"_rss_",
}


@dataclass(frozen=True)
class Definition:
    """The definition of a term; `id` is the id of its footnote."""

    id: str
    term: Text
    text: Text
    on_page: Text = ""  # the variant for report.html, whose figures have no links


DEFINITIONS = (
    Definition(
        "verdicts",
        _("Verdicts"),
        _(
            "PASS (figure and bound meet the target), FAIL (the figure does not), INCONCLUSIVE (the figure does, its bound or its n "
            "does not), NOT_MEASURED (with the reason), INVALID (the measurement contradicts itself), SIMULATED (not a real vLLM; "
            "never a pass). A waived gate keeps its verdict and does not count for the exit code until its waiver expires."
        ),
    ),
    Definition(
        "bounds",
        _("Bounds"),
        _(
            "percentiles carry one-sided 95 % order-statistic bounds, shares two-sided 95 % Wilson intervals; n is the number of "
            "requests (prompts for determinism, samples for memory). A value is rounded at the second significant digit of half the "
            "width of its bounds, to three significant digits at most, and never across its target."
        ),
    ),
    Definition(
        "source",
        _("Source"),
        _(
            "the record of a stage, and the figure's name in it: the key is {key}. The link leads to the figure in {file}, which holds "
            "value, bounds and n unrounded.",
            key=Code("data.figures.<name>"),
            file=Code("report.json"),
        ),
        _(
            "the record of a stage, and the figure's name in it: the key is {key}. {file} beside this page holds value, bounds and n "
            "unrounded.",
            key=Code("data.figures.<name>"),
            file=Code("report.json"),
        ),
    ),
    Definition(
        "ttft",
        "TTFT",
        _("first chunk with content, reasoning or a tool call − request send, in ms; the role chunk and empty chunks do not count."),
    ),
    Definition(
        "ttfat",
        "TTFAT",
        _("first chunk of the answer, after the reasoning − request send, in ms. It equals TTFT where the model does not reason."),
    ),
    Definition(
        "send",
        _("Request send"),
        _(
            "the request's first byte on a connection that stands. In an open loop latency counts from the scheduled send instead, so "
            "that waiting is not hidden."
        ),
    ),
    Definition(
        "tpot",
        "TPOT",
        _(
            "(last token − first text) / (tokens that arrived after the first text), in ms. Tokens that arrive together with the first "
            "text, or before it, show no pace. The tokens of a chunk are its {field}; without them, the tokens of {usage} are spread "
            "evenly over the chunks.",
            field=Code("token_ids"),
            usage=Code("usage"),
        ),
    ),
    Definition(
        "itl", "ITL", _("gaps between chunks, in ms; a chunk may hold several tokens. n counts requests, which the bounds resample.")
    ),
    Definition("e2e", _("E2E latency"), _("last text or token − request send.")),
    Definition("decode", _("Decode throughput"), _("1000 / TPOT at concurrency 1.")),
    Definition("system", _("System throughput"), _("output tokens / wall time of a closed loop.")),
    Definition(
        "closed",
        _("Closed loop"),
        _(
            "a fixed number of requests in flight; it sends at least {requests} requests and lasts at least {seconds} seconds. While full: "
            "tok/s from the send that filled the loop to the last send.",
            requests=Code("bench.requests_per_level"),
            seconds=Code("bench.level_min_s"),
        ),
    ),
    Definition(
        "level",
        _("By level"),
        _(
            "nearest-rank percentiles of each loop, with their bounds in {record}; p99 only from 299 requests on, where it has an upper "
            "bound. The values of ITL depend on each other within a request, so n counts requests and there are no bounds.",
            record=Code("artifacts/bench.json"),
        ),
    ),
    Definition(
        "open",
        _("Open loop"),
        _(
            "requests arrive by a schedule, whatever the server does. Its rate is the one that came: (n − 1) / (last send − first send); "
            "Poisson arrivals are drawn given their number and their time, so that chance does not change the rate."
        ),
    ),
    Definition(
        "behind",
        _("Fell behind"),
        _(
            "latency rose in order of arrival by over 0.1 s per second (Theil–Sen), beyond chance (Kendall, 0.2 %), after the first "
            "median latency: the latencies then say how long the loop lasted, and are INVALID."
        ),
    ),
    Definition(
        "goodput",
        "Goodput",
        _("share of all requests that meet every latency limit, failures in the denominator; and such requests per second."),
    ),
    Definition(
        "capacity",
        _("Capacity"),
        _(
            "the highest Poisson rate, at most that of the best closed loop, that two trials sustained: the Wilson lower bound of goodput "
            "reached {goodput} %, and the server did not fall behind (by over 0.05 s per second). A trial lasts {seconds} s, ten times the "
            "p95 latency of the best closed loop and {requests} requests at least; those of its first p95 latency are not judged, because "
            "the server was still filling. The upper bound is the lowest rate that was not sustained.",
            goodput=Code("bench.capacity_goodput"),
            seconds=Code("bench.capacity_min_s"),
            requests=Code("bench.capacity_requests"),
        ),
    ),
    Definition(
        "client",
        _("Chunk delay"),
        _(
            "from a stub's send to the client's stamp, on the same machine, idle and once more while the server computes; over its budget "
            "(p95; {setting}), or at more than half of what the client can take, the figures are INVALID and count as not measured.",
            setting=Code("bench.client_delay_ms"),
        ),
    ),
    Definition("strict", _("Strictly JSON"), _("the whole answer is one JSON object, without fence, NaN or repeated keys.")),
    Definition("valid", _("Valid"), _("strictly JSON, and it fits the schema.")),
    Definition("f1", "Macro-F1", _("mean over the golden routes of F1, bounds by bootstrap.")),
    Definition("cost", _("Cost of the schema"), _("median of the differences, case by case.")),
    Definition(
        "tar",
        "TAR",
        _(
            "share of prompts whose N answers all agree: as raw text (TARr@N), as canonical JSON (TARa@N); it falls as N grows. "
            "In the shares of determinism n counts prompts."
        ),
    ),
    Definition(
        "load",
        _("Steady, range, drift"),
        _(
            "of the last {setting} seconds in which requests were in flight, whichever test sent them (of a soak: of its own "
            "load), without the first 60 s of load after a start (a fifth of a shorter load). Range: the largest within one start. "
            "Drift: Theil–Sen slope over hours of load, with two-sided 95 % bounds by a moving-block bootstrap of what was gained, wider "
            "by one step (2 MiB of VRAM, 0.1 of host memory) over the longest load after one start.",
            setting=Code("vram.load_s"),
        ),
    ),
    Definition(
        "stable",
        _("Stable"),
        _(
            "100 %: the upper bound of the drift over {horizon} hours of load is at most {budget}; 0 %: the lower bound is more; otherwise "
            "INCONCLUSIVE, with the bounds and the load that would tell. Its n is the seconds of load.",
            horizon=Code("vram.horizon_h"),
            budget=Code("vram.drift_budget_mib"),
        ),
    ),
    Definition(
        "filled",
        _("KV cache filled once"),
        _(
            "before the load, as many long requests as the server takes at once run until the gauge of the KV cache shows 90 % of what "
            "they can fill, for at most {setting} seconds; n is the readings.",
            setting=Code("vram.fill_s"),
        ),
    ),
    Definition("pss", "PSS", _("memory of the server's processes with shared pages split among those who share them.")),
    Definition("rss", "RSS", _("memory of the server's processes with shared pages counted in each.")),
)


def notes_of(metric: str) -> tuple[str, ...]:
    """Return the ids of the definitions that explain a figure."""
    return tuple(name for name, pattern in FIGURES.items() if re.search(pattern, metric))


def definitions(ids: Collection[str]) -> list[Definition]:
    """Return the definitions with these ids, and those that every report shows, in order."""
    return [one for one in DEFINITIONS if one.id in ids or one.id in ALWAYS]
