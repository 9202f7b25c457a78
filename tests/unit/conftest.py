"""Hypothesis without wall-clock limits and without a database beside the code."""

from hypothesis import settings

settings.register_profile("unit", deadline=None, database=None, max_examples=100)
settings.load_profile("unit")
