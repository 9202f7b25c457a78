"""The settings: one typed section for each subject, with the rules that a value must meet."""

import ipaddress
import os
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, field_validator, model_validator

from pipeline.config.attach import AttachConfig
from pipeline.config.gates import METRIC, Gates, Waivers
from pipeline.config.requests import RequestsConfig
from pipeline.config.section import Positive, Section
from pipeline.redact import redacted

IMAGES = "report"  # the folder of the report's pictures, beside the report
CUDA_DEVICES = "CUDA_VISIBLE_DEVICES"
PLAIN = "plain"  # serve.chat_template: the texts of the messages, one below the other
Seconds = Annotated[float, Field(gt=0)]
SECRET_ARGUMENTS = ("--api-key", "--hf-token")
SECRET_NAME = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)


def is_loopback(host: str) -> bool:
    """Tell whether a server on `host` can be reached only from this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class AutoProfile(Section):
    """The profile that `profile: auto` takes on a GPU with at least this much memory and this compute capability ("7.5").

    `non_commercial`: the licence of its model forbids commercial use, which check-gpu reports.
    """

    min_total_mib: Positive
    profile: str
    non_commercial: bool = False
    min_capability: Annotated[str, Field(pattern=r"^\d+\.\d+$")] = "0.0"


class GpuConfig(Section):
    """What check-gpu insists on and chooses."""

    required: bool = False
    auto: tuple[AutoProfile, ...] = ()


class InstallConfig(Section):
    """Which vLLM goes into venv-vllm."""

    set: str = "auto"
    python: str | None = None
    cpu_wheel: str | None = None
    min_free_gib: Seconds = 5


class ModelConfig(Section):
    """Where the model comes from and what it is called."""

    name: str = "model"
    source: Literal["hub", "wheel", "path"] = "wheel"
    repo: str | None = None
    revision: str = "main"
    path: str | None = None
    quantization: Literal["auto", "int8", "none"] = "auto"
    min_free_gib: Annotated[float, Field(ge=0)] = 1

    @model_validator(mode="after")
    def source_has_its_place(self) -> "ModelConfig":
        if self.source == "hub" and not self.repo:
            raise ValueError("source hub needs model.repo, as in Qwen/Qwen2.5-1.5B-Instruct")
        if self.source == "path" and not self.path:
            raise ValueError("source path needs model.path, a folder with config.json and weights")
        return self


class ServeConfig(Section):
    """How the server is started."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_model_len: Positive = 4096
    max_num_seqs: Positive = 16
    max_num_batched_tokens: Positive | None = None
    enforce_eager: Literal["auto"] | bool = "auto"
    tensor_parallel_size: Positive = 1
    pipeline_parallel_size: Positive = 1
    data_parallel_size: Positive = 1
    distributed_executor_backend: Literal["auto", "mp", "uni", "ray"] = "auto"
    nnodes: Positive = 1
    node_rank: Annotated[int, Field(ge=0)] = 0
    master_addr: str | None = None
    master_port: Annotated[int, Field(ge=1, le=65535)] = 29501
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    block_size: Positive | None = None
    seed: int = 0
    load_format: Literal["auto", "dummy"] = "auto"
    trust_remote_code: bool = False
    reasoning_parser: str | None = None
    chat_template: str | None = None
    extra_args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    on_oom: Literal["auto", "fallback", "fail"] = "auto"
    smaller_profile: str | None = None
    force_start: bool = False
    start_timeout_s: Seconds = 600
    stall_timeout_s: Seconds = 180
    drain_timeout_s: Annotated[int, Field(ge=0)] = 20
    stop_timeout_s: Seconds = 20
    memory_samples_per_s: Annotated[float, Field(gt=0, le=20)] = 5

    def files(self) -> tuple[str, ...]:
        return (self.chat_template,) if self.chat_template not in (None, PLAIN) else ()

    @property
    def is_open(self) -> bool:
        """Tell whether other machines can reach the server."""
        return not is_loopback(self.host)

    @property
    def world_size(self) -> int:
        """Return the number of devices that share one copy of the model: tensor × pipeline; each data-parallel replica has as many."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @model_validator(mode="after")
    def parts_fit_together(self) -> "ServeConfig":
        backend = self.distributed_executor_backend
        if self.world_size > 1 and backend == "uni":
            raise ValueError(f"distributed_executor_backend: uni is one process for one device, not {self.world_size}; take mp or ray")
        if self.nnodes == 1:
            if self.node_rank:
                raise ValueError(f"node_rank {self.node_rank} needs nnodes of {self.node_rank + 1} or more")
            return self
        if backend not in ("auto", "mp"):
            raise ValueError(f"nnodes needs distributed_executor_backend mp, not {backend}; Ray spreads over its own cluster with nnodes 1")
        if not self.master_addr:
            raise ValueError("nnodes above 1 needs master_addr, the address of node 0 that the others reach")
        if self.node_rank >= self.nnodes:
            raise ValueError(f"node_rank {self.node_rank} is not below nnodes {self.nnodes}: nodes count from 0")
        devices = self.world_size * self.data_parallel_size
        if devices % self.nnodes:
            raise ValueError(f"{devices} devices (tensor × pipeline × data parallel) do not divide into {self.nnodes} nodes")
        return self

    @field_validator("env", mode="before")
    @classmethod
    def numbers_are_text(cls, value: Any) -> Any:
        """Convert integers to text: YAML reads `CUDA_VISIBLE_DEVICES: 0` as a number."""
        return {name: str(value) if type(value) is int else value for name, value in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def secrets_stay_secret(self) -> "ServeConfig":
        for word in self.extra_args:
            name = word.partition("=")[0]
            if name in SECRET_ARGUMENTS:
                raise ValueError(f"extra_args: every user of the machine can read {name}; an open host gets a key by itself")
        for name, value in self.env.items():
            if SECRET_NAME.search(name) or redacted(value) != value:
                raise ValueError(f"env: {name} looks like a secret, and the report shows these values; see docs/how-to/open-the-server.md")
        if self.is_open and self.env.get("VLLM_SERVER_DEV_MODE", "0") not in ("", "0"):
            raise ValueError(f"env: VLLM_SERVER_DEV_MODE opens the server's insides; not on host {self.host}, only on loopback")
        return self


class WatchConfig(Section):
    """When `serve --watch` gives up restarting a server that crashes."""

    max_restarts: Annotated[int, Field(ge=0)] = 5
    window_s: Seconds = 600


class RouterConfig(Section):
    """The router test."""

    suite: str = "suites/router-en"
    system: Literal["suite", "role", "user"] = "suite"
    cases: Positive = 24
    prompt_only_cases: Positive | None = None
    unary_cases: Annotated[int, Field(ge=0)] = 24
    max_tokens: Positive = 128
    timeout_s: Seconds = 120

    def files(self) -> tuple[str, ...]:
        return (self.suite,)


class DeterminismConfig(Section):
    """The guide's test, the same prompt again and again, and what else may change an answer."""

    prompts: str = "suites/determinism-en.txt"
    count: Positive = 32
    runs: Annotated[int, Field(ge=2)] = 10
    constrained: Annotated[int, Field(ge=0)] = 32
    constrained_runs: Annotated[int, Field(ge=2)] = 10
    seed: int = 42
    max_tokens: Positive = 96
    cache_runs: Annotated[int, Field(ge=0)] = 2
    load: tuple[Positive, ...] = (2, 4, 8, 16)
    load_runs: Positive = 2
    restart: bool = True
    control_temperature: Annotated[float, Field(gt=0)] = 0.8
    timeout_s: Seconds = 120

    def files(self) -> tuple[str, ...]:
        return (self.prompts,)


class BenchConfig(Section):
    """Latency and throughput."""

    ttft_requests: Positive = 64
    warmup_requests: Annotated[int, Field(ge=1)] = 4
    decode_requests: Positive = 8
    output_tokens: Annotated[int, Field(ge=2)] = 64
    concurrency: tuple[Positive, ...] = Field(default=(1, 4, 8), min_length=1)
    requests_per_level: Positive = 16
    level_min_s: Annotated[float, Field(ge=0)] = 0
    open_loop: tuple[Literal["poisson", "constant"], ...] = ("poisson", "constant")
    open_share: Annotated[float, Field(gt=0)] = 0.6
    open_rate_req_s: Seconds | None = None
    open_requests: Positive = 16
    open_min_s: Annotated[float, Field(ge=0)] = 0
    find_capacity: bool = False
    capacity_requests: Positive = 200
    capacity_min_s: Seconds = 30
    capacity_steps: Annotated[int, Field(ge=2)] = 12
    capacity_max_s: Seconds = 900
    capacity_goodput: Annotated[float, Field(gt=0, lt=100)] = 95
    client_delay_ms: Seconds = 1
    client_busy_delay_ms: Seconds = 2
    ray_address: str | None = None
    ray_clients: Positive = 2
    starts: Positive = 1
    seed: int = 42
    timeout_s: Seconds = 300


class VramConfig(Section):
    """Memory under load."""

    load_s: Seconds = 20
    concurrency: Positive = 4
    horizon_h: Seconds = 24
    drift_budget_mib: Seconds = 224
    fill_s: Annotated[float, Field(ge=0)] = 0


class ReportConfig(Section):
    """What the report is called and where it goes."""

    title: str = "vLLM PoC"
    language: Literal["en", "tr"] = "en"
    output: str = "REPORT.md"
    junit_inconclusive: Literal["failure", "skipped"] = "failure"
    junit_not_measured: Literal["failure", "skipped"] = "failure"

    @property
    def document(self) -> str:
        """Return the path of report.json, beside the report for people."""
        return str(Path(self.output).with_name("report.json"))

    @property
    def page(self) -> str:
        """Return the path of report.html, beside the report for people."""
        return str(Path(self.output).with_name("report.html"))

    @field_validator("output")
    @classmethod
    def leaves_the_records_alone(cls, output: str) -> str:
        if Path(os.path.normpath(output)).parts[0] == "artifacts":
            raise ValueError("artifacts/ holds the records, report.json among them: choose another folder")
        return output

    def files(self) -> tuple[str, ...]:
        return ("templates",)


class PublishConfig(Section):
    """Where `publish` commits the report."""

    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    branch: Annotated[str, Field(pattern=r"^[^-\s]\S*$")] = "vllm-poc-report"
    path: str = "."

    @field_validator("path")
    @classmethod
    def stays_inside(cls, path: str) -> str:
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts or ".git" in parts:
            raise ValueError("expected a folder in the repository, as in docs/report")
        return path


class SweepConfig(Section):
    """The matrix that `sweep` runs the pipeline over, and how much of Ray it takes."""

    grid: dict[str, tuple[Any, ...]] = {}
    exclusive: Literal["auto"] | bool = "auto"
    max_cells: Positive = 64
    retries: Annotated[int, Field(ge=0)] = 2
    object_store_mib: Annotated[int, Field(ge=80)] = 128
    node_folder: str = "~/.cache/vllm-poc-sweep"


class RunsConfig(Section):
    """How many runs are kept in artifacts/runs, and how much of the disk they may take."""

    keep: Positive = 20
    max_mib: Positive = 500


class CompareConfig(Section):
    """Which figures decide whether a run is worse than another."""

    figures: tuple[Annotated[str, Field(pattern=METRIC)], ...] = ()


class Alternative(Section):
    """One row of the guide's table of models."""

    model: str
    size: str
    vram: str
    use_case: str
    profile: str | None = None


class Alternatives(RootModel[tuple[Alternative, ...]]):
    """The guide's model alternatives."""

    model_config = ConfigDict(frozen=True, defer_build=True)


class Profile(RootModel[str]):
    """The name of the profile in force."""

    model_config = ConfigDict(frozen=True, defer_build=True)


class Config(Section):
    """All settings."""

    profile: Profile = Profile("auto")
    gpu: GpuConfig = GpuConfig()
    install: InstallConfig = InstallConfig()
    model: ModelConfig = ModelConfig()
    serve: ServeConfig = ServeConfig()
    attach: AttachConfig = AttachConfig()
    requests: RequestsConfig = RequestsConfig()
    watch: WatchConfig = WatchConfig()
    router: RouterConfig = RouterConfig()
    determinism: DeterminismConfig = DeterminismConfig()
    bench: BenchConfig = BenchConfig()
    vram: VramConfig = VramConfig()
    gates: Gates = Gates({})
    waivers: Waivers = Waivers({})
    alternatives: Alternatives = Alternatives(())
    report: ReportConfig = ReportConfig()
    publish: PublishConfig = PublishConfig()
    runs: RunsConfig = RunsConfig()
    compare: CompareConfig = CompareConfig()
    sweep: SweepConfig = SweepConfig()

    def section(self, kind: type[BaseModel]) -> BaseModel:
        """Return the section of that type."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, kind):
                return value
        raise TypeError(f"{kind.__name__} is not a section of Config")
