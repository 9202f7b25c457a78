"""The record of how far figures move between starts of the server."""

from contextlib import suppress
from pathlib import Path
from typing import Protocol

from pipeline.engine.record import Artifact, Store
from pipeline.errors import RecordError
from pipeline.values import Frozen

NOISE_NOTE = "noise"


class RunFacts(Protocol):
    """What noise depends on: of a server, or of a report on one."""

    @property
    def device(self) -> str | None: ...

    @property
    def model(self) -> str | None: ...

    @property
    def vllm(self) -> str | None: ...


class FigureNoise(Frozen):
    """A figure's values, one per start, with (largest − smallest) / median and standard deviation / mean."""

    unit: str
    n: int
    values: list[float]
    relative_range: float
    variation: float


class RunNoise(Artifact):
    """The spread of figures between starts, by name as in bench.ttft_ms_p50, and the device, model and vLLM that it holds for."""

    device: str
    model: str
    vllm: str
    starts: int
    simulated: bool
    figures: dict[str, FigureNoise]

    def fits(self, facts: RunFacts) -> bool:
        """Tell whether it was measured on what a run ran on."""
        return not self.simulated and (self.device, self.model, self.vllm) == (facts.device, facts.model, facts.vllm)


def noise_in(folder: Path) -> RunNoise | None:
    """Return the noise on record in that folder; None where there is none that this program can read."""
    with suppress(RecordError):
        return Store(folder).outcome(NOISE_NOTE, RunNoise).data
    return None
