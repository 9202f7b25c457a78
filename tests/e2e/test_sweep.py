"""A sweep of two small cells on real vLLM, on a Ray of its own."""

import json

from tests.e2e.conftest import Project


def test_two_cells_one_after_the_other_each_with_its_own_server_and_report(project: Project) -> None:
    project.run("stop")
    grid = ("--grid", "profile=quick;serve.max_num_seqs=4,8")
    code, output = project.run("sweep", *grid)
    sweep = json.loads((project.root / "artifacts" / "sweep" / "sweep.json").read_text(encoding="utf-8"))
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
    _, again = project.run("sweep", *grid)
    assert again.count("done already") == 2, again
