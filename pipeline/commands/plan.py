"""plan: which models and settings fit the device, before anything is downloaded."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.commands.session import Options, Session
from pipeline.errors import ConfigError
from pipeline.measure.units import MIB
from pipeline.model.published import SOURCE
from pipeline.model.remote import HEADERS
from pipeline.planning import ModelFit, Survey, survey
from pipeline.server import state
from pipeline.stages.check_gpu import check_gpu
from pipeline.terminal import Output, OutputPart, TextTable
from pipeline.vllm.fit import pairs
from pipeline.vllm.plan import ERROR_MIB, PEAK_ERROR_MIB

HEADER = ("model", "profile", "weights", "from", "KV/token", "utilisation", "context", "peak", "verdict")
SOURCES = {HEADERS: "hub", SOURCE: "published", "safetensors headers": "files", "shape in config.json": "config.json"}


def plan(root: Path, options: Options, total_mib: str | None) -> Output:
    """Show what fits the device before anything is downloaded; 0 when the profile in force fits, 1 when it does not, 2 when unknown."""
    size = total(total_mib)
    session = Session(root, options, silent=True)
    machine = check_gpu(session.layers.config(None).gpu.model_copy(update={"required": False}), session.visible())
    launch = state.read(session.workspace)
    ours = launch is not None and state.is_running(launch)
    fits = survey(session.layers, machine, session.workspace, size, ours)
    return Output(code(fits), list(lines(fits)), {"exit_code": code(fits), **fits.model_dump(mode="json")})


def lines(survey: Survey) -> Iterator[OutputPart]:
    """Yield the lines for a person: the device, the table, and advice for the profile in force."""
    card = survey.card
    others = f", {card.available_mib:.0f} of them free" if card.available_mib < card.total_mib else ""
    yield f"planned for {card.name} with {card.total_mib:.0f} MiB{others} ({card.reason})"
    if survey.trouble:
        yield f"{survey.trouble}; models that are not on disk are planned by their {SOURCE}"
    yield TextTable(HEADER, [cells(row, survey.target_mib) for row in survey.rows])
    for row in survey.rows:
        if row.judged is None:
            yield f"{row.name}: unknown: {row.reason}"
    yield "*: the guide's list. Sizes in MiB, KV per token in KiB. Context: of one request alone, and of each of max_num_seqs at once."
    if any(row.fixed_bytes_per_request for row in survey.rows):
        yield "KV per token, + MiB: what a request of serve.max_model_len takes beside (sliding windows, states of fixed size, padding)."
    yield "Utilisation: from what one request of serve.max_model_len needs to what the device holds, and what to set."
    yield f"The estimate's error: KV cache ±{ERROR_MIB:.0f} MiB, peak ±{PEAK_ERROR_MIB:.0f}; `set` keeps the peak that clear of the target."
    if survey.processor:
        yield f"left out, because they run on the processor: {', '.join(survey.processor)}"
    non_commercial = [row.name for row in survey.rows if row.non_commercial]
    if non_commercial:
        yield f"licence forbids commercial use: {', '.join(non_commercial)}"
    fitting = [row.name for row in survey.rows if row.judged is not None and row.judged.verdict == "fits"]
    yield f"fit {'within the target' if survey.target_mib is not None else 'the device'}: {', '.join(fitting) or 'none'}"
    yield from in_force(survey)


def in_force(survey: Survey) -> Iterator[str]:
    """Yield how the settings in force fit, and the largest settings that would."""
    row = row_in_force(survey)
    name = f"profile {survey.profile} ({survey.origin})"
    if row is None or row.asked is None or row.judged is None:
        yield f"{name}: unknown, see above" if row else f"profile {survey.profile or 'cpu'} ({survey.origin}): takes no memory of a GPU"
        return
    plan, target_mib = row.asked.at(survey.utilization), survey.target_mib
    share = "vLLM's default" if survey.utilization is None else f"{survey.utilization:g}"
    fit = "fits" if plan.fits else "cannot fit" if plan.cannot_fit else "does not fit, unless the estimate is off"
    against = "" if target_mib is None else f", target {target_mib:.0f}"
    yield (
        f"{name} as it stands, with utilisation {share}: {fit} with {plan.kv_tokens} tokens of cache for "
        f"requests of {plan.max_model_len}; peak {plan.peak_mib:.0f} of {plan.total_mib:.0f} MiB{against}"
    )
    best = pairs(row.asked, survey.card.available_mib, target_mib)
    if best:
        words = ", ".join(f"{length} × {sequences} ({utilization:g})" for sequences, length, utilization in best)
        yield f"largest max_model_len × max_num_seqs, all at full length at once (with utilisation): {words}"


def row_in_force(survey: Survey) -> ModelFit | None:
    """Return the row of the profile in force; None if it has none."""
    return next((row for row in survey.rows if survey.profile in row.profiles), None)


def code(survey: Survey) -> int:
    """Return the exit code: 0 when the profile in force fits as configured or needs no GPU, 1 when it does not fit, 2 when unknown."""
    row = row_in_force(survey)
    if row is None:
        return 0
    if row.asked is None:
        return 2
    return 0 if row.asked.at(survey.utilization).fits else 1


def cells(row: ModelFit, target_mib: float | None) -> tuple[str, ...]:
    """Return the row's cells."""
    name = f"{row.name}{' *' if row.guide else ''}"
    profiles = ", ".join(row.profiles) or "–"
    if row.asked is None or row.judged is None:
        return (name, profiles, "", "", cache(row), "", "", "", "unknown")
    judged, plan = row.judged, row.judged.plan
    sizes = (name, profiles, f"{plan.weights_mib:.0f}", SOURCES.get(plan.weights_from, plan.weights_from), cache(row))
    if judged.advised is None:
        return (*sizes, "", "", "", judged.words)
    span = f"{judged.least:.2f}–{judged.most:.2f}, " if judged.least and judged.most and judged.least <= judged.most else ""
    context = f"{judged.alone}, {judged.each} × {row.asked.max_num_seqs}"
    against = "" if target_mib is None else f" of {target_mib:.0f}"
    return (*sizes, f"{span}set {judged.advised:.2f}", context, f"{plan.peak_mib:.0f}{against}", judged.words)


def cache(row: ModelFit) -> str:
    """Return the KV cache per token in KiB, and the fixed part of a request in MiB; empty where it is unknown."""
    if row.kv_bytes_per_token is None:
        return ""
    fixed = f" + {row.fixed_bytes_per_request / MIB:.0f} MiB" if row.fixed_bytes_per_request else ""
    return f"{row.kv_bytes_per_token / 1024:g}{fixed}"


def total(text: str | None) -> float | None:
    """Return the MiB of `--total-mib`; ConfigError for anything but a size."""
    if text is None:
        return None
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not MIB > size > 0:
        raise ConfigError(f"--total-mib {text}: expected the device's memory in MiB", "for example --total-mib 24564")
    return size
