"""Whether a cell can run at all, by the plan, and how long it may take, by runs that are kept."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.config.schema import Config
from pipeline.measure.digits import counted
from pipeline.message import _
from pipeline.planning import Candidate, Card, Library, model_fit, on_processor
from pipeline.report.formats.document import Document
from pipeline.vllm.fit import hopeless
from pipeline.vllm.plan import LAPTOP, LAPTOP_MIB

GUIDE = Card(name=LAPTOP, total_mib=LAPTOP_MIB, available_mib=LAPTOP_MIB, reason="the guide's card")


@dataclass(frozen=True)
class CellFit:
    """The words for a cell, and whether it can run."""

    words: str
    runs: bool


def gpus_of(config: Config) -> int:
    """Return how many GPUs the cell's server takes."""
    serve = config.serve
    if config.attach.url or on_processor(config):
        return 0
    return serve.tensor_parallel_size * serve.pipeline_parallel_size * serve.data_parallel_size


def cell_fit(config: Config, card: Card | None, most_gpus: int, library: Library) -> CellFit:
    """Return how the cell fits the card, the largest of the nodes' (None without one), where a node has at most `most_gpus`."""
    serve = config.serve
    wanted = gpus_of(config)
    if config.attach.url:
        return CellFit("runs on a server of someone else's", True)
    if serve.nnodes > 1:
        return CellFit(_("serve.nnodes is {n}: a cell runs on one node", n=serve.nnodes), False)
    if not wanted:
        return CellFit("runs on the processor", True)
    if wanted > most_gpus or card is None:
        there = _("no node has more than {n}", n=most_gpus) if most_gpus else _("and no node has one")
        guide = {"name": GUIDE.name, "fit": cell_fit(config, GUIDE, wanted, library).words}
        return CellFit(_("needs {what}, {reason}; on the guide's {name}: {fit}", what=counted(wanted, "GPU"), reason=there, **guide), False)
    found = model_fit(Candidate(model=config.model, config=config, profiles=()), card, None, library)
    if found.asked is None or found.judged is None:
        return CellFit(f"unknown: {found.reason}", True)
    refused = None if serve.force_start else hopeless(found.asked, serve.gpu_memory_utilization)
    if refused is not None:
        return CellFit(_("cannot fit: {reason} ({name})", reason=refused[0], name=refused[1]), False)
    made = found.asked.at(serve.gpu_memory_utilization)
    peak = _("peak {value} of {target} MiB", value=round(made.peak_mib), target=round(made.total_mib))
    fits = _("fits, {peak}", peak=peak) if made.fits else _("may not fit, by less than the estimate's error; {peak}", peak=peak)
    return CellFit(fits, True)


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
