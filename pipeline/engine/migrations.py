"""Migrations of records: for each kind, the steps that bring data of an older form to today's. Pure.

A record names the form of its data by a number: how many steps of its kind its writer knew. Form 0 covers everything from before
records named a form, so the steps for it keep the keys that a record already has. New steps are appended; existing ones never change.
What an older version did not record stays unknown: None, or NaN for a number that no report shows.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.measure.agreement import prompts_share
from pipeline.message import _

Data = dict[str, Any]
Step = Callable[[Data, Mapping[str, Any]], Data]  # takes the record's data and fingerprint (`because`)


def with_server_metrics(data: Data, _because: Mapping[str, Any]) -> Data:
    """Add the client's CPU share and the means from the server's metrics to bench records from before 2026-11-23 17:10."""
    levels = [{"client_cpu_share": math.nan, **level} for level in data["levels"]]
    return {"means": [], **data, "levels": levels}


def with_open_loops(data: Data, because: Mapping[str, Any]) -> Data:
    """Add open loops, the client's calibration and the rows of the ledger to bench records from before 2026-11-24 13:39."""
    # That version sent one warm-up request per request in flight.
    levels = [{"warmups": level["concurrency"], "steady_tok_s": None, "chunks_s": math.nan, **level} for level in data["levels"]]
    ledger = data["ledger"]
    if isinstance(ledger, dict):
        ledger = [{"name": "output tokens", "client": ledger["client_tokens"], "server": ledger["server_tokens"]}]
    unknown = {"tokens_per_chunk": None, "ceiling_chunks_s": None, "cold_hit_tokens": None, "warm_hit_tokens": None}
    empty: Data = {"open_levels": [], "trials": [], "limits": {}, "calibrations": []}
    warmups = because.get("bench", {}).get("warmup_requests", 0)
    return {"warmups": warmups, **unknown, **empty, **data, "levels": levels, "ledger": ledger}


def with_cores(data: Data, _because: Mapping[str, Any]) -> Data:
    """Add physical cores, as many as threads, to check-gpu records from before 2026-11-24 10:58."""
    return {**data, "host": {"physical_cores": data["host"]["cores"], **data["host"]}}


def with_interpreter(data: Data, _because: Mapping[str, Any]) -> Data:
    """Add the interpreter, always the project's own environment, to install records from before 2026-11-23 17:10."""
    return {"interpreter": "venv-vllm/bin/python", **data}


def with_plan(data: Data, _because: Mapping[str, Any]) -> Data:
    """Add a missing plan, and that no weights were random, to serve records from before 2026-11-23 17:10."""
    return {"random_weights": False, "plan": None, **data}


def with_arms(data: Data, _because: Mapping[str, Any]) -> Data:
    """Add the arms and gaps that were not tested to test-determinism records from before 2026-11-23 17:10."""
    return {"arms": [], **data, "prompts": [{"gap": None, **prompt} for prompt in data["prompts"]]}


def by_prompts(data: Data, _because: Mapping[str, Any]) -> Data:
    """test-determinism, until 2026-11-27 23:59: most shares were of answers, and repeated answers to one prompt are not independent."""
    of_arms = {name: [arm["prompts"] for arm in data["arms"] if arm["arm"] == name] for name in ("D2", "D3", "D4")}
    sources = {"identical": [data["prompts"]], **{f"{name.lower()}_identical": prompts for name, prompts in of_arms.items()}}
    figures = dict(data["figures"])
    for name, arms in sources.items():
        if arms and name in figures and figures[name]["value"] is not None:
            agreeing = [{prompt["prompt"]: prompt["agreeing"] == prompt["runs"] for prompt in prompts} for prompts in arms]
            figures[name] = prompts_share(agreeing).model_dump(mode="json")
    return {**data, "figures": figures}


def with_pairs(data: Data, _because: Mapping[str, Any]) -> Data:
    """Add unary arms, the confusion and the paired comparison of the arms to test-router records from before 2026-11-24 13:39."""
    return {"unary_cases": 0, "majority_route": "", "confusion": {}, "routes_paired": None, **data}


def with_breakdown(data: Data, _because: Mapping[str, Any]) -> Data:
    """Add what the server's log and metrics say, as unknown, to measure-vram records from before 2026-11-23 17:10."""
    return {"breakdown": {}, "preemptions": None, **data}


def with_load(data: Data, _because: Mapping[str, Any]) -> Data:
    """Replace the duration of the load by a load with placeholders for its samples, in measure-vram records before 2026-11-24 14:28."""
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
    """Add waivers, pictures and rows for the terminal, all empty, to report records from before 2026-11-24 19:43."""
    return {"plots": [], "header": [], **data, "gates": [{"waiver": "", "cells": [], **gate} for gate in data["gates"]]}


def with_baseline(data: Data, _because: Mapping[str, Any]) -> Data:
    """Add the GPU memory before the start, as unknown, to stop records from before 2026-11-23 23:17."""
    return {"gpu_used_before_mib": None, **data}


def without_words(data: Data, _because: Mapping[str, Any]) -> Data:
    """Remove the recommendation in words, which the report now makes, from sweep records from before 2026-11-24 19:43."""
    return {key: value for key, value in data.items() if key not in ("schema_version", "recommendation")}


def with_backend(data: Data, _because: Mapping[str, Any]) -> Data:
    """Rename serve.executor to serve.distributed_executor_backend in launch records from before 2026-11-24 17:49."""
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
    "test-determinism": (with_arms, by_prompts),
    "test-router": (with_pairs,),
}


def today(kind: str) -> int:
    """Return the number of the current form of that kind."""
    return len(STEPS.get(kind, ()))


def migrated(kind: str, form: int, data: Data, because: Mapping[str, Any]) -> Data:
    """Return the data of a record in the current form of its kind; KeyError or TypeError if it has no known form."""
    for step in STEPS.get(kind, ())[form:]:
        data = step(data, because)
    return data
