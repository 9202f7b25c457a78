"""sweep: the pipeline over a matrix of settings; each cell is a run of its own, and measured cells are not run again."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.layers import ENVIRONMENT_PREFIX, Layers, nearest, single_value
from pipeline.config.schema import Config
from pipeline.dag import STAGES
from pipeline.engine.code import CodeDigests
from pipeline.engine.fingerprint import content_digest
from pipeline.engine.record import SWEEP_NOTE, Outcome, Store, digest, now, write_atomic
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, RecordError
from pipeline.measure.digits import counted
from pipeline.planning import Card, Library
from pipeline.redact import redacted
from pipeline.report.formats.document import FILE_NAME, Document
from pipeline.report.sections.sweep import sweep_part
from pipeline.report.sweep import INTERRUPTED, CellRecord, Sweep, exit_code, recommendation, recommended
from pipeline.report.words import ENGLISH
from pipeline.runs import kept as runs
from pipeline.stages.check_gpu import Machine
from pipeline.sweep import grid, results
from pipeline.sweep.fit import CellFit, cell_fit, estimates, gpus_of, may_share, minutes
from pipeline.sweep.grid import Cell
from pipeline.sweep.node import SWEEPS
from pipeline.sweep.placing import CellOrder, Ended, Listener, Nodes, Placing
from pipeline.sweep.summary import PARETO_PLOT, page
from pipeline.terminal import Output

SUMMARY_FILE = "SWEEP.md"
MOST_BYTES = 64 * 2**20  # the most that such a node sends back for a cell
PATIENCE_S = 120.0  # for a lost run of the same cell to release its folder
STOP_S = 60.0  # for an interrupted pipeline to stop its server
# A cell must measure its own settings: no fallback to a smaller profile or a shorter context. One kept run is enough.
PINNED = ("serve.on_oom=fail", "runs.keep=1")
OUTSIDE = {"sweep", "publish", "runs", "report", "alternatives", "watch"}  # sections that no measurement depends on


@dataclass(frozen=True)
class Job:
    """A cell with its settings, and what is known before it runs."""

    cell: Cell
    config: Config
    profile: str
    fit: CellFit
    fingerprint: str
    known: CellRecord | None

    @property
    def done(self) -> bool:
        """Tell whether it was measured with this code and these settings."""
        return self.known is not None and self.known.state == "measured" and self.known.fingerprint == self.fingerprint

    def record(self) -> CellRecord:
        """Return the record of the cell before it runs."""
        return CellRecord(
            name=self.cell.name,
            folder=self.cell.folder,
            values=dict(self.cell.values),
            profile=self.profile,
            fingerprint=self.fingerprint,
            fit=self.fit.words,
            model=self.config.model.name,
        )


@dataclass(frozen=True)
class SweepOptions:
    """The options of the command line."""

    grid: str | None = None
    ray_address: str | None = None
    dry_run: bool = False
    force: bool = False
    sets: tuple[str, ...] = ()


def cell_command(job: Job, options: SweepOptions) -> list[dict[str, Any]]:
    """Return the steps of a cell: the stages whose results cells share, one cell at a time, then the whole chain."""
    sets = [*options.sets, *job.cell.sets, *PINNED, "serve.port={port}"]
    words = ["--profile", job.profile, *(word for text in sets for word in ("--set", text))]
    shared = [] if job.config.attach.url else ["install", "download-model"]
    force = ["--force"] if options.force else []
    python = ["{python}", "-m", "invoke"]
    steps = [{"words": [*python, name, *words], "shared": True} for name in shared]
    return [*steps, {"words": [*python, "all", *words, *force], "shared": False}]


class Sweeping:
    """One sweep of a project; `command` returns a cell's steps."""

    def __init__(
        self,
        layers: Layers,
        machine: Machine,
        options: SweepOptions,
        workspace: Workspace,
        say: Callable[[str], None],
        command: Callable[[Job, SweepOptions], list[dict[str, Any]]] = cell_command,
        shared: bool = True,
    ) -> None:
        self.layers, self.machine, self.options, self.workspace, self.say = layers, machine, options, workspace, say
        self.command, self.shared = command, shared
        self.folder = workspace.root / SWEEPS
        self.settings = layers.config(None).sweep
        self.axes, origin = (dict(self.settings.grid), "sweep.grid") if options.grid is None else (grid.parse_axes(options.grid), "--grid")
        self._cells = [(cell, *self._config(cell, origin)) for cell in grid.cells(self.axes, origin, self.settings.max_cells)]
        self._records: dict[str, CellRecord] = {}
        self._jobs_by_folder: dict[str, Job] = {}
        self._started = now()

    def dry_run(self) -> Output:
        """Return each cell, whether it fits, and how long it may take; 0 when a cell can run or is done, else 2."""
        nodes = self._nodes() if self.options.ray_address else None
        try:
            jobs, planned_for = self._jobs(nodes)
        finally:
            if nodes is not None:
                nodes.close()
        took = estimates(self._documents())
        lines, rows = [f"{counted(len(jobs), 'cell')}, planned for {planned_for}"], []
        for job in jobs:
            state = "done" if self._skips(job) else "to run" if job.fit.runs else "left out"
            takes_s = took.get(job.profile) if state == "to run" else None
            lines.append(f"  {job.cell.name}: {minutes(takes_s) if state == 'to run' else state}; {job.fit.words}")
            rows.append({"cell": job.cell.name, "state": state, "estimate_s": takes_s, "fit": job.fit.words})
        open_ = [took.get(job.profile) for job in jobs if job.fit.runs and not self._skips(job)]
        known = [seconds for seconds in open_ if seconds is not None]
        more = f", beside {counted(len(open_) - len(known), 'cell')} of which no run is kept" if known and len(known) < len(open_) else ""
        total = f", {minutes(sum(known) if known else None)} one after the other" if open_ else ""
        lines.append(f"to run: {counted(len(open_), 'cell')}{total}{more}")
        code = 0 if any(job.fit.runs or job.done for job in jobs) else 2
        return Output(code, lines, {"exit_code": code, "planned_for": planned_for, "cells": rows})

    def run(self) -> Output:
        """Run the cells that are not done; 0 when a cell passes every gate, 1 when none does, 2 when none was measured."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.options.ray_address:
            return self._run(self._jobs(None)[0], None)
        nodes = self._nodes()
        try:
            return self._run(self._jobs(nodes)[0], nodes)
        finally:
            nodes.close()

    def _run(self, jobs: Sequence[Job], nodes: Nodes | None) -> Output:
        for job in jobs:
            record = job.record()
            if self._skips(job):
                assert job.known is not None
                source = results.path_of(self.workspace.root, self.folder / job.cell.folder / FILE_NAME)
                record = job.known.model_copy(update={"fit": job.fit.words, "source": source})
                self.say(f"· {job.cell.name}: done already, {result_words(record)}")
            elif not job.fit.runs:
                record = record.model_copy(update={"state": "skipped", "reason": job.fit.words})
                self.say(f"▫ {job.cell.name}: left out: {job.fit.words}")
            self._records[record.folder] = record
        self._jobs_by_folder = {job.cell.folder: job for job in jobs}
        orders = [self._order(job) for job in jobs if job.fit.runs and not self._skips(job)]
        self._write(finished=False)
        try:
            if orders:
                open_nodes = nodes or self._nodes()
                try:
                    listener = Listener(self.say, self._on_start, self._on_end)
                    Placing(open_nodes, self.workspace.root, self.settings.retries, STOP_S, listener, self.shared).run(orders)
                finally:
                    if nodes is None:
                        open_nodes.close()
        except BaseException:
            for folder, record in self._records.items():
                if record.state == "waiting":
                    self._records[folder] = record.model_copy(update={"state": "interrupted", "reason": INTERRUPTED})
            self._write(finished=False)
            raise
        sweep = self._write(finished=True)
        assert sweep.exit_code is not None
        parts = [f"recommendation: {recommendation(sweep.cells)}", str(SWEEPS / SUMMARY_FILE)]
        return Output(sweep.exit_code, parts, sweep.model_dump(mode="json"))

    def _skips(self, job: Job) -> bool:
        return job.done and not self.options.force

    def _nodes(self) -> Nodes:
        return Nodes(self.options.ray_address, len(self.machine.gpus), self.settings.object_store_mib)

    def _config(self, cell: Cell, origin: str) -> tuple[Config, str]:
        """Return the cell's settings and profile; ConfigError names the wrong axis."""
        cell_layers = [single_value(*text.partition("=")[::2], origin) for text in cell.sets]
        layers = replace(self.layers, overrides=(*self.layers.overrides, *cell_layers))
        base_profile, _ = layers.profile
        profile = cell.profile or base_profile
        profile_name = self.machine.profile if profile == "auto" else profile
        if profile_name not in layers.profiles:
            near = nearest(profile_name, layers.profiles)
            raise ConfigError(f"{origin}: no profile {profile_name!r}{near}", f"profiles: {', '.join(sorted(layers.profiles))}, auto")
        return layers.config(profile_name), profile_name

    def _jobs(self, nodes: Nodes | None) -> tuple[list[Job], str]:
        """Return the cells with how they fit, and the words for the machine or cluster they were planned for."""
        library, code = Library(self.machine, self.workspace), self._code()
        if nodes is None:
            card, most_gpus = largest([(gpu.name, gpu.total_mib) for gpu in self.machine.gpus]), len(self.machine.gpus)
            planned_for = (
                f"this machine, {card.name} with {card.total_mib:.0f} MiB" if card else f"this machine without a GPU: {self.machine.reason}"
            )
        else:
            card, most_gpus = largest(nodes.cards()), int(max((found.get("GPU", 0.0) for found in nodes.alive()), default=0))
            planned_for = f"{len(nodes.alive())} nodes, the largest GPU {f'{card.name} with {card.total_mib:.0f} MiB' if card else 'none'}"
        jobs = []
        for cell, config, profile in self._cells:
            fingerprint = self._fingerprint(config, code)
            known = results.read_cell(self.folder / cell.folder)
            jobs.append(Job(cell, config, profile, cell_fit(config, card, most_gpus, library), fingerprint, known))
        return jobs, planned_for

    def _code(self) -> list[str]:
        """Return the digests of the stages' code; comments and layout do not count."""
        digests = CodeDigests(self.workspace.root / "pipeline", self.workspace.artifacts / ".code.json")
        found = [digests.digest(stage.function.__module__) for stage in STAGES]
        digests.save()
        return found

    def _fingerprint(self, config: Config, code: Sequence[str]) -> str:
        """Return a digest of the code and the settings that the cell's figures depend on."""
        values = config.model_dump(mode="json", exclude=OUTSIDE)
        values["serve"].pop("port")
        sections = [getattr(config, name) for name in Config.model_fields if name not in OUTSIDE]
        files = sorted({file for section in sections for file in getattr(section, "files", tuple)()})
        return digest([code, values, [(file, content_digest(self.workspace.root / file)) for file in files]])

    def _documents(self) -> Iterable[Document]:
        """Yield the reports of the kept runs, newest first, then those of the cells."""
        for found in runs.readable(self.workspace):
            if not isinstance(found, RecordError):
                yield found.document
        for path in sorted(self.folder.glob("*/report.json")):
            document = results.document_of(path.parent)
            if document is not None:
                yield document

    def _order(self, job: Job, again: bool = False) -> CellOrder:
        """Return the order for a cell; `again`: alone, whatever is on record of it."""
        options = replace(self.options, force=True) if again else self.options
        root = self.workspace.root
        (self.folder / job.cell.folder / results.CELL_FILE).unlink(missing_ok=True)  # after a crash the cell counts as not run
        inherited = {k: v for k, v in os.environ.items() if k.startswith(ENVIRONMENT_PREFIX) or k == "OMP_NUM_THREADS"}
        return CellOrder(
            job.cell.folder,
            gpus_of(job.config),
            {
                "cell": job.cell.folder,
                "root": str(root),
                "local": self.settings.node_folder,
                "code": re.sub(r"\W", "", digest([self._code(), content_digest(root / "config.yaml"), str(root)])),
                "environment": self._environment(job),
                "steps": self.command(job, options),
                "variables": {**inherited, "UV_VENV_CLEAR": "1", "PYTHONUNBUFFERED": "1"},
                "patience_s": PATIENCE_S,
                "stop_s": STOP_S,
                "most_bytes": MOST_BYTES,
            },
            shared=may_share(job.config) and not again,
        )

    def _environment(self, job: Job) -> str:
        """Return the server environment that the cell uses: the project's, or its own if its install settings differ."""
        install = job.config.install
        if install == self.layers.config(None).install:
            return "venv-vllm"
        return f".cache/sweep/venv-{digest(install.model_dump(mode='json'))}"

    def _on_start(self, order: CellOrder, where: str) -> None:
        self.say(f"▶ {self._records[order.cell].name}: started on {where}; log {SWEEPS / order.cell / 'cell.log'}")

    def _on_end(self, order: CellOrder, how: Ended) -> CellOrder | None:
        """Record how a cell ended, and print it; return the order to run it again alone if a neighbour disturbed its client."""
        record, folder = self._records[order.cell], self.folder / order.cell
        record = record.model_copy(update={"where": how.where or None, "took_s": how.took_s, "lost": how.lost, "shared": order.shared})
        job = self._jobs_by_folder[order.cell]
        trouble = results.disturbed(folder) if order.shared and how.code is not None and job.config.sweep.exclusive == "auto" else ""
        if trouble:
            self._records[order.cell] = record.model_copy(update={"again": trouble})
            self._write(finished=False)
            self.say(f"✗ {record.name}: INVALID beside its neighbour, to be run again alone: {trouble}")
            return self._order(job, again=True)
        if how.code is None:
            record = record.model_copy(update={"state": "failed", "reason": how.said})
        else:
            record = results.ended(record, how.code, self.workspace.root, folder, how.said)
        folder.mkdir(parents=True, exist_ok=True)
        results.write_cell(folder, record)
        self._records[order.cell] = record
        self._write(finished=False)
        ended_cells = sum(other.state != "waiting" for other in self._records.values())
        took = f" in {how.took_s:.0f} s" if how.took_s is not None else ""
        mark = "✓" if record.state == "measured" else "✗"
        left_text = f"; too large to come back, left on the node: {', '.join(how.left)}" if how.left else ""
        self.say(f"{mark} {record.name}: {result_words(record)}{took} ({ended_cells} of {len(self._records)}){left_text}")
        return None

    def _write(self, finished: bool) -> Sweep:
        """Write the sweep's record, SWEEP.md and the plot; return the sweep."""
        cells = list(self._records.values())
        best, store, ended = recommended(cells), Store(self.workspace.artifacts), now()
        sweep = Sweep(
            started=self._started,
            finished=ended if finished else None,
            axes={key: list(values) for key, values in self.axes.items()},
            cells=cells,
            recommended=best.name if best else None,
            exit_code=exit_code(cells) if finished else None,
        )
        store.write(SWEEP_NOTE, {"axes": sweep.axes}, self._started, (ended - self._started).total_seconds(), sweep)
        part = sweep_part(Outcome(SWEEP_NOTE, sweep, None), self.layers.config(None).alternatives.root)
        plot, drawing = self.folder / PARETO_PLOT, part.picture.drawing if part.picture is not None else None
        if drawing is not None:
            write_atomic(plot, redacted(drawing(ENGLISH)))
        else:
            plot.unlink(missing_ok=True)
        reports = {cell.name: str(Path(cell.report).relative_to(SWEEPS)) for cell in cells if cell.report}
        write_atomic(self.folder / SUMMARY_FILE, redacted(page(part, reports, PARETO_PLOT if drawing is not None else None)))
        return sweep


def largest(cards: Sequence[tuple[str, float]]) -> Card | None:
    """Return the card with the most memory; None if there is none."""
    if not cards:
        return None
    name, total_mib = max(cards, key=lambda found: found[1])
    return Card(name=name, total_mib=total_mib, available_mib=total_mib, reason="the largest")


def result_words(record: CellRecord) -> str:
    """Return a cell's result as text."""
    if record.state != "measured":
        return f"{record.state}: {record.reason}" + (f"; see {record.report}" if record.report else "")
    name = "SIMULATED" if record.simulated else record.verdict
    return f"{name}, {record.gates_passed} of {record.gates} gates; {record.report}"
