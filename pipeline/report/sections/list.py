"""The sections of the report, in order. Nothing else lists them."""

from collections.abc import Callable
from typing import TypeAlias

from pipeline.report.inputs import Inputs
from pipeline.report.parts import Scenario
from pipeline.report.sections.determinism import determinism
from pipeline.report.sections.memory import memory
from pipeline.report.sections.router import router
from pipeline.report.sections.speed import speed

Section: TypeAlias = Callable[[Inputs], Scenario]
SECTIONS: tuple[Section, ...] = (
    router,
    determinism,
    speed,
    memory,
)
