"""The guide's test 3: the server's GPU and host memory under load, and what remains after the stop."""

from pipeline.message import Digits, Message, _, plural
from pipeline.report.cells import Text, comma_separated, glued, number
from pipeline.report.figures import rows
from pipeline.report.inputs import Inputs
from pipeline.report.parts import Scenario
from pipeline.report.raw import samples_of
from pipeline.report.sections.common import counter, reason_of, reasons
from pipeline.report.sections.memory_pictures import PARTS, charts, pictures
from pipeline.report.sections.soak import LABELS, SERIES, soak_facts, soak_tables
from pipeline.server.stop import Closing
from pipeline.stages.measure_vram import OWN, Load, MemoryUse
from pipeline.stages.serve import Server
from pipeline.vllm.kv_fill import Fill
from pipeline.vllm.plan import Plan

DEVICE_LABELS: dict[str, Text] = {
    "plan_error": _("error of the plan: planned peak above the measured one"),
    "kv_filled_percent": _("KV cache filled once, highest reading"),
    "kv_cache_peak": _("KV cache in use, highest reading under load"),
    "gpu_utilization": _("GPU utilisation, median under load"),
    "gpu_temperature_c": _("GPU temperature, median under load"),
    "gpu_power_w": _("GPU power, median under load"),
    "gpu_clock_mhz": _("GPU clock (SM), median under load"),
    "gpu_throttled": _("GPU throttled, by heat or power, share of samples under load"),
}


def memory(inputs: Inputs) -> Scenario:
    """Return the guide's test 3, with the state after the stop and the soak on record."""
    title = _("Test 3: VRAM usage")
    outcomes = inputs.outcomes
    outcome, server = outcomes[MemoryUse], outcomes[Server].data
    data, tables = outcome.data, soak_tables(outcomes)
    samples = samples_of(data, inputs.root) if data is not None else []
    memory_pictures = pictures(outcomes, inputs.judged.gates, samples)
    if data is None:
        return Scenario(title, reason_of(outcome), soak_facts(outcomes), tables=tables, pictures=memory_pictures)
    plan = server.plan if server is not None else None
    facts = [*use_facts(data), *sampling_facts(data), *log_facts(data), *(plan_facts(plan, data) if plan is not None else [])]
    figures = {name: figure for name, figure in data.figures.items() if figure.value is not None or not name.startswith("gpu_")}
    return Scenario(
        title,
        facts=[*facts, *closing_facts(outcomes[Closing].data, data), *soak_facts(outcomes)],
        figures=rows(outcome.stage, figures, {**LABELS, **DEVICE_LABELS}, inputs.marks),
        tables=tables,
        charts=charts(outcomes, samples, memory_pictures),
        pictures=memory_pictures,
    )


def use_facts(data: MemoryUse) -> list[Text]:
    """Return the load behind the figures, how device memory was attributed, and why memory is not stable."""
    facts: list[Text] = [load_fact(data.load, data.samples)]
    if data.pss_samples is not None:
        facts.append(_("Host memory (PSS): {count} samples under load.", count=data.pss_samples))
    if data.fill is not None:
        facts.append(fill_fact(data.fill))
    if data.method:
        facts.append(_("Told apart by: {method}.", method=data.method))
    if len(data.device_peaks_mib) > 1:
        devices = comma_separated(glued("GPU ", at, " ", number(mib), " MiB") for at, mib in sorted(data.device_peaks_mib.items()))
        facts.append(_("VRAM, peak of each device: {devices}.", devices=devices))
    for series, name in SERIES.items():
        stability = data.figures.get(f"{series}_stable")
        if stability is not None and stability.value == 0:
            facts.append(_("NOT STABLE, {name}: {reasons}.", name=name, reasons=reasons(stability.reason)))
    return facts


def fill_fact(fill: Fill) -> Message:
    """Return how far the KV cache was filled once, and why not further."""
    if fill.percent is None:
        return _("The KV cache was not filled: {reason}.", reason=fill.why)
    text = _(
        "The KV cache was filled once to {percent} %, with {requests} requests in {seconds} s",
        percent=number(fill.percent),
        requests=fill.requests,
        seconds=Digits(f"{fill.seconds:.3g}"),
    )
    why = glued(": ", fill.why) if fill.why else ""
    return glued(text, why, _("; preemptions meanwhile: {count}", count=counter(fill.preempted)), ".")


def load_fact(load: Load, samples: int) -> Message:
    """Return the number of samples and the load behind the figures."""
    seconds = Digits(f"{load.seconds:.4g}")
    if load.seconds_by:
        text = _("{samples} samples from before the start; {seconds} s of load count", samples=samples, seconds=seconds)
        others = [glued(name, " ", Digits(f"{duration_s:.4g}"), " s") for name, duration_s in load.seconds_by.items() if name != OWN]
        text = glued(text, ": ", comma_separated(others)) if others else text
        added = Digits(f"{load.seconds_by.get(OWN, 0):.4g}")
        own_load = _("; {seconds} s were added, {requests} requests", seconds=added, requests=load.requests)
        text = glued(text, own_load if load.requests else _("; none was added"))
    else:  # an older record, from when only its own load counted
        text = _(
            "{samples} samples from before the start; {seconds} s of load, {requests} requests",
            samples=samples,
            seconds=seconds,
            requests=load.requests,
        )
    if load.failed:
        text = glued(text, _(", of which {failed} failed ({error})", failed=load.failed, error=load.error))
    return glued(text, ".")


def sampling_facts(data: MemoryUse) -> list[Text]:
    """Return the gaps in the samples and the errors of NVML."""
    facts: list[Text] = []
    gaps = data.gaps
    if gaps.count:
        facts.append(
            _(
                "Samples are missing: {many}, {longest} s the longest, {total} s in all.",
                many=plural("a gap", "{count} gaps", gaps.count),
                longest=number(gaps.longest_s),
                total=number(gaps.total_s),
            )
        )
    return [*facts, *(_("NVML failed in {count} samples: {name}.", count=count, name=name) for name, count in data.gpu_errors.items())]


def log_facts(data: MemoryUse) -> list[Text]:
    """Return how often the server had to preempt since its start; under the load is a figure."""
    return [] if data.preemptions is None else [_("Preemptions since the start: {count}.", count=data.preemptions)]


def plan_facts(plan: Plan, data: MemoryUse) -> list[Text]:
    """Return the plan compared with the measured peak and the server's log."""
    facts: list[Text] = []
    log, devices = data.breakdown, data.device_peaks_mib
    peak = max(devices.values()) if len(devices) > 1 else data.figures["vram_peak_mib"].value
    if peak:  # 0 where the server shows nothing on its device: no percentage of it
        facts.append(
            _(
                "Peak: {planned} MiB planned, {measured} measured ({off} %).",
                planned=number(plan.peak_mib),
                measured=number(peak),
                off=excess_percent(plan.peak_mib, peak),
            )
        )
    parts = [part_words(name, getattr(plan, key), getattr(log, key)) for key, name in PARTS.items()]
    facts.append(
        _(
            "Plan for {budget} MiB, beside vLLM's log: {parts}; context {context} MiB planned.",
            budget=number(plan.budget_mib),
            parts=comma_separated(parts),
            context=number(plan.context_mib),
        )
    )
    if log.kv_tokens:
        facts.append(
            _(
                "KV cache: {seen} tokens by the log, {planned} planned ({off} %).",
                seen=log.kv_tokens,
                planned=plan.kv_tokens,
                off=excess_percent(plan.kv_tokens, log.kv_tokens),
            )
        )
    return facts


def part_words(name: Text, planned_mib: float, seen_mib: float | None) -> Message:
    """Return a part of memory as planned and according to the log."""
    seen = _("not in the log") if seen_mib is None else _("log: {mib}", mib=number(seen_mib))
    return glued(name, " ", number(planned_mib), " MiB (", seen, ")")


def excess_percent(planned: float, measured: float) -> Digits:
    """Return how far the plan is above the measured value, in percent."""
    return Digits(f"{100 * (planned / measured - 1):+.1f}")


def closing_facts(end: Closing | None, data: MemoryUse) -> list[Text]:
    """Return how the server ended, and the memory left after it."""
    if end is None or end.launch_id != data.launch_id:
        return [_("After stop: NOT_MEASURED, the server was not stopped by this run.")]
    how = _("{count} processes had to be killed", count=len(end.killed)) if end.killed else _("ended when asked")
    port = _("port free") if end.port_free else _("PORT STILL TAKEN")
    facts: list[Text] = [_("After stop ({seconds} s): {how}, {port}.", seconds=number(end.took_s), how=how, port=port)]
    residual = end.residual()
    if residual is not None and residual.value is None:
        facts.append(_("VRAM residual: NOT_MEASURED, {reason}.", reason=residual.reason))
    elif residual is not None and residual.value is not None:
        facts.append(_("VRAM residual: {mib} MiB above the baseline.", mib=number(residual.value)))
    return facts
