"""What a stage is given that is no setting and no record."""

from pipeline.values import Frozen


class Context(Frozen):
    """Base of what the command line, the machine or the moment gives; it counts as a reason to run, as settings do."""
