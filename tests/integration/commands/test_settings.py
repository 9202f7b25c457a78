"""Wrong settings are told in one line, with file and line where they are in a file."""

import yaml

from tests.builders.project import Project


def test_misspelt_setting_in_the_file(project: Project) -> None:
    line = project.replace("start_timeout_s", "start_timout_s")
    first, hint = project.refuses("status")
    assert first == f"error: config.yaml:{line}: serve.start_timout_s: unknown setting; did you mean 'start_timeout_s'?"
    assert hint.startswith("  → known here: host, port, ")


def test_misspelt_section_in_the_file(project: Project) -> None:
    line = project.replace("\ndeterminism:\n", "\ndeterminsm:\n")
    first, _ = project.refuses("status")
    assert first == f"error: config.yaml:{line}: determinsm: unknown setting; did you mean 'determinism'?"


def test_wrong_value_in_the_file(project: Project) -> None:
    line = project.replace("load_s: 900", "load_s: -1")
    (first,) = project.refuses("status")
    assert first == f"error: config.yaml:{line}: vram.load_s: input should be greater than 0, got -1"


def test_file_that_is_not_yaml(project: Project) -> None:
    line = project.replace("load_s: 900", "load_s: [900")
    first, hint = project.refuses("status")
    assert first.startswith("error: config.yaml:")
    assert int(first.split(":")[2]) >= line
    assert "indentation, colons and quotes" in hint


def test_missing_file(project: Project) -> None:
    (project.root / "config.yaml").unlink()
    assert project.refuses("status") == [
        "error: config.yaml: No such file or directory",
        "  → restore it with `git checkout config.yaml`",
    ]


def test_misspelt_setting_in_the_environment(untouched: Project) -> None:
    first, _ = untouched.refuses("status", VLLM_POC__SERVE__PROT="8001")
    assert first == "error: environment VLLM_POC__SERVE__PROT: serve.prot: unknown setting; did you mean 'port'?"


def test_misspelt_setting_on_the_command_line(untouched: Project) -> None:
    first, _ = untouched.refuses("bench", "--set", "bench.ttft_request=3")
    assert first == "error: --set bench.ttft_request: bench.ttft_request: unknown setting; did you mean 'ttft_requests'?"
    assert not (untouched.root / "artifacts").exists()


def test_wrong_value_on_the_command_line(untouched: Project) -> None:
    (first,) = untouched.refuses("status", "--set", "serve.port=high")
    assert first.startswith("error: --set serve.port: serve.port: input should be a valid integer")
    assert first.endswith(", got 'high'")


def test_set_without_a_value(untouched: Project) -> None:
    assert untouched.refuses("status", "--set", "serve.port") == [
        "error: --set serve.port: expected key=value",
        "  → for example --set serve.port=8001",
    ]


def test_set_may_be_repeated_and_the_last_wins(untouched: Project) -> None:
    (first,) = untouched.refuses("status", "--set", "serve.port=8001", "--set", "vram.concurrency=2", "--set", "serve.port=0")
    assert first.startswith("error: --set serve.port: serve.port: ")


def test_unknown_profile(untouched: Project) -> None:
    first, hint = untouched.refuses("all", "--profile", "qwen-7b")
    assert first == "error: --profile: no profile 'qwen-7b'; did you mean 'qwen2.5-7b'?"
    assert hint == (
        "  → profiles: cpu, cpu-full, gpu-12gb, gpu-16gb, gpu-24gb, gpu-48gb, gpu-80gb, gpu-8gb, gpu-embedded, llama-3.2-3b, "
        "llama-3.2-3b-shape, quick, qwen2.5-1.5b, qwen2.5-1.5b-shape, qwen2.5-3b-awq-shape, qwen2.5-3b-shape, qwen2.5-7b, "
        "qwen2.5-7b-shape, rtx4050-6gb, auto"
    )


def test_wrong_setting_of_the_profile_that_check_gpu_chose_is_told_before_it_is_used(project: Project) -> None:
    profiles = yaml.safe_load((project.root / "config.yaml").read_text(encoding="utf-8"))["profiles"]
    project.configure(profile="auto", profiles={name: {"bench": {"decode_request": 1}} for name in profiles})
    done = project.invoke("install")
    assert done.returncode == 2
    assert "bench.decode_request: unknown setting; did you mean 'decode_requests'?" in done.stderr
    assert not (project.root / "venv-vllm").exists()
    assert not (project.root / "artifacts" / "install.json").exists()
