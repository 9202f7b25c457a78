"""Base classes of the values in stages, records and answers."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable value of ours; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Lenient(BaseModel):
    """A value that another program wrote; unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore", defer_build=True)
