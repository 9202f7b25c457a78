"""The settings, the pipeline and the lock of one command."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel

from pipeline.config.attach import AttachConfig
from pipeline.config.layers import Layers, load_layers
from pipeline.config.schema import CUDA_DEVICES, Config, GpuConfig
from pipeline.contexts import Invocation, RequestLimits, VisibleDevices, active_waivers, request_limits, visible_devices
from pipeline.dag import ATTACHED, NOTES, STAGES
from pipeline.engine.context import Context
from pipeline.engine.pipeline import Pipeline
from pipeline.engine.record import Outcome, now
from pipeline.engine.stage import Result, Stage
from pipeline.engine.workspace import Workspace
from pipeline.errors import BusyError, ConfigError, OutOfMemoryError, ServerError
from pipeline.server import state
from pipeline.server.stop import stop_server
from pipeline.stages.check_gpu import CPU_PROFILE, Machine
from pipeline.stages.serve import Server
from pipeline.terminal import Silent, screen
from pipeline.vllm.ladder import falls_back

CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class Options:
    """The options of a stage task."""

    profile: str | None = None
    sets: tuple[str, ...] = ()
    force: bool = False
    why: bool = False
    bundle: str | None = None
    quiet: bool = False
    json: bool = False
    left: tuple[tuple[str, str], ...] = ()  # profiles that did not fit, each with the reason


def options(
    profile: str | None = None,
    set: Sequence[str] = (),  # noqa: A002  # the option's name
    attach: str | None = None,
    force: bool = False,
    why: bool = False,
    bundle: str | None = None,
    quiet: bool = False,
    json: bool = False,
) -> Options:
    """Return the options of a task; `attach` sets attach.url."""
    return Options(profile, (*set, *([f"attach.url={attach}"] if attach else [])), force, why, bundle, quiet, json)


class Session:
    """One command: the configuration's layers, and a pipeline whose settings follow the profile in force."""

    def __init__(self, root: Path, options: Options, silent: bool = False) -> None:
        self.workspace = Workspace(root, Silent() if silent else screen(options.quiet), open_bundle(root, options.bundle))
        # Set before a download thread can read the environment; by default xet writes its logs to the user's home.
        os.environ.setdefault("HF_XET_CACHE", str(self.workspace.cache / "xet"))
        self.options = options
        self.layers: Layers = load_layers(root / CONFIG_FILE, os.environ, options.sets, options.profile)
        if self.workspace.bundle is not None:
            self._use_bundle(self.workspace.bundle)
        stages = ATTACHED if self._config_of(None).attach.url else STAGES
        self.pipeline = Pipeline(stages, self.workspace, self._settings, NOTES, self._context, self._running, self._ended)
        # Report a wrong setting before anything starts: in the named profile, or in any that check-gpu may choose.
        name, _ = self.layers.profile
        base = self._config_of(None)
        for profile in [CPU_PROFILE, *(choice.profile for choice in base.gpu.auto)] if name == "auto" else [name]:
            devices = visible_devices(self._config_of(profile).serve)
            if name == "auto" and profile != CPU_PROFILE and devices != visible_devices(base.serve):
                raise ConfigError(
                    f"profile {profile}: serve.env.{CUDA_DEVICES} cannot stand in a profile that is chosen by the devices it names",
                    f"name the profile (--profile {profile}), or set serve.env.{CUDA_DEVICES} above the profiles",
                )

    def refuse_attached(self, what: str) -> None:
        """Raise ServerError if the server is attached; `what` is the action that needs a server of ours."""
        url = self.config.attach.url
        if url:
            raise ServerError(f"the server at {url} is not ours to {what}", "unset attach.url for a server of our own")

    @property
    def config(self) -> Config:
        """Return the settings with the profile in force, or without a profile before check-gpu has chosen."""
        return self._config_of(self.profile()[0])

    def profile(self) -> tuple[str | None, str]:
        """Return (profile in force, its origin)."""
        name, origin = self.layers.profile
        if name != "auto":
            return name, origin
        machine: Outcome[Machine] = self.pipeline.outcome(Machine)
        if machine.data is None:
            return None, "check-gpu has not chosen one"
        return machine.data.profile, f"auto: {machine.data.profile_reason}"

    def stop_own(self) -> None:
        """Stop the server, unless `serve` left it running."""
        launch = state.read(self.workspace)
        if launch is not None and not launch.stays:
            self.workspace.say(f"stopping the server (pid {launch.pid})")
            stop_server(launch, self.workspace)

    def with_smaller_profile(self) -> Options | None:
        """Return the options for the next smaller profile if the server lacked memory to start, else None."""
        if self.workspace.bundle is not None:
            return None  # a bundle holds one model
        failure, settings = self.pipeline.outcome(Server).failure, self.config.serve
        name, _ = self.profile()
        if failure is None or failure.kind != OutOfMemoryError.kind or not falls_back(settings) or name is None:
            return None
        tried = {name, *(profile for profile, _ in self.options.left)}
        if settings.smaller_profile is None or settings.smaller_profile in tried:
            return None
        reason = f"Asked for profile {name} ({self.config.model.name}), took profile {settings.smaller_profile}: {failure.message}."
        self.workspace.say(reason)
        return replace(self.options, profile=settings.smaller_profile, left=(*self.options.left, (name, reason)))

    def _use_bundle(self, bundle: Path) -> None:
        """Use the bundle's profile if none was named; BundleError if the profile in force needs another model."""
        from pipeline.bundle.content import read, refuse_other_model

        manifest = read(bundle)
        if self.layers.profile[0] == "auto":
            self.layers = load_layers(self.workspace.root / CONFIG_FILE, os.environ, self.options.sets, manifest.profile)
        name = self.layers.profile[0]
        refuse_other_model(manifest, self._config_of(name).model, name)

    def invocation(self) -> Invocation:
        """Return how this command was called, and today's waivers."""
        return Invocation(
            profile=self.config.profile.root,
            assignments=self.layers.assignments,
            fallbacks=tuple(reason for _, reason in self.options.left),
            waivers=active_waivers(self.config.waivers, now().date()),
        )

    def profile_words(self) -> str:
        """Return the profile in force and its origin as a line."""
        name, origin = self.profile()
        return f"profile {name or 'auto'} ({origin})"

    def profile_data(self) -> dict[str, str | None]:
        """Return the profile in force and its origin as data."""
        name, origin = self.profile()
        return {"name": name, "origin": origin}

    def _settings(self, kind: type[BaseModel]) -> BaseModel:
        # check-gpu chooses the profile and attach.url the stages, so no profile can define these settings.
        early = kind in (GpuConfig, AttachConfig)
        return (self._config_of(None) if early else self.config).section(kind)

    def _context(self, kind: type[Context]) -> Context:
        contexts: dict[type[Context], Callable[[], Context]] = {
            Invocation: self.invocation,
            RequestLimits: lambda: request_limits(self.config.gates),
            VisibleDevices: self.visible,
        }
        return contexts[kind]()

    def visible(self) -> VisibleDevices:
        """Return the devices that check-gpu examines; with profile auto, only settings outside the profiles count."""
        profile, _ = self.layers.profile
        return visible_devices(self._config_of(None if profile == "auto" else profile).serve)

    @lru_cache(maxsize=8)
    def _config_of(self, profile: str | None) -> Config:
        return self.layers.config(profile)

    def _running(self, stage: Stage, reason: str) -> AbstractContextManager[None]:
        return self.workspace.screen.running(stage.name, reason)

    def _ended(self, result: Result) -> None:
        self.workspace.screen.ended(result.stage, result.state, result.duration_s, result.reason)


def open_bundle(root: Path, folder: str | None) -> Path | None:
    """Check the bundle and make this process take everything from it; return its folder, None without one."""
    if folder is None:
        return None
    from pipeline.bundle import unpack

    known = os.environ.get(unpack.VARIABLE)  # `./inv` has opened it already
    bundle = Path(known) if known else unpack.open_bundle(Path(folder).absolute(), root)
    os.environ.update(unpack.environment(bundle))
    return bundle


@contextmanager
def locked(workspace: Workspace, wait: bool = False) -> Iterator[None]:
    """Hold the workspace's lock; BusyError names the holder, unless `wait`."""
    from filelock import FileLock, Timeout

    workspace.artifacts.mkdir(exist_ok=True)
    holder = workspace.artifacts / ".lock-holder"
    lock = FileLock(workspace.artifacts / ".lock")
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        who = holder.read_text(encoding="utf-8").strip() if holder.exists() else "another process"
        raise BusyError(
            f"only one command can run in this folder at a time ({who})", "wait for it, or stop it with Ctrl-C in its terminal"
        ) from None
    try:
        holder.write_text(f"pid {os.getpid()}: {' '.join(sys.argv[1:])}", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
