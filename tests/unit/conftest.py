"""Hypothesis without wall-clock limits, without a database beside the code, and the same examples each time."""

from hypothesis import settings

settings.register_profile("unit", deadline=None, database=None, derandomize=True, max_examples=50)
settings.load_profile("unit")
