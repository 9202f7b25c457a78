"""Inputs of a stage that are neither settings nor records."""

from pipeline.values import Frozen


class Context(Frozen):
    """Base of inputs from the command line, the machine or the day; like settings, a changed context is a reason to run."""
