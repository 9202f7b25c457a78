"""The base of the settings' sections."""

from typing import Annotated

from pydantic import Field

from pipeline.values import Frozen

Positive = Annotated[int, Field(gt=0)]


class Section(Frozen):
    """Base of the sections; an unknown key is an error."""

    def files(self) -> tuple[str, ...]:
        """Return the files or folders, relative to the project, whose content counts as part of these settings."""
        return ()
