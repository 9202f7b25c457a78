"""Bases of the values that stages, records and answers are made of."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A value of ours, which does not change; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Lenient(BaseModel):
    """What another program wrote; keys that we do not rely on are left alone."""

    model_config = ConfigDict(extra="ignore", defer_build=True)
