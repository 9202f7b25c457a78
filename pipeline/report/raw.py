"""Raw measurements behind the figures, as far as they still exist."""

import gzip
import json
import zlib
from pathlib import Path

from pipeline.client.answer import Answer
from pipeline.errors import MeasureError
from pipeline.load.stamps import TIMES, raw_answer
from pipeline.measure.memory import Sample
from pipeline.stages.bench import BenchResult
from pipeline.stages.measure_vram import MemoryUse, read_samples

LATENCIES = ("ttft_ms", "ttft_warm_ms", "itl_ms", "e2e_ms")


def samples_of(memory: MemoryUse, root: Path) -> list[Sample]:
    """Return the samples behind the memory record; empty if they are missing or unreadable."""
    try:
        return list(read_samples(root / memory.samples_file))
    except MeasureError:
        return []


def latencies_of(bench: BenchResult, root: Path) -> dict[str, list[float]]:
    """Return the values (ms) behind bench's percentiles, by figure; empty if the raw stamps are missing or broken."""
    phases: dict[str, list[Answer]] = {}
    try:
        for line in map(json.loads, gzip.decompress((root / bench.raw).read_bytes()).splitlines()):
            phases.setdefault(line["phase"], []).append(raw_answer(line))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError):
        return {}
    sources = {name: TIMES[name] for name in LATENCIES}
    return {name: values(phases.get(phase, [])) for name, (phase, values) in sources.items()}
