"""Latency and throughput: the figures, the loops behind them, and the agreement of client and server."""

from pipeline.load.calibration import Calibration
from pipeline.load.levels import Level
from pipeline.message import Code, Digits, Message, _, plural
from pipeline.report.cells import Amount, Cell, Text, amount, comma_separated, glued, number
from pipeline.report.figures import rows
from pipeline.report.inputs import Inputs
from pipeline.report.parts import Scenario, Table
from pipeline.report.raw import latencies_of
from pipeline.report.sections.common import counter, milliseconds, reason_of
from pipeline.report.sections.speed_charts import speed_charts
from pipeline.report.sections.speed_levels import capacity_table, contention_facts, level_table, open_table, rate_of
from pipeline.stages.bench import BenchResult
from pipeline.stages.measure_vram import MemoryUse
from pipeline.vllm.ledger import LedgerEntry, MeanCheck

LABELS: dict[str, Text] = {
    "ttft_ms_p50": _("TTFT, cold prefix cache, median"),
    "ttft_ms_p95": _("TTFT, cold prefix cache, p95"),
    "ttfat_ms_p50": _("TTFAT, median"),
    "ttfat_ms_p95": _("TTFAT, p95"),
    "ttft_warm_ms_p50": _("TTFT, warm prefix cache, median"),
    "ttft_warm_ms_p95": _("TTFT, warm prefix cache, p95"),
    "first_byte_ms_p50": _("time to first byte, median"),
    "tpot_ms_p50": _("TPOT, median"),
    "itl_ms_p50": _("ITL, median"),
    "itl_ms_p95": _("ITL, p95"),
    "decode_tok_s_p50": _("decode throughput at concurrency 1, median"),
}


def speed(inputs: Inputs) -> Scenario:
    """Return the section of latency and throughput."""
    title = _("Latency and throughput")
    outcome = inputs.outcomes[BenchResult]
    data = outcome.data
    if data is None:
        return Scenario(title, reason_of(outcome))
    return Scenario(
        title,
        facts=[*how_facts(data), *trouble_facts(data, inputs.outcomes[MemoryUse].data)],
        figures=rows(outcome.stage, data.figures, labels(data), inputs.marks),
        tables=[table for table in (level_table(data), closed_table(data), open_table(data), capacity_table(data)) if table.rows],
        charts=speed_charts(data, latencies_of(data, inputs.root)),
    )


def labels(data: BenchResult) -> dict[str, Text]:
    """Return the figures' labels."""
    result = {**LABELS, "e2e_ms_p50": _("E2E latency of {tokens} tokens, median", tokens=data.output_tokens)}
    for entry in data.levels:
        loop = _("closed loop, concurrency {concurrency}", concurrency=entry.concurrency)
        result[f"system_tok_s_c{entry.concurrency}"] = _("system throughput, {loop}", loop=loop)
        result[f"goodput_c{entry.concurrency}"] = _("goodput, {loop}", loop=loop)
    for level in data.open_levels:
        loop = _("open loop, {arrival} arrivals at {rate} requests/s", arrival=level.arrival, rate=rate_of(level))
        result[f"{level.arrival}_ttft_ms_p95"] = _("TTFT from the scheduled send, p95, {loop}", loop=loop)
        result[f"{level.arrival}_e2e_ms_p50"] = _("E2E latency from the scheduled send, median, {loop}", loop=loop)
        result[f"{level.arrival}_e2e_ms_p95"] = _("E2E latency from the scheduled send, p95, {loop}", loop=loop)
        result[f"{level.arrival}_goodput"] = _("goodput, {loop}", loop=loop)
    return {**result, "capacity_req_s": _("capacity: highest rate that is sustained")}


def how_facts(data: BenchResult) -> list[Text]:
    """Return how the figures were measured."""
    first = _("failed") if data.first_request_ttft_ms is None else milliseconds(data.first_request_ttft_ms)
    bounds = {"TTFT": data.limits.ttft_ms, "TPOT": data.limits.tpot_ms, "E2E": data.limits.e2e_ms}
    limits = [glued(name, " < ", milliseconds(limit)) for name, limit in bounds.items() if limit is not None]
    return [
        _(
            "Prompt {prompt} tokens, {output} output tokens (ignore_eos), tokens per chunk {per_chunk}. Cold: a cache salt per "
            "request; warm: the same requests again.",
            prompt=data.prompt_tokens,
            output=data.output_tokens,
            per_chunk=_("not available") if data.tokens_per_chunk is None else number(data.tokens_per_chunk),
        ),
        _(
            "Tokens from the prefix cache by the server's own counter: cold {cold}, warm {warm}.",
            cold=counter(data.cold_hit_tokens),
            warm=counter(data.warm_hit_tokens),
        ),
        _(
            "First request of the run: {first} to the first token. Not counted: it, {warmups} warm-ups, and those of each concurrency.",
            first=first,
            warmups=data.warmups,
        ),
        _(
            "Goodput: requests that meet {limits} (the gates' limits), of all that were sent.",
            limits=comma_separated(limits) if limits else _("none"),
        ),
        *(ledger_fact(count) for count in data.ledger),
        *(mean_fact(check) for check in data.means),
        *([] if data.ceiling_chunks_s is None else [ceiling_fact(data.ceiling_chunks_s)]),
        *([] if data.replaced is None else [_("Idle connections replaced because the server had closed them: {n}.", n=data.replaced)]),
        *contention_facts(data),
    ]


def ceiling_fact(chunks_s: float) -> Message:
    """Return the client's ceiling in chunks per second."""
    return _(
        "The client against a stub: it takes {ceiling} chunks/s at most; delays and CPU time per chunk are below.", ceiling=number(chunks_s)
    )


def trouble_facts(data: BenchResult, memory: MemoryUse | None) -> list[Text]:
    """Return what casts doubt on some of the figures."""
    failed = sum(entry.failed for entry in data.levels) + sum(entry.failed for entry in data.open_levels)
    return [
        *(
            _("INVALID at concurrency {concurrency}: {why}.", concurrency=entry.concurrency, why=entry.invalid)
            for entry in data.levels
            if entry.invalid
        ),
        *(
            _("OVER-SATURATED at {rate} requests/s ({arrival}): latency kept rising.", rate=rate_of(entry), arrival=entry.arrival)
            for entry in data.open_levels
            if entry.overloaded
        ),
        *([_("SPREAD EVENLY: {n} answers did not say how many tokens each chunk carried.", n=data.uncounted)] if data.uncounted else []),
        *([_("CONTRADICTED: the usage of {n} answers is not what came.", n=data.contradictory)] if data.contradictory else []),
        *kernel_facts(data, memory),
        *([_("{failed} requests under load failed.", failed=failed)] if failed else []),
    ]


def ledger_fact(count: LedgerEntry) -> Message:
    """Return the client's count compared with the server's counter."""
    text = _(
        "Ledger, {name}: {client} by the client, {server} by the server's counter",
        name=Message(count.name),
        client=count.client,
        server=counter(count.server),
    )
    if count.server is None:
        return glued(text, ".")
    return glued(text, _(", equal") if count.agrees else _(", NOT EQUAL: other clients were served, or requests failed"), ".")


def mean_fact(check: MeanCheck) -> Message:
    """Return the client's mean compared with the server's metrics."""
    text = _(
        "Mean {name}: {client} ms by the client, {server} by the server's metrics",
        name=check.name,
        client=Digits(f"{check.client_ms:.4g}"),
        server=counter(None) if check.server_ms is None else glued(Digits(f"{check.server_ms:.4g}"), " ms"),
    )
    if check.server_ms is None:
        return glued(text, ".")
    tolerance = Digits(f"{check.tolerance_ms:.3g}")
    within = _(" (within {tolerance} ms)", tolerance=tolerance) if check.agrees else _(" (OUTSIDE {tolerance} ms)", tolerance=tolerance)
    return glued(text, within, ".")


def kernel_facts(data: BenchResult, memory: MemoryUse | None) -> list[Text]:
    """Return the kernels that the server compiled while measuring; empty if it did not watch for them."""
    if memory is None or memory.launch_id != data.launch_id or memory.compiled_kernels is None:
        return []
    names = memory.compiled_kernels
    if not names:
        return [_("No kernel compiled while measuring.")]
    return [
        _(
            "{kernels} compiled while measuring ({names}): the first requests that needed them were slower.",
            kernels=plural("1 kernel", "{count} kernels", len(names)),
            names=comma_separated(Code(name) for name in names),
        )
    ]


def closed_table(data: BenchResult) -> Table:
    """Return the table of closed loops, with the client's delays and CPU use."""
    return Table(
        _("Closed loops, and the client there"),
        [
            _("Concurrency"),
            _("Requests (warm-ups)"),
            _("Failed"),
            "tok/s",
            _("while full"),
            _("Client: chunk delay p50, p95"),
            _("per chunk"),
            _("CPU share"),
        ],
        # Not strict: an older record has no calibrations, and then the table has no rows.
        [closed_row(entry, calibration) for entry, calibration in zip(data.levels, data.calibrations, strict=False)],
        notes=("closed", "client"),
    )


def closed_row(entry: Level, calibration: Calibration) -> list[Cell]:
    """Return the row of a closed loop."""
    share = Digits(f"{100 * entry.client_cpu_share:.2g}")
    return [
        entry.concurrency,
        amount([entry.requests, " (", entry.warmups, ")"], entry.requests),
        entry.failed,
        number(entry.throughput_tok_s),
        _("never full") if entry.steady_tok_s is None else number(entry.steady_tok_s),
        Amount(milliseconds(calibration.delay_ms_p50, calibration.delay_ms_p95), calibration.delay_ms_p50),
        amount([number(calibration.cpu_us_per_chunk), " µs"], calibration.cpu_us_per_chunk),
        amount([_("{share} % of a core", share=share), clients(entry, calibration)], entry.client_cpu_share),
    ]


def clients(entry: Level, calibration: Calibration) -> Text:
    """Return the number of clients of a closed loop; empty for one."""
    if calibration.nodes:
        return _(
            ", {clients} clients on {nodes} nodes, times between them within {clock} ms",
            clients=calibration.processes,
            nodes=calibration.nodes,
            clock=number(entry.clock_ms),
        )
    return _(", {processes} processes", processes=calibration.processes) if calibration.processes > 1 else ""
