"""Whether a cell can run, by the plan, and how long it may take, by kept runs."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.config.schema import CUDA_DEVICES, Config
from pipeline.measure.digits import counted
from pipeline.message import _
from pipeline.planning import Candidate, Card, Library, model_fit, on_processor
from pipeline.report.formats.document import Document
from pipeline.vllm.fit import hopeless
from pipeline.vllm.plan import LAPTOP, LAPTOP_MIB

GUIDE = Card(name=LAPTOP, total_mib=LAPTOP_MIB, available_mib=LAPTOP_MIB, reason="the guide's card")


@dataclass(frozen=True)
class CellFit:
    """How a cell fits, in words, and whether it can run."""

    words: str
    runs: bool


def gpus_of(config: Config) -> int:
    """Return the number of GPUs that the cell's server uses."""
    serve = config.serve
    if config.attach.url or on_processor(config):
        return 0
    return serve.tensor_parallel_size * serve.pipeline_parallel_size * serve.data_parallel_size


def may_share(config: Config) -> bool:
    """Tell whether other cells may run beside this one: it has GPUs, which Ray chooses for it, and its load comes from its own cores.

    A server that takes its own choice of devices, or Ray's cluster, could meet its neighbours there.
    """
    serve = config.serve
    own_choice = CUDA_DEVICES in serve.env or serve.distributed_executor_backend == "ray" or config.bench.ray_address is not None
    return config.sweep.exclusive is not True and gpus_of(config) > 0 and not own_choice


def cell_fit(config: Config, card: Card | None, most_gpus: int, library: Library) -> CellFit:
    """Return how the cell fits `card`, the largest GPU of the nodes (None without one); no node has more than `most_gpus`."""
    serve = config.serve
    gpus = gpus_of(config)
    if config.attach.url:
        return CellFit("runs on a server of someone else's", True)
    if serve.nnodes > 1:
        return CellFit(_("serve.nnodes is {n}: a cell runs on one node", n=serve.nnodes), False)
    if not gpus:
        return CellFit("runs on the processor", True)
    if gpus > most_gpus or card is None:
        reason = _("no node has more than {n}", n=most_gpus) if most_gpus else _("and no node has one")
        guide = {"name": GUIDE.name, "fit": cell_fit(config, GUIDE, gpus, library).words}
        return CellFit(_("needs {what}, {reason}; on the guide's {name}: {fit}", what=counted(gpus, "GPU"), reason=reason, **guide), False)
    fit = model_fit(Candidate(model=config.model, config=config, profiles=()), card, None, library)
    if fit.asked is None or fit.judged is None:
        return CellFit(f"unknown: {fit.reason}", True)
    refusal = None if serve.force_start else hopeless(fit.asked, serve.gpu_memory_utilization)
    if refusal is not None:
        return CellFit(_("cannot fit: {reason} ({name})", reason=refusal[0], name=refusal[1]), False)
    plan = fit.asked.at(serve.gpu_memory_utilization)
    peak = _("peak {value} of {target} MiB", value=round(plan.peak_mib), target=round(plan.total_mib))
    fits = _("fits, {peak}", peak=peak) if plan.fits else _("may not fit, by less than the estimate's error; {peak}", peak=peak)
    return CellFit(fits, True)


def estimates(documents: Iterable[Document]) -> dict[str, float]:
    """Return for each profile the seconds that the stages of its last complete run took; `documents` are newest first."""
    durations: dict[str, float] = {}
    for document in documents:
        took = [stage.duration_s for stage in document.stages]
        if document.environment.profile not in durations and None not in took and all(stage.status == "ok" for stage in document.stages):
            durations[document.environment.profile] = sum(seconds for seconds in took if seconds is not None)
    return durations


def minutes(seconds: float | None) -> str:
    """Return a time as a rough text."""
    if seconds is None:
        return "not known"
    return f"about {seconds:.0f} s" if seconds < 120 else f"about {seconds / 60:.0f} min"
