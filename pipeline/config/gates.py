"""Gates and waivers: the targets that figures must meet, and which of them may be missed until when."""

import math
import re
from datetime import date
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, RootModel, ValidationInfo, field_validator

from pipeline.config.section import Positive, Section

Comparator = Literal["<", "<=", ">", ">=", "=="]
# A target that is no number: the peak that the server's plan predicts, plus the plan's error.
PLAN: Literal["plan"] = "plan"
METRIC = r"^[a-z-]+\.[a-z0-9_]+$"  # <stage>.<figure>
PLANNED_METRIC = "measure-vram.vram_peak_mib"


class Gate(Section):
    """A target that a figure must meet; `metric` is <stage>.<figure>."""

    label: str
    metric: Annotated[str, Field(pattern=METRIC)]
    statistic: str = ""
    comparator: Comparator
    target: float | Literal["plan"]
    unit: str = ""
    min_n: Positive = 1
    judge_by: Literal["bound", "point"] = "bound"
    required: bool = True
    table: Literal["targets", "criteria"] = "targets"

    @property
    def numbers(self) -> tuple[float, ...]:
        """Return the target if it is a number; rounding must not hide it."""
        return () if isinstance(self.target, str) else (self.target,)

    @field_validator("target", mode="plain")
    @classmethod
    def is_a_number_or_the_plan(cls, value: object, info: ValidationInfo) -> float | str:
        if value == PLAN and info.data.get("metric") == PLANNED_METRIC and info.data.get("comparator") in ("<", "<="):
            return PLAN
        if value == PLAN:
            raise ValueError(f"`plan` is a target only for {PLANNED_METRIC} with < or <=; expected a number")
        if type(value) in (int, float) and math.isfinite(number := float(str(value))):
            return number
        raise ValueError(f"expected a number{' or `plan`' if info.data.get('metric') == PLANNED_METRIC else ''}, got {value!r}")


class Gates(RootModel[dict[str, Gate]]):
    """The gates by id."""

    model_config = ConfigDict(frozen=True, defer_build=True)


class Waiver(Section):
    """Why a required gate may miss its target, and the last day on which it may."""

    reason: str
    expires: date

    @field_validator("reason")
    @classmethod
    def says_why(cls, reason: str) -> str:
        if not reason.strip():
            raise ValueError("expected the reason why the gate may miss its target")
        return " ".join(reason.split())

    @field_validator("expires", mode="before")
    @classmethod
    def is_a_date(cls, value: object) -> object:
        # pydantic would read 20270131 as seconds since 1970.
        if type(value) is date or (isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value)):
            return value
        raise ValueError(f"expected a date as in 2027-01-31, got {value!r}")


class Waivers(RootModel[dict[str, Waiver]]):
    """The waivers by the gates' ids."""

    model_config = ConfigDict(frozen=True, defer_build=True)
