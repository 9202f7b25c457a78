"""An example from a project folder in which `./inv all` ran: its report with the records, small and without names of machines or users.

`python -m examples.keep PROJECT NAME` makes examples/NAME. `python -m examples.keep` renders every example again with today's
code, for use when the wording of reports changes. It takes the settings on record, so config.yaml and the date have no effect, and
it fails if a figure would change. Besides the records, an example holds the stamps of bench (only the first and the last chunk of
requests that ran beside others) and the memory samples (without the devices' sensors).
"""

import argparse
import gzip
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.config.schema import IMAGES
from pipeline.dag import NOTES, STAGES
from pipeline.engine.context import Context
from pipeline.engine.pipeline import Pipeline
from pipeline.engine.record import Store
from pipeline.engine.workspace import Workspace
from pipeline.load.stamps import ALONE, COLD, WARM, compressed
from pipeline.publish.publication import private_here
from pipeline.publish.scrub import Private, scrubbed_value
from pipeline.report.formats.document import FILE_NAME, Document, read_document
from pipeline.server.state import SAMPLES
from pipeline.stages.measure_vram import read_samples
from pipeline.terminal import Silent

HERE = Path(__file__).resolve().parent
RENDERED = ("REPORT.md", FILE_NAME, "report.html")
AGAIN = ".venv/bin/python -m examples.keep"
PROJECT_FOLDER = re.compile(r"(?<![\w.~/-])(/[^\s\"']+)/(?:venv-vllm|artifacts)/")


def examples() -> list[Path]:
    """Return the folders of the examples."""
    return sorted(path.parent for path in HERE.glob(f"*/{FILE_NAME}"))


def keep(project: Path, target: Path) -> None:
    """Make the example in the folder `target` from what `all` left in `project`."""
    if not (project / FILE_NAME).is_file() or not (project / "artifacts" / "report.json").is_file():
        raise SystemExit(f"{project} holds no report: name a folder in which `./inv all` ran")
    with tempfile.TemporaryDirectory() as folder:
        staging = Path(folder) / "example"
        (staging / "artifacts" / "raw").mkdir(parents=True)
        shutil.copyfile(project / FILE_NAME, staging / FILE_NAME)
        names = [*(stage.name for stage in STAGES), *NOTES.values()]
        texts = {name: path.read_text(encoding="utf-8") for name in names if (path := project / "artifacts" / f"{name}.json").is_file()}
        private = private_in("".join(texts.values()), project)
        for name, text in texts.items():
            write_text(
                staging / "artifacts" / f"{name}.json", json.dumps(scrubbed_record(text, private), indent=1, ensure_ascii=False) + "\n"
            )
        stamps = project / "artifacts" / "raw" / "bench.jsonl.gz"
        if stamps.is_file():
            lines = map(json.loads, gzip.decompress(stamps.read_bytes()).splitlines())
            (staging / stamps.relative_to(project)).write_bytes(compressed(thinned(lines)))
        for launch in sorted({stage.launch_id for stage in document_in(staging).stages if stage.launch_id}):
            samples = project / "artifacts" / "launches" / launch / SAMPLES
            if not samples.is_file():
                raise SystemExit(f"{samples} is missing: the memory of a run is drawn from its samples")
            write_text(staging / samples.relative_to(project), "".join(json.dumps(sample) + "\n" for sample in without_sensors(samples)))
        render(staging)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(staging, target)


def private_in(records: str, project: Path) -> Private:
    """Return what must not appear in the example: what is private here, and the folder of the run, which may be another machine's."""
    match = PROJECT_FOLDER.search(records)
    return replace(private_here(project, (), project / ".api-key"), project=match[1] if match else str(project))


def scrubbed_record(text: str, private: Private) -> dict[str, Any]:
    """Return the record without private values; versions stay, because one with four parts would be taken for an address."""
    record = json.loads(text)
    scrubbed: dict[str, Any] = scrubbed_value(record, private)
    if "versions" in (record.get("data") or {}):
        scrubbed["data"]["versions"] = record["data"]["versions"]
    return scrubbed


def thinned(lines: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield bench's stamps; only the first and the last chunk of requests beside others, whose gaps no figure uses."""
    for line in lines:
        first, *later = line["chunks"] or [0]
        crowded = line["phase"] not in (COLD, WARM, ALONE) and later
        yield {**line, "chunks": [first, sum(later)]} if crowded else line


def without_sensors(samples: Path) -> Iterator[dict[str, Any]]:
    """Yield the samples of memory without temperature, power and clocks, which no picture shows."""
    for sample in read_samples(samples):
        yield {key: value for key, value in sample.items() if key != "devices"}


def render(example: Path) -> None:
    """Render the example's records again in place; SystemExit if a figure would change."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "project"
        render_in(root, example)
        before, after = (document_in(place) for place in (example, root))
        changed = [one.metric for one in before.figures if one != after.figure(one.metric)]
        if changed or len(before.figures) != len(after.figures):
            raise SystemExit(f"{example.name}: {', '.join(changed) or 'the list of figures'} would change: make the example of a new run")
        for name in RENDERED:
            shutil.copyfile(root / name, example / name)
        shutil.rmtree(example / IMAGES, ignore_errors=True)
        shutil.copytree(root / IMAGES, example / IMAGES)


def render_in(root: Path, example: Path) -> None:
    """Render the example's records in a project folder of their own, as `./inv report --only` with the settings on record."""
    shutil.copytree(example / "artifacts", root / "artifacts")
    (root / "templates").symlink_to(HERE.parent / "templates")
    envelope = Store(root / "artifacts").read("report")
    because = envelope.because if envelope is not None else {}

    def settings(kind: type[BaseModel]) -> BaseModel:
        return kind.model_validate(because[kind.__name__.removesuffix("Config").lower()])

    def context(kind: type[Context]) -> Context:
        return kind.model_validate(because[kind.__name__.lower()])

    (result,) = Pipeline(STAGES, Workspace(root, Silent()), settings, NOTES, context).ensure(["report"], force=["report"], alone=True)
    if result.state != "made":
        raise SystemExit(f"{example.name}: the report is not made: {result.reason}")


def document_in(folder: Path) -> Document:
    """Return the report.json in that folder."""
    return read_document((folder / FILE_NAME).read_bytes(), FILE_NAME)


def write_text(path: Path, text: str) -> None:
    """Write a file, and create its folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main() -> None:
    """Make one example, or render all."""
    parser = argparse.ArgumentParser(prog="python -m examples.keep", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("project", nargs="?", type=Path, help="the folder in which `./inv all` ran; without it, render all anew")
    parser.add_argument("name", nargs="?", help="the example's, as in 2026-11-27-nvidia-h100-smollm2-135m")
    arguments = parser.parse_args()
    if arguments.project is None:
        for example in examples():
            render(example)
    elif arguments.name is None:
        parser.error("name the example too")
    else:
        keep(arguments.project.resolve(), HERE / arguments.name)


if __name__ == "__main__":
    main()
