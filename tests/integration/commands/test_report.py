"""report --only: what is on record, rendered."""

import yaml

from tests.builders.project import Project
from tests.integration.commands.reading import rendered, verdicts


def test_report_of_nothing_says_that_nothing_was_measured(project: Project) -> None:
    done = project.invoke("report", "--only", "--profile", "cpu")
    assert done.returncode == 2
    text = rendered(project)
    gates = yaml.safe_load((project.root / "config.yaml").read_text(encoding="utf-8"))["gates"]
    rows = verdicts(text)
    assert sorted(label for label, _ in rows) == sorted(gate["label"] for gate in gates.values())
    assert all("NOT_MEASURED" in verdict and "never ran" in verdict for _, verdict in rows)
    assert "PASS" not in "".join(verdict for _, verdict in rows)
    assert text.count("NOT_MEASURED: this stage never ran") == 4
    assert "TBD" not in text
    assert "NOT MEASURED: 0 of 7 required gates pass" in text
    assert "NOT MEASURED: 0 of 7 required gates pass" in done.stdout
    assert "REPORT.md" in done.stdout.splitlines()
    assert {path.name for path in (project.root / "artifacts").glob("[a-z]*.json")} == {"report.json"}


def test_report_of_a_failure_shows_it_with_its_hint(project: Project) -> None:
    project.fail("serve", "the server ran out of | memory", "set serve.max_num_seqs lower", ("first", "last <b>word</b>"))
    project.fail("bench", "needs serve, which failed")
    done = project.invoke("report", "--only", "--profile", "cpu")
    assert done.returncode == 2
    text = rendered(project)
    failures = text[text.index("## Failures") : text.index("## Test scenarios")]
    assert "**serve**: the server ran out of | memory\n" in failures
    assert "→ set serve.max_num_seqs lower" in failures
    assert "first\nlast <b>word</b>\n" in failures
    assert "serve failed: the server ran out of | memory" in done.stdout
    assert dict(verdicts(text))["Throughput"].endswith("NOT_MEASURED: needs serve, which failed")
    assert "TBD" not in text


def test_report_goes_where_the_settings_say_and_is_unchanged_the_second_time(project: Project) -> None:
    words = ("report", "--only", "--profile", "cpu", "--set", "report.output=out/mine.md")
    assert project.invoke(*words).returncode == 2
    first = (project.root / "out" / "mine.md").read_text(encoding="utf-8")
    assert not (project.root / "REPORT.md").exists()
    assert project.invoke(*words).returncode == 2
    assert (project.root / "out" / "mine.md").read_text(encoding="utf-8") == first


def test_report_names_the_settings_that_a_repetition_needs(project: Project) -> None:
    words = ("report", "--only", "--profile", "cpu", "--set", "bench.concurrency=[1, 2]")
    assert project.invoke(*words, VLLM_POC__SERVE__PORT="8123").returncode == 2
    command = "./inv all --profile cpu --set serve.port=8123 --set 'bench.concurrency=[1, 2]'"
    assert f"To do it again:\n\n```bash\n{command}\n```\n" in rendered(project)


def test_record_of_a_later_version_is_not_taken_for_ours(project: Project) -> None:
    project.fail("serve", "it died")
    path = project.root / "artifacts" / "serve.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"schema_version": 2', '"schema_version": 99'), encoding="utf-8")
    done = project.invoke("report", "--only", "--profile", "cpu")
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()[-2:]
    assert error == f"error: {path} has record schema 99, this program reads 2"
    assert "remove the file to run the stage again" in hint
    assert not (project.root / "REPORT.md").exists()
