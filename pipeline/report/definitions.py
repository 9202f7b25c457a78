"""What the figures mean: each definition with the figures that it belongs to. A report shows those that it refers to."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from pipeline.report.language import Words

ALWAYS = ("bounds", "verdicts", "source")  # of the tables' own columns
# Of which figures each is, by <stage>.<figure>.
FIGURES = {
    "ttft": r"ttft",
    "send": r"ttft|e2e|[.]\w*latency_ms",
    "tpot": r"tpot",
    "itl": r"itl",
    "e2e": r"e2e|latency_ms|ms_per_token",
    "decode": r"decode_tok_s",
    "system": r"system_tok_s",
    "closed": r"system_tok_s|goodput_c\d",
    "open": r"(poisson|constant)_",
    "goodput": r"goodput|capacity",
    "strict": r"json_strict",
    "valid": r"schema_valid",
    "f1": r"macro_f1",
    "cost": r"constraint_",
    "tar": r"tarr|tara",
    "load": r"_(steady|range|change)_mib|drift_mib_h",
    "stable": r"_stable$",
    "pss": r"_pss_",
    "rss": r"_rss_",
}


@dataclass(frozen=True)
class Definition:
    """What a term means; `id` is that of its footnote."""

    id: str
    term: str
    text: str


def noted(metric: str) -> tuple[str, ...]:
    """Return the ids of the definitions that a figure needs."""
    return tuple(name for name, pattern in FIGURES.items() if re.search(pattern, metric))


def definitions(ids: Collection[str], t: Words) -> list[Definition]:
    """Return these definitions, and those that every report needs, in their order."""
    return [one for one in every(t) if one.id in ids or one.id in ALWAYS]


def every(t: Words) -> list[Definition]:
    """Return all definitions."""
    return [
        Definition(
            "verdicts",
            t("Verdicts"),
            t(
                "PASS (figure and bound meet the target), FAIL (the figure does not), INCONCLUSIVE (the figure does, its bound or its n "
                "does not), NOT_MEASURED (with the reason), SIMULATED (not a real vLLM; never a pass). A waived gate keeps its verdict "
                "and does not count for the exit code until its waiver expires."
            ),
        ),
        Definition(
            "bounds",
            t("Bounds"),
            t(
                "percentiles carry one-sided 95 % order-statistic bounds, shares two-sided 95 % Wilson intervals; n is the number of "
                "requests (samples for memory). A value is rounded at the second significant digit of half the width of its bounds, to "
                "three significant digits at most, and never across its target."
            ),
        ),
        Definition(
            "source",
            t("Source"),
            t(
                "the record of a stage, and the figure's name in it: the key is `data.figures.<name>`. The link leads to the figure in "
                "`report.json`, which holds value, bounds and n unrounded."
            ),
        ),
        Definition("ttft", "TTFT", t("first chunk with content − request send, in ms; the role chunk and empty chunks do not count.")),
        Definition(
            "send",
            t("Request send"),
            t(
                "the request's first byte on a connection that stands. In an open loop latency counts from the scheduled send instead, so "
                "that waiting is not hidden."
            ),
        ),
        Definition("tpot", "TPOT", t("(last token − first token) / (output tokens − 1), in ms; output tokens from the server's `usage`.")),
        Definition("itl", "ITL", t("gaps between chunks, in ms; a chunk may hold several tokens.")),
        Definition("e2e", t("E2E latency"), t("last token − request send.")),
        Definition("decode", t("Decode throughput"), t("1000 / TPOT at concurrency 1.")),
        Definition("system", t("System throughput"), t("output tokens / wall time of a closed loop.")),
        Definition(
            "closed",
            t("Closed loop"),
            t("a fixed number of requests in flight. While full: tok/s from the send that filled the loop to the last send."),
        ),
        Definition("open", t("Open loop"), t("requests arrive by a schedule, whatever the server does.")),
        Definition("goodput", "Goodput", t("share of all requests that meet every latency limit, failures in the denominator.")),
        Definition(
            "client",
            t("Chunk delay"),
            t(
                "from a stub's send to the client's stamp, on the same machine; over its budget (p95; `bench.client_delay_ms`), or at more "
                "than half of what the client can take, the figures are INVALID and count as not measured."
            ),
        ),
        Definition("strict", t("Strictly JSON"), t("the whole answer is one JSON object, without fence, NaN or repeated keys.")),
        Definition("valid", t("Valid"), t("strictly JSON, and it fits the schema.")),
        Definition("f1", "Macro-F1", t("mean over the golden routes of F1, bounds by bootstrap.")),
        Definition("cost", t("Cost of the schema"), t("median of the differences, case by case.")),
        Definition("tar", "TAR", t("share of prompts whose N answers all agree: as raw text (TARr@N), as canonical JSON (TARa@N).")),
        Definition(
            "load",
            t("Steady, range, drift"),
            t(
                "of the last `vram.load_s` seconds in which requests were in flight, whichever test sent them (of a soak: of its own "
                "load), without the first 60 s of load after a start (a fifth of a shorter load). Range: the largest within one start. "
                "Drift: Theil–Sen slope over pairs of "
                "samples of one start, with two-sided 95 % bounds."
            ),
        ),
        Definition(
            "stable",
            t("Stable"),
            t(
                "100 or 0 %: the bounds of the drift reach 0 or below, range ≤ 64 MiB, no preemption under load; its n is the seconds of "
                "load."
            ),
        ),
        Definition("pss", "PSS", t("memory of the server's processes with shared pages split among those who share them.")),
        Definition("rss", "RSS", t("memory of the server's processes with shared pages counted in each.")),
    ]
