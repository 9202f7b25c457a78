"""The examples: their records, rendered by today's code, are their reports; they hold nothing private; and how one is made."""

import difflib
import gzip
import json
import re
import shutil
from pathlib import Path

import pytest

from examples.keep import AGAIN, HERE, document_in, examples, keep, render, render_in, thinned
from pipeline.load.stamps import ALONE
from tests.integration.docs.test_links import broken

EXAMPLES = pytest.mark.parametrize("example", examples(), ids=lambda path: path.name)
MOST_BYTES = 2**20
PRIVATE = re.compile(r"(?<![\w.~/-])/(?:root|home|Users|tmp|work|mnt|opt|srv|data)/|\.(?:lan|internal|local)\b")


def files(folder: Path) -> dict[str, bytes]:
    """Return each file below, unpacked, by its name."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: gzip.decompress(content) if name.endswith(".gz") else content for name, content in found.items()}


@EXAMPLES
def test_todays_code_says_of_the_records_what_the_example_says(example: Path, tmp_path: Path) -> None:
    render_in(tmp_path / "project", example)
    for name in ("REPORT.md", "report.json"):
        said, today = ((folder / name).read_text(encoding="utf-8").splitlines() for folder in (example, tmp_path / "project"))
        differences = "\n".join(difflib.unified_diff(said, today, f"examples/{example.name}/{name}", "today's code", n=1, lineterm=""))
        assert not differences, f"\n{differences}\nWhere these words are meant to change, render the examples anew: {AGAIN}"


@EXAMPLES
def test_an_example_is_small_names_nobody_and_its_links_lead_into_it(example: Path) -> None:
    held = files(example)
    assert sum(path.stat().st_size for path in example.rglob("*") if path.is_file()) < MOST_BYTES
    assert {name: found[0] for name, content in held.items() if (found := PRIVATE.search(content.decode()))} == {}
    for name in ("REPORT.md", "report.html"):
        text = held[name].decode()
        assert broken(example / name, text) == []
        assert "](../" not in text
        assert 'href="../' not in text
    assert "Not drawn" not in held["report.html"].decode(), "thin stamps are enough for every picture"


def test_the_readme_names_every_example_with_its_verdict() -> None:
    text = " ".join((HERE / "README.md").read_text(encoding="utf-8").split())
    assert examples()
    for example in examples():
        assert f"({example.name}/REPORT.md)" in text
        assert document_in(example).headline in text
    assert AGAIN in text


def test_the_readmes_figures_stand_in_a_report() -> None:
    reports = "".join((example / "REPORT.md").read_text(encoding="utf-8") for example in examples())
    quoted = re.findall(r"\*\*.+?\*\*", (HERE / "README.md").read_text(encoding="utf-8"))
    assert quoted
    assert [figure for figure in quoted if figure not in reports] == []


def test_an_example_is_made_of_a_project_folder(tmp_path: Path) -> None:
    """An example made of an example is that example: everything is thin and scrubbed already."""
    first = examples()[0]
    project, target = tmp_path / "project", tmp_path / "target"
    shutil.copytree(first, project)
    assert (project / "artifacts" / "install.json").is_file()
    private = "/data/poc/venv-vllm/bin/vllm serve"
    serve = project / "artifacts" / "serve.json"
    serve.write_text(serve.read_text(encoding="utf-8").replace("./venv-vllm/bin/vllm serve", private), encoding="utf-8")
    for text in ("notes", "artifacts/.lock", "artifacts/metrics.prom", "artifacts/launches/20000101-000000-1/samples.jsonl"):
        (project / text).parent.mkdir(parents=True, exist_ok=True)
        (project / text).write_text("not kept", encoding="utf-8")
    (target / "of an older one").mkdir(parents=True)
    keep(project, target)
    assert files(target) == files(first)


def test_requests_that_were_not_alone_keep_the_first_chunk_and_the_last() -> None:
    alone = {"phase": ALONE, "chunks": [5, 6, 7]}
    crowd = [{"phase": "closed loop c4", "chunks": chunks} for chunks in ([5, 6, 7], [5], [])]
    assert list(thinned([alone, *crowd])) == [alone, {"phase": "closed loop c4", "chunks": [5, 13]}, *crowd[1:]]


def test_what_is_no_run_makes_no_example(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"holds no report: name a folder in which `\./inv all` ran"):
        keep(tmp_path, tmp_path / "target")
    project = tmp_path / "project"
    shutil.copytree(examples()[0], project)
    shutil.rmtree(project / "artifacts" / "launches")
    with pytest.raises(SystemExit, match=r"samples\.jsonl is missing: the memory of a run is drawn from its samples"):
        keep(project, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_record_of_another_form_leaves_the_example_as_it_is(tmp_path: Path) -> None:
    example = tmp_path / "example"
    shutil.copytree(examples()[0], example)
    record = example / "artifacts" / "bench.json"
    older = json.loads(record.read_text(encoding="utf-8"))
    older["data"]["figures"]["ttft_ms_p50"]["value"] += 1
    record.write_text(json.dumps(older), encoding="utf-8")
    before = files(example)
    with pytest.raises(SystemExit, match=r"example: bench\.ttft_ms_p50 would change: make the example of a new run"):
        render(example)
    older["data"]["gone"] = 1
    record.write_text(json.dumps(older), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"example: bench\..* would change"):
        render(example)
    assert {**files(example), "artifacts/bench.json": b""} == {**before, "artifacts/bench.json": b""}
