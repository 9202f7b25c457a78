"""What a stage is given that is no setting and no record."""

from pydantic import BaseModel, ConfigDict


class Context(BaseModel):
    """Base of what the command line, the machine or the moment gives; it counts as a reason to run, as settings do."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
