"""The forms that records have had: for each kind the steps that bring the data of an older one to today's. Pure.

A record names the form of its data by a number: how many of the steps of its kind its writer knew. 0 is every form from before
records named one, so the steps that were written for those leave what a record has already. A new step is added at the end and never
changed. What an older version did not record stays unknown: None, or NaN for a number that no report shows.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.message import _

Data = dict[str, Any]
Step = Callable[[Data, Mapping[str, Any]], Data]  # of the data and the fingerprint (`because`) of the record


def with_server_metrics(data: Data, _because: Mapping[str, Any]) -> Data:
    """bench, until 2026-11-23 17:10: no share of the processor, no means by the server's metrics."""
    levels = [{"client_cpu_share": math.nan, **level} for level in data["levels"]]
    return {"means": [], **data, "levels": levels}


def with_open_loops(data: Data, because: Mapping[str, Any]) -> Data:
    """bench, until 2026-11-24 13:39: no open loop, no calibration of the client, one count in the ledger."""
    # It warmed up with a request for each that was to be in flight.
    levels = [{"warmups": level["concurrency"], "steady_tok_s": None, "chunks_s": math.nan, **level} for level in data["levels"]]
    ledger = data["ledger"]
    if isinstance(ledger, dict):
        ledger = [{"name": "output tokens", "client": ledger["client_tokens"], "server": ledger["server_tokens"]}]
    unknown = {"tokens_per_chunk": None, "ceiling_chunks_s": None, "cold_hit_tokens": None, "warm_hit_tokens": None}
    none: Data = {"open_levels": [], "trials": [], "limits": {}, "calibrations": []}
    warmups = because.get("bench", {}).get("warmup_requests", 0)
    return {"warmups": warmups, **unknown, **none, **data, "levels": levels, "ledger": ledger}


def with_cores(data: Data, _because: Mapping[str, Any]) -> Data:
    """check-gpu, until 2026-11-24 10:58: threads were counted, cores were not."""
    return {**data, "host": {"physical_cores": data["host"]["cores"], **data["host"]}}


def with_interpreter(data: Data, _because: Mapping[str, Any]) -> Data:
    """install, until 2026-11-23 17:10: always an environment of the project's own."""
    return {"interpreter": "venv-vllm/bin/python", **data}


def with_plan(data: Data, _because: Mapping[str, Any]) -> Data:
    """serve, until 2026-11-23 17:10: nothing was planned, and no weights were random."""
    return {"random_weights": False, "plan": None, **data}


def with_arms(data: Data, _because: Mapping[str, Any]) -> Data:
    """test-determinism, until 2026-11-23 17:10: the guide's test alone."""
    return {"arms": [], **data, "prompts": [{"gap": None, **prompt} for prompt in data["prompts"]]}


def with_pairs(data: Data, _because: Mapping[str, Any]) -> Data:
    """test-router, until 2026-11-24 13:39: no unary arms, no confusion, no comparison of the arms case by case."""
    return {"unary_cases": 0, "majority_route": "", "confusion": {}, "routes_paired": None, **data}


def with_breakdown(data: Data, _because: Mapping[str, Any]) -> Data:
    """measure-vram, until 2026-11-23 17:10: nothing of what the server's log and metrics say."""
    return {"breakdown": {}, "preemptions": None, **data}


def with_load(data: Data, _because: Mapping[str, Any]) -> Data:
    """measure-vram, until 2026-11-24 14:28: of the load only how long it was; nothing ties the samples to it."""
    data = dict(data)
    seconds, requests = data.pop("load_s", 0.0), data.pop("load_requests", 0)
    load = {"spans": [[0.0, seconds]], "requests": requests, "preempted": None}
    anchor = {"monotonic_s": 0.0, "wall": "1970-01-01T00:00:00Z"}
    gaps = {"count": 0, "longest_s": 0.0, "total_s": 0.0}
    return {"samples_file": "not on record", "anchor": anchor, "load": load, "gaps": gaps, "throttled": {}, "gpu_errors": {}, **data}


def without_stable(data: Data, _because: Mapping[str, Any]) -> Data:
    """measure-vram and soak, until 2026-11-27: stable by another rule, which passed leaks and failed single steps."""
    unknown = {"value": None, "n": 0, "reason": _("an older version judged this by another rule")}
    figures = {name: {**figure, **unknown} if name.endswith("_stable") else figure for name, figure in data["figures"].items()}
    return {**data, "figures": figures}


def with_cells(data: Data, _because: Mapping[str, Any]) -> Data:
    """report, until 2026-11-24 19:43: no waivers, no pictures, no rows for the terminal."""
    return {"plots": [], "header": [], **data, "gates": [{"waiver": "", "cells": [], **gate} for gate in data["gates"]]}


def with_baseline(data: Data, _because: Mapping[str, Any]) -> Data:
    """stop, until 2026-11-23 23:17: what the devices held before the start was not beside what they held after."""
    return {"gpu_used_before_mib": None, **data}


def without_words(data: Data, _because: Mapping[str, Any]) -> Data:
    """sweep, until 2026-11-24 19:43: the recommendation in words, which its report makes."""
    return {key: value for key, value in data.items() if key not in ("schema_version", "recommendation")}


def with_backend(data: Data, _because: Mapping[str, Any]) -> Data:
    """launch, until 2026-11-24 17:49: serve.distributed_executor_backend was serve.executor."""
    settings = {"distributed_executor_backend" if name == "executor" else name: value for name, value in data["settings"].items()}
    return {**data, "settings": settings}


STEPS: Mapping[str, tuple[Step, ...]] = {
    "bench": (with_server_metrics, with_open_loops),
    "check-gpu": (with_cores,),
    "install": (with_interpreter,),
    "launch": (with_backend,),
    "measure-vram": (with_breakdown, with_load, without_stable),
    "report": (with_cells,),
    "serve": (with_plan,),
    "soak": (without_stable,),
    "stop": (with_baseline,),
    "sweep": (without_words,),
    "test-determinism": (with_arms,),
    "test-router": (with_pairs,),
}


def today(kind: str) -> int:
    """Return the number of today's form of that kind."""
    return len(STEPS.get(kind, ()))


def migrated(kind: str, form: int, data: Data, because: Mapping[str, Any]) -> Data:
    """Return the data of a record of that kind and form as one of today's version; KeyError or TypeError where it has no known form."""
    for step in STEPS.get(kind, ())[form:]:
        data = step(data, because)
    return data
