"""A sweep of two small cells on real vLLM, on a Ray of its own."""

import json
import re
from typing import Any

import pytest

from pipeline.measure.digits import number
from pipeline.measure.figures import Figure
from tests.e2e.conftest import Project


def test_two_cells_one_after_the_other_each_with_its_own_server_and_report(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(project.env, "VLLM_POC__SERVE__ENFORCE_EAGER", "true")  # each cell would compile in a folder of its own
    project.run("stop")
    project.run("report", "--only")  # a report on record, which the sweep shows itself in
    grid = ("--grid", "profile=quick;serve.max_num_seqs=4,8")
    code, output = project.run("sweep", *grid)
    sweep = project.record("sweep")["data"]
    cells = sweep["cells"]
    assert [cell["state"] for cell in cells] == ["measured", "measured"], output
    assert code == sweep["exit_code"], output
    assert code in (0, 1), output
    assert not any(cell["simulated"] for cell in cells)
    for cell, sequences in zip(cells, ("4", "8"), strict=True):
        folder = project.root / "artifacts" / "sweep" / cell["folder"]
        served = json.loads((folder / "artifacts" / "serve.json").read_text(encoding="utf-8"))["data"]
        assert served["real"]
        assert served["command"][served["command"].index("--max-num-seqs") + 1] == sequences
        assert json.loads((folder / "artifacts" / "stop.json").read_text(encoding="utf-8"))["data"]["port_free"]
        assert cell["figures"]["bench.decode_tok_s_p50"]["value"] > 0
        assert cell["size_mib"] > 50
        assert (project.root / cell["report"]).is_file()
    assert project.processes() == [], "no server outlives its cell"
    shown_in_the_report(project, output, cells)
    _, again = project.run("sweep", *grid)
    assert again.count("done already") == 2, again


def shown_in_the_report(project: Project, output: str, cells: list[dict[str, Any]]) -> None:
    """Assert that REPORT.md shows each cell's figures as the cell's own report has them, and leads to them."""
    assert "REPORT.md: shows the sweep" in output
    text = (project.root / "REPORT.md").read_text(encoding="utf-8")
    lines = (project.root / "report.json").read_text(encoding="utf-8").splitlines()
    assert "![Sweep: models and settings side by side](report/sweep.svg)" in text
    assert "<circle" in (project.root / "report" / "sweep.svg").read_text(encoding="utf-8")
    for cell in cells:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {cell['name']} |")]
        assert "NOT_MEASURED" not in row, row
        own = json.loads((project.root / cell["source"]).read_text(encoding="utf-8"))
        figures = {f"{one['stage']}.{one['name']}": one for one in own["figures"]}
        for metric in ("bench.ttft_ms_p95", "bench.decode_tok_s_p50", "test-router.constrained_route_accuracy"):
            one = Figure.model_validate({key: figures[metric][key] for key in Figure.model_fields})
            assert cell["figures"][metric] == one.model_dump()
            assert f"(n = {one.n}" in row
        assert number(figures["measure-vram.host_pss_peak_mib"]["value"]) in row
        place = re.search(rf"\[`{re.escape(cell['source'])}`\]\(report\.json#L(\d+)\)", row)
        assert place is not None, row
        assert lines[int(place[1]) - 1] == f'    "name": {json.dumps(cell["name"])},'
