"""The inputs of an experiment's servers."""

from dataclasses import dataclass
from typing import Any

from pipeline.config.schema import Config, ServeConfig
from pipeline.engine.workspace import Workspace
from pipeline.stages.check_gpu import Machine
from pipeline.stages.download_model import Model
from pipeline.stages.install import Installation
from pipeline.stages.serve import Server, serve


@dataclass(frozen=True)
class ServerInputs:
    """What an experiment needs to start a server."""

    config: Config
    machine: Machine
    installation: Installation
    model: Model
    workspace: Workspace

    def serve(self, settings: ServeConfig) -> Server:
        """Start a server with these settings."""
        return serve(settings, self.config.requests, self.machine, self.installation, self.model, self.workspace)

    @property
    def concurrency(self) -> int:
        """Return the highest configured concurrency, at which system throughput is measured."""
        return max(self.config.bench.concurrency)

    def because(self) -> dict[str, Any]:
        """Return the settings that the result depends on, for the record's envelope."""
        sections = {name: getattr(self.config, name) for name in ("serve", "requests", "determinism", "bench")}
        return {name: section.model_dump(mode="json") for name, section in sections.items()}
