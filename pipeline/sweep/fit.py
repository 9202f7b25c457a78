"""Whether a cell can run at all, by the plan, and how long it may take, by runs that are kept."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.config.schema import Config
from pipeline.gpu.plan import LAPTOP, LAPTOP_MIB, refusal
from pipeline.measure.digits import counted
from pipeline.planning import Candidate, Card, Library, on_processor, row
from pipeline.report.formats.document import Document

GUIDE = Card(name=LAPTOP, total_mib=LAPTOP_MIB, available_mib=LAPTOP_MIB, reason="the guide's card")


@dataclass(frozen=True)
class Fit:
    """The words for a cell, and whether it can run."""

    words: str
    runs: bool


def gpus_of(config: Config) -> int:
    """Return how many GPUs the cell's server takes."""
    serve = config.serve
    if config.attach.url or on_processor(config):
        return 0
    return serve.tensor_parallel_size * serve.pipeline_parallel_size * serve.data_parallel_size


def fit(config: Config, card: Card | None, most_gpus: int, library: Library) -> Fit:
    """Return how the cell fits the card, the largest of the nodes' (None without one), where a node has at most `most_gpus`."""
    serve = config.serve
    wanted = gpus_of(config)
    if config.attach.url:
        return Fit("runs on a server of someone else's", True)
    if serve.nnodes > 1:
        return Fit(f"serve.nnodes is {serve.nnodes}: a cell runs on one node", False)
    if not wanted:
        return Fit("runs on the processor", True)
    if wanted > most_gpus or card is None:
        there = f"no node has more than {most_gpus}" if most_gpus else "and no node has one"
        guide = fit(config, GUIDE, wanted, library)
        return Fit(f"needs {counted(wanted, 'GPU')}, {there}; on the guide's {GUIDE.name}: {guide.words}", False)
    found = row(Candidate(model=config.model, config=config, profiles=()), card, None, library)
    if found.asked is None or found.judged is None:
        return Fit(f"unknown: {found.reason}", True)
    refused = None if serve.force_start else refusal(found.asked, serve.gpu_memory_utilization)
    if refused is not None:
        return Fit(f"cannot fit: {refused[0]} ({refused[1]})", False)
    made = found.asked.at(serve.gpu_memory_utilization)
    peak = f"peak {made.peak_mib:.0f} of {made.total_mib:.0f} MiB"
    return Fit(f"fits, {peak}" if made.fits else f"may not fit, by less than the estimate's error; {peak}", True)


def estimates(documents: Iterable[Document]) -> dict[str, float]:
    """Return for each profile how many seconds the stages of its last whole run took in all; `documents` are newest first."""
    found: dict[str, float] = {}
    for document in documents:
        took = [stage.duration_s for stage in document.stages]
        if document.environment.profile not in found and None not in took and all(stage.status == "ok" for stage in document.stages):
            found[document.environment.profile] = sum(seconds for seconds in took if seconds is not None)
    return found


def minutes(seconds: float | None) -> str:
    """Return a time as a person plans with it."""
    if seconds is None:
        return "not known"
    return f"about {seconds:.0f} s" if seconds < 120 else f"about {seconds / 60:.0f} min"
